//! Kafka's end of the outbound way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use duplex_protocol::record::{Header as RecordHeader, Kind};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, PurgeConfig};
use tokio::sync::mpsc;

use super::polled::PolledProducer;
use crate::errors::Error;
use crate::inbound::consumer::RECORDS_BEFORE;
use crate::kafka::{ANSWER_TIME, Context, Kafka, blocking, drop_elsewhere};
use crate::watch::{Found, Watch};

/// Kafka has a record, or has refused it for good.
#[derive(Debug)]
pub struct Delivery {
    /// The number that the record was sent with.
    pub number: usize,
    /// Its offset.
    pub result: Result<i64, KafkaError>,
}

struct Reports {
    context: Context,
    deliveries: mpsc::UnboundedSender<Delivery>,
    /// Looks in a row at which something waited; what is delivered in between makes it 0.
    waits: AtomicU32,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.context.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.context.error(error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, delivered: &DeliveryResult<'_>, number: usize) {
        let result = match delivered {
            Ok(message) => {
                self.waits.store(0, Ordering::Relaxed);
                self.context.back();
                Ok(message.offset())
            }
            Err((err, _)) => Err(err.clone()),
        };
        // Nobody listens any more once the generation is over.
        let _ = self.deliveries.send(Delivery { number, result });
    }
}

/// Writes one generation of the node's stream, to partition 0 of its topic.
pub struct Producer {
    inner: Option<Arc<PolledProducer<Reports>>>,
    topic: String,
    deliveries: mpsc::UnboundedReceiver<Delivery>,
    watch: Watch,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Producer").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Producer {
    /// Prepares it; connections come by themselves.
    ///
    /// # Errors
    /// [`Error::Kafka`] if a property is unknown or malformed.
    pub fn new(kafka: &Kafka, topic: String) -> Result<Self, Error> {
        let (sender, deliveries) = mpsc::unbounded_channel();
        let reports = Reports { context: kafka.context(), deliveries: sender, waits: AtomicU32::new(0) };
        let inner =
            PolledProducer::create(&kafka.producer(), reports).map_err(Error::kafka("preparing the producer"))?;
        let inner = Arc::new(inner);
        let watch = Watch::begin(kafka, &topic, &inner, ask);
        Ok(Self { inner: Some(inner), topic, deliveries, watch })
    }

    /// Waits until Kafka has answered, so that the first record goes out at once: librdkafka asks for its producer id
    /// when a broker tells it something, or else each half second. The topic has to exist, or this may create it.
    ///
    /// # Errors
    /// [`Error::Kafka`] if Kafka does not answer.
    pub async fn connected(&self) -> Result<(), Error> {
        let (inner, topic) = (self.inner.clone().ok_or(Error::Ending)?, self.topic.clone());
        blocking(move || {
            let asked = Error::kafka(format!("asking Kafka about topic {topic}"));
            inner.client().fetch_metadata(Some(&topic), ANSWER_TIME).map(drop).map_err(asked)
        })
        .await
    }

    /// Gives a record to librdkafka, with how many records stand before it in the topic at the least. Returns false if
    /// librdkafka's queue is full for now.
    ///
    /// # Errors
    /// [`Error::Kafka`] if it cannot be taken at all.
    pub fn send(&self, number: usize, before: i64, header: &RecordHeader, value: &[u8]) -> Result<bool, Error> {
        let Some(inner) = &self.inner else { return Err(Error::Ending) };
        let record = BaseRecord::<(), [u8], usize>::with_opaque_to(&self.topic, number)
            .partition(0)
            .payload(value)
            .headers(kafka_headers(before, header, value));
        match inner.send(record) {
            Ok(()) => Ok(true),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Ok(false),
            Err((err, _)) => Err(Error::kafka("publishing")(err)),
        }
    }

    /// The next delivery.
    ///
    /// # Errors
    /// [`Error::Kafka`] if Kafka refused a record for good, [`Error::CutOff`]: this producer is of no use after that.
    pub async fn delivered(&mut self) -> Result<(usize, i64), Error> {
        tokio::select! {
            biased;
            delivery = self.deliveries.recv() => delivery.map_or(Err(Error::Ending), checked),
            () = self.watch.cut_off() => Err(Error::CutOff),
        }
    }

    /// A delivery that has come already.
    ///
    /// # Errors
    /// As [`Self::delivered`].
    pub fn delivered_already(&mut self) -> Result<Option<(usize, i64)>, Error> {
        self.deliveries.try_recv().ok().map(checked).transpose()
    }
}

/// Asks while something waits to be sent, since a producer's question about a topic may create it.
fn ask(inner: &PolledProducer<Reports>, topic: &str) -> Found {
    let waits = &inner.context().waits;
    if inner.in_flight_count() == 0 {
        waits.store(0, Ordering::Relaxed);
        return Found::Served;
    }
    let earlier = waits.fetch_add(1, Ordering::Relaxed);
    match inner.client().fetch_metadata(Some(topic), ANSWER_TIME) {
        Err(_) => Found::Nothing,
        Ok(_) if earlier == 0 => Found::Served,
        Ok(_) => {
            let reason =
                "no record is acknowledged: is the broker that leads it up, and as many as min.insync.replicas?";
            Found::Unserved { reason: reason.to_owned() }
        }
    }
}

fn checked(delivery: Delivery) -> Result<(usize, i64), Error> {
    let offset = delivery.result.map_err(Error::kafka("publishing"))?;
    Ok((delivery.number, offset))
}

impl Drop for Producer {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            inner.purge(PurgeConfig::default().queue().inflight());
            drop_elsewhere(inner);
        }
    }
}

/// What shows readers that the topic was made anew, and what consumers other than relays can go by without knowing the
/// format of the value.
fn kafka_headers(before: i64, header: &RecordHeader, value: &[u8]) -> OwnedHeaders {
    let format = value.first().copied().unwrap_or_default().to_string();
    let kind = match header.kind {
        Kind::Transaction => "transaction",
        Kind::Hello => "hello",
        Kind::Heartbeat => "heartbeat",
    };
    let texts = [
        (RECORDS_BEFORE, before.to_string()),
        ("duplex-format", format),
        ("duplex-kind", kind.to_owned()),
        ("duplex-xid", header.position.xid.to_string()),
        ("duplex-chunk", header.chunk.to_string()),
        ("duplex-last", header.last.to_string()),
        ("duplex-commit", header.commit_ts.to_string()),
    ];
    texts.iter().fold(OwnedHeaders::new_with_capacity(texts.len()), |headers, (key, value)| {
        headers.insert(Header { key, value: Some(value.as_str()) })
    })
}
