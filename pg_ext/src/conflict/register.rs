//! One register: a table of schema `duplex` that belongs to a replicated table, with one index, which finds keys or
//! values by the operators of the index that it was made after.
//!
//! Written at heap level, so that whoever may write the replicated table needs no right on it. The index is not unique:
//! two sessions that remember the same key at once must not fail over it. Who reads takes the newest.

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;

const EQUAL: i16 = pg_sys::BTEqualStrategyNumber as i16;

/// A register that is open.
#[derive(Debug)]
pub(crate) struct Register {
    heap: pg_sys::Relation,
    index: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
    /// Where rows found are put.
    slot: *mut pg_sys::TupleTableSlot,
    /// For each column of the index, which are the first of the table: how equality is asked for.
    keys: Vec<pg_sys::ScanKeyData>,
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
        // SAFETY: as the caller promises; a register has exactly one index.
        unsafe {
            let heap = pg_sys::table_open(oid, pg_sys::RowExclusiveLock.cast_signed());
            let indexes = pg_sys::RelationGetIndexList(heap);
            let first = (*(*indexes).elements).oid_value;
            pg_sys::list_free(indexes);
            let index = pg_sys::index_open(first, pg_sys::RowExclusiveLock.cast_signed());
            let width = (*(*index).rd_index).indnkeyatts as usize;
            let context = pg_sys::MemoryContextSwitchTo(pg_sys::CurTransactionContext);
            let keys = scan_keys(index, &vec![pg_sys::Datum::from(0); width], &[]);
            let info = pg_sys::BuildIndexInfo(index);
            let slot = pg_sys::table_slot_create(heap, std::ptr::null_mut());
            pg_sys::MemoryContextSwitchTo(context);
            Self { heap, index, info, slot, keys }
        }
    }

    /// Closes it; its lock stays to the end of the transaction.
    ///
    /// # Safety
    /// It was opened in this transaction, and nothing of it is used any more.
    pub(crate) unsafe fn close(self) {
        // SAFETY: as the caller promises.
        unsafe {
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
            pg_sys::heap_insert(self.heap, tuple, command, 0, std::ptr::null_mut());
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

    /// Takes a row out that was found. One that somebody else has just taken out is gone as well.
    ///
    /// # Safety
    /// The place is one of this register's.
    pub(crate) unsafe fn remove(&self, mut place: pg_sys::ItemPointerData) {
        // SAFETY: as the caller promises; the result says only whether it was us.
        unsafe {
            let mut failure = pg_sys::TM_FailureData::default();
            let command = pg_sys::GetCurrentCommandId(true);
            pg_sys::heap_delete(self.heap, &mut place, command, std::ptr::null_mut(), true, &mut failure, false);
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
            let mut by_row =
                pg_sys::SnapshotData { snapshot_type: pg_sys::SnapshotType::SNAPSHOT_SELF, ..Default::default() };
            let snapshot = match sight {
                Sight::Latest => pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot()),
                Sight::RowByRow => &raw mut by_row,
            };
            let mut keys = if nulls.contains(&true) { scan_keys(self.index, values, nulls) } else { self.keys.clone() };
            for (key, value) in keys.iter_mut().zip(values) {
                key.sk_argument = *value;
            }
            let scan = begin_scan(self.heap, self.index, snapshot, keys.len());
            pg_sys::index_rescan(scan, keys.as_mut_ptr(), keys.len() as i32, std::ptr::null_mut(), 0);
            let slot = self.slot;
            while pg_sys::index_getnext_slot(scan, pg_sys::ScanDirection::ForwardScanDirection, slot) {
                pg_sys::slot_getsomeattrs_int(slot, (*(*slot).tts_tupleDescriptor).natts);
                each(Entry { slot });
            }
            pg_sys::index_endscan(scan);
            let clear = (*(*slot).tts_ops).clear.expect("a slot can be cleared");
            guarded(|| clear(slot));
            if let Sight::Latest = sight {
                pg_sys::UnregisterSnapshot(snapshot);
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

/// The id of the transaction that wrote the row in a heap's slot, frozen or not.
///
/// # Safety
/// The slot is a heap's and holds a row of it.
pub(crate) unsafe fn raw_xmin(slot: *mut pg_sys::TupleTableSlot) -> pg_sys::TransactionId {
    // SAFETY: as the caller promises.
    unsafe { (*(*(*slot.cast::<pg_sys::HeapTupleTableSlot>()).tuple).t_data).t_choice.t_heap.t_xmin }
}

/// The function behind the `=` of an index's column.
///
/// # Safety
/// The index is open and has the column.
unsafe fn equality(index: pg_sys::Relation, column: usize) -> pg_sys::Oid {
    // SAFETY: as the caller promises: the arrays have one entry a column.
    unsafe {
        let family = *(*index).rd_opfamily.add(column);
        let of = *(*index).rd_opcintype.add(column);
        pg_sys::get_opcode(pg_sys::get_opfamily_member(family, of, of, EQUAL))
    }
}

/// Keys of a scan for rows that are equal in all columns of an index; NULL is equal to NULL.
///
/// # Safety
/// The index is open, the values are of its columns' types.
pub(crate) unsafe fn scan_keys(
    index: pg_sys::Relation,
    values: &[pg_sys::Datum],
    nulls: &[bool],
) -> Vec<pg_sys::ScanKeyData> {
    let mut keys = vec![pg_sys::ScanKeyData::default(); values.len()];
    for (column, key) in keys.iter_mut().enumerate() {
        let null = nulls.get(column).copied().unwrap_or(false);
        let flags = if null { pg_sys::SK_ISNULL | pg_sys::SK_SEARCHNULL } else { 0 };
        // SAFETY: as the caller promises.
        unsafe {
            let procedure = if null { pg_sys::InvalidOid } else { equality(index, column) };
            let strategy = if null { 0 } else { EQUAL as u16 };
            pg_sys::ScanKeyEntryInitialize(
                key,
                flags.cast_signed(),
                column as i16 + 1,
                strategy,
                *(*index).rd_opcintype.add(column),
                *(*index).rd_indcollation.add(column),
                procedure,
                values[column],
            );
        }
    }
    keys
}

/// Begins a scan of an index.
///
/// # Safety
/// Both are open, the snapshot is there until the scan has ended.
pub(crate) unsafe fn begin_scan(
    heap: pg_sys::Relation,
    index: pg_sys::Relation,
    snapshot: pg_sys::Snapshot,
    keys: usize,
) -> pg_sys::IndexScanDesc {
    // SAFETY: as the caller promises.
    unsafe {
        #[cfg(feature = "pg18")]
        return pg_sys::index_beginscan(heap, index, snapshot, std::ptr::null_mut(), keys as i32, 0);
        #[cfg(not(feature = "pg18"))]
        return pg_sys::index_beginscan(heap, index, snapshot, keys as i32, 0);
    }
}
