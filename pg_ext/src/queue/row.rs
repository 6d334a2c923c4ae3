//! A row of the queue as it is written: a tuple's header, the fixed columns, the payload. Built in one place that a backend
//! uses for all its rows, because every captured transaction writes one at least.
//!
//! `page` reads the same layout, and `sql/10_tables.sql` declares it.

use std::cell::RefCell;

use pgrx::pg_sys;

use crate::backend_local::BackendLocal;

/// Bytes of payload in one row: with the tuple's header and fixed columns it just fits an empty page.
pub(super) const PIECE_BYTES: usize = pg_sys::BLCKSZ as usize - 160;

/// The payload's place behind a row's header.
pub(super) const PAYLOAD_AT: usize = 28;

/// All columns of the table; none is NULL, so that the header has no bitmap.
const COLUMNS: u16 = 6;

/// A tuple's header, up to where the columns begin.
const HEADER_BYTES: usize = size_of::<pg_sys::HeapTupleHeaderData>().next_multiple_of(ALIGNMENT);

/// `MAXIMUM_ALIGNOF`.
const ALIGNMENT: usize = 8;

/// What a row says beside its place in the order and its payload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns {
    pub(super) chunk: u32,
    pub(super) piece: u32,
    pub(super) expanded_len: u32,
}

#[repr(C, align(8))]
struct Room([u8; pg_sys::BLCKSZ as usize]);

#[unsafe(link_section = ".data.duplex_hot")]
static ROOM: BackendLocal<RefCell<Room>> = BackendLocal::new(RefCell::new(Room([0; pg_sys::BLCKSZ as usize])));

/// A row that still has to be told its place in the order. Good until the next one is built.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    tuple: pg_sys::HeapTupleData,
}

impl Row {
    /// The tuple, at this place. Never panics.
    pub(super) fn placed(&mut self, lsn: u64, xid: u64) -> pg_sys::HeapTuple {
        // SAFETY: the tuple lies in the room, which is aligned for its first columns, two numbers of eight bytes.
        unsafe {
            let columns = self.tuple.t_data.byte_add(HEADER_BYTES).cast::<u64>();
            columns.write(lsn.to_le());
            columns.add(1).write(xid.to_le());
        }
        &raw mut self.tuple
    }
}

/// Builds a row. The parts of the payload have at most [`PIECE_BYTES`] together.
pub(super) fn build(columns: Columns, payload: &[&[u8]]) -> Row {
    ROOM.with_borrow_mut(|Room(room)| {
        let rest = &mut room[HEADER_BYTES..];
        let Columns { chunk, piece, expanded_len } = columns;
        rest[16..20].copy_from_slice(&chunk.to_le_bytes());
        rest[20..24].copy_from_slice(&piece.to_le_bytes());
        rest[24..PAYLOAD_AT].copy_from_slice(&expanded_len.to_le_bytes());
        // A varlena with a header of four bytes.
        let content = PAYLOAD_AT + pg_sys::VARHDRSZ;
        let mut end = content;
        for part in payload {
            rest[end..end + part.len()].copy_from_slice(part);
            end += part.len();
        }
        let varlena = (end - PAYLOAD_AT) as u32;
        rest[PAYLOAD_AT..content].copy_from_slice(&(varlena << 2).to_le_bytes());
        let header = room.as_mut_ptr().cast::<pg_sys::HeapTupleHeaderData>();
        // SAFETY: the room is aligned for the header and has all of it. What is not set here heap_insert sets.
        unsafe {
            (*header).t_infomask2 = COLUMNS;
            (*header).t_infomask = pg_sys::HEAP_HASVARWIDTH as u16;
            (*header).t_hoff = HEADER_BYTES as u8;
        }
        let tuple = pg_sys::HeapTupleData {
            t_len: (HEADER_BYTES + end) as u32,
            t_data: header,
            ..pg_sys::HeapTupleData::default()
        };
        Row { tuple }
    })
}
