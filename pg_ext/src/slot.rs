//! Reading the values of a slot.

use pgrx::pg_sys;

/// Makes the first `count` values readable in `tts_values` and `tts_isnull`, as `slot_getsomeattrs` does in C: what is there
/// already is not to be asked for again.
///
/// # Safety
/// The slot is valid, holds a row, and has as many attributes.
#[inline]
pub(crate) unsafe fn deform(slot: *mut pg_sys::TupleTableSlot, count: i32) {
    // SAFETY: as the caller promises.
    unsafe {
        if i32::from((*slot).tts_nvalid) < count {
            pg_sys::slot_getsomeattrs_int(slot, count);
        }
    }
}
