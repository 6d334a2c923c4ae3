//! Records that are missing from the middle of a stream, and records that no relay writes: the stream stands still there,
//! says where, and goes on as the message says.

use anyhow::{Context, Result, ensure};
use duplex_lab::proxy::Flow;
use duplex_lab::{Lab, Node, topic};
use duplex_protocol::record::{Header, Kind};

/// Two nodes with a table, and a row that is applied.
async fn with_a_table(lab: Lab) -> Result<Lab> {
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    lab.node(0).exec("insert into t values (0, 'before')").await?;
    lab.converges(&["t"]).await?;
    Ok(lab)
}

async fn next_offset(node: &Node, peer: &Node) -> Result<i64> {
    node.number(&format!("select next_offset from duplex.peers where name = '{}'", peer.name())).await
}

async fn resync(node: &Node, peer: &Node, offset: i64) -> Result<()> {
    node.exec(&format!("select duplex.resync_peer('{}', {offset})", peer.name())).await
}

/// Changes go both ways again, also once both relays have begun anew.
async fn goes_on(lab: &Lab) -> Result<()> {
    let [a, b] = lab.pair();
    for id in [1000, 1001] {
        a.exec(&format!("insert into t values ({id}, 'after')")).await?;
        b.exec(&format!("update t set v = 'after {id}' where id = 0")).await?;
        lab.converges(&["t"]).await?;
        b.stream_is(a.name(), "running").await?;
        lab.stop_relays()?;
        a.relay().start()?;
        b.relay().start()?;
    }
    lab.converges(&["t"]).await?;
    lab.stop_relays()
}

#[tokio::test]
async fn offsets_that_hold_nothing_are_a_gap_until_somebody_says_that_nothing_is_missing() -> Result<()> {
    let lab = with_a_table(Lab::shared(2).await?).await?;
    let [a, b] = lab.pair();
    // No heartbeat may come between; and its own relay reads back across the hole.
    a.relay().stop()?;
    let hole = topic::end(lab.kafka(), a.name()).await?;
    topic::publish_and_abort(lab.kafka(), a.name(), &[b"one".to_vec(), b"two".to_vec()]).await?;
    a.relay().start()?;
    a.exec("insert into t values (1, 'behind the hole')").await?;
    let reason = b.stream_is(a.name(), "gap").await?;
    // Where the transaction ended takes an offset too.
    let expected = format!("goes from offset {hole} to {}", hole + 3);
    ensure!(reason.contains(&expected) && reason.contains("duplex.resync_peer"), "{expected}? {reason}");
    ensure!(b.one("select count(*) from t where id = 1").await? == "0", "a jump");
    // To try again changes nothing.
    b.exec(&format!("select duplex.retry_peer('{}')", a.name())).await?;
    let reason = b.stream_is(a.name(), "gap").await?;
    ensure!(reason.contains(&expected), "{reason}");
    resync(b, a, hole + 3).await?;
    b.shows("select v from t where id = 1", "behind the hole").await?;
    goes_on(&lab).await
}

#[tokio::test]
async fn records_deleted_under_a_relay_that_reads_are_a_gap_without_its_being_started_again() -> Result<()> {
    let lab = with_a_table(Lab::builder().proxied().start().await?).await?;
    let [a, b] = lab.pair();
    b.doors().kafka.shut();
    a.exec("insert into t values (1, 'missed')").await?;
    a.published().await?;
    let end = topic::end(lab.kafka(), a.name()).await?;
    topic::delete_records(lab.kafka(), a.name(), end).await?;
    let pid = b.relay().pid().context("the relay runs")?;
    b.doors().kafka.set(Flow::Free);
    let reason = b.stream_is(a.name(), "gap").await?;
    ensure!(reason.contains("Kafka no longer holds what comes next"), "{reason}");
    ensure!(b.relay().pid() == Some(pid), "the same relay");
    a.exec("insert into t values (2, 'waits')").await?;
    a.published().await?;
    // Its missing rows are copied, as replication.
    b.exec(&format!("begin; set local duplex.origin = '{}'; insert into t values (1, 'missed'); commit", a.name()))
        .await?;
    ensure!(b.one("select count(*) from t where id = 2").await? == "0", "a jump");
    resync(b, a, end).await?;
    b.shows("select v from t where id = 2", "waits").await?;
    // No hello has come since: the transaction itself says of which take-over it is.
    ensure!(
        b.number("select generation from duplex.peers").await? > 0,
        "another topic in its place would not be noticed"
    );
    goes_on(&lab).await
}

/// The newest transaction's header of a node's stream.
async fn newest(lab: &Lab, node: &Node) -> Result<Header> {
    let mut headers = topic::read(lab.kafka(), node.name()).await?.into_iter().rev().map(|record| record.header());
    headers.find(|header| header.as_ref().is_ok_and(|header| header.kind == Kind::Transaction)).context("one")?
}

/// Transactions that wait for the other relay to be started, and then this record in the midst of them, which the node's
/// own relay finds where it reads back what was published.
async fn published_in_between(lab: &Lab, record: Vec<u8>) -> Result<i64> {
    let [a, b] = lab.pair();
    b.relay().stop()?;
    a.exec("insert into t values (1, 'in front')").await?;
    a.exec("insert into t values (2, 'in front')").await?;
    a.published().await?;
    a.relay().kill()?;
    let offset = topic::end(lab.kafka(), a.name()).await?;
    topic::publish(lab.kafka(), a.name(), &[record]).await?;
    a.relay().start()?;
    a.exec("insert into t values (3, 'behind')").await?;
    a.published().await?;
    b.relay().start()?;
    Ok(offset)
}

/// What stands in front is applied, what stands behind is not, and the stream is at the record itself.
async fn stops_at(lab: &Lab, offset: i64, why: &str) -> Result<()> {
    let [a, b] = lab.pair();
    let reason = b.stream_is(a.name(), "stopped").await?;
    ensure!(reason.contains(&format!("offset {offset}")) && reason.contains(why), "{reason}");
    ensure!(reason.contains("something else writes to the topic"), "{reason}");
    ensure!(next_offset(b, a).await? == offset, "at {} instead of {offset}", next_offset(b, a).await?);
    ensure!(
        b.one("select string_agg(id::text, ' ' order by id) from t").await? == "0 1 2",
        "something else is applied"
    );
    Ok(())
}

/// A record that no relay writes, made from the header of a transaction.
async fn broken(change: impl Fn(&mut Header), why: &str) -> Result<()> {
    let lab = with_a_table(Lab::shared(2).await?).await?;
    let [a, b] = lab.pair();
    let mut header = newest(&lab, a).await?;
    header.position.xid += 1_000_000;
    change(&mut header);
    let offset = published_in_between(&lab, header.encode_record(b"")).await?;
    stops_at(&lab, offset, why).await?;
    resync(b, a, offset + 1).await?;
    b.shows("select v from t where id = 3", "behind").await?;
    goes_on(&lab).await
}

#[tokio::test]
async fn a_record_of_another_node_stops_the_stream_where_it_is() -> Result<()> {
    broken(|header| header.node = "somebody".to_owned(), "the record is of another node").await
}

#[tokio::test]
async fn a_last_chunk_without_its_first_stops_the_stream_where_it_is() -> Result<()> {
    broken(|header| header.chunk = 1, "a transaction without its first chunk").await
}

#[tokio::test]
async fn what_is_left_out_is_the_record_at_which_the_stream_stopped_and_none_in_front() -> Result<()> {
    let lab = with_a_table(Lab::shared(2).await?).await?;
    let [a, b] = lab.pair();
    let offset = published_in_between(&lab, b"no record".to_vec()).await?;
    stops_at(&lab, offset, "cannot be read").await?;
    b.exec(&format!("select duplex.skip_transaction('{}')", a.name())).await?;
    b.shows("select v from t where id = 3", "behind").await?;
    goes_on(&lab).await
}
