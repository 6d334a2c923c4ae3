//! Kafka → the database: each peer's stream in a task and a session of its own, so that one that stands still holds
//! up no other.

pub mod apply;
pub mod batch;
pub mod consumer;
pub mod stream;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::Instrument as _;

use crate::control::Info;
use crate::node::Node;
use crate::stop::{self, Stop, Stopper};

/// How often the relay looks whether peers were added or removed, or their streams are to be held.
const LOOK_FOR_PEERS: Duration = Duration::from_secs(1);
/// How many of these looks pass before the database is to look after its records.
const LOOKS_A_MAINTENANCE: u32 = 10;

/// Keeps a task for each peer until told to stop.
pub async fn run(node: &Arc<Node>, mut stop: Stop) {
    let mut streams: BTreeMap<String, (Stopper, JoinHandle<()>)> = BTreeMap::new();
    let mut lost = false;
    // Looks to come before the database is to look after its records again: at once, since one that was just promoted
    // has to catch up and to know when it has.
    let mut looks = 1;
    while !stop.requested() {
        match stop.unless(node.control.info()).await {
            None => break,
            Some(Ok(info)) => {
                if std::mem::take(&mut lost) {
                    tracing::info!(node = info.node, "the database answers");
                }
                follow(node, &mut streams, &info).await;
                looks -= 1;
                if looks == 0 {
                    looks = maintain(node, &mut stop).await;
                }
            }
            Some(Err(err)) => {
                if !std::mem::replace(&mut lost, true) {
                    tracing::warn!(error = %err, advice = err.treatment().1, "the database does not say who its peers are");
                }
            }
        }
        stop.sleep(LOOK_FOR_PEERS).await;
    }
    for (stopper, _) in streams.values() {
        stopper.stop();
    }
    for (peer, (_, task)) in streams {
        joined(&peer, task).await;
    }
}

/// Lets the database look after its records; returns in how many looks it is to do so again.
async fn maintain(node: &Node, stop: &mut Stop) -> u32 {
    match stop.unless(node.control.maintain()).await {
        Some(Ok(true)) => return 1,
        Some(Err(err)) => {
            tracing::warn!(error = %err, advice = err.treatment().1, "the database cannot look after its records");
        }
        Some(Ok(false)) | None => {}
    }
    LOOKS_A_MAINTENANCE
}

/// Starts a stream for each new peer, and ends those of peers that are gone or held: a stream begins again where the
/// database stands, so one that is held needs nobody who waits.
async fn follow(node: &Arc<Node>, streams: &mut BTreeMap<String, (Stopper, JoinHandle<()>)>, info: &Info) {
    let wanted: Vec<&String> = info.peers.iter().filter(|peer| !info.paused.contains(peer)).collect();
    let ended: Vec<String> = streams.keys().filter(|peer| !wanted.contains(peer)).cloned().collect();
    // All are told before the first is waited for.
    for (stopper, _) in ended.iter().filter_map(|peer| streams.get(peer)) {
        stopper.stop();
    }
    for peer in ended {
        if let Some((_, task)) = streams.remove(&peer) {
            joined(&peer, task).await;
            tracing::info!(
                peer,
                "{}",
                if info.paused.contains(&peer) { "paused by an operator" } else { "peer removed" }
            );
        }
    }
    for peer in wanted {
        streams.entry(peer.clone()).or_insert_with(|| {
            let (stopper, stop) = stop::channel();
            let (node, name) = (Arc::clone(node), peer.clone());
            let task = async move { stream::run(&node, &name, stop).await };
            (stopper, tokio::spawn(task.instrument(tracing::info_span!("inbound", peer))))
        });
    }
}

async fn joined(peer: &str, task: JoinHandle<()>) {
    if let Err(err) = task.await {
        tracing::error!(peer, error = %err, "a stream's task failed");
    }
}
