//! Every committed transaction once, whatever else is open: long, prepared and aborted ones, and very many at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use duplex_lab::dice::Dice;
use duplex_lab::faults::{ledger, verdict};
use duplex_lab::session::literal;
use duplex_lab::wait::when;
use duplex_lab::{Lab, PATIENCE, Session, until};

/// Transactions that are prepared before anybody commits, and end in another order.
const PREPARED: u32 = 1500;
/// Sessions that end the prepared ones, all at the same time.
const ENDING: u32 = 30;
/// Sessions that commit at the same time.
const SESSIONS: u32 = 150;
/// How often the relay is killed meanwhile.
const KILLS: u32 = 4;
const LONG: u32 = 10;

fn journal(node: &str, session: u32, seq: i64) -> String {
    format!(
        "insert into journal (node, session, seq, legs, bulk, note) values ({}, {session}, {seq}, 0, 0, '')",
        literal(node)
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_open_transactions_are_sent_once_each() -> Result<()> {
    let lab = Lab::builder()
        .own_kafka()
        .setting("max_connections", "250")
        .setting("max_prepared_transactions", "2000")
        .start()
        .await?;
    let a = lab.node(0);
    ledger::open(&lab).await?;
    let (name, url) = (a.name().to_owned(), a.url_as("postgres"));

    let mut long = Vec::new();
    for i in 0..LONG {
        let session = a.connect().await?;
        session.exec(&format!("begin; {}", journal(&name, 10_000 + i, 1))).await?;
        long.push(session);
    }
    let preparing = a.connect().await?;
    for i in 0..PREPARED {
        let sql = format!("begin; {}; prepare transaction 'p{i}'", journal(&name, 20_000 + i, 1));
        preparing.exec(&sql).await?;
    }

    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for number in 1..=SESSIONS {
        tasks.push(tokio::spawn(commits(url.clone(), name.clone(), number, Arc::clone(&stop))));
    }
    let mut dice = Dice::new(1);
    let mut order: Vec<u32> = (0..PREPARED).collect();
    dice.shuffle(&mut order);
    for share in order.chunks(PREPARED.div_ceil(ENDING) as usize) {
        let dice = Dice::of(1, tasks.len() as u64);
        tasks.push(tokio::spawn(ends(url.clone(), share.to_vec(), dice)));
    }
    for kill in 0..KILLS {
        let published = lab.transactions(a).await?;
        a.relay().kill()?;
        a.relay().start()?;
        until("the relay to come on a bit", PATIENCE, async || {
            let now = lab.transactions(a).await?;
            Ok(when(now > published + 20, format!("{now} published after kill {kill}")))
        })
        .await?;
    }
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await??;
    }
    for (i, session) in long.into_iter().enumerate() {
        session.exec(if i % 3 == 0 { "rollback" } else { "commit" }).await?;
    }
    lab.settled_within(PATIENCE * 2).await?;
    let streams = verdict::pass(&lab, &[Vec::new(), Vec::new()]).await?;
    println!("{} transactions in {} records after {KILLS} kills", streams[0].transactions, streams[0].records);
    Ok(())
}

/// Ends prepared transactions, some of them by a rollback.
async fn ends(url: String, prepared: Vec<u32>, mut dice: Dice) -> Result<()> {
    let session = Session::connect(&url).await?;
    for i in prepared {
        let end = if dice.percent(30) { "rollback" } else { "commit" };
        session.exec(&format!("{end} prepared 'p{i}'")).await?;
    }
    Ok(())
}

async fn commits(url: String, name: String, number: u32, stop: Arc<AtomicBool>) -> Result<()> {
    let session = Session::connect(&url).await.with_context(|| format!("session {number}"))?;
    let mut dice = Dice::new(u64::from(number));
    let mut seq = 1;
    while !stop.load(Ordering::Relaxed) {
        let goes_through = dice.percent(80);
        let end = if goes_through { "commit" } else { "rollback" };
        session.exec(&format!("begin; {}; {end}", journal(&name, number, seq))).await?;
        seq += i64::from(goes_through);
        // All of them at once, and the machine still has something left for the rest of the test.
        tokio::time::sleep(dice.millis(0, 60)).await;
    }
    Ok(())
}
