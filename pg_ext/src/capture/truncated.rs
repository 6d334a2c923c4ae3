//! Which partitioned tables the TRUNCATE that is running names, so that a partition that is truncated alone is refused.
//!
//! Only the triggers of tables that the statement reaches fire, and those of a partition cannot see what it named. But
//! all BEFORE triggers of a statement fire before all AFTER triggers: the first tell, the second ask.

use std::cell::RefCell;

use pgrx::{PgSqlErrorCode, pg_sys};

use crate::backend_local::BackendLocal;
use crate::errors::{Failure, Result};

/// The statement whose triggers fired last.
#[derive(Debug, Default)]
struct Statement {
    /// Which transaction and subtransaction it belongs to: one that failed in the middle leaves nothing to the next.
    place: (pg_sys::TimestampTz, pg_sys::SubTransactionId),
    roots: Vec<pg_sys::Oid>,
    /// An AFTER trigger has fired: the next BEFORE trigger is another statement's.
    is_over: bool,
}

static STATEMENT: BackendLocal<RefCell<Statement>> =
    BackendLocal::new(RefCell::new(Statement { place: (0, 0), roots: Vec::new(), is_over: false }));

/// A BEFORE trigger fires: of a table with partitions, or of a partition.
pub(super) fn announce(root: Option<pg_sys::Oid>) {
    // SAFETY: plain calls inside a transaction.
    let place = unsafe { (pg_sys::GetCurrentTransactionStartTimestamp(), pg_sys::GetCurrentSubTransactionId()) };
    STATEMENT.with_borrow_mut(|statement| {
        if statement.is_over || statement.place != place {
            *statement = Statement { place, ..Statement::default() };
        }
        statement.roots.extend(root);
    });
}

/// An AFTER trigger fires.
pub(super) fn over() {
    STATEMENT.with_borrow_mut(|statement| statement.is_over = true);
}

/// An AFTER trigger of a partition of `root` fires.
pub(super) fn check_partition(root: pg_sys::Oid) -> Result<()> {
    over();
    if STATEMENT.with_borrow(|statement| statement.roots.contains(&root)) {
        return Ok(());
    }
    Err(Failure::new(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        "a single partition of a replicated table cannot be truncated",
    )
    .hint("Use DELETE, truncate the whole partitioned table, or detach the partition."))
}
