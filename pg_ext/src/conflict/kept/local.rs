//! The same as local changes keep it: each for itself, with the registers open no longer than that.

use duplex_protocol::rules::key::Standing;
use pgrx::pg_sys;

use super::{Note, Written, note, remember, remove_all, residual, valid};
use crate::conflict::counter::Amount;
use crate::conflict::policy::Policy;
use crate::conflict::register::{Register, Sight};
use crate::conflict::stamps::Columns;
use crate::errors::Result;

/// What local changes keep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Local {
    tombstones: pg_sys::Oid,
    rows: pg_sys::Oid,
    counters: usize,
    merges: bool,
}

impl Local {
    /// Of a table with these registers and this policy.
    pub(crate) fn new(tombstones: pg_sys::Oid, rows: pg_sys::Oid, policy: &Policy) -> Self {
        Self { tombstones, rows, counters: policy.counters.len(), merges: policy.merges() }
    }

    /// The residual of a key that a row was just inserted under. Waits for whoever is writing one there: a peer's
    /// addition that is being applied looks again for a row once it has left its residual, so one of the two sees the
    /// other.
    ///
    /// # Safety
    /// Inside a transaction; the values are those of the key, in the register's order.
    pub(crate) unsafe fn residual(self, key: &[pg_sys::Datum]) -> Vec<Amount> {
        let mut found = vec![None; self.counters];
        // SAFETY: as the caller promises; the register is closed again.
        unsafe {
            if Register::is_empty(self.tombstones) {
                return found;
            }
            let register = Register::open(self.tombstones);
            register.settle(key);
            register.find(key, &[], Sight::RowByRow, |entry| {
                found = residual(entry, key.len() + 3, self.counters);
            });
            register.close();
        }
        found
    }

    /// What is written down of a row that is being replaced, which the transaction `xmin` wrote. It is void from now on,
    /// and taken out.
    ///
    /// # Errors
    /// As [`decode`].
    ///
    /// # Safety
    /// As [`Self::residual`].
    pub(crate) unsafe fn replaced(self, key: &[pg_sys::Datum], xmin: pg_sys::TransactionId) -> Result<Option<Note>> {
        // SAFETY: as the caller promises; the register is closed again.
        unsafe {
            if Register::is_empty(self.rows) {
                return Ok(None);
            }
            let register = Register::open(self.rows);
            let found = valid(&register, key, xmin, Sight::RowByRow, self.merges)?;
            if found.is_some() && remove_all(&register, key) {
                pg_sys::CommandCounterIncrement();
            }
            register.close();
            Ok(found)
        }
    }

    /// Writes down the stamps of a row that a local change has written.
    ///
    /// # Safety
    /// As [`Self::residual`].
    pub(crate) unsafe fn note(self, key: &[pg_sys::Datum], columns: &Columns) {
        let none = pg_sys::Datum::from(0);
        // SAFETY: as the caller promises; the register is closed again.
        unsafe {
            let register = Register::open(self.rows);
            note(&register, key, ([none; 2], [true; 2]), Some(Some(columns)));
            register.close();
        }
    }

    /// Nothing is left under a key, and no row to be remembered.
    ///
    /// # Safety
    /// As [`Self::residual`].
    pub(crate) unsafe fn forget_residual(self, key: &[pg_sys::Datum]) {
        // SAFETY: as the caller promises; the register is closed again.
        unsafe {
            if !Register::is_empty(self.tombstones) {
                let register = Register::open(self.tombstones);
                if remove_all(&register, key) {
                    pg_sys::CommandCounterIncrement();
                }
                register.close();
            }
        }
    }

    /// Remembers a key whose row a local change has removed.
    ///
    /// # Safety
    /// As [`Self::residual`].
    pub(crate) unsafe fn remember(
        self,
        key: &[pg_sys::Datum],
        version: Written,
        residual: &[Amount],
        row: Option<&[u8]>,
    ) {
        // SAFETY: as the caller promises; the register is closed again.
        unsafe {
            let register = Register::open(self.tombstones);
            remove_all(&register, key);
            remember(&register, key, Standing::Gone, version, residual, self.merges.then_some(row));
            register.close();
        }
    }
}
