//! Row triggers → a buffer in this backend → the queue, once a transaction.
//!
//! | module | subject |
//! |---|---|
//! | `trigger` | the functions that PostgreSQL calls for each row and each TRUNCATE |
//! | `direct` | the same without the queue of trigger events, row by row as they are written |
//! | `row` | what happened to a row, from its tuples to the buffer |
//! | `policy` | the same for tables with a policy: what is added to counters, and what is kept of it |
//! | `emptied` | what a TRUNCATE leaves of their rows |
//! | `passing` | rows that keep a unique value which another had in passing |
//! | `promotion` | which tables take no writes while a promoted server catches up |
//! | `truncated` | which partitioned tables a TRUNCATE names |
//! | `relation`, `types` | what is known of a table and its columns' types: cached, and invalidated by PostgreSQL |
//! | `stored` | where a tuple's values lie |
//! | `encode`, `settings` | from a tuple to bytes, free of the session's settings |
//! | `replaced` | the version of the row that a change replaces |
//! | `transaction` | what this transaction has captured; its ends, and the flush into the queue |
//! | `buffer`, `marks`, `spill` | the bytes so far: cut back by rollbacks, compressed, beyond a size in a file |

mod buffer;
mod direct;
mod emptied;
mod encode;
mod marks;
mod passing;
pub(crate) mod policy;
mod promotion;
mod relation;
mod replaced;
mod row;
mod settings;
mod spill;
mod stored;
mod transaction;
mod trigger;
mod truncated;
mod types;

/// Registers the callbacks; called from `_PG_init`.
pub(crate) fn init() {
    relation::init();
    direct::init();
    transaction::init();
}
