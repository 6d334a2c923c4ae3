//! What every decoder of the crate does with arbitrary bytes. The fuzz target calls this, and so do the tests.

use duplex_protocol::encode::append_entry;
use duplex_protocol::entry::Entry;
use duplex_protocol::json::View;
use duplex_protocol::record::{Hello, Kind, Record};
use duplex_protocol::stream::EntryReader;
use duplex_protocol::value::RawType;

/// Reads `bytes` as everything that they could be. Nothing may panic, and what can be read can be written and read
/// again as the same.
pub(crate) fn decode(bytes: &[u8]) {
    record(bytes);
    entry(bytes);
    value(bytes);
    let _ = Hello::decode(bytes);
}

/// As a whole record, and its body as entries and as JSON.
pub(crate) fn record(bytes: &[u8]) {
    let Ok(record) = Record::decode(bytes) else { return };
    assert_eq!(
        Record::decode(&record.header.encode_record(record.body)).expect("what was read can be written"),
        record
    );
    entries(&record);
    // As JSON, as the first chunk of a transaction.
    let mut record = record;
    record.header.kind = Kind::Transaction;
    record.header.chunk = 0;
    let _ = View::default().record(&record, 0);
}

/// A record's entries; the reader goes on after those that are malformed.
pub(crate) fn entries(record: &Record<'_>) {
    let mut reader = EntryReader::default();
    if reader.feed(record).is_ok() {
        while !matches!(reader.next(), Ok(None)) {}
        let _ = reader.finish();
    }
}

/// As the content of one frame.
pub(crate) fn entry(bytes: &[u8]) {
    if let Ok(entry) = Entry::decode(bytes) {
        let mut framed = Vec::new();
        append_entry(&entry, &mut framed);
        assert_eq!(Entry::decode(&framed[4..]).expect("what was read can be written"), entry);
    }
}

/// As the raw image of every type.
pub(crate) fn value(bytes: &[u8]) {
    for raw in RawType::ALL {
        let checked = raw.check(bytes).is_ok();
        let text = raw.to_text(bytes);
        assert!(checked || text.is_err(), "{} has a text and is not valid", raw.name());
    }
}
