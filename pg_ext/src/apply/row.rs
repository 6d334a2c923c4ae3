//! One row: found by its key, decided on by its version, written at the executor's level.

use duplex_protocol::entry::{Delete, Put, Row};
use pgrx::{PgSqlErrorCode, check_for_interrupts, pg_sys};

use crate::apply::decide::Guard;
use crate::apply::own::Identity;
use crate::apply::table::{Leaf, Storage, Table};
use crate::apply::triggers::Triggers;
use crate::conflict::arrival::{Arrival, Change};
use crate::conflict::write::{self, Written};
use crate::errors::{Failure, Result};
use crate::slot;

impl Table {
    /// Writes a row as it is after an INSERT or UPDATE, if its version is later than what is there.
    ///
    /// # Safety
    /// Inside a transaction with an active snapshot, acting as the table's owner.
    pub(crate) unsafe fn put(&mut self, put: &Put<'_>, arrival: &mut Arrival<'_>) -> Result<()> {
        let change = Change::put(put.kind, put.replaced);
        // SAFETY: as the caller promises, for all calls below; the row's memory is reset once it is written.
        unsafe {
            let caller = self.begin_row();
            self.fill(&put.row)?;
            let added = self.read_added(&put.contributions)?;
            let mut has_defaults = self.defaults.is_empty();
            loop {
                let found = find(self.leaf()?, pg_sys::LockTupleMode::LockTupleNoKeyExclusive);
                let done = if found && let Some(added) = &added {
                    match self.target.merged {
                        Some(_) => self.merge_over(put, added, arrival)?,
                        None => self.keep_over(change, added, arrival)?,
                    }
                } else if found {
                    self.put_over(change, arrival)?
                } else {
                    if !has_defaults {
                        // Evaluated only now: a default may be the next value of a sequence.
                        self.fill_defaults();
                        has_defaults = true;
                        self.leaf()?;
                    }
                    match &added {
                        Some(added) if self.target.merged.is_some() => self.merge_anew(put, added, arrival)?,
                        Some(added) => self.keep_anew(change, added, arrival)?,
                        None => self.put_anew(change, arrival)?,
                    }
                };
                if done {
                    break;
                }
                // Somebody took the key in between: it is decided again on what is there now.
                check_for_interrupts!();
                if self.target.merged.is_some() {
                    // The row to write has columns by now that did not come with the change.
                    pg_sys::ExecStoreAllNullTuple(self.remote);
                    self.fill(&put.row)?;
                    has_defaults = self.defaults.is_empty();
                }
            }
            self.end_row(caller);
        }
        Ok(())
    }

    /// Deletes a row, if the deletion is later than what is there, and remembers that it is gone.
    ///
    /// # Safety
    /// As [`Table::put`].
    pub(crate) unsafe fn delete(&mut self, delete: &Delete<'_>, arrival: &mut Arrival<'_>) -> Result<()> {
        let change = Change::delete(delete.replaced);
        // SAFETY: as the caller promises.
        unsafe {
            let caller = self.begin_row();
            self.fill_key(&delete.key)?;
            if let Some(added) = self.read_added(&delete.contributions)? {
                while !self.keep_delete(change, &added, arrival)? {
                    check_for_interrupts!();
                }
                self.end_row(caller);
                return Ok(());
            }
            loop {
                let mut found = find(self.leaf()?, pg_sys::LockTupleMode::LockTupleExclusive);
                if !found {
                    self.guard(Guard::Alone);
                    found = find(self.leaf()?, pg_sys::LockTupleMode::LockTupleExclusive);
                }
                if !found {
                    self.delete_missing(change, arrival)?;
                    break;
                }
                if self.delete_found(change, arrival)? {
                    break;
                }
                // Somebody changed it in between: it is decided again on what is there now.
                check_for_interrupts!();
            }
            self.end_row(caller);
        }
        Ok(())
    }

    /// Where the row in `remote` belongs.
    pub(crate) unsafe fn leaf(&mut self) -> Result<&mut Leaf> {
        match &mut self.storage {
            Storage::Plain(leaf) => Ok(leaf),
            // SAFETY: the table is open and `remote` is filled.
            Storage::Partitioned(routing) => unsafe {
                routing.leaf(self.estate, self.remote, &self.target, &mut self.deferrable)
            },
        }
    }

    /// The same once it is found, with what was computed for the row since.
    pub(crate) fn current(&mut self) -> &mut Leaf {
        match &mut self.storage {
            Storage::Plain(leaf) => leaf,
            Storage::Partitioned(routing) => routing.current(),
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

/// Finds the row that has the key in `leaf.write`, equal by the index's operators, not by bytes. Waits for whoever is
/// writing it, and looks again. Where more is done with the row than to write it, it is locked, too.
pub(crate) unsafe fn find(leaf: &mut Leaf, lock: pg_sys::LockTupleMode::Type) -> bool {
    let lock = leaf.is_locking().then_some(lock);
    // SAFETY: the relation is open, the slots are of its layout.
    unsafe { leaf.finder.find(leaf.write, leaf.found, lock) }
}

impl Leaf {
    /// Inserts the row in `write`.
    ///
    /// # Safety
    /// As [`Table::put`].
    pub(crate) unsafe fn insert(&mut self, estate: *mut pg_sys::EState) -> Written {
        // SAFETY: as the caller promises.
        unsafe { change(self, estate, |leaf| write::insert(leaf, estate)) }
    }

    /// Whether a row that is found is locked before it is decided on. It need not be where nothing but the row itself is
    /// written: that fails if it has changed meanwhile.
    pub(crate) fn is_locking(&self) -> bool {
        self.triggers != Triggers::None
            || !self.uniques.is_empty()
            || !self.counters.is_empty()
            || !self.columns.is_empty()
    }

    /// Puts the row in `write` in the place of the one in `found`.
    ///
    /// # Safety
    /// As [`Table::put`].
    pub(crate) unsafe fn update(&mut self, estate: *mut pg_sys::EState) -> Written {
        // SAFETY: as the caller promises.
        unsafe {
            self.keep();
            change(self, estate, |leaf| {
                if leaf.uniques.is_empty() && leaf.is_locking() {
                    pg_sys::ExecSimpleRelationUpdate(leaf.info, estate, &mut *leaf.epq, leaf.found, leaf.write);
                    return Written::Row(Vec::new());
                }
                write::update(leaf, estate)
            })
        }
    }

    /// Takes over what an UPDATE leaves as it is here.
    unsafe fn keep(&mut self) {
        // SAFETY: both slots are of this leaf, and `found` holds a row.
        unsafe {
            let Some(&last) = self.kept.iter().max() else { return };
            slot::deform(self.found, last.into());
            for &attribute in &self.kept {
                let index = attribute as usize - 1;
                (*self.write).tts_values.add(index).write(*(*self.found).tts_values.add(index));
                (*self.write).tts_isnull.add(index).write(*(*self.found).tts_isnull.add(index));
            }
        }
    }

    /// Removes the row in a slot. Says whether it was still there as it was found.
    ///
    /// # Safety
    /// As [`Table::put`].
    pub(crate) unsafe fn remove(&mut self, slot: *mut pg_sys::TupleTableSlot, estate: *mut pg_sys::EState) -> bool {
        // SAFETY: as the caller promises.
        unsafe {
            change(self, estate, |leaf| {
                if !leaf.is_locking() {
                    return write::delete(leaf, slot);
                }
                pg_sys::ExecSimpleRelationDelete(leaf.info, estate, &mut *leaf.epq, slot);
                true
            })
        }
    }
}

/// One change of a row, with its triggers, visible to what comes next.
unsafe fn change<R>(leaf: &mut Leaf, estate: *mut pg_sys::EState, write: impl FnOnce(&mut Leaf) -> R) -> R {
    // SAFETY: as the callers promise. A trigger queue is opened only where there is a trigger: row by row, so that it
    // never grows.
    unsafe {
        if leaf.triggers != Triggers::None {
            (*estate).es_output_cid = pg_sys::GetCurrentCommandId(true);
            pg_sys::AfterTriggerBeginQuery();
        }
        let result = write(leaf);
        match leaf.triggers {
            Triggers::None => {}
            Triggers::Users => pg_sys::AfterTriggerEndQuery(estate),
            // Runs nothing: the checks only move to the transaction's own queue.
            Triggers::DeferredChecks => Identity::unrestricted(|| pg_sys::AfterTriggerEndQuery(estate)),
        }
        pg_sys::CommandCounterIncrement();
        pg_sys::UpdateActiveSnapshotCommandId();
        result
    }
}
