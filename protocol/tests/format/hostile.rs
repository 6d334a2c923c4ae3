//! A bounded run of the fuzz target: a topic can hold anything.

use duplex_protocol::encode::append_entry;
use duplex_protocol::entry::{Entry, Relation};
use duplex_protocol::record::{Header, Record};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::decode;
use crate::samples::{self, any_entry, any_header, config};

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn arbitrary_bytes(mut bytes in vec(any::<u8>(), 0..2000)) {
        decode::decode(&bytes);
        // Past the format byte, else nearly all of them end there.
        bytes.insert(0, 1);
        decode::decode(&bytes);
    }

    #[test]
    fn a_valid_record_with_some_bytes_changed(
        header in any_header(),
        entries in vec(any_entry(), 0..6),
        changes in vec((any::<Index>(), any::<u8>()), 1..4),
        cut in any::<Index>(),
    ) {
        let mut body = Vec::new();
        entries.iter().for_each(|entry| append_entry(&entry.entry(), &mut body));
        let mut bytes = Header { expanded_len: None, ..header }.encode_record(&body);
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        decode::decode(&bytes);
        decode::decode(&bytes[..cut.index(bytes.len())]);
        decode::entry(&body[4.min(body.len())..]);
    }
}

#[test]
fn an_unknown_format_byte_is_named() {
    let mut bytes = samples::header().encode_record(&[]);
    bytes[0] = 2;
    assert_eq!(
        Record::decode(&bytes).unwrap_err().to_string(),
        "format 2 is not known to this version, which reads format 1"
    );
    assert!(Record::decode(&[]).is_err());
}

fn refused(entry: &Entry<'_>) -> String {
    let mut framed = Vec::new();
    append_entry(entry, &mut framed);
    Entry::decode(&framed[4..]).unwrap_err().to_string()
}

#[test]
fn descriptors_that_contradict_themselves_are_refused() {
    let relation = samples::relation;
    assert!(refused(&Entry::Relation(Relation { key: vec![4], ..relation() })).contains("column that it has not"));
    assert!(
        refused(&Entry::Relation(Relation { delta_columns: vec![9], ..relation() })).contains("column that it has not")
    );
    assert!(refused(&Entry::Relation(Relation { name: String::new(), ..relation() })).contains("name"));
    assert!(refused(&Entry::Relation(Relation { schema: "a\0b".to_owned(), ..relation() })).contains("name"));
    let mut origin = samples::origin();
    origin.id = 0;
    assert!(refused(&Entry::Origin(origin)).contains("sender"));
}

#[test]
fn bytes_after_an_entry_are_refused() {
    let mut framed = Vec::new();
    append_entry(&samples::truncate(), &mut framed);
    framed.push(0);
    assert!(Entry::decode(&framed[4..]).unwrap_err().to_string().contains("does not fill its frame"));
}
