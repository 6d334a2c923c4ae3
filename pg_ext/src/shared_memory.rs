//! A few bytes of what every server's shared memory has to spare, found by name.
//!
//! The first session that asks for them gets them, the library preloaded or not, and they are there as long as the server.

use std::ffi::CStr;
use std::panic::{RefUnwindSafe, UnwindSafe};

use pgrx::{PgTryBuilder, pg_sys};

/// What sessions of all databases share.
///
/// # Safety
/// All bits zero are a valid value, and nothing has to be dropped.
pub(crate) unsafe trait Shared: Sync + 'static {}

/// What `name` stands for in this server, all zero where nobody has changed it yet; `None` where there is no memory for it.
/// `pg_shmem_allocations` shows the name, which nobody else may use.
pub(crate) fn find<T: Shared>(name: &'static CStr) -> Option<&'static T> {
    let found = or_null(|| {
        let mut is_found = false;
        // SAFETY: a plain call.
        unsafe { pg_sys::ShmemInitStruct(name.as_ptr(), size_of::<T>(), &raw mut is_found).cast::<T>() }
    });
    // SAFETY: null, or there as long as the server, and aligned to a line of the cache. Nobody else has used this memory, and the
    // kernel gave it out all zero, which is a valid value.
    unsafe { found.as_ref() }
}

/// What was asked for, or null where that raises an ERROR: then the server holds nothing of it any more.
pub(crate) fn or_null<T>(get: impl Fn() -> *mut T + UnwindSafe + RefUnwindSafe) -> *mut T {
    PgTryBuilder::new(get).catch_others(|_| std::ptr::null_mut()).execute()
}
