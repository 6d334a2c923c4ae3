//! One row: found by its key, decided on by its version, written at the executor's level.

use duplex_protocol::entry::{Delete, Put, Row};
use duplex_protocol::rules;
use duplex_protocol::version::Version;
use pgrx::{PgSqlErrorCode, pg_sys};

use crate::apply::own::Identity;
use crate::apply::table::{Leaf, Storage, Table, Triggers};
use crate::conflict::version::Versions;
use crate::errors::{Failure, Result};

impl Table {
    /// Writes a row as it is after an INSERT or UPDATE, if its version is later than what is there.
    ///
    /// # Safety
    /// Inside a transaction with an active snapshot, acting as the table's owner.
    pub(crate) unsafe fn put(&mut self, put: &Put<'_>, incoming: &Version, versions: &mut Versions) -> Result<()> {
        let estate = self.estate;
        // SAFETY: as the caller promises, for all calls below; the row's memory is reset once it is written.
        unsafe {
            let caller = self.begin_row();
            self.fill(&put.row)?;
            let no_defaults = self.defaults.is_empty();
            let leaf = self.leaf()?;
            if find(leaf, pg_sys::LockTupleMode::LockTupleNoKeyExclusive) {
                if rules::wins(incoming, versions.of_row(raw_xmin(leaf.found), incoming)) {
                    update(leaf, estate);
                }
            } else if no_defaults {
                insert(leaf, estate);
            } else {
                // Evaluated only now: a default may be the next value of a sequence.
                self.fill_defaults();
                insert(self.leaf()?, estate);
            }
            self.end_row(caller);
        }
        Ok(())
    }

    /// Deletes a row, if the deletion is later than what is there. A row that is not there needs nothing.
    ///
    /// # Safety
    /// As [`Table::put`].
    pub(crate) unsafe fn delete(
        &mut self,
        delete: &Delete<'_>,
        incoming: &Version,
        versions: &mut Versions,
    ) -> Result<()> {
        let estate = self.estate;
        // SAFETY: as the caller promises.
        unsafe {
            let caller = self.begin_row();
            self.fill_key(&delete.key)?;
            let leaf = self.leaf()?;
            if find(leaf, pg_sys::LockTupleMode::LockTupleExclusive)
                && rules::wins(incoming, versions.of_row(raw_xmin(leaf.found), incoming))
            {
                remove(leaf, estate);
            }
            self.end_row(caller);
        }
        Ok(())
    }

    /// Where the row in `remote` belongs.
    unsafe fn leaf(&mut self) -> Result<&mut Leaf> {
        match &mut self.storage {
            Storage::Plain(leaf) => Ok(leaf),
            // SAFETY: the table is open and `remote` is filled.
            Storage::Partitioned(routing) => unsafe {
                routing.leaf(self.estate, self.remote, &self.target, &mut self.deferrable)
            },
        }
    }

    unsafe fn begin_row(&mut self) -> pg_sys::MemoryContext {
        // SAFETY: the context and the slot live as long as the table is open.
        unsafe {
            let caller = pg_sys::MemoryContextSwitchTo((*self.econtext).ecxt_per_tuple_memory);
            pg_sys::ExecStoreAllNullTuple(self.remote);
            caller
        }
    }

    unsafe fn end_row(&mut self, caller: pg_sys::MemoryContext) {
        // SAFETY: nothing refers to the row any more: the slots are cleared or filled anew before they are read.
        unsafe {
            pg_sys::MemoryContextSwitchTo(caller);
            pg_sys::MemoryContextReset((*self.econtext).ecxt_per_tuple_memory);
        }
    }

    /// Puts a whole row into `remote`.
    unsafe fn fill(&mut self, row: &Row<'_>) -> Result<()> {
        if row.0.len() != self.target.columns.len() {
            return Err(wrong_count());
        }
        self.arena.reserve(row.0.iter().flatten().copied());
        for (index, (column, value)) in self.target.columns.iter().zip(&row.0).enumerate() {
            if column.generated && !self.target.key.contains(&(index as u16)) {
                continue;
            }
            // SAFETY: the slot has all attributes of the table, and the current memory is the row's.
            unsafe {
                match value {
                    None => column.conversion.null(),
                    Some(bytes) => {
                        let datum = column.conversion.value(bytes, &mut self.arena)?;
                        set(self.remote, column.attribute, datum);
                    }
                }
            }
        }
        Ok(())
    }

    /// Puts a key into `remote`.
    unsafe fn fill_key(&mut self, key: &Row<'_>) -> Result<()> {
        if key.0.len() != self.target.key.len() {
            return Err(wrong_count());
        }
        self.arena.reserve(key.0.iter().flatten().copied());
        for (&index, value) in self.target.key.iter().zip(&key.0) {
            let column = &self.target.columns[usize::from(index)];
            if let Some(bytes) = value {
                // SAFETY: as in `fill`.
                unsafe {
                    let datum = column.conversion.value(bytes, &mut self.arena)?;
                    set(self.remote, column.attribute, datum);
                }
            }
        }
        Ok(())
    }

    /// Gives the attributes that the descriptor lacks their defaults.
    unsafe fn fill_defaults(&mut self) {
        for &(attribute, state) in &self.defaults {
            let mut isnull = false;
            // SAFETY: the expression was prepared for this executor state; the guard turns an error inside into a
            // panic, as for every call into the server.
            unsafe {
                let evaluate = (*state).evalfunc.expect("a prepared expression has a function");
                let (econtext, isnull_out) = (self.econtext, &raw mut isnull);
                let datum = pg_sys::ffi::pg_guard_ffi_boundary(|| evaluate(state, econtext, isnull_out));
                if !isnull {
                    set(self.remote, attribute, datum);
                }
            }
        }
    }
}

fn wrong_count() -> Failure {
    Failure::new(PgSqlErrorCode::ERRCODE_DATA_CORRUPTED, "row has another number of values than its relation")
}

unsafe fn set(slot: *mut pg_sys::TupleTableSlot, attribute: i16, datum: pg_sys::Datum) {
    let index = attribute as usize - 1;
    // SAFETY: the attribute is one of the slot's.
    unsafe {
        (*slot).tts_values.add(index).write(datum);
        (*slot).tts_isnull.add(index).write(false);
    }
}

/// Finds and locks the row that has the key in `leaf.write`, equal by the index's operators, not by bytes. Waits for
/// whoever is writing it, and looks again.
unsafe fn find(leaf: &Leaf, lock: pg_sys::LockTupleMode::Type) -> bool {
    // SAFETY: the relation is open, the slots are of its layout.
    unsafe {
        pg_sys::RelationFindReplTupleByIndex((*leaf.info).ri_RelationDesc, leaf.key_index, lock, leaf.write, leaf.found)
    }
}

/// The id of the transaction that wrote the row found, frozen or not.
unsafe fn raw_xmin(found: *mut pg_sys::TupleTableSlot) -> pg_sys::TransactionId {
    // SAFETY: `Leaf::new` made sure that the slot is a heap's, and `find` has filled it.
    unsafe { (*(*(*found.cast::<pg_sys::HeapTupleTableSlot>()).tuple).t_data).t_choice.t_heap.t_xmin }
}

unsafe fn insert(leaf: &mut Leaf, estate: *mut pg_sys::EState) {
    // SAFETY: as `Table::put`.
    unsafe { change(leaf, estate, |leaf| pg_sys::ExecSimpleRelationInsert(leaf.info, estate, leaf.write)) }
}

unsafe fn update(leaf: &mut Leaf, estate: *mut pg_sys::EState) {
    // SAFETY: as `Table::put`; the row found is locked, so nobody changes it in between.
    unsafe {
        if let Some(&last) = leaf.kept.iter().max() {
            if (*leaf.found).tts_nvalid < last {
                pg_sys::slot_getsomeattrs_int(leaf.found, last.into());
            }
            for &attribute in &leaf.kept {
                let index = attribute as usize - 1;
                (*leaf.write).tts_values.add(index).write(*(*leaf.found).tts_values.add(index));
                (*leaf.write).tts_isnull.add(index).write(*(*leaf.found).tts_isnull.add(index));
            }
        }
        change(leaf, estate, |leaf| {
            pg_sys::ExecSimpleRelationUpdate(leaf.info, estate, &mut *leaf.epq, leaf.found, leaf.write);
        });
    }
}

unsafe fn remove(leaf: &mut Leaf, estate: *mut pg_sys::EState) {
    // SAFETY: as `update`.
    unsafe {
        change(leaf, estate, |leaf| {
            pg_sys::ExecSimpleRelationDelete(leaf.info, estate, &mut *leaf.epq, leaf.found);
        });
    }
}

/// One change of a row, with its triggers, visible to what comes next.
unsafe fn change(leaf: &mut Leaf, estate: *mut pg_sys::EState, write: impl FnOnce(&mut Leaf)) {
    // SAFETY: as the callers promise. A trigger queue is opened only where there is a trigger: row by row, so that it
    // never grows.
    unsafe {
        if leaf.triggers != Triggers::None {
            (*estate).es_output_cid = pg_sys::GetCurrentCommandId(true);
            pg_sys::AfterTriggerBeginQuery();
        }
        write(leaf);
        match leaf.triggers {
            Triggers::None => {}
            Triggers::Users => pg_sys::AfterTriggerEndQuery(estate),
            // Runs nothing: the checks only move to the transaction's own queue.
            Triggers::DeferredChecks => Identity::unrestricted(|| pg_sys::AfterTriggerEndQuery(estate)),
        }
        pg_sys::CommandCounterIncrement();
        pg_sys::UpdateActiveSnapshotCommandId();
    }
}
