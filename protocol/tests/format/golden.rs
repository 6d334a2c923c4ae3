//! The bytes of every structure, as committed in `golden/*.hex`. A stream outlives the program that wrote it: a change
//! that makes one of these fail needs a new format byte, and a reader for the old one.
//!
//! `DUPLEX_GOLDEN=write cargo test -p duplex-protocol --test format golden` writes the files anew.

use std::fs;
use std::path::PathBuf;

use duplex_protocol::encode::append_entry;
use duplex_protocol::entry::{Entry, Relation, Replaced, Resolution};
use duplex_protocol::record::{Header, Hello, Kind, Position, Record, compress};
use duplex_protocol::stream::EntryReader;

use crate::samples;

fn golden(name: &str, bytes: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/format/golden").join(name).with_extension("hex");
    let hex: Vec<String> =
        bytes.chunks(32).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
    let hex = hex.join("\n") + "\n";
    if std::env::var_os("DUPLEX_GOLDEN").is_some_and(|value| value == "write") {
        fs::write(&path, &hex).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(hex, committed, "the bytes of {name} have changed: see the head of this file");
}

fn entry(name: &str, entry: &Entry<'_>) {
    let mut framed = Vec::new();
    append_entry(entry, &mut framed);
    golden(name, &framed);
    assert_eq!(&Entry::decode(&framed[4..]).unwrap(), entry);
}

#[test]
fn record() {
    let header = samples::header();
    let mut body = Vec::new();
    append_entry(&samples::truncate(), &mut body);
    let bytes = header.encode_record(&body);
    golden("record_transaction", &bytes);
    assert_eq!(Record::decode(&bytes).unwrap(), Record { header, body: &body });
}

#[test]
fn hello_record() {
    let hello = Hello { node_id: std::array::from_fn(|i| i as u8), extension_version: "0.1.0".to_owned() };
    let position = Position { lsn: 0, xid: 0 };
    let header = Header { kind: Kind::Hello, position, seen: vec![], ..samples::header() };
    let bytes = header.encode_record(&hello.encode());
    golden("record_hello", &bytes);
    assert_eq!(Hello::decode(Record::decode(&bytes).unwrap().body).unwrap(), hello);
}

#[test]
fn heartbeat_record() {
    let position = Position { lsn: 0, xid: 0 };
    let header = Header { kind: Kind::Heartbeat, position, ..samples::header() };
    golden("record_heartbeat", &header.encode_record(&[]));
}

/// The lz4 block itself may change with the compressor; that a committed one can still be expanded may not.
#[test]
fn compressed_record() {
    let mut body = Vec::new();
    for _ in 0..40 {
        append_entry(&samples::insert(), &mut body);
    }
    let mut room = Vec::new();
    let packed = compress(&body, &mut room).expect("40 equal rows are worth compressing");
    let expanded_len = Some(body.len() as u32);
    let bytes = Header { expanded_len, ..samples::header() }.encode_record(packed);
    golden("record_compressed", &bytes);
    let mut reader = EntryReader::default();
    reader.feed(&Record::decode(&bytes).unwrap()).unwrap();
    for _ in 0..40 {
        assert_eq!(reader.next().unwrap().unwrap(), samples::insert());
    }
    reader.finish().unwrap();
}

#[test]
fn descriptors() {
    entry("relation", &Entry::Relation(samples::relation()));
    let plain = Relation { resolution: Resolution::LastUpdateWins, delta_columns: vec![], ..samples::relation() };
    entry("relation_last_update_wins", &Entry::Relation(plain));
    let function = Resolution::Function("app.resolve".to_owned());
    entry("relation_function", &Entry::Relation(Relation { resolution: function, ..samples::relation() }));
    entry("origin", &Entry::Origin(samples::origin()));
}

#[test]
fn changes() {
    entry("insert", &samples::insert());
    entry("update", &samples::update());
    entry("delete", &samples::delete());
    entry("truncate", &samples::truncate());
    let Entry::Delete(delete) = samples::delete() else { unreachable!("the sample is a delete") };
    let ancient = duplex_protocol::entry::Delete { replaced: Replaced::Ancient, ..delete };
    entry("delete_ancient", &Entry::Delete(ancient));
}
