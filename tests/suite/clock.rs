//! The clock guard: a peer whose clock runs ahead is waited for, or stopped with its skew shown, and never swallows a
//! later write.

use std::time::Duration;

use anyhow::{Result, ensure};
use duplex_lab::clock::Skew;
use duplex_lab::wait::when;
use duplex_lab::{Lab, Node, PATIENCE, until};

/// The first node's clock is ahead.
async fn ahead(seconds: u64) -> Result<Lab> {
    let skew = Skew::Ahead(Duration::from_secs(seconds));
    let lab = Lab::builder().nodes(2).skewed(&[Some(skew)]).heartbeats("200ms").start().await?;
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    lab.running().await?;
    Ok(lab)
}

/// Waits until the skew of the only peer is so. It is written down once a minute, and a record that was late on its way makes
/// it smaller: then the next one counts.
async fn shows_skew(node: &Node, so: &str) -> Result<()> {
    until(&format!("a skew {so}"), 3 * PATIENCE, async || {
        let skew = node.one("select clock_skew from duplex.peers").await?;
        let is_so = node.one(&format!("select clock_skew {so} from duplex.peers")).await? == "t";
        Ok(when(is_so, skew))
    })
    .await
}

#[tokio::test]
async fn a_later_write_is_later_even_where_the_peers_clock_is_ahead() -> Result<()> {
    let lab = ahead(3).await?;
    let [a, b] = lab.pair();
    for round in 0..3 {
        a.exec(&format!("insert into t values ({round}, 'of the fast clock')")).await?;
        b.shows(&format!("select count(*) from t where id = {round}"), "1").await?;
        // Whoever has seen a row and then writes it wins.
        b.exec(&format!("update t set v = 'seen and written' where id = {round}")).await?;
        lab.converges(&["t"]).await?;
        assert_eq!(a.one(&format!("select v from t where id = {round}")).await?, "seen and written");
    }
    assert_eq!(b.one("select count(*) from duplex.conflict_history").await?, "0");
    shows_skew(b, "between '2 s' and '3 s'").await?;
    a.shows("select clock_skew < '-2.9 s' from duplex.peers", "t").await?;
    lab.stop_relays()
}

#[tokio::test]
async fn a_peer_too_far_ahead_stops_with_its_skew_shown_and_goes_on_when_the_clocks_agree() -> Result<()> {
    let lab = ahead(12).await?;
    let [a, b] = lab.pair();
    // A quiet peer's clock is known from what it says of itself. What it promises by that clock counts for no more than
    // the time is here.
    shows_skew(b, "between '11 s' and '12 s'").await?;
    b.shows("select settled is not null from duplex.peers", "t").await?;
    // At once: time makes it true by and by.
    assert_eq!(b.one("select settled <= clock_timestamp() from duplex.peers").await?, "t");
    b.stream_is(a.name(), "running").await?;
    a.exec("insert into t values (1, 'far ahead')").await?;
    let reason = b.stream_is(a.name(), "stopped").await?;
    ensure!(reason.contains("ms ahead of this one"), "{reason}");
    b.shows("select clock_skew between '5 s' and '12 s' from duplex.peers", "t").await?;
    assert_eq!(b.one("select standing_still[1] from duplex.status").await?, a.name());
    assert_eq!(b.one("select count(*) from t").await?, "0");
    // Nobody does anything: time comes to where the guard lets the rest be waited for.
    b.shows("select v from t where id = 1", "far ahead").await?;
    b.stream_is(a.name(), "running").await?;
    assert_eq!(b.one("select string_agg(resolution, ' ') from duplex.apply_errors").await?, "retried");
    lab.stop_relays()
}
