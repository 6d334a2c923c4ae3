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

use crate::node::Node;
use crate::stop::{self, Stop, Stopper};

/// How often the relay looks whether peers were added or removed.
const LOOK_FOR_PEERS: Duration = Duration::from_secs(1);
/// How many of these looks pass before the database is to look after its records.
const LOOKS_A_MAINTENANCE: u32 = 10;

/// Keeps a task for each peer until told to stop.
pub async fn run(node: &Arc<Node>, mut stop: Stop) {
    let mut streams: BTreeMap<String, (Stopper, JoinHandle<()>)> = BTreeMap::new();
    let mut lost = false;
    let mut looks = 0;
    while !stop.requested() {
        match stop.unless(node.control.info()).await {
            None => break,
            Some(Ok(info)) => {
                if std::mem::take(&mut lost) {
                    tracing::info!(node = info.node, "the database answers");
                }
                follow(node, &mut streams, &info.peers).await;
                looks += 1;
                if looks % LOOKS_A_MAINTENANCE == 0
                    && let Some(Err(err)) = stop.unless(node.control.maintain()).await
                {
                    tracing::warn!(error = %err, advice = err.treatment().1, "the database cannot look after its records");
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

/// Starts a stream for each new peer, and ends those of peers that are gone.
async fn follow(node: &Arc<Node>, streams: &mut BTreeMap<String, (Stopper, JoinHandle<()>)>, peers: &[String]) {
    let gone: Vec<String> = streams.keys().filter(|peer| !peers.contains(peer)).cloned().collect();
    for peer in gone {
        if let Some((stopper, task)) = streams.remove(&peer) {
            stopper.stop();
            joined(&peer, task).await;
            tracing::info!(peer, "peer removed");
        }
    }
    for peer in peers {
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
