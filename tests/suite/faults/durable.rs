//! Nothing is published that the origin can lose.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use duplex_lab::dice::Dice;
use duplex_lab::faults::load::{Manner, Place, Pulse, Writer};
use duplex_lab::faults::{ledger, verdict};
use duplex_lab::wait::when;
use duplex_lab::{Lab, PATIENCE, until};

const WRITERS: u32 = 6;
const CRASHES: u32 = 8;

/// With `synchronous_commit = off` a transaction is visible before its WAL has left the server's memory, and an
/// immediate stop takes it back. That must happen here, or the test shows nothing; and never to what is in the topic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crash_takes_back_was_never_published() -> Result<()> {
    let lab = Lab::builder()
        .own_kafka()
        .crashes()
        .setting("full_page_writes", "on")
        // Only who asks for it flushes.
        .setting("wal_writer_delay", "10s")
        .setting("wal_writer_flush_after", "1GB")
        .setting("wal_buffers", "32MB")
        .start()
        .await?;
    let a = lab.node(0);
    ledger::open(&lab).await?;
    let pulse = Arc::new(Pulse::default());
    let writers: Vec<_> = (1..=WRITERS)
        .map(|number| {
            let (place, dice) = (Place::of(a), Dice::new(u64::from(number)));
            let writer = Writer::new(place, number, Manner::Careless, Duration::ZERO, dice, Arc::clone(&pulse));
            tokio::spawn(writer.run())
        })
        .collect();
    for crash in 0..CRASHES {
        let due = pulse.committed() + 200;
        until("transactions", PATIENCE, async || Ok(when(pulse.committed() >= due, pulse.committed()))).await?;
        if crash % 2 == 0 {
            a.cluster().crash()?;
        } else {
            // Nobody drains for a moment, hence nobody flushes.
            a.relay().pause()?;
            let due = pulse.committed() + 20;
            until("transactions", PATIENCE, async || Ok(when(pulse.committed() >= due, pulse.committed()))).await?;
            a.cluster().crash()?;
            a.relay().resume()?;
        }
        a.cluster().start().await?;
    }
    pulse.stop();
    let mut known = Vec::new();
    for writer in writers {
        known.push(writer.await??);
    }
    let taken_back: usize = known.iter().map(|session| session.taken_back).sum();
    println!("{taken_back} of {} commits were taken back by {CRASHES} crashes", pulse.committed());
    assert!(taken_back > 0, "no crash took anything back, so nothing is shown");
    lab.settled().await?;
    verdict::pass(&lab, &[known, Vec::new()]).await?;
    // What had been published too early would have come back from the topic, and nobody would have noticed.
    let log = a.relay().log_text()?;
    assert!(!log.contains("this database lacks"), "{log}");
    Ok(())
}
