//! A drain that has nothing to do rests, and is awake at once when something is committed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use duplex_lab::wait::when;
use duplex_lab::{Drain, Lab, Node, PATIENCE, Session, until};

/// So long without a transaction, and a drain rests.
const QUIET: Duration = Duration::from_millis(60);

/// How long it takes until a drain that rests hands out what `commit` commits.
async fn noticed(node: &Node, drain: &mut Drain, writer: &Session, commit: &str) -> Result<Duration> {
    while let Some(newest) = drain.take_within(QUIET, 1 << 20).await?.last() {
        drain.confirm(&newest.header).await?;
    }
    let pid = drain.pid().await?;
    let committing = async {
        until("the drain to wait for something", PATIENCE, async || {
            let sql = format!("select coalesce(wait_event, 'nothing') from pg_stat_activity where pid = {pid}");
            let waits_for = writer.one(&sql).await?;
            Ok(when(waits_for == "Extension", format!("it waits for {waits_for}")))
        })
        .await?;
        writer.exec(commit).await?;
        anyhow::Ok(Instant::now())
    };
    let (taken, committed) = tokio::join!(
        async { drain.take_within(PATIENCE, 1 << 20).await.map(|taken| (taken, Instant::now())) },
        committing
    );
    let (taken, at) = taken?;
    let newest = taken.last().with_context(|| format!("{}: nothing came", node.name()))?;
    drain.confirm(&newest.header).await?;
    Ok(at.saturating_duration_since(committed?))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// One node, on a server of its own: databases that share a server may take the bell from each other.
async fn quiet() -> Result<Lab> {
    // A heartbeat would end a wait, too.
    let lab = Lab::builder()
        .nodes(1)
        .own_clusters()
        .without_relays()
        .setting("duplex.heartbeat_interval", "1h")
        .start()
        .await?;
    lab.create_everywhere("create table t (id int primary key)", &["t"]).await?;
    Ok(lab)
}

/// COMMIT PREPARED runs in a session that has captured nothing, so it is the drain that finds it, sooner or later: that is what
/// an ordinary commit is measured against.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_commits_while_the_drain_rests_wakes_it() -> Result<()> {
    let lab = quiet().await?;
    let node = lab.node(0);
    let mut drain = Drain::open(node).await?;
    let writer = node.connect().await?;
    let (mut rung, mut found) = (Vec::new(), Vec::new());
    for id in 0..21 {
        rung.push(noticed(node, &mut drain, &writer, &format!("insert into t values ({id})")).await?);
        let name = format!("{}-{id}", node.name());
        writer.exec(&format!("begin; insert into t values (1000 + {id}); prepare transaction '{name}'")).await?;
        found.push(noticed(node, &mut drain, &writer, &format!("commit prepared '{name}'")).await?);
    }
    let (rung, found) = (median(rung), median(found));
    assert!(rung * 2 < found, "after a commit {rung:?}, after COMMIT PREPARED {found:?}");
    Ok(())
}

/// How often a process has gone to sleep by now.
fn naps(pid: i64) -> Result<i64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    Ok(line.context("a count of context switches")?.trim().parse()?)
}

/// The processor time of a drain at rest is a matter of how often it is awake.
#[tokio::test]
async fn a_drain_at_rest_is_hardly_ever_awake() -> Result<()> {
    let lab = quiet().await?;
    let node = lab.node(0);
    let mut drain = Drain::open(node).await?;
    node.exec("insert into t values (1)").await?;
    let taken = drain.rest().await?;
    assert_eq!(taken.len(), 1);
    let pid = drain.pid().await?;
    assert!(drain.take_within(QUIET, 1 << 20).await?.is_empty());
    let (before, since) = (naps(pid)?, Instant::now());
    assert!(drain.take_within(Duration::from_secs(3), 1 << 20).await?.is_empty());
    let each_second = (naps(pid)? - before) as f64 / since.elapsed().as_secs_f64();
    assert!(each_second > 1.0 && each_second < 100.0, "the drain was awake {each_second:.0} times a second");
    Ok(())
}
