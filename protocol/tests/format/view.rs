//! The JSON view.

use duplex_protocol::encode::append_entry;
use duplex_protocol::entry::{Column, Entry, Format, Put, PutKind, Relation, Replaced, Resolution, Row};
use duplex_protocol::json::View;
use duplex_protocol::record::{Header, Hello, Kind, Record};
use serde_json::{Value, json};

use crate::samples;

fn body() -> Vec<u8> {
    let mut body = Vec::new();
    for entry in [
        Entry::Relation(samples::relation()),
        Entry::Origin(samples::origin()),
        samples::insert(),
        samples::update(),
        samples::delete(),
        samples::truncate(),
    ] {
        append_entry(&entry, &mut body);
    }
    body
}

fn changes() -> Vec<Value> {
    let row = json!({"user_id": "u1", "이름": "홍길동", "mood": null});
    let row = {
        let mut row = row;
        row["balance"] = serde_json::from_str("12.00").unwrap();
        row
    };
    let version = json!({"commit_time": "2024-11-20T10:00:00Z", "node": "chat2"});
    vec![
        json!({"op": "insert", "table": "public.user_table", "key": {"user_id": "u1"}, "row": row, "replaced": null}),
        json!({"op": "update", "table": "public.user_table", "key": {"user_id": "u1"}, "row": row,
               "replaced": version, "changed": ["이름", "balance"],
               "added": {"balance": serde_json::from_str::<Value>("-0.50").unwrap()}}),
        json!({"op": "delete", "table": "public.user_table", "key": {"user_id": "u1"},
               "replaced": "same transaction", "added": {"balance": -12}}),
        json!({"op": "truncate", "table": "public.user_table", "restart_identity": true}),
    ]
}

#[test]
fn a_transaction() {
    let shown = View::default().record(&Record { header: samples::header(), body: &body() }, 17).unwrap();
    let expected = json!({
        "offset": 17, "node": "chat1", "kind": "transaction", "generation": 3, "xid": 748, "lsn": "1/6B374D48",
        "chunk": 0, "last": true, "commit_time": "2024-11-20T10:05:45.678901Z",
        "seen": {"chat2": 42, "채팅3": 1_u64 << 40},
        "settled": "2024-11-20T10:05:45Z", "held": "1999-12-31T23:59:59.999999Z",
        "changes": changes(),
    });
    assert_eq!(serde_json::to_string_pretty(&shown).unwrap(), serde_json::to_string_pretty(&expected).unwrap());
}

/// A change is shown with the chunk in which it ends, with the descriptors of the chunks before.
#[test]
fn a_transaction_in_chunks_cut_at_every_byte() {
    let body = body();
    for cut in 0..body.len() {
        let mut view = View::default();
        let mut shown = Vec::new();
        for (chunk, piece) in [&body[..cut], &body[cut..]].into_iter().enumerate() {
            let header = Header { chunk: chunk as u32, last: chunk == 1, ..samples::header() };
            let record = view.record(&Record { header, body: piece }, 0).unwrap();
            shown.extend(record["changes"].as_array().unwrap().clone());
        }
        assert_eq!(shown, changes());
    }
}

#[test]
fn a_transaction_of_which_the_beginning_is_missing_has_no_changes() {
    let mut view = View::default();
    let later = Header { chunk: 1, ..samples::header() };
    assert_eq!(view.record(&Record { header: later.clone(), body: &body()[9..] }, 0).unwrap()["changes"], Value::Null);
    // Nor has what follows a chunk that could not be read.
    let first = Header { last: false, ..samples::header() };
    view.record(&Record { header: first, body: &[1, 0, 0, 0, 99] }, 0).unwrap_err();
    assert_eq!(view.record(&Record { header: later, body: &[] }, 0).unwrap()["changes"], Value::Null);
    let whole = view.record(&Record { header: samples::header(), body: &body() }, 0).unwrap();
    assert_eq!(whole["changes"].as_array().unwrap().len(), 4);
}

#[test]
fn hello_and_heartbeat() {
    let hello = Hello { node_id: [0xAB; 16], extension_version: "0.1.0".to_owned() };
    let header = Header { kind: Kind::Hello, ..samples::header() };
    let shown = View::default().record(&Record { header, body: &hello.encode() }, 0).unwrap();
    assert_eq!(shown["node_id"], "abababab-abab-abab-abab-abababababab");
    assert_eq!(shown["extension_version"], "0.1.0");
    let header = Header { kind: Kind::Heartbeat, ..samples::header() };
    let shown = View::default().record(&Record { header, body: &[] }, 0).unwrap();
    assert_eq!((&shown["kind"], shown.get("changes")), (&json!("heartbeat"), None));
}

/// One row with one column of each kind of value, as JSON text.
fn shown(type_name: &str, format: Format, value: &[u8]) -> String {
    let column =
        Column { name: "v".to_owned(), type_schema: None, type_name: type_name.to_owned(), type_modifier: -1, format };
    let mut body = Vec::new();
    append_entry(
        &Entry::Relation(Relation {
            id: 1,
            schema: "s".to_owned(),
            name: "t".to_owned(),
            columns: vec![column],
            key: vec![],
            resolution: Resolution::LastUpdateWins,
            delta_columns: vec![],
        }),
        &mut body,
    );
    let (kind, replaced, row) = (PutKind::Insert, Replaced::Nothing, Row(vec![Some(value)]));
    append_entry(&Entry::Put(Put { relation: 1, kind, replaced, changed: &[], contributions: vec![], row }), &mut body);
    let record = View::default().record(&Record { header: samples::header(), body: &body }, 0).unwrap();
    record["changes"][0]["row"]["v"].to_string()
}

#[test]
fn values_are_numbers_where_json_can_say_them() {
    assert_eq!(shown("int8", Format::Raw, &i64::MAX.to_le_bytes()), "9223372036854775807");
    assert_eq!(shown("float8", Format::Raw, &0.1_f64.to_le_bytes()), "0.1");
    assert_eq!(shown("float8", Format::Raw, &f64::NAN.to_le_bytes()), "\"NaN\"");
    assert_eq!(shown("numeric", Format::Raw, &[0x00, 0xC0]), "\"NaN\"");
    assert_eq!(shown("numeric", Format::Text, b"1.500"), "1.500");
    assert_eq!(shown("bool", Format::Raw, &[1]), "true");
    assert_eq!(shown("bool", Format::Text, b"f"), "false");
    assert_eq!(shown("date", Format::Raw, &[0; 4]), "\"2000-01-01\"");
    assert_eq!(shown("json", Format::Text, b"{\"a\": [1, 2.50]}"), "{\"a\":[1,2.50]}");
    assert_eq!(shown("_int4", Format::Text, b"{1,2}"), "\"{1,2}\"");
}

#[test]
fn jsonb_is_json() {
    for line in include_str!("../vectors/values.txt").lines().filter(|line| line.starts_with("jsonb\t")) {
        let fields: Vec<&str> = line.split('\t').collect();
        let text: String = serde_json::from_str(fields[1]).unwrap();
        let image: Vec<u8> =
            (0..fields[2].len()).step_by(2).map(|i| u8::from_str_radix(&fields[2][i..i + 2], 16).unwrap()).collect();
        assert_eq!(shown("jsonb", Format::Raw, &image), serde_json::from_str::<Value>(&text).unwrap().to_string());
    }
}
