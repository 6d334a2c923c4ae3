//! After quiet: is everything where it belongs, once?

use std::collections::{BTreeMap, BTreeSet};

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
        kept(&entries, known).with_context(|| format!("the books of {}", node.name()))?;
        let records = topic::read(lab.kafka(), node.name()).await?;
        streams.push(published(&records, &entries).with_context(|| format!("the stream of {}", node.name()))?);
        quiet(node).await?;
    }
    Ok(streams)
}

/// What was acknowledged is in the node's own books, with the very same transaction id. `entries` are sorted.
///
/// # Errors
/// If it is not so.
pub fn kept(entries: &[Entry], known: &[Known]) -> Result<()> {
    for session in known {
        let lost = session.acknowledged.iter().find(|entry| entries.binary_search(entry).is_err());
        ensure!(lost.is_none(), "acknowledged, and it is not there: {lost:?}");
    }
    Ok(())
}

/// Each committed transaction is in the stream once, nothing else is, and each session's are in their order.
///
/// # Errors
/// If it is not so; the message says which of these rules is broken.
pub fn published(records: &[Stored], entries: &[Entry]) -> Result<Stream> {
    let transactions = topic::transactions(records)?;
    let xids: Vec<u64> = transactions.iter().map(|header| header.position.xid).collect();
    once_each(&xids, entries)?;
    in_order(&xids, entries)?;
    let hellos = records
        .iter()
        .filter(|record| record.header().is_ok_and(|header| header.kind == duplex_protocol::record::Kind::Hello));
    Ok(Stream { transactions: transactions.len(), records: records.len(), hellos: hellos.count() })
}

fn once_each(published: &[u64], entries: &[Entry]) -> Result<()> {
    let mut times: BTreeMap<u64, usize> = BTreeMap::new();
    for &xid in published {
        *times.entry(xid).or_default() += 1;
    }
    let doubled: Vec<_> = times.iter().filter(|(_, times)| **times > 1).take(10).collect();
    ensure!(doubled.is_empty(), "published more than once (transaction, how often): {doubled:?}");
    let missing: Vec<_> = entries.iter().filter(|entry| !times.contains_key(&entry.xid)).take(10).collect();
    ensure!(missing.is_empty(), "committed and not published: {missing:?}");
    let committed: BTreeSet<u64> = entries.iter().map(|entry| entry.xid).collect();
    let unknown: Vec<_> = times.keys().filter(|xid| !committed.contains(xid)).take(10).collect();
    ensure!(unknown.is_empty(), "published, and its node never had it: {unknown:?}");
    Ok(())
}

fn in_order(published: &[u64], entries: &[Entry]) -> Result<()> {
    let committed: BTreeMap<u64, Entry> = entries.iter().map(|entry| (entry.xid, *entry)).collect();
    let mut latest: BTreeMap<u32, Entry> = BTreeMap::new();
    for entry in published.iter().filter_map(|xid| committed.get(xid)) {
        if let Some(before) = latest.insert(entry.session, *entry) {
            ensure!(before.seq < entry.seq, "out of order: {entry:?} comes after {before:?}");
        }
    }
    Ok(())
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
