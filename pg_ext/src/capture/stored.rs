//! Finding a tuple's values where they lie, for a row that is only to be copied.
//!
//! `heap_deform_tuple` makes a datum of each value, and the datum has to be taken apart again. Capturing an INSERT of
//! values that travel as they are stored needs neither, and what it costs counts a million times in a bulk load. The layout of a tuple is the server's file
//! format: a header, a bitmap where there are NULLs, then each value, aligned as its type says; a varlena with a header
//! of one byte is not aligned (`att_align_pointer` in `access/tupmacs.h`).

use std::ffi::CStr;

use pgrx::pg_sys;

/// What finding an attribute's value takes, dropped attributes included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    /// `attlen`: above 0 a fixed length, -1 a varlena, -2 a string.
    length: i16,
    /// It begins at a multiple of one more than this, which is a power of two.
    align_mask: usize,
}

impl Slot {
    pub(super) fn of(attribute: &pg_sys::FormData_pg_attribute) -> Self {
        let align_mask = match attribute.attalign as u8 {
            pg_sys::TYPALIGN_CHAR => 0,
            pg_sys::TYPALIGN_SHORT => 1,
            pg_sys::TYPALIGN_INT => 3,
            _ => 7,
        };
        Self { length: attribute.attlen, align_mask }
    }
}

/// Calls `take` with each attribute's index and where its value lies, null for NULL. Returns false, before any call, if the
/// tuple is of a time when the table had fewer attributes: what is missing there is not in the tuple.
///
/// # Safety
/// `tuple` is a valid tuple of the table whose attributes `slots` describes.
#[inline]
pub(super) unsafe fn for_each<E>(
    tuple: pg_sys::HeapTuple,
    slots: &[Slot],
    mut take: impl FnMut(usize, *const u8) -> Result<(), E>,
) -> Result<bool, E> {
    // SAFETY: as the caller promises, so each value lies where the header, the bitmap and the values before it say.
    unsafe {
        let header = (*tuple).t_data;
        if (u32::from((*header).t_infomask2) & pg_sys::HEAP_NATTS_MASK) < slots.len() as u32 {
            return Ok(false);
        }
        let has_nulls = u32::from((*header).t_infomask) & pg_sys::HEAP_HASNULL != 0;
        let present = (*header).t_bits.as_ptr();
        let values = header.cast::<u8>().add(usize::from((*header).t_hoff));
        let mut at = 0_usize;
        for (number, slot) in slots.iter().enumerate() {
            if has_nulls && *present.add(number / 8) >> (number % 8) & 1 == 0 {
                take(number, std::ptr::null())?;
                continue;
            }
            // A byte of padding is 0, and no header of one byte is.
            if slot.length != -1 || *values.add(at) == 0 {
                at = (at + slot.align_mask) & !slot.align_mask;
            }
            let value = values.add(at).cast_const();
            at += match slot.length {
                -1 => varlena_size(value),
                -2 => CStr::from_ptr(value.cast()).count_bytes() + 1,
                length => length as usize,
            };
            take(number, value)?;
        }
    }
    Ok(true)
}

/// The length of a varlena, its header included, by the lowest bits of its first byte.
///
/// # Safety
/// `varlena` points to one.
#[inline]
unsafe fn varlena_size(varlena: *const u8) -> usize {
    const ELSEWHERE: u8 = 0x01;
    // SAFETY: as the caller promises.
    unsafe {
        match *varlena {
            ELSEWHERE => pgrx::varsize_external(varlena.cast()),
            short if short & 1 == 1 => usize::from(short >> 1),
            _ => (varlena.cast::<u32>().read_unaligned() >> 2) as usize,
        }
    }
}
