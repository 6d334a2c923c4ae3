//! Everything that can be written reads back the same.

use duplex_protocol::encode::{FRAME_BYTES, RowWriter, VALUE_BYTES, append_entry};
use duplex_protocol::entry::{Entry, PutKind, Replaced};
use duplex_protocol::record::{Header, Hello, Kind, Position, Record, compress, expand_onto, reference_bytes};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::samples::{Owned, any_entry, any_header, config};

/// Writes a row as capture does, value by value.
fn written(owned: &Owned) -> Option<Vec<u8>> {
    let mut room = vec![0xAA; 1 << 20];
    let (mut writer, values) = match owned {
        Owned::Put(kind, changed, change) => {
            let contributions = change.contributions();
            let columns = change.values.len();
            let writer =
                RowWriter::put(&mut room, change.relation, *kind, change.replaced, changed, &contributions, columns);
            (writer, &change.values)
        }
        Owned::Delete(change) => {
            let contributions = change.contributions();
            let writer =
                RowWriter::delete(&mut room, change.relation, change.replaced, &contributions, change.values.len());
            (writer, &change.values)
        }
        _ => return None,
    };
    for value in values {
        match value {
            None => writer.null(),
            Some(bytes) => writer.bytes(bytes),
        }
    }
    let len = writer.finish();
    assert_eq!(room[len..len + 3], [0xAA; 3], "what is behind it stays");
    room.truncate(len);
    Some(room)
}

proptest! {
    #![proptest_config(config(512))]

    #[test]
    fn entry(owned in any_entry()) {
        let entry = owned.entry();
        let mut framed = Vec::new();
        append_entry(&entry, &mut framed);
        let (length, frame) = framed.split_first_chunk::<4>().unwrap();
        prop_assert_eq!(u32::from_le_bytes(*length) as usize, frame.len());
        prop_assert_eq!(Entry::decode(frame).unwrap(), entry);
    }

    #[test]
    fn a_row_written_value_by_value_has_the_derived_bytes(owned in any_entry()) {
        if let Some(written) = written(&owned) {
            prop_assert_eq!(&written[4..], &reference_bytes(&owned.entry())[..]);
        }
    }

    #[test]
    fn a_row_begun_with_kept_bytes_is_the_same(relation: u32, value in vec(any::<u8>(), 0..300)) {
        let put = |beginning: Option<&[u8]>| {
            let mut room = vec![0; value.len() + FRAME_BYTES + 2 * VALUE_BYTES];
            let mut writer = match beginning {
                Some(beginning) => RowWriter::begun(&mut room, beginning),
                None => RowWriter::put(&mut room, relation, PutKind::Insert, Replaced::Nothing, &[], &[], 2),
            };
            writer.null();
            writer.bytes(&value);
            let len = writer.finish();
            room.truncate(len);
            room
        };
        let beginning = RowWriter::put_beginning(relation, PutKind::Insert, 2);
        prop_assert_eq!(put(None), put(Some(&beginning)));
    }

    #[test]
    fn header(header in any_header(), body in vec(any::<u8>(), 0..100)) {
        let bytes = header.encode_record(&body);
        prop_assert_eq!(Record::decode(&bytes).unwrap(), Record { header, body: &body });
    }

    #[test]
    fn hello(node_id: [u8; 16], extension_version in ".{0,20}") {
        let hello = Hello { node_id, extension_version };
        prop_assert_eq!(Hello::decode(&hello.encode()).unwrap(), hello);
    }

    #[test]
    fn compression(unit in vec(any::<u8>(), 1..300), times in 1..400_usize) {
        let body = unit.repeat(times);
        let mut room = Vec::new();
        if let Some(packed) = compress(&body, &mut room) {
            let mut out = b"before".to_vec();
            expand_onto(packed, body.len() as u32, &mut out).unwrap();
            prop_assert_eq!(&out[..6], b"before");
            prop_assert!(out[6..] == body[..]);
            prop_assert!(expand_onto(packed, body.len() as u32 - 1, &mut out).is_err());
            prop_assert!(expand_onto(packed, body.len() as u32 + 1, &mut out).is_err());
            prop_assert_eq!(out.len(), 6 + body.len(), "a failed expansion leaves nothing");
        }
    }
}

/// How long a header is with names of ordinary length: it stands before every transaction, small ones too.
#[test]
fn a_header_is_small() {
    let header = Header {
        kind: Kind::Transaction,
        node: "chat1".to_owned(),
        generation: 7,
        position: Position { lsn: 1 << 40, xid: 1 << 33 },
        chunk: 0,
        last: true,
        commit_ts: 820_000_000_000_000,
        seen: vec![],
        settled: 820_000_000_000_000,
        held: 820_000_000_000_000,
        expanded_len: None,
    };
    assert!(header.encode_record(&[]).len() <= 64);
}
