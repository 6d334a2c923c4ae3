//! PostgreSQL fails over to a physical standby: nothing that was published is lost or doubled.

use anyhow::{Result, ensure};
use duplex_lab::{Cluster, Lab, Node, PATIENCE, topic, until};

use super::relay_command::run;

const TABLES: &str = "create table t (id int primary key, v text); create table big (id int primary key, v text); \
                      create table journal (id bigint generated always as identity primary key, t int)";

async fn with_standby() -> Result<(Lab, Cluster)> {
    // What relays commit without waiting for its WAL is visible long before a standby can have it.
    let lab = Lab::builder().nodes(2).crashes().setting("wal_writer_delay", "10s").start().await?;
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
    b.exec("insert into t values (30, 'of the peer')").await?;
    lab.converges(&["t"]).await?;
    standby.caught_up_with(a.cluster()).await?;
    standby.cut_off().await?;
    let progress = format!("select duplex.next_offset('{}') || to_jsonb(s)::text from duplex.drain_state s", b.name());
    let received = standby.connect(a.database()).await?.one(&progress).await?;
    ensure!(!received.starts_with('0'), "nothing of b is applied at the standby, so this shows less than it should");
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
    let promoted = standby.connect(a.database()).await?;
    assert_eq!(promoted.number("select count(*) from t where id >= 100").await?, 0);
    assert_eq!(promoted.one(&progress).await?, received, "progress of apply and of the drain outlive the promotion");
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

/// Waits until bringing back what was lost stands still at this transaction's change, and returns the reason.
async fn stands_still_at(node: &Node, key: i64) -> Result<String> {
    let sql = format!(
        "select s.replay_stopped, s.standing_still[1] = s.node, e.key ->> 'id' from duplex.status s \
           left join duplex.apply_errors e on e.peer = s.node and e.resolution is null and e.key ->> 'id' = '{key}'"
    );
    until("bringing back to stand still", PATIENCE, async || {
        let row = node.rows(&sql).await?.remove(0);
        let is_there = row[1].as_deref() == Some("t") && row[2] == Some(key.to_string());
        Ok(if is_there { Ok(row[0].clone().unwrap_or_default()) } else { Err(format!("{row:?}")) })
    })
    .await
}

#[tokio::test]
async fn what_cannot_be_brought_back_stands_still_until_a_person_has_acted() -> Result<()> {
    let (mut lab, standby) = with_standby().await?;
    let a = lab.node(0);
    lab.exec_everywhere("alter table t add constraint no_secrets check (v <> 's3cret')").await?;
    standby.caught_up_with(a.cluster()).await?;
    standby.cut_off().await?;
    // The standby never hears of these changes of the schema, and so cannot take the rows that came after them.
    lab.exec_everywhere("alter table t add column w int; alter table t drop constraint no_secrets").await?;
    a.exec("insert into t values (100, 'of a column that is lost', 1)").await?;
    a.exec("insert into t values (101, 's3cret', 1), (102, 'in the same transaction', 1)").await?;
    a.exec(
        "insert into t select 103, 's3cret', 1 union all \
         select i, repeat(md5(i::text), 8), 1 from generate_series(1000, 15000) i",
    )
    .await?;
    a.exec("insert into t values (105, 'the last one', 1)").await?;
    lab.converges(&["t"]).await?;
    a.relay().kill()?;
    a.cluster().crash()?;
    standby.promote().await?;
    lab.fail_over(0, standby);
    let [a, b] = lab.pair();
    a.exec("insert into t values (200, 'new')").await?;
    b.exec("insert into big values (300, 'of the peer')").await?;
    a.relay().start()?;

    let reason = stands_still_at(a, 100).await?;
    ensure!(reason.contains("\"w\"") && reason.contains("duplex.retry_peer"), "{reason}");
    // Nothing overtakes what is missing; the peer's stream goes on; the log names the change.
    assert_eq!(b.one("select count(*) from t where id = 200").await?, "0");
    a.shows("select count(*) from big where id = 300", "1").await?;
    ensure!(a.relay().log_text()?.contains("insert of public.t"), "{}", a.relay().log_tail(20));
    let ran = run(&["check", "--database", &a.relay_url(), "--kafka", lab.kafka().bootstrap()]).await?;
    ensure!(ran.out.contains("own stream of") && ran.out.contains("duplex.retry_peer"), "{}", ran.out);
    // A restart changes nothing of that.
    a.relay().kill()?;
    a.relay().start()?;
    stands_still_at(a, 100).await?;
    let name = a.name().to_owned();
    a.exec(&format!("alter table t add column w int; select duplex.retry_peer('{name}')")).await?;

    let reason = stands_still_at(a, 101).await?;
    ensure!(reason.contains("no_secrets"), "{reason}");
    a.exec(&format!("select duplex.skip_change('{name}')")).await?;
    stands_still_at(a, 103).await?;
    assert_eq!(
        a.one("select string_agg(id::text, ' ' order by id) from t where id between 100 and 199").await?,
        "100 102"
    );
    a.exec(&format!("select duplex.skip_transaction('{name}')")).await?;

    b.shows("select v from t where id = 200", "new").await?;
    assert_eq!(
        a.one("select string_agg(id::text, ' ' order by id) from t where id between 100 and 199").await?,
        "100 102 105"
    );
    let decided = "select string_agg(resolution || ' by ' || resolved_by, ', ' order by id) from duplex.apply_errors";
    assert_eq!(
        a.one(decided).await?,
        "retried by postgres, change skipped by postgres, transaction skipped by postgres"
    );
    assert_eq!(a.one("select replay_stopped is null and standing_still = '{}' from duplex.status").await?, "t");
    // What was left out stays out, also of the next relay's look at the topic.
    a.relay().kill()?;
    a.relay().start()?;
    a.exec("insert into t values (201, 'after')").await?;
    b.shows("select v from t where id = 201", "after").await?;
    assert_eq!(a.one("select count(*) from t where id in (101, 103) or id >= 1000").await?, "0");
    assert_eq!(lab.transactions(a).await?, 1 + 4 + 2);
    for call in ["retry_peer", "skip_change", "skip_transaction"] {
        a.connect().await?.refuses("55000", &format!("select duplex.{call}('{name}')")).await?;
    }
    a.connect().await?.refuses("22023", &format!("select duplex.resync_peer('{name}', 0)")).await?;
    // Offsets of this topic say nothing about another Kafka's.
    ensure!(a.number(&format!("select duplex.next_offset('{name}')")).await? > 0);
    a.exec("select duplex.change_kafka()").await?;
    assert_eq!(a.number(&format!("select duplex.next_offset('{name}')")).await?, 0);
    lab.stop_relays()
}
