//! After quiet: is everything where it belongs, once?

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::ledger::{self, Entry, TABLES};
use super::load::Known;
use crate::topic::{self, Stored};
use crate::wait::when;
use crate::{Lab, Node, PATIENCE, until};

/// What a stream holds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stream {
    /// Transactions that count.
    pub transactions: usize,
    /// All records, those included that are void.
    pub records: usize,
    /// Take-overs.
    pub hellos: usize,
}

/// Checks databases, streams and books against each other. `known` is what applications know, node by node.
///
/// # Errors
/// If anything is lost, doubled, torn, out of order, parked or stopped.
pub async fn pass(lab: &Lab, known: &[Vec<Known>]) -> Result<Vec<Stream>> {
    for table in TABLES {
        lab.assert_equal(table).await?;
    }
    ledger::audit(lab.nodes()).await?;
    let mut streams = Vec::new();
    for (node, known) in lab.nodes().iter().zip(known) {
        let entries = ledger::entries(node).await?;
        kept(node, &entries, known)?;
        let records = topic::read(lab.kafka(), node.name()).await?;
        streams.push(published(&records, &entries).with_context(|| format!("the stream of {}", node.name()))?);
        quiet(node).await?;
    }
    Ok(streams)
}

/// What was acknowledged is in the node's own books, with the very same transaction id.
fn kept(node: &Node, entries: &[Entry], known: &[Known]) -> Result<()> {
    for session in known {
        let lost = session.acknowledged.iter().find(|entry| entries.binary_search(entry).is_err());
        ensure!(lost.is_none(), "{} acknowledged {lost:?} and does not have it", node.name());
    }
    Ok(())
}

/// Each committed transaction is in the stream once, nothing else is, and each session's are in their order.
///
/// # Errors
/// If it is not so.
pub fn published(records: &[Stored], entries: &[Entry]) -> Result<Stream> {
    let transactions = topic::transactions(records)?;
    let committed: BTreeMap<u64, Entry> = entries.iter().map(|entry| (entry.xid, *entry)).collect();
    let mut times: BTreeMap<u64, usize> = BTreeMap::new();
    let mut latest: BTreeMap<u32, Entry> = BTreeMap::new();
    for header in &transactions {
        let xid = header.position.xid;
        *times.entry(xid).or_default() += 1;
        let entry = committed.get(&xid);
        let entry = entry.with_context(|| format!("transaction {xid} is there, and its node never had it"))?;
        if let Some(before) = latest.insert(entry.session, *entry) {
            ensure!(before.seq < entry.seq, "{entry:?} comes after {before:?}");
        }
    }
    let doubled: Vec<_> = times.iter().filter(|(_, times)| **times > 1).take(10).collect();
    ensure!(doubled.is_empty(), "(transaction, how often): {doubled:?}");
    let missing: Vec<_> = entries.iter().filter(|entry| !times.contains_key(&entry.xid)).take(10).collect();
    ensure!(missing.is_empty(), "missing: {missing:?}");
    let hellos = records
        .iter()
        .filter(|record| record.header().is_ok_and(|header| header.kind == duplex_protocol::record::Kind::Hello));
    Ok(Stream { transactions: transactions.len(), records: records.len(), hellos: hellos.count() })
}

/// Nothing waits, nothing is parked, nothing has stopped.
async fn quiet(node: &Node) -> Result<()> {
    let sql = "select name, state, coalesce(reason, '') from duplex.peers where state <> 'running'";
    until(&format!("the streams on {} to run", node.name()), PATIENCE, async || {
        let peers = node.rows(sql).await?;
        Ok(when(peers.is_empty(), format!("{peers:?}")))
    })
    .await?;
    let errors = node.rows("select peer, topic_offset, sqlstate, message from duplex.apply_errors").await?;
    ensure!(errors.is_empty(), "errors on {}: {errors:?}", node.name());
    let queued = node.queued().await?;
    ensure!(queued == 0, "{queued} transactions are left in the queue of {}", node.name());
    // Killed on purpose is signal 9 alone.
    let crashes: Vec<String> = node.cluster().crashes().into_iter().filter(|line| !line.contains("signal 9")).collect();
    ensure!(crashes.is_empty(), "the server of {} crashed by itself:\n{}", node.name(), crashes.join("\n"));
    Ok(())
}
