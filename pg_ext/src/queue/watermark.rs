//! What every record says of its node beside the changes: how far it had applied other streams, and its watermarks.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use duplex_protocol::record::{Header, Seen};
use duplex_protocol::version::Timestamp;
use pgrx::{PgSqlErrorCode, Spi, pg_sys};

use super::snapshot::Snapshot;
use super::wal;
use crate::errors::{Failure, Result};
use crate::node;

/// How often the list of peers is read again.
const PEERS_EVERY: Duration = Duration::from_secs(1);
/// How often a moment is noted down for the watermark.
const MOMENTS_EVERY: Duration = Duration::from_millis(100);
/// So many moments are kept at most. A transaction that stays open, a forgotten prepared one perhaps, holds all of them.
const MOST_MOMENTS: usize = 4096;

#[derive(Debug)]
struct Peer {
    name: String,
    /// Its replication origin; 0 as long as nothing of it was ever applied.
    origin: pg_sys::RepOriginId,
    /// The peer's own watermark, as last heard.
    settled: Timestamp,
}

/// Keeps what is needed to say so.
///
/// The watermark W comes from snapshots and not from the clock: a transaction takes its timestamp before it becomes
/// visible. W is the time at which an earlier snapshot was taken, once every transaction running then has ended.
#[derive(Debug, Default)]
pub(crate) struct Watermarks {
    moments: VecDeque<(u64, Timestamp)>,
    noted: Option<Instant>,
    settled: Option<Timestamp>,
    peers: Vec<Peer>,
    peers_read: Option<Instant>,
}

impl Watermarks {
    /// Takes note of a snapshot just taken.
    pub(crate) fn observe(&mut self, snapshot: &Snapshot) {
        while let Some(&(xmax, at)) = self.moments.front() {
            if snapshot.xmin < xmax {
                break;
            }
            self.settled = Some(at);
            self.moments.pop_front();
        }
        if self.noted.is_none_or(|noted| noted.elapsed() >= MOMENTS_EVERY) {
            self.noted = Some(Instant::now());
            self.moments.push_back((snapshot.xmax, wal::now()));
            if self.moments.len() > MOST_MOMENTS {
                let mut stays = true;
                self.moments.retain(|_| {
                    stays = !stays;
                    stays
                });
            }
        }
    }

    /// Fills in `seen`, `settled` and `held`. The progress of other streams is read after the snapshot was taken, so it
    /// covers all that the snapshot's transactions can have seen.
    pub(crate) fn stamp(&mut self, header: &mut Header) -> Result<()> {
        if self.peers_read.is_none_or(|read| read.elapsed() >= PEERS_EVERY) {
            self.peers = read_peers()?;
            self.peers_read = Some(Instant::now());
        }
        header.seen = self
            .peers
            .iter()
            .map(|peer| Seen { node: peer.name.clone(), next_offset: progress(peer.origin) })
            .collect();
        header.settled = self.settled.unwrap_or(i64::MIN);
        header.held = self.peers.iter().map(|peer| peer.settled).min().unwrap_or(i64::MAX).min(header.settled);
        Ok(())
    }
}

fn progress(origin: pg_sys::RepOriginId) -> u64 {
    if origin == 0 {
        return 0;
    }
    // SAFETY: looks up shared memory; an origin without progress gives 0.
    unsafe { pg_sys::replorigin_get_progress(origin, false) }
}

fn read_peers() -> Result<Vec<Peer>> {
    let sql = "select p.name, coalesce(o.roident::int8, 0), \
                      coalesce((extract(epoch from p.settled - '2000-01-01 00:00:00+00') * 1000000)::int8, $1) \
               from duplex.peer_registry p left join pg_catalog.pg_replication_origin o on o.roname = $2 || p.name \
               order by p.name";
    Spi::connect(|client| {
        let arguments = [i64::MIN.into(), node::origin_name("").into()];
        let rows = client.select(sql, None, &arguments)?;
        rows.map(|row| {
            Ok(Peer {
                name: row.get::<String>(1)?.unwrap_or_default(),
                origin: row.get::<i64>(2)?.unwrap_or(0) as pg_sys::RepOriginId,
                settled: row.get::<i64>(3)?.unwrap_or(i64::MIN),
            })
        })
        .collect::<std::result::Result<Vec<_>, pgrx::spi::Error>>()
    })
    .map_err(|err| {
        Failure::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, format!("duplex.peer_registry cannot be read: {err}"))
    })
}
