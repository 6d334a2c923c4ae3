//! What PostgreSQL's errors mean to whoever applies a change: the one table of them, for the relay and the extension.

/// What kind of error a SQLSTATE stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It passes: the same again, a little later.
    Transient,
    /// It may be a race with a local writer, which passes, or in the data, which does not.
    Race,
    /// Another relay is at it.
    Taken,
    /// The database is not ready for what was asked; while a change is being applied, the change is not for this table.
    NotReady,
    /// It is in the data, or in what the data is to go into: it stays until a person acts.
    Data,
}

/// SQLSTATEs by prefix, first match wins; what matches nothing is [`Class::Data`].
const TABLE: &[(&str, Class, &str)] = &[
    ("40001", Class::Transient, "serialization failure: passes"),
    ("40P01", Class::Transient, "deadlock with a local transaction: passes"),
    ("40", Class::Transient, "the transaction was rolled back by the server: passes"),
    ("55P03", Class::Transient, "a lock is held for long: look at pg_locks"),
    ("55006", Class::Taken, "another relay serves this node"),
    ("55000", Class::NotReady, "the database is not ready: is duplex.create_node called, track_commit_timestamp on?"),
    ("53400", Class::Transient, "a configured limit is reached: see the message"),
    ("53", Class::Transient, "the server is out of a resource: disk, memory or connections"),
    ("57014", Class::Transient, "statement_timeout or a cancel: set no timeout for the relay's role"),
    ("57", Class::Transient, "the server is starting, stopping or was told to end the session"),
    ("58", Class::Transient, "the server has trouble with its system: see its log"),
    ("08", Class::Transient, "the connection broke"),
    ("25006", Class::Transient, "the server is read only, a standby perhaps: give the primary's address"),
    ("25P03", Class::Transient, "idle_in_transaction_session_timeout: set no timeout for the relay's role"),
    ("28", Class::Transient, "the server refuses the relay's role: check its password and pg_hba.conf"),
    ("3D000", Class::Transient, "the database does not exist: check --database"),
    ("23505", Class::Race, "a unique value is taken: see the row, then duplex.retry_peer"),
    (
        "23P01",
        Class::Race,
        "rows that an exclusion constraint keeps apart, and no version says which is to go: change or delete one of them, \
         then duplex.retry_peer",
    ),
    ("23503", Class::Data, "a row that is referred to is missing: see the row, then duplex.retry_peer"),
    ("42P01", Class::Data, "a table is missing here: create and enable it, then duplex.retry_peer"),
    ("42703", Class::Data, "a column is missing here: add it, then duplex.retry_peer"),
    ("42501", Class::Data, "a right is missing: see the message, then duplex.retry_peer"),
    ("42883", Class::Data, "a function is missing: alter extension pg_duplex update, then duplex.retry_peer"),
];

const DATA_ADVICE: &str =
    "this change cannot be applied here: remove the cause, then duplex.retry_peer; or duplex.skip_change";

/// The class of a SQLSTATE, and what a person may do.
pub fn class(sqlstate: &str) -> (Class, &'static str) {
    TABLE
        .iter()
        .find(|(prefix, ..)| sqlstate.starts_with(prefix))
        .map_or((Class::Data, DATA_ADVICE), |&(_, class, advice)| (class, advice))
}

/// Whether an error that one change met stays with it, rather than pass.
pub fn is_of_the_change(sqlstate: &str) -> bool {
    matches!(class(sqlstate).0, Class::Data | Class::Race | Class::NotReady)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_told_from_what_is_in_the_data() {
        for state in [
            "40001", "40P01", "55P03", "53300", "53100", "53200", "53400", "57P01", "57P02", "57P03", "57014", "08006",
            "08P01", "58030", "25006", "25P03", "28P01", "3D000",
        ] {
            assert_eq!(class(state).0, Class::Transient, "{state}");
            assert!(!is_of_the_change(state), "{state}");
        }
        for state in ["42P01", "42703", "23502", "23503", "23514", "22P02", "22001", "XX000", "42804", "P0001", "0A000"]
        {
            assert_eq!(class(state).0, Class::Data, "{state}");
            assert!(is_of_the_change(state), "{state}");
        }
        assert_eq!(class("23505").0, Class::Race);
        assert_eq!(class("55006").0, Class::Taken);
        assert_eq!(class("55000").0, Class::NotReady);
    }

    #[test]
    fn every_class_comes_with_advice() {
        assert!(TABLE.iter().all(|(_, _, advice)| !advice.is_empty()));
    }

    #[test]
    fn no_line_of_the_table_hides_behind_another() {
        for (index, (prefix, ..)) in TABLE.iter().enumerate() {
            let earlier = &TABLE[..index];
            assert!(earlier.iter().all(|(before, ..)| !prefix.starts_with(before)), "{prefix}");
        }
    }
}
