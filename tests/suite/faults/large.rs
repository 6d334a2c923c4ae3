//! A transaction of 300,000 rows, and a relay that dies in the middle of it.

use anyhow::{Result, ensure};
use duplex_lab::wait::when;
use duplex_lab::{Lab, Node, PATIENCE, Place, topic, until};

const ROWS: i64 = 300_000;

async fn write(node: &Node) -> Result<()> {
    node.exec(&format!("insert into t select i, md5(i::text) || md5((i * 7)::text) from generate_series(1, {ROWS}) i"))
        .await
}

/// Waits for the rows on a node, and makes sure that nobody ever sees a part of them.
async fn arrives_whole(node: &Node) -> Result<()> {
    let session = node.connect().await?;
    until("the rows to arrive", PATIENCE * 3, async || {
        let rows = session.number("select count(*) from t").await?;
        ensure!(rows == 0 || rows == ROWS, "{rows} rows are visible on {}", node.name());
        Ok(when(rows == ROWS, format!("{rows} rows")))
    })
    .await
}

async fn once(lab: &Lab) -> Result<()> {
    let [a, b] = lab.pair();
    lab.settled_within(PATIENCE * 3).await?;
    lab.assert_equal("t").await?;
    assert_eq!(lab.transactions(a).await?, 1);
    assert_eq!(lab.transactions(b).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_sender_killed_within_300_000_rows_sends_them_once() -> Result<()> {
    let lab = Lab::builder().own_clusters().own_kafka().relays_stopped().start().await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    b.relay().start()?;
    write(a).await?;
    let mut torn = 0;
    for passes in [3, 9, 15] {
        a.relay().start_failing(Place::OutboundWithinTransaction, passes)?;
        let process = a.relay().process()?;
        until("the relay to die", PATIENCE, async || Ok(when(process.ended().is_some(), "it lives"))).await?;
        let records = topic::read(lab.kafka(), a.name()).await?;
        assert_eq!(topic::transactions(&records)?.len(), 0, "the transaction is whole already");
        torn = torn.max(records.len());
    }
    // What a relay has given to librdkafka need not have left it; of all of them something must have.
    assert!(torn > 3, "only take-overs are in the topic: nothing was torn");
    a.relay().start()?;
    arrives_whole(b).await?;
    once(&lab).await?;
    lab.stop_relays()
}

#[tokio::test]
async fn a_receiver_killed_within_300_000_rows_applies_them_once() -> Result<()> {
    let lab = Lab::builder().own_clusters().own_kafka().relays_stopped().start().await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    a.relay().start()?;
    write(a).await?;
    until("the transaction to be published", PATIENCE, async || {
        let queued = a.queued().await?;
        Ok(when(queued == 0, format!("{queued} are queued")))
    })
    .await?;
    // In the middle of its chunks, before its commit, and by a plain kill while the server is at it.
    for (place, passes) in [(Place::InboundBeforeApply, 12), (Place::InboundBeforeCommit, 0)] {
        b.relay().start_failing(place, passes)?;
        let process = b.relay().process()?;
        until("the relay to die", PATIENCE, async || Ok(when(process.ended().is_some(), "it lives"))).await?;
        assert_eq!(b.number("select count(*) from t").await?, 0);
    }
    b.relay().start()?;
    let session = b.connect().await?;
    until("the transaction to be half applied", PATIENCE, async || {
        let bytes = session.number("select pg_relation_size('t')").await?;
        Ok(when(bytes > 8 << 20, format!("the table has {bytes} bytes")))
    })
    .await?;
    b.relay().kill()?;
    b.relay().start()?;
    arrives_whole(b).await?;
    once(&lab).await?;
    lab.stop_relays()
}
