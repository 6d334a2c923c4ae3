//! Nodes that come and go while the others run under load: the steps of docs/operations.md, done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use duplex_lab::converge::layouts::{LAYOUTS, Layout};
use duplex_lab::converge::statements::Transaction;
use duplex_lab::converge::verdict;
use duplex_lab::dice::Dice;
use duplex_lab::session::literal;
use duplex_lab::wait::when;
use duplex_lab::{Lab, Node, PATIENCE, Session, topic, until};
use tokio::task::JoinHandle;

use super::relay_command::run;

/// The tables: name and kind.
const TABLES: [(&str, &str); 4] =
    [("p", "plain"), ("u", "several unique keys"), ("f", "parent and child"), ("c", "counter")];

fn tables() -> impl Iterator<Item = (&'static str, &'static Layout)> {
    TABLES
        .iter()
        .map(|(table, kind)| (*table, LAYOUTS.iter().find(|layout| layout.name == *kind).expect("a kind of this name")))
}

/// The statements that make and enable all tables.
fn schema() -> String {
    tables().map(|(table, layout)| layout.create(table)).collect()
}

/// Sessions that write until they are told to stop.
#[derive(Default)]
struct Load {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Result<usize>>>,
}

impl Load {
    async fn on(&mut self, node: &Node) -> Result<()> {
        let (session, stop, number) = (node.connect().await?, Arc::clone(&self.stop), self.writers.len() as u64);
        let gid = node.name().to_owned();
        self.writers.push(tokio::spawn(async move {
            let (mut dice, mut done) = (Dice::of(11, number), 0);
            while !stop.load(Ordering::Relaxed) {
                let (table, layout) = tables().nth(dice.below(TABLES.len() as u64) as usize).context("a table")?;
                let transaction = Transaction::random(&mut dice, layout, 1);
                let committed = transaction.run(&session, layout, table, &gid).await?;
                done += usize::from(committed);
                tokio::time::sleep(Duration::from_millis(4)).await;
            }
            Ok(done)
        }));
        Ok(())
    }

    /// Waits until this node's streams have this many transactions more than now.
    async fn goes_on(&self, lab: &Lab, node: &Node) -> Result<()> {
        let due = topic::end(lab.kafka(), node.name()).await? + 40;
        until("the load to go on", PATIENCE, async || {
            ensure!(self.writers.iter().all(|writer| !writer.is_finished()), "a session of the load has ended");
            let end = topic::end(lab.kafka(), node.name()).await?;
            Ok(when(end >= due, format!("{end} of {due}")))
        })
        .await
    }

    async fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            ensure!(writer.await?? > 20, "a session hardly wrote anything");
        }
        Ok(())
    }
}

async fn equal(nodes: &[&Node]) -> Result<()> {
    let mut sessions = Vec::new();
    for node in nodes {
        sessions.push(node.connect().await?);
    }
    let sessions: Vec<&Session> = sessions.iter().collect();
    for (table, layout) in tables() {
        verdict::equal(&sessions, layout, table).await?;
    }
    for session in sessions {
        verdict::quiet(session).await?;
    }
    Ok(())
}

/// What `check` says on a node about how far a peer's stream is applied.
async fn nothing_is_left(lab: &Lab, node: &Node, peer: &Node) -> Result<()> {
    let line = format!("peer's topic duplex.{}: all", peer.name());
    until(&format!("check on {} to say that nothing of {} is left", node.name(), peer.name()), PATIENCE, async || {
        let found = run(&["check", "--database", &node.relay_url(), "--kafka", lab.kafka().bootstrap()]).await?;
        Ok(when(found.out.contains(&line), found.out))
    })
    .await
}

async fn add(to: &Node, peers: &[&Node]) -> Result<()> {
    for peer in peers {
        to.exec(&format!("select duplex.add_peer({})", literal(peer.name()))).await?;
    }
    Ok(())
}

/// Two nodes that run, and a third database that is none yet.
async fn two_and_a_newcomer() -> Result<Lab> {
    let lab = Lab::builder().nodes(3).newcomers(1).start().await?;
    for node in lab.pair() {
        node.exec(&schema()).await?;
    }
    Ok(lab)
}

/// The newcomer becomes a node with empty tables.
async fn join(lab: &Lab) -> Result<()> {
    let (a, b, c) = (lab.node(0), lab.node(1), lab.node(2));
    add(a, &[c]).await?;
    add(b, &[c]).await?;
    c.exec(&format!("select duplex.create_node({})", literal(c.name()))).await?;
    c.exec(&schema()).await?;
    add(c, &[a, b]).await?;
    c.relay().start()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_third_node_joins_two_under_load() -> Result<()> {
    let lab = two_and_a_newcomer().await?;
    let (a, b, c) = (lab.node(0), lab.node(1), lab.node(2));
    let mut load = Load::default();
    load.on(a).await?;
    load.on(b).await?;
    load.goes_on(&lab, a).await?;
    join(&lab).await?;
    c.stream_is(a.name(), "running").await?;
    c.stream_is(b.name(), "running").await?;
    load.on(c).await?;
    load.goes_on(&lab, c).await?;
    load.end().await?;
    lab.settled().await?;
    for (node, peer) in [(c, a), (c, b), (a, c)] {
        nothing_is_left(&lab, node, peer).await?;
    }
    equal(&[a, b, c]).await?;
    lab.stop_relays()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_leaves_for_good_under_load_and_another_one_comes() -> Result<()> {
    let lab = two_and_a_newcomer().await?;
    let (a, b, c) = (lab.node(0), lab.node(1), lab.node(2));
    join(&lab).await?;
    let (mut staying, mut leaving) = (Load::default(), Load::default());
    staying.on(a).await?;
    staying.on(b).await?;
    leaving.on(c).await?;
    staying.goes_on(&lab, a).await?;
    staying.goes_on(&lab, c).await?;
    // Its applications stop, its queue empties, and the others have all of it.
    leaving.end().await?;
    c.shows("select transactions from duplex.queue_status", "0").await?;
    for node in [a, b] {
        nothing_is_left(&lab, node, c).await?;
    }
    for node in [a, b] {
        node.exec(&format!("select duplex.remove_peer({})", literal(c.name()))).await?;
    }
    c.relay().kill()?;
    staying.goes_on(&lab, b).await?;
    // What one of them did long before the other hears of it meets what is remembered of the time with the third node.
    a.hold(b.name(), true).await?;
    staying.goes_on(&lab, a).await?;
    for node in [a, b] {
        node.exec("select duplex.maintain()").await?;
    }
    a.resume(b.name()).await?;
    staying.end().await?;
    for (node, peer) in [(a, b), (b, a)] {
        peer.shows("select transactions from duplex.queue_status", "0").await?;
        node.applied(peer.name(), topic::end(lab.kafka(), peer.name()).await?, PATIENCE).await?;
    }
    equal(&[a, b]).await?;
    assert_eq!(a.rows("select name from duplex.peers").await?.len(), 1);
    Ok(())
}

/// Rows that the streams do not hold any more cannot come from there: that is a state with a reason, never a table
/// that quietly lacks them.
#[tokio::test]
async fn a_newcomer_to_a_stream_that_was_cut_short_is_told_so() -> Result<()> {
    let lab = two_and_a_newcomer().await?;
    let (a, b, c) = (lab.node(0), lab.node(1), lab.node(2));
    a.exec("insert into p values (1, 'of a')").await?;
    b.shows("select v from p", "of a").await?;
    let end = topic::end(lab.kafka(), a.name()).await?;
    topic::delete_records(lab.kafka(), a.name(), end).await?;
    join(&lab).await?;
    let reason = c.stream_is(a.name(), "gap").await?;
    ensure!(reason.contains(&format!("begins at offset {end}, and 0 comes next")), "{reason}");
    // Nobody writes: the rows are copied, and the stream begins behind them.
    c.exec(&format!(
        "begin; set local duplex.origin = '{}'; insert into p values (1, 'of a'); commit; select duplex.resync_peer('{}', {end})",
        a.name(),
        a.name()
    ))
    .await?;
    c.stream_is(a.name(), "running").await?;
    a.exec("update p set v = 'later' where id = 1").await?;
    c.shows("select v from p", "later").await?;
    lab.settled().await?;
    equal(&[a, b, c]).await?;
    lab.stop_relays()
}
