//! A promoted server that had told others more than it has: tables with counters or merged columns wait until it has
//! caught up.

use anyhow::{Result, ensure};
use duplex_lab::session::literal;
use duplex_lab::wait::when;
use duplex_lab::{Lab, Node, PATIENCE, Session, until};

use super::relay_command::run;

const TABLES: &str = "create table account (id int primary key, balance int not null default 0, v text); \
                      create table page (id int primary key, title text, body text); \
                      create table t (id int primary key, v text); \
                      select duplex.enable('account', delta_columns => '{balance}'), \
                             duplex.enable('page', resolution => 'column_merge'), duplex.enable('t')";

const LACKS: &str = "select coalesce(lacks, '') from duplex.status";

/// Tries each kind of write, and takes back what is not refused.
async fn refuses_counters_only(session: &Session) -> Result<()> {
    for write in [
        "insert into account values (9, 1)",
        "update account set balance = balance + 1",
        "delete from account",
        "truncate account",
        "update page set title = 'here'",
        "truncate page",
    ] {
        let error = session.refuses("55000", write).await?;
        ensure!(error.hint().is_some_and(|hint| hint.contains("duplex.status")), "{error:?}");
    }
    session.exec("begin; update t set v = 'here'; truncate t; rollback").await
}

async fn lacks(node: &Node, what: &str) -> Result<()> {
    let session = node.connect().await?;
    until(&format!("what {} lacks to be {what:?}", node.name()), PATIENCE, async || {
        let found = session.one(LACKS).await?;
        Ok(when(if what.is_empty() { found.is_empty() } else { found.contains(what) }, found))
    })
    .await
}

#[tokio::test]
async fn counters_wait_until_a_promoted_server_has_caught_up() -> Result<()> {
    let mut lab = Lab::builder().nodes(2).crashes().start().await?;
    lab.exec_everywhere(TABLES).await?;
    let [a, b] = lab.pair();
    a.exec("insert into account values (1, 100, 'made'); insert into page values (1, 'made', 'made'); insert into t values (1)")
        .await?;
    lab.settled().await?;
    let standby = a.cluster().standby("standby").await?;
    let early = standby.connect(a.database()).await?;
    assert_eq!(early.one(LACKS).await?, "", "a standby is no primary that lacks something");
    standby.caught_up_with(a.cluster()).await?;
    standby.cut_off().await?;
    // Applied here, and what is published next says so; the standby never hears of either.
    b.exec("delete from account; update page set body = 'lost'").await?;
    lab.settled().await?;
    a.exec("insert into t values (2, 'published')").await?;
    lab.settled().await?;

    a.relay().kill()?;
    a.cluster().crash()?;
    standby.promote().await?;
    lab.fail_over(0, standby);
    let [a, b] = lab.pair();
    // Nobody has had a look yet. The session was there before the promotion.
    refuses_counters_only(&early).await?;
    lacks(a, "what its own stream says").await?;
    a.pause(b.name(), false).await?;
    a.relay().start()?;
    lacks(a, &format!("the stream of {}", b.name())).await?;
    refuses_counters_only(&early).await?;
    let check = run(&["check", "--database", &a.relay_url(), "--kafka", lab.kafka().bootstrap()]).await?;
    let line = format!("the database lacks the stream of {}", b.name());
    ensure!(check.out.lines().any(|l| l.starts_with("note") && l.contains(&line)), "{}", check.out);
    ensure!(a.relay().log_text()?.contains("has less of its peers than it once had"), "{}", a.relay().log_tail(20));
    // The operator may decide otherwise.
    early.exec("begin; set local duplex.write_before_caught_up = on; update account set balance = 0; rollback").await?;

    a.relay().kill()?;
    a.relay().start()?;
    refuses_counters_only(&early).await?;
    a.resume(b.name()).await?;
    lacks(a, "").await?;
    // As the other session that was refused, without a word to it.
    early.exec("insert into account values (1, 5, 'after'); update page set title = 'after'").await?;
    lab.converges(&["account", "page", "t"]).await?;
    assert_eq!(b.dump("account", &[]).await?, ["balance=5 | id=1 | v=after"]);
    assert_eq!(b.dump("page", &[]).await?, ["body=lost | id=1 | title=after"]);
    lab.stop_relays()
}

#[tokio::test]
async fn sessions_hear_that_the_database_was_set_back() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.exec_everywhere(TABLES).await?;
    let writing = a.connect().await?;
    writing.exec("insert into account values (1, 100, 'made'); update account set balance = 0").await?;
    writing.exec("insert into page values (1, 'made', 'made')").await?;
    lab.settled().await?;
    // As the relay does when it finds more in the topic than a database has.
    let peer = literal(b.name());
    a.exec(&format!(
        "select duplex.drain_promised(array[{peer}, 'nobody'], array[duplex.next_offset({peer}) + 3, 1000000], true)"
    ))
    .await?;
    refuses_counters_only(&writing).await?;
    for id in 1..=4 {
        b.exec(&format!("insert into t values ({id})")).await?;
    }
    lacks(a, "").await?;
    writing.exec("update account set balance = balance + 1").await?;
    a.exec(&format!("select duplex.drain_promised(array[{peer}], array[1000000], true)")).await?;
    refuses_counters_only(&writing).await?;
    a.exec(&format!("select duplex.remove_peer({peer}), duplex.maintain()")).await?;
    writing.exec("update account set balance = balance + 1").await?;
    Ok(())
}

/// What a crash forgets of the offset is heartbeats. Nobody has to wait for those.
#[tokio::test]
async fn counters_do_not_wait_after_a_crash() -> Result<()> {
    let lab = Lab::builder().nodes(2).crashes().heartbeats("100ms").start().await?;
    lab.exec_everywhere(TABLES).await?;
    let [a, b] = lab.pair();
    a.exec("insert into account values (1, 100, 'made'); insert into page values (1, 'made', 'made')").await?;
    lab.settled().await?;
    let next_offset = format!("select duplex.next_offset({})", literal(b.name()));
    let heard = a.number(&next_offset).await? + 10;
    until("heartbeats to come", PATIENCE, async || {
        let now = a.number(&next_offset).await?;
        Ok(when(now >= heard, format!("{now} of {heard}")))
    })
    .await?;
    // So what the own topic says of the other stream is more than what is written down.
    a.exec("insert into t values (1, 'published')").await?;
    b.shows("select v from t", "published").await?;
    let generation = a.number("select generation from duplex.drain_state").await?;
    // The heartbeats would make up for it before anybody has looked.
    a.hold(b.name(), false).await?;
    a.cluster().crash()?;
    a.cluster().start().await?;
    a.exec("update account set balance = balance + 1; update page set title = 'at once'").await?;
    until("the relay to have looked at its topic", PATIENCE, async || {
        let now = a.number("select generation from duplex.drain_state where topic_offset is not null").await?;
        let queued = a.number("select transactions from duplex.queue_status").await?;
        Ok(when(now > generation && queued == 0, format!("generation {now}, {queued} queued")))
    })
    .await?;
    assert_eq!(a.one("select count(*) from duplex.promised").await?, "0");
    a.exec("update account set balance = balance + 1").await?;
    ensure!(!a.relay().log_text()?.contains("has less of its peers"), "{}", a.relay().log_tail(20));
    a.resume(b.name()).await?;
    lab.converges(&["account", "page", "t"]).await?;
    lab.stop_relays()
}
