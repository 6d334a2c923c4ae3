//! Truncating a queue table whose rows are all published, and moving writers on to the next.
//!
//! Rows are never deleted one by one: no dead tuples, no vacuum debt, whatever holds old snapshots elsewhere.

use pgrx::{PgSqlErrorCode, Spi, pg_sys};

use super::page::{self, RowHead};
use super::segment::{self, Segment};
use super::snapshot::Snapshot;
use super::tables::{self, COUNT};
use crate::errors::{Failure, Result};
use crate::gucs;

/// Does what is due: truncates tables that writers have left, and moves writers on from a table that has grown.
///
/// Never waits for a writer: a TRUNCATE that waits would hold up every commit behind it.
pub(crate) fn rotate(segments: &[Segment; COUNT], published: &Snapshot, heads: &mut Vec<RowHead>) -> Result<()> {
    let Some(tables) = tables::lookup()? else { return Ok(()) };
    let blocks = tables.queue.map(|oid| with_open(oid, segment::block_count));
    for table in (0..COUNT).filter(|&table| table != tables.writing) {
        if blocks[table] > 0 && segments[table].looks_settled() && is_published(tables.queue[table], published, heads)?
        {
            run(&format!("truncate duplex.queue_{table}"))?;
        }
    }
    // Not always the next one: a prepared transaction that nobody ends holds its table for as long.
    let next = (1..COUNT).map(|step| (tables.writing + step) % COUNT).find(|&table| blocks[table] == 0);
    let written = u64::from(blocks[tables.writing]) * u64::from(pg_sys::BLCKSZ);
    if let Some(next) = next.filter(|_| written >= gucs::queue_segment_size()) {
        run(&format!("update duplex.queue_turn set writing = {next}"))?;
        // SAFETY: an open transaction; the message goes out with its commit.
        unsafe { pg_sys::CacheInvalidateRelcacheByRelid(tables.turn) };
    }
    Ok(())
}

/// Locks the table against writers, if that needs no waiting, and makes sure that none of its rows is still to be
/// published. The lock stays to the end of the transaction.
fn is_published(oid: pg_sys::Oid, published: &Snapshot, heads: &mut Vec<RowHead>) -> Result<bool> {
    // SAFETY: takes the lock or not, without waiting.
    if !unsafe { pg_sys::ConditionalLockRelationOid(oid, pg_sys::AccessExclusiveLock as _) } {
        return Ok(false);
    }
    with_open(oid, |relation| {
        for block in 0..segment::block_count(relation) {
            page::read_heads(relation, block, heads)?;
            if heads.iter().any(|head| !published.sees(head.position.xid)) {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

fn with_open<T>(oid: pg_sys::Oid, look: impl FnOnce(pg_sys::Relation) -> T) -> T {
    // SAFETY: opened and closed here; an ERROR in between closes it with the transaction.
    unsafe {
        let relation = pg_sys::table_open(oid, pg_sys::AccessShareLock as _);
        let result = look(relation);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as _);
        result
    }
}

fn run(sql: &str) -> Result<()> {
    Spi::run(sql).map_err(|err| {
        Failure::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, format!("the queue cannot be rotated: {err}"))
    })
}
