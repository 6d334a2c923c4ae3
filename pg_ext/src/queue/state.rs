//! How far the relay has come, durably: the one row of `duplex.drain_state`.

use duplex_protocol::record::Position;
use duplex_protocol::version::Timestamp;
use pgrx::datum::{DatumWithOid, TimestampWithTimeZone};
use pgrx::{PgSqlErrorCode, Spi};

use super::snapshot::Snapshot;
use crate::errors::{Failure, Result};

/// What `duplex.drain_state` holds.
#[derive(Debug)]
pub(crate) struct State {
    /// The take-over of the stream that this session stands for.
    pub(crate) generation: i64,
    /// All transactions that this sees are published.
    pub(crate) previous: Snapshot,
    /// The pass that was under way when the state was last written …
    pub(crate) current: Snapshot,
    /// … and the last transaction confirmed in it.
    pub(crate) confirmed: Position,
    /// Kafka offset of the last record confirmed.
    pub(crate) topic_offset: Option<i64>,
}

impl State {
    /// Takes the stream over: raises the generation and reads where the last relay stopped.
    pub(crate) fn take_over(newest_generation: i64) -> Result<Self> {
        Spi::connect_mut(|client| {
            let sql = "update duplex.drain_state \
                       set generation = greatest(generation, $1) + 1 \
                       returning generation, previous::text, current::text, lsn, xid, topic_offset";
            let mut rows = client.update(sql, Some(1), &[newest_generation.into()]).ok()?;
            let row = rows.next()?;
            let snapshot = |column| Snapshot::parse(&row.get::<String>(column).ok()??);
            let number = |column| row.get::<i64>(column).ok().flatten();
            Some(Self {
                generation: number(1)?,
                previous: snapshot(2)?,
                current: snapshot(3)?,
                confirmed: Position { lsn: number(4)? as u64, xid: number(5)? as u64 },
                topic_offset: number(6),
            })
        })
        .ok_or_else(|| {
            Failure::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "duplex.drain_state does not say how far the queue is published",
            )
            .hint("Call duplex.create_node('a name') if this database is not a node yet.")
        })
    }
}

/// Writes how far the relay has come, in the caller's transaction. With it goes the node's own watermark: who has this
/// state, a standby or a backup, has all transactions that are not later.
pub(crate) fn save(
    previous: &Snapshot,
    current: &Snapshot,
    confirmed: Position,
    topic_offset: i64,
    settled: Option<Timestamp>,
) -> Result<()> {
    let sql = "update duplex.drain_state \
               set previous = $1::pg_snapshot, current = $2::pg_snapshot, lsn = $3, xid = $4, topic_offset = $5, \
                   settled = greatest(settled, $6)";
    let arguments: [DatumWithOid<'_>; 6] = [
        previous.to_text().into(),
        current.to_text().into(),
        (confirmed.lsn as i64).into(),
        (confirmed.xid as i64).into(),
        topic_offset.into(),
        settled.and_then(|settled| TimestampWithTimeZone::try_from(settled).ok()).into(),
    ];
    Spi::run_with_args(sql, &arguments).map_err(|err| {
        Failure::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, format!("duplex.drain_state cannot be written: {err}"))
    })
}
