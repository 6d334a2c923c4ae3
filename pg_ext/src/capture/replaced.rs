//! The version of the row that a change replaces, from the transaction that had written it.

use std::ffi::{CStr, CString};

use duplex_protocol::entry::Replaced;
use duplex_protocol::version::Timestamp;
use pgrx::pg_sys;

use super::transaction;
use crate::commits::{self, Commit};
use crate::node;

unsafe extern "C-unwind" {
    // Raises no ERROR; the binding's guard would cost each row more than it does.
    fn TransactionIdIsCurrentTransactionId(xid: pg_sys::TransactionId) -> bool;
}

/// A row of this node's own.
const LOCAL: u32 = 0;

/// Says that [`version`] will be asked for this tuple's soon.
///
/// # Safety
/// As [`version`].
#[inline]
pub(super) unsafe fn expect(tuple: pg_sys::HeapTuple) {
    // SAFETY: as the caller promises.
    unsafe { commits::expect(writer(tuple)) };
}

/// The transaction that wrote a tuple: the raw id, which a frozen row still has.
#[inline]
unsafe fn writer(tuple: pg_sys::HeapTuple) -> pg_sys::TransactionId {
    // SAFETY: a tuple from a table holds the heap's fields, not those of a datum.
    unsafe { (*(*tuple).t_data).t_choice.t_heap.t_xmin }
}

/// The version of an old tuple.
///
/// # Safety
/// `tuple` is a valid heap tuple as it was in its table.
#[inline]
pub(super) unsafe fn version(tuple: pg_sys::HeapTuple) -> Replaced {
    // SAFETY: as the caller promises.
    let xmin = unsafe { writer(tuple) };
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
    match commits::find(xmin) {
        Some(Commit { commit_ts, origin }) => Replaced::Version { commit_ts, origin: sender_of(origin.into()) },
        None => Replaced::Ancient,
    }
}

/// The number by which the body refers to the node behind a replication origin. An origin of somebody else's is nobody
/// that the peers know: what it brought was first written here.
#[inline]
fn sender_of(origin: u32) -> u32 {
    if origin == LOCAL { LOCAL } else { sender_behind(origin) }
}

#[inline(never)]
fn sender_behind(origin: u32) -> u32 {
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
