//! Which of two writes of a row stays, and what has to be remembered for that.
//!
//! The rules are `duplex_protocol::rules`, the same that the model there is checked with: here is gathered what this
//! node knows, they are asked, and what they say is done.
//!
//! | module | subject |
//! |---|---|
//! | `version` | the version of a row, read from PostgreSQL's commit-timestamp store |
//! | `registers` | which registers a table has here |
//! | `register` | one register: a small table of its own, written at heap level |
//! | `batch` | rows of a register that are written many at a time |
//! | `tombstone` | keys that are gone or hidden |
//! | `claim` | unique values that were given up, or claimed in vain |
//! | `policy` | how a table decides, here and on a peer |
//! | `counter` | delta columns as exact numbers |
//! | `kept` | what is kept of keys in a table with a policy: residuals, true versions |
//! | `stamps` | since when the columns of a row hold what they hold, where they are merged |
//! | `truncates` | the newest TRUNCATE of each table |
//! | `arrival` | a change that arrives: what it meets under its key |
//! | `unique` | second unique keys: which rows give way |
//! | `index` | a row's values in an index, and the rows that hold them |
//! | `write` | writing a row with its duplicates noted instead of raised |
//! | `history` | the record of conflicts |
//! | `forget` | up to when what a table remembers may be forgotten |
//! | `local` | what a local change leaves in the registers |
//! | `row_memory` | memory for one row at a time |
//! | `pending` | tombstones that a local transaction still has to write |

pub(crate) mod arrival;
pub(crate) mod batch;
pub(crate) mod claim;
pub(crate) mod counter;
mod forget;
pub(crate) mod history;
pub(crate) mod index;
pub(crate) mod kept;
pub(crate) mod local;
pub(crate) mod pending;
pub(crate) mod policy;
pub(crate) mod register;
pub(crate) mod registers;
pub(crate) mod row_memory;
pub(crate) mod stamps;
pub(crate) mod tombstone;
pub(crate) mod truncates;
pub(crate) mod unique;
pub(crate) mod version;
pub(crate) mod write;
