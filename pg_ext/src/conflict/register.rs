//! One register: a table of schema `duplex` that belongs to a replicated table, with one index, which finds keys or
//! values by the operators of the index that it was made after.
//!
//! Written at heap level, so that whoever may write the replicated table needs no right on it. The index is not unique:
//! two sessions that remember the same key at once must not fail over it. Who reads takes the newest.

use std::cell::{Cell, OnceCell};
use std::ptr;

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;

use crate::btree::{Found, Probe, begin_scan, fetch, let_go, scan_keys};
use crate::conflict::batch::Batch;
use crate::slot;

/// A register that is open.
#[derive(Debug)]
pub(crate) struct Register {
    heap: pg_sys::Relation,
    index: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
    /// Where rows found are put.
    slot: *mut pg_sys::TupleTableSlot,
    /// That of the (sub)transaction that opened it.
    context: pg_sys::MemoryContext,
    /// For each column of the index, which are the first of the table: how equality is asked for.
    keys: Vec<pg_sys::ScanKeyData>,
    /// Looks values up; made when first needed, since the memory that it takes costs more than a look.
    scan: Cell<pg_sys::IndexScanDesc>,
    /// Says what there is to look up. Made when first needed.
    probe: OnceCell<Probe>,
}

/// What the reader of a register sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// All that is committed now, and all of this transaction's own: what decisions are made on.
    Latest,
    /// The same row by row, without a moment in common. Leaves no trace in a serializable transaction.
    RowByRow,
}

/// A row of a register.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    slot: *mut pg_sys::TupleTableSlot,
}

impl Register {
    /// Opens the register, for reading and writing.
    ///
    /// # Safety
    /// Inside a transaction; the replicated table is locked, so the register is not dropped.
    pub(crate) unsafe fn open(oid: pg_sys::Oid) -> Self {
        // SAFETY: as the caller promises.
        unsafe { Self::of(pg_sys::table_open(oid, pg_sys::RowExclusiveLock.cast_signed())) }
    }

    /// The same if it is still there.
    ///
    /// # Safety
    /// Inside a transaction.
    pub(crate) unsafe fn try_open(oid: pg_sys::Oid) -> Option<Self> {
        // SAFETY: as the caller promises.
        unsafe {
            let heap = pg_sys::try_table_open(oid, pg_sys::RowExclusiveLock.cast_signed());
            (!heap.is_null()).then(|| Self::of(heap))
        }
    }

    unsafe fn of(heap: pg_sys::Relation) -> Self {
        // SAFETY: the table is open; a register has exactly one index.
        unsafe {
            let indexes = pg_sys::RelationGetIndexList(heap);
            let first = (*(*indexes).elements).oid_value;
            pg_sys::list_free(indexes);
            let index = pg_sys::index_open(first, pg_sys::RowExclusiveLock.cast_signed());
            let width = (*(*index).rd_index).indnkeyatts as usize;
            let context = pg_sys::CurTransactionContext;
            let caller = pg_sys::MemoryContextSwitchTo(context);
            let keys = scan_keys(index, &vec![pg_sys::Datum::from(0); width], &[]);
            let info = pg_sys::BuildIndexInfo(index);
            let slot = pg_sys::table_slot_create(heap, ptr::null_mut());
            pg_sys::MemoryContextSwitchTo(caller);
            Self { heap, index, info, slot, context, keys, scan: Cell::new(ptr::null_mut()), probe: OnceCell::new() }
        }
    }

    /// Closes it; its lock stays to the end of the transaction.
    ///
    /// # Safety
    /// It was opened in this transaction, and nothing of it is used any more.
    pub(crate) unsafe fn close(self) {
        // SAFETY: as the caller promises.
        unsafe {
            if let Some(probe) = self.probe.into_inner() {
                probe.close();
            }
            if !self.scan.get().is_null() {
                pg_sys::index_endscan(self.scan.get());
            }
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            pg_sys::pfree(self.info.cast());
            pg_sys::index_close(self.index, pg_sys::NoLock.cast_signed());
            pg_sys::table_close(self.heap, pg_sys::NoLock.cast_signed());
        }
    }

    /// Whether nothing was ever written there since it was last emptied. Asks the file's length only.
    ///
    /// # Safety
    /// As [`Self::open`].
    pub(crate) unsafe fn is_empty(oid: pg_sys::Oid) -> bool {
        // SAFETY: the relation is not dropped while the replicated table is locked; its length needs no lock.
        unsafe {
            let heap = pg_sys::RelationIdGetRelation(oid);
            if heap.is_null() {
                return true;
            }
            let blocks = pg_sys::RelationGetNumberOfBlocksInFork(heap, pg_sys::ForkNumber::MAIN_FORKNUM);
            pg_sys::RelationClose(heap);
            blocks == 0
        }
    }

    /// The layout of its rows.
    pub(crate) fn layout(&self) -> pg_sys::TupleDesc {
        // SAFETY: the relation is open.
        unsafe { (*self.heap).rd_att }
    }

    /// The types of the columns that the index has.
    pub(crate) fn types(&self) -> Vec<pg_sys::Oid> {
        // SAFETY: the relation is open.
        let desc = unsafe { pgrx::PgTupleDesc::from_pg_unchecked((*self.heap).rd_att) };
        desc.iter().take(self.keys.len()).map(|attribute| attribute.atttypid).collect()
    }

    /// Writes a row, of as many columns as the table has.
    ///
    /// # Safety
    /// The values are of the columns' types.
    pub(crate) unsafe fn insert(&self, values: &mut [pg_sys::Datum], nulls: &mut [bool]) {
        debug_assert_eq!(values.len(), nulls.len());
        // SAFETY: as the caller promises. The index takes the first columns as they are.
        unsafe {
            let tuple = pg_sys::heap_form_tuple((*self.heap).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            let command = pg_sys::GetCurrentCommandId(true);
            pg_sys::heap_insert(self.heap, tuple, command, 0, ptr::null_mut());
            pg_sys::index_insert(
                self.index,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
                &raw mut (*tuple).t_self,
                self.heap,
                pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO,
                false,
                self.info,
            );
            pg_sys::heap_freetuple(tuple);
        }
    }

    /// Writes all rows of a batch, each in place of older ones that the index finds equal to it.
    ///
    /// That there are such rows is told by the index while it takes the new one: it is asked as of a deferred unique
    /// constraint, which looks at the place where the entry goes anyway and raises nothing.
    ///
    /// # Safety
    /// Inside a transaction with an active snapshot; no two rows of the batch that are equal are to replace each other.
    pub(crate) unsafe fn write(&self, batch: &mut Batch, sight: Sight) {
        let rows = batch.rows();
        if rows.is_empty() {
            return;
        }
        // SAFETY: as the caller promises. Each slot has its row's place once that is written; an index's columns are
        // the first of the table.
        unsafe {
            let command = pg_sys::GetCurrentCommandId(true);
            pg_sys::heap_multi_insert(self.heap, rows.as_mut_ptr(), rows.len() as i32, command, 0, ptr::null_mut());
            for &slot in &*rows {
                slot::deform(slot, self.keys.len() as i32);
                let place = (*slot).tts_tid;
                let values = std::slice::from_raw_parts((*slot).tts_values, self.keys.len());
                let is_first = pg_sys::index_insert(
                    self.index,
                    (*slot).tts_values,
                    (*slot).tts_isnull,
                    &raw mut (*slot).tts_tid,
                    self.heap,
                    pg_sys::IndexUniqueCheck::UNIQUE_CHECK_PARTIAL,
                    false,
                    self.info,
                );
                if !is_first {
                    self.remove_equal(values, place, sight);
                }
            }
            batch.clear();
        }
    }

    /// Takes out all rows with these values but one.
    unsafe fn remove_equal(&self, values: &[pg_sys::Datum], but: pg_sys::ItemPointerData, sight: Sight) {
        // SAFETY: as the callers promise.
        unsafe {
            let mut old = Vec::new();
            self.find(values, &[], Sight::RowByRow, |entry| {
                // A statement cannot take out what it has written itself; one more does no harm.
                if !is_same_place(entry.place(), but) && (sight == Sight::Latest || !entry.is_own()) {
                    old.push(entry.place());
                }
            });
            old.into_iter().for_each(|place| self.remove(place));
        }
    }

    /// Takes a row out that was found. One that somebody else has just taken out is gone as well.
    ///
    /// # Safety
    /// The place is one of this register's.
    pub(crate) unsafe fn remove(&self, mut place: pg_sys::ItemPointerData) {
        // SAFETY: as the caller promises; the result says only whether it was us.
        unsafe {
            let mut failure = pg_sys::TM_FailureData::default();
            let command = pg_sys::GetCurrentCommandId(true);
            pg_sys::heap_delete(self.heap, &mut place, command, ptr::null_mut(), true, &mut failure, false);
        }
    }

    /// Shows all rows that the index finds under these values.
    ///
    /// # Safety
    /// The values are of the index's types; `each` does not keep the entry.
    pub(crate) unsafe fn find(
        &self,
        values: &[pg_sys::Datum],
        nulls: &[bool],
        sight: Sight,
        mut each: impl FnMut(Entry),
    ) {
        // SAFETY: as the caller promises; everything is given back below, or by the abort that an error leads to.
        unsafe {
            let look_up = || match nulls.contains(&true) {
                true => Found::Perhaps,
                false => {
                    let probe = self.probe();
                    guarded(|| {
                        let found = probe.look_up(values.iter().copied());
                        if !matches!(found, Found::Rows(_)) {
                            probe.unpin();
                        }
                        found
                    })
                }
            };
            if let Found::Absent = look_up() {
                return;
            }
            let mut by_row =
                pg_sys::SnapshotData { snapshot_type: pg_sys::SnapshotType::SNAPSHOT_SELF, ..Default::default() };
            let snapshot = match sight {
                Sight::Latest => pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot()),
                Sight::RowByRow => &raw mut by_row,
            };
            // Once more: what came between the first look and the snapshot may stand for what went then.
            let found = look_up();
            let scan = self.scan(snapshot);
            let slot = self.slot;
            let mut show = || {
                slot::deform(slot, (*(*slot).tts_tupleDescriptor).natts);
                each(Entry { slot });
            };
            match found {
                Found::Absent => {}
                Found::Rows(rows) => {
                    // These rows are never updated: there is one at a place, or none.
                    for &place in rows.places() {
                        if guarded(|| fetch(scan, place, slot)) {
                            show();
                        }
                    }
                    let probe = self.probe();
                    guarded(|| {
                        let_go(scan);
                        probe.unpin();
                    });
                }
                Found::Perhaps => self.scan_for(values, nulls, scan, &mut show),
            }
            let clear = (*(*slot).tts_ops).clear.expect("a slot can be cleared");
            guarded(|| clear(slot));
            if let Sight::Latest = sight {
                pg_sys::UnregisterSnapshot(snapshot);
            }
        }
    }

    /// Where it is not known which rows the index has entries of.
    unsafe fn scan_for(
        &self,
        values: &[pg_sys::Datum],
        nulls: &[bool],
        scan: pg_sys::IndexScanDesc,
        mut show: impl FnMut(),
    ) {
        // SAFETY: as the caller promises.
        unsafe {
            let mut keys = if nulls.contains(&true) { scan_keys(self.index, values, nulls) } else { self.keys.clone() };
            for (key, value) in keys.iter_mut().zip(values) {
                key.sk_argument = *value;
            }
            pg_sys::index_rescan(scan, keys.as_mut_ptr(), keys.len() as i32, ptr::null_mut(), 0);
            loop {
                // The scan takes memory as it goes, which it gives back when it is ended.
                let caller = pg_sys::MemoryContextSwitchTo(self.context);
                let is_there = pg_sys::index_getnext_slot(scan, pg_sys::ScanDirection::ForwardScanDirection, self.slot);
                pg_sys::MemoryContextSwitchTo(caller);
                if !is_there {
                    break;
                }
                show();
            }
        }
    }

    unsafe fn probe(&self) -> &Probe {
        self.probe.get_or_init(|| {
            // SAFETY: the relations are open until this is closed, and the memory lives as long.
            unsafe {
                let caller = pg_sys::MemoryContextSwitchTo(self.context);
                let probe = Probe::new(self.heap, self.index);
                pg_sys::MemoryContextSwitchTo(caller);
                probe
            }
        })
    }

    /// The scan, which is to see what the snapshot sees.
    unsafe fn scan(&self, snapshot: pg_sys::Snapshot) -> pg_sys::IndexScanDesc {
        // SAFETY: the relations are open; the scan is ended before they are closed, and its memory lives as long.
        unsafe {
            let mut scan = self.scan.get();
            if scan.is_null() {
                let caller = pg_sys::MemoryContextSwitchTo(self.context);
                scan = begin_scan(self.heap, self.index, snapshot, self.keys.len());
                pg_sys::MemoryContextSwitchTo(caller);
                self.scan.set(scan);
            }
            (*scan).xs_snapshot = snapshot;
            scan
        }
    }

    /// Waits until nobody else is writing a row with these values, or taking one out.
    ///
    /// # Safety
    /// As [`Self::find`].
    pub(crate) unsafe fn settle(&self, values: &[pg_sys::Datum]) {
        // SAFETY: as the caller promises; everything is given back below, or by the abort that an error leads to.
        unsafe {
            loop {
                let mut snapshot =
                    pg_sys::SnapshotData { snapshot_type: pg_sys::SnapshotType::SNAPSHOT_DIRTY, ..Default::default() };
                let mut keys = self.keys.clone();
                for (key, value) in keys.iter_mut().zip(values) {
                    key.sk_argument = *value;
                }
                let scan = begin_scan(self.heap, self.index, &raw mut snapshot, keys.len());
                pg_sys::index_rescan(scan, keys.as_mut_ptr(), keys.len() as i32, ptr::null_mut(), 0);
                let slot = self.slot;
                let mut writer = pg_sys::TransactionId::INVALID;
                while writer == pg_sys::TransactionId::INVALID
                    && pg_sys::index_getnext_slot(scan, pg_sys::ScanDirection::ForwardScanDirection, slot)
                {
                    writer =
                        if snapshot.xmin == pg_sys::TransactionId::INVALID { snapshot.xmax } else { snapshot.xmin };
                }
                pg_sys::index_endscan(scan);
                let clear = (*(*slot).tts_ops).clear.expect("a slot can be cleared");
                guarded(|| clear(slot));
                if writer == pg_sys::TransactionId::INVALID {
                    return;
                }
                let none = ptr::null_mut();
                pg_sys::XactLockTableWait(writer, none, none.cast(), pg_sys::XLTW_Oper::XLTW_None);
                pgrx::check_for_interrupts!();
            }
        }
    }

    /// Whether two values of the index's columns from `first` on are equal by the index's own operators.
    ///
    /// # Safety
    /// Both are of those columns' types, and none is NULL.
    pub(crate) unsafe fn are_equal(&self, one: &[pg_sys::Datum], other: impl Fn(usize) -> pg_sys::Datum) -> bool {
        self.keys.iter().enumerate().all(|(column, key)| {
            let mut function = key.sk_func;
            // SAFETY: as the caller promises; the function is the operator's.
            unsafe {
                let equal = pg_sys::FunctionCall2Coll(&mut function, key.sk_collation, one[column], other(column));
                equal.value() != 0
            }
        })
    }
}

impl Entry {
    /// Where the row is.
    pub(crate) fn place(self) -> pg_sys::ItemPointerData {
        // SAFETY: the slot holds a row.
        unsafe { (*self.slot).tts_tid }
    }

    /// A column's value by its index, `None` for NULL.
    pub(crate) fn value(self, column: usize) -> Option<pg_sys::Datum> {
        // SAFETY: the slot holds a row whose columns are all read, and the tables of registers have this column.
        unsafe { (!*(*self.slot).tts_isnull.add(column)).then(|| *(*self.slot).tts_values.add(column)) }
    }

    /// Whether the current transaction wrote the row.
    pub(crate) fn is_own(self) -> bool {
        // SAFETY: a plain call inside a transaction.
        unsafe { pg_sys::TransactionIdIsCurrentTransactionId(self.xmin()) }
    }

    /// The transaction that wrote the row, frozen or not.
    pub(crate) fn xmin(self) -> pg_sys::TransactionId {
        // SAFETY: the slot is a heap's and holds a row.
        unsafe { raw_xmin(self.slot) }
    }
}

pub(crate) fn is_same_place(mut one: pg_sys::ItemPointerData, mut other: pg_sys::ItemPointerData) -> bool {
    // SAFETY: both are copies of places.
    unsafe { pg_sys::ItemPointerEquals(&mut one, &mut other) }
}

/// The id of the transaction that wrote the row in a heap's slot, frozen or not.
///
/// # Safety
/// The slot is a heap's and holds a row of it.
pub(crate) unsafe fn raw_xmin(slot: *mut pg_sys::TupleTableSlot) -> pg_sys::TransactionId {
    // SAFETY: as the caller promises.
    unsafe { (*(*(*slot.cast::<pg_sys::HeapTupleTableSlot>()).tuple).t_data).t_choice.t_heap.t_xmin }
}
