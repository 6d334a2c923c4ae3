//! Waiting longer after each failure, so that whoever is down is not hammered when it comes back.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

/// How long to wait before the next attempt.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// After a success the next wait is short again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// How often it failed since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// The next wait: twice the last one, up to five seconds, with a quarter of it left to chance so that many relays
    /// do not come back in step.
    pub fn next_wait(&mut self) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        // A fresh hasher's keys are random, which is all the chance needed here.
        let chance = (RandomState::new().hash_one(self.failures) % 256) as u32;
        full - full / 4 * chance / 256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_start_again_after_a_success() {
        let mut backoff = Backoff::default();
        let first = backoff.next_wait();
        assert!(first <= FIRST && first >= FIRST * 3 / 4, "{first:?}");
        for _ in 0..40 {
            assert!(backoff.next_wait() <= LONGEST);
        }
        assert!(backoff.next_wait() >= LONGEST * 3 / 4);
        backoff.reset();
        assert!(backoff.next_wait() <= FIRST);
    }
}
