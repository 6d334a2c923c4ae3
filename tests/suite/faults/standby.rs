//! Two relays of one node: one is active, the other takes over, and whoever was cut off does no harm.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use duplex_lab::dice::Dice;
use duplex_lab::faults::load::{Manner, Place, Pulse, Writer};
use duplex_lab::faults::{ledger, verdict};
use duplex_lab::proxy::Flow;
use duplex_lab::session::literal;
use duplex_lab::topic::{self, Stored};
use duplex_lab::wait::when;
use duplex_lab::{Lab, Node, PATIENCE, until};

/// What "within seconds" means on a machine that has other things to do.
const SECONDS: Duration = Duration::from_secs(15);

/// The newest take-over of `of` that `on` has applied.
async fn generation(on: &Node, of: &Node) -> Result<i64> {
    on.number(&format!("select generation from duplex.peers where name = {}", literal(of.name()))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_within_seconds_of_a_kill_under_load() -> Result<()> {
    let lab = Lab::builder().own_clusters().own_kafka().start().await?;
    let [a, b] = lab.pair();
    ledger::open(&lab).await?;
    let standby = a.relay().standby();
    standby.start()?;
    let pulse = Arc::new(Pulse::default());
    let writers: Vec<_> = (1..=4)
        .map(|number| {
            let (place, dice) = (Place::of(a), Dice::new(u64::from(number)));
            let writer = Writer::new(place, number, Manner::Plain, Duration::from_millis(2), dice, Arc::clone(&pulse));
            tokio::spawn(writer.run())
        })
        .collect();
    let mut pair = [a.relay(), &standby];
    let mut slowest = Duration::ZERO;
    for round in 0..4 {
        let due = pulse.committed() + 50;
        until("transactions", PATIENCE, async || Ok(when(pulse.committed() >= due, pulse.committed()))).await?;
        let before = generation(b, a).await?;
        let killed = Instant::now();
        pair[0].kill()?;
        until("the standby to publish and the peer to apply it", SECONDS, async || {
            let now = generation(b, a).await?;
            Ok(when(now > before, format!("round {round}: still generation {now}")))
        })
        .await?;
        slowest = slowest.max(killed.elapsed());
        pair[0].start()?;
        pair.swap(0, 1);
    }
    println!("the slowest of 4 take-overs took {slowest:.2?}");
    pulse.stop();
    let mut known = Vec::new();
    for writer in writers {
        known.push(writer.await??);
    }
    lab.settled().await?;
    let streams = verdict::pass(&lab, &[known, Vec::new()]).await?;
    ensure!(streams[0].hellos >= 5, "{streams:?}");
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
