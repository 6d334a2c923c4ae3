//! Which of two rows keeps a value of a second unique key.
//!
//! Every write of a row, also one that loses, claims the row's unique values at its version. A row gives way to any
//! later claim of a value that it holds, even to one that has been given up since: whether it still stands must not
//! hang on which of the two a node saw first. Hence the memory of claims that no row shows any more.

//!
//! In a table that merges by column, a version is not enough for that. One transaction may write a value under one key
//! and then move it to another; a later write that had not seen this brings the first row back with the columns of
//! that transaction, and now two rows hold the value since the same version. So there the columns and the claims are
//! stamped with the version *and* the number of the change in its origin's stream, in which every node gets them.
//! Where the later version wins as a whole row, the row that came back has a version of its own.

/// Whether a row that has held a unique value since `held` gives way to another key's claim of it.
///
/// `held` is the row's version or, in a table that merges by column, the stamp of the index's columns. Two claims of
/// one version are those of one node, which let both pass.
pub fn yields<V: Ord>(held: Option<&V>, claim: &V) -> bool {
    held.is_none_or(|held| claim > held)
}

/// The claim to remember of a key on a value, when a row stops showing it or a write claims it and loses. `None` if
/// the one that is remembered is as late, or if the row was older than any version: nothing gives way to it.
pub fn remember<V: Ord>(remembered: Option<&V>, released: Option<V>) -> Option<V> {
    released.filter(|released| remembered.is_none_or(|remembered| released > remembered))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_claim_keeps_the_value() {
        assert!(yields(Some(&1), &2));
        assert!(!yields(Some(&2), &1));
        assert!(!yields(Some(&2), &2));
        assert!(yields(None, &1));
    }

    #[test]
    fn the_newest_claim_is_remembered() {
        assert_eq!(remember(None, Some(1)), Some(1));
        assert_eq!(remember(Some(&1), Some(2)), Some(2));
        assert_eq!(remember(Some(&2), Some(1)), None);
        assert_eq!(remember(Some(&2), None), None);
    }
}
