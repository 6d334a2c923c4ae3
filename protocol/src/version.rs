//! Timestamps, and the version of a row.

use bincode::{Decode, Encode};

/// Microseconds since 2000-01-01 00:00:00 UTC, PostgreSQL's own `TimestampTz`.
pub type Timestamp = i64;

/// The version of a row: the commit of the transaction that last wrote it.
///
/// Totally ordered, first by time and then by the origin's name, so that every node picks the same winner. A tie is
/// never decided by which node is asked (PostgreSQL's own conflict rules and pgactive's differ by applier there).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Version {
    /// When the transaction committed, on its origin's clock.
    pub commit_ts: Timestamp,
    /// The name of the node where the transaction was first made.
    pub origin: String,
}
