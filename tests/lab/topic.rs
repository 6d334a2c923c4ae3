//! What a node's stream holds, read back from Kafka.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use duplex_protocol::record::{Header, Kind, Record};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, FutureProducer, FutureRecord, Producer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Message, Offset, TopicPartitionList};

use crate::wait::when;
use crate::{Kafka, PATIENCE, until};

const TIMEOUT: Duration = Duration::from_secs(10);

/// A record of a stream, as Kafka has it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its offset.
    pub offset: i64,
    /// Its value.
    pub value: Vec<u8>,
}

impl Stored {
    /// The record's header.
    ///
    /// # Errors
    /// If these bytes are no record.
    pub fn header(&self) -> Result<Header> {
        Ok(Record::decode(&self.value)?.header)
    }
}

/// The topic of a node.
pub fn name(node: &str) -> String {
    format!("duplex.{node}")
}

/// The offset after the newest record; 0 if the topic does not exist yet.
///
/// # Errors
/// If Kafka does not answer.
pub async fn end(kafka: &Kafka, node: &str) -> Result<i64> {
    let (config, topic) = (kafka.client(), name(node));
    tokio::task::spawn_blocking(move || {
        let client: BaseConsumer = config.create()?;
        end_offset(&client, &topic)
    })
    .await?
}

fn end_offset(client: &BaseConsumer, topic: &str) -> Result<i64> {
    match client.fetch_watermarks(topic, 0, TIMEOUT) {
        Ok((_, high)) => Ok(high),
        Err(KafkaError::MetadataFetch(
            RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownPartition
            | RDKafkaErrorCode::UnknownTopic,
        )) => Ok(0),
        Err(err) => Err(err).with_context(|| format!("end of topic {topic}")),
    }
}

/// Another broker may have it.
fn is_one_broker(err: &KafkaError) -> bool {
    err.rdkafka_error_code() == Some(RDKafkaErrorCode::BrokerTransportFailure)
}

/// All records of a node's stream, from the oldest that Kafka has.
///
/// # Errors
/// If Kafka does not answer.
pub async fn read(kafka: &Kafka, node: &str) -> Result<Vec<Stored>> {
    let (mut config, topic) = (kafka.client(), name(node));
    config.set("group.id", "duplex-lab").set("enable.auto.commit", "false").set("enable.partition.eof", "true");
    tokio::task::spawn_blocking(move || {
        let client: BaseConsumer = config.create()?;
        let end = end_offset(&client, &topic)?;
        let mut records = Vec::new();
        if end == 0 {
            return Ok(records);
        }
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_offset(&topic, 0, Offset::Beginning)?;
        client.assign(&partitions)?;
        let start = Instant::now();
        loop {
            match client.poll(Duration::from_millis(200)) {
                Some(Ok(message)) => {
                    let offset = message.offset();
                    records.push(Stored { offset, value: message.payload().unwrap_or_default().to_vec() });
                    // More may come for as long as somebody writes.
                    if offset + 1 >= end {
                        return Ok(records);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(records),
                Some(Err(err)) if !is_one_broker(&err) => bail!("reading {topic}: {err}"),
                _ => ensure!(start.elapsed() < TIMEOUT * 3, "reading {topic}: nothing comes before offset {end}"),
            }
        }
    })
    .await?
}

fn admin(kafka: &Kafka) -> Result<AdminClient<DefaultClientContext>> {
    Ok(kafka.client().create()?)
}

fn patient() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT))
}

/// Makes a node's topic before its relay does, with these settings on top of what a relay gives it.
///
/// # Errors
/// Kafka's.
pub async fn create(kafka: &Kafka, node: &str, settings: &[(&str, &str)]) -> Result<()> {
    let topic = name(node);
    let mut new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set("retention.ms", "-1");
    for (key, value) in settings {
        new = new.set(key, value);
    }
    // A topic that was deleted a moment ago may still be on its way out.
    until("the topic to be made", PATIENCE, async || {
        let made = admin(kafka)?.create_topics([&new], &patient()).await?;
        Ok(match made.into_iter().next() {
            Some(Err((_, code))) => Err(code.to_string()),
            _ => Ok(()),
        })
    })
    .await
}

/// Removes nodes' topics; one that does not exist is as good as removed.
///
/// # Errors
/// If Kafka does not answer.
pub async fn remove(kafka: &Kafka, nodes: &[&str]) -> Result<()> {
    let topics: Vec<String> = nodes.iter().map(|node| name(node)).collect();
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    for removed in admin(kafka)?.delete_topics(&topics, &patient()).await? {
        match removed {
            Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
            Err((topic, code)) => bail!("removing topic {topic}: {code}"),
        }
    }
    Ok(())
}

/// Deletes a node's topic, and waits until it is gone.
///
/// # Errors
/// Kafka's.
pub async fn delete(kafka: &Kafka, node: &str) -> Result<()> {
    let topic = name(node);
    for deleted in admin(kafka)?.delete_topics(&[&topic], &patient()).await? {
        deleted.map_err(|(topic, code)| anyhow::anyhow!("deleting {topic}: {code}"))?;
    }
    until("the topic to be gone", PATIENCE, async || Ok(when(end(kafka, node).await? == 0, "it is there"))).await
}

/// Deletes a node's records below an offset.
///
/// # Errors
/// Kafka's.
pub async fn delete_records(kafka: &Kafka, node: &str, before: i64) -> Result<()> {
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(&name(node), 0, Offset::Offset(before))?;
    let deleted = admin(kafka)?.delete_records(&offsets, &patient()).await?;
    for partition in deleted.elements() {
        partition.error()?;
    }
    Ok(())
}

/// Writes records to a node's topic as they are.
///
/// # Errors
/// Kafka's.
pub async fn publish(kafka: &Kafka, node: &str, values: &[Vec<u8>]) -> Result<()> {
    let producer: FutureProducer = kafka.client().create()?;
    for value in values {
        let topic = name(node);
        let record = FutureRecord::<(), _>::to(&topic).partition(0).payload(value);
        producer.send(record, TIMEOUT).await.map_err(|(err, _)| err)?;
    }
    Ok(())
}

/// Writes records to a node's topic in a transaction of Kafka's that is aborted: their offsets are taken, and whoever reads
/// finds nothing there.
///
/// # Errors
/// Kafka's.
pub async fn publish_and_abort(kafka: &Kafka, node: &str, values: &[Vec<u8>]) -> Result<()> {
    let (mut config, topic, values) = (kafka.client(), name(node), values.to_vec());
    config.set("transactional.id", format!("lab-{node}"));
    tokio::task::spawn_blocking(move || {
        let producer: BaseProducer = config.create()?;
        producer.init_transactions(PATIENCE)?;
        producer.begin_transaction()?;
        for value in &values {
            let record = BaseRecord::<(), _>::to(&topic).partition(0).payload(value);
            producer.send(record).map_err(|(err, _)| err)?;
        }
        // What is not sent when the transaction ends takes no offset.
        producer.flush(TIMEOUT)?;
        Ok(producer.abort_transaction(TIMEOUT)?)
    })
    .await?
}

/// How many transactions a stream holds by the rules that every reader goes by: a record of an earlier generation is
/// void, and so is a transaction that had not come to its last chunk when another relay took over.
///
/// # Errors
/// If a record is none.
pub fn transactions(records: &[Stored]) -> Result<Vec<Header>> {
    let mut generation = 0;
    let mut whole = Vec::new();
    let mut open = None;
    for record in records {
        let header = record.header()?;
        if header.generation < generation {
            continue;
        }
        generation = header.generation;
        match header.kind {
            Kind::Hello => open = None,
            Kind::Heartbeat => {}
            Kind::Transaction => {
                let position = (header.position, header.chunk);
                ensure!(
                    match open {
                        None => header.chunk == 0,
                        Some((of, chunk)) => of == header.position && chunk + 1 == header.chunk,
                    },
                    "offset {}: chunk {} of {:?} does not follow {open:?}",
                    record.offset,
                    header.chunk,
                    header.position
                );
                open = if header.last { None } else { Some(position) };
                if header.last {
                    whole.push(header);
                }
            }
        }
    }
    Ok(whole)
}
