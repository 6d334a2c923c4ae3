//! The end of the node's own stream, read back after a take-over: what the last relay published and did not live to
//! confirm must not be published twice, and what the database has lost since is brought back from there.

use std::collections::HashMap;

use duplex_protocol::record::{Hello, Kind, Position, Record};
use duplex_protocol::version::Timestamp;

use super::promised::Promised;
use super::replay::Replay;
use crate::errors::Error;
use crate::inbound::consumer::TopicReader;
use crate::kafka::Kafka;
use crate::sifter::{Sifter, Verdict};

/// A transaction. After a promotion both transaction ids and WAL positions may be used a second time; a time of commit
/// is not.
pub type Identity = (Position, Timestamp);

/// Where a whole transaction is in the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Offset of its first record.
    pub first: i64,
    /// Offset of its last record.
    pub last: i64,
}

/// What the end of the stream holds.
#[derive(Debug, Default)]
pub struct Tail {
    /// Whole transactions that the database has, and has not confirmed or only just.
    pub published: HashMap<Identity, Found>,
    /// The greatest generation that another relay has announced there.
    pub newest_generation: u64,
    /// Transactions that the database had lost.
    pub replayed: usize,
    /// How far the node had applied its peers, by what it has said itself.
    pub promised: Promised,
}

/// What a record of the tail is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// Void, no transaction, of another database, or of a transaction that is confirmed.
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

/// What the next record says of those before it, and what it is itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// All that came so far is void.
    pub voids: bool,
    /// What the record is.
    pub piece: Piece,
}

/// Judges the tail record by record.
#[derive(Debug)]
pub struct Judge {
    sifter: Sifter,
    /// The greatest generation so far.
    generation: u64,
    /// A hello has said which generation counts. Before the first one the greatest does: see [`read_back`].
    greeted: bool,
    /// First record of the transaction that is being read.
    first: i64,
    /// Up to here all is confirmed.
    confirmed: i64,
    node_id: [u8; 16],
    /// A hello of another database under this name: what follows is not ours.
    foreign: bool,
    /// The greatest generation announced.
    newest_generation: u64,
}

impl Judge {
    /// For the database with this identity, which knows that all up to `confirmed` is in the topic.
    pub fn new(node_id: [u8; 16], confirmed: Option<i64>) -> Self {
        Self {
            sifter: Sifter::new(0),
            generation: 0,
            greeted: false,
            first: 0,
            confirmed: confirmed.unwrap_or(-1),
            node_id,
            foreign: false,
            newest_generation: 0,
        }
    }

    /// Whether what was judged last is of another database that had this name.
    pub fn is_foreign(&self) -> bool {
        self.foreign
    }

    /// Judges the next record.
    pub fn take(&mut self, offset: i64, record: &Record<'_>) -> Judgement {
        let header = &record.header;
        if header.kind == Kind::Hello {
            self.greeted = true;
            self.newest_generation = self.newest_generation.max(header.generation);
            self.foreign = Hello::decode(record.body).is_ok_and(|hello| hello.node_id != self.node_id);
        }
        let mut voids = false;
        if header.generation > self.generation {
            self.generation = header.generation;
            if !self.greeted {
                // What came so far was void already where reading began.
                self.sifter = Sifter::new(header.generation);
                voids = true;
            }
        }
        let verdict = self.sifter.judge(header);
        if matches!(verdict, Verdict::Whole { .. } | Verdict::Chunk { first: true, .. }) {
            self.first = offset;
        }
        let piece = match verdict {
            Verdict::Whole { abandons: true } => Piece::Abandons,
            _ if self.foreign || header.kind != Kind::Transaction || self.first <= self.confirmed => Piece::Nothing,
            Verdict::Whole { .. } => Piece::Whole,
            Verdict::Chunk { first, last } => Piece::Chunk { first, last },
            Verdict::Void | Verdict::Broken(_) => Piece::Nothing,
        };
        Judgement { voids, piece }
    }
}

/// Reads the topic from `confirmed` up to the hello at `hello_offset`.
///
/// A record of a relay that was thought dead may stand anywhere, and only the generation before it says that it is
/// void. So reading begins with the record at `confirmed` itself: either that one or the next is valid
/// ([`InFlight::confirm`](super::in_flight::InFlight::confirm)), hence of the generation that counted there, which is
/// the greatest before the next hello.
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
    if confirmed.is_some_and(|offset| offset + 1 == hello_offset) {
        return Ok(Tail::default());
    }
    let (reader, extent) = TopicReader::open(kafka, topic.to_owned()).await?;
    if let Some(offset) = confirmed.filter(|offset| offset + 1 < extent.low) {
        tracing::warn!(
            topic,
            from = offset + 1,
            to = extent.low,
            "Kafka has deleted these records of the own topic: should this database have been set back, it will lack what they \
             held, and its tables are to be compared with those of its peers"
        );
    }
    let start = confirmed.map_or(extent.low, |offset| offset.max(extent.low));
    let mut judge = Judge::new(node_id, confirmed);
    let mut promised = Promised::default();
    if start < hello_offset {
        reader.start(start)?;
        loop {
            let fetched = reader.next().await?;
            if fetched.offset >= hello_offset {
                break;
            }
            match Record::decode(&fetched.value) {
                Ok(record) if fetched.is_astray() && record.header.kind != Kind::Hello => {
                    tracing::debug!(
                        topic,
                        offset = fetched.offset,
                        "sent before the topic was made anew; it comes again"
                    );
                }
                Ok(record) if !replay.is_for(&record.header.node) => {
                    tracing::warn!(
                        topic,
                        offset = fetched.offset,
                        node = record.header.node,
                        "a record of another node"
                    );
                }
                Ok(record) => {
                    let identity = (record.header.position, record.header.commit_ts);
                    let judgement = judge.take(fetched.offset, &record);
                    if !judge.is_foreign() {
                        promised.take(&record.header);
                    }
                    replay.take(fetched, identity, judgement).await?;
                }
                Err(err) => tracing::warn!(topic, offset = fetched.offset, error = %err, "a record is not ours"),
            }
        }
    }
    let (published, replayed) = replay.finish().await?;
    Ok(Tail { published, newest_generation: judge.newest_generation, replayed, promised })
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

    /// Whole transactions (id, first and last offset), and the newest generation.
    fn read(records: &[Vec<u8>]) -> (Vec<(u64, i64, i64)>, u64) {
        read_after(None, records)
    }

    /// As if the topic had been read from `confirmed` on; the first record is the one there.
    fn read_after(confirmed: Option<i64>, records: &[Vec<u8>]) -> (Vec<(u64, i64, i64)>, u64) {
        let mut judge = Judge::new([7; 16], confirmed);
        let mut whole = Vec::new();
        for (offset, bytes) in (confirmed.unwrap_or(0)..).zip(records) {
            let record = Record::decode(bytes).expect("made here");
            let judgement = judge.take(offset, &record);
            if judgement.voids {
                whole.clear();
            }
            if matches!(judgement.piece, Piece::Whole | Piece::Chunk { last: true, .. }) {
                whole.push((record.header.position.xid, judge.first, offset));
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
        assert_eq!(whole, [(10, 0, 0), (11, 1, 2), (14, 6, 6)]);
        assert_eq!(newest_generation, 5);
    }

    #[test]
    fn a_late_record_right_after_the_confirmed_one_is_void() {
        // Taken for valid, transaction 11 would never be sent again; and 12, valid, would be sent twice.
        let (whole, _) = read_after(
            Some(100),
            &[transaction(5, 10, 0, true), transaction(4, 11, 0, true), transaction(5, 12, 0, true), hello(6, 7)],
        );
        assert_eq!(whole, [(12, 102, 102)]);
        let (whole, _) = read_after(Some(100), &[transaction(5, 10, 0, true), transaction(4, 11, 0, true)]);
        assert_eq!(whole, []);
    }

    #[test]
    fn a_late_record_at_the_confirmed_offset_is_void_too() {
        // Where the next record is the first that is not confirmed, the one before it may be anything.
        let (whole, _) = read_after(
            Some(100),
            &[transaction(4, 9, 0, true), transaction(5, 10, 0, false), transaction(5, 10, 1, true)],
        );
        assert_eq!(whole, [(10, 101, 102)]);
    }

    #[test]
    fn the_rest_of_a_confirmed_transaction_is_none() {
        let (whole, _) = read_after(Some(100), &[transaction(5, 10, 3, true), transaction(5, 11, 0, true)]);
        assert_eq!(whole, [(11, 101, 101)]);
    }

    #[test]
    fn a_stream_left_by_another_database_of_that_name_does_not_count() {
        let (whole, _) = read(&[hello(1, 9), transaction(1, 10, 0, true), hello(2, 7), transaction(2, 10, 0, true)]);
        assert_eq!(whole, [(10, 3, 3)]);
    }
}
