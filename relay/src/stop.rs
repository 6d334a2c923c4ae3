//! The wish to end, handed to every loop.

use std::future::Future;

use tokio::sync::watch;

/// Tells loops to end.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

/// What a loop looks at to know that it is to end.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

/// A pair of the two ends.
pub fn channel() -> (Stopper, Stop) {
    let (sender, receiver) = watch::channel(false);
    (Stopper(sender), Stop(receiver))
}

impl Stopper {
    /// Tells them.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Whether the end is wished for.
    pub fn requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once the end is wished for; also when whoever could wish it is gone.
    pub async fn wait(&mut self) {
        let _ = self.0.wait_for(|stop| *stop).await;
    }

    /// Runs `work` to its end unless the end of all is wished for first. Then `work` is dropped.
    pub async fn unless<F: Future>(&mut self, work: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            () = self.wait() => None,
            output = work => Some(output),
        }
    }

    /// Sleeps, and wakes up early when the end is wished for.
    pub async fn sleep(&mut self, time: std::time::Duration) {
        self.unless(tokio::time::sleep(time)).await;
    }
}
