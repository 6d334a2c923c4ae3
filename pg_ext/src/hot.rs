//! What every short transaction runs through, kept together in the library.
//!
//! The library has hundreds of pages of code, and a captured transaction ran through some twenty functions on sixteen of
//! them. Each page that the processor does not know at the moment costs it a walk through its tables, a longer one in a
//! virtual machine, and pushes out another that the server wants next. So these functions are in a section of their own,
//! `.text.duplex_hot`, which takes four pages, and the variables that they use in `.data.duplex_hot`. What does not run in each
//! short transaction stays out of both: a rare part of a function that is there becomes a function elsewhere.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use pgrx::pg_sys::panic::pgrx_extern_c_guard;

/// Does what `#[pg_guard]` does, within the function that calls it: that one's guard is a function of its own for each place,
/// somewhere in the library.
///
/// # Safety
/// An ERROR leaves from here and passes over the callers, up to the server: none of them holds anything that has a destructor.
#[inline(always)]
pub(crate) unsafe fn guarded<R>(run: impl FnOnce() -> R) -> R {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result,
        // SAFETY: as the caller promises.
        Err(panic) => unsafe { raise(panic) },
    }
}

#[cold]
#[inline(never)]
unsafe fn raise(panic: Box<dyn Any + Send>) -> ! {
    // SAFETY: as the caller promises; the panic itself is given away.
    unsafe { pgrx_extern_c_guard(|| resume_unwind(panic)) }
}
