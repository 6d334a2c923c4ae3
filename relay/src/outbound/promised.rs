//! How far the node has told others that it had applied their streams: a database that was promoted, or restored, before
//! it had received all may have less, and is to know.

use std::collections::BTreeMap;

use duplex_protocol::record::{Header, Kind};

/// What the records of the own stream say of others.
#[derive(Debug, Default)]
pub struct Promised {
    /// For each peer: the generation that said so, and the offset after the last record applied.
    peers: BTreeMap<String, (u64, u64)>,
}

impl Promised {
    /// Takes in what the next record says. Within one generation a stream is further back than before only where an
    /// operator set it back; a later generation may be that of a database that had lost something.
    pub fn take(&mut self, header: &Header) {
        if header.kind == Kind::Hello {
            return;
        }
        for seen in &header.seen {
            let said = (header.generation, seen.next_offset);
            let known = self.peers.entry(seen.node.clone()).or_insert(said);
            if said.0 == known.0 || said.1 > known.1 {
                *known = said;
            }
        }
    }

    /// The peers' names, and for each the offset up to which the node had its stream.
    pub fn into_arguments(self) -> (Vec<String>, Vec<i64>) {
        self.peers.into_iter().map(|(peer, (_, next_offset))| (peer, next_offset as i64)).unzip()
    }
}

#[cfg(test)]
mod tests {
    use duplex_protocol::record::{Position, Seen};

    use super::*;

    fn read(records: &[(u64, u64)]) -> Vec<i64> {
        let mut promised = Promised::default();
        for &(generation, next_offset) in records {
            promised.take(&Header {
                kind: Kind::Heartbeat,
                node: "chat1".to_owned(),
                generation,
                position: Position { lsn: 0, xid: 0 },
                chunk: 0,
                last: true,
                commit_ts: 0,
                seen: vec![Seen { node: "chat2".to_owned(), next_offset }],
                settled: 0,
                held: 0,
                expanded_len: None,
            });
        }
        promised.into_arguments().1
    }

    #[test]
    fn what_a_database_said_before_it_lost_something_counts() {
        assert_eq!(read(&[(1, 5), (1, 9), (2, 6), (2, 7)]), [9]);
        assert_eq!(read(&[(1, 5), (1, 9), (2, 6), (2, 12)]), [12]);
    }

    #[test]
    fn a_stream_that_an_operator_set_back_has_promised_no_more() {
        assert_eq!(read(&[(1, 5), (1, 900), (1, 2)]), [2]);
    }

    #[test]
    fn nothing_is_promised_where_nothing_is_said() {
        assert_eq!(read(&[]), Vec::<i64>::new());
    }
}
