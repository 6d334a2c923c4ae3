//! Reading one stream, from an offset that must be there.

use std::sync::Arc;

use duplex_protocol::record::{Hello, Kind, Record};
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _};
use rdkafka::{Message as _, Offset, TopicPartitionList};

use super::apply::Opening;
use crate::errors::Error;
use crate::kafka::{ANSWER_TIME, Context, Kafka, blocking, drop_elsewhere, topic_of};
use crate::node::Node;
use crate::watch::{Found, Watch};

/// Kafka's header of a record that says how many records stood before it at the least when it was sent.
pub const RECORDS_BEFORE: &str = "duplex-before";

/// A record as Kafka holds it.
#[derive(Debug)]
pub struct Fetched {
    /// Where it is.
    pub offset: i64,
    /// How many records stood before it at the least when it was sent; 0 if it does not say.
    pub before: i64,
    /// Its bytes.
    pub value: Vec<u8>,
}

impl Fetched {
    fn from_kafka(message: &BorrowedMessage<'_>) -> Self {
        let value = message.payload().unwrap_or_default().to_vec();
        Self { offset: message.offset(), before: records_before(message).unwrap_or(0), value }
    }

    /// Whether records are missing that stood before it when it was sent. Its topic was made anew while a relay wrote to
    /// it, and a relay does not see that before the record is there: it sends it again, behind a hello.
    pub fn is_astray(&self) -> bool {
        self.offset < self.before
    }
}

fn records_before(message: &BorrowedMessage<'_>) -> Option<i64> {
    let header = message.headers()?.iter().find(|header| header.key == RECORDS_BEFORE)?;
    std::str::from_utf8(header.value?).ok()?.parse().ok()
}

/// The first and the next offset of a topic: `low` is what it still holds, `high` what will come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first record that the topic holds.
    pub low: i64,
    /// The offset that the next record will get.
    pub high: i64,
}

/// Reads partition 0 of one topic.
pub struct TopicReader {
    inner: Option<Arc<StreamConsumer<Context>>>,
    topic: String,
    watch: Watch,
}

impl std::fmt::Debug for TopicReader {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("TopicReader").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl TopicReader {
    /// Prepares to read a topic and finds out what it holds.
    ///
    /// # Errors
    /// [`Error::TopicMissing`], [`Error::TopicPartitions`], [`Error::Kafka`].
    pub async fn open(kafka: &Kafka, topic: String) -> Result<(Self, Extent), Error> {
        match kafka.topic(&topic).await?.map(|topic| topic.partitions) {
            Some(1) => {}
            Some(found) if found > 1 => return Err(Error::TopicPartitions { topic, found }),
            _ => return Err(Error::TopicMissing { topic }),
        }
        let inner: StreamConsumer<Context> =
            kafka.consumer().create_with_context(kafka.context()).map_err(Error::kafka("preparing a consumer"))?;
        let inner = Arc::new(inner);
        let watch = Watch::begin(kafka, &topic, &inner, ask);
        let reader = Self { inner: Some(inner), topic, watch };
        let extent = reader.extent().await?;
        Ok((reader, extent))
    }

    /// What the topic holds now.
    ///
    /// # Errors
    /// [`Error::Kafka`].
    pub async fn extent(&self) -> Result<Extent, Error> {
        let (inner, topic) = (self.inner()?.clone(), self.topic.clone());
        blocking(move || {
            let (low, high) = inner
                .fetch_watermarks(&topic, 0, ANSWER_TIME)
                .map_err(Error::kafka(format!("asking what topic {topic} holds")))?;
            Ok(Extent { low, high })
        })
        .await
    }

    fn inner(&self) -> Result<&Arc<StreamConsumer<Context>>, Error> {
        self.inner.as_ref().ok_or(Error::Ending)
    }

    /// Starts reading at `offset`.
    ///
    /// # Errors
    /// [`Error::Kafka`].
    pub fn start(&self, offset: i64) -> Result<(), Error> {
        let failed = || Error::kafka(format!("starting to read topic {}", self.topic));
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&self.topic, 0, Offset::Offset(offset)).map_err(failed())?;
        self.inner()?.assign(&assignment).map_err(failed())
    }

    /// The next record; may be dropped without losing one. Kafka's absence is waited out.
    ///
    /// # Errors
    /// [`Error::Gap`] if the offset is gone, [`Error::TopicMissing`], [`Error::CutOff`], [`Error::Kafka`] for what does
    /// not pass by itself.
    pub async fn next(&self) -> Result<Fetched, Error> {
        let inner = self.inner()?;
        loop {
            let received = tokio::select! {
                biased;
                received = inner.recv() => received,
                () = self.watch.cut_off() => return Err(Error::CutOff),
            };
            match received {
                Ok(message) => {
                    inner.context().back();
                    return Ok(Fetched::from_kafka(&message));
                }
                Err(err) => {
                    if let Some(err) = self.lasting(err) {
                        return Err(err);
                    }
                }
            }
        }
    }

    /// What of Kafka's errors does not pass by waiting.
    fn lasting(&self, err: KafkaError) -> Option<Error> {
        use RDKafkaErrorCode as Code;
        match err.rdkafka_error_code() {
            Some(
                Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::OperationTimedOut
                | Code::Resolve
                | Code::NotLeaderForPartition
                | Code::LeaderNotAvailable
                | Code::RequestTimedOut
                | Code::PartitionEOF,
            ) => {
                tracing::debug!(error = %err, topic = self.topic, "kafka does not answer a fetch");
                None
            }
            Some(Code::AutoOffsetReset | Code::OffsetOutOfRange) => Some(Error::Gap(format!(
                "Kafka no longer holds what comes next in topic {}: records were deleted, or the topic was made anew; \
                 copy the tables and call duplex.resync_peer",
                self.topic
            ))),
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) => {
                Some(Error::TopicMissing { topic: self.topic.clone() })
            }
            _ => Some(Error::kafka(format!("reading topic {}", self.topic))(err)),
        }
    }
}

/// Any broker is asked, and then the one that leads the topic.
fn ask(inner: &StreamConsumer<Context>, topic: &str) -> Found {
    if inner.fetch_metadata(Some(topic), ANSWER_TIME).is_err() {
        return Found::Nothing;
    }
    match inner.fetch_watermarks(topic, 0, ANSWER_TIME) {
        Ok(_) => Found::Served,
        Err(err) => Found::Unserved { reason: format!("the broker that leads it does not answer: {err}") },
    }
}

impl Drop for TopicReader {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            drop_elsewhere(inner);
        }
    }
}

/// A peer's stream, from where this node stopped.
#[derive(Debug)]
pub struct PeerReader {
    reader: TopicReader,
    peer: String,
    next_offset: i64,
    generation: u64,
    /// The record before the first one to apply is still to be looked at.
    unproven: bool,
}

impl PeerReader {
    /// Opens a peer's stream where it stopped.
    ///
    /// # Errors
    /// [`Error::Gap`] if the topic does not hold what comes next or is another one, and as [`TopicReader::open`].
    pub async fn open(node: &Node, peer: &str, opening: &Opening) -> Result<Self, Error> {
        let (kafka, next_offset) = (node.kafka(), opening.next_offset);
        let found = kafka.cluster_id().await?;
        let known = node.control.meet_kafka(&found, Some(peer)).await?;
        if let Some(known) = known.filter(|known| *known != found) {
            return Err(Error::Gap(format!(
                "this is Kafka cluster {found}, and the stream applied so far is in {known}: use the right Kafka and call \
                 duplex.retry_peer, or copy the tables and call duplex.resync_peer"
            )));
        }
        let (reader, extent) = match TopicReader::open(kafka, topic_of(peer)).await {
            Err(Error::TopicMissing { topic }) if next_offset > 0 => {
                return Err(Error::Gap(format!(
                    "topic {topic} is gone, of which records up to offset {next_offset} are applied here; bring it \
                     back, or copy the tables and call duplex.resync_peer"
                )));
            }
            other => other?,
        };
        gap(&reader.topic, next_offset, extent).map_or(Ok(()), |reason| Err(Error::Gap(reason)))?;
        let mut this =
            Self { reader, peer: peer.to_owned(), next_offset, generation: opening.generation, unproven: false };
        match &opening.hello {
            Some((offset, node_id)) if *offset >= extent.low && *offset < next_offset => {
                this.reader.start(*offset)?;
                let fetched = this.reader.next().await?;
                this.prove_hello(&fetched, *offset, node_id)?;
            }
            // Kafka has forgotten that hello, or there was none yet. Where an operator said to go on there is nothing to
            // be proven, and what stands before it may be what no relay writes.
            _ => this.unproven = opening.generation > 0 && next_offset > extent.low,
        }
        this.reader.start(if this.unproven { next_offset - 1 } else { next_offset })?;
        Ok(this)
    }

    /// The next record to apply; may be dropped without losing one.
    ///
    /// # Errors
    /// [`Error::Gap`] if the topic turns out to be another one or to have a hole, and as [`TopicReader::next`].
    pub async fn next(&mut self) -> Result<Fetched, Error> {
        loop {
            let fetched = self.reader.next().await?;
            if fetched.offset > self.next_offset {
                return Err(Error::Gap(format!(
                    "topic {} goes from offset {} to {}: records between them are missing; bring them back, or copy the \
                     tables and call duplex.resync_peer",
                    self.reader.topic, self.next_offset, fetched.offset
                )));
            }
            if fetched.offset == self.next_offset {
                self.next_offset += 1;
                self.unproven = false;
                return Ok(fetched);
            }
            if self.unproven {
                self.unproven = false;
                self.prove(&fetched)?;
            }
        }
    }

    /// Looks at the newest hello that was applied: generations rise with each take-over, so no other topic has this one
    /// at this place.
    fn prove_hello(&self, fetched: &Fetched, offset: i64, node_id: &[u8]) -> Result<(), Error> {
        let same = fetched.offset == offset
            && Record::decode(&fetched.value).is_ok_and(|record| {
                record.header.kind == Kind::Hello
                    && record.header.node == self.peer
                    && record.header.generation == self.generation
                    && Hello::decode(record.body).is_ok_and(|hello| hello.node_id == *node_id)
            });
        if same { Ok(()) } else { Err(self.another(fetched.offset)) }
    }

    /// Looks at the last record that was applied: is this still the same topic?
    fn prove(&self, fetched: &Fetched) -> Result<(), Error> {
        let same = Record::decode(&fetched.value)
            .is_ok_and(|record| record.header.node == self.peer && record.header.generation <= self.generation);
        if same { Ok(()) } else { Err(self.another(fetched.offset)) }
    }

    fn another(&self, offset: i64) -> Error {
        Error::Gap(format!(
            "topic {} is not the one that was applied so far, it was made anew: its record at offset {offset} is another; \
             bring the right one back, or copy the tables and call duplex.resync_peer",
            self.reader.topic
        ))
    }
}

/// Why a topic with this extent cannot be read from `next_offset` on, if it cannot.
pub fn gap(topic: &str, next_offset: i64, extent: Extent) -> Option<String> {
    if next_offset > extent.high {
        Some(format!(
            "topic {topic} ends at offset {}, and records up to {next_offset} are applied here: it was made anew, or this \
             is another Kafka; use the right one, or copy the tables and call duplex.resync_peer",
            extent.high
        ))
    } else if next_offset < extent.low {
        Some(format!(
            "topic {topic} begins at offset {}, and {next_offset} comes next here: Kafka deleted records that were never \
             applied; set retention.ms=-1, copy the tables and call duplex.resync_peer",
            extent.low
        ))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_that_kafka_does_not_have_is_a_gap_and_never_a_jump() {
        let extent = Extent { low: 10, high: 20 };
        assert!(gap("duplex.a", 10, extent).is_none());
        assert!(gap("duplex.a", 20, extent).is_none());
        assert!(gap("duplex.a", 21, extent).is_some_and(|reason| reason.contains("ends at offset 20")));
        assert!(gap("duplex.a", 9, extent).is_some_and(|reason| reason.contains("begins at offset 10")));
        assert!(gap("duplex.a", 0, Extent { low: 0, high: 0 }).is_none());
    }
}
