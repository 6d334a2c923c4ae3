//! The functions that the relay calls to get at the queue: `duplex.drain_open`, `drain`, `drain_confirm`.
//!
//! What a session has handed out lives in its memory; what Kafka has acknowledged is durable in `duplex.drain_state`.
//! An ERROR forgets the session's memory, and the relay opens the drain again.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use duplex_protocol::record::{Header, Hello, Kind, Position};
use pgrx::iter::{SetOfIterator, TableIterator};
use pgrx::{Array, PgSqlErrorCode, Spi, name, pg_extern, pg_sys};

use super::descriptors::Descriptors;
use super::page::RowHead;
use super::pass::Pass;
use super::segment::Segment;
use super::snapshot::Snapshot;
use super::state::{self, State};
use super::tables::{self, COUNT};
use super::watermark::Watermarks;
use super::{doorbell, rotate, short, wal};
use crate::backend_local::BackendLocal;
use crate::errors::{Failure, OrRaise as _, Result};
use crate::node::{self, Node};

/// Key of the advisory lock that the one active relay of a database holds, as (class, object).
const DRAIN_LOCK: (i32, i32) = (0x6475_7078, 1);

/// How often the queue's tail is looked at while transactions come in.
const POLL_BUSY: Duration = Duration::from_millis(1);
/// After so long without one the drain waits for the bell. An application that commits less often pays for ringing it, some
/// microseconds; one that commits more often would make it dear.
const REST_AFTER: Duration = Duration::from_millis(20);
/// How often it looks even so, for those that cannot ring.
const POLL_RESTING: Duration = Duration::from_millis(20);
/// How often an idle drain sees whether a table can be truncated that could not be at the last confirm.
const ROTATE_EVERY: Duration = Duration::from_secs(1);

/// What this session has drained.
#[derive(Debug)]
struct Drain {
    /// What all records of this session have in common; position and chunk are filled in.
    template: Header,
    /// All that this sees is published and confirmed.
    previous: Snapshot,
    pass: Option<Pass>,
    segments: [Segment; COUNT],
    watermarks: Watermarks,
    /// The newest transaction handed out, until it is confirmed.
    outstanding: Option<Position>,
    /// The last transaction confirmed in the pass that is under way.
    confirmed: Option<Position>,
    last_found: Instant,
    last_rotated: Instant,
    heads: Vec<RowHead>,
    descriptors: Descriptors,
}

static DRAIN: BackendLocal<RefCell<Option<Drain>>> = BackendLocal::new(RefCell::new(None));

#[pg_extern(sql = false)]
fn drain_open(
    newest_generation: i64,
) -> TableIterator<
    'static,
    (name!(node, String), name!(generation, i64), name!(topic_offset, Option<i64>), name!(hello, Vec<u8>)),
> {
    TableIterator::once(open(newest_generation).or_raise())
}

#[pg_extern(sql = false)]
fn drain(wait_ms: i32, max_bytes: i32) -> SetOfIterator<'static, Vec<u8>> {
    let deadline = Instant::now() + Duration::from_millis(wait_ms.max(0) as u64);
    let mut drain = take_drain().or_raise();
    let records = drain.records(deadline, max_bytes.max(1) as usize).or_raise();
    DRAIN.set(Some(drain));
    SetOfIterator::new(records)
}

#[pg_extern(sql = false)]
fn drain_confirm(lsn: i64, xid: i64, topic_offset: i64) {
    let mut drain = take_drain().or_raise();
    drain.confirm(Position { lsn: lsn as u64, xid: xid as u64 }, topic_offset).or_raise();
    DRAIN.set(Some(drain));
}

#[pg_extern(sql = false)]
fn drain_missing(xids: Array<'_, i64>, commit_ts: Array<'_, i64>) -> SetOfIterator<'static, bool> {
    let next = wal::next_xid();
    let missing: Vec<bool> = xids
        .iter()
        .zip(commit_ts.iter())
        .map(|(xid, commit_ts)| match (xid, commit_ts) {
            (Some(xid), Some(commit_ts)) => !wal::has_committed(xid as u64, commit_ts, next),
            _ => false,
        })
        .collect();
    SetOfIterator::new(missing)
}

fn take_drain() -> Result<Drain> {
    DRAIN.take().ok_or_else(|| {
        Failure::new(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, "this session does not drain the queue")
            .hint("Call duplex.drain_open first; after an error, call it again.")
    })
}

fn open(newest_generation: i64) -> Result<(String, i64, Option<i64>, Vec<u8>)> {
    DRAIN.set(None);
    node::refuse_standby()?;
    let node = Node::load()?;
    let (class, object) = DRAIN_LOCK;
    let locked = Spi::get_one::<bool>(&format!("select pg_try_advisory_lock({class}, {object})"));
    if !matches!(locked, Ok(Some(true))) {
        return Err(Failure::new(
            PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
            format!("node \"{}\" is already drained by another session", node.name),
        )
        .hint("One relay a node is active; this one may stand by and try again."));
    }
    let state = State::take_over(newest_generation)?;
    let now = wal::now();
    let template = Header {
        kind: Kind::Transaction,
        node: node.name.clone(),
        generation: state.generation as u64,
        position: Position { lsn: 0, xid: 0 },
        chunk: 0,
        last: true,
        commit_ts: now,
        seen: Vec::new(),
        settled: i64::MIN,
        held: i64::MIN,
        expanded_len: None,
    };
    let hello = Hello { node_id: node.id, extension_version: env!("CARGO_PKG_VERSION").to_owned() };
    let hello = Header { kind: Kind::Hello, ..template.clone() }.encode_record(&hello.encode());
    DRAIN.set(Some(Drain {
        template,
        previous: state.previous,
        pass: Some(Pass::begin(state.current, None, Some(state.confirmed))),
        segments: Default::default(),
        watermarks: Watermarks::new(),
        outstanding: None,
        confirmed: Some(state.confirmed),
        last_found: Instant::now(),
        last_rotated: Instant::now(),
        heads: Vec::new(),
        descriptors: Descriptors::default(),
    }));
    Ok((node.name, state.generation, state.topic_offset, hello))
}

impl Drain {
    /// The next records, at least one unless the deadline passes first or the rest of the pass waits for a confirm.
    fn records(&mut self, deadline: Instant, max_bytes: usize) -> Result<Vec<Vec<u8>>> {
        let Some(tables) = tables::lookup()? else {
            return Err(Failure::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "the extension pg_duplex is gone from this database",
            ));
        };
        // SAFETY: closed below; an ERROR in between closes them with the transaction.
        let relations = tables.queue.map(|oid| unsafe { pg_sys::table_open(oid, pg_sys::AccessShareLock as _) });
        let records = self.wait_for_records(&relations, deadline, max_bytes)?;
        for relation in relations {
            // SAFETY: opened above.
            unsafe { pg_sys::table_close(relation, pg_sys::AccessShareLock as _) };
        }
        if !records.is_empty() {
            wal::flush_all();
        } else if self.outstanding.is_none() && self.last_rotated.elapsed() >= ROTATE_EVERY {
            // A queue that is at its limit gets no more transactions, and so no more confirms that would do it.
            self.rotate()?;
        }
        Ok(records)
    }

    fn rotate(&mut self) -> Result<()> {
        self.last_rotated = Instant::now();
        rotate::rotate(&self.segments, &self.previous, &mut self.heads)
    }

    fn wait_for_records(
        &mut self,
        relations: &[pg_sys::Relation; COUNT],
        deadline: Instant,
        max_bytes: usize,
    ) -> Result<Vec<Vec<u8>>> {
        loop {
            if let Some(pass) = &mut self.pass {
                if pass.list(relations, &mut self.segments, &self.previous, &mut self.heads)? {
                    self.last_found = Instant::now();
                    return self.hand_out(relations, max_bytes);
                }
                if self.outstanding.is_some() {
                    return Ok(Vec::new());
                }
                self.finish_pass();
            }
            // On a server where nobody writes there is nothing to look for, and looking is what an idle relay costs.
            if !self.watermarks.settle_quiet(&self.previous) && self.begin_pass(relations)? {
                continue;
            }
            if self.watermarks.beat_is_due() {
                return Ok(vec![self.heartbeat()?]);
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(Vec::new());
            }
            let poll = if now - self.last_found < REST_AFTER {
                POLL_BUSY
            } else if doorbell::rest() {
                // Who committed since the last look has not rung.
                continue;
            } else {
                POLL_RESTING
            };
            wal::nap(poll.min(deadline - now));
        }
    }

    /// Begins a pass over what has ended since the last one. Returns whether it found anything.
    fn begin_pass(&mut self, relations: &[pg_sys::Relation; COUNT]) -> Result<bool> {
        let settles = self.watermarks.before_snapshot(relations);
        let mut pass = Pass::begin(Snapshot::take(), settles, None);
        let found = pass.list(relations, &mut self.segments, &self.previous, &mut self.heads)?;
        self.pass = Some(pass);
        Ok(found)
    }

    fn hand_out(&mut self, relations: &[pg_sys::Relation; COUNT], max_bytes: usize) -> Result<Vec<Vec<u8>>> {
        let mut records = Vec::new();
        // Between two transactions only. What it promises goes for what the pass before has published.
        if self.outstanding.is_none() && self.watermarks.beat_is_due() {
            records.push(self.heartbeat()?);
        } else {
            self.watermarks.stamp(&mut self.template)?;
        }
        let pass = self.pass.as_mut().expect("handing out follows listing");
        let mut bytes = 0;
        let mut body = Vec::new();
        while bytes < max_bytes {
            body.clear();
            let Some(chunk) = pass.next_chunk(relations, &mut body)? else { break };
            self.template.position = chunk.position;
            self.template.chunk = chunk.chunk;
            self.template.last = chunk.last;
            if chunk.expanded_len < 0 {
                let notes = chunk.expanded_len.unsigned_abs() as usize;
                let payload = std::mem::take(&mut body);
                short::restore(&payload, notes, &mut body, |digest| self.descriptors.get(digest))?;
            }
            self.template.expanded_len = u32::try_from(chunk.expanded_len).ok().filter(|&len| len > 0);
            self.template.commit_ts = wal::commit_timestamp(chunk.position.xid)?;
            let record = self.template.encode_record(&body);
            bytes += record.len();
            records.push(record);
            self.outstanding = Some(chunk.position);
        }
        Ok(records)
    }

    /// What this node says of itself, by itself.
    fn heartbeat(&mut self) -> Result<Vec<u8>> {
        self.watermarks.stamp(&mut self.template)?;
        self.watermarks.beaten();
        let nowhere = Position { lsn: 0, xid: 0 };
        let header = Header {
            kind: Kind::Heartbeat,
            position: nowhere,
            chunk: 0,
            last: true,
            commit_ts: wal::now(),
            expanded_len: None,
            ..self.template.clone()
        };
        Ok(header.encode_record(&[]))
    }

    /// Heartbeats have arrived and nothing else: the offset may be written down, which is not worth a commit every time.
    fn confirm_heartbeats(&mut self, topic_offset: i64) -> Result<()> {
        if !self.watermarks.writing_is_due()? {
            return Ok(());
        }
        // Where nothing of the pass under way is confirmed, all of it is still to come.
        let (current, position) = match (&self.pass, self.confirmed) {
            (Some(pass), Some(confirmed)) => (&pass.current, confirmed),
            _ => (&self.previous, Position { lsn: 0, xid: 0 }),
        };
        state::save(&self.previous, current, position, topic_offset, self.watermarks.settled())?;
        self.watermarks.written();
        Ok(())
    }

    fn confirm(&mut self, position: Position, topic_offset: i64) -> Result<()> {
        if position == (Position { lsn: 0, xid: 0 }) {
            return self.confirm_heartbeats(topic_offset);
        }
        self.confirmed = Some(position);
        if self.outstanding == Some(position) {
            self.outstanding = None;
        }
        let finished = self.outstanding.is_none() && self.pass.as_ref().is_none_or(Pass::is_exhausted);
        if finished {
            self.finish_pass();
        }
        let current = self.pass.as_ref().map_or(&self.previous, |pass| &pass.current);
        state::save(&self.previous, current, position, topic_offset, self.watermarks.settled())?;
        self.watermarks.written();
        if finished { self.rotate() } else { Ok(()) }
    }

    /// All of the pass is confirmed: the next one starts from its snapshot.
    fn finish_pass(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.previous = pass.current;
            self.confirmed = None;
            self.watermarks.settle(pass.settles);
            for segment in &mut self.segments {
                segment.finish_pass();
            }
        }
    }
}
