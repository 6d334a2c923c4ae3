//! Records on their way to Kafka, in order, and how far whole transactions have arrived there.

use std::collections::{BTreeSet, VecDeque};

use duplex_protocol::record::Position;

use super::tail::Found;
use crate::errors::Error;

/// What librdkafka keeps beside a record's bytes, headers included.
const OVERHEAD: usize = 800;

#[derive(Debug)]
struct Entry {
    position: Position,
    last: bool,
    cost: usize,
    /// The least offset that it can get.
    least: i64,
    offset: Option<i64>,
    found: Option<Found>,
}

/// What stands for a heartbeat, which is no transaction and has no place among them.
pub const NOWHERE: Position = Position { lsn: 0, xid: 0 };

/// Up to where Kafka has everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmation {
    /// The newest whole transaction; [`NOWHERE`] if only heartbeats have come since the last one.
    pub position: Position,
    /// Where to read on after a crash: nothing that is not confirmed is at or before it, and either the record there or
    /// the one after it is valid.
    pub offset: i64,
}

/// Records handed out by the database and not confirmed yet.
#[derive(Debug, Default)]
pub struct InFlight {
    entries: VecDeque<Entry>,
    first: usize,
    unacknowledged: usize,
    cost: usize,
    /// Offset of the newest record of ours that Kafka has told one of.
    known_offset: i64,
    /// The least offset that the next record can get: all of this generation stand before it, the hello too.
    least: i64,
    /// First offsets of what the topic holds from before a crash and is not confirmed. The database need not hand it
    /// out in the order in which it was published: a transaction with a lower position may have ended since.
    found: BTreeSet<i64>,
}

impl InFlight {
    /// Starts behind our hello, with what the topic holds already and nobody has confirmed.
    pub fn after_hello<'a>(hello_offset: i64, found: impl IntoIterator<Item = &'a Found>) -> Self {
        let found = found.into_iter().map(|found| found.first).collect();
        Self { known_offset: hello_offset, least: hello_offset + 1, found, ..Self::default() }
    }

    /// What was found and never handed out does not count any more.
    pub fn forget_found(&mut self) {
        self.found.clear();
    }

    /// The least offset that the next record to be sent can get.
    pub fn least_offset(&self) -> i64 {
        self.least
    }

    /// Takes a record that goes to Kafka now. Returns its number, to be given back with the acknowledgement.
    pub fn sent(&mut self, position: Position, last: bool, bytes: usize) -> usize {
        let cost = bytes + OVERHEAD;
        self.entries.push_back(Entry { position, last, cost, least: self.least, offset: None, found: None });
        self.least += 1;
        self.unacknowledged += 1;
        self.cost += cost;
        self.first + self.entries.len() - 1
    }

    /// Takes a record of a transaction that the topic holds already, from before a crash.
    pub fn found(&mut self, position: Position, last: bool, found: Found) {
        self.entries.push_back(Entry {
            position,
            last,
            cost: 0,
            least: 0,
            offset: Some(found.last),
            found: Some(found),
        });
    }

    /// Kafka has record `number`, at `offset`.
    ///
    /// A negative offset means that it is there and Kafka does not know where: the broker died before it could
    /// acknowledge the record, and recognised it when it came again. Then the record before it has to stand for it.
    ///
    /// # Errors
    /// [`Error::TopicRemade`] if that is lower than it can be: librdkafka goes on into a topic made anew under it, without
    /// a word, and without the hello by which readers would see it.
    pub fn acknowledged(&mut self, number: usize, offset: i64) -> Result<(), Error> {
        let entry = number.checked_sub(self.first).and_then(|index| self.entries.get_mut(index));
        let Some(entry) = entry.filter(|entry| entry.offset.is_none()) else { return Ok(()) };
        if offset >= 0 && offset < entry.least {
            return Err(Error::TopicRemade { offset, least: entry.least });
        }
        self.known_offset = self.known_offset.max(offset);
        entry.offset = Some(if offset < 0 { self.known_offset } else { offset });
        self.unacknowledged -= 1;
        self.cost -= entry.cost;
        Ok(())
    }

    /// Takes the acknowledged whole transactions and heartbeats off the front, and says up to where that is.
    pub fn confirm(&mut self) -> Option<Confirmation> {
        let mut confirmation: Option<Confirmation> = None;
        let mut whole = 0;
        for (index, entry) in self.entries.iter().enumerate() {
            let Some(offset) = entry.offset else { break };
            if entry.last {
                let before = confirmation.map_or(NOWHERE, |confirmation| confirmation.position);
                let position = if entry.position == NOWHERE { before } else { entry.position };
                confirmation = Some(Confirmation { position, offset });
                whole = index + 1;
            }
        }
        for entry in self.entries.drain(..whole) {
            if let Some(found) = entry.found {
                self.found.remove(&found.first);
            }
        }
        self.first += whole;
        if let (Some(confirmation), Some(first)) = (&mut confirmation, self.found.first()) {
            confirmation.offset = confirmation.offset.min(first - 1);
        }
        confirmation
    }

    /// Whether what was handed out last is a whole transaction.
    pub fn ends_whole(&self) -> bool {
        self.entries.back().is_some_and(|entry| entry.last)
    }

    /// Whether nothing is left to confirm.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Records that Kafka has not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.unacknowledged
    }

    /// Memory that they take, about.
    pub fn cost(&self) -> usize {
        self.cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(xid: u64) -> Position {
        Position { lsn: xid * 8, xid }
    }

    #[test]
    fn only_whole_transactions_without_a_hole_before_them_are_confirmed() {
        let mut flight = InFlight::default();
        let a = flight.sent(at(1), true, 10);
        let b0 = flight.sent(at(2), false, 10);
        let b1 = flight.sent(at(2), true, 10);
        let c = flight.sent(at(3), true, 10);
        flight.acknowledged(b0, 101).expect("a place behind the others");
        flight.acknowledged(c, 103).expect("a place behind the others");
        assert_eq!(flight.confirm(), None);
        flight.acknowledged(a, 100).expect("a place behind the others");
        assert_eq!(flight.confirm(), Some(Confirmation { position: at(1), offset: 100 }));
        assert_eq!(flight.confirm(), None);
        assert_eq!(flight.unacknowledged(), 1);
        flight.acknowledged(b1, 102).expect("a place behind the others");
        assert_eq!(flight.confirm(), Some(Confirmation { position: at(3), offset: 103 }));
        assert!(flight.is_empty());
        assert_eq!((flight.unacknowledged(), flight.cost()), (0, 0));
    }

    #[test]
    fn a_heartbeat_moves_the_offset_on_and_no_transaction() {
        let mut flight = InFlight::default();
        let (beat, a, later) =
            (flight.sent(NOWHERE, true, 10), flight.sent(at(1), true, 10), flight.sent(NOWHERE, true, 10));
        flight.acknowledged(beat, 100).expect("a place behind the others");
        assert_eq!(flight.confirm(), Some(Confirmation { position: NOWHERE, offset: 100 }));
        flight.acknowledged(a, 101).expect("a place behind the others");
        flight.acknowledged(later, 102).expect("a place behind the others");
        assert_eq!(flight.confirm(), Some(Confirmation { position: at(1), offset: 102 }));
        assert!(flight.is_empty());
    }

    #[test]
    fn what_the_topic_holds_already_is_confirmed_with_its_old_offset() {
        let found = Found { first: 39, last: 40 };
        let mut flight = InFlight::after_hello(45, [&found]);
        flight.found(at(1), false, found);
        assert!(!flight.ends_whole());
        flight.found(at(1), true, found);
        let b = flight.sent(at(2), true, 10);
        assert_eq!(flight.confirm(), Some(Confirmation { position: at(1), offset: 40 }));
        flight.acknowledged(b, 50).expect("a place behind the others");
        flight.acknowledged(b, 50).expect("a place behind the others");
        assert_eq!(flight.confirm(), Some(Confirmation { position: at(2), offset: 50 }));
    }

    #[test]
    fn a_record_of_which_kafka_does_not_know_where_it_is_leaves_the_offset_behind_it() {
        let mut flight = InFlight::after_hello(45, []);
        let (a, b) = (flight.sent(at(1), true, 10), flight.sent(at(2), true, 10));
        flight.acknowledged(a, -1001).expect("a place behind the others");
        assert_eq!(flight.confirm(), Some(Confirmation { position: at(1), offset: 45 }));
        flight.acknowledged(b, 47).expect("a place behind the others");
        assert_eq!(flight.confirm(), Some(Confirmation { position: at(2), offset: 47 }));
    }

    #[test]
    fn what_was_found_and_is_not_confirmed_will_be_found_again() {
        // 2 was published by a relay that died; 1 was prepared then and has a lower position.
        let found = Found { first: 39, last: 40 };
        let mut flight = InFlight::after_hello(45, [&found]);
        let late = flight.sent(at(1), true, 10);
        flight.found(at(2), false, found);
        flight.acknowledged(late, 50).expect("a place behind the others");
        assert_eq!(flight.confirm(), Some(Confirmation { position: at(1), offset: 38 }));
        flight.found(at(2), true, found);
        assert_eq!(flight.confirm(), Some(Confirmation { position: at(2), offset: 40 }));
    }

    #[test]
    fn a_place_that_earlier_records_have_shows_that_the_topic_was_made_anew() {
        let mut flight = InFlight::after_hello(45, []);
        let (a, b, c) = (flight.sent(at(1), true, 10), flight.sent(at(2), true, 10), flight.sent(at(3), true, 10));
        assert_eq!(flight.least_offset(), 49);
        flight.acknowledged(a, 46).expect("right behind the hello");
        assert!(matches!(flight.acknowledged(b, 0), Err(Error::TopicRemade { offset: 0, least: 47 })));
        // Nothing of the new topic is confirmed: it is sent again, behind a hello.
        assert_eq!(flight.confirm(), Some(Confirmation { position: at(1), offset: 46 }));
        assert!(matches!(flight.acknowledged(b, 46), Err(Error::TopicRemade { .. })), "that is where the first one is");
        assert!(
            matches!(flight.acknowledged(c, 47), Err(Error::TopicRemade { .. })),
            "the second one is still to come"
        );
    }

    #[test]
    fn a_late_record_of_another_relay_between_ours_is_no_new_topic() {
        let mut flight = InFlight::after_hello(45, []);
        let (a, b) = (flight.sent(at(1), true, 10), flight.sent(at(2), true, 10));
        flight.acknowledged(a, 48).expect("behind two late records");
        flight.acknowledged(b, 51).expect("behind two more");
        let c = flight.sent(at(3), true, 10);
        flight.acknowledged(c, 2).expect_err("another topic");
    }
}
