//! From a tuple to the bytes that travel.
//!
//! A row is encoded in two steps. First every value is brought to where its bytes can be copied from ([`Piece`]): this
//! may detoast and call output functions, which may do anything, even write to a captured table. Only then is the row
//! written to the transaction's buffer, which calls nothing.

use std::ffi::CStr;

use duplex_protocol::encode::{FRAME_BYTES, RowWriter, VALUE_BYTES};
use pgrx::{PgSqlErrorCode, pg_sys};

use super::relation::{ColumnPlan, Table};
use super::settings::Pinned;
use super::stored::{Piece, Stored, Walk};
use super::types::{Encoder, database_is_utf8};
use crate::conflict::local::Row;
use crate::errors::{Failure, Result};

unsafe extern "C-unwind" {
    // Raises no ERROR; the binding's guard would cost each row more than it does.
    fn heap_deform_tuple(
        tuple: pg_sys::HeapTuple,
        descriptor: pg_sys::TupleDesc,
        values: *mut pg_sys::Datum,
        nulls: *mut bool,
    );
}

/// A tuple's values, one for each attribute.
#[derive(Debug, Default)]
pub(super) struct Values {
    datums: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
}

impl Values {
    /// As the registers want a row.
    pub(super) fn row(&self, tuple: pg_sys::HeapTuple) -> Row<'_> {
        Row { tuple, datums: &self.datums }
    }

    /// An attribute's value by its index, and whether it is NULL.
    pub(super) fn get(&self, attribute: usize) -> (pg_sys::Datum, bool) {
        (self.datums[attribute], self.nulls[attribute])
    }

    /// Takes a tuple apart. The values point into the tuple.
    ///
    /// # Safety
    /// `tuple` and `descriptor` are valid and of one relation, which has `attributes` attributes.
    #[inline]
    pub(super) unsafe fn deform(&mut self, tuple: pg_sys::HeapTuple, descriptor: pg_sys::TupleDesc, attributes: usize) {
        self.datums.resize(attributes, pg_sys::Datum::from(0));
        self.nulls.resize(attributes, true);
        // SAFETY: both arrays have room for all attributes.
        unsafe {
            heap_deform_tuple(tuple, descriptor, self.datums.as_mut_ptr(), self.nulls.as_mut_ptr());
        }
    }
}

/// Lists that are used for one row after the other. A row takes them and gives them back, so that a row that is captured
/// in the middle of another has its own.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) new: Values,
    pub(super) old: Values,
    pub(super) row: Vec<Piece>,
    pub(super) old_key: Vec<Piece>,
    pub(super) changed: Vec<u8>,
}

/// Brings all columns' values to where they can be copied from.
///
/// # Safety
/// `values` are those of a tuple of `table` that is still there.
#[inline]
pub(super) unsafe fn row(table: &Table, values: &Values, out: &mut Vec<Piece>) -> Result<()> {
    let pinned = Pinned::pin(table.settings);
    out.clear();
    for column in &table.columns {
        // SAFETY: as the caller promises.
        out.push(unsafe { piece(column, values)? });
    }
    pinned.release();
    Ok(())
}

/// The same for the key's columns.
///
/// # Safety
/// As [`row`].
#[inline]
pub(super) unsafe fn key(table: &Table, values: &Values, out: &mut Vec<Piece>) -> Result<()> {
    let pinned = Pinned::pin(table.settings);
    out.clear();
    for &place in &table.key {
        // SAFETY: as the caller promises.
        out.push(unsafe { piece(&table.columns[place as usize], values)? });
    }
    pinned.release();
    Ok(())
}

/// The most that a row of these values takes in the buffer.
#[inline]
pub(super) fn size(pieces: &[Piece], changed: &[u8]) -> Result<usize> {
    let values: usize = pieces.iter().map(|piece| piece.len + VALUE_BYTES).sum();
    let size = values + changed.len() + FRAME_BYTES;
    if u32::try_from(size).is_err() {
        return Err(Failure::new(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED, "row is too large to be replicated"));
    }
    Ok(size)
}

/// Writes the values into a row's frame, and returns its length.
///
/// # Safety
/// What the pieces point to is still there.
#[inline]
pub(super) unsafe fn write(pieces: &[Piece], mut writer: RowWriter<'_>) -> usize {
    for piece in pieces {
        if piece.start.is_null() {
            writer.null();
        } else {
            // SAFETY: as the caller promises.
            writer.bytes(unsafe { std::slice::from_raw_parts(piece.start, piece.len) });
        }
    }
    writer.finish()
}

/// The most that a tuple's row takes in the buffer if [`copy`] writes it, beside the bitmap of what changed.
///
/// # Safety
/// `tuple` is valid.
#[inline]
pub(super) unsafe fn copied_size(table: &Table, tuple: pg_sys::HeapTuple) -> usize {
    // SAFETY: as the caller promises.
    unsafe { (*tuple).t_len as usize + table.columns.len() * VALUE_BYTES + FRAME_BYTES }
}

/// Writes the values into a row's frame straight from their tuple, and returns its length: in one go, without calling
/// PostgreSQL. Returns 0 if that cannot be done, because a value is not stored as it travels.
///
/// # Safety
/// `tuple` is a tuple of `table`, all of whose columns are copied.
#[inline]
#[unsafe(link_section = ".text.duplex_hot")]
pub(super) unsafe fn copy(table: &Table, tuple: pg_sys::HeapTuple, mut writer: RowWriter<'_>) -> usize {
    // SAFETY: as the caller promises: the slots are those of the tuple's attributes, in their order, and a value of a fixed
    // length has as many bytes. Bytes have no alignment.
    unsafe {
        let Some(mut walk) = Walk::begin(tuple, table.slots.len()) else { return 0 };
        for (number, &slot) in table.slots.iter().enumerate() {
            if walk.is_null(number) {
                if slot.travels {
                    writer.null();
                }
                continue;
            }
            // The lengths that most values have are copied without a call.
            match slot.length {
                8 => write_fixed(&mut writer, slot.travels, walk.fixed(slot, 8).cast::<[u8; 8]>()),
                4 => write_fixed(&mut writer, slot.travels, walk.fixed(slot, 4).cast::<[u8; 4]>()),
                1 => write_fixed(&mut writer, slot.travels, walk.fixed(slot, 1).cast::<[u8; 1]>()),
                -1 => match walk.varlena(slot) {
                    _ if !slot.travels => {}
                    Stored::Plain(value) => writer.bytes(std::slice::from_raw_parts(value.start, value.len)),
                    Stored::Compressed(_) | Stored::Elsewhere(_) => return 0,
                },
                -2 => _ = walk.string(slot),
                length => {
                    let value = walk.fixed(slot, length as usize);
                    if slot.travels {
                        writer.bytes(std::slice::from_raw_parts(value, length as usize));
                    }
                }
            }
        }
    }
    writer.finish()
}

/// Which columns of an UPDATE differ, as [`compare`] finds it, from the tuples themselves. False if they do not tell: a value
/// is compressed or elsewhere, or the table had fewer columns when the row was written; and if the key differs, since that is
/// more than an UPDATE of one row. `changed` is all zero and has a bit for each column.
///
/// # Safety
/// Both are tuples of `table`, all of whose columns are copied.
#[inline]
pub(super) unsafe fn compare_stored(
    table: &Table,
    old: pg_sys::HeapTuple,
    new: pg_sys::HeapTuple,
    changed: &mut [u8],
) -> bool {
    // SAFETY: as the caller promises: the slots are those of the tuples' attributes, in their order.
    unsafe {
        let attributes = table.slots.len();
        let Some((mut old, mut new)) = Walk::begin(old, attributes).zip(Walk::begin(new, attributes)) else {
            return false;
        };
        let mut place = 0;
        for (number, &slot) in table.slots.iter().enumerate() {
            let is_same = match (old.is_null(number), new.is_null(number)) {
                (false, false) => match slot.length {
                    // The lengths that most values have are compared without a call.
                    8 => same_fixed(old.fixed(slot, 8).cast::<[u8; 8]>(), new.fixed(slot, 8).cast()),
                    4 => same_fixed(old.fixed(slot, 4).cast::<[u8; 4]>(), new.fixed(slot, 4).cast()),
                    1 => same_fixed(old.fixed(slot, 1).cast::<[u8; 1]>(), new.fixed(slot, 1).cast()),
                    _ => match (old.next(slot), new.next(slot)) {
                        (Some(old), Some(new)) => equal(old, new),
                        _ => return false,
                    },
                },
                (old_null, new_null) => {
                    let walk = if old_null { &mut new } else { &mut old };
                    if !(old_null && new_null) && walk.next(slot).is_none() {
                        return false;
                    }
                    old_null == new_null
                }
            };
            if !slot.travels {
                continue;
            }
            if !is_same {
                let Some(column) = table.columns.get(place) else { return false };
                if column.is_key {
                    return false;
                }
                changed[place / 8] |= 1 << (place % 8);
            }
            place += 1;
        }
    }
    true
}

#[inline]
unsafe fn same_fixed<const LEN: usize>(old: *const [u8; LEN], new: *const [u8; LEN]) -> bool {
    // SAFETY: the caller passes where values of this length lie.
    unsafe { *old == *new }
}

#[inline]
unsafe fn write_fixed<const LEN: usize>(writer: &mut RowWriter<'_>, travels: bool, value: *const [u8; LEN]) {
    if travels {
        // SAFETY: the caller passes where a value of this length lies.
        writer.array(unsafe { &*value });
    }
}

/// Which columns of an UPDATE differ, as the stream's bitmap; whether the key does.
///
/// # Safety
/// Both are values of tuples of `table` that are still there.
#[inline]
pub(super) unsafe fn compare(table: &Table, old: &Values, new: &Values, changed: &mut Vec<u8>) -> bool {
    changed.clear();
    changed.resize(table.columns.len().div_ceil(8), 0);
    let mut key_changed = false;
    for (place, column) in table.columns.iter().enumerate() {
        // SAFETY: as the caller promises.
        if unsafe { !is_same(column, old, new) } {
            changed[place / 8] |= 1 << (place % 8);
            key_changed |= column.is_key;
        }
    }
    key_changed
}

unsafe fn piece(column: &ColumnPlan, values: &Values) -> Result<Piece> {
    if values.nulls[column.attribute] {
        return Ok(Piece::NULL);
    }
    let datum = &values.datums[column.attribute];
    // SAFETY: the value is not NULL, and the column's plan was made for its type: what is passed by value is in the
    // datum's first bytes (little-endian), everything else is what the datum points to.
    unsafe {
        Ok(match column.encoder {
            Encoder::ByValue(len) => Piece { start: std::ptr::from_ref(datum).cast(), len },
            Encoder::Fixed(len) => Piece { start: datum.cast_mut_ptr::<u8>(), len },
            Encoder::Varlena => detoasted(datum.cast_mut_ptr()),
            Encoder::Transcoded => {
                let text = detoasted(datum.cast_mut_ptr());
                transcoded(text)
            }
            Encoder::Output(function) => {
                let text = pg_sys::OutputFunctionCall(function, *datum);
                let text = Piece { start: text.cast(), len: CStr::from_ptr(text).count_bytes() };
                if database_is_utf8() { text } else { transcoded(text) }
            }
        })
    }
}

/// The same text in UTF-8.
unsafe fn transcoded(text: Piece) -> Piece {
    // SAFETY: the text is in the database's encoding; the result is the text itself, or a palloc'd copy ending in NUL.
    unsafe {
        let converted = pg_sys::pg_server_to_any(text.start.cast(), text.len as i32, pg_sys::pg_enc::PG_UTF8 as i32);
        if converted.cast_const().cast() == text.start {
            return text;
        }
        Piece { start: converted.cast(), len: CStr::from_ptr(converted).count_bytes() }
    }
}

#[inline]
unsafe fn detoasted(varlena: *mut u8) -> Piece {
    // SAFETY: the caller passes a varlena; what detoasting returns is a plain one.
    unsafe {
        match Stored::of(varlena) {
            Stored::Plain(content) => content,
            Stored::Compressed(_) | Stored::Elsewhere(_) => {
                let plain = pg_sys::detoast_attr(varlena.cast()).cast::<u8>();
                match Stored::of(plain) {
                    Stored::Plain(content) | Stored::Compressed(content) | Stored::Elsewhere(content) => content,
                }
            }
        }
    }
}

unsafe fn is_same(column: &ColumnPlan, old: &Values, new: &Values) -> bool {
    let place = column.attribute;
    if old.nulls[place] || new.nulls[place] {
        return old.nulls[place] == new.nulls[place];
    }
    let (old, new) = (old.datums[place], new.datums[place]);
    if column.by_value {
        return old == new;
    }
    let (old, new) = (old.cast_mut_ptr::<u8>(), new.cast_mut_ptr::<u8>());
    // SAFETY: both are not NULL, and point to values of the column's type.
    unsafe {
        match column.length {
            -1 => match (Stored::of(old), Stored::of(new)) {
                (Stored::Plain(old), Stored::Plain(new))
                | (Stored::Compressed(old), Stored::Compressed(new))
                | (Stored::Elsewhere(old), Stored::Elsewhere(new))
                    if equal(old, new) =>
                {
                    true
                }
                (Stored::Plain(_), Stored::Plain(_)) => false,
                // Stored in another way: it was assigned. That makes it changed, but for a key only its content counts.
                _ => column.is_key && equal(detoasted(old), detoasted(new)),
            },
            -2 => CStr::from_ptr(old.cast()) == CStr::from_ptr(new.cast()),
            len => equal(Piece { start: old, len: len as usize }, Piece { start: new, len: len as usize }),
        }
    }
}

#[inline]
unsafe fn equal(left: Piece, right: Piece) -> bool {
    // SAFETY: the caller passes pieces that are not NULL and still there.
    unsafe { std::slice::from_raw_parts(left.start, left.len) == std::slice::from_raw_parts(right.start, right.len) }
}
