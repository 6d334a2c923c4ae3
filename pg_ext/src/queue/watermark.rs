//! What every record says of its node beside the changes: how far it had applied other streams, and its watermarks.
//!
//! The watermark W promises that nothing stamped at or before it will follow in the topic. A transaction gets its
//! timestamp on the way to its commit, and becomes visible later: it may wait for the disk or for a standby. So W is no
//! clock's reading. It is a moment of which three things are known, one after the other:
//!
//! 1. Whoever had a timestamp by then had written to the queue before, and holds its lock on the queue to its end. So
//!    all who held one right after that moment are noted: nobody else can turn up with a timestamp as old. A
//!    transaction that is open for hours and has not come to its commit is none of them, and holds nothing back.
//! 2. All of them have ended, and then a snapshot was taken, which sees what they left.
//! 3. The pass over that snapshot is over: all of it is in the topic.
//!
//! A prepared transaction keeps its locks, and whether it is on its way to its commit nobody can see from outside. One
//! with captured changes holds W back for as long as it is prepared; others do not.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use duplex_protocol::record::{Header, Seen};
use duplex_protocol::version::Timestamp;
use pgrx::{PgSqlErrorCode, Spi, pg_sys};

use super::segment::{self, Writer};
use super::snapshot::Snapshot;
use super::tables::COUNT;
use super::wal;
use crate::apply::own::with_own_tables;
use crate::errors::{Failure, Result};
use crate::{gucs, node};

/// How often the list of peers is read again.
const PEERS_EVERY: Duration = Duration::from_secs(1);
/// How often a moment is noted down for the watermark, and looked whether older ones are settled.
const MOMENTS_EVERY: Duration = Duration::from_millis(100);
/// So many moments are kept at most. A prepared transaction that is forgotten holds all of them.
const MOST_MOMENTS: usize = 1024;
/// How often the watermark is written down where nothing waits for it.
const WRITTEN_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Peer {
    name: String,
    /// Its replication origin; 0 as long as nothing of it was ever applied.
    origin: pg_sys::RepOriginId,
}

/// A moment, and who may turn up with a timestamp that is not later.
#[derive(Debug)]
struct Moment {
    at: Timestamp,
    writers: Vec<Writer>,
}

/// Keeps what is needed to say so.
#[derive(Debug)]
pub(crate) struct Watermarks {
    moments: VecDeque<Moment>,
    noted: Option<Instant>,
    /// The newest moment whose writers have ended. A snapshot taken from now on sees all that is not later.
    ended: Option<Timestamp>,
    /// W: all that is not later is in the topic.
    settled: Option<Timestamp>,
    peers: Vec<Peer>,
    peers_read: Option<Instant>,
    /// S, as it was when the peers were read.
    held: Option<Timestamp>,
    last_beat: Instant,
    last_written: Option<Instant>,
}

impl Watermarks {
    /// Knows nothing yet: a relay has just taken the stream over.
    pub(crate) fn new() -> Self {
        Self {
            moments: VecDeque::new(),
            noted: None,
            ended: None,
            settled: None,
            peers: Vec::new(),
            peers_read: None,
            held: None,
            last_beat: Instant::now(),
            last_written: None,
        }
    }

    /// To be called right before a snapshot is taken: what that snapshot is known to see in full. Notes a moment.
    pub(crate) fn before_snapshot(&mut self, queue: &[pg_sys::Relation; COUNT]) -> Option<Timestamp> {
        if self.noted.is_none_or(|noted| noted.elapsed() >= MOMENTS_EVERY) {
            self.noted = Some(Instant::now());
            let at = just_now();
            let writers: Vec<Writer> = queue.iter().flat_map(|&relation| segment::holders(relation)).collect();
            while let Some(moment) = self.moments.front_mut() {
                moment.writers.retain(|writer| writers.contains(writer));
                if !moment.writers.is_empty() {
                    break;
                }
                self.ended = Some(moment.at);
                self.moments.pop_front();
            }
            self.moments.push_back(Moment { at, writers });
            self.thin_out();
        }
        self.ended
    }

    /// Every other one will do where there are too many.
    fn thin_out(&mut self) {
        if self.moments.len() > MOST_MOMENTS {
            let mut stays = true;
            self.moments.retain(|_| {
                stays = !stays;
                stays
            });
        }
    }

    /// All that is not later than this is in the topic.
    pub(crate) fn settle(&mut self, at: Option<Timestamp>) {
        self.settled = self.settled.max(at);
    }

    /// All that `published` sees is in the topic. If no transaction has begun since, that goes for this very moment.
    pub(crate) fn settle_quiet(&mut self, published: &Snapshot) -> bool {
        let now = just_now();
        let quiet = published.is_current();
        if quiet {
            self.settled = self.settled.max(Some(now));
            self.moments.clear();
            self.ended = Some(now);
        }
        quiet
    }

    /// W, if it is known.
    pub(crate) fn settled(&self) -> Option<Timestamp> {
        self.settled
    }

    /// Whether it is time to publish the watermarks.
    pub(crate) fn beat_is_due(&self) -> bool {
        self.last_beat.elapsed() >= gucs::heartbeat_interval()
    }

    /// Takes note that they are published.
    pub(crate) fn beaten(&mut self) {
        self.last_beat = Instant::now();
    }

    /// Whether W is to be written down: now and then, and at once where something here waits for it.
    pub(crate) fn writing_is_due(&self) -> Result<bool> {
        Ok(self.last_written.is_none_or(|written| written.elapsed() >= WRITTEN_EVERY) || is_wanted(None)?)
    }

    /// Takes note that W is written down.
    pub(crate) fn written(&mut self) {
        self.last_written = Some(Instant::now());
    }

    /// Fills in `seen`, `settled` and `held`. The progress of other streams is read after the snapshot was taken, so it
    /// covers all that the snapshot's transactions can have seen.
    pub(crate) fn stamp(&mut self, header: &mut Header) -> Result<()> {
        if self.peers_read.is_none_or(|read| read.elapsed() >= PEERS_EVERY) {
            self.read_peers()?;
            self.peers_read = Some(Instant::now());
        }
        header.seen = self
            .peers
            .iter()
            .map(|peer| Seen { node: peer.name.clone(), next_offset: progress(peer.origin) })
            .collect();
        header.settled = self.settled.unwrap_or(i64::MIN);
        header.held = self.held.unwrap_or(i64::MIN).min(header.settled);
        Ok(())
    }

    fn read_peers(&mut self) -> Result<()> {
        let sql = "select p.name, coalesce(o.roident::int8, 0) \
                     from duplex.peer_registry p left join pg_catalog.pg_replication_origin o on o.roname = $1 || p.name \
                    order by p.name";
        // What waits in duplex.parked is not applied, whatever its node has settled since.
        let least = "select case when count(*) = count(w.settled) then coalesce(min(w.settled), 9223372036854775807) end \
                       from duplex.watermarks w where not w.own";
        let read = Spi::connect(|client| {
            let arguments = [node::origin_name("").into()];
            let peers = client
                .select(sql, None, &arguments)?
                .map(|row| {
                    Ok(Peer {
                        name: row.get::<String>(1)?.unwrap_or_default(),
                        origin: row.get::<i64>(2)?.unwrap_or(0) as pg_sys::RepOriginId,
                    })
                })
                .collect::<std::result::Result<Vec<_>, pgrx::spi::Error>>()?;
            let held = client.select(least, None, &[])?.first().get_one::<i64>()?;
            Ok::<_, pgrx::spi::Error>((peers, held))
        });
        (self.peers, self.held) = read.map_err(|err| unreadable(&err))?;
        Ok(())
    }
}

/// A moment that is over: nobody is stamped with it any more who did not hold a lock when the clock was read. To be read
/// before anything is looked at.
fn just_now() -> Timestamp {
    wal::now() - 1
}

/// Whether a watermark, of a peer or of this node itself, is what something that could be forgotten here waits for.
///
/// # Errors
/// If the tables of schema `duplex` cannot be read.
pub(crate) fn is_wanted(peer: Option<&str>) -> Result<bool> {
    let sql = "select duplex.watermark_is_wanted($1)";
    // Read only: pgrx would give a query of any other kind a transaction id, which is a commit in the WAL.
    let wanted =
        with_own_tables(|| Spi::connect(|client| client.select(sql, None, &[peer.into()])?.first().get_one::<bool>()));
    wanted.map(|wanted| wanted == Some(true)).map_err(|err| unreadable(&err))
}

fn unreadable(err: &pgrx::spi::Error) -> Failure {
    Failure::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, format!("what peers have said cannot be read: {err}"))
}

fn progress(origin: pg_sys::RepOriginId) -> u64 {
    if origin == 0 {
        return 0;
    }
    // SAFETY: looks up shared memory; an origin without progress gives 0.
    unsafe { pg_sys::replorigin_get_progress(origin, false) }
}
