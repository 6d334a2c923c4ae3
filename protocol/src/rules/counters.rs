//! What a write adds to a counter (a delta column).
//!
//! A counter under a key is the sum of all contributions that were ever made to it, whatever became of the row in
//! between; a tombstone keeps the sum as its residual. Contributions are what a write changed of what its node *saw*,
//! so additions of others that it had not seen are not lost.

use std::ops::{Add, Neg, Sub};

/// An INSERT counts from what the key's tombstone holds: `None` where there is none.
pub fn inserted<N: Sub<Output = N>>(value: N, residual: Option<N>) -> N {
    match residual {
        Some(residual) => value - residual,
        None => value,
    }
}

/// An UPDATE counts from the value that it replaced.
pub fn updated<N: Sub<Output = N>>(value: N, replaced: N) -> N {
    value - replaced
}

/// A DELETE takes away what it saw. What is left is what it had not seen.
pub fn deleted<N: Neg<Output = N>>(value: N) -> N {
    -value
}

/// The counter, or the tombstone's residual, after a contribution: always added, whether the write wins or loses.
pub fn after<N: Add<Output = N>>(found: Option<N>, contribution: N) -> N {
    match found {
        Some(found) => found + contribution,
        None => contribution,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_addition_that_a_delete_had_not_seen_survives_it() {
        // Both see 10. One node adds 5, the other deletes the row and then inserts it with 3.
        let mut value = after(Some(10), updated(15, 10));
        value = after(Some(value), deleted(10));
        value = after(Some(value), inserted(3, Some(0)));
        assert_eq!(value, 8);
    }

    #[test]
    fn an_insert_over_a_residual_shows_the_value_inserted() {
        assert_eq!(after(Some(5), inserted(3, Some(5))), 3);
        assert_eq!(after(None, inserted(3, None)), 3);
    }
}
