//! The last commits of all sessions that capture or apply, in shared memory.
//!
//! A row that is updated was mostly written a while ago, and by another session. So each notes its commits here, for whoever
//! replaces one of its rows.
//!
//! The table is a segment of dynamic shared memory, which the first session makes and the server keeps: that needs no
//! `shared_preload_libraries`. Where it is stands in a few bytes of what every server has to spare (`shared_memory`). A
//! server that has no such memory does without, and is asked more often.

use std::cell::Cell;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering, fence};

use pgrx::pg_sys;

use super::{Commit, VALID_BITS};
use crate::backend_local::BackendLocal;
use crate::shared_memory::{self, Shared};

/// The table is as large as this part of `shared_buffers` …
const PART_OF_BUFFERS: usize = 64;
/// … but has so many places at least, which are 16 KiB, and at most, which are 16 MiB.
const PLACES: (usize, usize) = (1 << 10, 1 << 20);

/// What a session that cannot have the table remembers of its own commits.
static OWN: [Place; 256] = [const { Place { id: AtomicU64::new(0), commit_ts: AtomicI64::new(0) } }; 256];

#[unsafe(link_section = ".data.duplex_hot")]
static TABLE: BackendLocal<Cell<Table<'static>>> = BackendLocal::new(Cell::new(Table(&OWN)));
static HEAD: BackendLocal<Cell<Option<&'static Head>>> = BackendLocal::new(Cell::new(None));
/// Whether this session has the table, or cannot have it.
#[unsafe(link_section = ".data.duplex_hot")]
static JOINED: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(false));
/// Whether it notes its commits: from then on, where the server keeps their times.
#[unsafe(link_section = ".data.duplex_hot")]
static NOTED: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(false));

/// Where the table is. All zero before there is one.
#[derive(Debug)]
struct Head {
    state: AtomicU32,
    /// The segment's handle.
    handle: AtomicU32,
}

// SAFETY: all zero is a head without a table; all else is done by atomic operations.
unsafe impl Shared for Head {}

/// There is no table yet.
const NONE: u32 = 0;
/// A session is making it. Should it die in the middle, the others go on without.
const BEING_MADE: u32 = 1;
const MADE: u32 = 2;

/// Finds the table, or makes it. Called where an ERROR would do no harm.
#[inline]
pub(crate) fn join() {
    if !JOINED.get() {
        look_for_table();
    }
}

#[cold]
fn look_for_table() {
    let Some(head) = HEAD.get().or_else(|| shared_memory::find(c"pg_duplex commits")) else { return joined() };
    HEAD.set(Some(head));
    let table = match head.state.load(Ordering::Acquire) {
        MADE => head.attach(),
        NONE if head.is_ours_to_make() => head.make(),
        // Another session is at it: next time.
        _ => return,
    };
    if let Some(table) = table {
        TABLE.set(table);
    }
    joined();
}

fn joined() {
    JOINED.set(true);
    // SAFETY: a plain read of a setting that never changes.
    NOTED.set(unsafe { pg_sys::track_commit_timestamp });
}

/// Whether this session notes its commits.
#[inline]
pub(super) fn is_noted() -> bool {
    NOTED.get()
}

impl Head {
    fn is_ours_to_make(&self) -> bool {
        self.state.compare_exchange(NONE, BEING_MADE, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn make(&self) -> Option<Table<'static>> {
        let bytes = places() * size_of::<Place>();
        // SAFETY: a plain call.
        let segment = mapped(|| unsafe { pg_sys::dsm_create(bytes, 0) });
        if segment.is_null() {
            self.state.store(NONE, Ordering::Relaxed);
            return None;
        }
        // SAFETY: the segment is mapped in full, and nobody else knows it yet. Unless it is pinned it goes with the last session
        // that has it mapped.
        let table = unsafe {
            pg_sys::dsm_segment_address(segment).cast::<u8>().write_bytes(0, bytes);
            pg_sys::dsm_pin_segment(segment);
            self.handle.store(pg_sys::dsm_segment_handle(segment), Ordering::Relaxed);
            Table::of(segment)
        };
        self.state.store(MADE, Ordering::Release);
        Some(table)
    }

    fn attach(&self) -> Option<Table<'static>> {
        let handle = self.handle.load(Ordering::Relaxed);
        // SAFETY: a plain call; this session has not attached yet.
        let segment = mapped(|| unsafe { pg_sys::dsm_attach(handle) });
        // SAFETY: whoever made it has filled it before it said so.
        (!segment.is_null()).then(|| unsafe { Table::of(segment) })
    }
}

/// Gets a segment that stays mapped as long as this session, or null.
fn mapped(get: impl Fn() -> *mut pg_sys::dsm_segment + UnwindSafe + RefUnwindSafe) -> *mut pg_sys::dsm_segment {
    // SAFETY: a segment that is mapped without an owner is mapped to the session's end. The owner is put back, whatever happens.
    unsafe {
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::CurrentResourceOwner = std::ptr::null_mut();
        let segment = shared_memory::or_null(get);
        pg_sys::CurrentResourceOwner = owner;
        segment
    }
}

/// So many places the table has: a power of two.
fn places() -> usize {
    // SAFETY: a plain read of a setting that stays as it is as long as the server.
    let buffers = unsafe { pg_sys::NBuffers } as usize * pg_sys::BLCKSZ as usize;
    let (least, most) = PLACES;
    1 << (buffers / PART_OF_BUFFERS / size_of::<Place>()).clamp(least, most).ilog2()
}

/// Says that [`find`] will be asked for this transaction soon: where a commit stands is mostly far from the processor.
#[inline]
pub(crate) fn expect(xid: pg_sys::TransactionId) {
    TABLE.get().place(xid.into_inner()).prefetch();
}

/// The commit of this transaction, if it is there. `current` is the full id of a transaction that runs now.
#[inline]
pub(super) fn find(xid: pg_sys::TransactionId, current: u64) -> Option<Commit> {
    TABLE.get().find(xid.into_inner(), current)
}

/// Notes the commit of the transaction with this full id. Must not fail.
pub(super) fn note(full_id: u64, commit: Commit) {
    TABLE.get().note(full_id, commit);
}

/// A commit has the one place that its id says, and replaces what is there. No lock: whoever reads while a place is written,
/// and whoever would write while another one does, does without (a sequence lock, where the id, which never comes back, is
/// the sequence). There are 2^n places.
#[derive(Debug, Clone, Copy)]
struct Table<'a>(&'a [Place]);

/// One commit; all zero where there is none.
#[derive(Debug)]
struct Place {
    /// From high to low: the transaction's id (32 bits), its origin (16), how many times 2^30 ids were given out before (16).
    id: AtomicU64,
    commit_ts: AtomicI64,
}

/// In place of an id, while the place is written.
const BUSY: u64 = 1;

impl Place {
    #[inline]
    fn prefetch(&self) {
        // SAFETY: a hint, which changes nothing.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(self).cast());
        }
    }
}

impl<'a> Table<'a> {
    /// # Safety
    /// The segment is as large as the table, and mapped to the session's end.
    unsafe fn of(segment: *mut pg_sys::dsm_segment) -> Self {
        // SAFETY: as the caller promises; mappings are aligned to pages, and a place may hold anything.
        Self(unsafe { std::slice::from_raw_parts(pg_sys::dsm_segment_address(segment).cast(), places()) })
    }

    /// Transactions that run at the same time have places in different cache lines, 64 of them in a row, of one page: four
    /// places are in a line.
    #[inline]
    fn place(self, xid: u32) -> &'a Place {
        let spread = xid & !255 | (xid & 63) << 2 | (xid >> 6) & 3;
        &self.0[spread as usize & (self.0.len() - 1)]
    }

    #[inline]
    fn find(self, xid: u32, current: u64) -> Option<Commit> {
        let place = self.place(xid);
        let id = place.id.load(Ordering::Acquire);
        let age = ((current >> VALID_BITS) as u16).wrapping_sub(id as u16);
        if (id >> 32) as u32 != xid || age > 1 {
            return None;
        }
        let commit_ts = place.commit_ts.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let is_whole = place.id.load(Ordering::Relaxed) == id;
        is_whole.then_some(Commit { commit_ts, origin: (id >> 16) as u16 })
    }

    fn note(self, full_id: u64, commit: Commit) {
        let place = self.place(full_id as u32);
        let there = place.id.load(Ordering::Relaxed);
        if there == BUSY || place.id.compare_exchange(there, BUSY, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        fence(Ordering::Release);
        place.commit_ts.store(commit.commit_ts, Ordering::Relaxed);
        let id = full_id << 32 | u64::from(commit.origin) << 16 | u64::from((full_id >> VALID_BITS) as u16);
        place.id.store(id, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(commit_ts: i64) -> Commit {
        Commit { commit_ts, origin: 7 }
    }

    const PLACES: usize = 1024;

    fn empty() -> Vec<Place> {
        let place = || Place { id: AtomicU64::new(0), commit_ts: AtomicI64::new(0) };
        std::iter::repeat_with(place).take(PLACES).collect()
    }

    fn found(table: Table<'_>, full_id: u64, current: u64) -> Option<(i64, u16)> {
        table.find(full_id as u32, current).map(|commit| (commit.commit_ts, commit.origin))
    }

    #[test]
    fn a_commit_is_found_until_another_takes_its_place() {
        let places = empty();
        let table = Table(&places);
        assert_eq!(found(table, 3, 4), None);
        table.note(3, commit(30));
        assert_eq!(found(table, 3, 4), Some((30, 7)));
        let next = 3 + PLACES as u64;
        assert_eq!(found(table, next, next), None);
        table.note(next, commit(31));
        assert_eq!((found(table, 3, next), found(table, next, next)), (None, Some((31, 7))));
    }

    #[test]
    fn neighbours_have_places_in_lines_of_their_own() {
        let places = empty();
        let table = Table(&places);
        let ids = 1000..1000 + PLACES as u32;
        ids.clone().for_each(|id| table.note(id.into(), commit(id.into())));
        assert!(ids.clone().all(|id| found(table, id.into(), id.into()) == Some((id.into(), 7))));
        // Counted from the table's beginning, where a segment has a page begin.
        let line = |id: u32| (std::ptr::from_ref(table.place(id)).addr() - places.as_ptr().addr()) / 64;
        assert!(ids.clone().zip(ids.skip(1)).all(|(id, next)| line(id) != line(next)));
    }

    #[test]
    fn an_id_that_has_come_round_again_is_another_transaction() {
        let places = empty();
        let table = Table(&places);
        for first in [3, 5 << 32 | u64::from(u32::MAX), u64::MAX - 9] {
            table.note(first, commit(1));
            assert_eq!(found(table, first, first.wrapping_add(1 << 30)), Some((1, 7)));
            assert_eq!(found(table, first, first.wrapping_add(1 << 31)), None);
            assert_eq!(found(table, first, first.wrapping_add(1 << 32)), None);
        }
    }

    #[test]
    fn nobody_reads_what_is_half_written() {
        const IDS: u32 = 500_000;
        // All of them in one place.
        let places = empty();
        let table = Table(&places);
        let id = |number: u32| 3 + number * PLACES as u32;
        let found: u32 = std::thread::scope(|scope| {
            let writers = [0, 1].map(|first| {
                scope.spawn(move || {
                    (first..IDS).step_by(2).map(id).for_each(|id| table.note(id.into(), commit(i64::from(id) * 3)));
                })
            });
            let mut found = 0;
            loop {
                let is_last = writers.iter().all(|writer| writer.is_finished());
                let there = (table.place(3).id.load(Ordering::Relaxed) >> 32) as u32;
                if there != 0
                    && let Some(commit) = table.find(there, there.into())
                {
                    assert_eq!(commit.commit_ts, i64::from(there) * 3);
                    found += 1;
                }
                if is_last {
                    return found;
                }
            }
        });
        assert!(found > 0);
    }
}
