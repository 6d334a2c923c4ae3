//! Capture when a row is written, without the queue of trigger events: it says the same as the trigger, and in the order in
//! which rows were written.

use anyhow::{Result, ensure};
use duplex_lab::{Drain, Lab, Session};
use serde_json::Value;

const SCHEMA: &str = "
    create table t (id int primary key, gone int, v text, big text, n numeric, u int unique,
                    twice int generated always as (u * 2) stored);
    alter table t drop column gone, alter column big set storage external;
    create table source (id int, v text, big text, n numeric);
    alter table source alter column big set storage external;
    insert into source select i, 'row ' || i, repeat(chr(96 + i), 9000), i / 7.0 from generate_series(1, 6) i;
    create table p (id int primary key, v text) partition by range (id);
    create table p_low partition of p for values from (0) to (10);
    create table p_high partition of p for values from (10) to (20);
";

/// What is written, and whether it is captured directly where the library is loaded.
const STATEMENTS: [(bool, &str); 15] = [
    (true, "insert into t (id, v, big, n, u) select id, v, big, n, id from source"),
    (true, "insert into t (id) values (7), (8)"),
    (true, "update t set v = v || '!' where id < 3"),
    (true, "update t set big = 'short', n = 'NaN' where id = 3"),
    (true, "update t set big = (select string_agg(md5(i::text), '') from generate_series(1, 200) i) where id = 4"),
    (true, "update t set id = id + 10 where id = 5"),
    (true, "update t set u = u + 100 where u is not null"),
    (true, "insert into t (id, v) values (1, 'no'), (9, 'new') on conflict (id) do update set v = 'taken'"),
    (
        true,
        "merge into t using (values (1, 'm'), (2, null), (12, 'n')) s(id, v) on t.id = s.id \
         when matched and s.v is null then delete when matched then update set v = s.v \
         when not matched then insert (id, v) values (s.id, s.v)",
    ),
    (true, "with gone as (delete from t where id = 6 returning id) update t set v = 'w' where id = 7"),
    (true, "delete from t where id > 7"),
    (false, "insert into p select i, 'routed' from generate_series(8, 11) i"),
    (true, "insert into p_low values (1, 'named')"),
    (true, "update p set v = v || '!'"),
    (true, "delete from p"),
];

/// Runs a statement; returns whether the trigger was fired for it.
async fn fires(session: &Session, statement: &str) -> Result<bool> {
    let plan = session.rows(&format!("explain (analyze, costs off, timing off, summary off) {statement}")).await?;
    Ok(plan.iter().flatten().flatten().any(|line| line.contains("00_duplex_capture")))
}

/// All that travels of the changes, but for when what they replaced was committed.
async fn changes(drain: &mut Drain) -> Result<Vec<Value>> {
    let mut shown: Vec<Value> = drain.rest().await?.into_iter().flat_map(|transaction| transaction.shown).collect();
    for version in shown.iter_mut().filter_map(|change| change.pointer_mut("/replaced/commit_time")) {
        *version = Value::Null;
    }
    Ok(shown)
}

#[tokio::test]
async fn a_row_is_captured_when_it_is_written_as_it_would_be_at_the_end() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    lab.create_everywhere(SCHEMA, &["t", "p"]).await?;
    let mut drain = Drain::open(node).await?;
    let (mut by_trigger, mut directly) = (Vec::new(), Vec::new());
    for (_, statement) in STATEMENTS {
        // The library is loaded by the first trigger that fires, so the statement has started without it.
        let fired = fires(&node.connect().await?, statement).await?;
        ensure!(fired, "no trigger fired for {statement}");
        by_trigger.push(changes(&mut drain).await?);
    }
    node.exec("truncate t, p").await?;
    drain.changes().await?;
    let session = node.connect().await?;
    session.exec("load 'pg_duplex'").await?;
    for (is_direct, statement) in STATEMENTS {
        ensure!(fires(&session, statement).await? != is_direct, "{statement}");
        directly.push(changes(&mut drain).await?);
    }
    for ((by_trigger, directly), (_, statement)) in by_trigger.iter().zip(&directly).zip(STATEMENTS) {
        ensure!(!directly.is_empty(), "nothing was captured of {statement}");
        assert_eq!(by_trigger, directly, "{statement}");
    }
    Ok(())
}

/// The trigger is asked as ever whether it fires at all.
#[tokio::test]
async fn a_trigger_that_is_not_there_or_not_enabled_captures_nothing() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    lab.create_everywhere("create table t (id int primary key)", &["t"]).await?;
    let mut drain = Drain::open(node).await?;
    let session = node.connect().await?;
    session.exec("prepare write as insert into t select coalesce(max(id), 0) + 1 from t").await?;
    let mut rows = 0;
    for (sql, is_captured) in [
        ("load 'pg_duplex'", true),
        ("alter table t disable trigger \"00_duplex_capture\"", false),
        ("alter table t enable always trigger \"00_duplex_capture\"", true),
        ("set session_replication_role = replica", true),
        ("reset session_replication_role; select duplex.disable('t')", false),
        ("select duplex.enable('t')", true),
        ("set duplex.origin = 'z'", false),
        ("reset duplex.origin; alter table t add unique (id) deferrable", true),
    ] {
        session.exec(sql).await?;
        session.exec("execute write").await?;
        rows += 1;
        let expected = if is_captured { vec![format!("insert {{\"id\":{rows}}}")] } else { Vec::new() };
        assert_eq!(drain.changes().await?, expected, "{sql}");
    }
    Ok(())
}

#[tokio::test]
async fn whoever_may_write_to_the_table_needs_no_right_here_either() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    lab.create_everywhere("create table t (id int primary key)", &["t"]).await?;
    node.exec("create role direct_writer login; grant insert on t to direct_writer").await?;
    let mut drain = Drain::open(node).await?;
    let session = node.connect_as("direct_writer").await?;
    session.exec("insert into t values (1)").await?;
    ensure!(!fires(&session, "insert into t values (2)").await?, "captured directly");
    session.refuses("42501", "select duplex.capture_row()").await?;
    assert_eq!(drain.changes().await?, [r#"insert {"id":1}"#, r#"insert {"id":2}"#]);
    Ok(())
}

/// Its function has another oid then.
#[tokio::test]
async fn the_extension_may_be_created_anew_in_a_session() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    lab.create_everywhere("create table t (id int primary key)", &["t"]).await?;
    let session = node.connect().await?;
    session.exec("insert into t values (1)").await?;
    ensure!(!fires(&session, "insert into t values (2)").await?, "captured directly");
    session.exec("drop extension pg_duplex; insert into t values (3)").await?;
    session.exec("create extension pg_duplex; select duplex.create_node('again'); select duplex.enable('t')").await?;
    let mut drain = Drain::open(node).await?;
    ensure!(!fires(&session, "insert into t values (4)").await?, "captured directly again");
    assert_eq!(drain.changes().await?, [r#"insert {"id":4}"#]);
    Ok(())
}

/// A trigger brings a row back that the same statement has deleted before: the DELETE is the first of the two.
#[tokio::test]
async fn a_row_that_comes_back_within_the_statement_stays() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, _] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, mail text unique, v text)", &["t"]).await?;
    let session = a.connect().await?;
    session
        .exec(
            "load 'pg_duplex';
             create function back() returns trigger language plpgsql as $$
             begin
                 if old.id = 1 then insert into t values (2, 'b', 'back'); end if;
                 return null;
             end $$;
             create trigger back after delete on t for each row execute function back();",
        )
        .await?;
    session.exec("insert into t values (1, 'a', 'x'), (2, 'b', 'x'), (3, 'c', 'x')").await?;
    session.exec("delete from t").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(a.dump("t", &[]).await?, ["id=2 | mail=b | v=back"]);
    lab.stop_relays()
}

/// Where a constraint is deferrable, capturing a row may write another one again. The statement that has still to come to it
/// would fail over that, so the trigger captures, when it is over.
#[tokio::test]
async fn a_statement_under_a_deferrable_constraint_is_captured_at_its_end() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, _] = lab.pair();
    let sql = "create table seat (id int primary key, place int unique deferrable initially deferred)";
    lab.create_everywhere(sql, &["seat"]).await?;
    let session = a.connect().await?;
    session.exec("load 'pg_duplex'").await?;
    session.exec("begin; insert into seat values (1, 1), (2, 1); update seat set place = id + 10; commit").await?;
    ensure!(fires(&session, "update seat set place = place + 1").await?, "captured at the end");
    lab.converges(&["seat"]).await?;
    assert_eq!(a.dump("seat", &[]).await?, ["id=1 | place=12", "id=2 | place=13"]);
    lab.stop_relays()
}

/// In a server that loads the library for all sessions nothing has to be fired, not even a session's first statement.
#[tokio::test]
async fn a_preloaded_library_captures_a_sessions_first_statement() -> Result<()> {
    let lab = Lab::builder().nodes(2).own_clusters().setting("shared_preload_libraries", "pg_duplex").start().await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    ensure!(!fires(&a.connect().await?, "insert into t values (1, 'x')").await?, "captured directly");
    lab.settled().await?;
    ensure!(!fires(&b.connect().await?, "update t set v = 'y'").await?, "captured directly");
    lab.converges(&["t"]).await?;
    assert_eq!(a.one("select v from t").await?, "y");
    lab.stop_relays()
}
