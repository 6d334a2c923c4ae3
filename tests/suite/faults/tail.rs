//! What a dead relay has published and not confirmed, found again by the next and the next but one.

use anyhow::{Result, ensure};
use duplex_lab::wait::when;
use duplex_lab::{Lab, Node, PATIENCE, Place, topic, until};

async fn dies_at(node: &Node, place: Place, passes: u32) -> Result<()> {
    node.relay().start_failing(place, passes)?;
    let process = node.relay().process()?;
    until("the relay to die", PATIENCE, async || Ok(when(process.ended().is_some(), "it lives"))).await
}

/// The second transaction is published by a relay that dies before it can say so. The first one, prepared and lower in
/// the order, then ends; the next relay publishes and confirms it, and dies before it comes to confirm the second.
#[tokio::test]
async fn a_published_transaction_behind_a_prepared_one_is_not_sent_again() -> Result<()> {
    let lab = Lab::builder().own_clusters().own_kafka().relays_stopped().start().await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    b.relay().start()?;
    a.exec("begin; insert into t values (0, 'prepared'); prepare transaction 'lower'").await?;
    // Two chunks, the first of which fills an answer of the server's.
    a.exec("insert into t select i, md5(random()::text) || md5(random()::text) from generate_series(1, 9000) i")
        .await?;
    dies_at(a, Place::OutboundAfterPublish, 0).await?;
    a.exec("commit prepared 'lower'").await?;
    dies_at(a, Place::OutboundAfterConfirm, 0).await?;
    a.relay().start()?;
    lab.converges(&["t"]).await?;
    assert_eq!(lab.transactions(a).await?, 2);
    lab.stop_relays()
}

/// The topic is made anew while the relay is away. The next one publishes more to it than the old one held, and dies before
/// it confirms any: the one after it has to look at the new topic from its beginning.
#[tokio::test]
async fn what_was_published_to_a_topic_made_anew_is_not_sent_again() -> Result<()> {
    let lab = Lab::builder().own_clusters().own_kafka().heartbeats("1h").start().await?;
    let [a, _] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    for id in 0..5 {
        a.exec(&format!("insert into t values ({id}, 'old')")).await?;
    }
    a.published().await?;
    let confirmed = a.number("select topic_offset from duplex.drain_state").await?;
    a.relay().stop()?;
    topic::delete(lab.kafka(), a.name()).await?;
    topic::create(lab.kafka(), a.name(), &[]).await?;
    let anew = usize::try_from(confirmed)? + 20;
    for id in 0..anew {
        a.exec(&format!("insert into t values ({}, 'anew')", 100 + id)).await?;
    }
    dies_at(a, Place::OutboundAfterPublish, 0).await?;
    ensure!(topic::end(lab.kafka(), a.name()).await? > confirmed + 1, "the new topic is no longer than the old one");
    assert_eq!(a.queued().await?, i64::try_from(anew)?, "nothing is confirmed");
    a.relay().start()?;
    a.published().await?;
    assert_eq!(lab.transactions(a).await?, anew);
    lab.stop_relays()
}
