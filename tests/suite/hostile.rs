//! What the relay's role gives to `duplex.apply_batch` and `apply_chunk` may be anything: it gets an error, and the server
//! lives. All of it bounded and from fixed seeds; a crash is also found in the server's log when the lab ends.

use anyhow::{Context, Result, bail, ensure};
use duplex_lab::{Lab, Node, Session};
use duplex_protocol::encode::append_entry;
use duplex_protocol::entry::{
    Column, Contribution, Delete, Entry, Format, Origin, Put, PutKind, Relation, Replaced, Resolution, Row, Truncate,
};
use duplex_protocol::record::{Header, Kind, Record, Seen, expand_onto};
use duplex_protocol::value::RawType;

/// Numbers that look random and are the same each time (xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// Changes some bytes, or cuts, doubles or moves a piece.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => {
                    let piece = bytes[at..].iter().copied().take(self.below(20)).collect::<Vec<_>>();
                    bytes.splice(at..at, piece);
                }
                2 => drop(bytes.drain(at..(at + self.below(8)).min(bytes.len()))),
                _ if bytes.is_empty() => {}
                3 => bytes[at] = [0, 1, 0x7f, 0x80, 0xfb, 0xfc, 0xfd, 0xff][self.below(8)],
                4 => bytes[at] ^= 1 << self.below(8),
                _ => bytes[at] = self.next() as u8,
            }
        }
    }
}

/// A session of the relay's role that applies the first node's stream on the second.
struct Applier {
    session: Session,
    offset: i64,
}

impl Applier {
    async fn open(lab: &Lab) -> Result<Self> {
        let [a, b] = lab.pair();
        let session = b.connect_as("relay").await?;
        let opened = format!("select next_offset from duplex.apply_open('{}')", a.name());
        let offset = session.number(&opened).await?;
        Ok(Self { session, offset })
    }

    /// Applies a record, both ways. The SQLSTATE of the error, if there was one.
    async fn apply(&mut self, record: &[u8]) -> Result<Option<String>> {
        self.offset += 1;
        let client = self.session.client();
        self.session.exec("begin").await?;
        let chunk = client.execute("select duplex.apply_chunk($1, $2)", &[&record, &self.offset]).await.map(drop);
        self.session.exec("rollback").await.context("after apply_chunk")?;
        let chunk = outcome(chunk)?;
        let batch = client.execute("call duplex.apply_batch($1, $2)", &[&vec![record], &vec![self.offset]]).await;
        let batch = outcome(batch.map(drop))?;
        ensure!(
            chunk.is_none() || batch.is_some() || self.is_no_chunk(record),
            "apply_chunk refused with {chunk:?} what apply_batch took"
        );
        Ok(batch)
    }

    fn is_no_chunk(&self, record: &[u8]) -> bool {
        Record::decode(record).is_ok_and(|record| record.header.kind != Kind::Transaction)
    }
}

/// The SQLSTATE; an error without one is a broken connection, and an internal error is nobody's fault but ours.
fn outcome(result: std::result::Result<(), tokio_postgres::Error>) -> Result<Option<String>> {
    let Err(err) = result else { return Ok(None) };
    let Some(error) = err.as_db_error() else { bail!("the connection broke: {err}") };
    ensure!(error.code().code() != "XX000", "internal error: {} {:?}", error.message(), error.detail());
    Ok(Some(error.code().code().to_owned()))
}

const TABLE: &str = "create type mood as enum ('ok', 'sad');
     create domain positive as int check (value > 0);
     create table t (id int primary key, n numeric(10,2), j jsonb, s varchar(20), ts timestamptz, iv interval, m mood,
                     a int[], b bytea, f float8, d positive, p point, u uuid);
     create table p (id int primary key, v text) partition by range (id);
     create table p_1 partition of p for values from (minvalue) to (50); create table p_2 partition of p default;
     create table not_enabled (id int primary key)";

/// Two nodes, and records of the first one's stream that hold everything.
async fn records() -> Result<(Lab, Vec<Vec<u8>>)> {
    let lab = Lab::builder().without_relays().start().await?;
    lab.create_everywhere(TABLE, &["t", "p"]).await?;
    let a = lab.node(0);
    for sql in [
        "insert into t select i, i / 3.0, jsonb_build_object('a', array[i, null], 'b', i::text), 's' || i, now(), i * interval '1h',
                              'ok', array[i, null], decode(md5(i::text), 'hex'), i / 7.0, i + 1, point(i, i), md5(i::text)::uuid
           from generate_series(1, 5) i",
        "update t set n = n + 1, m = 'sad', j = 'null', iv = null where id < 4",
        "begin; update t set id = id + 10; delete from t where id > 13; insert into p values (1, 'x'), (100, repeat('y', 3000)); commit",
        "update p set id = 151 - id; delete from p where id = 50",
        "truncate t, p",
    ] {
        a.exec(sql).await?;
    }
    let relay = a.connect_as("relay").await?;
    let client = relay.client();
    let hello: Vec<u8> = client.query_one("select hello from duplex.drain_open(0)", &[]).await?.get(0);
    let mut records = vec![hello];
    for _ in 0..20 {
        let rows = client.query("select duplex.drain(0, 1000000)", &[]).await?;
        records.extend(rows.iter().map(|row| row.get::<_, Vec<u8>>(0)));
    }
    ensure!(records.len() > 5, "{} records", records.len());
    Ok((lab, records))
}

/// A record with its body expanded, so that mutations meet what is inside.
fn expanded(record: &[u8]) -> Result<(Header, Vec<u8>)> {
    let record = Record::decode(record)?;
    let mut body = Vec::new();
    match record.header.expanded_len {
        Some(len) => expand_onto(record.body, len, &mut body)?,
        None => body.extend_from_slice(record.body),
    }
    Ok((Header { expanded_len: None, ..record.header }, body))
}

async fn started(node: &Node) -> Result<String> {
    node.one("select pg_postmaster_start_time() || ' ' || pg_conf_load_time()").await
}

#[tokio::test]
async fn random_bytes_and_mutated_records() -> Result<()> {
    let (lab, records) = records().await?;
    let before = started(lab.node(1)).await?;
    let mut applier = Applier::open(&lab).await?;
    let mut numbers = Numbers(0x5eed_0001);
    for record in &records {
        let state = applier.apply(record).await?;
        assert_eq!(state, None, "the records themselves are sound");
    }
    let mut refused = 0;
    for round in 0..300 {
        let len = numbers.below(if round % 10 == 0 { 5000 } else { 60 });
        let mut bytes = numbers.bytes(len);
        if round % 2 == 0 {
            bytes.insert(0, 1);
        }
        refused += usize::from(applier.apply(&bytes).await?.is_some());
    }
    assert_eq!(refused, 300, "random bytes were taken for a record");
    let mut refused = 0;
    for round in 0..1500 {
        let record = &records[numbers.below(records.len())];
        let (mut header, mut body) = expanded(record)?;
        // Never so far ahead of the clock that it would be waited for.
        header.commit_ts = header.commit_ts.min(0) - 1;
        let bytes = if round % 5 == 0 {
            let mut whole = record.clone();
            numbers.mutate(&mut whole);
            whole
        } else {
            numbers.mutate(&mut body);
            header.encode_record(&body)
        };
        refused += usize::from(applier.apply(&bytes).await?.is_some());
    }
    assert!(refused > 700, "only {refused} of 1,500 mutated records were refused");
    assert_eq!(started(lab.node(1)).await?, before, "the server has started again");
    Ok(())
}

fn column(name: &str, type_name: &str, format: Format) -> Column {
    Column { name: name.to_owned(), type_schema: None, type_name: type_name.to_owned(), type_modifier: -1, format }
}

fn relation() -> Relation {
    Relation {
        id: 7,
        schema: "public".to_owned(),
        name: "p".to_owned(),
        columns: vec![column("id", "int4", Format::Raw), column("v", "text", Format::Raw)],
        key: vec![0],
        resolution: Resolution::LastUpdateWins,
        delta_columns: Vec::new(),
    }
}

fn put(row: &[Option<&'static [u8]>]) -> Entry<'static> {
    let row = Row(row.to_vec());
    Entry::Put(Put {
        relation: 7,
        kind: PutKind::Insert,
        replaced: Replaced::Nothing,
        changed: &[],
        contributions: vec![],
        row,
    })
}

const ONE: Option<&[u8]> = Some(&[1, 0, 0, 0]);

fn rename(relation: &mut Relation, schema: &str, name: &str) {
    (relation.schema, relation.name) = (schema.to_owned(), name.to_owned());
}

fn not_enabled(relation: &mut Relation) {
    rename(relation, "public", "not_enabled");
    relation.columns.truncate(1);
}

/// Bodies that no capture writes.
fn forged() -> Vec<(&'static str, Vec<Entry<'static>>)> {
    let described = |change: fn(&mut Relation), rest: Vec<Entry<'static>>| {
        let mut relation = relation();
        change(&mut relation);
        [vec![Entry::Relation(relation)], rest].concat()
    };
    let delete = |key: Vec<Option<&'static [u8]>>| {
        Entry::Delete(Delete { relation: 7, replaced: Replaced::Ancient, contributions: vec![], key: Row(key) })
    };
    let sound = || vec![put(&[ONE, Some(b"x")])];
    vec![
        ("a relation that was not described", sound()),
        ("a delete of one", vec![delete(vec![ONE])]),
        ("a truncate of one", vec![Entry::Truncate(Truncate { relation: 9, restart_identity: true })]),
        ("too few values", described(|_| {}, vec![put(&[ONE])])),
        ("too many values", described(|_| {}, vec![put(&[ONE, None, None])])),
        ("no values", described(|_| {}, vec![put(&[])])),
        ("a key of no columns", described(|_| {}, vec![delete(vec![])])),
        ("a key of too many columns", described(|_| {}, vec![delete(vec![ONE, ONE])])),
        ("a key that is NULL", described(|_| {}, vec![put(&[None, None])])),
        ("a descriptor without key", described(|r| r.key.clear(), sound())),
        ("a key that is none here", described(|r| r.key = vec![1], sound())),
        ("a key with a column twice", described(|r| r.key = vec![0, 0], sound())),
        ("a column that is not here", described(|r| r.columns[1].name = "w".into(), sound())),
        ("a column twice", described(|r| r.columns[1].name = "id".into(), sound())),
        ("a system column", described(|r| r.columns[1].name = "ctid".into(), sound())),
        (
            "no columns",
            described(
                |r| {
                    r.columns.clear();
                    r.key.clear();
                },
                vec![put(&[])],
            ),
        ),
        ("a table that is not here", described(|r| r.name = "q".into(), sound())),
        ("a schema that is not here", described(|r| r.schema = "q".into(), sound())),
        ("a name beyond all names", described(|r| r.name = "q".repeat(100_000), sound())),
        ("a table that is not enabled", described(not_enabled, vec![put(&[ONE])])),
        (
            "truncating it",
            described(not_enabled, vec![Entry::Truncate(Truncate { relation: 7, restart_identity: false })]),
        ),
        ("a partition by itself", described(|r| r.name = "p_1".into(), sound())),
        ("a catalog", described(|r| rename(r, "pg_catalog", "pg_authid"), sound())),
        ("our own tables", described(|r| rename(r, "duplex", "table_registry"), sound())),
        ("an index", described(|r| r.name = "p_pkey".into(), sound())),
        ("a view", described(|r| rename(r, "duplex", "tables"), sound())),
        ("a raw image of a type that has none", described(|r| r.columns[1].type_name = "point".into(), sound())),
        (
            "a raw image of a type of one's own",
            described(|r| r.columns[0].type_schema = Some("public".into()), sound()),
        ),
        ("text that is no number", described(|r| r.columns[0].format = Format::Text, vec![put(&[Some(b"one"), None])])),
        ("text with NUL", described(|r| r.columns[1].format = Format::Text, vec![put(&[ONE, Some(b"a\0b")])])),
        (
            "text that is not UTF-8",
            described(|r| r.columns[1].format = Format::Text, vec![put(&[ONE, Some(b"\xff\xfe")])]),
        ),
        ("a raw text that is not UTF-8", described(|_| {}, vec![put(&[ONE, Some(b"\xed\xa0\x80")])])),
        (
            "a relation whose id is taken away",
            described(|_| {}, vec![Entry::Relation(Relation { name: "q".into(), ..relation() }), put(&[ONE, None])]),
        ),
        ("the sender as another origin", vec![Entry::Origin(Origin { id: 0, name: "x".into() })]),
    ]
}

#[tokio::test]
async fn forged_bodies() -> Result<()> {
    let (lab, records) = records().await?;
    let [a, b] = lab.pair();
    let before = started(b).await?;
    let mut applier = Applier::open(&lab).await?;
    let (header, _) = expanded(&records[1])?;
    // From its hello on the peer is known by its identity.
    assert_eq!(applier.apply(&records[0]).await?, None);
    let body = |entries: &[Entry<'_>]| {
        let mut body = Vec::new();
        entries.iter().for_each(|entry| append_entry(entry, &mut body));
        body
    };
    let good = body(&[Entry::Relation(relation()), put(&[ONE, Some(b"x")])]);
    for (what, entries) in forged() {
        // A sound change before: it must go with the rest.
        let mut all = body(&[Entry::Relation(Relation { id: 1, ..relation() })]);
        all.extend(body(&entries));
        let state = applier.apply(&header.encode_record(&all)).await.context(what)?;
        assert!(state.is_some(), "{what} was taken");
    }
    // Frames and headers.
    let mut cut = good.clone();
    cut.truncate(good.len() - 3);
    let mut long = good.clone();
    long.extend([0xff, 0xff, 0xff, 0xff, 1]);
    let peer = |node: &str| Header { node: node.to_owned(), ..header.clone() };
    for (what, bytes) in [
        ("a transaction that ends inside an entry", header.encode_record(&cut)),
        ("a frame of four gigabytes", header.encode_record(&long)),
        ("an empty frame", header.encode_record(&[&good[..], &[0, 0, 0, 0]].concat())),
        (
            "a body that claims to be compressed",
            Header { expanded_len: Some(100), ..header.clone() }.encode_record(&good),
        ),
        (
            "a body that claims to be large",
            Header { expanded_len: Some(u32::MAX), ..header.clone() }.encode_record(&good),
        ),
        ("another node's record", peer("elsewhere").encode_record(&good)),
        ("this node's own record", peer(b.name()).encode_record(&good)),
        ("a node without a name", peer("").encode_record(&good)),
        ("a name with NUL", peer(&format!("{}\0", a.name())).encode_record(&good)),
        ("a later chunk", Header { chunk: 3, ..header.clone() }.encode_record(&good)),
        ("a clock far ahead", Header { commit_ts: i64::MAX, ..header.clone() }.encode_record(&good)),
        (
            "a causal order with NUL",
            Header { seen: vec![Seen { node: "a\0b".into(), next_offset: 1 }], ..header.clone() }.encode_record(&good),
        ),
        ("a hello without body", Header { kind: Kind::Hello, ..header.clone() }.encode_record(&[])),
        ("a hello of random bytes", Header { kind: Kind::Hello, ..header.clone() }.encode_record(&[0xff; 40])),
        (
            "a hello of another database",
            Header { kind: Kind::Hello, ..header.clone() }.encode_record(&[&[9; 16][..], b"\x010"].concat()),
        ),
    ] {
        let state = applier.apply(&bytes).await.context(what)?;
        assert!(state.is_some(), "{what} was taken");
    }
    // Strange, and yet no reason to stop.
    let contributions = vec![Contribution { column: 9999, amount: "no number" }];
    let changed: &[u8] = &[0xff; 100];
    let row = Row(vec![ONE, Some(b"y")]);
    let strange =
        Put { relation: 7, kind: PutKind::Update, replaced: Replaced::SameTransaction, changed, contributions, row };
    let first = header.commit_ts;
    for commit_ts in [i64::MIN, 0, first] {
        let bytes =
            Header { commit_ts, seen: vec![Seen { node: "nobody".into(), next_offset: u64::MAX }], ..header.clone() }
                .encode_record(&body(&[Entry::Relation(relation()), Entry::Put(strange.clone())]));
        applier.apply(&bytes).await?;
    }
    assert_eq!(b.number("select count(*) from not_enabled").await?, 0);
    assert_eq!(b.dump("p", &[]).await?.len(), 1);
    assert_eq!(started(b).await?, before, "the server has started again");
    Ok(())
}

/// Raw images of each type, of every length that is not its own and with bytes that are no value of it.
#[tokio::test]
async fn raw_images_of_wrong_length_and_content() -> Result<()> {
    let (lab, records) = records().await?;
    let mut numbers = Numbers(0x5eed_0002);
    let columns: Vec<String> =
        RawType::ALL.iter().enumerate().map(|(i, raw)| format!("c{i} pg_catalog.\"{}\"", raw.name())).collect();
    let create = format!("create table raw (id int primary key, {}, arr int[])", columns.join(", "));
    lab.create_everywhere(&create, &["raw"]).await?;
    // Every function of the type is then called with what was stored.
    let used: Vec<String> = (0..columns.len()).map(|i| format!("length(c{i}::text)")).collect();
    let use_all = format!(
        "select count(*), {} from raw",
        used.iter().map(|u| format!("sum({u})")).collect::<Vec<_>>().join(", ")
    );
    let mut applier = Applier::open(&lab).await?;
    let (header, _) = expanded(&records[1])?;
    let (mut taken, mut id) = (0, 0_i32);
    for (i, raw) in RawType::ALL.iter().enumerate() {
        // The column's own type, and a neighbour's, which goes through the image's text.
        for to in [i, (i + 1) % columns.len()] {
            for len in [0, 1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 24, 40, 100] {
                id += 1;
                let bytes = match numbers.below(3) {
                    0 => vec![0; len],
                    1 => vec![0xff; len],
                    _ => numbers.bytes(len),
                };
                let described = Relation {
                    name: "raw".into(),
                    columns: vec![
                        column("id", "int4", Format::Raw),
                        column(&format!("c{to}"), raw.name(), Format::Raw),
                    ],
                    ..relation()
                };
                let key = id.to_le_bytes();
                let row = Row(vec![Some(&key), Some(&bytes)]);
                let change = Put {
                    relation: 7,
                    kind: PutKind::Insert,
                    replaced: Replaced::Nothing,
                    changed: &[],
                    contributions: vec![],
                    row,
                };
                let mut body = Vec::new();
                append_entry(&Entry::Relation(described), &mut body);
                append_entry(&Entry::Put(change), &mut body);
                let state = applier.apply(&header.encode_record(&body)).await;
                let state = state.with_context(|| format!("{} of {len} bytes: {bytes:02x?}", raw.name()))?;
                if raw.fixed_len().is_some_and(|fixed| fixed != len) {
                    assert!(state.is_some(), "{} of {len} bytes was taken", raw.name());
                }
                taken += usize::from(state.is_none());
            }
        }
    }
    assert!(taken > 50, "only {taken} were taken");
    let session = lab.node(1).connect().await?;
    assert_eq!(session.number("select count(*) from raw").await? as usize, taken);
    session.rows(&use_all).await?;
    session
        .exec(
            "create table again as select * from raw; update again set arr = '{1}'; select * from again order by 2, 3",
        )
        .await
}
