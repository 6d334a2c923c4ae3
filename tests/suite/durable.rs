//! What is in a stream stays true: it is durable at its origin before it is sent, and not sent twice when the database has
//! forgotten that it was.

use std::sync::atomic::{AtomicI32, Ordering};

use anyhow::Result;
use duplex_lab::{Lab, PATIENCE, topic, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_that_a_crash_of_its_own_database_takes_back() -> Result<()> {
    let lab = Lab::builder().durable().crashes().start().await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    lab.settled().await?;
    let mut next = 0;
    for _ in 0..2 {
        let committed = AtomicI32::new(next);
        let load = async {
            let session = a.connect().await?;
            session.exec("set synchronous_commit = off").await?;
            loop {
                let id = committed.load(Ordering::Relaxed) + 1;
                if session.exec(&format!("insert into t values ({id}, 'asynchronous')")).await.is_err() {
                    return anyhow::Ok(());
                }
                committed.store(id, Ordering::Relaxed);
            }
        };
        let crash = async {
            // In full flight: what is committed now is drained, published and applied within milliseconds.
            let rows = "select count(*) from t";
            let before = b.number(rows).await?;
            until("commits to arrive", PATIENCE, async || {
                let now = b.number(rows).await?;
                Ok(if now > before + 200 { Ok(()) } else { Err(format!("{now} rows")) })
            })
            .await?;
            tokio::task::block_in_place(|| a.cluster().crash())
        };
        let (loaded, crashed) = tokio::join!(load, crash);
        loaded?;
        crashed?;
        next = committed.load(Ordering::Relaxed) + 10;
        a.cluster().start().await?;
        lab.converges(&["t"]).await?;
        // The stream's transactions are those that the database still knows of, each once.
        let sent = topic::transactions(&topic::read(lab.kafka(), a.name()).await?)?;
        assert_eq!(sent.len() as i64, a.number("select count(*) from t").await?);
        let ids: Vec<String> = sent.iter().map(|header| header.position.xid.to_string()).collect();
        let unknown = format!(
            "select count(*) from unnest('{{{}}}'::xid8[]) x where pg_xact_status(x) is distinct from 'committed'",
            ids.join(",")
        );
        assert_eq!(a.number(&unknown).await?, 0);
    }
    assert!(b.number("select count(*) from t").await? > 400);
    lab.stop_relays()
}

#[tokio::test]
async fn a_confirm_that_was_lost_makes_nothing_come_twice() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    lab.settled().await?;
    a.exec("insert into t values (0, 'confirmed')").await?;
    lab.settled().await?;
    a.exec("create table before as select * from duplex.drain_state").await?;
    for id in 1..=50 {
        // Two of them are of several chunks. All of it fits one table of the queue: what is truncated is confirmed.
        let words = if id % 25 == 0 { 50_000 } else { id };
        let value = format!("select {id}, string_agg(md5(i::text), '') from generate_series(1, {words}) i");
        a.exec(&format!("insert into t {value}")).await?;
    }
    lab.settled().await?;
    assert!(a.relay().stop()?.success());
    // What a crash takes back of a session that does not wait for its commits.
    a.exec(
        "update duplex.drain_state d set previous = b.previous, current = b.current, lsn = b.lsn, xid = b.xid, \
                topic_offset = b.topic_offset from before b",
    )
    .await?;
    assert_eq!(a.queued().await?, 50);
    a.exec("insert into t values (100, 'after')").await?;
    a.relay().start()?;
    lab.converges(&["t"]).await?;
    assert_eq!(lab.transactions(a).await?, 52);
    assert_eq!(b.number("select count(*) from t").await?, 52);
    lab.stop_relays()
}
