//! Which columns an UPDATE changed, and the row that it leaves: taken from the tuples as they are stored where these tell all,
//! and value by value where they do not. Both say the same.

use anyhow::{Result, ensure};
use duplex_lab::dice::Dice;
use duplex_lab::{Drain, Lab, Session};
use serde_json::{Value, json};

/// What an UPDATE leaves of unique values is remembered, for which its rows are taken apart value by value. So one table has
/// such a constraint, over a column that is never set.
const TABLES: [&str; 2] = ["stored", "apart"];

/// Values of all lengths and alignments, all of types that travel as they are stored; between them columns that do not travel,
/// and one that older rows lack.
const SCHEMA: &str = "
    create table stored (
        gone text, flag boolean, id int primary key, small smallint, note text, big bigint, tag \"char\", gone_too int,
        twice bigint generated always as (big * 2) stored, mark int, ratio real, key uuid, word varchar, card macaddr,
        raw bytea, amount numeric, at timestamptz, doc jsonb, long text, far text);
    alter table stored alter long set compression pglz, alter far set storage external;
    insert into stored (gone, id) select 'x', i from generate_series(1, 8) i;
    alter table stored drop gone, drop gone_too, add late int not null default 7;
    insert into stored (id, long, far) select i, repeat('long', 900), repeat('far', 900) from generate_series(9, 16) i;
    create table apart (like stored including all, unique (mark));
    insert into apart (id, long, far) select id, long, far from stored;
";

/// Columns, and expressions for their new values.
const VALUES: [(&str, &[&str]); 16] = [
    ("flag", &["true", "false", "not flag", "null"]),
    ("small", &["1", "-300", "null"]),
    ("note", &["''", "'n'", "note || '+'", "repeat('한', 50)", "repeat('x', 200)", "null"]),
    ("big", &["1", "id", "9007199254740993", "null"]),
    ("tag", &["'a'", "null"]),
    ("ratio", &["0", "'-0'", "'NaN'", "null"]),
    ("key", &["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "null"]),
    ("word", &["'w'", "word", "null"]),
    ("card", &["'08:00:2b:01:02:03'", "null"]),
    ("raw", &[r"'\x00'", "null"]),
    ("amount", &["1", "1.0", "'Infinity'", "null"]),
    ("at", &["'2026-01-01 00:00:00+00'", "'infinity'", "null"]),
    ("doc", &[r#"'{"a": [1]}'"#, "null"]),
    ("long", &["repeat('long', 900)", "'short'", "long || ''", "null"]),
    ("far", &["repeat('far', 900)", "'near'", "far || ''", "null"]),
    ("late", &["7", "late + 1"]),
];

/// Runs the same statement on both tables; returns what was captured of each, by key: where rows lie, and so the order in which
/// a statement comes to them, depends on when their pages were cleaned up.
async fn run(session: &Session, drain: &mut Drain, sql: &str) -> Result<[Vec<Value>; 2]> {
    let mut captured = [Vec::new(), Vec::new()];
    for (table, captured) in TABLES.into_iter().zip(&mut captured) {
        session.exec(&sql.replace("TABLE", table)).await?;
        for mut change in drain.rest().await?.into_iter().flat_map(|transaction| transaction.shown) {
            ensure!(change["table"] == format!("public.{table}"), "{change}");
            change["table"] = Value::Null;
            if let Some(time) = change.pointer_mut("/replaced/commit_time") {
                *time = Value::Null;
            }
            captured.push(change);
        }
        captured.sort_by_key(|change| change["key"].to_string());
    }
    Ok(captured)
}

#[tokio::test]
async fn what_an_update_changed_is_the_same_from_tuples_and_from_values() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    lab.create_everywhere(SCHEMA, &TABLES).await?;
    let session = node.connect().await?;
    session.exec("load 'pg_duplex'").await?;
    let mut drain = Drain::open(node).await?;
    for (sql, changed) in [
        // From here on these rows have all columns.
        ("update TABLE set late = 7 where id < 9", json!([])),
        ("update TABLE set big = 5 where id = 1", json!(["big"])),
        ("update TABLE set big = big, far = far where id in (1, 9)", json!([])),
        ("update TABLE set note = 'n', late = 8 where id = 9", json!(["note", "late"])),
        ("update TABLE set far = 'near' where id = 9", json!(["far"])),
        // The same again, but assigned: it does not lie there as it is stored.
        ("update TABLE set long = repeat('long', 900) where id = 10", json!(["long"])),
        ("update TABLE set id = 100 where id = 2", Value::Null),
    ] {
        let [stored, apart] = run(&session, &mut drain, sql).await?;
        assert_eq!(stored, apart, "{sql}");
        ensure!(
            !stored.is_empty() && stored.iter().all(|change| change["changed"] == changed),
            "{sql}: {:?}",
            stored[0]["changed"]
        );
    }
    let mut dice = Dice::new(20_261_129);
    for round in 0..300 {
        // One column at least, which is no change.
        let mut sets = vec!["id = id".to_owned()];
        for (column, values) in VALUES {
            if dice.percent(17) {
                sets.push(format!("{column} = {}", dice.pick(values)));
            }
        }
        let from = dice.below(16);
        let sql = format!("update TABLE set {} where id between {from} and {}", sets.join(", "), from + dice.below(3));
        let [stored, apart] = run(&session, &mut drain, &sql).await?;
        assert_eq!(stored, apart, "round {round}: {sql}");
    }
    let [stored, apart] = run(&session, &mut drain, "update TABLE set tag = 'z'").await?;
    assert_eq!((stored.len(), &stored), (16, &apart));
    Ok(())
}
