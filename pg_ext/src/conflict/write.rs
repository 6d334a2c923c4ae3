//! Writing a row at the executor's level with its duplicates noted instead of raised: a duplicate is a conflict, and who
//! gives way is decided by the rules. The same steps as the server's `ExecSimpleRelationInsert` and `…Update`.

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;

use crate::apply::find::unexpected;
use crate::apply::table::{Leaf, list_cells};
use crate::conflict::unique::Unique;

// Not among the bindings. The declaration is that of executor/nodeModifyTable.h, the same in PostgreSQL 15 to 18.
unsafe extern "C-unwind" {
    fn ExecComputeStoredGenerated(
        info: *mut pg_sys::ResultRelInfo,
        estate: *mut pg_sys::EState,
        slot: *mut pg_sys::TupleTableSlot,
        command: pg_sys::CmdType::Type,
    );
}

/// What came of writing a row.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// It is there. Its values may be taken in these unique indexes.
    Row(Vec<pg_sys::Oid>),
    /// A trigger of the user's left it out.
    LeftOut,
    /// The key was taken in this very moment. The row is not there.
    KeyTaken,
    /// The row was changed since it was found, and is as somebody else left it.
    Overtaken,
}

/// Computes the stored generated columns of the row to write.
///
/// # Safety
/// As [`insert`].
pub(crate) unsafe fn generate(leaf: &Leaf, estate: *mut pg_sys::EState, command: pg_sys::CmdType::Type) {
    // SAFETY: as the caller promises; a relation's constraints are there or null.
    unsafe {
        let constraints = (*(*(*leaf.info).ri_RelationDesc).rd_att).constr;
        if !constraints.is_null() && (*constraints).has_generated_stored {
            let (info, slot) = (leaf.info, leaf.write);
            guarded(|| ExecComputeStoredGenerated(info, estate, slot, command));
        }
    }
}

unsafe fn check(leaf: &Leaf, estate: *mut pg_sys::EState, command: pg_sys::CmdType::Type) {
    // SAFETY: as the callers promise.
    unsafe {
        let relation = (*leaf.info).ri_RelationDesc;
        generate(leaf, estate, command);
        if !(*(*relation).rd_att).constr.is_null() {
            pg_sys::ExecConstraints(leaf.info, leaf.write, estate);
        }
        if (*(*relation).rd_rel).relispartition {
            pg_sys::ExecPartitionCheck(leaf.info, leaf.write, estate, true);
        }
    }
}

/// Inserts the row in `leaf.write`.
///
/// # Safety
/// Inside a transaction with an active snapshot, acting as the table's owner.
pub(crate) unsafe fn insert(leaf: &mut Leaf, estate: *mut pg_sys::EState) -> Written {
    // SAFETY: as the caller promises.
    unsafe {
        let (info, slot) = (leaf.info, leaf.write);
        let triggers = (*info).ri_TrigDesc;
        if !triggers.is_null()
            && (*triggers).trig_insert_before_row
            && !pg_sys::ExecBRInsertTriggers(estate, info, slot)
        {
            return Written::LeftOut;
        }
        check(leaf, estate, pg_sys::CmdType::CMD_INSERT);
        pg_sys::simple_table_tuple_insert((*info).ri_RelationDesc, slot);
        let taken = index(leaf, estate, false, false);
        if taken.is_null() && triggers.is_null() {
            return Written::Row(Vec::new());
        }
        if list_cells(taken).iter().any(|cell| cell.oid_value == leaf.key_index) {
            pg_sys::CommandCounterIncrement();
            pg_sys::UpdateActiveSnapshotCommandId();
            let snapshot = pg_sys::GetActiveSnapshot();
            pg_sys::simple_table_tuple_delete((*info).ri_RelationDesc, &raw mut (*slot).tts_tid, snapshot);
            return Written::KeyTaken;
        }
        pg_sys::ExecARInsertTriggers(estate, info, slot, taken, std::ptr::null_mut());
        Written::Row(list_cells(taken).iter().map(|cell| cell.oid_value).collect())
    }
}

/// Puts the row in `leaf.write` in the place of the one in `leaf.found`.
///
/// # Safety
/// As [`insert`].
pub(crate) unsafe fn update(leaf: &mut Leaf, estate: *mut pg_sys::EState) -> Written {
    // SAFETY: as the caller promises.
    unsafe {
        let (info, slot) = (leaf.info, leaf.write);
        let place = &raw mut (*leaf.found).tts_tid;
        let triggers = (*info).ri_TrigDesc;
        if !triggers.is_null() && (*triggers).trig_update_before_row && !before_update(leaf, estate, place) {
            return Written::LeftOut;
        }
        check(leaf, estate, pg_sys::CmdType::CMD_UPDATE);
        let Some((moved, summarizing)) = replace(leaf) else { return Written::Overtaken };
        let taken = if moved { index(leaf, estate, true, summarizing) } else { std::ptr::null_mut() };
        let none = std::ptr::null_mut();
        pg_sys::ExecARUpdateTriggers(
            estate,
            info,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            place,
            std::ptr::null_mut(),
            slot,
            taken,
            none,
            false,
        );
        Written::Row(list_cells(taken).iter().map(|cell| cell.oid_value).collect())
    }
}

/// Writes the new version of the row at its place. Says whether it needs entries in indexes, and whether only in
/// summarizing ones; `None` if the row is not as it was found.
unsafe fn replace(leaf: &Leaf) -> Option<(bool, bool)> {
    let mut failure = pg_sys::TM_FailureData::default();
    let mut lock = pg_sys::LockTupleMode::LockTupleExclusive;
    #[cfg(feature = "pg15")]
    let mut indexes = false;
    #[cfg(not(feature = "pg15"))]
    let mut indexes = pg_sys::TU_UpdateIndexes::TU_None;
    // SAFETY: as the callers promise; the guard turns an ERROR inside into a panic.
    let result = unsafe {
        let relation = (*leaf.info).ri_RelationDesc;
        let update = (*(*relation).rd_tableam).tuple_update.expect("a heap can update rows");
        let (place, slot, command) = (&raw mut (*leaf.found).tts_tid, leaf.write, pg_sys::GetCurrentCommandId(true));
        let (failure, lock, indexes) = (&raw mut failure, &raw mut lock, &raw mut indexes);
        let none = std::ptr::null_mut();
        guarded(|| update(relation, place, slot, command, none, none, true, failure, lock, indexes))
    };
    match result {
        pg_sys::TM_Result::TM_Ok => {}
        pg_sys::TM_Result::TM_Updated | pg_sys::TM_Result::TM_Deleted if !leaf.is_locking() => return None,
        other => unexpected("updated", other),
    }
    #[cfg(feature = "pg15")]
    return Some((indexes, false));
    #[cfg(not(feature = "pg15"))]
    {
        use pg_sys::TU_UpdateIndexes::{TU_None, TU_Summarizing};
        Some((indexes != TU_None, indexes == TU_Summarizing))
    }
}

/// Removes the row in a slot, of a table where rows are not locked first. Says whether it was as it was found.
///
/// # Safety
/// As [`insert`].
pub(crate) unsafe fn delete(leaf: &Leaf, slot: *mut pg_sys::TupleTableSlot) -> bool {
    let mut failure = pg_sys::TM_FailureData::default();
    // SAFETY: as the caller promises; the guard turns an ERROR inside into a panic.
    let result = unsafe {
        let relation = (*leaf.info).ri_RelationDesc;
        let delete = (*(*relation).rd_tableam).tuple_delete.expect("a heap can delete rows");
        let (place, command, failure) = (&raw mut (*slot).tts_tid, pg_sys::GetCurrentCommandId(true), &raw mut failure);
        let none = std::ptr::null_mut();
        guarded(|| delete(relation, place, command, none, none, true, failure, false))
    };
    match result {
        pg_sys::TM_Result::TM_Ok => true,
        pg_sys::TM_Result::TM_Updated | pg_sys::TM_Result::TM_Deleted => false,
        other => unexpected("deleted", other),
    }
}

unsafe fn before_update(leaf: &mut Leaf, estate: *mut pg_sys::EState, place: pg_sys::ItemPointer) -> bool {
    let none = std::ptr::null_mut();
    // SAFETY: as the caller promises; what is null is not asked for.
    unsafe {
        let (info, slot, epq) = (leaf.info, leaf.write, &raw mut *leaf.epq);
        #[cfg(feature = "pg15")]
        return pg_sys::ExecBRUpdateTriggers(estate, epq, info, place, std::ptr::null_mut(), slot, none);
        #[cfg(any(feature = "pg16", feature = "pg17"))]
        return pg_sys::ExecBRUpdateTriggers(
            estate,
            epq,
            info,
            place,
            std::ptr::null_mut(),
            slot,
            std::ptr::null_mut(),
            none,
        );
        #[cfg(feature = "pg18")]
        return pg_sys::ExecBRUpdateTriggers(
            estate,
            epq,
            info,
            place,
            std::ptr::null_mut(),
            slot,
            std::ptr::null_mut(),
            none,
            false,
        );
    }
}

/// The unique indexes whose duplicates are noted: an exclusion constraint raises its error, since which of two rows gives
/// way there is not for a version to say.
///
/// # Safety
/// The current memory is the executor state's.
pub(crate) unsafe fn noted(key_index: pg_sys::Oid, uniques: &[Unique]) -> *mut pg_sys::List {
    // SAFETY: as the caller promises; the indexes are open.
    unsafe {
        let mut noted = pg_sys::lappend_oid(std::ptr::null_mut(), key_index);
        for unique in uniques {
            if (*(*unique.index).rd_index).indimmediate {
                noted = pg_sys::lappend_oid(noted, (*unique.index).rd_id);
            }
        }
        noted
    }
}

/// Makes the index entries; lists the unique indexes in which the values may be taken.
unsafe fn index(leaf: &Leaf, estate: *mut pg_sys::EState, update: bool, summarizing: bool) -> *mut pg_sys::List {
    // SAFETY: as the callers promise; the list lives in the row's memory.
    unsafe {
        if (*leaf.info).ri_NumIndices == 0 {
            return std::ptr::null_mut();
        }
        let mut conflict = false;
        #[cfg(feature = "pg15")]
        {
            let _ = summarizing;
            pg_sys::ExecInsertIndexTuples(leaf.info, leaf.write, estate, update, true, &mut conflict, leaf.noted)
        }
        #[cfg(not(feature = "pg15"))]
        pg_sys::ExecInsertIndexTuples(
            leaf.info,
            leaf.write,
            estate,
            update,
            true,
            &mut conflict,
            leaf.noted,
            summarizing,
        )
    }
}
