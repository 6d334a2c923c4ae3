//! One peer's stream: applied for as long as it goes, and what happens when it does not.

use std::time::Duration;

use duplex_protocol::record::{Kind, Record};
use futures_util::FutureExt as _;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;

use super::apply::Applier;
use super::batch::Batch;
use super::consumer::{Fetched, PeerReader};
use crate::backoff::Backoff;
use crate::control::PeerState;
use crate::errors::{Error, Policy};
use crate::node::Node;
use crate::sifter::{Sifter, Verdict};
use crate::stop::Stop;
use crate::suspicion::Suspicion;

/// How often a stream that waits for its topic or for its place looks again.
const WAIT: Duration = Duration::from_millis(500);
/// How often parked changes are looked at, and how many of them are tried before the stream goes on.
const LOOK_AT_PARKED: Duration = Duration::from_millis(500);
const MOST_PARKED: usize = 100;
/// How often a stream that runs says so again. A standby may have been told by a server at its start that it cannot
/// connect, and may have reported that after the active relay was up again.
const SAY_AGAIN: Duration = Duration::from_secs(2);

/// What a stream remembers from one attempt to the next.
#[derive(Debug, Default)]
struct Memory {
    backoff: Backoff,
    suspicion: Suspicion,
    told: Option<(PeerState, Option<String>)>,
    /// When this relay last said that the stream runs.
    said_running: Option<Instant>,
}

/// Applies a peer's stream until told to stop.
pub async fn run(node: &Node, peer: &str, mut stop: Stop) {
    let mut memory = Memory::default();
    while !stop.requested() {
        let err = match attempt(node, peer, &mut stop, &mut memory).await {
            Ok(()) => return,
            Err(err) => err,
        };
        let (policy, advice) = err.treatment();
        let policy = memory.suspicion.hardened(policy, &err);
        let reason = err.reason();
        match policy {
            Policy::Retry | Policy::RetryTimes(_) => {
                if memory.backoff.failures() == 0 {
                    tracing::warn!(error = %err, advice, "applying is interrupted; it goes on by itself");
                }
                let wait = memory.backoff.next_wait();
                stop.unless(memory.tell(node, peer, PeerState::Retrying, Some(&reason))).await;
                stop.sleep(wait).await;
            }
            Policy::StandBy | Policy::Wait => {
                if policy == Policy::Wait {
                    stop.unless(memory.tell(node, peer, PeerState::Waiting, Some(&reason))).await;
                }
                stop.sleep(WAIT).await;
            }
            Policy::Stop if memory.suspicion.wants_care(&err) => {
                tracing::info!(error = %err, "applied once more with care, to find the change that fails");
            }
            Policy::Stop | Policy::Gap => {
                let state = if policy == Policy::Stop { PeerState::Stopped } else { PeerState::Gap };
                tracing::error!(error = %err, advice, state = state.as_str(), "this stream stands still; others go on");
                stop.unless(stand_still(node, peer, state, &err, &reason, &mut memory)).await;
                memory = Memory::default();
            }
        }
    }
}

impl Memory {
    /// Writes the stream's state down unless it is known already. A database that is away learns of it later.
    async fn tell(&mut self, node: &Node, peer: &str, state: PeerState, reason: Option<&str>) {
        let news = (state, reason.map(str::to_owned));
        if self.told.as_ref() == Some(&news) {
            return;
        }
        // Whether a report that fails was written after all is not known, so then the next one is made in any case.
        self.told = None;
        match node.control.report_peer(peer, state, reason).await {
            Ok(()) => self.told = Some(news),
            Err(err) => tracing::debug!(error = %err, "a peer's state could not be written down"),
        }
    }

    /// Says that the stream runs, and again from time to time: another relay of this node may have said otherwise.
    async fn tell_running(&mut self, node: &Node, peer: &str) {
        let otherwise = self.told.as_ref().is_some_and(|(told, _)| *told != PeerState::Running);
        if otherwise || self.said_running.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
            self.told = None;
            self.said_running = Some(Instant::now());
            self.tell(node, peer, PeerState::Running, None).await;
        }
    }
}

/// Writes down why, and waits until a person sets the state back to waiting.
async fn stand_still(node: &Node, peer: &str, state: PeerState, err: &Error, reason: &str, memory: &mut Memory) {
    // A change that is known by name is written down already.
    if let Error::Apply { offset, change: None, .. } | Error::Record { offset, .. } | Error::Broken { offset, .. } = err
    {
        node.control.record_error(peer, *offset, err).await;
    }
    while memory.told.as_ref().is_none_or(|(told, _)| *told != state) {
        memory.tell(node, peer, state, Some(reason)).await;
        tokio::time::sleep(WAIT).await;
    }
    node.control.told_to_go_on(peer).await;
}

/// Applies from where the database stands, to the first error.
async fn attempt(node: &Node, peer: &str, stop: &mut Stop, memory: &mut Memory) -> Result<(), Error> {
    let opening = async {
        let (applier, opening) = Applier::open(&node.settings, peer).await?;
        let reader = PeerReader::open(node, peer, &opening).await?;
        let orders = node.control.orders(peer, opening.next_offset).await?;
        if orders.careful || memory.suspicion.is_ahead_of(opening.next_offset) {
            applier.careful().await?;
        }
        Ok::<_, Error>((applier, opening, reader, orders.skip_next))
    };
    let (applier, opening, reader, skips) = match stop.unless(opening).await {
        None => return Ok(()),
        // The peer was removed a moment ago: whoever started this stream is about to end it.
        Some(Err(Error::Database { source, .. })) if source.code() == Some(&SqlState::UNDEFINED_OBJECT) => {
            stop.wait().await;
            return Ok(());
        }
        Some(opened) => opened?,
    };
    tracing::info!(offset = opening.next_offset, "applying");
    memory.tell_running(node, peer).await;
    let sifter = Sifter::new(opening.generation);
    let gathering = Gathering { sifter, peer, skips, batch: Batch::default(), then: None };
    Flow { applier, reader, gathering, look_at_parked: Instant::now() }.run(node, stop, memory).await
}

/// What has to wait until the batch before it is applied.
#[derive(Debug)]
enum Then {
    Chunk {
        fetched: Fetched,
        first: bool,
        last: bool,
    },
    /// The transaction so far is void; this record comes after it.
    Abandon(Fetched),
    /// The transaction that ends at this offset is left out.
    Skip(i64),
}

/// Records that are fetched and sifted, and not applied yet.
#[derive(Debug)]
struct Gathering<'a> {
    sifter: Sifter,
    peer: &'a str,
    /// The first transaction is to be left out: it is the one at which the stream had stopped.
    skips: bool,
    /// To be applied together.
    batch: Batch,
    then: Option<Then>,
}

#[derive(Debug)]
struct Flow<'a> {
    applier: Applier,
    reader: PeerReader,
    gathering: Gathering<'a>,
    look_at_parked: Instant,
}

impl Gathering<'_> {
    fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.then.is_none()
    }

    fn goes_on(&self) -> bool {
        self.then.is_none() && self.batch.has_room()
    }

    fn take(&mut self, fetched: Fetched) -> Result<(), Error> {
        let offset = fetched.offset;
        let record = match Record::decode(&fetched.value) {
            Err(_) if self.skips => {
                self.skip(offset);
                return Ok(());
            }
            read => read.map_err(|source| Error::Record { offset, source })?,
        };
        if record.header.node != self.peer {
            return Err(Error::Broken { offset, reason: "the record is of another node" });
        }
        // Whoever begins with a topic made anew begins with the hello of the relay that noticed.
        let begins = record.header.kind == Kind::Hello && self.sifter.generation() == 0;
        if fetched.is_astray() && !begins {
            return Err(Error::Gap(format!(
                "the record at offset {offset} was sent when {} others stood before it: they are missing, the topic was made \
                 anew under the relay that wrote to it; copy the tables and call duplex.resync_peer with the end of the topic",
                fetched.before
            )));
        }
        match self.sifter.judge(&record.header) {
            Verdict::Void => tracing::debug!(offset, "a void record"),
            Verdict::Whole { abandons: false } if self.skips && record.header.kind == Kind::Transaction => {
                self.skip(offset);
            }
            Verdict::Chunk { last: true, .. } if self.skips => self.skip(offset),
            Verdict::Chunk { .. } if self.skips => {}
            Verdict::Whole { .. } if self.skips => self.batch.push(fetched),
            Verdict::Whole { abandons: false } => self.batch.push(fetched),
            Verdict::Whole { abandons: true } => self.then = Some(Then::Abandon(fetched)),
            Verdict::Chunk { first, last } => self.then = Some(Then::Chunk { fetched, first, last }),
            // A hello was passed over: this is not how the stream went on from where it was applied.
            Verdict::Broken(_) if record.header.generation > self.sifter.generation() => {
                return Err(Error::Gap(format!(
                    "the record at offset {offset} is of a later take-over of the stream than the one applied so far, and \
                     what announced it is missing: the topic was made anew; copy the tables and call duplex.resync_peer"
                )));
            }
            Verdict::Broken(reason) => return Err(Error::Broken { offset, reason }),
        }
        Ok(())
    }

    fn skip(&mut self, offset: i64) {
        self.skips = false;
        self.then = Some(Then::Skip(offset));
    }
}

impl Flow<'_> {
    /// Applies in rounds: a batch first, then what had to wait for it.
    async fn run(&mut self, node: &Node, stop: &mut Stop, memory: &mut Memory) -> Result<(), Error> {
        while !stop.requested() {
            memory.tell_running(node, self.gathering.peer).await;
            if !self.applier.is_open() && Instant::now() >= self.look_at_parked {
                self.retry_parked().await?;
            }
            if self.gathering.is_empty() {
                let next = tokio::time::timeout_at(self.look_at_parked, self.reader.next());
                match stop.unless(next).await {
                    None => return Ok(()),
                    Some(Ok(fetched)) => self.gathering.take(fetched?)?,
                    Some(Err(_)) if self.applier.is_open() => self.look_at_parked += LOOK_AT_PARKED,
                    Some(Err(_)) => continue,
                }
            }
            // What has come together goes together; a lone record does not wait for company.
            let mut failed = Ok(());
            while failed.is_ok() && self.gathering.goes_on() {
                let Some(fetched) = self.reader.next().now_or_never() else { break };
                failed = fetched.and_then(|fetched| self.gathering.take(fetched));
            }
            if self.gathering.batch.is_empty() {
                failed?;
                self.apply_then().await?;
            } else {
                self.apply_batch(failed).await?;
            }
            memory.backoff.reset();
        }
        Ok(())
    }

    /// Tries parked changes that are due.
    async fn retry_parked(&mut self) -> Result<(), Error> {
        for _ in 0..MOST_PARKED {
            match self.applier.parked().await? {
                None => break,
                Some(true) => tracing::info!("a parked change is applied"),
                Some(false) => tracing::debug!("a parked change failed again"),
            }
        }
        self.look_at_parked = Instant::now() + LOOK_AT_PARKED;
        Ok(())
    }

    /// Applies what is gathered, and gathers the next meanwhile, unless gathering has failed: what comes before an error
    /// is applied, so that the stream stands at the very record that an operator decides about.
    async fn apply_batch(&mut self, mut failed: Result<(), Error>) -> Result<(), Error> {
        let batch = std::mem::take(&mut self.gathering.batch);
        let Self { applier, reader, gathering, .. } = self;
        let mut call = std::pin::pin!(applier.batch(&batch));
        // An error of the stream must not cut the call off: it is handled when the call has ended.
        loop {
            tokio::select! {
                biased;
                applied = &mut call => {
                    applied?;
                    return failed;
                }
                fetched = reader.next(), if failed.is_ok() && gathering.goes_on() => {
                    failed = fetched.and_then(|fetched| gathering.take(fetched));
                }
            }
        }
    }

    async fn apply_then(&mut self) -> Result<(), Error> {
        match self.gathering.then.take() {
            None => Ok(()),
            Some(Then::Chunk { fetched, first, last }) => self.applier.chunk(&fetched, first, last).await,
            Some(Then::Skip(offset)) => {
                tracing::warn!(offset, "a transaction is left out, as an operator said");
                self.applier.skip(offset).await
            }
            Some(Then::Abandon(fetched)) => {
                tracing::info!(offset = fetched.offset, "an incomplete transaction is void; it comes again");
                self.applier.abandon().await?;
                self.gathering.batch.push(fetched);
                Ok(())
            }
        }
    }
}
