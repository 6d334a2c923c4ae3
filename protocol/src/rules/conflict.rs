//! What is recorded as a conflict, and under which of PostgreSQL 18's names.
//!
//! Who wins is decided by versions alone. Whether it was a conflict is told by the *replaced* version: a write that
//! replaced the very row that is here met nobody, whatever the times.

use super::key::Standing;

/// A kind of conflict, by PostgreSQL 18's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConflictKind {
    /// An INSERT found the key, or one unique value of it, taken.
    InsertExists,
    /// An UPDATE found another row than the one it replaced.
    UpdateOriginDiffers,
    /// An UPDATE found a unique value taken by another row.
    UpdateExists,
    /// An UPDATE found no row; also an INSERT that was deleted by a later write before it came.
    UpdateMissing,
    /// A DELETE found another row than the one it deleted.
    DeleteOriginDiffers,
    /// A DELETE found no row.
    DeleteMissing,
    /// A write found several unique values taken.
    MultipleUniqueConflicts,
}

impl ConflictKind {
    /// The name in PostgreSQL's catalogs and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::InsertExists => "insert_exists",
            Self::UpdateOriginDiffers => "update_origin_differs",
            Self::UpdateExists => "update_exists",
            Self::UpdateMissing => "update_missing",
            Self::DeleteOriginDiffers => "delete_origin_differs",
            Self::DeleteMissing => "delete_missing",
            Self::MultipleUniqueConflicts => "multiple_unique_conflicts",
        }
    }
}

/// What a write was, on its own node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// INSERT.
    Insert,
    /// UPDATE.
    Update,
    /// DELETE.
    Delete,
}

/// What a write replaced, on its own node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaced<'v, V> {
    /// No row.
    Nothing,
    /// A row that its own transaction had written. The conflict, if there was one, was met by that first write.
    SameTransaction,
    /// A row with this version; `None` is older than any.
    Version(Option<&'v V>),
}

/// The conflict that a write meets under its own key, if any. `wins` is what [`super::key::arrive`] decided.
pub fn under_key<V: Eq>(
    write: Write,
    replaced: Replaced<'_, V>,
    standing: Standing,
    version: Option<&V>,
    wins: bool,
) -> Option<ConflictKind> {
    if matches!(replaced, Replaced::SameTransaction) {
        return None;
    }
    match (write, standing) {
        (Write::Insert, Standing::Row) => Some(ConflictKind::InsertExists),
        (Write::Insert, _) => (!wins).then_some(ConflictKind::UpdateMissing),
        (Write::Update, Standing::Row) => {
            (replaced != Replaced::Version(version)).then_some(ConflictKind::UpdateOriginDiffers)
        }
        (Write::Update, _) => Some(ConflictKind::UpdateMissing),
        (Write::Delete, Standing::Row) => {
            (replaced != Replaced::Version(version)).then_some(ConflictKind::DeleteOriginDiffers)
        }
        (Write::Delete, _) => Some(ConflictKind::DeleteMissing),
    }
}

/// The conflict that a write meets under unique values held or claimed by `others` different keys.
pub fn under_unique_values(write: Write, others: usize) -> Option<ConflictKind> {
    match (others, write) {
        (0, _) | (_, Write::Delete) => None,
        (1, Write::Insert) => Some(ConflictKind::InsertExists),
        (1, Write::Update) => Some(ConflictKind::UpdateExists),
        _ => Some(ConflictKind::MultipleUniqueConflicts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_replaced_version_tells_whether_there_was_a_conflict() {
        let row = |write, replaced| under_key(write, replaced, Standing::Row, Some(&5), true);
        assert_eq!(row(Write::Update, Replaced::Version(Some(&5))), None);
        assert_eq!(row(Write::Update, Replaced::Version(Some(&4))), Some(ConflictKind::UpdateOriginDiffers));
        assert_eq!(row(Write::Update, Replaced::Version(None)), Some(ConflictKind::UpdateOriginDiffers));
        assert_eq!(row(Write::Delete, Replaced::Version(Some(&5))), None);
        assert_eq!(row(Write::Delete, Replaced::Version(Some(&6))), Some(ConflictKind::DeleteOriginDiffers));
        assert_eq!(row(Write::Insert, Replaced::Nothing), Some(ConflictKind::InsertExists));
        assert_eq!(row(Write::Update, Replaced::SameTransaction), None);
    }

    #[test]
    fn a_write_that_finds_no_row() {
        let gone = |write, replaced, wins| under_key(write, replaced, Standing::Gone, Some(&5), wins);
        assert_eq!(gone(Write::Insert, Replaced::Nothing, true), None);
        assert_eq!(gone(Write::Insert, Replaced::Nothing, false), Some(ConflictKind::UpdateMissing));
        assert_eq!(gone(Write::Update, Replaced::Version(Some(&4)), true), Some(ConflictKind::UpdateMissing));
        assert_eq!(gone(Write::Delete, Replaced::Version(Some(&4)), false), Some(ConflictKind::DeleteMissing));
    }

    #[test]
    fn unique_values() {
        assert_eq!(under_unique_values(Write::Insert, 0), None);
        assert_eq!(under_unique_values(Write::Insert, 1), Some(ConflictKind::InsertExists));
        assert_eq!(under_unique_values(Write::Update, 1), Some(ConflictKind::UpdateExists));
        assert_eq!(under_unique_values(Write::Update, 2).map(ConflictKind::name), Some("multiple_unique_conflicts"));
        assert_eq!(under_unique_values(Write::Delete, 2), None);
    }
}
