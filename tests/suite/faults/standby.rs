//! Several relays of one node: one is active, another takes over, and whoever was cut off does no harm.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use duplex_lab::cluster::RELAY_ROLE;
use duplex_lab::dice::Dice;
use duplex_lab::faults::load::{Known, Manner, Place, Pulse, Writer};
use duplex_lab::faults::{ledger, verdict};
use duplex_lab::proxy::Flow;
use duplex_lab::session::literal;
use duplex_lab::topic::{self, Stored};
use duplex_lab::wait::when;
use duplex_lab::{Lab, Node, PATIENCE, Relay, until};
use duplex_relay::config::{Options, Settings};
use duplex_relay::database::Session as RelaySession;
use tokio::task::JoinHandle;

/// What "within seconds" means on a machine that has other things to do.
const SECONDS: Duration = Duration::from_secs(15);

/// The newest take-over of `of` that `on` has applied.
async fn generation(on: &Node, of: &Node) -> Result<i64> {
    on.number(&format!("select generation from duplex.peers where name = {}", literal(of.name()))).await
}

/// The next record of `of` that `on` will apply.
async fn next_offset(on: &Node, of: &Node) -> Result<i64> {
    on.number(&format!("select next_offset from duplex.peers where name = {}", literal(of.name()))).await
}

/// Sessions that write the books of these nodes, so many on each.
fn writers(nodes: &[(&Node, u32)], pulse: &Arc<Pulse>) -> Vec<Vec<JoinHandle<Result<Known>>>> {
    let mut number = 0;
    let mut writer = |node: &Node| {
        number += 1;
        let (place, dice) = (Place::of(node), Dice::new(u64::from(number)));
        let writer = Writer::new(place, number, Manner::Plain, Duration::from_millis(2), dice, Arc::clone(pulse));
        tokio::spawn(writer.run())
    };
    nodes.iter().map(|&(node, count)| (0..count).map(|_| writer(node)).collect()).collect()
}

/// Kills whoever of a node's relays works: the one that publishes and the one that applies the peer's stream, which may
/// be the same. Returns those that were killed.
fn kill_the_active<'r>(publishing: usize, relays: &[&'r Relay]) -> Result<Vec<&'r Relay>> {
    let since: Vec<String> = relays.iter().map(|relay| relay.applying_since()).collect::<Result<_>>()?;
    let applying = (0..relays.len()).max_by_key(|&i| &since[i]).unwrap_or_default();
    ensure!(!since[applying].is_empty(), "nobody applies");
    relays[publishing].kill()?;
    if applying == publishing {
        return Ok(vec![relays[publishing]]);
    }
    relays[applying].kill()?;
    Ok(vec![relays[publishing], relays[applying]])
}

/// Waits until another relay of `a` publishes and `b` applies that, and until `a` applies what `b` has published since.
async fn both_ways_go_on(lab: &Lab, before: i64) -> Result<()> {
    let [a, b] = lab.pair();
    // What the dead relay's session may still be at is below.
    let end = topic::end(lab.kafka(), b.name()).await?;
    let outbound = until("a standby to publish and the peer to apply it", SECONDS, async || {
        let now = generation(b, a).await?;
        Ok(when(now > before, format!("still generation {now}")))
    });
    let inbound = until("a standby to apply what the peer publishes", SECONDS, async || {
        let next = next_offset(a, b).await?;
        Ok(when(next > end, format!("at {next}, not behind {end}")))
    });
    tokio::try_join!(outbound, inbound).map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_standbys_takes_over_both_ways_within_seconds_of_a_kill_under_load() -> Result<()> {
    let lab = Lab::builder().own_clusters().own_kafka().start().await?;
    let [a, b] = lab.pair();
    ledger::open(&lab).await?;
    let standbys = a.relay().standbys(3);
    for standby in &standbys {
        standby.start()?;
    }
    let relays: Vec<&Relay> = std::iter::once(a.relay()).chain(&standbys).collect();
    let pulse = Arc::new(Pulse::default());
    let writers = writers(&[(a, 3), (b, 2)], &pulse);
    let mut slowest = Duration::ZERO;
    for round in 0..4 {
        let due = pulse.committed() + 50;
        until("transactions", PATIENCE, async || Ok(when(pulse.committed() >= due, pulse.committed()))).await?;
        let publishing = a.active(&relays).await?;
        let before = i64::try_from(relays[publishing].generation()?)?;
        let start = Instant::now();
        let killed = kill_the_active(publishing, &relays)?;
        both_ways_go_on(&lab, before).await.with_context(|| format!("round {round}"))?;
        slowest = slowest.max(start.elapsed());
        for relay in killed {
            relay.start()?;
        }
    }
    println!("the slowest of 4 take-overs took {slowest:.2?}");
    pulse.stop();
    let mut known = Vec::new();
    for writers in writers {
        let mut node = Vec::new();
        for writer in writers {
            node.push(writer.await??);
        }
        known.push(node);
    }
    lab.settled().await?;
    let streams = verdict::pass(&lab, &known).await?;
    ensure!(streams[0].hellos >= 5, "{streams:?}");
    Ok(())
}

/// The host of an active relay that loses its power says nothing to anybody, and its session would hold the node's place
/// for as long as the server's kernel lets it: hours.
#[tokio::test]
async fn the_server_gives_up_a_relay_that_is_silent_within_seconds() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let options = Options {
        database: Some(lab.node(0).url_as(RELAY_ROLE)),
        kafka: Some("127.0.0.1:9".into()),
        ..Options::default()
    };
    let session = RelaySession::connect(&Settings::resolve(options)?, "outbound").await?;
    let mut found = Vec::new();
    for setting in ["tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout"] {
        // What the kernel says of this very connection.
        found.push(session.query_one(&format!("show {setting}"), &[]).await?.get::<_, String>(0));
    }
    assert_eq!(found, ["4", "2", "3", "10000"]);
    Ok(())
}

/// Records of an earlier generation behind a take-over.
fn void(records: &[Stored]) -> Result<usize> {
    let (mut generation, mut void) = (0, 0);
    for record in records {
        let found = record.header()?.generation;
        void += usize::from(found < generation);
        generation = generation.max(found);
    }
    Ok(void)
}

#[tokio::test]
async fn late_records_of_a_relay_that_was_cut_off_are_void_for_every_reader() -> Result<()> {
    let lab = Lab::builder().proxied().start().await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    a.exec("insert into t values (0, 'before')").await?;
    lab.settled().await?;

    // What it sends from now on gets stuck on the way to Kafka …
    a.doors().kafka.set(Flow::Stalled);
    let idle = a.doors().kafka.held();
    let session = a.connect().await?;
    for id in 1..=20 {
        session
            .exec(&format!(
                "insert into t select {id}, string_agg(md5(random()::text), '') from generate_series(1, 100)"
            ))
            .await?;
    }
    until("records to be on their way", PATIENCE, async || {
        let held = a.doors().kafka.held();
        Ok(when(held > idle + 3_000, format!("{held} bytes")))
    })
    .await?;
    // … and it is stopped, and loses its session: another one takes over and sends all of it.
    a.relay().pause()?;
    a.doors().database.cut();
    let other = a.relay().standby_at(&a.url_as("relay"), lab.kafka().bootstrap());
    other.start()?;
    let reader = b.connect().await?;
    until("the other relay to send it", PATIENCE, async || {
        let rows = reader.number("select count(*) from t").await?;
        Ok(when(rows == 21, format!("{rows} rows")))
    })
    .await?;
    // Now the stuck records arrive, and then the stopped relay itself comes back to life.
    a.doors().kafka.set(Flow::Free);
    let late = until("late records in the topic", PATIENCE, async || {
        let late = void(&topic::read(lab.kafka(), a.name()).await?)?;
        Ok(if late > 0 { Ok(late) } else { Err("none yet") })
    })
    .await?;
    a.relay().resume()?;
    session.exec("insert into t values (100, 'after')").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(lab.transactions(a).await?, 22, "{late} late records");

    // Whoever takes over next reads the late records back, and must not take them for published.
    let before = generation(b, a).await?;
    other.kill()?;
    until("the first relay to take over again", PATIENCE, async || {
        let now = generation(b, a).await?;
        Ok(when(now > before, format!("still generation {now}")))
    })
    .await?;
    session.exec("insert into t values (101, 'and on')").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(lab.transactions(a).await?, 23);
    a.relay().process()?.check()
}
