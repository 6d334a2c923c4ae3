//! Kafka: whether it answers, and whether the own topic and the peers' can be used.

use super::Finding;
use crate::control::Info;
use crate::database::Session;
use crate::errors::Error;
use crate::inbound::consumer::TopicReader;
use crate::kafka::{Kafka, Topic, retention_advice, topic_of};

/// A record has at most 512 KiB of body, and a header.
const RECORD_BYTES: i64 = 600_000;

/// Looks at them. Returns the peers whose topics can be read.
pub(super) async fn look(
    kafka: &Kafka,
    session: Option<&Session>,
    info: Option<&Info>,
    findings: &mut Vec<Finding>,
) -> Vec<String> {
    let own = info.map(|info| topic_of(&info.node));
    // Without a node any topic's name serves to see whether Kafka answers.
    match kafka.topic(own.as_deref().unwrap_or("duplex.check")).await {
        Err(err) => {
            findings.push(Finding::error(&err));
            return Vec::new();
        }
        Ok(found) => {
            findings.push(Finding::Fine(format!("Kafka answers at {}", kafka.bootstrap())));
            if let Some(topic) = own {
                own_topic(kafka, &topic, found, findings).await;
            }
        }
    }
    let mut readable = Vec::new();
    for peer in info.map(|info| info.peers.as_slice()).unwrap_or_default() {
        let topic = topic_of(peer);
        let finding = match kafka.topic(&topic).await {
            Ok(Some(Topic { is_led: false, .. })) => unled(&format!("peer's topic {topic}")),
            Ok(Some(Topic { partitions: 1, .. })) => {
                readable.push(peer.clone());
                findings.push(Finding::Fine(format!("peer's topic {topic} has 1 partition")));
                let Some(session) = session else { continue };
                lag(session, kafka, peer).await.unwrap_or_else(|err| Finding::error(&err))
            }
            Ok(Some(Topic { partitions: found, .. })) => Finding::error(&Error::TopicPartitions { topic, found }),
            Ok(None) => Finding::note(format!("peer's topic {topic} does not exist yet"), "start the peer's relay"),
            Err(err) => Finding::error(&err),
        };
        findings.push(finding);
    }
    readable
}

/// How far a peer's stream is applied here.
async fn lag(session: &Session, kafka: &Kafka, peer: &str) -> Result<Finding, Error> {
    let topic = topic_of(peer);
    let (_, extent) = TopicReader::open(kafka, topic.clone()).await?;
    let row = session.query_one("select duplex.next_offset($1)", &[&peer]).await;
    let row = row.map_err(Error::database("reading how far a peer's stream is applied"))?;
    Ok(match extent.high - row.get::<_, i64>(0) {
        ..=0 => Finding::Fine(format!("peer's topic {topic}: all {} records are applied here", extent.high)),
        left => Finding::note(
            format!("peer's topic {topic}: {left} of {} records are not applied here yet", extent.high),
            "it goes on by itself, unless this says otherwise of the peer above",
        ),
    })
}

async fn own_topic(kafka: &Kafka, topic: &str, found: Option<Topic>, findings: &mut Vec<Finding>) {
    let Some(found) = found else {
        findings.push(Finding::Fine(format!("own topic {topic} does not exist yet: the relay creates it")));
        return;
    };
    findings.push(match found.partitions {
        1 => Finding::Fine(format!("own topic {topic} has 1 partition")),
        found => Finding::error(&Error::TopicPartitions { topic: topic.to_owned(), found }),
    });
    let names = ["retention.ms", "retention.bytes", "cleanup.policy", "max.message.bytes", "min.insync.replicas"];
    match kafka.topic_setting(topic, &names).await {
        Err(err) => {
            findings.push(Finding::note(err.to_string(), "the topic's settings are not checked"));
            findings.extend(replicas(topic, found, None));
        }
        Ok(settings) => {
            let number = |at: usize| settings.get(at).cloned().flatten().and_then(|number| number.parse::<i64>().ok());
            let forgets = retention_advice(&settings).into_iter();
            findings.extend(forgets.map(|advice| Finding::note(format!("own topic {topic}"), advice)));
            findings.push(match number(3) {
                Some(limit) if limit < RECORD_BYTES => Finding::failure(
                    format!("own topic {topic} takes records of at most {limit} bytes"),
                    format!("set its max.message.bytes to {RECORD_BYTES} at least"),
                ),
                _ => Finding::Fine(format!("own topic {topic} takes records of {RECORD_BYTES} bytes")),
            });
            findings.extend(replicas(topic, found, number(4)));
        }
    }
}

/// What is to be said of the brokers that have the own topic. Kafka takes a record only where `least` of them are in sync.
fn replicas(topic: &str, found: Topic, least: Option<i64>) -> Option<Finding> {
    let Topic { is_led, replicas, in_sync, .. } = found;
    let state = format!("own topic {topic}: {in_sync} of its {replicas} replicas {} in sync", are(in_sync));
    match least {
        _ if !is_led => Some(unled(&format!("own topic {topic}"))),
        Some(least) if (in_sync as i64) < least => Some(Finding::failure(
            format!("{state}, and min.insync.replicas is {least}: Kafka takes no records"),
            if (replicas as i64) < least {
                "give the topic more replicas, or lower its min.insync.replicas"
            } else {
                "start the brokers that are away; what is captured waits in the queue"
            },
        )),
        _ if in_sync < replicas => Some(Finding::note(state, "start the brokers that are away")),
        _ => None,
    }
}

fn unled(topic: &str) -> Finding {
    Finding::failure(
        format!("{topic} cannot be used: no broker leads it"),
        "start the brokers that have it; it goes on by itself then",
    )
}

fn are(count: usize) -> &'static str {
    if count == 1 { "is" } else { "are" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(is_led: bool, in_sync: usize, least: i64) -> Option<String> {
        let topic = Topic { partitions: 1, is_led, replicas: 3, in_sync };
        replicas("t", topic, Some(least)).map(|finding| finding.to_string())
    }

    #[test]
    fn brokers_that_are_away_are_named_by_what_becomes_of_records() {
        assert_eq!(finding(true, 3, 2), None);
        assert!(
            finding(true, 2, 2).is_some_and(|found| found.starts_with("note  own topic t: 2 of its 3 replicas are"))
        );
        let refused =
            "FAIL  own topic t: 1 of its 3 replicas is in sync, and min.insync.replicas is 2: Kafka takes no records";
        assert!(
            finding(true, 1, 2).is_some_and(|found| found.starts_with(refused) && found.contains("start the brokers"))
        );
        assert!(finding(true, 3, 4).is_some_and(|found| found.starts_with("FAIL") && found.contains("more replicas")));
        assert!(finding(false, 1, 1).is_some_and(|found| found.starts_with("FAIL  own topic t cannot be used")));
    }
}
