//! Records that are complete by themselves, gathered for one call into the database.

use super::consumer::Fetched;

/// More records in one call gain nothing.
const MOST_RECORDS: usize = 500;
/// More bytes only cost memory, here and in the server.
const MOST_BYTES: usize = 1024 * 1024;

/// What goes into one `duplex.apply_batch`.
#[derive(Debug, Default)]
pub struct Batch {
    /// The records.
    pub records: Vec<Vec<u8>>,
    /// Their offsets.
    pub offsets: Vec<i64>,
    bytes: usize,
}

impl Batch {
    /// Adds a record.
    pub fn push(&mut self, fetched: Fetched) {
        self.bytes += fetched.value.len();
        self.offsets.push(fetched.offset);
        self.records.push(fetched.value);
    }

    /// Whether one more may come.
    pub fn has_room(&self) -> bool {
        self.records.len() < MOST_RECORDS && self.bytes < MOST_BYTES
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The offset of the first record.
    pub fn first_offset(&self) -> i64 {
        self.offsets.first().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_bounded_in_records_and_in_bytes() {
        let mut small = Batch::default();
        while small.has_room() {
            small.push(Fetched { offset: 5, before: 0, value: vec![0; 10] });
        }
        assert_eq!((small.records.len(), small.first_offset()), (MOST_RECORDS, 5));
        let mut large = Batch::default();
        while large.has_room() {
            large.push(Fetched { offset: 5, before: 0, value: vec![0; 500_000] });
        }
        assert_eq!(large.records.len(), 3);
    }
}
