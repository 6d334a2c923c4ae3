//! What the drain needs of the server's clock, its WAL and its latch.

use std::time::Duration;

use duplex_protocol::version::Timestamp;
use pgrx::{PgSqlErrorCode, pg_sys};

use crate::errors::{Failure, Result};

/// Now, on this node's clock.
pub(crate) fn now() -> Timestamp {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// When the transaction committed: the very timestamp that its rows have here.
///
/// # Errors
/// 55000 if the server did not keep it.
pub(crate) fn commit_timestamp(xid: u64) -> Result<Timestamp> {
    let mut timestamp = 0;
    let mut origin = 0;
    // SAFETY: a look-up with two places to write to.
    let kept = unsafe { pg_sys::TransactionIdGetCommitTsData((xid as u32).into(), &mut timestamp, &mut origin) };
    if kept {
        return Ok(timestamp);
    }
    Err(Failure::new(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("the server has no commit timestamp of transaction {xid}"),
    )
    .detail("A change without its commit timestamp cannot be ordered among those of other nodes.")
    .hint("Set track_commit_timestamp = on and restart the server; never switch it off while tables are enabled."))
}

/// The full transaction id to come.
pub(crate) fn next_xid() -> u64 {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::ReadNextFullTransactionId().value }
}

/// Whether this database itself committed that transaction: the same id at the very same time. After a promotion ids
/// that the old primary had used are given out again, so the id alone does not tell. `next` is the id to come.
///
/// A transaction whose commit timestamp was forgotten is older than what a promotion can have lost.
pub(crate) fn has_committed(xid: u64, at: Timestamp, next: u64) -> bool {
    const HALF: u64 = 1 << 31;
    if xid >= next {
        return false;
    }
    let (mut timestamp, mut origin) = (0, 0);
    // SAFETY: a look-up with two places to write to; the id is one that was given out, and no further back than half
    // of the 32-bit space.
    let kept = next - xid < HALF
        && unsafe { pg_sys::TransactionIdGetCommitTsData((xid as u32).into(), &mut timestamp, &mut origin) };
    if kept {
        return timestamp == at;
    }
    // SAFETY: as above; a look-up of the oldest id whose timestamp is kept.
    let oldest = unsafe { oldest_kept(next) };
    oldest.is_none_or(|oldest| xid < oldest)
}

/// The oldest transaction id whose commit timestamp the server still has.
///
/// # Safety
/// Inside a transaction.
unsafe fn oldest_kept(next: u64) -> Option<u64> {
    // SAFETY: shared memory that the server keeps for its whole life; one aligned word, read as the server's own
    // monitoring reads it.
    let oldest: u32 = unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        let variables = pg_sys::ShmemVariableCache;
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        let variables = pg_sys::TransamVariables;
        (*variables).oldestCommitTsXid.into()
    };
    (oldest != 0).then(|| {
        let distance = (next as u32).wrapping_sub(oldest);
        next - u64::from(distance)
    })
}

/// Flushes all WAL written so far.
///
/// A transaction committed with `synchronous_commit = off` is visible before it is durable. What goes to Kafka must be
/// durable here first, or a crash would leave the peers with what this node never had.
pub(crate) fn flush_all() {
    // SAFETY: a plain call with a position that has been written.
    unsafe { pg_sys::XLogFlush(end_of_wal(pg_sys::GetXLogInsertRecPtr())) };
}

/// The end of the WAL before an insert position: at the start of a page the insert position lies behind the page's
/// header, which is not written yet and cannot be flushed.
fn end_of_wal(insert: u64) -> u64 {
    let in_page = insert % u64::from(pg_sys::XLOG_BLCKSZ);
    let header = size_of::<pg_sys::XLogPageHeaderData>().next_multiple_of(8) as u64;
    let long_header = size_of::<pg_sys::XLogLongPageHeaderData>().next_multiple_of(8) as u64;
    if in_page == header || in_page == long_header { insert - in_page } else { insert }
}

/// Sleeps, at most until a signal comes; raises the ERROR of a cancelled query or a terminated session.
pub(crate) fn nap(duration: Duration) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    let milliseconds = (duration.as_micros() as i64 + 999) / 1000;
    // SAFETY: waits on this process's own latch.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, milliseconds, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    pgrx::check_for_interrupts!();
}
