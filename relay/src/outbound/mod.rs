//! Queue → Kafka: each of the node's own transactions into its topic, once and in order.
//!
//! A generation begins with `drain_open` (which takes the node's advisory lock), a hello in the topic, and a look at
//! the end of the topic; it ends with the first error. What was in flight then is void for every reader, or found by
//! the next generation; so nothing is ever sent again within a generation except by the idempotent producer itself.

pub mod in_flight;
mod polled;
pub mod producer;
pub mod promised;
pub mod replay;
pub mod source;
pub mod tail;

use std::collections::HashMap;
use std::time::Duration;

use duplex_protocol::record::{Header, Hello, Kind, Record};
use futures_util::future::BoxFuture;

use self::in_flight::{InFlight, NOWHERE};
use self::producer::Producer;
use self::replay::Replay;
use self::source::{Opening, Source};
use self::tail::{Found, Identity};
use crate::backoff::Backoff;
use crate::control::PeerState;
use crate::errors::{Error, Policy};
use crate::failpoints::{self, Place};
use crate::kafka::topic_of;
use crate::node::Node;
use crate::stop::Stop;
use crate::suspicion::Suspicion;

/// How long the server may wait for something to drain before it answers.
const DRAIN_WAIT_MS: i32 = 250;
/// Bytes of records in one answer, about: many small ones, or one chunk.
const DRAIN_BYTES: i32 = 512 * 1024;
/// Beyond this much in librdkafka nothing more is drained.
const MOST_IN_FLIGHT: usize = 4 * 1024 * 1024;
/// How often a standby asks whether the active relay is gone.
const STANDBY_WAIT: Duration = Duration::from_millis(500);

/// Publishes until told to stop, generation after generation.
pub async fn run(node: &Node, mut stop: Stop) {
    let mut backoff = Backoff::default();
    let mut suspicion = Suspicion::default();
    while !stop.requested() {
        let Err(err) = generation(node, &mut stop, &mut backoff, &suspicion).await else { return };
        let (policy, advice) = err.treatment();
        let wait = match suspicion.hardened(policy, &err) {
            Policy::Stop if suspicion.wants_care(&err) => {
                tracing::info!(error = %err, "applied once more with care, to find the change that fails");
                continue;
            }
            // The one thing that is applied here: see `replay`.
            Policy::Stop if matches!(err, Error::Apply { .. }) => {
                tracing::error!(error = %err, advice, "bringing back what was lost stands still, and with it publishing");
                stop.unless(stand_still(node, &err)).await;
                suspicion = Suspicion::default();
                continue;
            }
            Policy::Wait => Duration::from_secs(1),
            _ => backoff.next_wait(),
        };
        if backoff.failures() <= 1 {
            tracing::warn!(error = %err, advice, "publishing is interrupted; it goes on by itself");
        } else {
            tracing::debug!(error = %err, advice, "publishing is still interrupted");
        }
        stop.sleep(wait).await;
    }
}

/// Writes down what of the own stream cannot be brought back, and waits until a person has acted.
async fn stand_still(node: &Node, err: &Error) {
    let mut backoff = Backoff::default();
    let own = loop {
        match report_stopped(node, err).await {
            Ok(own) => break own,
            Err(err) => tracing::debug!(error = %err, "why publishing stands still could not be written down"),
        }
        tokio::time::sleep(backoff.next_wait()).await;
    };
    // A change that is known by name is written down already.
    if let Error::Apply { offset, change: None, .. } = err {
        node.control.record_error(&own, *offset, err).await;
    }
    node.control.told_to_go_on(&own).await;
}

/// Writes down that the own stream has stopped, and returns its name.
async fn report_stopped(node: &Node, err: &Error) -> Result<String, Error> {
    let own = node.control.info().await?.node;
    node.control.report_peer(&own, PeerState::Stopped, Some(&err.reason())).await?;
    Ok(own)
}

/// One generation, to its first error or to the end of the relay.
async fn generation(node: &Node, stop: &mut Stop, backoff: &mut Backoff, suspicion: &Suspicion) -> Result<(), Error> {
    let Some(opened) = stop.unless(take_over(node, suspicion)).await else { return Ok(()) };
    let Seat { source, producer, hello_offset, published, generation } = opened?;
    if backoff.failures() > 0 {
        tracing::info!(generation, "publishing goes on");
    } else {
        tracing::info!(generation, "publishing");
    }
    backoff.reset();
    let in_flight = InFlight::after_hello(hello_offset, published.values());
    Publisher { producer, published, in_flight, pass_is_out: false }.run(&source, stop).await
}

/// The node's place, taken.
struct Seat {
    source: Source,
    producer: Producer,
    hello_offset: i64,
    /// What the topic holds and nobody has confirmed.
    published: HashMap<Identity, Found>,
    generation: u64,
}

/// Waits for the node's place, takes it, and finds out what the topic holds.
async fn take_over(node: &Node, suspicion: &Suspicion) -> Result<Seat, Error> {
    let source = Source::connect(&node.settings).await?;
    let mut newest_generation = 0;
    loop {
        let opening = wait_for_place(&source, newest_generation).await?;
        failpoints::pass(Place::OutboundAfterOpen);
        let topic = topic_of(&opening.node);
        meet_kafka(node).await?;
        node.kafka().ensure_topic(&topic).await?;
        let mut producer = Producer::new(node.kafka(), topic.clone())?;
        producer.connected().await?;
        let hello = Record::decode(&opening.hello).map_err(|source| Error::Record { offset: -1, source })?;
        let who = Hello::decode(hello.body).map_err(|source| Error::Record { offset: -1, source })?;
        let confirmed = opening.topic_offset;
        producer.send(0, confirmed.map_or(0, |offset| offset + 1), &hello.header, &opening.hello)?;
        let (_, hello_offset) = producer.delivered().await?;
        if hello_offset < 0 {
            return Err(Error::Broken { offset: hello_offset, reason: "Kafka does not say where the hello is" });
        }
        failpoints::pass(Place::OutboundAfterHello);
        let confirmed = still_valid(&source, &topic, confirmed, hello_offset).await?;
        let replay = Replay::new(&source, node, suspicion, &opening.node);
        let tail = tail::read_back(node.kafka(), &topic, confirmed, hello_offset, who.node_id, replay).await?;
        failpoints::pass(Place::OutboundAfterTail);
        if tail.replayed > 0 {
            tracing::warn!(transactions = tail.replayed, "lost transactions are back, or were back already");
        }
        let set_back = newest_generation > 0 || tail.replayed > 0;
        if tail.newest_generation < opening.generation {
            if !tail.published.is_empty() {
                tracing::info!(transactions = tail.published.len(), "found published and not confirmed");
            }
            if let Some(lacks) = source.promised(tail.promised, set_back).await? {
                tracing::warn!(
                    lacks,
                    "this database has less of its peers than it once had, as one that was promoted before it had all: tables \
                     with counters or merged columns take no writes until that is caught up with"
                );
            }
            // Should it have stood still at something, that has passed.
            node.control.report_peer(&opening.node, PeerState::Running, None).await?;
            let (published, generation) = (tail.published, opening.generation);
            return Ok(Seat { source, producer, hello_offset, published, generation });
        }
        // The database is older than its topic: a standby that was promoted, a backup that was restored.
        tracing::warn!(
            topic = tail.newest_generation,
            database = opening.generation,
            "the topic is ahead of this database"
        );
        newest_generation = tail.newest_generation;
    }
}

/// The newest offset confirmed, unless the topic was made anew since: then no offset of before means anything.
async fn still_valid(
    source: &Source,
    topic: &str,
    confirmed: Option<i64>,
    hello_offset: i64,
) -> Result<Option<i64>, Error> {
    if confirmed.is_none_or(|offset| offset < hello_offset) {
        return Ok(confirmed);
    }
    tracing::warn!(
        topic,
        confirmed,
        end = hello_offset,
        "the topic is shorter than it was: it was made anew. What is not confirmed goes there; peers' streams of this \
         node become gaps, where duplex.resync_peer is to be called once the tables are equal"
    );
    source.remade().await?;
    Ok(None)
}

/// Publishing elsewhere would take the queue to where no peer reads it.
async fn meet_kafka(node: &Node) -> Result<(), Error> {
    let found = node.kafka().cluster_id().await?;
    match node.control.meet_kafka(&found, None).await? {
        Some(known) if known != found => Err(Error::OtherKafka { known, found }),
        _ => Ok(()),
    }
}

async fn wait_for_place(source: &Source, newest_generation: u64) -> Result<Opening, Error> {
    let mut told = false;
    loop {
        if let Some(opening) = source.open(newest_generation).await? {
            return Ok(opening);
        }
        if !told {
            tracing::info!("another relay serves this node; standing by");
            told = true;
        }
        tokio::time::sleep(STANDBY_WAIT).await;
    }
}

/// What one generation keeps in memory.
#[derive(Debug)]
struct Publisher {
    producer: Producer,
    /// What the topic holds already, from before.
    published: HashMap<Identity, Found>,
    in_flight: InFlight,
    /// The server has handed out all of its present pass: it has nothing more before all of that is confirmed.
    pass_is_out: bool,
}

impl Publisher {
    async fn run(&mut self, source: &Source, stop: &mut Stop) -> Result<(), Error> {
        let mut request: Option<BoxFuture<'_, Result<Vec<Vec<u8>>, Error>>> = None;
        let (mut confirming, mut draining) = (false, false);
        loop {
            let ending = stop.requested();
            if request.is_none() {
                let drains = !ending && !self.pass_is_out && self.in_flight.cost() < MOST_IN_FLIGHT;
                let confirm =
                    if drains || self.in_flight.unacknowledged() == 0 { self.in_flight.confirm() } else { None };
                let confirms_transactions = confirm.is_some_and(|confirm| confirm.position != NOWHERE);
                if confirms_transactions {
                    failpoints::pass(Place::OutboundAfterPublish);
                }
                if self.in_flight.is_empty() {
                    self.pass_is_out = false;
                }
                let drains = !ending && !self.pass_is_out && self.in_flight.cost() < MOST_IN_FLIGHT;
                let drain = drains.then_some((DRAIN_WAIT_MS, DRAIN_BYTES));
                (confirming, draining) = (confirms_transactions, drain.is_some());
                if confirm.is_some() || drain.is_some() {
                    request = Some(Box::pin(source.step(confirm, drain)));
                } else if ending && self.in_flight.unacknowledged() == 0 {
                    return Ok(());
                }
            }
            tokio::select! {
                biased;
                // 1: acknowledgements free memory and allow confirms
                delivered = self.producer.delivered(), if self.in_flight.unacknowledged() > 0 => {
                    self.acknowledge(delivered?)?;
                }
                // 2: the database answers
                records = async { request.as_mut().expect("guarded").await }, if request.is_some() => {
                    request = None;
                    let records = records?;
                    if confirming {
                        failpoints::pass(Place::OutboundAfterConfirm);
                    }
                    if draining && records.is_empty() && self.in_flight.is_empty() {
                        self.forget_found();
                    }
                    self.publish(records).await?;
                }
                // 3: the end is wished for
                () = stop.wait(), if !ending => {}
            }
        }
    }

    fn acknowledge(&mut self, (number, offset): (usize, i64)) -> Result<(), Error> {
        self.in_flight.acknowledged(number, offset)?;
        while let Some((number, offset)) = self.producer.delivered_already()? {
            self.in_flight.acknowledged(number, offset)?;
        }
        Ok(())
    }

    /// The server has nothing more: what the topic holds beyond that was confirmed before.
    fn forget_found(&mut self) {
        self.published.clear();
        self.in_flight.forget_found();
    }

    async fn publish(&mut self, records: Vec<Vec<u8>>) -> Result<(), Error> {
        let (mut bytes, mut transactions) = (0, false);
        for value in records {
            let record = Record::decode(&value).map_err(|source| Error::Record { offset: -1, source })?;
            if record.header.kind == Kind::Transaction {
                if !std::mem::replace(&mut transactions, true) {
                    failpoints::pass(Place::OutboundAfterDrain);
                }
                bytes += value.len();
            }
            self.publish_one(&record.header, &value).await?;
        }
        // A heartbeat says nothing of the pass. A transaction that is not whole goes on: the server lists a long backlog
        // part by part.
        self.pass_is_out = transactions && self.in_flight.ends_whole() && bytes < DRAIN_BYTES as usize;
        Ok(())
    }

    async fn publish_one(&mut self, header: &Header, value: &[u8]) -> Result<(), Error> {
        let Header { position, last, commit_ts, .. } = *header;
        if let Some(&found) = self.published.get(&(position, commit_ts)) {
            if last {
                self.published.remove(&(position, commit_ts));
            }
            self.in_flight.found(position, last, found);
            return Ok(());
        }
        let before = self.in_flight.least_offset();
        let number = self.in_flight.sent(position, last, value.len());
        while !self.producer.send(number, before, header, value)? {
            // librdkafka's queue is full. This record is not in it, so others are, and one of them will arrive.
            let delivered = self.producer.delivered().await?;
            self.acknowledge(delivered)?;
        }
        if !last {
            failpoints::pass(Place::OutboundWithinTransaction);
        }
        Ok(())
    }
}
