//! PostgreSQL fails over to a physical standby: nothing that was published is lost or doubled.

use anyhow::{Result, ensure};
use duplex_lab::{Cluster, Lab, PATIENCE, topic, until};

const TABLES: &str = "create table t (id int primary key, v text); create table big (id int primary key, v text); \
                      create table journal (id bigint generated always as identity primary key, t int)";

async fn with_standby() -> Result<(Lab, Cluster)> {
    let lab = Lab::builder().nodes(2).crashes().start().await?;
    lab.create_everywhere(TABLES, &["t", "big"]).await?;
    // Counts how often a row is applied, on either side.
    lab.exec_everywhere(
        "create function note() returns trigger language plpgsql as $$
         begin insert into public.journal (t) values (new.id); return null; end $$;
         create trigger note after insert on t for each row execute function note();
         alter table t enable replica trigger note",
    )
    .await?;
    lab.pair()[0].exec("insert into t select i, 'before' from generate_series(1, 20) i").await?;
    lab.converges(&["t"]).await?;
    let standby = lab.node(0).cluster().standby("standby").await?;
    Ok((lab, standby))
}

#[tokio::test]
async fn a_standby_that_has_everything_goes_on_where_the_primary_was() -> Result<()> {
    let (mut lab, standby) = with_standby().await?;
    let [a, b] = lab.pair();
    // Something of each kind on the way: applied from the peer, published, and still in the queue.
    b.exec("insert into t values (30, 'of the peer')").await?;
    lab.converges(&["t"]).await?;
    a.relay().stop()?;
    for id in 40..60 {
        a.exec(&format!("insert into t values ({id}, 'queued')")).await?;
    }
    standby.caught_up_with(a.cluster()).await?;
    // A relay at a standby waits until it is promoted.
    let url = standby.url("relay", a.database());
    let early = a.relay().with("DUPLEX_DATABASE", &url);
    early.start()?;
    until("the relay to find the standby read only", PATIENCE, async || {
        Ok(if early.log_text()?.contains("25006") { Ok(()) } else { Err("not a word") })
    })
    .await?;
    a.cluster().crash()?;
    standby.promote().await?;
    until("the waiting relay to publish", PATIENCE, async || {
        let queued =
            standby.connect(a.database()).await?.number("select transactions from duplex.queue_status").await?;
        Ok(if queued == 0 { Ok(()) } else { Err(format!("{queued} queued")) })
    })
    .await?;
    ensure!(early.stop()?.success(), "{}", early.log_tail(20));
    lab.fail_over(0, standby);
    let [a, b] = lab.pair();
    a.relay().start()?;
    a.exec("insert into t values (70, 'after')").await?;
    b.exec("update t set v = 'after' where id = 30").await?;
    lab.converges(&["t"]).await?;
    // 1 + 20 + 1 on a's side, 2 on b's: each once.
    assert_eq!(lab.transactions(a).await?, 22);
    assert_eq!(lab.transactions(b).await?, 2);
    ensure!(!a.relay().log_text()?.contains("lacks transactions"), "nothing was lost");
    lab.stop_relays()
}

#[tokio::test]
async fn what_an_asynchronous_standby_had_lost_comes_back_from_the_topic_once() -> Result<()> {
    let (mut lab, standby) = with_standby().await?;
    let [a, b] = lab.pair();
    standby.caught_up_with(a.cluster()).await?;
    standby.cut_off().await?;
    // Published, applied by the peer, and never received by the standby: small ones, a long one, each kind of change.
    for id in 100..110 {
        a.exec(&format!("insert into t values ({id}, 'lost')")).await?;
    }
    a.exec("update t set v = 'lost update' where id = 1; delete from t where id = 2").await?;
    a.exec("insert into big select i, repeat(md5(i::text), 8) from generate_series(1, 30000) i").await?;
    lab.converges(&["t", "big"]).await?;
    b.exec("update t set v = 'answer' where id = 100").await?;
    lab.converges(&["t"]).await?;
    let transactions = lab.transactions(a).await?;
    let lost = topic::transactions(&topic::read(lab.kafka(), a.name()).await?)?;
    a.relay().kill()?;
    a.cluster().crash()?;
    standby.promote().await?;
    assert_eq!(standby.connect(a.database()).await?.number("select count(*) from t where id >= 100").await?, 0);
    lab.fail_over(0, standby);
    let [a, b] = lab.pair();
    // Transaction ids and WAL positions are given out again, before the lost ones are back.
    for id in 200..220 {
        a.exec(&format!("insert into t values ({id}, 'new')")).await?;
    }
    a.relay().start()?;
    lab.converges(&["t", "big"]).await?;
    let published = topic::transactions(&topic::read(lab.kafka(), a.name()).await?)?;
    assert_eq!(published.len(), transactions + 20);
    let again =
        published[transactions..].iter().filter(|new| lost.iter().any(|old| old.position.xid == new.position.xid));
    ensure!(again.count() > 0, "no transaction id was used twice, so this shows less than it should");
    // Each of them was brought back once, with the version that it has everywhere.
    let versions = "select string_agg(id || ' ' || pg_xact_commit_timestamp(xmin), ', ' order by id) from t";
    assert_eq!(a.one(versions).await?, b.one(versions).await?);
    let counts = "select count(*) || ' ' || count(distinct t) from journal where t between 101 and 109";
    assert_eq!(a.one(counts).await?, "9 9");
    ensure!(a.relay().log_text()?.contains("lacks transactions of its own"), "{}", a.relay().log_tail(30));
    // A restart finds the same end of the topic, and does nothing again.
    a.relay().kill()?;
    a.relay().start()?;
    a.exec("update t set v = 'changed here' where id = 101").await?;
    lab.converges(&["t", "big"]).await?;
    assert_eq!(a.one(counts).await?, "9 9");
    assert_eq!(lab.transactions(a).await?, transactions + 21);
    lab.stop_relays()
}
