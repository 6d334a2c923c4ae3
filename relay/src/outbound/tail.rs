//! The end of the node's own stream, read back after a take-over: what the last relay published and did not live to
//! confirm must not be published twice, and what the database has lost since is brought back from there.

use std::collections::HashMap;

use duplex_protocol::record::{Hello, Kind, Position, Record};
use duplex_protocol::version::Timestamp;

use super::replay::Replay;
use crate::errors::Error;
use crate::inbound::consumer::TopicReader;
use crate::kafka::Kafka;
use crate::sifter::{Sifter, Verdict};

/// A transaction. After a promotion both transaction ids and WAL positions may be used a second time; a time of commit
/// is not.
pub type Identity = (Position, Timestamp);

/// What the end of the stream holds.
#[derive(Debug, Default)]
pub struct Tail {
    /// Whole transactions that the database has and will hand out again, and the offset of their last record.
    pub published: HashMap<Identity, i64>,
    /// The greatest generation that another relay has announced there.
    pub newest_generation: u64,
    /// Transactions that the database had lost.
    pub replayed: usize,
}

/// What a record of the tail is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Void, no transaction, or of another database.
    Nothing,
    /// A transaction of one record.
    Whole,
    /// A chunk of a longer one.
    Chunk {
        /// Whether it is the first.
        first: bool,
        /// Whether it is the last.
        last: bool,
    },
    /// The transaction read so far is void.
    Abandons,
}

/// Judges the tail record by record.
#[derive(Debug)]
pub struct Judge {
    sifter: Sifter,
    node_id: [u8; 16],
    /// A hello of another database under this name: what follows is not ours.
    foreign: bool,
    /// The greatest generation announced.
    newest_generation: u64,
}

impl Judge {
    /// For the database with this identity.
    pub fn new(node_id: [u8; 16]) -> Self {
        Self { sifter: Sifter::new(0), node_id, foreign: false, newest_generation: 0 }
    }

    /// Judges the next record.
    pub fn take(&mut self, record: &Record<'_>) -> Found {
        let header = &record.header;
        if header.kind == Kind::Hello {
            self.newest_generation = self.newest_generation.max(header.generation);
            self.foreign = Hello::decode(record.body).is_ok_and(|hello| hello.node_id != self.node_id);
        }
        let verdict = self.sifter.judge(header);
        match verdict {
            Verdict::Whole { abandons: true } => Found::Abandons,
            _ if self.foreign || header.kind != Kind::Transaction => Found::Nothing,
            Verdict::Whole { .. } => Found::Whole,
            Verdict::Chunk { first, last } => Found::Chunk { first, last },
            Verdict::Void | Verdict::Broken(_) => Found::Nothing,
        }
    }
}

/// Reads the topic from after `confirmed` up to the hello at `hello_offset`.
///
/// # Errors
/// [`Error::Kafka`], and those of [`Replay`].
pub async fn read_back(
    kafka: &Kafka,
    topic: &str,
    confirmed: Option<i64>,
    hello_offset: i64,
    node_id: [u8; 16],
    mut replay: Replay<'_>,
) -> Result<Tail, Error> {
    let (reader, extent) = TopicReader::open(kafka, topic.to_owned()).await?;
    let mut start = confirmed.map_or(extent.low, |offset| (offset + 1).max(extent.low));
    if start > hello_offset {
        tracing::warn!(topic, confirmed, end = hello_offset, "the topic is shorter than it was: it was made anew");
        start = extent.low;
    }
    let mut judge = Judge::new(node_id);
    if start < hello_offset {
        reader.start(start)?;
        loop {
            let fetched = reader.next().await?;
            if fetched.offset >= hello_offset {
                break;
            }
            match Record::decode(&fetched.value) {
                Ok(record) => {
                    let identity = (record.header.position, record.header.commit_ts);
                    let found = judge.take(&record);
                    replay.take(fetched, identity, found).await?;
                }
                Err(err) => tracing::warn!(topic, offset = fetched.offset, error = %err, "a record is not ours"),
            }
        }
    }
    let (published, replayed) = replay.finish().await?;
    Ok(Tail { published, newest_generation: judge.newest_generation, replayed })
}

#[cfg(test)]
mod tests {
    use duplex_protocol::record::Header;

    use super::*;

    fn header(kind: Kind, generation: u64, xid: u64, chunk: u32, last: bool) -> Header {
        Header {
            kind,
            node: "chat1".to_owned(),
            generation,
            position: Position { lsn: xid * 8, xid },
            chunk,
            last,
            commit_ts: 0,
            seen: Vec::new(),
            settled: 0,
            held: 0,
            expanded_len: None,
        }
    }

    /// Whole transactions, by the number of their last record, and the newest generation.
    fn read(records: &[Vec<u8>]) -> (Vec<usize>, u64) {
        let mut judge = Judge::new([7; 16]);
        let mut whole = Vec::new();
        for (number, bytes) in records.iter().enumerate() {
            let found = judge.take(&Record::decode(bytes).expect("made here"));
            if matches!(found, Found::Whole | Found::Chunk { last: true, .. }) {
                whole.push(number);
            }
        }
        (whole, judge.newest_generation)
    }

    fn transaction(generation: u64, xid: u64, chunk: u32, last: bool) -> Vec<u8> {
        header(Kind::Transaction, generation, xid, chunk, last).encode_record(b"")
    }

    fn hello(generation: u64, node_id: u8) -> Vec<u8> {
        let body = Hello { node_id: [node_id; 16], extension_version: "0.1.0".to_owned() }.encode();
        header(Kind::Hello, generation, 0, 0, true).encode_record(&body)
    }

    #[test]
    fn whole_transactions_are_found_and_torn_ones_are_not() {
        let (whole, newest_generation) = read(&[
            transaction(4, 10, 0, true),
            transaction(4, 11, 0, false),
            transaction(4, 11, 1, true),
            transaction(4, 12, 0, false),
            hello(5, 7),
            transaction(4, 13, 0, true),
            transaction(5, 14, 0, true),
        ]);
        assert_eq!(whole, [0, 2, 6]);
        assert_eq!(newest_generation, 5);
    }

    #[test]
    fn a_stream_left_by_another_database_of_that_name_does_not_count() {
        let (whole, _) = read(&[hello(1, 9), transaction(1, 10, 0, true), hello(2, 7), transaction(2, 10, 0, true)]);
        assert_eq!(whole, [3]);
    }
}
