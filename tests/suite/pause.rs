//! A stream that an operator holds: nothing more of it is applied on that node, whatever is restarted, and others go on.

use anyhow::{Result, ensure};
use duplex_lab::session::literal;
use duplex_lab::wait::when;
use duplex_lab::{Lab, Node, PATIENCE, until};

use super::relay_command::run;

const TABLE: &str = "create table t (id int primary key, v text)";

/// Waits until the stream of `peer` waits on `node` for another one to come far enough.
async fn waits(node: &Node, peer: &str) -> Result<()> {
    until("a stream to wait for another", PATIENCE, async || {
        let sessions = node.applying(peer).await?;
        Ok(when(sessions == ["Extension"], format!("{sessions:?}")))
    })
    .await
}

async fn ids(node: &Node) -> Result<String> {
    node.one("select coalesce(string_agg(id::text, ',' order by id), '') from t").await
}

#[tokio::test]
async fn a_paused_stream_is_held_through_restarts_and_others_go_on() -> Result<()> {
    let lab = Lab::builder().nodes(3).own_clusters().start().await?;
    let (a, b, c) = (lab.node(0), lab.node(1), lab.node(2));
    lab.create_everywhere(TABLE, &["t"]).await?;
    a.exec("insert into t values (1, 'before')").await?;
    lab.converges(&["t"]).await?;
    b.hold(a.name(), false).await?;
    a.exec("insert into t values (2, 'held')").await?;
    c.shows("select v from t where id = 2", "held").await?;
    // Made after what is held, and applied all the same.
    c.exec("insert into t values (3, 'goes on')").await?;
    b.shows("select v from t where id = 3", "goes on").await?;
    a.shows("select v from t where id = 3", "goes on").await?;
    assert_eq!(ids(b).await?, "1,3");

    b.relay().kill()?;
    b.cluster().stop()?;
    b.cluster().start().await?;
    b.relay().start()?;
    c.exec("insert into t values (4, 'goes on')").await?;
    b.shows("select v from t where id = 4", "goes on").await?;
    assert_eq!((ids(b).await?.as_str(), b.applying(a.name()).await?), ("1,3,4", vec![]));
    let reason = b.stream_is(a.name(), "paused").await?;
    ensure!(reason.contains("held by postgres since") && reason.contains("duplex.resume_peer"), "{reason}");
    let found = run(&["check", "--database", &b.relay_url(), "--kafka", lab.kafka().bootstrap()]).await?;
    let line = format!("peer {}: paused", a.name());
    ensure!(
        found.code == Some(0) && found.out.lines().any(|l| l.starts_with("note") && l.contains(&line)),
        "{}",
        found.out
    );

    b.resume(a.name()).await?;
    lab.converges(&["t"]).await?;
    b.stream_is(a.name(), "running").await?;
    assert_eq!(ids(b).await?, "1,2,3,4");
    lab.stop_relays()
}

#[tokio::test]
async fn others_wait_for_a_paused_stream_if_the_operator_says_so() -> Result<()> {
    let lab = Lab::shared(3).await?;
    let (a, b, c) = (lab.node(0), lab.node(1), lab.node(2));
    lab.create_everywhere(TABLE, &["t"]).await?;
    lab.running().await?;
    b.hold(a.name(), true).await?;
    a.exec("insert into t values (1, 'question')").await?;
    c.shows("select v from t where id = 1", "question").await?;
    c.exec("insert into t values (2, 'answer')").await?;
    waits(b, c.name()).await?;
    assert_eq!(ids(b).await?, "");
    // One that waits is held like any other, and again in its turn.
    b.hold(c.name(), false).await?;
    b.resume(c.name()).await?;
    waits(b, c.name()).await?;
    assert_eq!(ids(b).await?, "");
    // The operator changes their mind.
    b.pause(a.name(), false).await?;
    b.shows("select v from t where id = 2", "answer").await?;
    assert_eq!(ids(b).await?, "2");
    b.resume(a.name()).await?;
    lab.converges(&["t"]).await?;
    assert_eq!(ids(b).await?, "1,2");
    lab.stop_relays()
}

#[tokio::test]
async fn a_long_transaction_that_is_being_applied_is_held_whole() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(TABLE, &["t"]).await?;
    lab.running().await?;
    // Its last row waits for this one, which somebody here has made and not committed.
    let here = b.connect().await?;
    here.exec("begin; insert into t values (0, 'here')").await?;
    a.exec("insert into t select i, repeat(md5(i::text), 30) from generate_series(20000, 0, -1) i").await?;
    until("the long transaction to be at its last row", PATIENCE, async || {
        let sessions = b.applying(a.name()).await?;
        Ok(when(sessions == ["transactionid"], format!("{sessions:?}")))
    })
    .await?;
    b.pause(a.name(), false).await?;
    here.exec("rollback").await?;
    b.lets_go_of(a.name()).await?;
    let rows = b.number("select count(*) from t").await?;
    ensure!(rows == 0 || rows == 20_001, "{rows} rows of a transaction");
    b.resume(a.name()).await?;
    lab.converges(&["t"]).await?;
    assert_eq!(b.number("select count(*) from t").await?, 20_001);
    lab.stop_relays()
}

#[tokio::test]
async fn a_stream_that_has_stopped_is_shown_as_that_though_it_is_held() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(TABLE, &["t"]).await?;
    b.exec("alter table t add constraint small check (id < 100)").await?;
    a.exec("insert into t values (100, 'too large')").await?;
    b.stream_is(a.name(), "stopped").await?;
    b.hold(a.name(), false).await?;
    let state =
        format!("select concat_ws(' ', state, paused_at is not null) from duplex.peers where name = '{}'", a.name());
    assert_eq!(b.one(&state).await?, "stopped t");
    b.exec(&format!("alter table t drop constraint small; select duplex.retry_peer('{}')", a.name())).await?;
    assert_eq!(b.one(&state).await?, "paused t");
    assert_eq!(b.number("select count(*) from t").await?, 0);
    b.resume(a.name()).await?;
    lab.converges(&["t"]).await?;
    assert_eq!(b.one(&state).await?, "running f");
    lab.stop_relays()
}

#[tokio::test]
async fn what_cannot_be_held_is_refused() -> Result<()> {
    let lab = Lab::builder().nodes(2).without_relays().start().await?;
    let [a, b] = lab.pair();
    let session = a.connect().await?;
    let peer = literal(b.name());
    session.refuses("42704", "select duplex.pause_peer('nobody')").await?;
    session.refuses("42704", "select duplex.resume_peer('nobody')").await?;
    session.refuses("55000", &format!("select duplex.resume_peer({peer})")).await?;
    session.refuses("22004", &format!("select duplex.pause_peer({peer}, null)")).await?;
    a.pause(b.name(), true).await?;
    let since = "select paused_at from duplex.peers";
    let first = session.one(since).await?;
    a.pause(b.name(), false).await?;
    assert_eq!(session.one(since).await?, first, "held since the first call");
    a.resume(b.name()).await?;
    session.refuses("55000", &format!("select duplex.resume_peer({peer})")).await?;
    Ok(())
}
