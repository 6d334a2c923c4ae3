//! What Kafka no longer has, or never had, stops that stream by name, and each such state has its way out.

use anyhow::{Result, ensure};
use duplex_lab::proxy::Flow;
use duplex_lab::{Lab, Node, PATIENCE, topic, until};
use duplex_protocol::record::Kind;

/// Three nodes with a table, and some changes of each applied everywhere.
async fn three() -> Result<Lab> {
    let lab = Lab::shared(3).await?;
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    for (i, node) in lab.nodes().iter().enumerate() {
        node.exec(&format!("insert into t values ({i}, 'first')")).await?;
        node.exec(&format!("update t set v = 'second' where id = {i}")).await?;
    }
    lab.converges(&["t"]).await?;
    Ok(lab)
}

/// The stream of `peer` stands still on `node`; those of the third node go on there.
async fn others_go_on(lab: &Lab, id: i32) -> Result<()> {
    let (b, c) = (lab.node(1), lab.node(2));
    c.exec(&format!("insert into t values ({id}, 'goes on')")).await?;
    b.shows(&format!("select v from t where id = {id}"), "goes on").await
}

#[tokio::test]
async fn records_that_kafka_has_deleted_are_a_gap_until_the_peer_is_resynced() -> Result<()> {
    let lab = three().await?;
    let [a, b] = lab.pair();
    b.relay().stop()?;
    a.exec("insert into t values (10, 'missed'), (11, 'missed')").await?;
    a.published().await?;
    let end = topic::end(lab.kafka(), a.name()).await?;
    topic::delete_records(lab.kafka(), a.name(), end).await?;
    b.relay().start()?;
    let reason = b.stream_is(a.name(), "gap").await?;
    ensure!(reason.contains(&format!("begins at offset {end}")) && reason.contains("duplex.resync_peer"), "{reason}");
    others_go_on(&lab, 20).await?;
    ensure!(b.one("select count(*) from t where id in (10, 11)").await? == "0", "a jump");
    // The rows are copied by hand, as replication, so that they are not captured; then the stream goes on.
    b.exec(&format!(
        "begin; set local duplex.origin = '{}'; insert into t values (10, 'missed'), (11, 'missed'); commit;
         select duplex.resync_peer('{}', {end})",
        a.name(),
        a.name()
    ))
    .await?;
    a.exec("insert into t values (12, 'after')").await?;
    lab.converges(&["t"]).await?;
    b.stream_is(a.name(), "running").await?;
    lab.stop_relays()
}

#[tokio::test]
async fn a_topic_that_is_gone_is_a_gap_until_its_records_are_back() -> Result<()> {
    let lab = three().await?;
    let [a, b] = lab.pair();
    a.relay().stop()?;
    let records: Vec<Vec<u8>> = topic::read(lab.kafka(), a.name()).await?.into_iter().map(|r| r.value).collect();
    topic::delete(lab.kafka(), a.name()).await?;
    let reason = b.stream_is(a.name(), "gap").await?;
    ensure!(reason.contains("is gone") || reason.contains("Kafka no longer holds"), "{reason}");
    lab.node(2).stream_is(a.name(), "gap").await?;
    others_go_on(&lab, 20).await?;
    topic::create(lab.kafka(), a.name(), &[]).await?;
    topic::publish(lab.kafka(), a.name(), &records).await?;
    for node in &lab.nodes()[1..] {
        node.exec(&format!("select duplex.retry_peer('{}')", a.name())).await?;
    }
    a.relay().start()?;
    a.exec("insert into t values (12, 'after')").await?;
    lab.converges(&["t"]).await?;
    lab.stop_relays()
}

#[tokio::test]
async fn a_topic_made_anew_is_a_gap_whether_it_is_shorter_or_longer_than_the_old_one() -> Result<()> {
    let lab = three().await?;
    let [a, b] = lab.pair();
    a.relay().stop()?;
    b.relay().stop()?;
    let applied = topic::end(lab.kafka(), a.name()).await?;
    topic::delete(lab.kafka(), a.name()).await?;
    a.relay().start()?;
    until("the new topic", PATIENCE, async || {
        let end = topic::end(lab.kafka(), a.name()).await?;
        Ok(if end > 0 { Ok(()) } else { Err("empty") })
    })
    .await?;
    b.relay().start()?;
    let reason = b.stream_is(a.name(), "gap").await?;
    ensure!(reason.contains("ends at offset") && reason.contains("made anew"), "{reason}");
    b.relay().stop()?;

    for id in 0..=applied {
        a.exec(&format!("insert into t values ({}, 'anew')", 100 + id)).await?;
    }
    a.published().await?;
    ensure!(topic::end(lab.kafka(), a.name()).await? > applied, "it is longer now");
    b.exec(&format!("update duplex.peer_registry set state = 'waiting' where name = '{}'", a.name())).await?;
    b.relay().start()?;
    let reason = b.stream_is(a.name(), "gap").await?;
    ensure!(reason.contains("not the one that was applied so far"), "{reason}");
    others_go_on(&lab, 20).await?;
    ensure!(b.one("select count(*) from t where v = 'anew'").await? == "0", "a jump");

    // Nothing of the old topic was missed, so the new one is applied from its beginning.
    for node in &lab.nodes()[1..] {
        node.stream_is(a.name(), "gap").await?;
        node.exec(&format!("select duplex.resync_peer('{}', 0)", a.name())).await?;
    }
    lab.converges(&["t"]).await?;
    lab.stop_relays()
}

#[tokio::test]
async fn another_kafka_under_the_address_is_a_gap_and_is_not_published_to() -> Result<()> {
    let lab = three().await?;
    let [a, b] = lab.pair();
    let other = lab.another_kafka().await?;
    b.relay().stop()?;
    let astray = b.relay().with("DUPLEX_KAFKA", other.bootstrap());
    astray.start()?;
    let reason = b.stream_is(a.name(), "gap").await?;
    ensure!(reason.contains("this is Kafka cluster") && reason.contains("use the right Kafka"), "{reason}");
    b.exec("insert into t values (30, 'stays in the queue')").await?;
    until("the relay to refuse to publish", PATIENCE, async || {
        let log = astray.log_text()?;
        Ok(if log.contains("duplex.change_kafka()") { Ok(()) } else { Err("not a word") })
    })
    .await?;
    assert_eq!(b.queued().await?, 1);
    assert_eq!(topic::end(&other, b.name()).await?, 0);
    ensure!(astray.stop()?.success(), "{}", astray.log_tail(20));
    // The right one again: all goes on by itself.
    b.relay().start()?;
    a.exec("insert into t values (12, 'after')").await?;
    for peer in [a, lab.node(2)] {
        b.stream_is(peer.name(), "running").await?;
    }
    lab.converges(&["t"]).await?;
    lab.stop_relays()
}

#[tokio::test]
async fn only_a_stream_that_stands_still_can_be_told_to_go_on() -> Result<()> {
    let lab = three().await?;
    let [a, b] = lab.pair();
    b.stream_is(a.name(), "running").await?;
    let session = b.connect().await?;
    for call in ["retry_peer('P')", "skip_change('P')", "skip_transaction('P')", "resync_peer('P', 3)"] {
        let error = session.refuses("55000", &format!("select duplex.{}", call.replace('P', a.name()))).await?;
        ensure!(error.hint().is_some_and(|hint| hint.contains("duplex.peers")), "{error:?}");
    }
    session.refuses("42704", "select duplex.retry_peer('nobody')").await?;
    session.refuses("22023", &format!("select duplex.resync_peer('{}', -1)", a.name())).await?;
    lab.stop_relays()
}

/// Stops a relay that has nothing to send, where it will ask for all that is written from now on at once.
async fn pause_at_rest(node: &Node) -> Result<()> {
    node.published().await?;
    node.relay().pause()?;
    let asks = "select state from pg_stat_activity
                 where datname = current_database() and application_name = 'duplex-relay outbound'";
    node.shows(asks, "idle").await
}

/// Librdkafka waits for what is given to it within half a second.
const ONE_BATCH: &str = "linger.ms=500";

/// The topic of the first node is made anew while its relay has much to send, and the other's relay cannot reach Kafka.
async fn made_anew_under_its_relay(lab: &Lab, makes_it: bool) -> Result<()> {
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    for id in 0..10 {
        a.exec(&format!("insert into t values ({id}, 'old')")).await?;
    }
    lab.converges(&["t"]).await?;
    let applied = topic::end(lab.kafka(), a.name()).await?;
    b.doors().kafka.shut();
    let generation = topic::read(lab.kafka(), a.name()).await?[0].header()?.generation;
    // It sends all in one batch, so it cannot see any sooner where the first record has come to be.
    pause_at_rest(a).await?;
    topic::delete(lab.kafka(), a.name()).await?;
    if makes_it {
        topic::create(lab.kafka(), a.name(), &[]).await?;
    }
    let anew = applied + 50;
    for id in 0..anew {
        a.exec(&format!("insert into t values ({}, 'anew')", 100 + id)).await?;
    }
    a.relay().resume()?;
    a.published().await?;
    ensure!(a.relay().log_text()?.contains("was deleted and made anew"), "{}", a.relay().log_tail(20));
    let records = topic::read(lab.kafka(), a.name()).await?;
    let there = records[applied as usize].header()?;
    ensure!(there.generation == generation, "nothing went astray where the other reads on: so this shows nothing");

    b.doors().kafka.set(Flow::Free);
    let reason = b.stream_is(a.name(), "gap").await?;
    ensure!(reason.contains("made anew") && reason.contains("duplex.resync_peer"), "{reason}");
    ensure!(b.one("select count(*) from t where v = 'anew'").await? == "0", "a jump");
    // Whoever begins with the new topic does not begin with what went astray either.
    b.exec(&format!("select duplex.resync_peer('{}', 0)", a.name())).await?;
    b.shows(&format!("select state || next_offset from duplex.peers where name = '{}'", a.name()), "gap0").await?;
    // All that was sent before the relay noticed comes again behind its hello.
    let hello = records.iter().find(|record| record.header().is_ok_and(|header| header.kind == Kind::Hello));
    let hello = hello.map_or(-1, |hello| hello.offset);
    b.exec(&format!("select duplex.resync_peer('{}', {hello})", a.name())).await?;
    lab.converges(&["t"]).await?;
    ensure!(b.number("select count(*) from t").await? == 10 + anew, "all of it, once");
    a.exec("update t set v = 'after'").await?;
    b.exec("insert into t values (99, 'the other way')").await?;
    lab.converges(&["t"]).await?;
    lab.stop_relays()
}

#[tokio::test]
async fn a_topic_made_anew_under_its_relay_is_a_gap_for_one_that_stands_within_it() -> Result<()> {
    let lab = Lab::builder().proxied().heartbeats("1h").kafka_property(ONE_BATCH).start().await?;
    made_anew_under_its_relay(&lab, true).await
}

#[tokio::test]
async fn a_topic_that_the_broker_makes_anew_by_itself_is_a_gap_as_well() -> Result<()> {
    let lab = Lab::builder().makes_topics().heartbeats("1h").kafka_property(ONE_BATCH).start().await?;
    made_anew_under_its_relay(&lab, false).await
}

/// Writes of each kind on both nodes, of rows of earlier such writes.
async fn writes(lab: &Lab, first: i32) -> Result<()> {
    for (i, node) in lab.nodes().iter().enumerate() {
        let id = first + i as i32;
        node.exec(&format!(
            "insert into t values ({id}, 'new'); update t set v = 'changed' where id = {}; update n set n = n + 1",
            id - 10
        ))
        .await?;
        node.exec(&format!("delete from t where id = {}", id - 20)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn nodes_move_to_another_kafka() -> Result<()> {
    let mut lab = Lab::shared(2).await?;
    lab.exec_everywhere(
        "create table t (id int primary key, v text); create table n (id int primary key, n int not null);
         select duplex.enable('t'), duplex.enable('n', delta_columns => '{n}')",
    )
    .await?;
    lab.node(0).exec("insert into n values (1, 0)").await?;
    lab.settled().await?;
    writes(&lab, 0).await?;
    writes(&lab, 10).await?;
    // All that is in the old one has to be applied. What is written from then on waits in the queue.
    lab.settled().await?;
    lab.stop_relays()?;
    writes(&lab, 20).await?;
    let other = lab.another_kafka().await?;
    let old = [topic::end(lab.kafka(), lab.node(0).name()).await?, topic::end(lab.kafka(), lab.node(1).name()).await?];
    lab.forget_topics().await?;
    lab.move_to(other);
    for node in lab.nodes() {
        node.exec("select duplex.change_kafka()").await?;
        node.relay().start()?;
    }
    let [a, b] = lab.pair();
    for (node, peer) in [(a, b), (b, a)] {
        let reason = node.stream_is(peer.name(), "gap").await?;
        ensure!(reason.contains("this is Kafka cluster"), "{reason}");
        node.exec(&format!("select duplex.resync_peer('{}', 0)", peer.name())).await?;
    }
    writes(&lab, 30).await?;
    lab.converges(&["t", "n"]).await?;
    for (node, old) in lab.nodes().iter().zip(old) {
        ensure!(node.one("select n from n").await? == "8", "an addition is lost or doubled on {}", node.name());
        ensure!(old > 0 && lab.transactions(node).await? == 4, "{} sent something else", node.name());
    }
    // From here on it is a Kafka like the other: relays begin again where they were.
    lab.stop_relays()?;
    writes(&lab, 40).await?;
    for node in lab.nodes() {
        node.relay().start()?;
    }
    lab.converges(&["t", "n"]).await?;
    ensure!(lab.node(1).one("select n from n").await? == "10", "an addition is lost or doubled");
    lab.stop_relays()
}
