//! What a TRUNCATE leaves of the rows of a table with a policy: it takes nothing away from counters, and columns that are
//! written later come into rows as they were.

use pgrx::pg_sys;

use super::encode::Values;
use super::policy::{Capture, held};
use super::relation;
use super::transaction;
use crate::apply::truncate::with_partitions;
use crate::conflict::counter::{Amount, is_nothing};
use crate::conflict::kept::{self, oldest};
use crate::conflict::local::Held;
use crate::conflict::row_memory::RowMemory;
use crate::conflict::version::stored;
use crate::errors::Result;

/// A TRUNCATE is about to empty a table, with its partitions.
///
/// # Safety
/// The relation is open, and locked with all its partitions.
pub(super) unsafe fn before_truncate(relation: &pg_sys::RelationData) -> Result<()> {
    // SAFETY: as the caller promises; each member is open while it is looked at.
    unsafe {
        for oid in with_partitions(relation.rd_id, pg_sys::AccessShareLock) {
            let member = pg_sys::table_open(oid, pg_sys::NoLock.cast_signed());
            if (*(*member).rd_rel).relkind as u8 == pg_sys::RELKIND_RELATION {
                let table = relation::lookup(&*member)?;
                if let Some((registers, kept)) = table.kept() {
                    Capture { table: &table, relation: &*member, registers, kept }.keep_all()?;
                }
            }
            pg_sys::table_close(member, pg_sys::NoLock.cast_signed());
        }
    }
    Ok(())
}

impl Capture<'_> {
    /// Remembers every row that a TRUNCATE is about to take, at its own version, with what its counters hold: the
    /// TRUNCATE takes nothing away from them.
    unsafe fn keep_all(&self) -> Result<()> {
        let relation = std::ptr::from_ref(self.relation).cast_mut();
        let mut values = Values::default();
        // SAFETY: the table is locked by the TRUNCATE. The scan is ended and the snapshot given back, here or by the
        // abort that an error leads to.
        unsafe {
            let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
            let flags = pg_sys::ScanOptions::SO_TYPE_SEQSCAN | pg_sys::ScanOptions::SO_ALLOW_PAGEMODE;
            let none = std::ptr::null_mut();
            let scan = pg_sys::heap_beginscan(relation, snapshot, 0, std::ptr::null_mut(), none, flags);
            let memory = RowMemory::new();
            loop {
                pgrx::check_for_interrupts!();
                let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
                if tuple.is_null() {
                    break;
                }
                memory.within(|| self.keep(tuple, &mut values))?;
            }
            memory.delete();
            pg_sys::heap_endscan(scan);
            pg_sys::UnregisterSnapshot(snapshot);
        }
        Ok(())
    }

    /// Remembers one of them.
    unsafe fn keep(&self, tuple: pg_sys::HeapTuple, values: &mut Values) -> Result<()> {
        let relation = std::ptr::from_ref(self.relation).cast_mut();
        // SAFETY: as the callers promise: the tuple is of the relation.
        unsafe {
            values.deform(tuple, self.relation.rd_att, self.table.attributes);
            let before = self.before(tuple, values)?;
            let replaced = before.replaced;
            let residual: Vec<Amount> = self.amounts(values).collect();
            let image = self.image(tuple, &before)?;
            let key = self.registers.key(values.row(tuple));
            if let (Some(merged), Some(columns)) = (&self.table.merged, &before.columns) {
                self.registers.truncated_with(relation, values.row(tuple), |number| held(merged, columns, number));
            }
            if image.is_none() && is_nothing(&residual) {
                self.kept.registers.forget_residual(&key);
                return Ok(());
            }
            let origin = transaction::origin_name(replaced);
            let held = Held { replaced, origin: origin.as_deref() }.stored();
            let version: kept::Written = held.unwrap_or_else(|| stored(Some(&oldest())));
            self.kept.registers.remember(&key, version, &residual, image.as_deref());
        }
        Ok(())
    }
}
