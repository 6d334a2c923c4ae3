//! A backlog that is longer than what the drain lists at once.

use anyhow::Result;
use duplex_lab::Lab;
use duplex_lab::PATIENCE;

/// The drain lists 131,072 queue rows at once. Whatever transaction lies across that border has to go through whole.
#[tokio::test]
async fn a_large_transaction_across_the_border_of_a_listing_goes_through() -> Result<()> {
    let lab = Lab::builder().own_clusters().own_kafka().relays_stopped().start().await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    let session = a.connect().await?;
    session.exec("set synchronous_commit = off").await?;
    session.exec("do $$ begin for i in 1..130950 loop insert into t values (i, 'x'); commit; end loop; end $$").await?;
    a.exec(
        "insert into t select 200000 + i, md5(random()::text) || md5(random()::text) from generate_series(1, 40000) i",
    )
    .await?;
    a.exec("insert into t values (300000, 'last')").await?;
    a.relay().start()?;
    b.relay().start()?;
    lab.settled_within(PATIENCE * 2).await?;
    assert_eq!(b.number("select count(*) from t").await?, 130_950 + 40_000 + 1);
    assert_eq!(lab.transactions(a).await?, 130_952);
    lab.stop_relays()
}
