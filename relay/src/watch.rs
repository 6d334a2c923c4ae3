//! Clients of Kafka that have lost every broker.
//!
//! A broker that has just started may answer a question about the cluster before it is let into it, and then names no
//! broker at all. librdkafka believes it: it forgets the brokers that it knew, those that it was given included, and
//! from then on asks nobody any more (<https://github.com/confluentinc/librdkafka/issues/5301>, since 2.10). Such a client reports
//! nothing and does not recover, so each is looked after, and replaced when Kafka answers others and not it.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::kafka::{Kafka, blocking};

/// How often a client is asked to ask.
const LOOK: Duration = Duration::from_secs(10);

/// Looks after one client.
#[derive(Debug)]
pub(crate) struct Watch {
    found: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Begins; `is_answered` has the client ask Kafka about the topic, and may block.
    pub(crate) fn begin<C: Send + Sync + 'static>(
        kafka: &Kafka,
        topic: &str,
        client: &Arc<C>,
        is_answered: fn(&C, &str) -> bool,
    ) -> Self {
        let (sender, found) = watch::channel(false);
        // Whoever uses the client says when it ends.
        let client = Arc::downgrade(client);
        let (kafka, topic) = (kafka.clone(), topic.to_owned());
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let (kafka, topic, client) = (kafka.clone(), topic.clone(), client.clone());
                let look = blocking(move || {
                    let is_answered = || client.upgrade().is_none_or(|client| is_answered(&client, &topic));
                    // Asked again at the end, since Kafka may have come back in between.
                    Ok(!is_answered() && kafka.answers(&topic) && !is_answered())
                });
                if look.await.unwrap_or(false) {
                    let _ = sender.send(true);
                    return;
                }
            }
        });
        Self { found, task }
    }

    /// Returns when the client is of no use any more.
    pub(crate) async fn cut_off(&self) {
        if self.found.clone().wait_for(|found| *found).await.is_err() {
            pending().await
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
