//! Emptying the tables of one statement together: a table that another refers to can only be emptied along with it.

use std::rc::Rc;

use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;
use pgrx::{PgSqlErrorCode, pg_sys};

use crate::apply::relation::Target;
use crate::apply::table::{fires_on_apply, list_cells};
use crate::errors::{Failure, Result};

// Not among pgrx's bindings. The declaration is that of catalog/pg_inherits.h, the same in PostgreSQL 15 to 18;
// calls go through `guarded`, which turns an ERROR inside into a panic.
unsafe extern "C-unwind" {
    fn find_all_inheritors(
        parent: pg_sys::Oid,
        lockmode: pg_sys::LOCKMODE,
        numparents: *mut *mut pg_sys::List,
    ) -> *mut pg_sys::List;
}

/// Empties `targets`, which one statement emptied on the peer. The peer's CASCADE has named all of them, so nothing
/// further is emptied here: a table only of this node that refers to one of them makes this an error.
///
/// # Safety
/// Inside a transaction with an active snapshot, acting as the first table's owner; none of the tables is open.
pub(crate) unsafe fn truncate(targets: &[Rc<Target>], restart_identity: bool) -> Result<()> {
    let Some(first) = targets.first() else { return Ok(()) };
    let (mut rels, mut relids) = (std::ptr::null_mut(), std::ptr::null_mut());
    let mut seen = Vec::new();
    let mut triggers = false;
    // SAFETY: as the caller promises; relations are locked to the end of the transaction.
    unsafe {
        for target in targets {
            let lock = pg_sys::AccessExclusiveLock.cast_signed();
            let root = pg_sys::table_open(target.relid, lock);
            // Partitions are the table; those who inherit otherwise are tables of their own, which may not be enabled.
            let is_partitioned = (*(*root).rd_rel).relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE;
            pg_sys::table_close(root, pg_sys::NoLock.cast_signed());
            let members = if is_partitioned {
                guarded(|| find_all_inheritors(target.relid, lock, std::ptr::null_mut()))
            } else {
                pg_sys::lappend_oid(std::ptr::null_mut(), target.relid)
            };
            for cell in list_cells(members) {
                let relid = cell.oid_value;
                if seen.contains(&relid) {
                    continue;
                }
                seen.push(relid);
                let rel = pg_sys::table_open(relid, pg_sys::NoLock.cast_signed());
                triggers |= has_user_triggers(rel);
                rels = pg_sys::lappend(rels, rel.cast());
                relids = pg_sys::lappend_oid(relids, relid);
            }
        }
        // PostgreSQL 15 runs the triggers of all tables as one role, which must not be another table's owner.
        if cfg!(feature = "pg15") && triggers && targets.iter().any(|target| target.owner != first.owner) {
            return Err(Failure::new(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!(
                    "tables of different owners with triggers on TRUNCATE cannot be emptied together: {}",
                    first.label
                ),
            )
            .hint("Give the tables one owner, or let these triggers not fire in replica sessions."));
        }
        let restrict = pg_sys::DropBehavior::DROP_RESTRICT;
        #[cfg(feature = "pg15")]
        pg_sys::ExecuteTruncateGuts(rels, relids, std::ptr::null_mut(), restrict, restart_identity);
        #[cfg(not(feature = "pg15"))]
        pg_sys::ExecuteTruncateGuts(rels, relids, std::ptr::null_mut(), restrict, restart_identity, true);
        for cell in list_cells(rels) {
            pg_sys::table_close(cell.ptr_value.cast(), pg_sys::NoLock.cast_signed());
        }
        pg_sys::CommandCounterIncrement();
    }
    Ok(())
}

/// Whether RESTART IDENTITY means anything for the table.
///
/// # Safety
/// Inside a transaction.
pub(crate) unsafe fn has_sequences(target: &Target) -> bool {
    // SAFETY: as the caller promises; the result is a list of its own, or null.
    unsafe { !pg_sys::getOwnedSequences(target.relid).is_null() }
}

/// Whether the table has triggers on TRUNCATE that fire here, other than our own.
unsafe fn has_user_triggers(rel: pg_sys::Relation) -> bool {
    // SAFETY: the relation is open; its triggers are an array of `numtriggers`.
    unsafe {
        let desc = (*rel).trigdesc;
        if desc.is_null() {
            return false;
        }
        let triggers = std::slice::from_raw_parts((*desc).triggers, (*desc).numtriggers as usize);
        triggers.iter().any(|trigger| {
            u32::from(trigger.tgtype.cast_unsigned()) & pg_sys::TRIGGER_TYPE_TRUNCATE != 0 && fires_on_apply(trigger)
        })
    }
}
