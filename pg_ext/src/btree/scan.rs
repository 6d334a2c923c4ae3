//! Scans of an index that are kept for many keys, and what they read of the rows that [`super::Probe`] tells of.

use pgrx::pg_sys;

const EQUAL: i16 = pg_sys::BTEqualStrategyNumber as i16;

unsafe extern "C-unwind" {
    // Without a guard: whoever fetches has one around all that he does.
    fn index_fetch_heap(scan: pg_sys::IndexScanDesc, slot: *mut pg_sys::TupleTableSlot) -> bool;
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

/// Puts the row at a place that an entry told of into the slot, if the scan's snapshot sees it: what `index_getnext_slot`
/// does with each entry of a scan.
///
/// # Safety
/// Inside a guard; the slot is of the table's layout, and the leaf that told of the place is pinned.
pub(crate) unsafe fn fetch(
    scan: pg_sys::IndexScanDesc,
    place: pg_sys::ItemPointerData,
    slot: *mut pg_sys::TupleTableSlot,
) -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        (*scan).xs_heaptid = place;
        (*scan).xs_heap_continue = false;
        index_fetch_heap(scan, slot)
    }
}

/// Gives back the pin of the page where a scan has fetched its last row.
///
/// # Safety
/// Inside a guard; the scan is of a heap.
pub(crate) unsafe fn let_go(scan: pg_sys::IndexScanDesc) {
    // SAFETY: as the caller promises.
    unsafe {
        let reset = (*(*(*scan).heapRelation).rd_tableam).index_fetch_reset.expect("a heap can be read by an index");
        reset((*scan).xs_heapfetch);
    }
}
