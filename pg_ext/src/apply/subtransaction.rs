//! A part of a transaction that may fail alone, as an exception block of PL/pgSQL may.

use std::panic::AssertUnwindSafe;

use duplex_protocol::sqlstate;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgTryBuilder, pg_sys};

use crate::errors::{Failure, Result};

/// Runs `work` in a subtransaction. An error that stays with what was tried is returned once the subtransaction is
/// rolled back; one that passes (a deadlock, a cancel, a full disk) is raised and takes the whole transaction with it.
///
/// # Safety
/// Inside a transaction. `work` keeps nothing open that it opened.
pub(crate) unsafe fn run<R>(work: impl FnOnce() -> Result<R>) -> Result<R> {
    // SAFETY: the subtransaction begun here is ended below, or by the abort of all that a raised error leads to. The
    // context made for its work belongs to the caller's and not to the subtransaction's, which would live to the end of
    // the transaction, once for each change.
    unsafe {
        let caller = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        let memory =
            pg_sys::AllocSetContextCreateInternal(caller, c"pg_duplex subtransaction".as_ptr(), 0, 8192, 8 << 20);
        pg_sys::MemoryContextSwitchTo(memory);
        let tried = PgTryBuilder::new(AssertUnwindSafe(|| Ok(work())));
        let outcome = tried.catch_others(|cause| Err(Box::new(cause))).execute();
        let result = match outcome {
            Ok(result) => result,
            Err(cause) => match *cause {
                CaughtError::PostgresError(ref error) | CaughtError::ErrorReport(ref error)
                    if sqlstate::is_of_the_change(&Failure::caught(error).sqlstate()) =>
                {
                    Err(Failure::caught(error))
                }
                cause => cause.rethrow(),
            },
        };
        match &result {
            Ok(_) => pg_sys::ReleaseCurrentSubTransaction(),
            Err(failure) if sqlstate::is_of_the_change(&failure.sqlstate()) => {
                pg_sys::RollbackAndReleaseCurrentSubTransaction();
            }
            Err(failure) => failure.clone().raise(),
        }
        pg_sys::MemoryContextSwitchTo(caller);
        pg_sys::CurrentResourceOwner = owner;
        pg_sys::MemoryContextDelete(memory);
        result
    }
}
