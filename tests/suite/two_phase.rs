//! Prepared transactions: they wait for as long as it takes, and nobody waits for them.

use anyhow::Result;
use duplex_lab::{Drain, Lab};

#[tokio::test]
async fn a_prepared_transaction_holds_up_nobody_and_arrives_when_it_is_committed() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    let (kept, lost) = (format!("{}-kept", a.name()), format!("{}-lost", a.name()));
    a.exec(&format!("begin; insert into t values (1, 'prepared'), (2, 'x'); prepare transaction '{kept}'")).await?;
    a.exec(&format!("begin; insert into t values (3, 'never'); prepare transaction '{lost}'")).await?;
    for id in 10..200 {
        a.exec(&format!("insert into t values ({id}, 'later')")).await?;
    }
    lab.converges(&["t"]).await?;
    assert_eq!(lab.transactions(a).await?, 190);
    let writer = a.connect().await?;
    writer
        .each(&[
            &format!("rollback prepared '{lost}'"),
            &format!("commit prepared '{kept}'"),
            "update t set v = v || '!' where id = 1",
        ])
        .await?;
    lab.converges(&["t"]).await?;
    assert_eq!(b.one("select v from t where id = 1").await?, "prepared!");
    assert_eq!(lab.transactions(a).await?, 192);
    lab.stop_relays()
}

#[tokio::test]
async fn the_order_of_the_stream_is_that_of_commits_and_not_of_preparing() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    lab.create_everywhere("create table t (id int primary key, v int)", &["t"]).await?;
    let mut drain = Drain::open(node).await?;
    let name = node.name();
    node.exec(&format!(
        "begin; insert into t values (1, 1); prepare transaction '{name}'; insert into t values (2, 1)"
    ))
    .await?;
    assert_eq!(drain.changes().await?, [r#"insert {"id":2,"v":1}"#]);
    let writer = node.connect().await?;
    writer.each(&[&format!("commit prepared '{name}'"), "update t set v = 2 where id = 1"]).await?;
    let rest = drain.rest().await?;
    assert_eq!(rest.len(), 2);
    assert_eq!(rest[0].changes, [r#"insert {"id":1,"v":1}"#]);
    assert_eq!(rest[1].changes, [r#"update {"id":1,"v":2}"#]);
    // Its version is its commit's, not that of its preparing, nor now().
    for transaction in &rest {
        let xid = transaction.header.position.xid;
        let micros = node
            .number(&format!(
                "select (extract(epoch from pg_xact_commit_timestamp('{xid}'::xid) - '2000-01-01 00:00:00+00') * 1000000)::int8"
            ))
            .await?;
        assert_eq!(transaction.header.commit_ts, micros);
    }
    assert!(rest[0].header.commit_ts <= rest[1].header.commit_ts);
    Ok(())
}
