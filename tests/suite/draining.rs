//! What is in the queue comes out of it: whole, once, in an order that respects every dependency, whoever is slow, whatever
//! is done to the queue's tables.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use duplex_lab::drain::Drained;
use duplex_lab::{Drain, Lab, Node, PATIENCE, until};

const TABLE: &str = "create table t (id int primary key, v text)";

/// Some 400 kB of queue that do not compress.
fn noise(id: i32) -> String {
    format!(
        "insert into t select {id}, string_agg(encode(sha512((random() || '-' || i)::bytea), 'base64'), '') \
         from generate_series(1, 4500) i"
    )
}

/// One node with these tables, whose queue only the test drains.
pub(super) async fn alone(sql: &str, tables: &[&str]) -> Result<Lab> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    lab.create_everywhere(sql, tables).await?;
    Ok(lab)
}

/// The ids of rows that these transactions insert.
fn ids(transactions: &[Drained]) -> Vec<i32> {
    let changes = transactions.iter().flat_map(|transaction| &transaction.changes);
    let id = |change: &String| change.strip_prefix("insert {\"id\":")?.split([',', '}']).next()?.parse().ok();
    changes.filter_map(id).collect()
}

/// Short transactions, one after the other: each inserts a row, and counts up a row that all sessions count up.
async fn short(node: &Node, first: i32, count: i32, committed: &AtomicUsize) -> Result<()> {
    let session = node.connect().await?;
    for id in first..first + count {
        let key = id % 5;
        session
            .exec(&format!(
                "begin; insert into t values ({id}, 'short'); update c set n = n + 1 where id = {key}; commit"
            ))
            .await?;
        committed.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Transactions that stay open while so many short ones commit.
async fn long(node: &Node, first: i32, count: i32, committed: &AtomicUsize) -> Result<()> {
    let session = node.connect().await?;
    for id in first..first + count {
        let target = (committed.load(Ordering::Relaxed) + 150).min(2800);
        session.exec(&format!("begin; insert into t values ({id}, 'long')")).await?;
        until("short transactions to commit", PATIENCE, async || {
            let now = committed.load(Ordering::Relaxed);
            Ok(if now >= target { Ok(()) } else { Err(format!("{now} of {target}")) })
        })
        .await?;
        session.exec("commit").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_transactions_beside_thousands_of_short_ones_lose_nothing() -> Result<()> {
    let sql = "create table t (id int primary key, v text); create table c (id int primary key, n int);
               insert into c select i, 0 from generate_series(0, 4) i";
    let lab = alone(sql, &["t", "c"]).await?;
    let node = lab.node(0);
    let mut drain = Drain::open(node).await?;
    let (committed, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let load = async {
        let loaded = tokio::try_join!(
            short(node, 1_000, 700, &committed),
            short(node, 2_000, 700, &committed),
            short(node, 3_000, 700, &committed),
            short(node, 4_000, 700, &committed),
            long(node, 10_000, 12, &committed),
            long(node, 20_000, 12, &committed),
            long(node, 30_000, 12, &committed),
        );
        done.store(true, Ordering::Relaxed);
        loaded
    };
    let draining = async {
        let mut sent = Vec::new();
        while !done.load(Ordering::Relaxed) {
            sent.extend(drain.rest().await?);
        }
        sent.extend(drain.rest().await?);
        anyhow::Ok(sent)
    };
    let (loaded, sent) = tokio::join!(load, draining);
    loaded?;
    let sent = sent?;
    let expected = node.number("select count(*) from t").await?;
    ensure!(expected == 4 * 700 + 36, "all transactions committed");
    let mut once = ids(&sent);
    once.sort_unstable();
    once.dedup();
    assert_eq!((once.len() as i64, sent.len() as i64), (expected, expected), "each transaction comes, once");
    // Each session waited for the last one's lock on the counter: its transaction comes later.
    let mut counters: BTreeMap<String, i64> = BTreeMap::new();
    for transaction in &sent {
        for change in transaction.changes.iter().filter(|change| change.starts_with("update")) {
            let (key, n) = change.split_once(",\"n\":").context("a counter")?;
            let n = n.trim_end_matches('}').parse()?;
            let last = counters.insert(key.to_owned(), n).unwrap_or_default();
            assert_eq!(n, last + 1, "transactions out of order at {change}");
        }
    }
    assert_eq!(counters.values().sum::<i64>(), 2800);
    Ok(())
}

/// Writers append at the heap's level, where PostgreSQL wants a snapshot of whoever may need a TOAST table.
#[tokio::test]
async fn the_queues_tables_have_no_toast_table() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let toasts = "select count(*) || ' of ' || count(*) filter (where reltoastrelid = 0) from pg_class \
                  where relnamespace = 'duplex'::regnamespace and relname ~ '^queue_[0-9]$'";
    assert_eq!(lab.node(0).one(toasts).await?, "3 of 3");
    Ok(())
}

#[tokio::test]
async fn what_was_not_confirmed_comes_again_and_what_was_does_not() -> Result<()> {
    let lab = alone(TABLE, &["t"]).await?;
    let node = lab.node(0);
    let mut drain = Drain::open(node).await?;
    let writer = node.connect().await?;
    for id in 1..=9 {
        writer.exec(&format!("insert into t values ({id}, 'v')")).await?;
    }
    // A byte is room for one transaction.
    let first = drain.take(1).await?;
    let second = drain.take(1).await?;
    assert_eq!((ids(&first), ids(&second)), (vec![1], vec![2]));
    drain.confirm(&first[0].header).await?;
    let error = node.connect_as("relay").await?.refuses("55P03", "select duplex.drain_open()").await?;
    assert!(error.message().contains("already drained"), "{}", error.message());
    drop(drain);
    let mut drain = until("the stream to be free", PATIENCE, async || {
        Ok(Drain::open(node).await.map_err(|err| format!("{err:#}")))
    })
    .await?;
    writer.exec("insert into t values (10, 'v')").await?;
    assert_eq!(ids(&drain.rest().await?), (2..=10).collect::<Vec<_>>());
    assert_eq!(node.queued().await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_session_that_was_quiet_while_the_queue_went_on_is_heard() -> Result<()> {
    let lab = alone(TABLE, &["t"]).await?;
    let node = lab.node(0);
    let mut drain = Drain::open(node).await?;
    let [quiet, writer] = [node.connect().await?, node.connect().await?];
    // It remembers the first page of the queue, which has room for more of its rows.
    quiet.exec("insert into t values (1, 'first')").await?;
    let mut sent = ids(&drain.rest().await?);
    // Another session fills pages, and the drain leaves them behind.
    for id in 100..200 {
        writer.exec(&format!("insert into t values ({id}, repeat('x', 900))")).await?;
        sent.extend(ids(&drain.rest().await?));
    }
    assert!(node.number("select pg_relation_size('duplex.queue_0') / 8192").await? > 12);
    quiet.exec("insert into t values (2, 'second')").await?;
    sent.extend(ids(&drain.rest().await?));
    assert_eq!(sent, [1].into_iter().chain(100..200).chain([2]).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn a_vacuum_that_cuts_off_pages_of_the_queue_loses_nothing() -> Result<()> {
    let lab = alone(TABLE, &["t"]).await?;
    let node = lab.node(0);
    let mut drain = Drain::open(node).await?;
    let writer = node.connect().await?;
    writer.exec("insert into t values (1, 'first')").await?;
    assert_eq!(ids(&drain.rest().await?), [1]);
    // Pages of a transaction that comes to nothing, behind which the drain has looked.
    let name = node.name();
    writer.exec(&format!("begin; {}; prepare transaction '{name}'", noise(2))).await?;
    for _ in 0..4 {
        drain.rest().await?;
    }
    writer.exec(&format!("rollback prepared '{name}'")).await?;
    for _ in 0..2 {
        drain.rest().await?;
    }
    let pages = "select pg_relation_size('duplex.queue_0') / 8192";
    // By itself VACUUM leaves the pages of these tables where they are; an operator may say otherwise.
    writer.exec("vacuum duplex.queue_0").await?;
    assert!(node.number(pages).await? > 40);
    until("VACUUM to cut pages off", PATIENCE, async || {
        writer.exec("vacuum (truncate true) duplex.queue_0").await?;
        let pages = node.number(pages).await?;
        Ok(if pages < 5 { Ok(()) } else { Err(format!("{pages} pages")) })
    })
    .await?;
    for id in 11..20 {
        writer.exec(&format!("insert into t values ({id}, 'v')")).await?;
    }
    assert_eq!(ids(&drain.rest().await?), (11..20).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn a_queue_table_that_is_written_anew_in_the_middle_of_a_backlog_mixes_nothing_up() -> Result<()> {
    let lab = alone(TABLE, &["t"]).await?;
    let node = lab.node(0);
    let mut drain = Drain::open(node).await?;
    let writer = node.connect().await?;
    // Rows that VACUUM FULL leaves out, so that all behind them move.
    let name = node.name();
    writer
        .each(&[
            &format!("begin; insert into t values (1, 'lost'); prepare transaction '{name}'"),
            &format!("rollback prepared '{name}'"),
        ])
        .await?;
    for id in 2..60 {
        writer.exec(&format!("insert into t values ({id}, 'row {id}')")).await?;
    }
    let mut sent = drain.take(1).await?;
    writer.exec("vacuum full duplex.queue_0").await?;
    sent.extend(drain.rest().await?);
    assert_eq!(ids(&sent), (2..60).collect::<Vec<_>>());
    for transaction in &sent {
        let id = ids(std::slice::from_ref(transaction))[0];
        assert_eq!(transaction.changes, [format!("insert {{\"id\":{id},\"v\":\"row {id}\"}}")]);
    }
    Ok(())
}

#[tokio::test]
async fn the_queue_turns_over_under_load_whoever_holds_a_transaction_open() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().setting("duplex.queue_segment_size", "1MB").start().await?;
    lab.create_everywhere(TABLE, &["t"]).await?;
    let node = lab.node(0);
    let mut drain = Drain::open(node).await?;
    let [idle, writer] = [node.connect().await?, node.connect().await?];
    // One that has written and not ended, and one that holds its lock on the first table of the queue.
    idle.exec("begin; insert into t values (1, 'idle')").await?;
    writer.exec("begin; insert into t values (2, 'prepared'); prepare transaction 'forgotten'").await?;
    let mut sent = Vec::new();
    let mut files = std::collections::HashSet::new();
    for id in 100..140 {
        writer.exec(&noise(id)).await?;
        sent.extend(ids(&drain.rest().await?));
        let size = node.number("select disk_bytes from duplex.queue_status").await?;
        assert!(size < 6 << 20, "the queue has grown to {size} bytes: it does not turn over");
        files.insert(
            node.one(
                "select array_agg(pg_relation_filenode(c.oid) order by relname) from pg_class c \
                               where relname in ('queue_0', 'queue_1', 'queue_2')",
            )
            .await?,
        );
    }
    assert_eq!(sent, (100..140).collect::<Vec<_>>());
    assert!(files.len() > 5, "tables were truncated {} times", files.len());
    idle.exec("commit").await?;
    writer.exec("commit prepared 'forgotten'").await?;
    let mut late = ids(&drain.rest().await?);
    late.sort_unstable();
    assert_eq!(late, [1, 2]);
    Ok(())
}
