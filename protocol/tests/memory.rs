//! What decoding allocates. A binary of its own, with one test, because the allocator counts for the whole process.

use std::alloc::System;

use cap::Cap;
use duplex_protocol::encode::append_entry;
use duplex_protocol::entry::{Delete, Entry, Put, PutKind, Relation, Replaced, Resolution, Row};
use duplex_protocol::record::{CHUNK_BYTES, Header, Kind, Position, Record, compress};
use duplex_protocol::value::RawType;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

#[path = "../fuzz/decode.rs"]
#[expect(dead_code, reason = "JSON may take as much as there is to show")]
mod decode;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// No input of at most [`INPUT`] bytes may take more than this at any moment.
const LIMIT: usize = 4 << 20;
const INPUT: usize = 64 << 10;

/// Everything that the apply side does with bytes from a topic before they reach a table.
fn read(bytes: &[u8]) {
    if let Ok(record) = Record::decode(bytes) {
        decode::entries(&record);
    }
    let _ = Entry::decode(bytes);
    for raw in RawType::ALL {
        let _ = raw.check(bytes);
        let _ = raw.to_text(bytes);
    }
}

/// The peak only ever rises, so what stands before has to be below it: the inputs are small.
fn bounded(bytes: &[u8]) {
    assert!(bytes.len() <= INPUT);
    let before = ALLOCATOR.allocated();
    read(bytes);
    let peak = ALLOCATOR.max_allocated();
    assert!(peak < before + LIMIT, "{} bytes took up to {}", bytes.len(), peak - before);
}

fn header() -> Header {
    Header {
        kind: Kind::Transaction,
        node: "n".to_owned(),
        generation: 1,
        position: Position { lsn: 1, xid: 1 },
        chunk: 0,
        last: true,
        commit_ts: 0,
        seen: vec![],
        settled: 0,
        held: 0,
        expanded_len: None,
    }
}

fn framed(entry: &Entry<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    append_entry(entry, &mut out);
    out
}

/// Inputs that ask for as much as they can.
fn greedy() -> Vec<Vec<u8>> {
    let header = header();
    let mut all = Vec::new();
    // Nothing but lengths: 2^64 - 1 as every varint, at every place.
    for start in 0..40 {
        let mut bytes = header.encode_record(&[]);
        bytes.truncate(start);
        bytes.resize(start + 1024, 0xFD);
        bytes.resize(start + 4096, 0xFF);
        all.push(bytes.clone());
        bytes[start..].fill(0xFC);
        all.push(bytes);
    }
    // A frame that claims 4 GiB, an expansion to 4 GiB, one to a whole chunk.
    all.push(header.encode_record(&[0xFF; 64]));
    all.push(Header { expanded_len: Some(u32::MAX), ..header.clone() }.encode_record(&[0; 64]));
    let mut room = Vec::new();
    let zeros = compress(&vec![0; CHUNK_BYTES], &mut room).expect("zeros compress");
    all.push(Header { expanded_len: Some(CHUNK_BYTES as u32), ..header.clone() }.encode_record(zeros));
    // Rows of NULLs only, as many as there is room for; relations without columns.
    let key = Row(vec![None; 1600]);
    let row = Delete { relation: 1, replaced: Replaced::Nothing, contributions: vec![], key };
    all.push(header.encode_record(&framed(&Entry::Delete(row)).repeat(36)));
    let relation = Relation {
        id: 1,
        schema: "s".to_owned(),
        name: "t".to_owned(),
        columns: vec![],
        key: vec![],
        resolution: Resolution::LastUpdateWins,
        delta_columns: vec![],
    };
    all.push(header.encode_record(&framed(&Entry::Relation(relation)).repeat(3000)));
    // A put whose lists claim a million elements each.
    let put = Put {
        relation: 1,
        kind: PutKind::Insert,
        replaced: Replaced::Ancient,
        changed: &[],
        contributions: vec![],
        row: Row(vec![]),
    };
    let mut put = framed(&Entry::Put(put));
    let at = put.len() - 2;
    put.splice(at.., [0xFC, 0, 0, 0x0F, 0]);
    all.push(put[4..].to_vec());
    // Deep jsonb, wide jsonb, long numbers.
    let mut deep = Vec::new();
    for inner in (0..8000_u32).rev() {
        deep.extend_from_slice(&0x4000_0001_u32.to_le_bytes());
        deep.extend_from_slice(&(0x5000_0000 | (8 * inner + 4)).to_le_bytes());
    }
    deep.extend_from_slice(&0x4000_0000_u32.to_le_bytes());
    all.push(deep);
    let mut wide = 0x4000_3FF0_u32.to_le_bytes().to_vec();
    wide.resize(4 + 4 * 0x3FF0, 0x20);
    wide.chunks_mut(4).skip(1).for_each(|entry| entry.copy_from_slice(&0x2000_0000_u32.to_le_bytes()));
    all.push(wide);
    all.push(vec![0xFF, 0x3F, 0xFF, 0x7F, 1, 0]);
    all
}

#[test]
fn decoding_takes_little_memory_whatever_the_bytes() {
    for bytes in greedy() {
        bounded(&bytes[..bytes.len().min(INPUT)]);
    }
    let config = ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    let bytes = prop_oneof![4 => vec(any::<u8>(), 0..2000), 1 => vec(any::<u8>(), INPUT - 10..INPUT - 1)];
    runner
        .run(&bytes, |mut bytes| {
            bounded(&bytes);
            bytes.insert(0, 1);
            bounded(&bytes);
            Ok(())
        })
        .unwrap();
}
