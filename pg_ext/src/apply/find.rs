//! Finding a row by its key: the same steps as the server's `RelationFindReplTupleByIndex`, with the scan kept for as
//! long as the table is open. The server makes one anew for each row, and its memory alone is tens of kilobytes.
//!
//! From the second row on the index is not scanned but looked into, which costs less.

use std::ptr;

use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;
use pgrx::{PgSqlErrorCode, check_for_interrupts, ereport, pg_sys};

use crate::btree::{Found, Probe, begin_scan, fetch, let_go, scan_keys};

/// Looks rows of one table up in the index of its key.
#[derive(Debug)]
pub(crate) struct Finder {
    rel: pg_sys::Relation,
    scan: pg_sys::IndexScanDesc,
    keys: Vec<pg_sys::ScanKeyData>,
    /// The table's attribute behind each column of the index.
    attributes: Vec<i16>,
    /// Sees what is not committed yet, and says whose it is. The scan points to it.
    snapshot: Box<pg_sys::SnapshotData>,
    /// Where the scan takes memory, now and later.
    context: pg_sys::MemoryContext,
    index: pg_sys::Relation,
    /// Made when the second row is looked for: for one, the scan is as good.
    probe: Option<Probe>,
    has_looked: bool,
}

impl Finder {
    /// # Safety
    /// Both are open until [`Self::close`]; the current memory lives as long.
    pub(crate) unsafe fn new(rel: pg_sys::Relation, index: pg_sys::Relation) -> Self {
        let snapshot_type = pg_sys::SnapshotType::SNAPSHOT_DIRTY;
        let mut snapshot = Box::new(pg_sys::SnapshotData { snapshot_type, ..Default::default() });
        // SAFETY: as the caller promises; an index has an attribute for each of its columns.
        unsafe {
            let form = &*(*index).rd_index;
            let attributes = form.indkey.values.as_slice(usize::from(form.indnkeyatts.cast_unsigned())).to_vec();
            let keys = scan_keys(index, &vec![pg_sys::Datum::from(0); attributes.len()], &[]);
            let scan = begin_scan(rel, index, &raw mut *snapshot, keys.len());
            Self {
                rel,
                scan,
                keys,
                attributes,
                snapshot,
                context: pg_sys::CurrentMemoryContext,
                index,
                probe: None,
                has_looked: false,
            }
        }
    }

    /// Puts the row with the key in `search` into `found`, locked if so wished. Waits for whoever is writing it, and
    /// looks again.
    ///
    /// # Safety
    /// Inside a transaction; both slots are of the table's layout.
    pub(crate) unsafe fn find(
        &mut self,
        search: *mut pg_sys::TupleTableSlot,
        found: *mut pg_sys::TupleTableSlot,
        lock: Option<pg_sys::LockTupleMode::Type>,
    ) -> bool {
        const NULL: i32 = (pg_sys::SK_ISNULL | pg_sys::SK_SEARCHNULL).cast_signed();
        // SAFETY: as the caller promises; a slot has its table's attributes.
        unsafe {
            for (key, &attribute) in self.keys.iter_mut().zip(&self.attributes) {
                let index = attribute as usize - 1;
                key.sk_argument = *(*search).tts_values.add(index);
                key.sk_flags = if *(*search).tts_isnull.add(index) { NULL } else { 0 };
            }
            loop {
                check_for_interrupts!();
                let is_there = self.look(found);
                let writer = match (self.snapshot.xmin, self.snapshot.xmax) {
                    (pg_sys::TransactionId::INVALID, deleter) => deleter,
                    (inserter, _) => inserter,
                };
                if !is_there {
                    return false;
                }
                if writer != pg_sys::TransactionId::INVALID {
                    pg_sys::XactLockTableWait(writer, ptr::null_mut(), ptr::null_mut(), pg_sys::XLTW_Oper::XLTW_None);
                    continue;
                }
                match lock {
                    Some(lock) if !self.lock(found, lock) => {}
                    _ => return true,
                }
            }
        }
    }

    /// The first row that the index finds. No pin is left, which would keep a page from being pruned or vacuumed.
    unsafe fn look(&mut self, found: *mut pg_sys::TupleTableSlot) -> bool {
        let has_null = self.keys.iter().any(|key| key.sk_flags != 0);
        if !std::mem::replace(&mut self.has_looked, true) || has_null {
            // SAFETY: as the caller promises.
            return unsafe { self.scan(found) };
        }
        // SAFETY: as the caller promises; the memory lives as long as the scan.
        unsafe {
            let probe = self.probe.get_or_insert_with(|| {
                let caller = pg_sys::MemoryContextSwitchTo(self.context);
                let probe = Probe::new(self.rel, self.index);
                pg_sys::MemoryContextSwitchTo(caller);
                probe
            });
            let (scan, keys) = (self.scan, &self.keys);
            let is_there = guarded(|| {
                let is_there = match probe.look_up(keys.iter().map(|key| key.sk_argument)) {
                    Found::Absent => Some(false),
                    Found::Rows(rows) => first_of(scan, rows.places(), found),
                    Found::Perhaps => None,
                };
                let_go(scan);
                probe.unpin();
                is_there
            });
            is_there.unwrap_or_else(|| self.scan(found))
        }
    }

    /// The same by a scan, which marks entries of rows that are gone.
    unsafe fn scan(&mut self, found: *mut pg_sys::TupleTableSlot) -> bool {
        let (keys, count) = (self.keys.as_mut_ptr(), self.keys.len() as i32);
        // SAFETY: as the caller promises.
        unsafe {
            let caller = pg_sys::MemoryContextSwitchTo(self.context);
            pg_sys::index_rescan(self.scan, keys, count, ptr::null_mut(), 0);
            let is_there = pg_sys::index_getnext_slot(self.scan, pg_sys::ScanDirection::ForwardScanDirection, found);
            pg_sys::index_rescan(self.scan, keys, count, ptr::null_mut(), 0);
            pg_sys::MemoryContextSwitchTo(caller);
            is_there
        }
    }

    /// Locks the row; `false` if it has changed meanwhile.
    unsafe fn lock(&self, found: *mut pg_sys::TupleTableSlot, mode: pg_sys::LockTupleMode::Type) -> bool {
        let mut failure = pg_sys::TM_FailureData::default();
        // SAFETY: as the caller promises; the guard turns an ERROR inside into a panic.
        let result = unsafe {
            let lock = (*(*self.rel).rd_tableam).tuple_lock.expect("a heap can lock rows");
            let (place, failure) = (&raw mut (*found).tts_tid, &raw mut failure);
            let (snapshot, command) = (pg_sys::GetLatestSnapshot(), pg_sys::GetCurrentCommandId(false));
            pg_sys::PushActiveSnapshot(snapshot);
            let wait = pg_sys::LockWaitPolicy::LockWaitBlock;
            let result = guarded(|| lock(self.rel, place, snapshot, found, command, mode, wait, 0, failure));
            pg_sys::PopActiveSnapshot();
            result
        };
        match result {
            pg_sys::TM_Result::TM_Ok => true,
            pg_sys::TM_Result::TM_Updated | pg_sys::TM_Result::TM_Deleted => false,
            other => unexpected("locked", other),
        }
    }

    /// # Safety
    /// Only after everything went well: an abort does it by itself.
    pub(crate) unsafe fn close(self) {
        // SAFETY: begun by `new`.
        unsafe {
            if let Some(probe) = self.probe {
                probe.close();
            }
            pg_sys::index_endscan(self.scan);
        }
    }
}

/// The first row at one of these places that the scan's snapshot sees. `None` if several are gone for everybody: a scan
/// marks their entries, so that nobody meets them again.
///
/// # Safety
/// Inside a guard; the slot is of the table's layout, and the leaf that told of the places is pinned.
unsafe fn first_of(
    scan: pg_sys::IndexScanDesc,
    places: &[pg_sys::ItemPointerData],
    found: *mut pg_sys::TupleTableSlot,
) -> Option<bool> {
    let mut gone = 0;
    for &place in places {
        // SAFETY: as the caller promises.
        unsafe {
            if fetch(scan, place, found) {
                return Some(true);
            }
            gone += u32::from((*scan).kill_prior_tuple);
        }
        if gone > 1 {
            return None;
        }
    }
    Some(false)
}

/// A row that was found cannot be written for a reason that should not be.
pub(crate) fn unexpected(what: &str, result: pg_sys::TM_Result::Type) -> ! {
    ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        format!("a row that was found cannot be {what}: result {result}")
    );
}
