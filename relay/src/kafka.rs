//! Settings of Kafka clients, and questions to the cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::bail;
use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataPartition;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::errors::Error;
use crate::watch;

/// How long the cluster may take to answer a question.
pub const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Properties that are ours alone: with another value a transaction could be lost, doubled or put out of order.
const OURS: [&str; 8] = [
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "transactional.id",
    "auto.offset.reset",
    "bootstrap.servers",
];

/// Where Kafka is, and how to talk to it.
#[derive(Clone)]
pub struct Kafka {
    bootstrap: String,
    properties: BTreeMap<String, String>,
    health: Arc<Health>,
    looks: Arc<Semaphore>,
}

impl std::fmt::Debug for Kafka {
    /// Shows the names of properties only: a value may be a password.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.properties.keys().collect();
        out.debug_struct("Kafka").field("bootstrap", &self.bootstrap).field("properties", &names).finish()
    }
}

/// How a topic is, as a broker tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topic {
    /// A stream needs one.
    pub partitions: usize,
    /// Whether a broker leads the first of them, so that it can be written and read.
    pub is_led: bool,
    /// So many brokers are to have its records.
    pub replicas: usize,
    /// So many have the newest.
    pub in_sync: usize,
}

impl Topic {
    fn of(partitions: &[MetadataPartition]) -> Self {
        let first = partitions.first();
        Self {
            partitions: partitions.len(),
            is_led: first.is_some_and(|first| first.leader() >= 0),
            replicas: first.map_or(0, |first| first.replicas().len()),
            in_sync: first.map_or(0, |first| first.isr().len()),
        }
    }
}

/// The topic that holds a node's stream.
pub fn topic_of(node: &str) -> String {
    format!("duplex.{node}")
}

impl Kafka {
    /// Takes the address and the properties that go to every client.
    ///
    /// # Errors
    /// If a property is one that the relay's promises stand on, or if librdkafka does not take it.
    pub fn new(bootstrap: String, properties: BTreeMap<String, String>) -> anyhow::Result<Self> {
        if let Some(name) = properties.keys().find(|name| OURS.contains(&name.as_str())) {
            bail!("Kafka property {name} cannot be set: each transaction once and in order depends on it");
        }
        let looks = Arc::new(Semaphore::new(watch::LOOKS));
        let kafka = Self { bootstrap, properties, health: Arc::default(), looks };
        for config in [kafka.client(&[]), kafka.producer(), kafka.consumer()] {
            match config.create_native_config() {
                Ok(_) => {}
                // Its text would show the value, which may be a password.
                Err(KafkaError::ClientConfig(_, reason, name, _)) => bail!("Kafka property {name}: {}", reason.trim()),
                Err(err) => bail!("the Kafka properties are refused: {err}"),
            }
        }
        Ok(kafka)
    }

    /// The brokers' addresses.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// A property that was given.
    pub fn property(&self, name: &str) -> Option<&str> {
        self.properties.get(name).map(String::as_str)
    }

    /// What Kafka's clients report to.
    pub fn context(&self) -> Context {
        Context { health: Arc::clone(&self.health) }
    }

    fn client(&self, settings: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("client.id", "duplex-relay")
            .set("socket.nagle.disable", "true")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            // A topic just made is known at once, not at the next round of metadata.
            .set("topic.metadata.refresh.fast.interval.ms", "50");
        for (name, value) in settings {
            config.set(*name, *value);
        }
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config.set_log_level(RDKafkaLogLevel::Info);
        config
    }

    /// Settings of the one that writes the node's own stream.
    pub fn producer(&self) -> ClientConfig {
        self.client(&[
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("compression.type", "lz4"),
            ("linger.ms", "0"),
            // Kafka may be down for hours: what is in flight waits, and the queue holds the rest.
            ("message.timeout.ms", "0"),
            ("retry.backoff.ms", "50"),
            ("retry.backoff.max.ms", "1000"),
            ("queue.buffering.max.kbytes", "8192"),
            ("queue.buffering.max.messages", "50000"),
        ])
    }

    /// Settings of one that reads a stream. Its offsets are kept in the database, never in Kafka.
    pub fn consumer(&self) -> ClientConfig {
        self.client(&[
            // librdkafka insists on a name even where partitions are assigned by hand and nothing is committed.
            ("group.id", "duplex-relay"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("fetch.min.bytes", "1"),
            ("fetch.wait.max.ms", "250"),
            // Their defaults (1,000 and 500) become seconds of delay after a full queue.
            ("fetch.queue.backoff.ms", "2"),
            ("fetch.error.backoff.ms", "20"),
            ("fetch.message.max.bytes", "1048576"),
            ("fetch.max.bytes", "1048576"),
            ("queued.max.messages.kbytes", "2048"),
            ("queued.min.messages", "4000"),
        ])
    }

    fn asker(&self) -> Result<BaseConsumer<Context>, Error> {
        // A consumer, because a producer's question about a topic may create it.
        self.consumer().create_with_context(self.context()).map_err(Error::kafka("preparing a Kafka client"))
    }

    fn admin(&self) -> Result<AdminClient<Context>, Error> {
        self.client(&[]).create_with_context(self.context()).map_err(Error::kafka("preparing a Kafka client"))
    }

    /// Kafka does not answer.
    pub(crate) fn lost(&self, reason: &str) {
        self.health.lost(reason);
    }

    /// Leave to look after a client (`watch`), unless enough others are looked at just now.
    pub(crate) fn turn_to_look(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.looks).try_acquire_owned().ok()
    }

    /// Whether Kafka answers a client that has just been made. Blocks.
    pub(crate) fn answers(&self, topic: &str) -> bool {
        self.asker().is_ok_and(|asker| asker.fetch_metadata(Some(topic), ANSWER_TIME).is_ok())
    }

    /// How a topic is; `None` if it does not exist. Also proves that Kafka answers.
    ///
    /// # Errors
    /// If Kafka does not answer.
    pub async fn topic(&self, topic: &str) -> Result<Option<Topic>, Error> {
        let (kafka, topic) = (self.clone(), topic.to_owned());
        blocking(move || {
            let metadata = kafka
                .asker()?
                .fetch_metadata(Some(&topic), ANSWER_TIME)
                .map_err(Error::kafka(format!("asking Kafka about topic {topic}")))?;
            kafka.health.back();
            let found = metadata.topics().iter().find(|found| found.name() == topic);
            Ok(found.filter(|found| found.error().is_none()).map(|found| Topic::of(found.partitions())))
        })
        .await
    }

    /// The cluster's own name for itself, made when it was formatted.
    ///
    /// # Errors
    /// If Kafka does not answer.
    pub async fn cluster_id(&self) -> Result<String, Error> {
        let kafka = self.clone();
        blocking(move || {
            let missing = KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut);
            let found = kafka.asker()?.client().fetch_cluster_id(ANSWER_TIME);
            let id = found.ok_or(missing).map_err(Error::kafka("asking which Kafka cluster this is"))?;
            kafka.health.back();
            Ok(id)
        })
        .await
    }

    /// A topic's setting, as the cluster has it.
    ///
    /// # Errors
    /// If Kafka does not answer or does not tell.
    pub async fn topic_setting(&self, topic: &str, names: &[&str]) -> Result<Vec<Option<String>>, Error> {
        let admin = self.admin()?;
        let options = AdminOptions::new().request_timeout(Some(ANSWER_TIME));
        let asked = || Error::kafka(format!("asking Kafka for the settings of topic {topic}"));
        let mut answers = admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options).await.map_err(asked())?;
        drop_elsewhere(admin);
        let answer = match answers.pop() {
            Some(Ok(answer)) => answer,
            Some(Err(code)) => return Err(asked()(KafkaError::AdminOp(code))),
            None => return Ok(vec![None; names.len()]),
        };
        Ok(names.iter().map(|name| answer.get(name).and_then(|entry| entry.value.clone())).collect())
    }

    /// Makes sure that a node's own topic exists, with its one partition.
    ///
    /// # Errors
    /// [`Error::TopicPartitions`] if it has several: order would be lost.
    pub async fn ensure_topic(&self, topic: &str) -> Result<(), Error> {
        match self.topic(topic).await?.map(|topic| topic.partitions) {
            Some(1) => {}
            Some(found) if found > 1 => return Err(Error::TopicPartitions { topic: topic.to_owned(), found }),
            _ => self.create_topic(topic).await?,
        }
        if let Ok(settings) = self.topic_setting(topic, &["retention.ms", "retention.bytes", "cleanup.policy"]).await {
            for advice in retention_advice(&settings) {
                tracing::warn!(topic, "{advice}");
            }
        }
        Ok(())
    }

    async fn create_topic(&self, topic: &str) -> Result<(), Error> {
        let admin = self.admin()?;
        let new = NewTopic::new(topic, 1, TopicReplication::Fixed(-1))
            .set("retention.ms", "-1")
            .set("cleanup.policy", "delete");
        let options = AdminOptions::new().request_timeout(Some(ANSWER_TIME * 2)).operation_timeout(Some(ANSWER_TIME));
        let failed = || Error::kafka(format!("creating topic {topic}"));
        let made = admin.create_topics(&[new], &options).await.map_err(failed())?;
        drop_elsewhere(admin);
        match made.into_iter().next() {
            Some(Err((_, code))) if code != RDKafkaErrorCode::TopicAlreadyExists => {
                Err(failed()(KafkaError::AdminOp(code)))
            }
            _ => {
                tracing::info!(topic, "topic created");
                Ok(())
            }
        }
    }
}

/// What to say about a topic that forgets: the values of `retention.ms`, `retention.bytes` and `cleanup.policy`.
pub fn retention_advice(settings: &[Option<String>]) -> Vec<&'static str> {
    let value = |index: usize| settings.get(index).and_then(Option::as_deref);
    let mut advice = Vec::new();
    if value(0).is_some_and(|limit| limit != "-1") {
        advice.push("the topic forgets records by age: a peer that is away longer has a gap; set retention.ms=-1");
    }
    if value(1).is_some_and(|limit| limit != "-1") {
        advice.push("the topic forgets records by size: a peer that is behind has a gap; set retention.bytes=-1");
    }
    if value(2).is_some_and(|policy| policy.contains("compact")) {
        advice.push("the topic is compacted, which refuses records without a key; set cleanup.policy=delete");
    }
    advice
}

/// Runs what waits inside librdkafka on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(err) if err.is_panic() => std::panic::resume_unwind(err.into_panic()),
        Err(_) => Err(Error::Ending),
    }
}

/// Destroys a Kafka client on another thread: librdkafka waits for its own threads there, for up to a second.
pub(crate) fn drop_elsewhere<T: Send + 'static>(client: T) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn_blocking(move || drop(client));
    }
}

/// Whether Kafka is there, so that its absence is logged once and not by each client for each attempt.
#[derive(Debug, Default)]
struct Health {
    lost: AtomicBool,
}

impl Health {
    fn lost(&self, reason: &str) {
        if !self.lost.swap(true, Ordering::Relaxed) {
            tracing::warn!(reason, "kafka lost; what is captured waits in the queue");
        }
    }

    fn back(&self) {
        if self.lost.load(Ordering::Relaxed) && self.lost.swap(false, Ordering::Relaxed) {
            tracing::info!("kafka is back");
        }
    }
}

/// What librdkafka reports to.
#[derive(Debug, Clone)]
pub struct Context {
    health: Arc<Health>,
}

impl Context {
    /// Kafka has answered.
    pub fn back(&self) {
        self.health.back();
    }
}

impl ClientContext for Context {
    /// librdkafka tells of each failed attempt to connect; what a person needs comes through [`Self::error`].
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if matches!(level, RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical) {
            tracing::error!(facility, "librdkafka: {message}");
        } else {
            tracing::debug!(facility, "librdkafka: {message}");
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL) => {
                self.health.lost(reason)
            }
            Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::Resolve) => {
                tracing::debug!(reason, "kafka connection failed");
            }
            _ => tracing::warn!(error = %error, reason, "kafka client reports an error"),
        }
    }
}

impl ConsumerContext for Context {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_forgets_is_named() {
        let keeps = [Some("-1".to_owned()), Some("-1".to_owned()), Some("delete".to_owned())];
        assert!(retention_advice(&keeps).is_empty());
        let forgets = [Some("604800000".to_owned()), None, Some("compact".to_owned())];
        assert_eq!(retention_advice(&forgets).len(), 2);
    }
}
