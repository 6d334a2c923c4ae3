//! `duplex-relay tail`: a stream for people.

use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use clap::Args;
use duplex_protocol::json::View;
use duplex_protocol::record::Record;
use serde_json::{Value, json};

use crate::inbound::consumer::{Fetched, TopicReader};
use crate::kafka::{Kafka, topic_of};

/// How many records are shown unless told otherwise.
const LAST: i64 = 10;

/// Arguments of `tail`.
#[derive(Debug, Clone, Args)]
pub struct TailArguments {
    /// The node whose stream is shown.
    pub node: String,
    /// Start at this offset; without it, at the last ten records.
    #[arg(long, value_name = "OFFSET", conflicts_with = "beginning")]
    pub from: Option<i64>,
    /// Start at the first record that Kafka holds.
    #[arg(long)]
    pub beginning: bool,
    /// Wait for further records.
    #[arg(long, short)]
    pub follow: bool,
}

/// Prints the stream, one JSON object a line.
///
/// # Errors
/// If Kafka cannot be read or the output written.
pub async fn run(kafka: &Kafka, arguments: TailArguments) -> anyhow::Result<ExitCode> {
    let (reader, extent) = TopicReader::open(kafka, topic_of(&arguments.node)).await?;
    let start = match arguments.from {
        Some(offset) => offset,
        None if arguments.beginning => extent.low,
        None => extent.high - LAST,
    };
    let start = start.clamp(extent.low, extent.high);
    reader.start(start)?;
    let mut view = View::default();
    let mut next = start;
    while arguments.follow || next < extent.high {
        let fetched = reader.next().await?;
        next = fetched.offset + 1;
        let mut line = shown(&mut view, &fetched).to_string();
        line.push('\n');
        match std::io::stdout().lock().write_all(line.as_bytes()) {
            Err(err) if err.kind() == ErrorKind::BrokenPipe => break,
            written => written?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A record that cannot be read is shown as one: the stream goes on behind it.
fn shown(view: &mut View, fetched: &Fetched) -> Value {
    Record::decode(&fetched.value)
        .and_then(|record| view.record(&record, fetched.offset))
        .unwrap_or_else(|err| json!({ "offset": fetched.offset, "error": err.to_string() }))
}
