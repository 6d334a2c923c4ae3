//! Up to when what a table remembers may be forgotten.

use duplex_protocol::rules::forget::{Kept, Watermark, horizon};
use pgrx::{PgSqlErrorCode, Spi, pg_extern, pg_sys};

use crate::errors::{Failure, OrRaise as _};

/// `duplex.horizon_of(sums)`: by the watermarks that this node holds, in microseconds since 2000. For tables with counters or
/// merged columns, or for the others.
#[pg_extern(sql = "")]
fn horizon_of(sums: bool) -> Option<i64> {
    let kept = if sums { Kept::ForSums } else { Kept::ForVersions };
    let read = Spi::connect(|client| {
        let rows = client.select("select settled, held from duplex.watermarks", None, &[])?;
        rows.map(|row| Ok(Watermark { settled: row.get::<i64>(1)?, held: row.get::<i64>(2)? }))
            .collect::<Result<Vec<_>, pgrx::spi::Error>>()
    });
    let all = read
        .map_err(|err| {
            Failure::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, format!("duplex.watermarks cannot be read: {err}"))
        })
        .or_raise();
    horizon(kept, all)
}

/// `duplex.register_is_empty(register)`: whether its file has no length. Waits for nobody: a register that somebody has
/// for himself, to make it anew or to cut it off, counts as one that is not.
#[pg_extern(sql = "")]
fn register_is_empty(register: pg_sys::Oid) -> bool {
    let lock = pg_sys::AccessShareLock.cast_signed();
    // SAFETY: inside a transaction; the lock is given back with the relation, or by itself if there is none any more.
    unsafe {
        if !pg_sys::ConditionalLockRelationOid(register, lock) {
            return false;
        }
        let relation = pg_sys::try_table_open(register, pg_sys::NoLock.cast_signed());
        if relation.is_null() {
            pg_sys::UnlockRelationOid(register, lock);
            return true;
        }
        let blocks = pg_sys::RelationGetNumberOfBlocksInFork(relation, pg_sys::ForkNumber::MAIN_FORKNUM);
        pg_sys::table_close(relation, lock);
        blocks == 0
    }
}
