//! The same stream for people, as JSON.
//!
//! One record becomes one object. Numbers are JSON numbers where JSON can say them exactly as they are (`numeric`
//! included, with all its digits), `jsonb` and `json` are JSON, everything else is text as PostgreSQL writes it.

use std::collections::HashMap;

use serde_json::{Map, Number, Value, json};

use crate::codec::DecodeError;
use crate::entry::{Column, Contribution, Delete, Entry, Format, Put, PutKind, Relation, Replaced, Row, Truncate};
use crate::record::{Hello, Kind, Position, Record};
use crate::stream::EntryReader;
use crate::value::numeric::{Class, Parts};
use crate::value::time::iso_utc;
use crate::value::{RawType, jsonb, uuid_text};

/// The most relations and origins that one transaction may describe here: a view is for people, and must not grow
/// without end on a forged stream.
const MAX_DESCRIPTORS: usize = 100_000;

/// Deeper JSON is shown as a string: a tree of JSON values is taken down recursively, and would overflow the stack.
const MAX_DEPTH: usize = 100;

/// Reads the records of one stream, in order, and turns each into JSON.
///
/// A transaction describes a table once, before the first change to it, and a change may begin in one chunk and end
/// in the next: so the view remembers what it read of a transaction until its last chunk. A change is shown with the
/// chunk in which it ends.
///
/// ```
/// # use duplex_protocol::{json::View, record::Record};
/// # fn f(value: &[u8], offset: i64) -> Result<(), duplex_protocol::codec::DecodeError> {
/// let mut view = View::default();
/// println!("{}", view.record(&Record::decode(value)?, offset)?);
/// # Ok(()) }
/// ```
#[derive(Debug, Default)]
pub struct View {
    reader: EntryReader,
    descriptors: Descriptors,
    /// The generation, transaction and chunk that continues what was read.
    expected: Option<(u64, Position, u32)>,
}

#[derive(Debug, Default)]
struct Descriptors {
    relations: HashMap<u32, Relation>,
    origins: HashMap<u32, String>,
    sender: String,
}

/// One change as JSON, as the view of its record would show it, given the descriptor of its table. `None` for an entry
/// that changes nothing.
///
/// # Errors
/// [`DecodeError`] if the change is not one of that table.
pub fn change_of(relation: &Relation, entry: Entry<'_>) -> Result<Option<Map<String, Value>>, DecodeError> {
    let mut descriptors = Descriptors::default();
    descriptors.relations.insert(relation.id, relation.clone());
    Ok(match descriptors.entry(entry)? {
        Some(Value::Object(change)) => Some(change),
        _ => None,
    })
}

impl View {
    /// One record as JSON.
    ///
    /// `changes` is null where the view was not given the transaction's earlier chunks, or failed on one of them.
    ///
    /// # Errors
    /// [`DecodeError`] if the body is not what the header says. The view can be used on; it takes up again with the
    /// next transaction.
    pub fn record(&mut self, record: &Record<'_>, offset: i64) -> Result<Value, DecodeError> {
        let mut out = header(record, offset);
        match record.header.kind {
            Kind::Transaction => {
                let changes = self.changes(record)?;
                out.insert("changes".to_owned(), changes.map_or(Value::Null, Value::Array));
            }
            Kind::Hello => {
                let hello = Hello::decode(record.body)?;
                out.insert("node_id".to_owned(), uuid_text(&hello.node_id).into());
                out.insert("extension_version".to_owned(), hello.extension_version.into());
            }
            Kind::Heartbeat => {}
        }
        Ok(Value::Object(out))
    }

    fn changes(&mut self, record: &Record<'_>) -> Result<Option<Vec<Value>>, DecodeError> {
        let header = &record.header;
        let here = (header.generation, header.position, header.chunk);
        let expected = self.expected.take();
        if header.chunk == 0 {
            self.reader = EntryReader::default();
            self.descriptors = Descriptors { sender: header.node.clone(), ..Descriptors::default() };
        } else if expected != Some(here) {
            return Ok(None);
        }
        self.reader.feed(record)?;
        let mut changes = Vec::new();
        while let Some(entry) = self.reader.next()? {
            changes.extend(self.descriptors.entry(entry)?);
        }
        if header.last {
            self.reader.finish()?;
        } else {
            let next =
                header.chunk.checked_add(1).ok_or(DecodeError::Inconsistent("transaction has too many chunks"))?;
            self.expected = Some((header.generation, header.position, next));
        }
        Ok(Some(changes))
    }
}

fn header(record: &Record<'_>, offset: i64) -> Map<String, Value> {
    let header = &record.header;
    let kind = match header.kind {
        Kind::Transaction => "transaction",
        Kind::Hello => "hello",
        Kind::Heartbeat => "heartbeat",
    };
    let Position { lsn, xid } = header.position;
    let seen: Map<String, Value> =
        header.seen.iter().map(|seen| (seen.node.clone(), seen.next_offset.into())).collect();
    let mut out = Map::new();
    for (name, value) in [
        ("offset", offset.into()),
        ("node", header.node.as_str().into()),
        ("kind", kind.into()),
        ("generation", header.generation.into()),
        ("xid", xid.into()),
        ("lsn", format!("{:X}/{:X}", lsn >> 32, lsn & 0xFFFF_FFFF).into()),
        ("chunk", header.chunk.into()),
        ("last", header.last.into()),
        ("commit_time", iso_utc(header.commit_ts).into()),
        ("seen", seen.into()),
        ("settled", iso_utc(header.settled).into()),
        ("held", iso_utc(header.held).into()),
    ] {
        out.insert(name.to_owned(), value);
    }
    out
}

impl Descriptors {
    /// Takes a descriptor in, or turns a change into JSON.
    fn entry(&mut self, entry: Entry<'_>) -> Result<Option<Value>, DecodeError> {
        if self.relations.len() + self.origins.len() > MAX_DESCRIPTORS {
            return Err(DecodeError::Inconsistent("transaction describes too many relations"));
        }
        Ok(match entry {
            Entry::Relation(relation) => {
                self.relations.insert(relation.id, relation);
                None
            }
            Entry::Origin(origin) => {
                self.origins.insert(origin.id, origin.name);
                None
            }
            Entry::Put(put) => Some(self.put(&put)?),
            Entry::Delete(delete) => Some(self.delete(&delete)?),
            Entry::Truncate(truncate) => Some(self.truncate(&truncate)?),
        })
    }

    fn relation(&self, id: u32) -> Result<&Relation, DecodeError> {
        self.relations.get(&id).ok_or(DecodeError::Inconsistent("change refers to a relation that was not described"))
    }

    fn put(&self, put: &Put<'_>) -> Result<Value, DecodeError> {
        let relation = self.relation(put.relation)?;
        if put.row.0.len() != relation.columns.len() {
            return Err(DecodeError::Inconsistent("row has another number of values than its relation has columns"));
        }
        let key = key_columns(relation)
            .map(|(column, index)| member(column, put.row.0[index]))
            .collect::<Result<Map<_, _>, _>>()?;
        let row = relation
            .columns
            .iter()
            .zip(&put.row.0)
            .map(|(column, bytes)| member(column, *bytes))
            .collect::<Result<Map<_, _>, _>>()?;
        let changed: Vec<&str> = relation
            .columns
            .iter()
            .enumerate()
            .filter(|(i, _)| put.changed.get(i / 8).is_some_and(|bits| bits >> (i % 8) & 1 == 1))
            .map(|(_, column)| column.name.as_str())
            .collect();
        let op = match put.kind {
            PutKind::Insert => "insert",
            PutKind::Update => "update",
        };
        let mut out = change(op, relation);
        out.insert("key".to_owned(), key.into());
        out.insert("row".to_owned(), row.into());
        out.insert("replaced".to_owned(), self.replaced(put.replaced));
        if put.kind == PutKind::Update {
            out.insert("changed".to_owned(), changed.into());
        }
        added(&mut out, relation, &put.contributions)?;
        Ok(out.into())
    }

    fn delete(&self, delete: &Delete<'_>) -> Result<Value, DecodeError> {
        let relation = self.relation(delete.relation)?;
        let Row(values) = &delete.key;
        if values.len() != relation.key.len() {
            return Err(DecodeError::Inconsistent(
                "key has another number of values than its relation's key has columns",
            ));
        }
        let key = key_columns(relation)
            .zip(values)
            .map(|((column, _), bytes)| member(column, *bytes))
            .collect::<Result<Map<_, _>, _>>()?;
        let mut out = change("delete", relation);
        out.insert("key".to_owned(), key.into());
        out.insert("replaced".to_owned(), self.replaced(delete.replaced));
        added(&mut out, relation, &delete.contributions)?;
        Ok(out.into())
    }

    fn truncate(&self, truncate: &Truncate) -> Result<Value, DecodeError> {
        let mut out = change("truncate", self.relation(truncate.relation)?);
        out.insert("restart_identity".to_owned(), truncate.restart_identity.into());
        Ok(out.into())
    }

    fn replaced(&self, replaced: Replaced) -> Value {
        match replaced {
            Replaced::Nothing => Value::Null,
            Replaced::SameTransaction => "same transaction".into(),
            Replaced::Ancient => "ancient".into(),
            Replaced::Version { commit_ts, origin } => {
                let node = match origin {
                    0 => Some(&self.sender),
                    id => self.origins.get(&id),
                };
                json!({ "commit_time": iso_utc(commit_ts), "node": node })
            }
        }
    }
}

fn change(op: &str, relation: &Relation) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert("op".to_owned(), op.into());
    out.insert("table".to_owned(), format!("{}.{}", relation.schema, relation.name).into());
    out
}

/// The key's columns with their indexes in a row. Indexes that no column has are left out.
fn key_columns(relation: &Relation) -> impl Iterator<Item = (&Column, usize)> {
    relation.key.iter().filter_map(|index| {
        let index = usize::from(*index);
        relation.columns.get(index).map(|column| (column, index))
    })
}

/// What a change added to counters, where it did.
fn added(
    out: &mut Map<String, Value>,
    relation: &Relation,
    contributions: &[Contribution<'_>],
) -> Result<(), DecodeError> {
    if contributions.is_empty() {
        return Ok(());
    }
    let mut added = Map::new();
    for Contribution { column, amount } in contributions {
        let column = relation
            .columns
            .get(usize::from(*column))
            .ok_or(DecodeError::Inconsistent("contribution refers to a column that its relation has not"))?;
        added.insert(column.name.clone(), number_or_text(amount));
    }
    out.insert("added".to_owned(), added.into());
    Ok(())
}

fn member(column: &Column, bytes: Option<&[u8]>) -> Result<(String, Value), DecodeError> {
    let value = match bytes {
        None => Value::Null,
        Some(bytes) => value(column, bytes)?,
    };
    Ok((column.name.clone(), value))
}

fn number_or_text(text: &str) -> Value {
    // JSON has no NaN and no Infinity.
    serde_json::from_str::<Number>(text).map_or_else(|_| text.into(), Value::Number)
}

fn value(column: &Column, bytes: &[u8]) -> Result<Value, DecodeError> {
    let catalog_type = column.type_schema.is_none().then_some(column.type_name.as_str());
    match column.format {
        Format::Raw => {
            let raw = catalog_type
                .and_then(RawType::from_name)
                .ok_or(DecodeError::Value { type_name: "raw image", reason: "values of this type travel as text" })?;
            raw_value(raw, bytes)
        }
        Format::Text => {
            let text = std::str::from_utf8(bytes)
                .map_err(|_| DecodeError::Value { type_name: "text", reason: "text is not UTF-8" })?;
            Ok(match catalog_type {
                Some("bool") if text == "t" => true.into(),
                Some("bool") if text == "f" => false.into(),
                Some("int2" | "int4" | "int8" | "oid" | "float4" | "float8" | "numeric") => number_or_text(text),
                Some("json" | "jsonb") => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
                _ => text.into(),
            })
        }
    }
}

fn raw_value(raw: RawType, bytes: &[u8]) -> Result<Value, DecodeError> {
    match raw {
        RawType::Bool => raw.check(bytes).map(|()| Value::Bool(bytes[0] == 1)),
        RawType::Jsonb => {
            raw.check(bytes)?;
            let mut tree = Tree::default();
            match jsonb::walk(bytes, &mut tree) {
                Ok(()) => Ok(tree.done.unwrap_or_default()),
                // Too deep, or numbers of unreasonable length.
                Err(_) => raw.to_text(bytes).map(Value::from),
            }
        }
        RawType::Int2
        | RawType::Int4
        | RawType::Int8
        | RawType::Oid
        | RawType::Float4
        | RawType::Float8
        | RawType::Numeric => raw.to_text(bytes).map(|text| number_or_text(&text)),
        _ => raw.to_text(bytes).map(Value::from),
    }
}

/// Builds a JSON value from a `jsonb` image.
#[derive(Default)]
struct Tree {
    /// The containers that are open, each with the key under which it goes into the one before.
    open: Vec<(Value, Option<String>)>,
    key: Option<String>,
    done: Option<Value>,
    digits: usize,
}

impl Tree {
    /// Digits of all numbers together, beyond which the value is not built.
    const MAX_DIGITS: usize = 1 << 20;

    fn add(&mut self, value: Value, key: Option<String>) {
        match self.open.last_mut() {
            Some((Value::Array(elements), _)) => elements.push(value),
            Some((Value::Object(members), _)) => {
                members.insert(key.unwrap_or_default(), value);
            }
            _ => self.done = Some(value),
        }
    }

    fn scalar(&mut self, value: Value) {
        let key = self.key.take();
        self.add(value, key);
    }
}

impl jsonb::Visitor for Tree {
    fn begin(&mut self, object: bool) -> Result<(), &'static str> {
        if self.open.len() == MAX_DEPTH {
            return Err("nested too deep to be shown as JSON");
        }
        let container = if object { Value::Object(Map::new()) } else { Value::Array(Vec::new()) };
        self.open.push((container, self.key.take()));
        Ok(())
    }

    fn end(&mut self, _object: bool) {
        if let Some((container, key)) = self.open.pop() {
            self.add(container, key);
        }
    }

    fn key(&mut self, key: &str) {
        self.key = Some(key.to_owned());
    }

    fn string(&mut self, value: &str) {
        self.scalar(value.into());
    }

    fn number(&mut self, value: &Parts<'_>) -> Result<(), &'static str> {
        self.digits += value.text_len();
        if self.digits > Self::MAX_DIGITS || !matches!(value.class, Class::Finite { .. }) {
            return Err("number is too long to be shown as JSON");
        }
        self.scalar(number_or_text(&value.to_string()));
        Ok(())
    }

    fn boolean(&mut self, value: bool) {
        self.scalar(value.into());
    }

    fn null(&mut self) {
        self.scalar(Value::Null);
    }
}
