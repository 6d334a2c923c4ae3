//! Which columns a change takes, in a table that merges by column.
//!
//! This relies on causal order: a change comes after the write of the row that it replaced, so the version of every
//! column that it did not change is known.

use super::wins;

/// Whether a change takes a column: if it changed it, and no later change has been there.
///
/// `V` is the version, refined as [`super::unique`] says if the table has a second unique key. An INSERT changes all
/// columns. That holds whether the change wins its key or loses it, and for tombstones as for
/// rows: a later write may bring the row back.
pub fn takes<V: Ord>(changed: bool, incoming: &V, column: Option<&V>) -> bool {
    changed && wins(incoming, column)
}

/// The columns that a change counts as having changed: those it did, and those that stand in a unique index with one
/// of them.
///
/// What an index compares must come from one write. Two nodes that each change one column of `unique (a, b)` would
/// else make up a pair which nobody ever claimed, and which is there or not by what arrives first. Indexes that share
/// a column hang together.
pub fn together(changed: &[bool], unique_indexes: &[&[u16]]) -> Vec<bool> {
    let mut together = changed.to_vec();
    loop {
        let mut grown = false;
        for index in unique_indexes {
            let is_changed = |column: &u16| together.get(usize::from(*column)).copied().unwrap_or(false);
            if index.iter().any(is_changed) && !index.iter().all(is_changed) {
                for column in *index {
                    if let Some(column) = together.get_mut(usize::from(*column)) {
                        grown |= !*column;
                        *column = true;
                    }
                }
            }
        }
        if !grown {
            return together;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_column_goes_by_its_own_version() {
        assert!(takes(true, &4, Some(&3)));
        assert!(!takes(true, &4, Some(&5)));
        assert!(!takes(false, &4, Some(&3)));
        assert!(takes(true, &4, None));
    }

    #[test]
    fn columns_of_a_unique_index_go_together() {
        assert_eq!(together(&[true, false, false, false], &[&[0, 1], &[1, 2]]), [true, true, true, false]);
        assert_eq!(together(&[false, false, false, true], &[&[0, 1], &[1, 2]]), [false, false, false, true]);
        assert_eq!(together(&[false, true], &[&[1, 7]]), [false, true]);
    }
}
