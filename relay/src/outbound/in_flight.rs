//! Records on their way to Kafka, in order, and how far whole transactions have arrived there.

use std::collections::VecDeque;

use duplex_protocol::record::Position;

/// What librdkafka keeps beside a record's bytes, headers included.
const OVERHEAD: usize = 800;

#[derive(Debug)]
struct Entry {
    position: Position,
    last: bool,
    cost: usize,
    offset: Option<i64>,
}

/// Up to where Kafka has everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmation {
    /// The newest whole transaction.
    pub position: Position,
    /// Where its last record is in the topic.
    pub offset: i64,
}

/// Records handed out by the database and not confirmed yet.
#[derive(Debug, Default)]
pub struct InFlight {
    entries: VecDeque<Entry>,
    first: usize,
    unacknowledged: usize,
    cost: usize,
}

impl InFlight {
    /// Takes a record that goes to Kafka now. Returns its number, to be given back with the acknowledgement.
    pub fn sent(&mut self, position: Position, last: bool, bytes: usize) -> usize {
        let cost = bytes + OVERHEAD;
        self.entries.push_back(Entry { position, last, cost, offset: None });
        self.unacknowledged += 1;
        self.cost += cost;
        self.first + self.entries.len() - 1
    }

    /// Takes a record of a transaction that the topic holds already, from before a crash.
    pub fn found(&mut self, position: Position, last: bool, offset: i64) {
        self.entries.push_back(Entry { position, last, cost: 0, offset: Some(offset) });
    }

    /// Kafka has record `number`, at `offset`.
    pub fn acknowledged(&mut self, number: usize, offset: i64) {
        let entry = number.checked_sub(self.first).and_then(|index| self.entries.get_mut(index));
        if let Some(entry) = entry.filter(|entry| entry.offset.is_none()) {
            entry.offset = Some(offset);
            self.unacknowledged -= 1;
            self.cost -= entry.cost;
        }
    }

    /// Takes the acknowledged whole transactions off the front, and says up to where that is.
    pub fn confirm(&mut self) -> Option<Confirmation> {
        let mut confirmation = None;
        let mut whole = 0;
        for (index, entry) in self.entries.iter().enumerate() {
            let Some(offset) = entry.offset else { break };
            if entry.last {
                confirmation = Some(Confirmation { position: entry.position, offset });
                whole = index + 1;
            }
        }
        self.entries.drain(..whole);
        self.first += whole;
        confirmation
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
        flight.acknowledged(b0, 101);
        flight.acknowledged(c, 103);
        assert_eq!(flight.confirm(), None);
        flight.acknowledged(a, 100);
        assert_eq!(flight.confirm(), Some(Confirmation { position: at(1), offset: 100 }));
        assert_eq!(flight.confirm(), None);
        assert_eq!(flight.unacknowledged(), 1);
        flight.acknowledged(b1, 102);
        assert_eq!(flight.confirm(), Some(Confirmation { position: at(3), offset: 103 }));
        assert!(flight.is_empty());
        assert_eq!((flight.unacknowledged(), flight.cost()), (0, 0));
    }

    #[test]
    fn what_the_topic_holds_already_is_confirmed_with_its_old_offset() {
        let mut flight = InFlight::default();
        flight.found(at(1), true, 40);
        let b = flight.sent(at(2), true, 10);
        assert_eq!(flight.confirm(), Some(Confirmation { position: at(1), offset: 40 }));
        flight.acknowledged(b, 50);
        flight.acknowledged(b, 50);
        assert_eq!(flight.confirm(), Some(Confirmation { position: at(2), offset: 50 }));
    }
}
