//! Unique values that a row had in passing.
//!
//! Under a deferrable constraint a transaction may give a row a value that another one holds, and take it away again
//! before it is checked. Here the other row has held it all the time. But a peer applies one change after the other, and
//! lets the row that has held the value for longer give way; nor could it do otherwise, for what a transaction gave up in
//! the end is not known in its middle. So the row that stays is written once more, as it is, by the same transaction:
//! that is its latest claim, on every node.
//!
//! Only rows that were there when the value was taken are concerned: who takes it after that waits, at its own check,
//! for this transaction to end.

use std::rc::Rc;

use pgrx::pg_sys;

use super::relation::Table;
use super::row::written_again;
use crate::apply::table::node;
use crate::conflict::index::is_same;
use crate::conflict::local::{Holder, copied};
use crate::errors::Result;

/// Writes each of these rows again, and captures that. One that holds several values is written once.
///
/// # Safety
/// Inside a trigger of the relation, which has captured its own change; the rows are locked.
pub(super) unsafe fn give_back(table: &Rc<Table>, relation: &pg_sys::RelationData, holders: Vec<Holder>) -> Result<()> {
    for (number, holder) in holders.iter().enumerate() {
        if holders[..number].iter().any(|other| is_one_row(other, holder)) {
            continue;
        }
        let mut columns = Vec::new();
        if let Some(merged) = &table.merged {
            let values = holders[number..].iter().filter(|other| is_one_row(other, holder));
            columns.extend(values.flat_map(|value| &merged.indexes[value.unique]));
        }
        // SAFETY: as the caller promises.
        unsafe {
            let new = write_again(std::ptr::from_ref(relation).cast_mut(), holder.tuple);
            written_again(table, relation, (holder.tuple, new), &columns)?;
        }
    }
    Ok(())
}

fn is_one_row(one: &Holder, other: &Holder) -> bool {
    // SAFETY: both are copies of rows, with their places.
    unsafe { is_same((*one.tuple).t_self, (*other.tuple).t_self) }
}

/// Puts a copy in a row's place, and returns one of it. No trigger and no check has anything to say to that.
unsafe fn write_again(relation: pg_sys::Relation, tuple: pg_sys::HeapTuple) -> pg_sys::HeapTuple {
    // SAFETY: as the caller promises; what is made is freed here, or goes with the transaction after an error.
    unsafe {
        let estate = pg_sys::CreateExecutorState();
        let caller = pg_sys::MemoryContextSwitchTo((*estate).es_query_cxt);
        let info: *mut pg_sys::ResultRelInfo = node(pg_sys::NodeTag::T_ResultRelInfo);
        pg_sys::InitResultRelInfo(info, relation, 0, std::ptr::null_mut(), 0);
        pg_sys::ExecOpenIndices(info, false);
        let slot = pg_sys::table_slot_create(relation, std::ptr::null_mut());
        pg_sys::ExecForceStoreHeapTuple(tuple, slot, false);
        let (place, latest) = (&raw mut (*tuple).t_self, pg_sys::GetLatestSnapshot());
        index(info, slot, estate, replace(relation, place, slot, latest));
        pg_sys::ExecCloseIndices(info);
        pg_sys::MemoryContextSwitchTo(caller);
        let new = copied(slot);
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        pg_sys::FreeExecutorState(estate);
        pg_sys::CommandCounterIncrement();
        new
    }
}

#[cfg(feature = "pg15")]
type Indexes = bool;
#[cfg(not(feature = "pg15"))]
type Indexes = pg_sys::TU_UpdateIndexes::Type;

/// Says which indexes need an entry.
unsafe fn replace(
    relation: pg_sys::Relation,
    place: pg_sys::ItemPointer,
    slot: *mut pg_sys::TupleTableSlot,
    snapshot: pg_sys::Snapshot,
) -> Indexes {
    let mut indexes = Indexes::default();
    // SAFETY: as the caller promises.
    unsafe { pg_sys::simple_table_tuple_update(relation, place, slot, snapshot, &mut indexes) };
    indexes
}

unsafe fn index(
    info: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    estate: *mut pg_sys::EState,
    indexes: Indexes,
) {
    let (no_conflict, none) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: as the caller promises.
    unsafe {
        #[cfg(feature = "pg15")]
        if indexes {
            pg_sys::ExecInsertIndexTuples(info, slot, estate, true, false, no_conflict, none);
        }
        #[cfg(not(feature = "pg15"))]
        if indexes != pg_sys::TU_UpdateIndexes::TU_None {
            let summarizing = indexes == pg_sys::TU_UpdateIndexes::TU_Summarizing;
            pg_sys::ExecInsertIndexTuples(info, slot, estate, true, false, no_conflict, none, summarizing);
        }
    }
}
