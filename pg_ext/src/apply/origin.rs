//! The replication origin of a marked session: its progress is how far the peer's stream is applied, and it goes forward
//! in the commit record of the very transaction that applied a record.
//!
//! From PostgreSQL 16 on, a transaction that *aborts* moves the progress forward, too, if the session's position is set
//! by then; and what it applied would be lost, because nobody would send it again. So the position is set in the last
//! moment that an extension has, and whatever fails between that moment and the commit record takes it back first.

use std::cell::Cell;
use std::ptr;

use pgrx::{PgSqlErrorCode, pg_guard, pg_sys};

use crate::backend_local::BackendLocal;
use crate::errors::{Failure, Result};

/// The offset after the record that the transaction now running applies; 0 for none.
static NEXT: BackendLocal<Cell<u64>> = BackendLocal::new(Cell::new(0));
/// What is told of an abort in time, from the moment that the position is set.
static GUARD: BackendLocal<Cell<pg_sys::Portal>> = BackendLocal::new(Cell::new(ptr::null_mut()));

/// The next offset to fetch, as the replication origin of this session says.
pub(crate) fn next_offset() -> u64 {
    // SAFETY: called only in a session whose origin is set up.
    unsafe { pg_sys::replorigin_session_get_progress(false) }
}

/// Takes note that the transaction now running is the peer's record at `offset`: the origin's progress and the rows'
/// version become durable with the commit. [`forget`] ends it, however the transaction ends.
pub(crate) fn stamp(offset: u64, commit_ts: pg_sys::TimestampTz) {
    NEXT.set(offset + 1);
    // SAFETY: a global of the backend, meant to be set so by whoever replays a transaction.
    unsafe { pg_sys::replorigin_session_origin_timestamp = commit_ts };
}

/// Takes note that the transaction now running writes rows of this version, and is no record of the stream: the origin's
/// progress stays where it is.
pub(crate) fn stamp_version(commit_ts: pg_sys::TimestampTz) {
    NEXT.set(0);
    // SAFETY: as in `stamp`.
    unsafe { pg_sys::replorigin_session_origin_timestamp = commit_ts };
}

/// What follows is not the peer's record any more: without this a later transaction of the session (a report, say)
/// would commit a progress that was rolled back, and a transaction would be lost.
pub(crate) fn forget() {
    NEXT.set(0);
    // SAFETY: as in `stamp`. Progress only ever goes forward, and so not to 0.
    unsafe {
        pg_sys::replorigin_session_origin_lsn = 0;
        pg_sys::replorigin_session_origin_timestamp = 0;
    }
}

/// The transaction is about to commit: deferred constraints hold, and code of users does not run any more. What can still
/// fail is the server's own (a queue of notifications that is full, a lock that is waited for, a cancel).
pub(crate) fn before_commit() {
    let next = NEXT.get();
    if next == 0 {
        return;
    }
    // SAFETY: inside a transaction; `stand_guard` may fail, and nothing is set then.
    unsafe {
        stand_guard();
        pg_sys::replorigin_session_origin_lsn = next;
    }
}

/// A prepared transaction would move the progress at once, and could still be rolled back.
///
/// # Errors
/// 0A000 if the transaction applies a record.
pub(crate) fn before_prepare() -> Result<()> {
    if NEXT.get() == 0 {
        return Ok(());
    }
    Err(Failure::new(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        "a transaction that applies a peer's change cannot be prepared",
    )
    .hint("Commit it: the peer prepared and committed it already."))
}

/// The transaction has committed.
pub(crate) fn committed() {
    forget();
    let guard = GUARD.replace(ptr::null_mut());
    if !guard.is_null() {
        // SAFETY: made in this transaction and dropped by nobody else, because it commits. It is neither pinned nor
        // active, and holds nothing, so this cannot fail.
        unsafe {
            (*guard).cleanup = None;
            pg_sys::PortalDrop(guard, true);
        }
    }
}

/// An abort calls back into extensions when its record is written already. Before that it cleans up the portals of the
/// transaction; hence one that has nothing but its cleanup.
unsafe fn stand_guard() {
    if cfg!(feature = "pg15") {
        // There an abort moves nothing.
        return;
    }
    // SAFETY: the name is NUL-terminated and copied; nobody else has a portal of this name, and one that did is replaced.
    unsafe {
        let guard = pg_sys::CreatePortal(c"pg_duplex: a record of a peer".as_ptr(), true, true);
        (*guard).cleanup = Some(at_abort);
        (*guard).visible = false;
        GUARD.set(guard);
    }
}

/// The server drops the portal itself, later.
#[pg_guard]
unsafe extern "C-unwind" fn at_abort(_guard: pg_sys::Portal) {
    GUARD.set(ptr::null_mut());
    forget();
}
