//! A peer's transactions, written at the executor's level.
//!
//! | module | subject |
//! |---|---|
//! | `session` | marking a session as replication from one peer, and what it remembers |
//! | `origin` | how far a peer's stream is applied: moves with a commit, and with nothing else |
//! | `batch` | whole transactions, each committed for itself; chunks of one inside the caller's transaction |
//! | `heard` | what a peer says of itself in heartbeats: its watermarks, its clock |
//! | `waits` | the clock guard and the causal order |
//! | `transaction` | one transaction's entries, in their order |
//! | `careful` | each change in a subtransaction of its own, to find the one that fails |
//! | `park` | changes that wait until they can be applied |
//! | `subtransaction` | a part of a transaction that may fail alone |
//! | `relation` | which table and columns a descriptor means here; cached across transactions |
//! | `value` | bytes of the stream into values of a column |
//! | `table` | a table opened for writing: executor state, indexes, triggers |
//! | `find` | finding a row by its key |
//! | `row` | inserting, updating and deleting one row |
//! | `decide` | what becomes of one change, by the rules of conflicts |
//! | `keep` | the same in a table with a policy: counters add up, and rows keep their versions |
//! | `merge` | the same where columns are merged |
//! | `triggers` | which triggers of a table fire |
//! | `partition` | the same in the right partition |
//! | `truncate` | emptying the tables of one statement together |
//! | `own` | reading and writing the tables of schema `duplex`, and acting as another role |

mod batch;
mod careful;
mod decide;
pub(crate) mod find;
mod heard;
mod keep;
mod merge;
mod origin;
pub(crate) mod own;
mod park;
mod partition;
pub(crate) mod relation;
mod row;
mod session;
pub(crate) mod subtransaction;
pub(crate) mod table;
mod transaction;
pub(crate) mod triggers;
pub(crate) mod truncate;
mod value;
mod waits;
