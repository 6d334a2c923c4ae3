//! What becomes of a key when a change to it arrives.

use super::wins;

/// What a node has under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing, and no memory of it.
    Unknown,
    /// A row.
    Row,
    /// A tombstone of a row that gave way to another row's claim of a unique value. But for that claim it would be
    /// there.
    Hidden,
    /// A tombstone of a row that was deleted or truncated.
    Gone,
}

/// What a node knows of a key.
#[derive(Debug, Clone, Copy)]
pub struct Registers<'r, V> {
    /// What is there.
    pub standing: Standing,
    /// The version of the row or of the tombstone; `None` for a row older than any, and where nothing is known.
    pub version: Option<&'r V>,
    /// Version of the table's newest TRUNCATE.
    pub truncated: Option<&'r V>,
}

/// What a change wants of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// The row is to be there (INSERT, UPDATE).
    Put,
    /// The row is to be gone.
    Delete,
}

/// What a change does to its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effect {
    /// The change wins: the row becomes its image, or goes. If not, the row stays but for its counters and merged
    /// columns, and keeps its version (in the row register, where the tuple has to be rewritten).
    pub wins: bool,
    /// Whether there is a row afterwards, unless a unique value of it is claimed by another.
    pub alive: bool,
    /// Whether the key's version becomes that of the change.
    pub stamps: bool,
}

/// What happens to a key with these registers when a change of version `incoming` arrives.
pub fn arrive<V: Ord>(registers: &Registers<'_, V>, wish: Wish, incoming: &V) -> Effect {
    let newest = wins(incoming, registers.version);
    let wins = newest && wins(incoming, registers.truncated);
    let alive = match (wins, registers.standing) {
        (true, _) => wish == Wish::Put,
        (false, Standing::Row | Standing::Hidden) => true,
        (false, Standing::Unknown | Standing::Gone) => false,
    };
    Effect { wins, alive, stamps: newest }
}

/// Whether a TRUNCATE of version `truncate` takes a row away.
///
/// The row may have been written by the same transaction, before: one written after it arrives after it, too.
pub fn truncates<V: Ord>(truncate: &V, row: Option<&V>) -> bool {
    wins(truncate, row)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrive_at(
        standing: Standing,
        version: Option<i32>,
        truncated: Option<i32>,
        wish: Wish,
        incoming: i32,
    ) -> (bool, bool) {
        let registers = Registers { standing, version: version.as_ref(), truncated: truncated.as_ref() };
        let effect = arrive(&registers, wish, &incoming);
        (effect.wins, effect.alive)
    }

    #[test]
    fn a_newer_update_wins_over_an_older_delete_and_an_older_one_does_not() {
        assert_eq!(arrive_at(Standing::Gone, Some(5), None, Wish::Put, 6), (true, true));
        assert_eq!(arrive_at(Standing::Gone, Some(5), None, Wish::Put, 4), (false, false));
    }

    #[test]
    fn a_newer_delete_wins_over_an_older_update_and_an_older_one_does_not() {
        assert_eq!(arrive_at(Standing::Row, Some(5), None, Wish::Delete, 6), (true, false));
        assert_eq!(arrive_at(Standing::Row, Some(5), None, Wish::Delete, 4), (false, true));
    }

    #[test]
    fn a_delete_that_comes_before_its_insert_leaves_a_version() {
        let registers = Registers { standing: Standing::Unknown, version: None, truncated: None };
        assert_eq!(arrive(&registers, Wish::Delete, &3), Effect { wins: true, alive: false, stamps: true });
    }

    #[test]
    fn what_was_written_before_a_truncate_does_not_come_back() {
        assert_eq!(arrive_at(Standing::Unknown, None, Some(5), Wish::Put, 4), (false, false));
        assert_eq!(arrive_at(Standing::Unknown, None, Some(5), Wish::Put, 5), (true, true));
        assert!(truncates(&5, Some(&5)) && truncates(&5, None) && !truncates(&5, Some(&6)));
    }

    #[test]
    fn a_hidden_row_that_keeps_its_version_stays_alive() {
        assert_eq!(arrive_at(Standing::Hidden, Some(5), None, Wish::Put, 4), (false, true));
    }
}
