//! Tombstones that a local transaction still has to write. A DELETE of many rows writes them many at a time.
//!
//! They are written when there are enough of them, and before the (sub)transaction that removed the rows ends: whoever
//! meets such a row waits for that end, and finds them. Each subtransaction has its own, which go with it if it is
//! rolled back.

use std::cell::RefCell;

use duplex_protocol::rules::key::Standing;
use pgrx::pg_sys;

use crate::backend_local::BackendLocal;
use crate::conflict::batch::Batch;
use crate::conflict::register::{Register, Sight};
use crate::conflict::tombstone;

/// No subtransaction: they are counted from 1.
const NONE: pg_sys::SubTransactionId = 0;

/// What one (sub)transaction has to write.
#[derive(Debug)]
struct Level {
    subtransaction: pg_sys::SubTransactionId,
    registers: Vec<(pg_sys::Oid, Batch)>,
}

/// Of the subtransactions that are open, the innermost last.
#[unsafe(link_section = ".data.duplex_hot")]
static LEVELS: BackendLocal<RefCell<Vec<Level>>> = BackendLocal::new(RefCell::new(Vec::new()));

/// A key is gone: its tombstone will have the version of this transaction.
///
/// # Safety
/// Inside the transaction that removed the row, with an active snapshot; the key is of the register's types.
pub(crate) unsafe fn bury(register: pg_sys::Oid, key: &[pg_sys::Datum]) {
    // SAFETY: as the caller promises. What is called while the levels are borrowed copies values and opens a table.
    unsafe {
        let full = LEVELS.with_borrow_mut(|levels| {
            let subtransaction = pg_sys::GetCurrentSubTransactionId();
            if levels.last().is_none_or(|level| level.subtransaction != subtransaction) {
                levels.push(Level { subtransaction, registers: Vec::new() });
            }
            let registers = &mut levels.last_mut().expect("pushed above").registers;
            let place = registers.iter().position(|(oid, _)| *oid == register).unwrap_or_else(|| {
                let table = pg_sys::table_open(register, pg_sys::RowExclusiveLock.cast_signed());
                registers.push((register, Batch::new((*table).rd_att)));
                pg_sys::table_close(table, pg_sys::NoLock.cast_signed());
                registers.len() - 1
            });
            let batch = &mut registers[place].1;
            tombstone::form(key, Standing::Gone, None, |values, nulls| batch.add(values, nulls));
            batch.is_full().then(|| registers.swap_remove(place))
        });
        // Taken out: comparing keys may run anybody's code, and an ERROR there ends the (sub)transaction with all this.
        if let Some((register, mut batch)) = full {
            write(register, &mut batch);
            LEVELS.with_borrow_mut(|levels| match levels.last_mut() {
                Some(level) => level.registers.push((register, batch)),
                None => batch.free(),
            });
        }
    }
}

/// Writes what the current (sub)transaction still has to write: it is about to end.
///
/// # Safety
/// Inside a transaction.
#[inline]
pub(crate) unsafe fn settle() {
    if !LEVELS.borrow().is_empty() {
        // SAFETY: as the caller promises.
        unsafe { settle_innermost() };
    }
}

#[cold]
unsafe fn settle_innermost() {
    // SAFETY: a plain read of the backend's state.
    let is_current = |level: &mut Level| level.subtransaction == unsafe { pg_sys::GetCurrentSubTransactionId() };
    let level = LEVELS.with_borrow_mut(|levels| levels.pop_if(is_current));
    let Some(level) = level else { return };
    // SAFETY: as above; an ERROR leaves the snapshot for the abort to pop.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        for (register, mut batch) in level.registers {
            write(register, &mut batch);
            batch.free();
        }
        pg_sys::PopActiveSnapshot();
    }
}

unsafe fn write(register: pg_sys::Oid, batch: &mut Batch) {
    // SAFETY: as the callers promise. The transaction may have dropped the table meanwhile, or the extension.
    unsafe {
        if let Some(register) = Register::try_open(register) {
            register.write(batch, Sight::RowByRow);
            register.close();
        }
    }
}

/// A subtransaction was rolled back, and with it what it had to write. Must not fail.
pub(crate) fn forget(subtransaction: pg_sys::SubTransactionId) {
    if let Ok(mut levels) = LEVELS.try_borrow_mut() {
        levels.retain(|level| level.subtransaction < subtransaction);
    }
}

/// The transaction has ended. Must not fail.
#[inline]
pub(crate) fn forget_all() {
    let is_empty = LEVELS.try_borrow().is_ok_and(|levels| levels.is_empty());
    if !is_empty {
        forget(NONE);
    }
}
