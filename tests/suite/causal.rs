//! Causal order on three nodes: a reply never shows before what it answers, a child never before its parent, whichever
//! stream comes first.
//!
//! One stream alone is held up on one node by a row lock there: each transaction also writes its own node's row of
//! table `gate`, which nobody else writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use duplex_lab::dice::Dice;
use duplex_lab::session::literal;
use duplex_lab::wait::when;
use duplex_lab::{Lab, Node, PATIENCE, Session, until};

const ORPHANS: &str = "select count(*) from reply r where not exists (select from message m where m.id = r.answers)";

async fn conversation(replies: &str) -> Result<Lab> {
    let lab = Lab::shared(3).await?;
    let schema = format!(
        "create table gate (node text primary key, n int not null); create table message (id text primary key); {replies}"
    );
    lab.create_everywhere(&schema, &["gate", "message", "reply"]).await?;
    for node in lab.nodes() {
        node.exec(&format!("insert into gate values ({}, 0)", literal(node.name()))).await?;
    }
    lab.converges(&["gate"]).await?;
    lab.running().await?;
    Ok(lab)
}

/// What the session that applies a peer's stream waits for.
async fn waits_for(node: &Node, peer: &str, events: &[&str]) -> Result<()> {
    let name = literal(&format!("duplex-relay inbound {peer}"));
    let sql = format!(
        "select coalesce(wait_event, '') from pg_stat_activity
          where datname = current_database() and application_name = {name}"
    );
    until(&format!("the stream of {peer} to wait for one of {events:?}"), PATIENCE, async || {
        let found: Vec<String> = node.rows(&sql).await?.into_iter().flatten().flatten().collect();
        Ok(when(found.len() == 1 && events.contains(&found[0].as_str()), format!("{found:?}")))
    })
    .await
}

/// From here on the stream of `peer` waits on `node` before its next message, until the session ends its transaction.
async fn hold(node: &Node, peer: &Node) -> Result<Session> {
    let session = node.connect().await?;
    session.exec(&format!("begin; select from gate where node = {} for update", literal(peer.name()))).await?;
    Ok(session)
}

fn pass_the_gate(node: &Node) -> String {
    format!("update gate set n = n + 1 where node = {}", literal(node.name()))
}

/// The parent's stream is held on the third node, and the child has come by another one.
async fn the_child_waits(replies: &str) -> Result<()> {
    let lab = conversation(replies).await?;
    let (a, b, c) = (lab.node(0), lab.node(1), lab.node(2));
    let holder = hold(c, a).await?;
    a.exec(&format!("begin; {}; insert into message values ('question'); commit", pass_the_gate(a))).await?;
    b.shows("select id from message", "question").await?;
    b.exec("insert into reply values ('answer', 'question')").await?;
    a.shows("select id from reply", "answer").await?;
    waits_for(c, a.name(), &["transactionid", "tuple"]).await?;
    waits_for(c, b.name(), &["Extension"]).await?;
    assert_eq!(c.number("select count(*) from reply").await?, 0);
    holder.exec("commit").await?;
    c.shows("select id from reply", "answer").await?;
    assert_eq!(c.one("select id from message").await?, "question");
    lab.converges(&["message", "reply"]).await?;
    lab.stop_relays()
}

#[tokio::test]
async fn a_reply_waits_for_the_message_that_it_answers() -> Result<()> {
    the_child_waits("create table reply (id text primary key, answers text not null)").await
}

#[tokio::test]
async fn a_child_waits_for_its_parent() -> Result<()> {
    the_child_waits("create table reply (id text primary key, answers text not null references message)").await
}

/// Asks and answers on one node until told to stop. Returns how much it wrote.
async fn talk(session: Session, name: String, gate: String, mut dice: Dice, stop: Arc<AtomicBool>) -> Result<u64> {
    let mut said = 0;
    while !stop.load(Ordering::Relaxed) {
        said += 1;
        let own = literal(&format!("{name} {said}"));
        session
            .exec(&match dice.percent(40) {
                true => format!("begin; {gate}; insert into message values ({own}); commit"),
                // To the newest of another node, which is the least likely to be everywhere.
                false => format!(
                    "insert into reply select {own}, id from message where id not like {} \
                      order by split_part(id, ' ', 2)::int desc, id limit 1",
                    literal(&format!("{name} %"))
                ),
            })
            .await?;
        tokio::time::sleep(dice.millis(1, 15)).await;
    }
    Ok(said)
}

/// Looks again and again whether there is an answer without its question.
async fn read(session: Session, stop: Arc<AtomicBool>) -> Result<u64> {
    let mut looks = 0;
    while !stop.load(Ordering::Relaxed) {
        ensure!(session.number(ORPHANS).await? == 0, "an answer shows before its question");
        looks += 1;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    Ok(looks)
}

#[tokio::test]
async fn no_reader_sees_an_answer_before_its_question() -> Result<()> {
    let lab =
        conversation("create table reply (id text primary key, answers text not null references message)").await?;
    let stop = Arc::new(AtomicBool::new(false));
    let (mut talkers, mut readers) = (Vec::new(), Vec::new());
    for (i, node) in lab.nodes().iter().enumerate() {
        let (name, gate, dice) = (node.name().to_owned(), pass_the_gate(node), Dice::of(7, i as u64));
        talkers.push(tokio::spawn(talk(node.connect().await?, name, gate, dice, Arc::clone(&stop))));
        readers.push(tokio::spawn(read(node.connect().await?, Arc::clone(&stop))));
    }
    let (mut dice, start) = (Dice::of(7, 9), Instant::now());
    let mut held = 0;
    while start.elapsed() < Duration::from_secs(6) && talkers.iter().chain(&readers).all(|task| !task.is_finished()) {
        let on = dice.below(3) as usize;
        let of = (on + 1 + dice.below(2) as usize) % 3;
        let holder = hold(lab.node(on), lab.node(of)).await?;
        tokio::time::sleep(dice.millis(20, 400)).await;
        holder.exec("commit").await?;
        held += 1;
    }
    stop.store(true, Ordering::Relaxed);
    for talker in talkers {
        ensure!(talker.await?? > 20, "a node hardly said anything");
    }
    for reader in readers {
        ensure!(reader.await?? > 20, "hardly anybody looked");
    }
    ensure!(held > 5, "streams were held {held} times");
    lab.converges(&["message", "reply"]).await?;
    ensure!(lab.node(0).number("select count(*) from reply").await? > 20, "hardly an answer was given");
    lab.stop_relays()
}
