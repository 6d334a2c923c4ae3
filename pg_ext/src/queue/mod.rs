//! The queue: three tables that take turns.
//!
//! | module | subject |
//! |---|---|
//! | `append` | a committing transaction writes its chunks |
//! | `row` | a row as it is written |
//! | `short` | a body without its descriptors |
//! | `descriptors` | those that are on record |
//! | `limit` | warning or refusing when the queue has grown too large |
//! | `tables` | where the three tables are, and which one writers use |
//! | `page` | reading queue rows off a heap page |
//! | `snapshot` | the drain's rule: seen now, and not before |
//! | `segment` | which pages of one table still have to be looked at |
//! | `pass` | one pass over the rows of one snapshot, in the order of commits |
//! | `doorbell` | a committing transaction wakes a drain that rests |
//! | `drain` | the functions that the relay calls |
//! | `state` | how far the relay has come, durably |
//! | `rotate` | truncating a table whose rows are all published, moving writers on |
//! | `watermark` | what a record says of its node beside the changes |
//! | `wal` | clock, WAL and latch |

pub(crate) mod append;
pub(crate) mod descriptors;
pub(crate) mod doorbell;
mod drain;
mod limit;
mod page;
mod pass;
mod rotate;
mod row;
mod segment;
pub(crate) mod short;
mod snapshot;
mod state;
mod tables;
mod wal;
pub(crate) mod watermark;

/// Registers the cache callback; called from `_PG_init`.
pub(crate) fn init() {
    tables::init();
}
