//! The version of the row that a change replaces, from the transaction that had written it.

use std::cell::Cell;
use std::ffi::{CStr, CString};

use duplex_protocol::entry::Replaced;
use duplex_protocol::version::Timestamp;
use pgrx::pg_sys;

use super::transaction;
use crate::node;

unsafe extern "C-unwind" {
    // Neither raises an ERROR; the bindings' guards would cost each row more than they do.
    fn TransactionIdIsCurrentTransactionId(xid: pg_sys::TransactionId) -> bool;
    fn GetTopFullTransactionIdIfAny() -> pg_sys::FullTransactionId;
}

/// A row of this node's own.
const LOCAL: u32 = 0;

/// The version of an old tuple.
///
/// # Safety
/// `tuple` is a valid heap tuple as it was in its table.
#[inline]
pub(super) unsafe fn version(tuple: pg_sys::HeapTuple) -> Replaced {
    // The raw id: a frozen row still has it.
    // SAFETY: a tuple from a table holds the heap's fields, not those of a datum.
    let xmin = unsafe { (*(*tuple).t_data).t_choice.t_heap.t_xmin };
    if let Some(known) = transaction::known_version(xmin.into_inner()) {
        return known;
    }
    let version = look_up(xmin);
    transaction::remember_version(xmin.into_inner(), version);
    version
}

/// A version that was written down: without a name it is this node's.
pub(super) fn written(commit_ts: Timestamp, peer: Option<&str>) -> Replaced {
    let origin = match peer.map(|peer| CString::new(node::origin_name(peer))) {
        None => LOCAL,
        // SAFETY: a catalog lookup inside a transaction; the name ends in NUL.
        Some(Ok(name)) => match unsafe { pg_sys::replorigin_by_name(name.as_ptr(), true) } {
            0 => return Replaced::Ancient,
            origin => sender_of(u32::from(origin)),
        },
        Some(Err(_)) => return Replaced::Ancient,
    };
    if commit_ts == Timestamp::MIN { Replaced::Ancient } else { Replaced::Version { commit_ts, origin } }
}

/// The version of what a transaction wrote.
pub(super) fn of_transaction(xid: pg_sys::TransactionId) -> Replaced {
    look_up(xid)
}

fn look_up(xmin: pg_sys::TransactionId) -> Replaced {
    // SAFETY: a lookup by transaction id.
    if unsafe { TransactionIdIsCurrentTransactionId(xmin) } {
        return Replaced::SameTransaction;
    }
    match commit_of(xmin) {
        Some(Commit { commit_ts, origin, .. }) => Replaced::Version { commit_ts, origin: sender_of(origin) },
        None => Replaced::Ancient,
    }
}

/// When and from where a transaction was committed, which never changes.
#[derive(Debug, Clone, Copy)]
struct Commit {
    xid: pg_sys::TransactionId,
    commit_ts: Timestamp,
    origin: u32,
    /// The transaction in which it was looked up; 0 in a place that is free.
    asked_by: u64,
}

/// So many are kept, each in the one place that its id says.
const KEPT: usize = 128;
/// Ids come round again after four times as many.
const VALID: u64 = 1 << 30;

thread_local! {
    static COMMITS: Cell<[Commit; KEPT]> = const {
        Cell::new([Commit { xid: pg_sys::TransactionId::INVALID, commit_ts: 0, origin: 0, asked_by: 0 }; KEPT])
    };
}

/// What the server knows of a commit. Of the transactions that wrote the rows which a session changes some come again and
/// again (a load, its own last ones), and the server goes through hundreds of pages in memory for each, or reads a file.
fn commit_of(xid: pg_sys::TransactionId) -> Option<Commit> {
    COMMITS.with(|commits| {
        let place = &commits.as_array_of_cells()[xid.into_inner() as usize % KEPT];
        // SAFETY: a plain read of the backend's state: this transaction has written a row, so it has an id.
        let asked_by = unsafe { GetTopFullTransactionIdIfAny().value };
        let kept = place.get();
        if kept.xid == xid && kept.asked_by != 0 && asked_by.wrapping_sub(kept.asked_by) < VALID {
            return Some(kept);
        }
        let (mut commit_ts, mut origin) = (0, 0);
        // SAFETY: a lookup by transaction id, which raises an ERROR while timestamps are not tracked and for id 0.
        let is_known = unsafe {
            pg_sys::track_commit_timestamp
                && xid != pg_sys::TransactionId::INVALID
                && pg_sys::TransactionIdGetCommitTsData(xid, &mut commit_ts, &mut origin)
        };
        let commit = Commit { xid, commit_ts, origin: u32::from(origin), asked_by };
        is_known.then(|| {
            place.set(commit);
            commit
        })
    })
}

/// The number by which the body refers to the node behind a replication origin. An origin of somebody else's is nobody
/// that the peers know: what it brought was first written here.
fn sender_of(origin: u32) -> u32 {
    if origin == LOCAL {
        return LOCAL;
    }
    let is_peer = transaction::known_origin(origin).unwrap_or_else(|| {
        let peer = peer_name(origin);
        let is_peer = peer.is_some();
        transaction::remember_origin(origin, peer);
        is_peer
    });
    if is_peer { origin } else { LOCAL }
}

fn peer_name(origin: u32) -> Option<String> {
    let mut name = std::ptr::null_mut();
    // SAFETY: a catalog lookup inside a transaction; the name is a palloc'd string that ends in NUL.
    let name = unsafe {
        if !pg_sys::replorigin_by_oid(origin as pg_sys::RepOriginId, true, &mut name) {
            return None;
        }
        CStr::from_ptr(name)
    };
    node::peer_of_origin(name.to_str().ok()?).map(str::to_owned)
}
