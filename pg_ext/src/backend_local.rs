//! Variables of this backend.
//!
//! A backend is a process with one thread, so what would be a thread-local variable elsewhere is an ordinary one here. In a
//! library that is loaded at run time finding a thread-local variable costs a call, and a captured transaction asks for
//! a dozen.

use std::cell::RefCell;
use std::ops::Deref;

/// A variable that the one thread of a backend uses.
#[derive(Debug)]
pub(crate) struct BackendLocal<T>(T);

// SAFETY: PostgreSQL calls the library in the one thread of a backend, and the library starts none. Unit tests, which run
// in threads, use no such variable.
unsafe impl<T> Sync for BackendLocal<T> {}

impl<T> BackendLocal<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> Deref for BackendLocal<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

// As `std::thread::LocalKey` has them.
impl<T> BackendLocal<RefCell<T>> {
    #[inline]
    pub(crate) fn with_borrow<R>(&self, show: impl FnOnce(&T) -> R) -> R {
        show(&self.0.borrow())
    }

    #[inline]
    pub(crate) fn with_borrow_mut<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        change(&mut self.0.borrow_mut())
    }

    pub(crate) fn set(&self, value: T) {
        self.0.replace(value);
    }
}
