//! A producer with a thread that takes what it reports.
//!
//! rdkafka's `ThreadedProducer` does the same in rounds of 100 ms. A round counts in whole milliseconds and turns without
//! rest through what is left of the last one, which is nine tenths of a per cent of a core at rest (rdkafka 0.39).

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaResult;
use rdkafka::producer::{BaseProducer, ProducerContext};

/// How long a round is: a report ends no round and waits for none, but the end of the thread does.
const ROUND: Duration = Duration::from_millis(500);

/// The producer; dropping it waits for its thread.
pub(super) struct PolledProducer<C: ProducerContext + 'static> {
    producer: Arc<BaseProducer<C>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<C: ProducerContext + 'static> PolledProducer<C> {
    /// Makes it.
    pub(super) fn create(config: &ClientConfig, context: C) -> KafkaResult<Self> {
        let producer = Arc::new(config.create_with_context::<_, BaseProducer<C>>(context)?);
        let ends = Arc::new(AtomicBool::new(false));
        let polls = {
            let (producer, ends) = (Arc::clone(&producer), Arc::clone(&ends));
            move || {
                while !ends.load(Ordering::Relaxed) {
                    producer.poll(ROUND);
                }
            }
        };
        let thread =
            std::thread::Builder::new().name("producer".to_owned()).spawn(polls).expect("a thread is to be had");
        Ok(Self { producer, ends, thread: Some(thread) })
    }
}

impl<C: ProducerContext + 'static> Deref for PolledProducer<C> {
    type Target = BaseProducer<C>;

    fn deref(&self) -> &Self::Target {
        &self.producer
    }
}

impl<C: ProducerContext + 'static> Drop for PolledProducer<C> {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported when it happened.
            let _ = thread.join();
        }
    }
}
