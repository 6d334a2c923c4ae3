//! Unique values that a key held and gave up, or claimed in a change that lost: a row with the same value that is older
//! than such a claim gives way to it, also where the claim has been given up since.

use duplex_protocol::rules::unique;
use duplex_protocol::version::Version;
use pgrx::pg_sys;

use crate::conflict::index::Values;
use crate::conflict::register::{Entry, Register, Sight};
use crate::conflict::stamps::Since;
use crate::conflict::version::{Stamp, Versions, stored};

/// The claims of one unique index, with what is needed to tell keys apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claims {
    /// The register.
    pub(crate) oid: pg_sys::Oid,
    /// The tombstones' register, whose index has the key's operators.
    pub(crate) keys: pg_sys::Oid,
    /// In a table that merges by column, a claim also has the number of its change.
    pub(crate) ordered: bool,
}

impl Claims {
    /// The latest claim of another key on these values.
    ///
    /// # Safety
    /// Inside a transaction, the replicated table is locked; values and key are of the registers' types.
    pub(crate) unsafe fn of_others(
        self,
        values: &Values,
        key: &[pg_sys::Datum],
        versions: &mut Versions,
        incoming: &Version,
    ) -> Option<Since> {
        // SAFETY: as the caller promises.
        unsafe {
            if Register::is_empty(self.oid) {
                return None;
            }
            let (register, keys) = (Register::open(self.oid), Register::open(self.keys));
            let mut latest = None;
            register.find(values.values(), values.nulls(), Sight::Latest, |entry| {
                if !keys.are_equal(key, |column| key_of(entry, values, column)) {
                    latest = std::cmp::max(latest.take(), self.since(entry, values, key, versions, incoming));
                }
            });
            keys.close();
            register.close();
            latest
        }
    }

    /// Remembers that a key held or claimed these values at a version, in place of an older claim of the same key.
    ///
    /// # Safety
    /// As [`Self::of_others`].
    pub(crate) unsafe fn remember(
        self,
        values: &Values,
        key: &[pg_sys::Datum],
        at: Since,
        versions: &mut Versions,
        incoming: &Version,
    ) {
        // SAFETY: as the caller promises.
        unsafe {
            let (register, keys) = (Register::open(self.oid), Register::open(self.keys));
            let (mut remembered, mut old) = (None, Vec::new());
            register.find(values.values(), values.nulls(), Sight::Latest, |entry| {
                if keys.are_equal(key, |column| key_of(entry, values, column)) {
                    let since = self.since(entry, values, key, versions, incoming);
                    remembered = std::cmp::max(remembered.take(), since);
                    old.push(entry.place());
                }
            });
            if let Some(at) = unique::remember(remembered.as_ref(), Some(at)) {
                old.into_iter().for_each(|place| register.remove(place));
                self.insert(&register, values, key, stored(Some(&at.version)), at.order);
                pg_sys::CommandCounterIncrement();
            }
            keys.close();
            register.close();
        }
    }

    /// The same for a local change: the value was held at the version that the change replaced, which is later than any
    /// claim of the same key before. Stored as it is, since what stands there is only ever compared on apply.
    ///
    /// # Safety
    /// As [`Self::of_others`].
    pub(crate) unsafe fn release(
        self,
        values: &Values,
        key: &[pg_sys::Datum],
        stamp: ([pg_sys::Datum; 2], [bool; 2]),
        order: u64,
    ) {
        // SAFETY: as the caller promises.
        unsafe {
            let known = !Register::is_empty(self.oid);
            let register = Register::open(self.oid);
            if known {
                let keys = Register::open(self.keys);
                let mut old = Vec::new();
                register.find(values.values(), values.nulls(), Sight::RowByRow, |entry| {
                    if !entry.is_own() && keys.are_equal(key, |column| key_of(entry, values, column)) {
                        old.push(entry.place());
                    }
                });
                old.into_iter().for_each(|place| register.remove(place));
                keys.close();
            }
            self.insert(&register, values, key, stamp, order);
            register.close();
        }
    }

    unsafe fn insert(
        self,
        register: &Register,
        values: &Values,
        key: &[pg_sys::Datum],
        (stamp, no_stamp): ([pg_sys::Datum; 2], [bool; 2]),
        order: u64,
    ) {
        let mut row = values.values().to_vec();
        row.extend_from_slice(key);
        row.extend(stamp);
        let mut nulls = values.nulls().to_vec();
        nulls.extend(key.iter().map(|_| false));
        nulls.extend(no_stamp);
        if self.ordered {
            row.push(pg_sys::Datum::from(order));
            nulls.push(false);
        }
        // SAFETY: the columns are the values, the key, commit_ts and origin, and the number where claims have one.
        unsafe { register.insert(&mut row, &mut nulls) }
    }

    /// Since when a claim is.
    unsafe fn since(
        self,
        entry: Entry,
        values: &Values,
        key: &[pg_sys::Datum],
        versions: &mut Versions,
        incoming: &Version,
    ) -> Option<Since> {
        let last = values.values().len() + key.len() + 2;
        let order = if self.ordered { entry.value(last).map_or(0, |order| order.value() as u64) } else { 0 };
        // SAFETY: as the callers promise.
        let version = unsafe { stamp(entry, values, key).version(versions, incoming)? };
        Some(Since { version, order })
    }
}

fn key_of(entry: Entry, values: &Values, column: usize) -> pg_sys::Datum {
    entry.value(values.values().len() + column).unwrap_or(pg_sys::Datum::from(0))
}

unsafe fn stamp(entry: Entry, values: &Values, key: &[pg_sys::Datum]) -> Stamp {
    let first = values.values().len() + key.len();
    // SAFETY: the columns there are commit_ts and origin.
    unsafe { Stamp::read(entry.xmin(), entry.value(first), entry.value(first + 1)) }
}
