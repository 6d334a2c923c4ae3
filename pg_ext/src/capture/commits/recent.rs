//! The last commits of all sessions that capture, in shared memory.
//!
//! A row that many sessions update was mostly written by another of them a moment ago. So each notes its commits here, for
//! whoever replaces one of its rows next.

use std::ffi::CStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering, fence};

use pgrx::{PgTryBuilder, pg_sys};

use super::{Commit, VALID_BITS};

/// What `pg_shmem_allocations` shows.
const NAME: &CStr = c"pg_duplex recent commits";

/// 16 KiB, of the 100 that a server has to spare at least.
const PLACES: usize = 1024;

/// The table, once this session has joined it.
static TABLE: OnceLock<&'static Table> = OnceLock::new();

/// In a server without memory to spare a session remembers its own commits only.
static OWN: Table = Table::empty();

/// Finds the table, or makes it. Called where an ERROR would do no harm.
pub(in super::super) fn join() {
    TABLE.get_or_init(|| {
        let at = PgTryBuilder::new(|| {
            let mut is_found = false;
            // SAFETY: nobody else uses the name. Without room for it the server raises an ERROR, holding nothing any more.
            unsafe { pg_sys::ShmemInitStruct(NAME.as_ptr(), size_of::<Table>(), &raw mut is_found).cast::<Table>() }
        })
        .catch_others(|_| std::ptr::null_mut())
        .execute();
        // SAFETY: it stays as long as the server. Nobody has used this memory before, and the kernel gave it out all zero,
        // which is an empty table; all else is done by atomic operations.
        unsafe { at.as_ref() }.unwrap_or(&OWN)
    });
}

/// The commit of this transaction, if it is there. `current` is the full id of a transaction that runs now.
#[inline]
pub(super) fn find(xid: pg_sys::TransactionId, current: u64) -> Option<Commit> {
    TABLE.get()?.find(xid.into_inner(), current)
}

/// Notes the commit of the transaction with this full id. Must not fail.
pub(super) fn note(full_id: u64, commit: Commit) {
    if let Some(table) = TABLE.get() {
        table.note(full_id, commit);
    }
}

/// A commit has the one place that its id says, and replaces what is there. No lock: whoever reads while a place is written,
/// and whoever would write while another one does, does without (a sequence lock, where the id, which never comes back, is
/// the sequence).
#[derive(Debug)]
struct Table([Place; PLACES]);

/// One commit; all zero where there is none.
#[derive(Debug)]
struct Place {
    /// From high to low: the transaction's id (32 bits), its origin (16), how many times 2^30 ids were given out before (16).
    id: AtomicU64,
    commit_ts: AtomicI64,
}

/// In place of an id, while the place is written.
const BUSY: u64 = 1;

impl Table {
    const fn empty() -> Self {
        Self([const { Place { id: AtomicU64::new(0), commit_ts: AtomicI64::new(0) } }; PLACES])
    }

    fn place(&self, xid: u32) -> &Place {
        &self.0[xid as usize % PLACES]
    }

    #[inline]
    fn find(&self, xid: u32, current: u64) -> Option<Commit> {
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

    fn note(&self, full_id: u64, commit: Commit) {
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

    fn found(table: &Table, full_id: u64, current: u64) -> Option<(i64, u16)> {
        table.find(full_id as u32, current).map(|commit| (commit.commit_ts, commit.origin))
    }

    #[test]
    fn a_commit_is_found_until_another_takes_its_place() {
        let table = Table::empty();
        assert_eq!(found(&table, 3, 4), None);
        table.note(3, commit(30));
        assert_eq!(found(&table, 3, 4), Some((30, 7)));
        let next = 3 + PLACES as u64;
        assert_eq!(found(&table, next, next), None);
        table.note(next, commit(31));
        assert_eq!((found(&table, 3, next), found(&table, next, next)), (None, Some((31, 7))));
    }

    #[test]
    fn an_id_that_has_come_round_again_is_another_transaction() {
        let table = Table::empty();
        for first in [3, 5 << 32 | u64::from(u32::MAX), u64::MAX - 9] {
            table.note(first, commit(1));
            assert_eq!(found(&table, first, first.wrapping_add(1 << 30)), Some((1, 7)));
            assert_eq!(found(&table, first, first.wrapping_add(1 << 31)), None);
            assert_eq!(found(&table, first, first.wrapping_add(1 << 32)), None);
        }
    }

    #[test]
    fn nobody_reads_what_is_half_written() {
        const IDS: u32 = 500_000;
        // All of them in one place.
        let table = &Table::empty();
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
