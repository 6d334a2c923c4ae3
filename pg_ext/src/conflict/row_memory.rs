//! Memory for one row at a time, where all rows of a table are looked at: what is left of each would else pile up to the
//! size of the table.

use pgrx::pg_sys;

use crate::errors::Result;

/// A memory context below the current one.
pub(crate) struct RowMemory(pg_sys::MemoryContext);

impl RowMemory {
    /// Makes it. What an error leaves of it goes with the context above.
    pub(crate) fn new() -> Self {
        let name = c"pg_duplex row".as_ptr();
        // SAFETY: plain calls; the name is a constant.
        Self(unsafe { pg_sys::AllocSetContextCreateInternal(pg_sys::CurrentMemoryContext, name, 0, 8192, 8 << 20) })
    }

    /// Does `work` in it, and forgets what that has left there.
    ///
    /// # Errors
    /// Those of `work`.
    ///
    /// # Safety
    /// Nothing that `work` returns or keeps was made in the current context.
    pub(crate) unsafe fn within<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        // SAFETY: as the caller promises; the context is there until `delete`.
        unsafe {
            let caller = pg_sys::MemoryContextSwitchTo(self.0);
            let result = work();
            pg_sys::MemoryContextSwitchTo(caller);
            pg_sys::MemoryContextReset(self.0);
            result
        }
    }

    /// Gives it back.
    pub(crate) fn delete(self) {
        // SAFETY: made by `new`, and not the current one outside of `within`.
        unsafe { pg_sys::MemoryContextDelete(self.0) }
    }
}
