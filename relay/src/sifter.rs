//! Which records of a stream are void, and which belong together.
//!
//! A relay may die after it published a part of a transaction, and a relay that lost its place may still have records
//! on the way. The next one publishes a hello with a greater generation. Everyone who reads the stream then knows:
//! a record of an earlier generation that comes after it is void, and so is a transaction that had not come to its
//! last chunk before it. What is void comes again, whole.

use duplex_protocol::record::{Header, Kind, Position};

/// What a record is to whoever reads the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not to be applied.
    Void,
    /// Complete by itself: a transaction of one chunk, a hello, a heartbeat. `abandons` says that the transaction read
    /// so far is void.
    Whole {
        /// Whether an incomplete transaction came before.
        abandons: bool,
    },
    /// A chunk of a longer transaction.
    Chunk {
        /// Whether it is the first.
        first: bool,
        /// Whether it is the last.
        last: bool,
    },
    /// No relay writes this.
    Broken(&'static str),
}

#[derive(Debug, Clone, Copy)]
struct Open {
    position: Position,
    next_chunk: u32,
}

/// Reads a stream's headers in order.
#[derive(Debug)]
pub struct Sifter {
    generation: u64,
    open: Option<Open>,
}

impl Sifter {
    /// Starts between two transactions, with the greatest generation read so far; 0 if that is not known, and then the
    /// first record tells it.
    pub fn new(generation: u64) -> Self {
        Self { generation, open: None }
    }

    /// The greatest generation read so far.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Judges the next record.
    pub fn judge(&mut self, header: &Header) -> Verdict {
        if header.generation < self.generation {
            return Verdict::Void;
        }
        if self.generation == 0 {
            self.generation = header.generation;
        }
        match header.kind {
            Kind::Hello => {
                self.generation = header.generation;
                Verdict::Whole { abandons: self.open.take().is_some() }
            }
            _ if header.generation > self.generation => Verdict::Broken("a generation begins without a hello"),
            Kind::Heartbeat if self.open.is_some() => Verdict::Broken("a heartbeat inside a transaction"),
            Kind::Heartbeat => Verdict::Whole { abandons: false },
            Kind::Transaction => self.judge_chunk(header),
        }
    }

    fn judge_chunk(&mut self, header: &Header) -> Verdict {
        let first = header.chunk == 0;
        match self.open {
            None if !first => return Verdict::Broken("a transaction without its first chunk"),
            Some(open) if open.position != header.position => {
                return Verdict::Broken("a transaction without its last chunk");
            }
            Some(open) if open.next_chunk != header.chunk => return Verdict::Broken("a chunk is missing"),
            _ => {}
        }
        if first && header.last {
            return Verdict::Whole { abandons: false };
        }
        let next_chunk = header.chunk.saturating_add(1);
        self.open = (!header.last).then_some(Open { position: header.position, next_chunk });
        Verdict::Chunk { first, last: header.last }
    }
}

#[cfg(test)]
mod tests {
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

    fn judge(sifter: &mut Sifter, generation: u64, xid: u64, chunk: u32, last: bool) -> Verdict {
        sifter.judge(&header(Kind::Transaction, generation, xid, chunk, last))
    }

    fn hello(sifter: &mut Sifter, generation: u64) -> Verdict {
        sifter.judge(&header(Kind::Hello, generation, 0, 0, true))
    }

    #[test]
    fn a_record_of_an_earlier_generation_is_void() {
        let mut sifter = Sifter::new(0);
        assert_eq!(hello(&mut sifter, 3), Verdict::Whole { abandons: false });
        assert_eq!(judge(&mut sifter, 3, 1, 0, true), Verdict::Whole { abandons: false });
        assert_eq!(hello(&mut sifter, 4), Verdict::Whole { abandons: false });
        assert_eq!(judge(&mut sifter, 3, 2, 0, true), Verdict::Void);
        assert_eq!(hello(&mut sifter, 3), Verdict::Void);
        assert_eq!(judge(&mut sifter, 4, 2, 0, true), Verdict::Whole { abandons: false });
    }

    #[test]
    fn a_transaction_cut_off_by_a_hello_is_void_and_comes_again_whole() {
        let mut sifter = Sifter::new(1);
        assert_eq!(judge(&mut sifter, 1, 7, 0, false), Verdict::Chunk { first: true, last: false });
        assert_eq!(judge(&mut sifter, 1, 7, 1, false), Verdict::Chunk { first: false, last: false });
        assert_eq!(hello(&mut sifter, 2), Verdict::Whole { abandons: true });
        assert_eq!(judge(&mut sifter, 1, 7, 2, true), Verdict::Void);
        assert_eq!(judge(&mut sifter, 2, 7, 0, false), Verdict::Chunk { first: true, last: false });
        assert_eq!(judge(&mut sifter, 2, 7, 1, true), Verdict::Chunk { first: false, last: true });
        assert_eq!(judge(&mut sifter, 2, 8, 0, true), Verdict::Whole { abandons: false });
    }

    #[test]
    fn a_reader_that_starts_in_the_middle_takes_the_generation_that_it_finds() {
        let mut sifter = Sifter::new(0);
        assert_eq!(judge(&mut sifter, 5, 1, 0, true), Verdict::Whole { abandons: false });
        assert_eq!(judge(&mut sifter, 4, 2, 0, true), Verdict::Void);
    }

    #[test]
    fn a_hole_is_never_passed_over() {
        let broken = |verdict| matches!(verdict, Verdict::Broken(_));
        let mut sifter = Sifter::new(1);
        assert!(broken(judge(&mut sifter, 1, 7, 1, true)));
        judge(&mut sifter, 1, 7, 0, false);
        assert!(broken(judge(&mut sifter, 1, 7, 2, true)));
        assert!(broken(judge(&mut sifter, 1, 8, 0, true)));
        assert!(broken(judge(&mut sifter, 2, 7, 1, true)));
    }
}
