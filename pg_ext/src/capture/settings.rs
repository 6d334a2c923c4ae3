//! The settings under which values are turned into text: what travels must not depend on who wrote it.

use std::ffi::{CStr, c_int};
use std::ops::BitOr;

use pgrx::pg_sys;

/// Which settings the text of a type depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Settings(u8);

impl Settings {
    pub(super) const NONE: Self = Self(0);
    pub(super) const DATE_STYLE: Self = Self(1);
    pub(super) const INTERVAL_STYLE: Self = Self(2);
    pub(super) const FLOAT_DIGITS: Self = Self(4);
    pub(super) const BYTEA_OUTPUT: Self = Self(8);
    pub(super) const MONETARY: Self = Self(16);
    pub(super) const SEARCH_PATH: Self = Self(32);
    /// For a type of which nothing is known.
    pub(super) const ALL: Self = Self(63);

    #[inline]
    pub(super) fn is_none(self) -> bool {
        self.0 == 0
    }

    fn has(self, setting: Self) -> bool {
        self.0 & setting.0 != 0
    }
}

impl BitOr for Settings {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

unsafe extern "C-unwind" {
    // Not among the bindings; an int variable behind the setting `bytea_output`, 1 for hex.
    static mut bytea_output: c_int;
}

const BYTEA_OUTPUT_HEX: c_int = 1;

/// Settings that are pinned until [`Pinned::release`]. An ERROR in between releases them, too: the transaction's abort
/// ends all levels of settings that were opened within it.
#[derive(Debug)]
#[must_use]
pub(super) struct Pinned {
    level: Option<c_int>,
}

impl Pinned {
    /// Changes those of `settings` that do not have their fixed value already.
    pub(super) fn pin(settings: Settings) -> Self {
        let mut pinned = Self { level: None };
        if settings.is_none() {
            return pinned;
        }
        // SAFETY: these globals are plain variables of the GUC machinery, which only this thread writes.
        let (date, interval, digits, bytea) =
            unsafe { (pg_sys::DateStyle, pg_sys::IntervalStyle, pg_sys::extra_float_digits, bytea_output) };
        if settings.has(Settings::DATE_STYLE) && date != pg_sys::USE_ISO_DATES as c_int {
            pinned.set(c"datestyle", c"ISO");
        }
        if settings.has(Settings::INTERVAL_STYLE) && interval != pg_sys::INTSTYLE_POSTGRES as c_int {
            pinned.set(c"intervalstyle", c"postgres");
        }
        if settings.has(Settings::FLOAT_DIGITS) && digits < 1 {
            pinned.set(c"extra_float_digits", c"1");
        }
        if settings.has(Settings::BYTEA_OUTPUT) && bytea != BYTEA_OUTPUT_HEX {
            pinned.set(c"bytea_output", c"hex");
        }
        if settings.has(Settings::MONETARY) && !is_set_to(c"lc_monetary", c"C") {
            pinned.set(c"lc_monetary", c"C");
        }
        if settings.has(Settings::SEARCH_PATH) && !is_set_to(c"search_path", c"pg_catalog") {
            pinned.set(c"search_path", c"pg_catalog");
        }
        pinned
    }

    fn set(&mut self, name: &CStr, value: &CStr) {
        // SAFETY: both strings end in NUL and are copied; GUC_ACTION_SAVE undoes the change at the end of the level.
        unsafe {
            self.level.get_or_insert_with(|| pg_sys::NewGUCNestLevel());
            pg_sys::set_config_option(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_SAVE,
                true,
                0,
                false,
            );
        }
    }

    pub(super) fn release(self) {
        if let Some(level) = self.level {
            // SAFETY: the level was opened in `set` and is the newest one, since output functions end theirs.
            unsafe { pg_sys::AtEOXact_GUC(true, level) };
        }
    }
}

fn is_set_to(name: &CStr, value: &CStr) -> bool {
    // SAFETY: the name ends in NUL; the result is null or a string that lives until the setting changes.
    unsafe {
        let current = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        !current.is_null() && CStr::from_ptr(current) == value
    }
}
