//! What failed while applying, and where: whether a failure passes or is in the data shows by its coming again.

use crate::errors::{Error, Policy};

/// What one stream remembers of its failures.
#[derive(Debug, Default)]
pub struct Suspicion {
    /// Offset of a record that failed by what may be a race, and how often it did.
    suspect: Option<(i64, u32)>,
    /// Offset of a record that failed by what is in the data, and is to be applied with care.
    careful_at: Option<i64>,
}

impl Suspicion {
    /// What is done about an error: what may be a race is retried; what fails in the same place again and again is in the
    /// data.
    pub fn hardened(&mut self, policy: Policy, err: &Error) -> Policy {
        let (Policy::RetryTimes(limit), Error::Apply { offset, .. }) = (policy, err) else { return policy };
        let times = match self.suspect {
            Some((suspect, times)) if suspect == *offset => times + 1,
            _ => 1,
        };
        self.suspect = Some((*offset, times));
        if times > limit { Policy::Stop } else { policy }
    }

    /// Whether an error is in the data, and which change it is of is still to be found out: by applying with care, once.
    pub fn wants_care(&mut self, err: &Error) -> bool {
        let Error::Apply { offset, change: None, .. } = err else { return false };
        self.careful_at.replace(*offset) != Some(*offset)
    }

    /// Whether a stream that goes on at this offset is still to come to what wants care.
    pub fn is_ahead_of(&self, next_offset: i64) -> bool {
        self.careful_at.is_some_and(|offset| offset >= next_offset)
    }
}
