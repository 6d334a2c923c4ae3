//! Kafka, a relay or a peer's database is away: applications on both sides notice nothing, and all is caught up afterwards.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use duplex_lab::kafka::Broker;
use duplex_lab::proxy::Flow;
use duplex_lab::{Lab, Node, PATIENCE, topic, until};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;

use super::relay_command::{command, run};

const SQL: &str = "create table t (id int primary key, v text); create table shared (id int primary key, v text)";

/// An application must not wait for anything that is down, and what is down here stays so until it has committed. This
/// only says that nothing else holds it up either, on a machine with much to do.
const NOTICEABLE: Duration = Duration::from_secs(5);

/// An application: commits one row after the other, from `first` on.
async fn commits(node: &Node, first: i32, count: i32) -> Result<()> {
    let session = node.connect().await?;
    let mut longest = Duration::ZERO;
    for id in first..first + count {
        let started = Instant::now();
        session.exec(&format!("insert into t values ({id}, 'row {id}')")).await?;
        longest = longest.max(started.elapsed());
    }
    ensure!(longest < NOTICEABLE, "a commit on {} took {longest:?}", node.name());
    Ok(())
}

/// Applications on both sides.
async fn both_commit(lab: &Lab, first: i32) -> Result<()> {
    let [a, b] = lab.pair();
    tokio::try_join!(commits(a, first, 200), commits(b, first + 100_000, 200)).map(drop)
}

/// So many rows are on both sides, half of them from each, in as many transactions.
async fn arrived(lab: &Lab, rows: i64) -> Result<()> {
    lab.converges(&["t"]).await?;
    for node in lab.nodes() {
        ensure!(node.number("select count(*) from t").await? == rows, "rows are missing on {}", node.name());
        let sent = lab.transactions(node).await?;
        ensure!(sent as i64 == rows / 2, "{} has {sent} transactions in its topic", node.name());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_notice_no_outage_of_kafka_relay_or_peer() -> Result<()> {
    let lab = Lab::builder().own_clusters().own_kafka().start().await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(SQL, &["t", "shared"]).await?;
    let both = async |first| both_commit(&lab, first).await;
    let arrived = async |rows| arrived(&lab, rows).await;
    both(0).await?;
    arrived(400).await?;

    // Kafka hangs: connections stay open and nothing answers.
    lab.kafka().pause()?;
    both(1000).await?;
    lab.kafka().resume()?;
    arrived(800).await?;

    // Kafka is killed, and the relays meet that in the middle of their work.
    let (killed, written) = tokio::join!(async { lab.kafka().kill() }, both(2000));
    killed?;
    written?;
    lab.kafka().start().await?;
    arrived(1200).await?;

    // A relay is told to end.
    let status = a.relay().stop()?;
    ensure!(status.success(), "the relay ended with {status}");
    both(3000).await?;
    a.relay().start()?;
    arrived(1600).await?;

    // A peer's database is away: its own applications cannot do anything, the others' notice nothing.
    b.cluster().stop()?;
    commits(a, 4000, 200).await?;
    b.cluster().start().await?;
    commits(b, 104_000, 200).await?;
    arrived(2000).await?;
    lab.stop_relays()
}

/// Every broker has all that is acknowledged in this node's topic.
async fn is_in_sync(lab: &Lab, node: &Node) -> Result<()> {
    let client: BaseConsumer = lab.kafka().client().create()?;
    until("all brokers to be in sync", PATIENCE, async || {
        let metadata = client.fetch_metadata(Some(&topic::name(node.name())), Duration::from_secs(5))?;
        let partition = metadata.topics().first().and_then(|topic| topic.partitions().first());
        let in_sync = partition.map_or(0, |partition| partition.isr().len());
        Ok(if in_sync == lab.kafka().brokers().len() { Ok(()) } else { Err(format!("{in_sync}")) })
    })
    .await
}

/// Where the relays' logs end now.
fn logs(lab: &Lab) -> Result<Vec<(&Node, usize)>> {
    lab.nodes().iter().map(|node| Ok((node, node.relay().log_text()?.len()))).collect()
}

/// What comes behind those ends says this. Clients are looked at every ten seconds, and wait for answers in between.
async fn come_to_say(logs: Vec<(&Node, usize)>, words: &str) -> Result<()> {
    for (node, end) in logs {
        until(&format!("{words:?} in a log"), PATIENCE * 2, async || {
            let log = node.relay().log_text()?;
            Ok(if log[end..].contains(words) { Ok(()) } else { Err(log) })
        })
        .await?;
    }
    Ok(())
}

/// So many brokers must have a record of this node from now on.
async fn must_be_in_sync(lab: &Lab, node: &Node, least: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = lab.kafka().client().create()?;
    let topic = topic::name(node.name());
    // What is not named goes back to its default.
    let settings =
        AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("retention.ms", "-1").set("min.insync.replicas", least);
    for altered in admin.alter_configs(&[settings], &AdminOptions::new()).await? {
        altered.map_err(|(_, code)| anyhow!("{topic}: {code}"))?;
    }
    Ok(())
}

/// `check` comes to say this of the node's own topic, and nothing else is to be said of it.
async fn check_says(lab: &Lab, node: &Node, kind: &str, words: &str) -> Result<()> {
    let url = node.relay_url();
    until(&format!("{words:?} from check"), PATIENCE, async || {
        let ran = run(&["check", "--database", &url, "--kafka", lab.kafka().bootstrap()]).await?;
        let worth_saying = ran.out.lines().filter(|line| line.contains("own topic") && !line.starts_with("ok"));
        let lines: Vec<&str> = worth_saying.collect();
        let is_said = lines.len() == 1 && lines[0].starts_with(kind) && lines[0].contains(words);
        Ok(if is_said { Ok(()) } else { Err(ran.out) })
    })
    .await
}

/// Most Kafkas are three brokers, of which two must have a record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_outlive_one_two_and_all_brokers_of_a_cluster() -> Result<()> {
    let lab = Lab::builder().own_clusters().brokers(3).start().await?;
    lab.create_everywhere(SQL, &["t", "shared"]).await?;
    let kafka = lab.kafka();
    let (mut first, mut rows) = (0, 0);
    let mut struck = async |strike: &dyn Fn() -> Result<()>| -> Result<i64> {
        (first, rows) = (first + 1000, rows + 400);
        let (struck, written) = tokio::join!(async { strike() }, both_commit(&lab, first));
        struck.and(written)?;
        Ok(rows)
    };
    for broker in kafka.brokers() {
        for node in lab.nodes() {
            is_in_sync(&lab, node).await?;
        }
        let rows = struck(&|| broker.kill()).await?;
        // The other two go on.
        arrived(&lab, rows).await?;
        check_says(&lab, lab.node(0), "note", "2 of its 3 replicas are in sync").await?;
        broker.start()?;
        kafka.ready().await?;
    }
    // Two do not, where three must have a record.
    let demanding = lab.node(0);
    is_in_sync(&lab, demanding).await?;
    must_be_in_sync(&lab, demanding, "3").await?;
    kafka.brokers()[0].kill()?;
    check_says(&lab, demanding, "FAIL", "2 of its 3 replicas are in sync, and min.insync.replicas is 3").await?;
    kafka.brokers()[0].start()?;
    kafka.ready().await?;
    must_be_in_sync(&lab, demanding, "2").await?;

    // One alone does not, where two must.
    let logged = logs(&lab)?;
    struck(&|| kafka.brokers()[1..].iter().try_for_each(Broker::kill)).await?;
    come_to_say(logged, "kafka cannot serve a topic").await?;
    kafka.brokers()[1..].iter().try_for_each(Broker::start)?;
    let rows = struck(&|| Ok(())).await?;
    arrived(&lab, rows).await?;

    let logged = logs(&lab)?;
    let rows = struck(&|| kafka.kill()).await?;
    come_to_say(logged, "kafka lost").await?;
    let logged = logs(&lab)?;
    kafka.start().await?;
    come_to_say(logged, "kafka is back").await?;
    arrived(&lab, rows).await?;
    lab.stop_relays()
}

/// A broker that has just started may name no broker, and a client that believes it asks nobody any more, for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_were_told_of_no_broker_are_replaced() -> Result<()> {
    let property = "topic.metadata.refresh.interval.ms=500";
    let lab = Lab::builder().proxied().kafka_property(property).start().await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(SQL, &["t", "shared"]).await?;
    tokio::try_join!(commits(a, 1, 1), commits(b, 2, 1))?;
    lab.converges(&["t"]).await?;
    let door = &a.doors().kafka;
    let bootstrap = format!("127.0.0.1:{}", door.port());
    let mut following =
        command(&["tail", b.name(), "--kafka", &bootstrap, "--kafka-property", property, "--from", "1", "--follow"])?
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
    let mut log = BufReader::new(following.stderr.take().context("piped")?).lines();
    let mut lines = BufReader::new(following.stdout.take().context("piped")?).lines();
    let mut shows_row = async |id: i32| -> Result<()> {
        let row = format!("\"row {id}\"");
        while !lines.next_line().await?.context("it ended")?.contains(&row) {}
        Ok(())
    };
    timeout(PATIENCE, shows_row(2)).await??;

    door.set(Flow::Brokerless);
    door.cut();
    until("a producer and two consumers to be told of no broker", PATIENCE, async || {
        let told = door.forgot();
        Ok(if told >= 3 { Ok(()) } else { Err(format!("{told}")) })
    })
    .await?;
    // It has a new client, and that is told the same.
    let says_so = async {
        while !log.next_line().await?.context("it ended")?.contains("reading goes on with a new one") {}
        anyhow::Ok(())
    };
    timeout(PATIENCE, says_so).await??;
    door.set(Flow::Free);
    tokio::try_join!(commits(a, 3, 1), commits(b, 4, 1))?;
    lab.converges(&["t"]).await?;
    timeout(PATIENCE, shows_row(4)).await??;
    ensure!(a.number("select count(*) from t").await? == 4, "rows are missing");
    let log = a.relay().log_text()?;
    for interrupted in ["publishing", "applying"] {
        let mut lines = log.lines().filter(|line| line.contains("a new one does"));
        ensure!(lines.any(|line| line.contains(&format!("{interrupted} is interrupted"))), "{interrupted}: {log}");
    }
    lab.stop_relays()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_told_to_end_under_load_exits_with_0_and_loses_nothing() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(SQL, &["t", "shared"]).await?;
    let (done, committed) = (AtomicBool::new(false), AtomicI32::new(0));
    let load = async {
        let session = a.connect().await?;
        while !done.load(Ordering::Relaxed) {
            let id = committed.load(Ordering::Relaxed) + 1;
            session.exec(&format!("insert into t values ({id}, repeat('x', {id} % 3000))")).await?;
            committed.store(id, Ordering::Relaxed);
        }
        anyhow::Ok(())
    };
    let ends = async {
        let ended = async {
            for _ in 0..4 {
                let before = committed.load(Ordering::Relaxed);
                until("the load to go on", PATIENCE, async || {
                    let now = committed.load(Ordering::Relaxed);
                    Ok(if now > before + 150 { Ok(()) } else { Err(format!("{now} commits")) })
                })
                .await?;
                lab.stop_relays()?;
                a.relay().start()?;
                b.relay().start()?;
            }
            anyhow::Ok(())
        }
        .await;
        done.store(true, Ordering::Relaxed);
        ended
    };
    let (loaded, ended) = tokio::join!(load, ends);
    loaded?;
    ended?;
    lab.converges(&["t"]).await?;
    assert_eq!(lab.transactions(a).await? as i32, committed.load(Ordering::Relaxed));
    assert_eq!(b.number("select count(*) from t").await?, i64::from(committed.load(Ordering::Relaxed)));
    assert_eq!(lab.transactions(b).await?, 0);
    lab.stop_relays()
}
