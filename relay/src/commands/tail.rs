//! `duplex-relay tail`: a stream for people.

use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use clap::Args;
use duplex_protocol::json::View;
use duplex_protocol::record::{Kind, Record};
use serde_json::{Value, json};

use crate::backoff::Backoff;
use crate::errors::{Error, Policy};
use crate::inbound::consumer::{Extent, Fetched, TopicReader};
use crate::kafka::{Kafka, topic_of};

/// How many records are shown unless told otherwise.
const LAST: usize = 10;
/// How far back they are looked for: heartbeats do not count, and a quiet stream has little else.
const FURTHEST: i64 = 20_000;
/// The same in bytes, about.
const MOST_BYTES: usize = 16 * 1024 * 1024;

/// Arguments of `tail`.
#[derive(Debug, Clone, Args)]
pub struct TailArguments {
    /// The node whose stream is shown.
    pub node: String,
    /// Start at this offset; without it, at the last ten records that are no heartbeats.
    #[arg(long, value_name = "OFFSET", conflicts_with = "beginning")]
    pub from: Option<i64>,
    /// Start at the first record that Kafka holds.
    #[arg(long)]
    pub beginning: bool,
    /// Wait for further records.
    #[arg(long, short)]
    pub follow: bool,
    /// Show heartbeats as well: what the node says of itself every few seconds.
    #[arg(long)]
    pub heartbeats: bool,
}

/// Prints the stream, one JSON object a line.
///
/// # Errors
/// If Kafka cannot be read or the output written.
pub async fn run(kafka: &Kafka, arguments: TailArguments) -> anyhow::Result<ExitCode> {
    let (mut reader, extent) = TopicReader::open(kafka, topic_of(&arguments.node)).await?;
    let start = match arguments.from {
        Some(offset) => offset.clamp(extent.low, extent.high),
        None if arguments.beginning => extent.low,
        None if arguments.heartbeats => (extent.high - LAST as i64).max(extent.low),
        None => last_start(kafka, &arguments.node, &extent).await?,
    };
    reader.start(start)?;
    let mut view = View::default();
    let mut next = start;
    while arguments.follow || next < extent.high {
        let fetched = match reader.next().await {
            Err(err @ Error::CutOff) => {
                tracing::warn!(error = %err, "reading goes on with a new one");
                reader = opened_again(kafka, &arguments.node).await?;
                reader.start(next)?;
                continue;
            }
            fetched => fetched?,
        };
        next = fetched.offset + 1;
        if !arguments.heartbeats && is_heartbeat(&fetched) {
            continue;
        }
        let mut line = shown(&mut view, &fetched).to_string();
        line.push('\n');
        match std::io::stdout().lock().write_all(line.as_bytes()) {
            Err(err) if err.kind() == ErrorKind::BrokenPipe => break,
            written => written?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What made the client of before useless may go on for a while.
async fn opened_again(kafka: &Kafka, node: &str) -> Result<TopicReader, Error> {
    let mut backoff = Backoff::default();
    loop {
        match TopicReader::open(kafka, topic_of(node)).await {
            Err(err @ Error::Kafka { .. }) if err.treatment().0 == Policy::Retry => {
                tracing::debug!(error = %err, "the topic cannot be read yet");
                tokio::time::sleep(backoff.next_wait()).await;
            }
            opened => return opened.map(|(reader, _)| reader),
        }
    }
}

/// Where the last ten records begin that are no heartbeats.
async fn last_start(kafka: &Kafka, node: &str, extent: &Extent) -> Result<i64, Error> {
    let mut length = LAST as i64;
    loop {
        let start = (extent.high - length).max(extent.low);
        let (reader, _) = TopicReader::open(kafka, topic_of(node)).await?;
        reader.start(start)?;
        let (mut shown, mut next, mut bytes) = (Vec::new(), start, 0);
        while next < extent.high {
            let fetched = reader.next().await?;
            next = fetched.offset + 1;
            bytes += fetched.value.len();
            if !is_heartbeat(&fetched) {
                shown.push(fetched.offset);
            }
        }
        if shown.len() >= LAST || start == extent.low || length >= FURTHEST || bytes >= MOST_BYTES {
            let first = shown.len().saturating_sub(LAST);
            return Ok(shown.get(first).copied().unwrap_or(extent.high));
        }
        length *= 8;
    }
}

fn is_heartbeat(fetched: &Fetched) -> bool {
    Record::decode(&fetched.value).is_ok_and(|record| record.header.kind == Kind::Heartbeat)
}

/// A record that cannot be read is shown as one: the stream goes on behind it.
fn shown(view: &mut View, fetched: &Fetched) -> Value {
    Record::decode(&fetched.value)
        .and_then(|record| view.record(&record, fetched.offset))
        .unwrap_or_else(|err| json!({ "offset": fetched.offset, "error": err.to_string() }))
}
