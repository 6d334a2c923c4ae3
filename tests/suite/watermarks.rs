//! What a node promises of its stream holds, and a node at rest says so without writing anything.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use duplex_lab::topic::{self, Stored};
use duplex_lab::{Lab, Node, PATIENCE, until};
use duplex_protocol::record::{Header, Kind};

const TABLE: &str = "create table t (id int primary key, v text)";

/// The valid records' headers, as every reader sifts them.
fn valid(records: &[Stored]) -> Result<Vec<Header>> {
    let mut generation = 0;
    let mut valid = Vec::new();
    for record in records {
        let header = record.header()?;
        if header.generation >= generation {
            generation = header.generation;
            valid.push(header);
        }
    }
    Ok(valid)
}

/// Checks every promise in a stream against all that comes after it. Returns how many different ones there are.
fn promises_hold(records: &[Stored]) -> Result<usize> {
    let mut promised = i64::MIN;
    let mut promises = Vec::new();
    for header in valid(records)? {
        if header.kind == Kind::Transaction {
            ensure!(
                header.commit_ts > promised,
                "transaction {} is stamped {} and comes after a promise of {promised}",
                header.position.xid,
                header.commit_ts
            );
        }
        // What a record promises goes for what comes after it.
        promised = promised.max(header.settled);
        if header.settled != i64::MIN {
            ensure!(header.held <= header.settled, "S is beyond W");
            promises.push(header.settled);
        }
    }
    promises.sort_unstable();
    promises.dedup();
    Ok(promises.len())
}

/// The newest W in a stream; the lowest number where there is none yet.
async fn promised(lab: &Lab, node: &Node) -> Result<i64> {
    let headers = valid(&topic::read(lab.kafka(), node.name()).await?)?;
    Ok(headers.iter().map(|header| header.settled).max().unwrap_or(i64::MIN))
}

/// Waits until a node has promised more than that.
async fn promises_beyond(lab: &Lab, node: &Node, at: i64) -> Result<()> {
    until("a later watermark", PATIENCE, async || {
        let now = promised(lab, node).await?;
        Ok(if now > at { Ok(()) } else { Err(format!("{now} is not beyond {at}")) })
    })
    .await
}

/// Waits until a node has said ten times more what it promises.
async fn ten_heartbeats(lab: &Lab, node: &Node) -> Result<()> {
    let heartbeats = async || {
        let headers = valid(&topic::read(lab.kafka(), node.name()).await?)?;
        anyhow::Ok(headers.iter().filter(|header| header.kind == Kind::Heartbeat).count())
    };
    let before = heartbeats().await?;
    until("ten more heartbeats", PATIENCE, async || {
        let now = heartbeats().await?;
        Ok(if now >= before + 10 { Ok(()) } else { Err(format!("{now} after {before}")) })
    })
    .await
}

async fn micros(node: &Node) -> Result<i64> {
    node.number("select duplex.micros(clock_timestamp())").await
}

async fn commits(node: &Node, first: i32, prepares: bool) -> Result<()> {
    let session = node.connect().await?;
    // A timestamp is taken long before the transaction is visible: it waits for the disk in between.
    session.exec("set commit_delay = 3000; set commit_siblings = 0").await?;
    for id in first..first + 400 {
        session.exec(&format!("begin; insert into t values ({id}, 'x')")).await?;
        if prepares {
            session.exec(&format!("prepare transaction '{id}'")).await?;
            session.exec(&format!("commit prepared '{id}'")).await?;
        } else {
            session.exec("commit").await?;
        }
    }
    Ok(())
}

/// Transactions that take long, and are on their way to their commit for long.
async fn lingers(node: &Node, first: i32) -> Result<()> {
    let session = node.connect().await?;
    session.exec("set commit_delay = 90000; set commit_siblings = 0").await?;
    for id in first..first + 30 {
        session
            .exec(&format!("begin; insert into t select {id} * 1000 + i, 'y' from generate_series(1, 50) i"))
            .await?;
        session.exec("select pg_sleep(0.05)").await?;
        session.exec("commit").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_comes_after_a_promise_that_is_not_later() -> Result<()> {
    let lab = Lab::builder().nodes(2).durable().heartbeats("100ms").start().await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(TABLE, &["t"]).await?;
    let kills = async {
        for _ in 0..3 {
            promises_beyond(&lab, a, micros(a).await?).await?;
            a.relay().kill()?;
            a.relay().start()?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(
        commits(a, 1_000, false),
        commits(a, 2_000, false),
        commits(a, 3_000, false),
        commits(a, 4_000, true),
        commits(a, 5_000, true),
        lingers(a, 100),
        lingers(a, 200),
        kills,
    )?;
    lab.settled().await?;
    promises_beyond(&lab, a, micros(a).await?).await?;
    let records = topic::read(lab.kafka(), a.name()).await?;
    let promises = promises_hold(&records)?;
    // One was waited for before each kill, and one at the end.
    ensure!(promises >= 4, "only {promises} promises were made");
    assert_eq!(topic::transactions(&records)?.len(), 5 * 400 + 2 * 30);
    assert_eq!(b.one("select count(*) from t").await?, a.one("select count(*) from t").await?);
    lab.stop_relays()
}

#[tokio::test]
async fn an_open_transaction_holds_nothing_back_and_a_prepared_one_if_it_has_changes() -> Result<()> {
    let lab = Lab::builder().nodes(2).heartbeats("100ms").start().await?;
    let a = lab.node(0);
    lab.create_everywhere(&format!("{TABLE}; create table own (id int)"), &["t"]).await?;
    let open = a.connect().await?;
    open.exec("begin; insert into t values (1, 'open')").await?;
    let other = format!("{}-other", a.name());
    a.exec(&format!("begin; insert into own values (1); prepare transaction '{other}'")).await?;
    promises_beyond(&lab, a, micros(a).await?).await?;
    // This one could be on its way to its commit at any time.
    let name = format!("{}-kept", a.name());
    a.exec(&format!("begin; insert into t values (2, 'prepared'); prepare transaction '{name}'")).await?;
    let prepared = micros(a).await?;
    a.exec("insert into t values (3, 'later')").await?;
    ten_heartbeats(&lab, a).await?;
    ensure!(promised(&lab, a).await? < prepared, "the prepared transaction is passed over");
    open.exec("commit").await?;
    a.connect().await?.each(&[&format!("commit prepared '{name}'"), &format!("rollback prepared '{other}'")]).await?;
    promises_beyond(&lab, a, micros(a).await?).await?;
    promises_hold(&topic::read(lab.kafka(), a.name()).await?)?;
    lab.converges(&["t"]).await?;
    lab.stop_relays()
}

#[tokio::test]
async fn a_commit_that_waits_for_a_standby_holds_the_promise_back() -> Result<()> {
    // It has its timestamp by then, and nobody sees it yet.
    let builder = Lab::builder().nodes(2).heartbeats("100ms").setting("synchronous_commit", "local");
    let lab = builder.start().await?;
    let a = lab.node(0);
    lab.create_everywhere(TABLE, &["t"]).await?;
    promises_beyond(&lab, a, micros(a).await?).await?;
    let (writer, control) = (a.connect().await?, a.connect().await?);
    writer.exec("set synchronous_commit = on").await?;
    control.each(&["alter system set synchronous_standby_names = 'nobody'", "select pg_reload_conf()"]).await?;
    let over = AtomicBool::new(false);
    // Whether a commit has to wait hangs on another process's having heard of the setting: one of them will.
    let writes = async {
        let mut id = 0;
        while !over.load(Ordering::Relaxed) {
            writer.exec(&format!("insert into t values ({id}, 'waits')")).await?;
            id += 1;
        }
        anyhow::Ok(id)
    };
    let looks = async {
        a.shows("select count(*) from pg_stat_activity where wait_event = 'SyncRep'", "1").await?;
        let stamped_by = micros(a).await?;
        a.exec("insert into t values (-1, 'later')").await?;
        ten_heartbeats(&lab, a).await?;
        let promised = promised(&lab, a).await?;
        ensure!(promised < stamped_by, "the commit that waits is passed over");
        over.store(true, Ordering::Relaxed);
        control.each(&["alter system reset synchronous_standby_names", "select pg_reload_conf()"]).await?;
        promises_beyond(&lab, a, stamped_by).await
    };
    let (written, ()) = tokio::try_join!(writes, looks)?;
    lab.converges(&["t"]).await?;
    let records = topic::read(lab.kafka(), a.name()).await?;
    promises_hold(&records)?;
    assert_eq!(topic::transactions(&records)?.len(), written + 1);
    lab.stop_relays()
}

#[tokio::test]
async fn nodes_at_rest_write_nothing_and_lose_nothing_in_a_crash() -> Result<()> {
    let builder = Lab::builder().nodes(2).crashes().heartbeats("100ms").setting("autovacuum", "off");
    let lab = builder.start().await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(TABLE, &["t"]).await?;
    a.exec("insert into t values (1, 'first')").await?;
    lab.converges(&["t"]).await?;
    let next_xid = async |node: &Node| node.number("select pg_snapshot_xmax(pg_current_snapshot())::text").await;
    let applied = async || b.number(&format!("select next_offset from duplex.peers where name = '{}'", a.name())).await;
    b.shows("select count(*) from duplex.peers where settled is not null and held is not null", "1").await?;
    let (xid_a, xid_b, offset) = (next_xid(a).await?, next_xid(b).await?, applied().await?);
    until("fifty heartbeats to be applied", PATIENCE, async || {
        let now = applied().await?;
        Ok(if now >= offset + 50 { Ok(()) } else { Err(format!("{now} after {offset}")) })
    })
    .await?;
    // Ten seconds at most: once a minute what was heard is written down, and so is what was said.
    for (node, before) in [(a, xid_a), (b, xid_b)] {
        let used = next_xid(node).await? - before;
        ensure!(used <= 4, "{used} transactions wrote something on {} meanwhile", node.name());
    }
    b.cluster().crash()?;
    b.cluster().start().await?;
    a.exec("insert into t values (2, 'second')").await?;
    b.exec("insert into t values (3, 'third')").await?;
    lab.converges(&["t"]).await?;
    for (node, transactions) in [(a, 2), (b, 1)] {
        assert_eq!(lab.transactions(node).await?, transactions);
    }
    lab.stop_relays()
}

#[tokio::test]
async fn relays_that_die_between_heartbeats_send_nothing_twice_and_break_no_promise() -> Result<()> {
    let lab = Lab::builder().nodes(2).heartbeats("100ms").start().await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(TABLE, &["t"]).await?;
    for id in 0..3 {
        a.exec(&format!("insert into t values ({id}, 'x')")).await?;
        promises_beyond(&lab, a, micros(a).await?).await?;
        a.relay().kill()?;
        b.relay().kill()?;
        // What is captured meanwhile is stamped later than what was promised.
        a.exec(&format!("insert into t values ({}, 'y')", 10 + id)).await?;
        a.relay().start()?;
        b.relay().start()?;
        lab.settled_within(Duration::from_secs(60)).await?;
    }
    promises_hold(&topic::read(lab.kafka(), a.name()).await?)?;
    lab.assert_equal("t").await?;
    assert_eq!(lab.transactions(a).await?, 6);
    lab.stop_relays()
}
