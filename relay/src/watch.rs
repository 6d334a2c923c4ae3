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
/// So many are asked at a time. While Kafka is away each takes some ten seconds, on one of the few threads that the relay has
/// for what waits; whoever comes back needs one, too.
pub(crate) const LOOKS: usize = 4;

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
        Self::every(LOOK, kafka, topic, client, ask)
    }

    fn every<C: Send + Sync + 'static>(
        pause: Duration,
        kafka: &Kafka,
        topic: &str,
        client: &Arc<C>,
        ask: Ask<C>,
    ) -> Self {
        let (sender, cut_off) = watch::channel(false);
        // Whoever uses the client says when it ends.
        let client = Arc::downgrade(client);
        let (kafka, topic) = (kafka.clone(), topic.to_owned());
        let task = tokio::spawn(async move {
            let mut was_served = true;
            loop {
                tokio::time::sleep(pause).await;
                // Where Kafka is there, the others have their answers soon.
                let Some(turn) = kafka.turn_to_look() else { continue };
                let look = {
                    let (kafka, topic, client) = (kafka.clone(), topic.clone(), client.clone());
                    blocking(move || {
                        let seen = look(&kafka, &topic, &client, ask);
                        drop(turn);
                        Ok(seen)
                    })
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Condvar, Mutex, PoisonError};

    use super::*;

    /// A client whose questions are answered when the test says so.
    #[derive(Default)]
    struct Patient {
        asked: AtomicUsize,
        is_answered: Mutex<bool>,
        answered: Condvar,
    }

    fn wait(client: &Patient, _topic: &str) -> Found {
        client.asked.fetch_add(1, Ordering::Relaxed);
        let is_answered = client.is_answered.lock().unwrap_or_else(PoisonError::into_inner);
        drop(client.answered.wait_while(is_answered, |is_answered| !*is_answered));
        Found::Served
    }

    #[test]
    fn looks_at_a_kafka_that_is_away_leave_threads_to_others() -> anyhow::Result<()> {
        let kafka = Kafka::new("127.0.0.1:1".to_owned(), BTreeMap::new())?;
        let client = Arc::new(Patient::default());
        // One thread more than looks may take.
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(LOOKS + 1).build()?;
        let others = runtime.block_on(async {
            let begin = |_| Watch::every(Duration::from_millis(1), &kafka, "t", &client, wait);
            let watches: Vec<Watch> = (0..40).map(begin).collect();
            let all_look = async {
                while client.asked.load(Ordering::Relaxed) < LOOKS {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                // Each of the others has its turn now.
                for _ in 0..20 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                blocking(|| Ok(())).await
            };
            let others = tokio::time::timeout(Duration::from_secs(30), all_look).await;
            drop(watches);
            others
        });
        *client.is_answered.lock().unwrap_or_else(PoisonError::into_inner) = true;
        client.answered.notify_all();
        drop(runtime);
        others??;
        assert_eq!(client.asked.load(Ordering::Relaxed), LOOKS);
        Ok(())
    }
}
