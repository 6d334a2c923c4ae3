//! Whether the tables that a peer writes to are here as they have to be.
//!
//! Every transaction in a stream describes the tables that it writes to. What is compared is therefore exactly what
//! will have to be applied, as it was when the peer last wrote to the table: no table of the peer's is asked for that
//! never changes, and none that was altered since is judged by what it was. Reading backwards from the end of the topic
//! is bounded in records, bytes and time.

use std::collections::BTreeMap;
use std::time::Duration;

use duplex_protocol::entry::{Entry, Relation};
use duplex_protocol::record::{Kind, Record};
use duplex_protocol::stream::EntryReader;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::Finding;
use crate::database::Session;
use crate::errors::Error;
use crate::inbound::consumer::{Fetched, TopicReader};
use crate::kafka::{Kafka, topic_of};

/// Records that are read at most.
const MOST_RECORDS: i64 = 20_000;
/// Bytes that are read at most, but for the rest of a block.
const MOST_BYTES: usize = 16 * 1024 * 1024;
/// How long reading may take.
const LONGEST: Duration = Duration::from_secs(10);
/// Records in the first block; each further one is longer while blocks are small.
const FIRST_BLOCK: i64 = 32;
/// A block of fewer bytes is small.
const SMALL_BLOCK: usize = 1024 * 1024;

/// Tables by schema and name, as a peer described them last.
type Tables = BTreeMap<(String, String), Relation>;

/// Compares a peer's tables with those of this database.
pub(super) async fn compare(session: &Session, kafka: &Kafka, peer: &str, findings: &mut Vec<Finding>) {
    let (tables, records) = match described(kafka, peer).await {
        Ok(found) => found,
        Err(err) => {
            findings.push(Finding::error(&err));
            return;
        }
    };
    if tables.is_empty() {
        findings.push(Finding::note(
            format!("peer {peer}: none of its last {records} records describes a table"),
            "its tables are compared once it has written to them",
        ));
        return;
    }
    let before = findings.len();
    for table in tables.values() {
        match session
            .query("select severity, what, advice from duplex.compare_table($1::text::jsonb)", &[&shown(table)])
            .await
        {
            Ok(rows) => findings.extend(rows.iter().map(|row| {
                let (severity, what, advice): (String, String, String) = (row.get(0), row.get(1), row.get(2));
                let what = format!("peer {peer}: {what}");
                if severity == "note" { Finding::note(what, advice) } else { Finding::failure(what, advice) }
            })),
            Err(err) => {
                findings.push(Finding::error(&Error::database("comparing a peer's tables")(err)));
                return;
            }
        }
    }
    if findings.len() == before {
        let names: Vec<String> = tables.keys().map(|(schema, name)| format!("{schema}.{name}")).collect();
        findings.push(Finding::Fine(format!(
            "peer {peer}: the tables of its last {records} records fit: {}",
            names.join(", ")
        )));
    }
}

/// What `duplex.compare_table` takes.
fn shown(table: &Relation) -> String {
    let columns = table.columns.iter().map(|column| {
        json!({
            "name": column.name,
            "type_schema": column.type_schema,
            "type_name": column.type_name,
            "type_modifier": column.type_modifier,
        })
    });
    let names = |indexes: &[u16]| -> Vec<String> {
        let columns = indexes.iter().filter_map(|&index| table.columns.get(usize::from(index)));
        columns.map(|column| column.name.clone()).collect()
    };
    json!({
        "schema": table.schema,
        "name": table.name,
        "columns": columns.collect::<Vec<_>>(),
        "key": names(&table.key),
        "resolution": table.resolution.name(),
        "delta_columns": names(&table.delta_columns),
    })
    .to_string()
}

/// The tables that the newest records of a peer's stream describe, and how many records were looked at.
async fn described(kafka: &Kafka, peer: &str) -> Result<(Tables, i64), Error> {
    let (reader, extent) = TopicReader::open(kafka, topic_of(peer)).await?;
    let deadline = Instant::now() + LONGEST;
    let mut tables = Tables::new();
    let (mut end, mut bytes, mut length, mut heartbeats) = (extent.high, 0, FIRST_BLOCK, 0);
    while end > extent.low && extent.high - end - heartbeats < MOST_RECORDS && bytes < MOST_BYTES {
        let start = (end - length).max(extent.low);
        let mut block = Block::default();
        // A topic that something else writes to may have holes: its last offset then never comes.
        let read = timeout_at(deadline, block.read(&reader, start, end)).await;
        for (name, table) in block.tables {
            tables.entry(name).or_insert(table);
        }
        match read {
            Ok(read) => read?,
            Err(_) => break,
        }
        end = start;
        bytes += block.bytes;
        heartbeats += block.heartbeats;
        if block.bytes < SMALL_BLOCK {
            length *= 4;
        }
    }
    Ok((tables, extent.high - end))
}

/// Some records that follow each other.
#[derive(Debug, Default)]
struct Block {
    tables: Tables,
    bytes: usize,
    /// A peer at rest publishes little else.
    heartbeats: i64,
    /// The transaction that is being read. One whose first chunk is before the block cannot be.
    open: Option<EntryReader>,
}

impl Block {
    async fn read(&mut self, reader: &TopicReader, start: i64, end: i64) -> Result<(), Error> {
        reader.start(start)?;
        loop {
            let fetched = reader.next().await?;
            // What an earlier block's fetch still brings.
            if (start..end).contains(&fetched.offset) {
                self.take(&fetched);
            }
            if fetched.offset >= end - 1 {
                return Ok(());
            }
        }
    }

    /// What cannot be read is passed over: the stream's own reader will say so.
    fn take(&mut self, fetched: &Fetched) {
        self.bytes += fetched.value.len();
        let Ok(record) = Record::decode(&fetched.value) else { return };
        self.heartbeats += i64::from(record.header.kind == Kind::Heartbeat);
        if record.header.kind != Kind::Transaction {
            return;
        }
        if record.header.chunk == 0 {
            self.open = Some(EntryReader::default());
        }
        let Some(reader) = &mut self.open else { return };
        if reader.feed(&record).is_err() {
            self.open = None;
            return;
        }
        while let Some(frame) = reader.next_frame() {
            if Entry::is_relation(frame)
                && let Ok(Entry::Relation(table)) = Entry::decode(frame)
            {
                self.tables.insert((table.schema.clone(), table.name.clone()), table);
            }
        }
        if record.header.last {
            self.open = None;
        }
    }
}
