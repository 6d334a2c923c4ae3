//! The end of the node's own stream, read back after a take-over: what the last relay published and did not live to
//! confirm must not be published twice.

use std::collections::HashMap;

use duplex_protocol::record::{Hello, Kind, Position, Record};

use crate::errors::Error;
use crate::inbound::consumer::TopicReader;
use crate::kafka::Kafka;
use crate::sifter::{Sifter, Verdict};

/// What the end of the stream holds.
#[derive(Debug, Default)]
pub struct Tail {
    /// Whole transactions, and the offset of their last record.
    pub published: HashMap<Position, i64>,
    /// The greatest generation that another relay has announced there.
    pub newest_generation: u64,
}

/// Puts a [`Tail`] together record by record.
#[derive(Debug)]
pub struct TailBuilder {
    tail: Tail,
    sifter: Sifter,
    node_id: [u8; 16],
    /// A hello of another database under this name: what follows is not ours.
    foreign: bool,
}

impl TailBuilder {
    /// For the database with this identity.
    pub fn new(node_id: [u8; 16]) -> Self {
        Self { tail: Tail::default(), sifter: Sifter::new(0), node_id, foreign: false }
    }

    /// Takes the next record.
    pub fn take(&mut self, offset: i64, record: &Record<'_>) {
        let header = &record.header;
        if header.kind == Kind::Hello {
            self.tail.newest_generation = self.tail.newest_generation.max(header.generation);
            self.foreign = Hello::decode(record.body).is_ok_and(|hello| hello.node_id != self.node_id);
        }
        let complete = match self.sifter.judge(header) {
            Verdict::Whole { .. } => true,
            Verdict::Chunk { last, .. } => last,
            Verdict::Void | Verdict::Broken(_) => false,
        };
        if complete && header.kind == Kind::Transaction && !self.foreign {
            self.tail.published.insert(header.position, offset);
        }
    }

    /// What was read.
    pub fn finish(self) -> Tail {
        self.tail
    }
}

/// Reads the topic from after `confirmed` up to the hello at `hello_offset`.
///
/// # Errors
/// [`Error::Kafka`].
pub async fn read_back(
    kafka: &Kafka,
    topic: &str,
    confirmed: Option<i64>,
    hello_offset: i64,
    node_id: [u8; 16],
) -> Result<Tail, Error> {
    let (reader, extent) = TopicReader::open(kafka, topic.to_owned()).await?;
    let mut start = confirmed.map_or(extent.low, |offset| (offset + 1).max(extent.low));
    if start > hello_offset {
        tracing::warn!(topic, confirmed, end = hello_offset, "the topic is shorter than it was: it was made anew");
        start = extent.low;
    }
    let mut builder = TailBuilder::new(node_id);
    if start < hello_offset {
        reader.start(start)?;
        loop {
            let fetched = reader.next().await?;
            if fetched.offset >= hello_offset {
                break;
            }
            match Record::decode(&fetched.value) {
                Ok(record) => builder.take(fetched.offset, &record),
                Err(err) => tracing::warn!(topic, offset = fetched.offset, error = %err, "a record is not ours"),
            }
        }
    }
    Ok(builder.finish())
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

    fn read(records: &[Vec<u8>]) -> Tail {
        let mut builder = TailBuilder::new([7; 16]);
        for (offset, bytes) in records.iter().enumerate() {
            builder.take(offset as i64, &Record::decode(bytes).expect("made here"));
        }
        builder.finish()
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
        let tail = read(&[
            transaction(4, 10, 0, true),
            transaction(4, 11, 0, false),
            transaction(4, 11, 1, true),
            transaction(4, 12, 0, false),
            hello(5, 7),
            transaction(4, 13, 0, true),
            transaction(5, 14, 0, true),
        ]);
        let mut found: Vec<_> = tail.published.iter().map(|(position, offset)| (position.xid, *offset)).collect();
        found.sort_unstable();
        assert_eq!(found, [(10, 0), (11, 2), (14, 6)]);
        assert_eq!(tail.newest_generation, 5);
    }

    #[test]
    fn a_stream_left_by_another_database_of_that_name_does_not_count() {
        let tail = read(&[hello(1, 9), transaction(1, 10, 0, true), hello(2, 7), transaction(2, 10, 0, true)]);
        assert_eq!(tail.published.values().copied().collect::<Vec<_>>(), [3]);
    }
}
