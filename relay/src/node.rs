//! One node's loops, and their end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};
use tracing::Instrument as _;

use crate::config::Settings;
use crate::control::Control;
use crate::kafka::Kafka;
use crate::{inbound, outbound, stop};

/// How long the end may take. What is not confirmed then is found in the topic by the next start.
const LONGEST_END: Duration = Duration::from_secs(10);

/// What all loops of the node share.
#[derive(Debug)]
pub struct Node {
    /// Addresses.
    pub settings: Settings,
    /// Questions and reports to the database.
    pub control: Control,
}

impl Node {
    /// Prepares it; connects to nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self { control: Control::new(settings.clone()), settings }
    }

    /// Where Kafka is.
    pub fn kafka(&self) -> &Kafka {
        &self.settings.kafka
    }
}

/// Runs the node until SIGTERM or SIGINT: then takes in nothing new, waits for what is in flight, confirms it, ends.
///
/// # Errors
/// If signals cannot be received, or a loop ended by itself, which is a bug.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let (stopper, stop) = stop::channel();
    let node = Arc::new(Node::new(settings));
    let mut outbound = tokio::spawn({
        let (node, stop) = (Arc::clone(&node), stop.clone());
        async move { outbound::run(&node, stop).await }.instrument(tracing::info_span!("outbound"))
    });
    let mut inbound = tokio::spawn({
        let node = Arc::clone(&node);
        async move { inbound::run(&node, stop).await }
    });
    tokio::select! {
        biased;
        _ = terminate.recv() => tracing::info!("SIGTERM: finishing what is in flight"),
        _ = interrupt.recv() => tracing::info!("SIGINT: finishing what is in flight"),
        ended = &mut outbound => bail!("publishing ended by itself: {ended:?}"),
        ended = &mut inbound => bail!("applying ended by itself: {ended:?}"),
    }
    stopper.stop();
    match tokio::time::timeout(LONGEST_END, async { tokio::join!(outbound, inbound) }).await {
        Ok((outbound, inbound)) => {
            outbound.context("publishing failed")?;
            inbound.context("applying failed")?;
            tracing::info!("done");
        }
        Err(_) => {
            tracing::warn!("not all acknowledged in time; the next start finds it in the topic or sends it again")
        }
    }
    Ok(())
}
