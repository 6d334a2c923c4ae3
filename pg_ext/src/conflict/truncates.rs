//! The newest TRUNCATE of each table.

use std::ffi::CStr;

use duplex_protocol::version::Version;
use pgrx::pg_sys;

use crate::conflict::registers::{each_row, own_table};
use crate::conflict::version::stored;

const TABLE: &CStr = c"truncates";

/// Remembers a TRUNCATE of the current transaction, in place of an earlier one. `version` is that of the transaction
/// unless given. The table is locked by the TRUNCATE, so nobody else does the same.
///
/// # Safety
/// Inside a transaction.
pub(crate) unsafe fn remember(relid: pg_sys::Oid, version: Option<&Version>) {
    let Some(oid) = own_table(TABLE) else { return };
    let mut old = None;
    each_row(TABLE, Some(relid), |row| old = Some(row.place()));
    // SAFETY: as the caller promises; the values are of the table's three columns.
    unsafe {
        let heap = pg_sys::table_open(oid, pg_sys::RowExclusiveLock.cast_signed());
        let command = pg_sys::GetCurrentCommandId(true);
        if let Some(mut place) = old {
            let mut failure = pg_sys::TM_FailureData::default();
            pg_sys::heap_delete(heap, &mut place, command, std::ptr::null_mut(), true, &mut failure, false);
        }
        let ([commit_ts, origin], [no_ts, no_origin]) = stored(version);
        let mut values = [relid.into(), commit_ts, origin];
        let mut nulls = [false, no_ts, no_origin];
        let tuple = pg_sys::heap_form_tuple((*heap).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
        pg_sys::heap_insert(heap, tuple, command, 0, std::ptr::null_mut());
        pg_sys::heap_freetuple(tuple);
        pg_sys::table_close(heap, pg_sys::NoLock.cast_signed());
        pg_sys::CommandCounterIncrement();
    }
}
