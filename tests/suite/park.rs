//! With the policy `park` a change that cannot be applied waits, and with it later ones of its key; all else goes on.

use anyhow::{Result, ensure};
use duplex_lab::{Lab, Node};

/// The second node refuses some rows, and parks them.
async fn three() -> Result<Lab> {
    let lab = Lab::shared(3).await?;
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    lab.node(1)
        .exec("alter table t add constraint no_bad check (v <> 'bad'); select duplex.set_error_policy('park')")
        .await?;
    Ok(lab)
}

/// Number, operation, key and whether it waits, of each parked change.
async fn parked(node: &Node) -> Result<Vec<String>> {
    let sql = "select concat_ws(' ', ordinal, operation, key, waits) from duplex.parked order by id";
    Ok(node.rows(sql).await?.into_iter().map(|row| row[0].clone().unwrap_or_default()).collect())
}

const VERSIONS: &str =
    "select string_agg(id || ' ' || v || ' ' || pg_xact_commit_timestamp(xmin), ', ' order by id) from t";

#[tokio::test]
async fn later_changes_of_a_parked_key_wait_and_all_leave_in_order_with_their_versions() -> Result<()> {
    let lab = three().await?;
    let [a, b] = lab.pair();
    let c = lab.node(2);
    a.exec("insert into t values (1, 'x'), (2, 'bad'), (3, 'y')").await?;
    lab.settled().await?;
    assert_eq!(b.dump("t", &[]).await?, ["id=1 | v=x", "id=3 | v=y"]);
    // From whichever peer, and also a change that could be applied by itself.
    c.exec("update t set v = 'worse' where id = 2; update t set v = 'z' where id = 3").await?;
    lab.settled().await?;
    a.exec("update t set v = 'good' where id = 2; update t set v = 'w' where id = 1").await?;
    lab.settled().await?;
    assert_eq!(b.dump("t", &[]).await?, ["id=1 | v=w", "id=3 | v=z"]);
    let expected = [r#"2 insert {"id": 2} f"#, r#"1 update {"id": 2} t"#, r#"1 update {"id": 2} t"#];
    assert_eq!(parked(b).await?, expected);
    let sql =
        "select sqlstate || ' ' || (message ~ 'no_bad') || ' ' || (peer = 'P') from duplex.parked order by id limit 1";
    assert_eq!(b.one(&sql.replace('P', a.name())).await?, "23514 true true");
    assert_eq!(b.one(&format!("select parked from duplex.peers where name = '{}'", a.name())).await?, "2");
    b.stream_is(a.name(), "running").await?;
    b.shows("select max(attempts) > 0 from duplex.parked", "t").await?;
    // The table is altered: the cause may be gone, and is.
    b.exec("alter table t drop constraint no_bad").await?;
    b.shows("select count(*) from duplex.parked", "0").await?;
    lab.converges(&["t"]).await?;
    let there = a.one(VERSIONS).await?;
    assert_eq!(b.one(VERSIONS).await?, there);
    assert_eq!(c.one(VERSIONS).await?, there);
    let sql = "select string_agg(distinct resolution, ',') || count(*) from duplex.apply_errors";
    assert_eq!(b.one(sql).await?, "applied3");
    // Nothing of it was captured again, and nothing is parked that could be applied.
    a.exec("insert into t values (9, 'after')").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(lab.transactions(b).await?, 0);
    lab.stop_relays()
}

#[tokio::test]
async fn a_parked_change_that_is_older_than_a_local_one_loses_when_it_leaves() -> Result<()> {
    let lab = three().await?;
    let [a, b] = lab.pair();
    a.exec("insert into t values (2, 'bad')").await?;
    b.shows("select count(*) from duplex.parked", "1").await?;
    b.exec("insert into t values (2, 'local')").await?;
    b.exec("alter table t drop constraint no_bad; select duplex.retry_parked()").await?;
    b.shows("select count(*) from duplex.parked", "0").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(a.one("select v from t where id = 2").await?, "local");
    lab.stop_relays()
}

#[tokio::test]
async fn changes_for_a_missing_column_or_table_leave_once_it_is_there() -> Result<()> {
    let lab = three().await?;
    let [a, b] = lab.pair();
    a.exec("alter table t add column w int; insert into t values (1, 'x', 7)").await?;
    a.exec("update t set w = 8 where id = 1").await?;
    a.exec("create table n (id numeric primary key); select duplex.enable('n'); insert into n values (1.50), (2)")
        .await?;
    b.shows("select string_agg(sqlstate, ' ' order by id) from duplex.parked", "42703 55006 42P01 42P01").await?;
    let c = lab.node(2);
    c.stream_is(a.name(), "stopped").await?;
    c.exec("alter table t add column w int; create table n (id numeric primary key); select duplex.enable('n')")
        .await?;
    c.exec(&format!("select duplex.retry_peer('{}')", a.name())).await?;
    b.exec("alter table t add column w int").await?;
    b.shows("select w from t where id = 1", "8").await?;
    b.exec("create table n (id numeric primary key); select duplex.enable('n')").await?;
    b.shows("select count(*) from duplex.parked", "0").await?;
    lab.converges(&["t", "n"]).await?;
    lab.stop_relays()
}

#[tokio::test]
async fn a_parked_change_can_be_given_up_and_what_waits_behind_it_goes_on() -> Result<()> {
    let lab = three().await?;
    let [a, b] = lab.pair();
    a.exec("insert into t values (2, 'bad')").await?;
    a.exec("update t set v = 'good' where id = 2").await?;
    b.shows("select count(*) from duplex.parked", "2").await?;
    b.connect().await?.refuses("42704", "select duplex.drop_parked(0)").await?;
    b.exec("select duplex.drop_parked((select min(id) from duplex.parked))").await?;
    b.shows("select v from t where id = 2", "good").await?;
    b.shows("select count(*) from duplex.parked", "0").await?;
    lab.converges(&["t"]).await?;
    let sql = "select string_agg(concat_ws(' ', resolution, resolved_by), ', ' order by id) from duplex.apply_errors";
    assert_eq!(b.one(sql).await?, "dropped postgres, applied");
    lab.stop_relays()
}

#[tokio::test]
async fn the_policy_of_a_table_goes_before_that_of_the_node() -> Result<()> {
    let lab = three().await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table s (id int primary key, v text)", &["s"]).await?;
    b.exec("alter table s add check (v <> 'bad'); select duplex.set_error_policy('s', 'stop')").await?;
    let sql = r#"select string_agg("table" || ' ' || error_policy, ', ' order by "table"::text) from duplex.tables"#;
    assert_eq!(b.one(sql).await?, "s stop, t park");
    a.exec("begin; insert into t values (1, 'bad'); insert into s values (1, 'bad'); commit").await?;
    b.stream_is(a.name(), "stopped").await?;
    // Parked it is in the transaction of the others, or not at all.
    assert_eq!(b.one("select count(*) from duplex.parked").await?, "0");
    b.exec(&format!("select duplex.set_error_policy('s', null); select duplex.retry_peer('{}')", a.name())).await?;
    lab.settled().await?;
    assert_eq!(b.one(sql).await?, "s park, t park");
    assert_eq!(parked(b).await?.len(), 2);
    let session = b.connect().await?;
    session.refuses("22023", "select duplex.set_error_policy('wait')").await?;
    session.refuses("22023", "select duplex.set_error_policy('s', 'wait')").await?;
    session.refuses("42704", "select duplex.set_error_policy('duplex.node', 'park')").await?;
    lab.stop_relays()
}

#[tokio::test]
async fn a_truncate_takes_what_is_parked_of_its_table_with_it() -> Result<()> {
    let lab = three().await?;
    let [a, b] = lab.pair();
    a.exec("insert into t values (1, 'x'), (2, 'bad')").await?;
    b.shows("select count(*) from duplex.parked", "1").await?;
    a.exec("begin; truncate t; insert into t values (2, 'new'); commit").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(b.one("select count(*) from duplex.parked").await?, "0");
    assert_eq!(b.one("select resolution from duplex.apply_errors").await?, "truncated");
    lab.stop_relays()
}

#[tokio::test]
async fn a_relay_that_dies_parks_nothing_twice_and_loses_nothing() -> Result<()> {
    let lab = three().await?;
    let [a, b] = lab.pair();
    for round in 0..5 {
        for i in 0..20 {
            let id = round * 100 + i;
            a.exec(&format!("insert into t values ({id}, case when {id} % 2 = 0 then 'bad' else 'ok' end)")).await?;
        }
        b.relay().kill()?;
        b.relay().start()?;
    }
    lab.settled().await?;
    assert_eq!(b.one("select count(*) || ' ' || count(distinct key) from duplex.parked").await?, "50 50");
    assert_eq!(b.one("select count(*) from t").await?, "50");
    b.exec("alter table t drop constraint no_bad").await?;
    b.shows("select count(*) from duplex.parked", "0").await?;
    lab.converges(&["t"]).await?;
    ensure!(b.one(VERSIONS).await? == a.one(VERSIONS).await?, "versions differ");
    lab.stop_relays()
}
