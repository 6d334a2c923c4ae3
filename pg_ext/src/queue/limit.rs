//! The limit of the queue's size, for those who would rather stop writing than fill the disk.

use pgrx::{PgSqlErrorCode, pg_sys};

use super::segment::block_count;
use super::tables::Tables;
use crate::errors::{Failure, Result};
use crate::gucs::{self, QueueFull};

/// Warns or refuses if the queue's tables are beyond `duplex.queue_max_bytes`. Costs nothing without a limit.
///
/// What counts is the size on disk, published rows that are not truncated yet included: that is what fills a disk, and
/// asking for it needs no look at rows.
///
/// # Errors
/// 53400 if the queue is full and `duplex.queue_full` is `refuse`.
#[inline]
pub(crate) fn check(tables: &Tables) -> Result<()> {
    match gucs::queue_limit() {
        Some((limit, policy)) => check_size(tables, limit, policy),
        None => Ok(()),
    }
}

#[inline(never)]
fn check_size(tables: &Tables, limit: u64, policy: QueueFull) -> Result<()> {
    let size: u64 = tables.queue.iter().map(|&oid| size(oid)).sum();
    if size <= limit {
        return Ok(());
    }
    let message =
        format!("the queue of pg_duplex has {} kB, and duplex.queue_max_bytes allows {} kB", size >> 10, limit >> 10);
    let hint = "What is captured waits for the relay and Kafka: see duplex.queue_status and whether both are up, or raise \
                duplex.queue_max_bytes.";
    match policy {
        QueueFull::Warn => {
            pgrx::ereport!(
                pgrx::PgLogLevel::WARNING,
                PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                message,
                hint
            );
            Ok(())
        }
        QueueFull::Refuse => {
            Err(Failure::new(PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, message).hint(hint))
        }
    }
}

fn size(oid: pg_sys::Oid) -> u64 {
    // SAFETY: opened and closed here, with the lock that a writer takes anyway.
    unsafe {
        let relation = pg_sys::table_open(oid, pg_sys::RowExclusiveLock as _);
        let blocks = block_count(relation);
        pg_sys::table_close(relation, pg_sys::RowExclusiveLock as _);
        u64::from(blocks) * u64::from(pg_sys::BLCKSZ)
    }
}
