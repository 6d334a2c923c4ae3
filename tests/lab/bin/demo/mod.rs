//! `duplex-lab demo`: two chat databases that both take writes, before one's eyes.

mod by_hand;
mod delay;
mod picture;
mod screen;
mod story;
mod streams;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use duplex_lab::{Kafka, Lab, Node};
use tokio::sync::Notify;

use self::screen::Screen;
use crate::control;
use crate::ending::Ending;

/// Shows everything, and then stays for whoever sits at a terminal.
pub(crate) async fn run() -> Result<ExitCode> {
    let mut ending = Ending::awaited()?;
    let screen = Screen::new();
    let shown = tokio::select! {
        biased;
        () = ending.signal() => None,
        shown = show(&screen) => Some(shown?),
    };
    let Some(lab) = shown else {
        screen.note("\ninterrupted; everything that was started is gone");
        return Ok(ExitCode::from(130));
    };
    if std::io::stdin().is_terminal() {
        stay(&screen, &lab, &mut ending).await?;
        // Whoever has killed one by hand has done no wrong.
        lab.nodes()
            .iter()
            .map(Node::relay)
            .filter(|relay| relay.pid().is_some())
            .try_for_each(|r| r.stop().map(drop))?;
    } else {
        lab.stop_relays()?;
        screen.note("\nStandard input is no terminal, so this ends here; on a terminal all of it stays up for you.");
    }
    lab.forget_topics().await?;
    drop(lab);
    screen.note("All servers are stopped and their files are gone.");
    Ok(ExitCode::SUCCESS)
}

/// From the start of the servers to the numbers; an error if anything is not as it must be.
async fn show(screen: &Screen) -> Result<Arc<Lab>> {
    screen.title("pg_duplex: two databases that both take writes stay the same through Kafka");
    match Kafka::external() {
        None => screen.text(
            "Two PostgreSQL servers, one Apache Kafka and two relays are being started in a temporary folder. Nothing of \
             what is installed or running on this machine is touched.",
        ),
        Some(bootstrap) => screen.text(&format!(
            "Two PostgreSQL servers and two relays are being started in a temporary folder. The Kafka at {bootstrap} \
             (KAFKA_BOOTSTRAP_SERVERS) is used for two topics, which are removed in the end.",
        )),
    }
    let start = Instant::now();
    // Servers that fsync: the delay that is measured below is the one that a production server would have.
    let mut builder = Lab::builder().names(&["chat1", "chat2"]).durable();
    if Kafka::external().is_none() {
        builder = builder.own_kafka();
    }
    let lab = Arc::new(builder.start().await?);
    lab.running().await?;
    picture::parts(screen, &lab, start.elapsed());
    let committed = story::tell(screen, &lab).await?;
    let committed = delay::measure(screen, &lab, committed).await?;
    streams::count(screen, &lab, committed).await?;
    by_hand::explain(screen, &lab);
    Ok(lab)
}

/// Until Enter, the end of the input, or a signal: shows the tables anew whenever somebody has changed them.
async fn stay(screen: &Screen, lab: &Arc<Lab>, ending: &mut Ending) -> Result<()> {
    println!();
    screen.text(
        "Whatever changes in the two tables is shown here. Press Enter (or Ctrl-C) to stop and to remove all of it.",
    );
    let quit = Arc::new(Notify::new());
    let served = tokio::spawn(control::serve(Arc::clone(lab), Arc::clone(&quit)));
    let enter = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    tokio::select! {
        () = ending.signal() => screen.note(""),
        _ = enter => {}
        watched = story::watch(screen, lab) => watched?,
    }
    quit.notify_one();
    served.await.context("the control socket failed")?
}
