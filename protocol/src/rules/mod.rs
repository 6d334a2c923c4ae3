//! The rules by which every node decides alike.
//!
//! **The state of a table is a function of the set of changes received, never of the order in which they came.** So
//! nothing here may depend on which node asks, or on what came first; only on versions. The functions are pure: the
//! code that applies changes gathers what a node knows, asks here, and does what it is told. The model in
//! `tests/model/` does the same with nodes made of maps, and shows on random histories that they end up equal.
//!
//! | module | decides |
//! |---|---|
//! | [`key`] | what becomes of a key when a change to it arrives |
//! | [`columns`] | which columns a change takes in a table that merges by column |
//! | [`unique`] | which of two rows keeps a value of a second unique key |
//! | [`counters`] | what a write adds to a counter |
//! | [`conflict`] | what is recorded as a conflict, and under which name |
//! | [`forget`] | what a node need not remember any more |
//!
//! They are generic in the version, which has to be totally ordered: [`crate::version::Version`] in the extension. A
//! version that is `None` belongs to a row whose commit timestamp is gone, and is older than any.

pub mod columns;
pub mod conflict;
pub mod counters;
pub mod forget;
pub mod key;
pub mod unique;

/// Whether a change with version `incoming` replaces what is there.
///
/// `local` is the version of the row found, `None` if its commit timestamp is gone: then it is older than any. Equal
/// versions are two writes of one transaction (or of two transactions of one node within a microsecond), which come in
/// their order, so the later one wins.
pub fn wins<V: Ord>(incoming: &V, local: Option<&V>) -> bool {
    local.is_none_or(|local| incoming >= local)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::Version;

    fn version(commit_ts: i64, origin: &str) -> Version {
        Version { commit_ts, origin: origin.to_owned() }
    }

    #[test]
    fn later_wins_and_a_tie_goes_by_name_on_every_node() {
        assert!(wins(&version(2, "a"), Some(&version(1, "b"))));
        assert!(!wins(&version(1, "b"), Some(&version(2, "a"))));
        assert!(wins(&version(1, "b"), Some(&version(1, "a"))));
        assert!(!wins(&version(1, "a"), Some(&version(1, "b"))));
    }

    #[test]
    fn a_row_without_a_version_is_older_than_any() {
        assert!(wins(&version(i64::MIN, ""), None));
    }

    #[test]
    fn the_second_write_of_one_transaction_wins() {
        assert!(wins(&version(1, "a"), Some(&version(1, "a"))));
    }
}
