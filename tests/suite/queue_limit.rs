//! While Kafka is away the queue grows and nothing else does, up to a limit that an administrator may set.

use std::fs;

use anyhow::{Result, ensure};
use duplex_lab::{Lab, PATIENCE, topic, until};

/// The most that a relay may ever have resident, in KiB.
const MEMORY: u64 = 64 * 1024;

fn limited(policy: &str) -> duplex_lab::Builder {
    let limit = Lab::builder().nodes(2).own_clusters().setting("duplex.queue_max_bytes", "1MB");
    limit.setting("duplex.queue_full", policy).relays_stopped()
}

const ROWS: &str =
    "insert into t (v) select gen_random_uuid()::text || gen_random_uuid() from generate_series(1, 2000)";

#[tokio::test]
async fn a_full_queue_refuses_writes_with_a_hint_until_it_is_published() -> Result<()> {
    let lab = limited("refuse").start().await?;
    let [a, _] = lab.pair();
    lab.create_everywhere("create table t (id bigint generated always as identity primary key, v text)", &["t"])
        .await?;
    let session = a.connect().await?;
    let mut written = 0;
    let error = loop {
        ensure!(written < 100, "it is never full");
        match session.client().batch_execute(ROWS).await {
            Ok(()) => written += 1,
            Err(err) => break err,
        }
    };
    let said = error.as_db_error().expect("the server says so").clone();
    assert_eq!(said.code().code(), "53400");
    ensure!(said.message().contains("duplex.queue_max_bytes allows 1024 kB"), "{}", said.message());
    ensure!(said.hint().is_some_and(|hint| hint.contains("duplex.queue_status")), "{said:?}");
    assert_eq!(session.number("select count(*) from t").await?, 2000 * written);
    let sql = "select transactions || ' ' || (\"rows\" > 0) || ' ' || (bytes > 500000) || ' ' || (oldest > '0') \
               from duplex.queue_status";
    assert_eq!(session.one(sql).await?, format!("{written} true true true"));
    // A reader is not refused, and neither is a table that takes no part.
    session.exec("create table free (id int); insert into free values (1)").await?;
    for node in lab.nodes() {
        node.relay().start()?;
    }
    until("writes to be taken again", PATIENCE, async || {
        Ok(session.client().batch_execute(ROWS).await.map_err(|err| err.to_string()))
    })
    .await?;
    lab.converges(&["t"]).await?;
    lab.stop_relays()
}

#[tokio::test]
async fn a_full_queue_may_only_warn() -> Result<()> {
    let lab = limited("warn").start().await?;
    let [a, _] = lab.pair();
    lab.create_everywhere("create table t (id bigint generated always as identity primary key, v text)", &["t"])
        .await?;
    for _ in 0..12 {
        a.exec(ROWS).await?;
    }
    let log = fs::read_to_string(a.cluster().log())?;
    let warnings = |log: &str| log.matches("WARNING:  53400: the queue of pg_duplex has").count();
    ensure!(warnings(&log) > 0, "no warning");
    assert_eq!(a.number("select transactions from duplex.queue_status").await?, 12);
    // Once it is published there is room again, and nobody is warned.
    for node in lab.nodes() {
        node.relay().start()?;
    }
    lab.converges(&["t"]).await?;
    until("the queue's tables to be truncated", PATIENCE, async || {
        let bytes = a.number("select disk_bytes from duplex.queue_status").await?;
        Ok(if bytes < 1 << 20 { Ok(()) } else { Err(bytes) })
    })
    .await?;
    let before = warnings(&fs::read_to_string(a.cluster().log())?);
    a.exec("insert into t (v) values ('after')").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(warnings(&fs::read_to_string(a.cluster().log())?), before);
    lab.stop_relays()
}

#[tokio::test]
async fn while_kafka_is_away_only_the_queue_grows() -> Result<()> {
    let lab = Lab::builder().nodes(2).own_kafka().start().await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id bigint generated always as identity primary key, v text)", &["t"])
        .await?;
    lab.settled().await?;
    lab.kafka().kill()?;
    // Many transactions of every size, 250 MB together and hardly to be compressed.
    let session = a.connect().await?;
    for _ in 0..10 {
        session
            .exec(
                "insert into t (v) select string_agg(gen_random_uuid()::text, '') \
                   from generate_series(1, 700000) i group by i % 1000",
            )
            .await?;
    }
    for _ in 0..1000 {
        session.exec("insert into t (v) values ('small')").await?;
    }
    let bytes = session.number("select bytes from duplex.queue_status").await?;
    ensure!(bytes > 200 << 20, "{bytes}");
    let (_, most) = a.relay().process()?.memory()?;
    ensure!(most < MEMORY, "the relay had {most} KiB while Kafka was away");
    lab.kafka().start().await?;
    lab.converges(&["t"]).await?;
    for node in [a, b] {
        let (_, most) = node.relay().process()?.memory()?;
        ensure!(most < MEMORY, "the relay of {} had {most} KiB", node.name());
    }
    lab.stop_relays()
}

#[tokio::test]
async fn no_row_is_too_long_for_a_topic_of_one_megabyte_a_record() -> Result<()> {
    let lab = Lab::builder().nodes(2).relays_stopped().start().await?;
    let [a, b] = lab.pair();
    for node in lab.nodes() {
        topic::create(lab.kafka(), node.name(), &[("max.message.bytes", "1000000")]).await?;
        node.relay().start()?;
    }
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    // One row of 18 MB; rows that just fit a record, or two, or half a one; in one transaction each and all in one.
    a.exec("insert into t select 1, string_agg(gen_random_uuid()::text, '') from generate_series(1, 500000)").await?;
    for (id, uuids) in [(2, 7_000), (3, 14_000), (4, 14_570), (5, 20_000), (6, 28_000), (7, 9_000), (8, 9_000)] {
        a.exec(&format!(
            "insert into t select {id}, string_agg(gen_random_uuid()::text, '') from generate_series(1, {uuids})"
        ))
        .await?;
    }
    a.exec("insert into t select id + 10, v from t").await?;
    lab.settled().await?;
    let sum = "select count(*) || ' ' || md5(string_agg(md5(v), '' order by id)) from t";
    assert_eq!(b.one(sum).await?, a.one(sum).await?);
    for record in topic::read(lab.kafka(), a.name()).await? {
        ensure!(record.value.len() < 600_000, "a record of {} bytes", record.value.len());
    }
    ensure!(!a.relay().log_text()?.contains("interrupted"), "{}", a.relay().log_tail(20));
    lab.stop_relays()
}
