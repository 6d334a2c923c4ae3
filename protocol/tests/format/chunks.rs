//! A transaction's body may be cut at any byte.

use duplex_protocol::encode::append_entry;
use duplex_protocol::entry::Entry;
use duplex_protocol::record::{CHUNK_BYTES, Record, compress};
use duplex_protocol::stream::EntryReader;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::samples::{self, any_entry, config};

fn body(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut body = Vec::new();
    entries.iter().for_each(|entry| append_entry(entry, &mut body));
    body
}

/// Feeds the pieces and compares what comes out.
fn read_back(pieces: &[&[u8]], entries: &[Entry<'_>]) {
    let mut expected = entries.iter();
    let mut reader = EntryReader::default();
    // One room for all: nothing of a piece may show in the next.
    let mut room = Vec::new();
    for piece in pieces {
        let packed = compress(piece, &mut room);
        let expanded_len = packed.map(|_| piece.len() as u32);
        let header = duplex_protocol::record::Header { expanded_len, ..samples::header() };
        reader.feed(&Record { header, body: packed.unwrap_or(piece) }).unwrap();
        while let Some(entry) = reader.next().unwrap() {
            assert_eq!(Some(&entry), expected.next());
        }
    }
    reader.finish().unwrap();
    assert_eq!(expected.next(), None);
}

#[test]
fn cut_at_every_byte() {
    let entries = [
        Entry::Relation(samples::relation()),
        Entry::Origin(samples::origin()),
        samples::insert(),
        samples::update(),
        samples::delete(),
        samples::truncate(),
    ];
    let body = body(&entries);
    for cut in 0..=body.len() {
        read_back(&[&body[..cut], &body[cut..]], &entries);
    }
    let single: Vec<&[u8]> = body.chunks(1).collect();
    read_back(&single, &entries);
}

#[test]
fn an_entry_longer_than_a_chunk() {
    let long = vec![0x61; 2 * CHUNK_BYTES + 17];
    let Entry::Put(put) = samples::insert() else { unreachable!("the sample is an insert") };
    let row = duplex_protocol::entry::Row(vec![Some(&long), None]);
    let entries = [samples::delete(), Entry::Put(duplex_protocol::entry::Put { row, ..put }), samples::update()];
    let body = body(&entries);
    let pieces: Vec<&[u8]> = body.chunks(CHUNK_BYTES).collect();
    assert_eq!(pieces.len(), 3);
    read_back(&pieces, &entries);
}

#[test]
fn a_body_that_ends_inside_an_entry_is_an_error_once() {
    let body = body(&[samples::insert()]);
    let mut reader = EntryReader::default();
    reader.feed(&Record { header: samples::header(), body: &body[..body.len() - 1] }).unwrap();
    assert!(reader.next().unwrap().is_none());
    assert!(reader.finish().is_err());
    reader.feed(&Record { header: samples::header(), body: &body }).unwrap();
    assert_eq!(reader.next().unwrap().unwrap(), samples::insert());
    reader.finish().unwrap();
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn cut_anywhere(owned in vec(any_entry(), 0..12), cuts in vec(any::<prop::sample::Index>(), 0..6)) {
        let entries: Vec<_> = owned.iter().map(samples::Owned::entry).collect();
        let body = body(&entries);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
        cuts.extend([0, body.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|ends| &body[ends[0]..ends[1]]).collect();
        read_back(&pieces, &entries);
    }
}
