//! Clients of Kafka are looked after: librdkafka waits for what may pass, and says nothing of most of it.
//!
//! **A client that has lost every broker.** A broker that has just started may answer a question about the cluster before
//! it is let into it, and then names no broker at all. librdkafka believes it: it forgets the brokers that it knew, those
//! that it was given included, and from then on asks nobody any more
//! (<https://github.com/confluentinc/librdkafka/issues/5301>, since 2.10). Such a client does not recover: it is replaced
//! when Kafka answers others and not it.
//!
//! **A topic that is not served.** Kafka answers, but the broker that leads the topic is away, or too few others have what is
//! written. That passes when they come back, and is said in the log once; so is a Kafka of several brokers that are all away, of
//! which librdkafka said nothing in a minute.

use std::future::pending;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::kafka::{Kafka, blocking};

/// How often a client is asked to ask.
const LOOK: Duration = Duration::from_secs(10);

/// What a client finds when it asks Kafka about its topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// All is as it should be.
    Served,
    /// Kafka answers, and the topic cannot be used for now.
    Unserved {
        /// Why.
        reason: String,
    },
    /// Nobody answers.
    Nothing,
}

/// Has a client ask Kafka about its topic; may block.
type Ask<C> = fn(&C, &str) -> Found;

/// Looks after one client.
#[derive(Debug)]
pub(crate) struct Watch {
    cut_off: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Begins.
    pub(crate) fn begin<C: Send + Sync + 'static>(kafka: &Kafka, topic: &str, client: &Arc<C>, ask: Ask<C>) -> Self {
        let (sender, cut_off) = watch::channel(false);
        // Whoever uses the client says when it ends.
        let client = Arc::downgrade(client);
        let (kafka, topic) = (kafka.clone(), topic.to_owned());
        let task = tokio::spawn(async move {
            let mut was_served = true;
            loop {
                tokio::time::sleep(LOOK).await;
                let look = {
                    let (kafka, topic, client) = (kafka.clone(), topic.clone(), client.clone());
                    blocking(move || Ok(look(&kafka, &topic, &client, ask)))
                };
                match look.await {
                    Ok(Seen::Served) => {
                        if !was_served {
                            tracing::info!(topic, "kafka serves the topic again");
                        }
                        was_served = true;
                    }
                    Ok(Seen::Unserved { reason }) => {
                        if was_served {
                            tracing::warn!(topic, reason, "kafka cannot serve a topic; what belongs there waits");
                        }
                        was_served = false;
                    }
                    Ok(Seen::Away) => kafka.lost("no broker answers"),
                    Ok(Seen::CutOff) => {
                        let _ = sender.send(true);
                        return;
                    }
                    Err(_) => return,
                }
            }
        });
        Self { cut_off, task }
    }

    /// Returns when the client is of no use any more.
    pub(crate) async fn cut_off(&self) {
        if self.cut_off.clone().wait_for(|cut_off| *cut_off).await.is_err() {
            pending().await
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is known after a look at a client.
enum Seen {
    Served,
    Unserved {
        reason: String,
    },
    /// Kafka answers nobody.
    Away,
    /// Kafka answers others.
    CutOff,
}

fn look<C>(kafka: &Kafka, topic: &str, client: &Weak<C>, ask: Ask<C>) -> Seen {
    let found = || client.upgrade().map_or(Found::Served, |client| ask(&client, topic));
    match found() {
        Found::Served => Seen::Served,
        Found::Unserved { reason } => Seen::Unserved { reason },
        Found::Nothing if !kafka.answers(topic) => Seen::Away,
        // Kafka may have come back in between.
        Found::Nothing if found() != Found::Nothing => Seen::Served,
        Found::Nothing => Seen::CutOff,
    }
}
