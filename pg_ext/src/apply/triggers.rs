//! Which triggers of a table fire when its rows are written by apply.

use std::ffi::CStr;
use std::ptr;

use pgrx::pg_sys;

use crate::apply::table::node;

/// Our own triggers, which would only find out that this session is replication.
const CAPTURE_TRIGGERS: [&CStr; 3] =
    [c"00_duplex_capture", c"00_duplex_capture_truncate", c"00_duplex_before_truncate"];

/// A constraint whose triggers may wait until the transaction's end, where they would not run as the table's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Deferrable {
    /// The table's owner.
    pub(crate) owner: pg_sys::Oid,
    /// The table, or the partition.
    pub(crate) relation: pg_sys::Oid,
    /// The constraint.
    pub(crate) constraint: pg_sys::Oid,
    /// The schema of its table.
    pub(crate) namespace: pg_sys::Oid,
}

impl Deferrable {
    /// SET CONSTRAINTS: deferred, or checked now and after each row.
    ///
    /// # Safety
    /// Inside a transaction, acting as the owner.
    pub(crate) unsafe fn set(&self, deferred: bool) {
        // SAFETY: as the caller promises. Nodes are zeroed memory with their tag, names come from the catalog.
        unsafe {
            let name = pg_sys::get_constraint_name(self.constraint);
            if name.is_null() {
                return;
            }
            let schema = pg_sys::get_namespace_name(self.namespace);
            let constraint = pg_sys::makeRangeVar(schema, name, -1);
            let statement: *mut pg_sys::ConstraintsSetStmt = node(pg_sys::NodeTag::T_ConstraintsSetStmt);
            (*statement).constraints = pg_sys::lappend(ptr::null_mut(), constraint.cast());
            (*statement).deferred = deferred;
            pg_sys::AfterTriggerSetState(statement);
        }
    }
}

/// Which triggers of a table fire when a row is written by apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Triggers {
    None,
    /// Only the server's own checks of deferrable constraints, which wait for the transaction's end.
    DeferredChecks,
    /// Users' triggers, all at once behind the row.
    Users,
}

/// Takes our own triggers out of the executor's copy, and those that do not fire in a replica session, so that a table
/// that has no others is written without any trigger queue.
///
/// The check of a deferrable unique or exclusion constraint is such a trigger, and PostgreSQL would leave it out in a
/// replica session, which lets duplicates in: here it fires, at the transaction's end, for a swap of two values passes
/// through a state that would not do. Nothing can be deferred in a security-restricted operation, so users' triggers
/// are not, and neither are checks that share a table with one: its code must not run outside of the restriction.
///
/// # Safety
/// `info` was made by the executor, with its own copy of the triggers.
pub(crate) unsafe fn keep_firing_triggers(
    info: *mut pg_sys::ResultRelInfo,
    owner: pg_sys::Oid,
    deferrable: &mut Vec<Deferrable>,
) -> Triggers {
    // SAFETY: the copy is an array of `numtriggers`, which only gets shorter.
    unsafe {
        let desc = (*info).ri_TrigDesc;
        if desc.is_null() {
            return Triggers::None;
        }
        let all = std::slice::from_raw_parts_mut((*desc).triggers, (*desc).numtriggers as usize);
        let (mut count, mut users) = (0, false);
        for index in 0..all.len() {
            let mut trigger = all[index];
            let check = trigger.tgfoid == pg_sys::Oid::from(pg_sys::F_UNIQUE_KEY_RECHECK);
            if check {
                trigger.tgenabled = pg_sys::TRIGGER_FIRES_ALWAYS as std::ffi::c_char;
            }
            if fires_on_apply(&trigger) {
                users |= !check;
                all[count] = trigger;
                count += 1;
            }
        }
        let kept = &mut all[..count];
        (*desc).numtriggers = count as i32;
        if kept.is_empty() {
            (*info).ri_TrigDesc = ptr::null_mut();
            return Triggers::None;
        }
        summarise(&mut *desc, kept);
        if users {
            for trigger in kept {
                trigger.tgdeferrable = false;
                trigger.tginitdeferred = false;
            }
            return Triggers::Users;
        }
        let relation = (*(*info).ri_RelationDesc).rd_id;
        let namespace = (*(*(*info).ri_RelationDesc).rd_rel).relnamespace;
        for trigger in kept {
            // A constraint that is checked at the end of a statement is one whose statement is the transaction.
            trigger.tginitdeferred = true;
            deferrable.push(Deferrable { owner, relation, constraint: trigger.tgconstraint, namespace });
        }
        Triggers::DeferredChecks
    }
}

/// Whether a trigger fires in a replica session and is not one of ours.
///
/// # Safety
/// The trigger is one of the server's own structures.
pub(crate) unsafe fn fires_on_apply(trigger: &pg_sys::Trigger) -> bool {
    // SAFETY: as the caller promises: the name is NUL-terminated.
    let name = unsafe { CStr::from_ptr(trigger.tgname) };
    matches!(trigger.tgenabled as u8, pg_sys::TRIGGER_FIRES_ALWAYS | pg_sys::TRIGGER_FIRES_ON_REPLICA)
        && !CAPTURE_TRIGGERS.contains(&name)
}

/// Which kinds of row triggers there are, after some were taken out. Statement triggers never fire on apply, but for
/// TRUNCATE, which looks for itself.
fn summarise(desc: &mut pg_sys::TriggerDesc, triggers: &[pg_sys::Trigger]) {
    let any = |event: u32, before: bool| {
        triggers.iter().any(|trigger| {
            let kind = u32::from(trigger.tgtype.cast_unsigned());
            kind & pg_sys::TRIGGER_TYPE_ROW != 0
                && kind & event != 0
                && (kind & pg_sys::TRIGGER_TYPE_BEFORE != 0) == before
        })
    };
    desc.trig_insert_before_row = any(pg_sys::TRIGGER_TYPE_INSERT, true);
    desc.trig_insert_after_row = any(pg_sys::TRIGGER_TYPE_INSERT, false);
    desc.trig_update_before_row = any(pg_sys::TRIGGER_TYPE_UPDATE, true);
    desc.trig_update_after_row = any(pg_sys::TRIGGER_TYPE_UPDATE, false);
    desc.trig_delete_before_row = any(pg_sys::TRIGGER_TYPE_DELETE, true);
    desc.trig_delete_after_row = any(pg_sys::TRIGGER_TYPE_DELETE, false);
}
