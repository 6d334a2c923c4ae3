//! Kafka, a relay or a peer's database is away: applications on both sides notice nothing, and all is caught up afterwards.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use duplex_lab::proxy::Flow;
use duplex_lab::{Lab, Node, PATIENCE, until};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;

use super::relay_command::command;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_notice_no_outage_of_kafka_relay_or_peer() -> Result<()> {
    let lab = Lab::builder().own_clusters().own_kafka().start().await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(SQL, &["t", "shared"]).await?;
    let both = async |first: i32| tokio::try_join!(commits(a, first, 200), commits(b, first + 100_000, 200)).map(drop);
    let arrived = async |rows: i64| -> Result<()> {
        lab.converges(&["t"]).await?;
        for node in lab.nodes() {
            ensure!(node.number("select count(*) from t").await? == rows, "rows are missing on {}", node.name());
            let sent = lab.transactions(node).await?;
            ensure!(sent as i64 == rows / 2, "{} has {sent} transactions in its topic", node.name());
        }
        Ok(())
    };
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
            .spawn()?;
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
