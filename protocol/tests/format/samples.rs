//! Entries and headers: fixed ones for the golden bytes, and random ones.

use duplex_protocol::entry::{
    Column, Contribution, Delete, Entry, Format, Origin, Put, PutKind, Relation, Replaced, Resolution, Row, Truncate,
};
use duplex_protocol::record::{Header, Kind, Position, Seen};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

pub(crate) fn header() -> Header {
    Header {
        kind: Kind::Transaction,
        node: "chat1".to_owned(),
        generation: 3,
        position: Position { lsn: 0x1_6B37_4D48, xid: 748 },
        chunk: 0,
        last: true,
        commit_ts: 785_412_345_678_901,
        seen: vec![
            Seen { node: "chat2".to_owned(), next_offset: 42 },
            Seen { node: "채팅3".to_owned(), next_offset: 1 << 40 },
        ],
        settled: 785_412_345_000_000,
        held: -1,
        expanded_len: None,
    }
}

fn column(name: &str, type_schema: Option<&str>, type_name: &str, format: Format) -> Column {
    let type_schema = type_schema.map(str::to_owned);
    Column { name: name.to_owned(), type_schema, type_name: type_name.to_owned(), type_modifier: -1, format }
}

pub(crate) fn relation() -> Relation {
    Relation {
        id: 16_385,
        schema: "public".to_owned(),
        name: "user_table".to_owned(),
        columns: vec![
            column("user_id", None, "varchar", Format::Raw),
            column("이름", None, "text", Format::Raw),
            column("mood", Some("app"), "mood", Format::Text),
            Column { type_modifier: 655_366, ..column("balance", None, "numeric", Format::Raw) },
        ],
        key: vec![0],
        resolution: Resolution::ColumnMerge,
        delta_columns: vec![3],
    }
}

const VALUES: [Option<&[u8]>; 4] = [Some(b"u1"), Some("홍길동".as_bytes()), None, Some(&[0x00, 0x81, 0x0c, 0x00])];

pub(crate) fn insert() -> Entry<'static> {
    Entry::Put(Put {
        relation: 16_385,
        kind: PutKind::Insert,
        replaced: Replaced::Nothing,
        changed: &[],
        contributions: vec![],
        row: Row(VALUES.to_vec()),
    })
}

pub(crate) fn update() -> Entry<'static> {
    Entry::Put(Put {
        relation: 16_385,
        kind: PutKind::Update,
        replaced: Replaced::Version { commit_ts: 785_412_000_000_000, origin: 1 },
        changed: &[0b1010],
        contributions: vec![Contribution { column: 3, amount: "-0.50" }],
        row: Row(VALUES.to_vec()),
    })
}

pub(crate) fn delete() -> Entry<'static> {
    Entry::Delete(Delete {
        relation: 16_385,
        replaced: Replaced::SameTransaction,
        contributions: vec![Contribution { column: 3, amount: "-12" }],
        key: Row(vec![Some(b"u1")]),
    })
}

pub(crate) fn truncate() -> Entry<'static> {
    Entry::Truncate(Truncate { relation: 16_385, restart_identity: true })
}

pub(crate) fn origin() -> Origin {
    Origin { id: 1, name: "chat2".to_owned() }
}

/// An entry that owns its values.
#[derive(Debug, Clone)]
pub(crate) enum Owned {
    Relation(Relation),
    Origin(Origin),
    Put(PutKind, Vec<u8>, Change),
    Delete(Change),
    Truncate(Truncate),
}

#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) relation: u32,
    pub(crate) replaced: Replaced,
    pub(crate) contributions: Vec<(u16, String)>,
    pub(crate) values: Vec<Option<Vec<u8>>>,
}

impl Change {
    pub(crate) fn contributions(&self) -> Vec<Contribution<'_>> {
        self.contributions.iter().map(|(column, amount)| Contribution { column: *column, amount }).collect()
    }

    fn row(&self) -> Row<'_> {
        Row(self.values.iter().map(Option::as_deref).collect())
    }
}

impl Owned {
    pub(crate) fn entry(&self) -> Entry<'_> {
        match self {
            Self::Relation(relation) => Entry::Relation(relation.clone()),
            Self::Origin(origin) => Entry::Origin(origin.clone()),
            Self::Put(kind, changed, change) => Entry::Put(Put {
                relation: change.relation,
                kind: *kind,
                replaced: change.replaced,
                changed,
                contributions: change.contributions(),
                row: change.row(),
            }),
            Self::Delete(change) => Entry::Delete(Delete {
                relation: change.relation,
                replaced: change.replaced,
                contributions: change.contributions(),
                key: change.row(),
            }),
            Self::Truncate(truncate) => Entry::Truncate(truncate.clone()),
        }
    }
}

/// Integers of every encoded length.
fn id() -> impl Strategy<Value = u32> {
    prop_oneof![0..300_u32, any::<u32>()]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z_]{1,12}", "[^\0]{1,20}"]
}

fn columns() -> impl Strategy<Value = Vec<Column>> {
    let format = prop_oneof![Just(Format::Raw), Just(Format::Text)];
    let column = (name(), option::of(name()), name(), any::<i32>(), format).prop_map(
        |(name, type_schema, type_name, type_modifier, format)| Column {
            name,
            type_schema,
            type_name,
            type_modifier,
            format,
        },
    );
    vec(column, 1..12)
}

fn any_relation() -> impl Strategy<Value = Relation> {
    let resolution = prop_oneof![
        Just(Resolution::LastUpdateWins),
        Just(Resolution::ColumnMerge),
        name().prop_map(Resolution::Function)
    ];
    (id(), name(), name(), columns(), resolution, vec(any::<u16>(), 0..4), vec(any::<u16>(), 0..4)).prop_map(
        |(id, schema, name, columns, resolution, key, delta)| {
            let within = |index: &u16| index % columns.len() as u16;
            let (key, delta_columns) = (key.iter().map(within).collect(), delta.iter().map(within).collect());
            Relation { id, schema, name, columns, key, resolution, delta_columns }
        },
    )
}

fn replaced() -> impl Strategy<Value = Replaced> {
    prop_oneof![
        Just(Replaced::Nothing),
        Just(Replaced::SameTransaction),
        Just(Replaced::Ancient),
        (any::<i64>(), id()).prop_map(|(commit_ts, origin)| Replaced::Version { commit_ts, origin }),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let value = prop_oneof![9 => vec(any::<u8>(), 0..40), 1 => vec(any::<u8>(), 200..600)];
    (id(), replaced(), vec((any::<u16>(), "-?[0-9]{1,9}(\\.[0-9]{1,4})?"), 0..3), vec(option::of(value), 0..20))
        .prop_map(|(relation, replaced, contributions, values)| Change { relation, replaced, contributions, values })
}

pub(crate) fn any_entry() -> impl Strategy<Value = Owned> {
    let kind = prop_oneof![Just(PutKind::Insert), Just(PutKind::Update)];
    prop_oneof![
        1 => any_relation().prop_map(Owned::Relation),
        1 => (id(), name()).prop_map(|(id, name)| Owned::Origin(Origin { id: id.max(1), name })),
        5 => (kind, vec(any::<u8>(), 0..9), change()).prop_map(|(kind, bits, change)| Owned::Put(kind, bits, change)),
        2 => change().prop_map(Owned::Delete),
        1 => (id(), any::<bool>())
            .prop_map(|(relation, restart_identity)| Owned::Truncate(Truncate { relation, restart_identity })),
    ]
}

pub(crate) fn any_header() -> impl Strategy<Value = Header> {
    let kind = prop_oneof![Just(Kind::Transaction), Just(Kind::Hello), Just(Kind::Heartbeat)];
    let seen = (name(), any::<u64>()).prop_map(|(node, next_offset)| Seen { node, next_offset });
    (
        (kind, name(), any::<u64>(), any::<(u64, u64)>(), any::<u32>(), any::<bool>()),
        (any::<i64>(), vec(seen, 0..5), any::<i64>(), any::<i64>(), option::of(any::<u32>())),
    )
        .prop_map(
            |((kind, node, generation, (lsn, xid), chunk, last), (commit_ts, seen, settled, held, expanded_len))| {
                let position = Position { lsn, xid };
                Header { kind, node, generation, position, chunk, last, commit_ts, seen, settled, held, expanded_len }
            },
        )
}

pub(crate) fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}
