//! When and from where transactions were committed, which never changes.
//!
//! The server is asked last: it goes through hundreds of pages in memory under a lock for each answer, or reads a file.

mod recent;

use std::cell::Cell;

use duplex_protocol::version::Timestamp;
use pgrx::pg_sys;

use crate::backend_local::BackendLocal;

pub(crate) use recent::{expect, join};

unsafe extern "C-unwind" {
    // Raises no ERROR; the binding's guard would cost each row more than it does.
    fn GetTopFullTransactionIdIfAny() -> pg_sys::FullTransactionId;
}

/// A transaction that has committed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Commit {
    pub(crate) commit_ts: Timestamp,
    /// The replication origin, as its number in this cluster; 0 for what was written here.
    pub(crate) origin: u16,
}

/// Answers are good for as many transactions as these low bits of their ids count: ids come round again after four times
/// as many.
const VALID_BITS: u32 = 30;

/// The full id of this session's transaction; 0 if it has none.
fn current_id() -> u64 {
    // SAFETY: a plain read of the backend's state.
    unsafe { GetTopFullTransactionIdIfAny().value }
}

/// When and from where a transaction was committed. `None` if the server does not know any more: long ago.
#[unsafe(link_section = ".text.duplex_hot")]
pub(crate) fn find(xid: pg_sys::TransactionId) -> Option<Commit> {
    if xid < pg_sys::TransactionId::FIRST_NORMAL {
        return None;
    }
    let asked_by = current_id();
    if asked_by == 0 {
        // This transaction has written nothing yet, and does not tell which time round the ids are.
        return ask(xid);
    }
    recent::find(xid, asked_by).or_else(|| asked_before(xid, asked_by))
}

/// Says that [`note`] will come soon, for this transaction.
#[inline]
pub(crate) fn expect_own() {
    recent::expect((current_id() as u32).into());
}

/// This transaction has just been committed. Who sets the time of its commits says so before it takes that back; whoever comes
/// later finds no time, and leaves it.
pub(crate) fn note() {
    if !recent::is_noted() {
        return;
    }
    // SAFETY: plain reads of the backend's state. The server has just written the commit down with these two: where there
    // is no origin, it sets the time itself (`RecordTransactionCommit` in `access/transam/xact.c`).
    let (id, commit) = unsafe {
        let commit_ts = pg_sys::replorigin_session_origin_timestamp;
        (current_id(), Commit { commit_ts, origin: pg_sys::replorigin_session_origin })
    };
    if id != 0 && commit.commit_ts != 0 {
        recent::note(id, commit);
    }
}

/// What the server answered.
#[derive(Debug, Clone, Copy)]
struct Answer {
    xid: pg_sys::TransactionId,
    commit: Commit,
    /// The transaction in which it was asked for; 0 in a place that is free.
    asked_by: u64,
}

/// So many answers are kept, each in the one place that its id says.
const KEPT: usize = 128;

const FREE: Answer =
    Answer { xid: pg_sys::TransactionId::INVALID, commit: Commit { commit_ts: 0, origin: 0 }, asked_by: 0 };

static ANSWERS: BackendLocal<Cell<[Answer; KEPT]>> = BackendLocal::new(Cell::new([FREE; KEPT]));

/// What the server knows. A transaction that wrote many rows, a load, is asked for again and again.
fn asked_before(xid: pg_sys::TransactionId, asked_by: u64) -> Option<Commit> {
    let place = &ANSWERS.as_array_of_cells()[xid.into_inner() as usize % KEPT];
    let kept = place.get();
    if kept.xid == xid && kept.asked_by != 0 && asked_by.wrapping_sub(kept.asked_by) >> VALID_BITS == 0 {
        return Some(kept.commit);
    }
    let commit = ask(xid)?;
    place.set(Answer { xid, commit, asked_by });
    Some(commit)
}

#[cold]
fn ask(xid: pg_sys::TransactionId) -> Option<Commit> {
    let (mut commit_ts, mut origin) = (0, 0);
    // SAFETY: a lookup by transaction id, which raises an ERROR while timestamps are not tracked.
    let is_known = unsafe {
        pg_sys::track_commit_timestamp && pg_sys::TransactionIdGetCommitTsData(xid, &mut commit_ts, &mut origin)
    };
    is_known.then_some(Commit { commit_ts, origin })
}
