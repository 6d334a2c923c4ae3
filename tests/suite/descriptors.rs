//! Descriptors on record: queue rows refer to them, and what the drain hands out says by itself what it is about.

use anyhow::{Result, ensure};
use duplex_lab::drain::Drained;
use duplex_lab::{Drain, Node};

use super::draining::alone;

/// How many descriptors each transaction in the queue does without, the oldest first; `-` for one that brings all along.
async fn left_out(node: &Node) -> Result<String> {
    node.one(
        "select string_agg(case when expanded_len < 0 then (-expanded_len)::text else '-' end, ' ' order by lsn, xid)
           from duplex.queue",
    )
    .await
}

/// The tables and the rows that these transactions insert into them.
fn inserts(transactions: &[Drained]) -> Vec<String> {
    let shown = transactions.iter().flat_map(|transaction| &transaction.shown);
    shown
        .filter(|change| change["op"] == "insert")
        .map(|change| format!("{} {}", change["table"].as_str().unwrap_or_default(), change["row"]))
        .collect()
}

#[tokio::test]
async fn the_queue_refers_to_what_is_on_record() -> Result<()> {
    let sql = "create table t (id int primary key, a_name_that_is_long text);
               create table u (id int primary key, another_name_that_is_long text)";
    let lab = alone(sql, &["t", "u"]).await?;
    let node = lab.node(0);
    node.exec("insert into t values (1, 'one')").await?;
    node.exec("begin; insert into u values (2, 'two'); insert into t values (3, 'three'); insert into u values (4, null); commit")
        .await?;
    assert_eq!(left_out(node).await?, "1 2");
    let bytes = node.number("select max(length(payload)) from duplex.queue").await?;
    ensure!(bytes < 150, "{bytes} bytes, which is not short");
    assert_eq!(
        inserts(&Drain::open(node).await?.rest().await?),
        [
            r#"public.t {"id":1,"a_name_that_is_long":"one"}"#,
            r#"public.u {"id":2,"another_name_that_is_long":"two"}"#,
            r#"public.t {"id":3,"a_name_that_is_long":"three"}"#,
            r#"public.u {"id":4,"another_name_that_is_long":null}"#,
        ]
    );
    Ok(())
}

/// What waits in the queue is read as it was when it was written.
#[tokio::test]
async fn a_table_that_changes_is_put_on_record_again() -> Result<()> {
    let lab = alone("create table t (id int primary key, v text)", &["t"]).await?;
    let node = lab.node(0);
    let session = node.connect().await?;
    session.exec("insert into t values (1, 'as it was')").await?;
    session.exec("alter table t add w int").await?;
    session.exec("insert into t values (2, 'wider', 2)").await?;
    session.exec("begin; alter table t rename w to x; insert into t values (3, 'renamed', 3); commit").await?;
    session
        .exec(
            "begin; savepoint s; alter table t add y int; insert into t values (4, 'rolled back', 4, 4); rollback to s;
             insert into t values (5, 'after that', 5); commit",
        )
        .await?;
    session
        .exec("alter table t rename to r; alter table r set schema public; insert into r values (6, 'moved', 6)")
        .await?;
    session.exec("alter table r drop x, drop v").await?;
    session.exec("insert into r values (7)").await?;
    assert_eq!(left_out(node).await?, "1 1 1 1 1 1");
    assert_eq!(
        inserts(&Drain::open(node).await?.rest().await?),
        [
            r#"public.t {"id":1,"v":"as it was"}"#,
            r#"public.t {"id":2,"v":"wider","w":2}"#,
            r#"public.t {"id":3,"v":"renamed","x":3}"#,
            r#"public.t {"id":5,"v":"after that","x":5}"#,
            r#"public.r {"id":6,"v":"moved","x":6}"#,
            r#"public.r {"id":7}"#,
        ]
    );
    Ok(())
}

#[tokio::test]
async fn what_is_not_on_record_is_brought_along() -> Result<()> {
    let lab = alone("create schema s; create table s.t (id int primary key, v text)", &["s.t"]).await?;
    let node = lab.node(0);
    // Nobody says so to a table's trigger, or to an event trigger for tables.
    node.exec("alter schema s rename to r").await?;
    node.exec("insert into r.t values (1, 'brought along')").await?;
    // A record that is rolled back is none, also for the session that met it.
    let session = node.connect().await?;
    session
        .exec(
            "begin; savepoint s; select duplex.note_descriptors('r.t'); insert into r.t values (3, 'rolled back'); rollback to s;
             insert into r.t values (2, 'after that'); commit",
        )
        .await?;
    session.exec("select duplex.note_descriptors('r.t')").await?;
    session.exec("insert into r.t values (4, 'on record')").await?;
    // More tables than a row has notes for, and a transaction that is compressed.
    let tables: Vec<String> = (1..=9).map(|number| format!("m{number}")).collect();
    for table in &tables {
        node.exec(&format!("create table {table} (id int primary key); select duplex.enable('{table}')")).await?;
    }
    let each: String = tables.iter().map(|table| format!("insert into {table} values (1);")).collect();
    node.exec(&format!("begin; {each} commit")).await?;
    node.exec("insert into r.t select i, 'long' from generate_series(100, 300) i").await?;
    assert_eq!(left_out(node).await?, "- - 1 - -");
    let inserts = inserts(&Drain::open(node).await?.rest().await?);
    assert_eq!(
        inserts[..3],
        [r#"r.t {"id":1,"v":"brought along"}"#, r#"r.t {"id":2,"v":"after that"}"#, r#"r.t {"id":4,"v":"on record"}"#,]
    );
    assert_eq!(inserts.len(), 3 + 9 + 201);
    Ok(())
}

#[tokio::test]
async fn partitions_are_put_on_record_as_they_come() -> Result<()> {
    let sql = "create table p (region text, id int, v text, primary key (region, id)) partition by list (region);
               create table p_one partition of p for values in ('one')";
    let lab = alone(sql, &["p"]).await?;
    let node = lab.node(0);
    node.exec("create table p_two partition of p for values in ('two')").await?;
    node.exec("create table p_three (id int not null, region text not null, v text)").await?;
    node.exec("alter table p_three add primary key (region, id); alter table p attach partition p_three default")
        .await?;
    for region in ["one", "two", "three"] {
        node.exec(&format!("insert into p values ('{region}', 1, 'v')")).await?;
    }
    node.exec("alter table p add w int; insert into p values ('two', 2, 'v', 2)").await?;
    node.exec("truncate p").await?;
    assert_eq!(left_out(node).await?, "1 1 1 1 1");
    let drained = Drain::open(node).await?.rest().await?;
    assert_eq!(
        inserts(&drained),
        [
            r#"public.p {"region":"one","id":1,"v":"v"}"#,
            r#"public.p {"region":"two","id":1,"v":"v"}"#,
            r#"public.p {"id":1,"region":"three","v":"v"}"#,
            r#"public.p {"region":"two","id":2,"v":"v","w":2}"#,
        ]
    );
    Ok(())
}

#[tokio::test]
async fn a_record_that_somebody_deleted_is_missed_aloud() -> Result<()> {
    let lab = alone("create table t (id int primary key, v text)", &["t"]).await?;
    let node = lab.node(0);
    node.exec("insert into t values (1, 'v')").await?;
    node.exec("delete from duplex.descriptors").await?;
    let session = node.connect().await?;
    session.exec("select duplex.drain_open()").await?;
    let error = session.refuses("XX001", "select duplex.drain(0, 1000000)").await?;
    ensure!(error.hint().is_some_and(|hint| hint.contains("duplex.note_descriptors")), "{error:?}");
    session.exec("select pg_advisory_unlock_all()").await?;
    node.exec("select duplex.note_descriptors('t')").await?;
    assert_eq!(inserts(&Drain::open(node).await?.rest().await?), [r#"public.t {"id":1,"v":"v"}"#]);
    Ok(())
}
