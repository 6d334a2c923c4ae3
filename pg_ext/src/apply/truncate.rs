//! Emptying the tables of one statement together: a table that another refers to can only be emptied along with it.

use std::collections::HashMap;
use std::rc::Rc;

use duplex_protocol::rules::key::{Standing, truncates as truncates_row};
use duplex_protocol::rules::wins;
use duplex_protocol::version::Version;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;
use pgrx::{PgSqlErrorCode, pg_sys};

use crate::apply::merge::kept_row;
use crate::apply::relation::Target;
use crate::apply::table::{key_index, list_cells, node};
use crate::apply::triggers::fires_on_apply;
use crate::conflict::arrival::Arrival;
use crate::conflict::counter::{Amount, Counter, is_nothing};
use crate::conflict::index;
use crate::conflict::kept::{Keeper, oldest};
use crate::conflict::register::raw_xmin;
use crate::conflict::row_memory::RowMemory;
use crate::conflict::stamps::held;
use crate::conflict::truncates;
use crate::conflict::unique::{OfRow, Unique};
use crate::conflict::version::Versions;
use crate::errors::{Failure, Result};
use crate::slot;

// Not among pgrx's bindings. The declaration is that of catalog/pg_inherits.h, the same in PostgreSQL 15 to 18;
// calls go through `guarded`, which turns an ERROR inside into a panic.
unsafe extern "C-unwind" {
    fn find_all_inheritors(
        parent: pg_sys::Oid,
        lockmode: pg_sys::LOCKMODE,
        numparents: *mut *mut pg_sys::List,
    ) -> *mut pg_sys::List;
    // commands/sequence.h
    fn ResetSequence(sequence: pg_sys::Oid);
}

/// A table and its partitions, which get this lock, or the table alone: those who inherit otherwise are tables of their
/// own, which may not be enabled.
///
/// # Safety
/// Inside a transaction; the table is locked.
pub(crate) unsafe fn with_partitions(relid: pg_sys::Oid, lock: u32) -> Vec<pg_sys::Oid> {
    // SAFETY: as the caller promises. The guard turns an ERROR into a panic, and nothing in it has a destructor.
    unsafe {
        if pg_sys::get_rel_relkind(relid) as u8 != pg_sys::RELKIND_PARTITIONED_TABLE {
            return vec![relid];
        }
        let list = guarded(|| find_all_inheritors(relid, lock.cast_signed(), std::ptr::null_mut()));
        list_cells(list).iter().map(|cell| cell.oid_value).collect()
    }
}

/// Empties `targets`, which one statement emptied on the peer. The peer's CASCADE has named all of them, so nothing
/// further is emptied here: a table only of this node that refers to one of them makes this an error.
///
/// # Safety
/// Inside a transaction with an active snapshot, acting as the first table's owner; none of the tables is open.
pub(crate) unsafe fn truncate(
    targets: &[Rc<Target>],
    restart_identity: bool,
    version: &Version,
    versions: &mut Versions,
) -> Result<()> {
    // One that was truncated later has nothing left that this one would take.
    let is_newest = |target: &&Rc<Target>| {
        let newest = target.registers.truncated.as_ref();
        // SAFETY: inside a transaction; the registers' writers have committed.
        wins(version, newest.and_then(|stamp| unsafe { stamp.version(versions, version) }).as_ref())
    };
    let targets: Vec<Rc<Target>> = targets.iter().filter(is_newest).map(Rc::clone).collect();
    let Some(first) = targets.first() else { return Ok(()) };
    let (mut rels, mut relids) = (std::ptr::null_mut(), std::ptr::null_mut());
    let mut seen = Vec::new();
    let mut members = Vec::new();
    let mut triggers = false;
    // SAFETY: as the caller promises; relations are locked to the end of the transaction.
    unsafe {
        for target in &targets {
            let lock = pg_sys::AccessExclusiveLock;
            let root = pg_sys::table_open(target.relid, lock.cast_signed());
            pg_sys::table_close(root, pg_sys::NoLock.cast_signed());
            for relid in with_partitions(target.relid, lock) {
                if seen.contains(&relid) {
                    continue;
                }
                seen.push(relid);
                let rel = pg_sys::table_open(relid, pg_sys::NoLock.cast_signed());
                triggers |= has_user_triggers(rel);
                rels = pg_sys::lappend(rels, rel.cast());
                members.push(Member::of(rel, target));
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
        let mut newer = false;
        let origins = HashMap::new();
        let mut arrival = Arrival { version, order: 0, versions, origins: &origins };
        for member in &mut members {
            member.keep_older_rows(&mut arrival)?;
            newer = newer || member.has_newer_row(&mut arrival)?;
        }
        if newer {
            // Written by those who had not seen the TRUNCATE and came after it: they stay.
            for member in &mut members {
                member.remove_older_rows(&mut arrival)?;
            }
            if restart_identity {
                restart_sequences(relids);
            }
        } else {
            let restrict = pg_sys::DropBehavior::DROP_RESTRICT;
            #[cfg(feature = "pg15")]
            pg_sys::ExecuteTruncateGuts(rels, relids, std::ptr::null_mut(), restrict, restart_identity);
            #[cfg(not(feature = "pg15"))]
            pg_sys::ExecuteTruncateGuts(rels, relids, std::ptr::null_mut(), restrict, restart_identity, true);
        }
        for cell in list_cells(rels) {
            let rel: pg_sys::Relation = cell.ptr_value.cast();
            // What sessions know of a partitioned table is not looked up anew because a partition was emptied.
            if targets.iter().any(|target| target.relid == (*rel).rd_id) {
                truncates::remember((*rel).rd_id, None);
                pg_sys::CacheInvalidateRelcache(rel);
            }
            pg_sys::table_close(rel, pg_sys::NoLock.cast_signed());
        }
        pg_sys::CommandCounterIncrement();
        pg_sys::UpdateActiveSnapshotCommandId();
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

/// A table that is emptied, or a partition of it.
struct Member<'t> {
    rel: pg_sys::Relation,
    kept: Option<Kept<'t>>,
}

/// What a table with a policy keeps of the rows that go.
struct Kept<'t> {
    target: &'t Target,
    keeper: Keeper,
    /// The key's attributes here, in the registers' order.
    key: Vec<i16>,
    /// The attributes of the descriptor's columns.
    columns: Vec<i16>,
    counters: Vec<(&'t Counter, i16)>,
}

impl<'t> Member<'t> {
    /// A member of the table, which may be that itself.
    unsafe fn of(rel: pg_sys::Relation, target: &'t Target) -> Self {
        let here = |attribute: i16| {
            // SAFETY: the relation is open, and a partition has all attributes of its table by their names.
            unsafe { pg_sys::get_attnum((*rel).rd_id, pg_sys::get_attname(target.relid, attribute, false)) }
        };
        let of_column = |column: u16| here(target.columns[usize::from(column)].attribute);
        let kept = target.registers.rows.map(|rows| Kept {
            target,
            keeper: Keeper::new(target.registers.tombstones, rows, &target.registers.policy),
            key: target.registers.key.iter().map(|&attribute| here(attribute)).collect(),
            columns: target.columns.iter().map(|column| here(column.attribute)).collect(),
            counters: target.counters.iter().map(|(counter, column)| (counter, of_column(*column))).collect(),
        });
        Self { rel, kept }
    }

    /// Remembers what the counters and columns hold of the rows that go: the TRUNCATE takes nothing away from them.
    unsafe fn keep_older_rows(&mut self, arrival: &mut Arrival<'_>) -> Result<()> {
        let Some(kept) = &mut self.kept else { return Ok(()) };
        let rel = self.rel;
        // SAFETY: as the callers promise; the registers are other tables.
        unsafe {
            let uniques = Uniques::open(rel, kept);
            each_row(rel, |slot| {
                let of_row = kept.of_row(slot, arrival)?;
                if truncates_row(arrival.version, of_row.version.as_ref()) {
                    uniques.release(&kept.key(slot), slot, &of_row, arrival);
                    kept.remember(rel, slot, of_row, arrival)?;
                }
                Ok(true)
            })?;
            uniques.close();
        }
        Ok(())
    }

    /// Whether a row is there that is later than a TRUNCATE.
    unsafe fn has_newer_row(&mut self, arrival: &mut Arrival<'_>) -> Result<bool> {
        let mut newer = false;
        // SAFETY: as the callers promise.
        unsafe {
            each_row(self.rel, |slot| {
                newer = !is_older(&mut self.kept, slot, arrival)?;
                Ok(!newer)
            })?;
        }
        Ok(newer)
    }

    unsafe fn remove_older_rows(&mut self, arrival: &mut Arrival<'_>) -> Result<()> {
        let rel = self.rel;
        // SAFETY: as the callers promise; the table is locked, so every row is as it was seen.
        unsafe {
            each_row(rel, |slot| {
                if is_older(&mut self.kept, slot, arrival)? {
                    pg_sys::simple_table_tuple_delete(rel, &raw mut (*slot).tts_tid, pg_sys::GetActiveSnapshot());
                }
                Ok(true)
            })
        }
    }
}

/// The further unique indexes of a table that merges by column. Elsewhere what a row claimed is older than the TRUNCATE
/// that takes it, and so is nothing to a row that comes after it; here such a row may still have columns from before.
struct Uniques {
    estate: *mut pg_sys::EState,
    info: *mut pg_sys::ResultRelInfo,
    /// Each with the descriptor's columns that it depends on.
    indexes: Vec<(Unique, Vec<u16>)>,
}

impl Uniques {
    /// Without any for a table that decides by whole rows.
    ///
    /// # Safety
    /// The relation is open and locked.
    unsafe fn open(rel: pg_sys::Relation, kept: &Kept<'_>) -> Self {
        // SAFETY: as the caller promises; what is made lives in the executor's memory.
        unsafe {
            let estate = pg_sys::CreateExecutorState();
            let caller = pg_sys::MemoryContextSwitchTo((*estate).es_query_cxt);
            let info: *mut pg_sys::ResultRelInfo = node(pg_sys::NodeTag::T_ResultRelInfo);
            pg_sys::InitResultRelInfo(info, rel, 0, std::ptr::null_mut(), 0);
            let mut indexes = Vec::new();
            if kept.target.merged.is_some() && (*(*rel).rd_rel).relkind.cast_unsigned() == pg_sys::RELKIND_RELATION {
                pg_sys::ExecOpenIndices(info, false);
                let key = key_index(rel, &kept.key).unwrap_or(pg_sys::InvalidOid);
                let place = |attribute| kept.columns.iter().position(|&column| column == attribute);
                for unique in Unique::of(info, key, &kept.target.registers) {
                    let attributes = index::attributes(rel, unique.info).into_iter();
                    indexes.push((unique, attributes.filter_map(place).map(|place| place as u16).collect()));
                }
            }
            pg_sys::MemoryContextSwitchTo(caller);
            Self { estate, info, indexes }
        }
    }

    /// Remembers what a row held that goes.
    ///
    /// # Safety
    /// The slot holds a row of the relation.
    unsafe fn release(
        &self,
        key: &[pg_sys::Datum],
        slot: *mut pg_sys::TupleTableSlot,
        of_row: &OfRow,
        arrival: &mut Arrival<'_>,
    ) {
        let Some(stamps) = &of_row.stamps else { return };
        for (unique, columns) in &self.indexes {
            // SAFETY: as the caller promises; the executor's memory for a row is not reset before the values are written.
            let values = unsafe { index::values(unique.info, slot, self.estate) };
            if let (Some(claims), Some(values), Some(since)) = (unique.claims, values, held(stamps, columns)) {
                // SAFETY: the table is locked, and its registers with it.
                unsafe { claims.remember(&values, key, since, arrival.versions, arrival.version) };
            }
        }
        // SAFETY: the values are written, and nothing else is in that memory.
        unsafe {
            let econtext = (*self.estate).es_per_tuple_exprcontext;
            if !econtext.is_null() {
                pg_sys::MemoryContextReset((*econtext).ecxt_per_tuple_memory);
            }
        }
    }

    /// Gives the indexes back: they are about to be made anew.
    ///
    /// # Safety
    /// Opened in this transaction.
    unsafe fn close(self) {
        // SAFETY: as the caller promises.
        unsafe {
            if (*self.info).ri_NumIndices > 0 {
                pg_sys::ExecCloseIndices(self.info);
            }
            pg_sys::FreeExecutorState(self.estate);
        }
    }
}

/// Whether a TRUNCATE takes a row.
unsafe fn is_older(
    kept: &mut Option<Kept<'_>>,
    slot: *mut pg_sys::TupleTableSlot,
    arrival: &mut Arrival<'_>,
) -> Result<bool> {
    // SAFETY: as the callers promise.
    unsafe {
        Ok(match kept {
            None => truncates_row(arrival.version, arrival.versions.of_row(raw_xmin(slot), arrival.version)),
            Some(kept) => truncates_row(arrival.version, kept.of_row(slot, arrival)?.version.as_ref()),
        })
    }
}

impl Kept<'_> {
    unsafe fn key(&self, slot: *mut pg_sys::TupleTableSlot) -> Vec<pg_sys::Datum> {
        // SAFETY: as the callers promise: the slot holds a row with all its attributes.
        unsafe {
            slot::deform(slot, (*(*slot).tts_tupleDescriptor).natts);
            self.key.iter().map(|&attribute| *(*slot).tts_values.add(attribute as usize - 1)).collect()
        }
    }

    /// Since when a row is as it is.
    unsafe fn of_row(&mut self, slot: *mut pg_sys::TupleTableSlot, arrival: &mut Arrival<'_>) -> Result<OfRow> {
        // SAFETY: as the callers promise.
        unsafe {
            let key = self.key(slot);
            self.keeper.of_row(&key, raw_xmin(slot), self.target.merged.as_deref(), arrival)
        }
    }

    unsafe fn remember(
        &mut self,
        rel: pg_sys::Relation,
        slot: *mut pg_sys::TupleTableSlot,
        of_row: OfRow,
        arrival: &Arrival<'_>,
    ) -> Result<()> {
        // SAFETY: as the callers promise.
        unsafe {
            let key = self.key(slot);
            let left: Vec<Amount> = self
                .counters
                .iter()
                .map(|(counter, attribute)| {
                    let index = *attribute as usize - 1;
                    counter.amount(*(*slot).tts_values.add(index), *(*slot).tts_isnull.add(index))
                })
                .collect();
            let row = kept_row(rel, self.target, slot, of_row.stamps.as_deref(), arrival)?;
            if row.is_none() && is_nothing(&left) {
                self.keeper.forget_residual(&key);
            } else {
                let version = of_row.version.unwrap_or_else(oldest);
                self.keeper.remember(&key, Standing::Gone, Some(&version), &left, row.as_deref(), None);
            }
        }
        Ok(())
    }
}

/// Shows every row until `each` has seen enough.
unsafe fn each_row(
    rel: pg_sys::Relation,
    mut each: impl FnMut(*mut pg_sys::TupleTableSlot) -> Result<bool>,
) -> Result<()> {
    // SAFETY: the relation is open and locked; a partitioned table has no rows of its own. The scan is ended, and the
    // snapshot given back, here or by the abort that an error leads to.
    unsafe {
        if (*(*rel).rd_rel).relkind.cast_unsigned() != pg_sys::RELKIND_RELATION {
            return Ok(());
        }
        let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
        let flags = pg_sys::ScanOptions::SO_TYPE_SEQSCAN | pg_sys::ScanOptions::SO_ALLOW_PAGEMODE;
        let none = std::ptr::null_mut();
        let scan = pg_sys::heap_beginscan(rel, snapshot, 0, std::ptr::null_mut(), none, flags);
        let slot = pg_sys::table_slot_create(rel, std::ptr::null_mut());
        let memory = RowMemory::new();
        while pg_sys::heap_getnextslot(scan, pg_sys::ScanDirection::ForwardScanDirection, slot) {
            pgrx::check_for_interrupts!();
            if !memory.within(|| each(slot))? {
                break;
            }
        }
        memory.delete();
        pg_sys::heap_endscan(scan);
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        pg_sys::UnregisterSnapshot(snapshot);
        Ok(())
    }
}

unsafe fn restart_sequences(relids: *mut pg_sys::List) {
    // SAFETY: the tables are locked, so their sequences stay.
    unsafe {
        for cell in list_cells(relids) {
            for sequence in list_cells(pg_sys::getOwnedSequences(cell.oid_value)) {
                let oid = sequence.oid_value;
                guarded(|| ResetSequence(oid));
            }
        }
    }
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
