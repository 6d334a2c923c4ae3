//! Reading queue rows off a heap page.
//!
//! The columns have fixed places: lsn (8 bytes), xid (8), chunk, piece, expanded_len (4 each), all NOT NULL, then the
//! payload. `sql/10_tables.sql` declares the same, and `row` writes it.

use pgrx::{PgSqlErrorCode, pg_sys};

use duplex_protocol::record::Position;

use super::row::PAYLOAD_AT;
use crate::errors::{Failure, Result};

/// Where a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RowId {
    /// Index of the queue table.
    pub(crate) table: u8,
    /// Number of the page.
    pub(crate) block: u32,
    /// Number of the line pointer on the page.
    pub(crate) offset: u16,
}

/// A row without its payload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowHead {
    pub(crate) position: Position,
    pub(crate) chunk: u32,
    pub(crate) piece: u32,
    pub(crate) offset: u16,
    /// Who wrote the row: the transaction itself, or a subtransaction of it after the transaction's flush.
    pub(crate) writer: pg_sys::TransactionId,
    /// What the tuple's hint bits say of its writer: committed, aborted, or nothing yet.
    pub(crate) committed: Option<bool>,
}

/// Reads the heads of all rows on a page into `heads` (cleared first) and returns the page's LSN, which changes with
/// every insert.
pub(crate) fn read_heads(relation: pg_sys::Relation, block: u32, heads: &mut Vec<RowHead>) -> Result<u64> {
    heads.clear();
    // SAFETY: the page is pinned and share-locked while it is read; nothing between lock and unlock can raise an
    // ERROR, and rows are copied out.
    unsafe {
        let buffer = read_locked(relation, block);
        let page = pg_sys::BufferGetPage(buffer);
        let lsn = page_lsn(page);
        let mut complete = true;
        for offset in 1..=line_pointers(page) {
            if let Some(tuple) = tuple_at(page, offset) {
                match parse_head(tuple, offset) {
                    Some(head) => heads.push(head),
                    None => complete = false,
                }
            }
        }
        pg_sys::UnlockReleaseBuffer(buffer);
        if complete { Ok(lsn) } else { Err(malformed()) }
    }
}

/// The page's LSN, which changes with every insert.
pub(crate) fn read_lsn(relation: pg_sys::Relation, block: u32) -> u64 {
    // SAFETY: the page is pinned and share-locked while its header is read.
    unsafe {
        let buffer = read_locked(relation, block);
        let lsn = page_lsn(pg_sys::BufferGetPage(buffer));
        pg_sys::UnlockReleaseBuffer(buffer);
        lsn
    }
}

/// Appends the payload of a row to `out` and returns its `expanded_len`.
pub(crate) fn read_payload(relation: pg_sys::Relation, row: RowId, out: &mut Vec<u8>) -> Result<i32> {
    // SAFETY: as in `read_heads`.
    unsafe {
        let buffer = read_locked(relation, row.block);
        let page = pg_sys::BufferGetPage(buffer);
        let found = (row.offset <= line_pointers(page))
            .then(|| tuple_at(page, row.offset))
            .flatten()
            .and_then(|(_, data)| Some((u32_at(data, 24)?, inline_varlena(data.get(PAYLOAD_AT..)?)?)));
        let result = found.map(|(expanded_len, payload)| {
            out.extend_from_slice(payload);
            expanded_len.cast_signed()
        });
        pg_sys::UnlockReleaseBuffer(buffer);
        result.ok_or_else(malformed)
    }
}

pub(super) fn malformed() -> Failure {
    Failure::new(PgSqlErrorCode::ERRCODE_DATA_CORRUPTED, "a row of duplex.queue cannot be read")
        .hint("The queue tables were altered, or their storage is damaged: check the server's log and disks.")
}

/// # Safety
/// `relation` is open, `block` is below its length.
unsafe fn read_locked(relation: pg_sys::Relation, block: u32) -> pg_sys::Buffer {
    // SAFETY: as the caller promises; an ERROR releases pin and lock with the transaction.
    unsafe {
        let buffer = pg_sys::ReadBufferExtended(
            relation,
            pg_sys::ForkNumber::MAIN_FORKNUM,
            block,
            pg_sys::ReadBufferMode::RBM_NORMAL,
            std::ptr::null_mut(),
        );
        pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
        buffer
    }
}

/// # Safety
/// `page` is a locked page.
unsafe fn page_lsn(page: pg_sys::Page) -> u64 {
    // SAFETY: as the caller promises.
    let lsn = unsafe { (*page.cast::<pg_sys::PageHeaderData>()).pd_lsn };
    (u64::from(lsn.xlogid) << 32) | u64::from(lsn.xrecoff)
}

/// # Safety
/// `page` is a locked heap page.
unsafe fn line_pointers(page: pg_sys::Page) -> u16 {
    // SAFETY: as the caller promises. A page that was added and not yet filled is all zero.
    unsafe {
        let header = page.cast::<pg_sys::PageHeaderData>();
        let start = std::mem::offset_of!(pg_sys::PageHeaderData, pd_linp);
        (usize::from((*header).pd_lower).saturating_sub(start) / size_of::<pg_sys::ItemIdData>()) as u16
    }
}

type Tuple<'p> = (&'p pg_sys::HeapTupleHeaderData, &'p [u8]);

/// The tuple behind a line pointer: its header and the bytes of its columns; `None` if the pointer is unused.
///
/// # Safety
/// `page` is a locked heap page and stays so as long as the result is used; `offset` is one of its line pointers.
unsafe fn tuple_at<'p>(page: pg_sys::Page, offset: u16) -> Option<Tuple<'p>> {
    // SAFETY: as the caller promises; lengths are checked against the page's size.
    unsafe {
        let header = page.cast::<pg_sys::PageHeaderData>();
        let item = *(*header).pd_linp.as_ptr().add(usize::from(offset) - 1);
        if item.lp_flags() != pg_sys::LP_NORMAL {
            return None;
        }
        let (start, len) = (item.lp_off() as usize, item.lp_len() as usize);
        if start + len > pg_sys::BLCKSZ as usize || len < size_of::<pg_sys::HeapTupleHeaderData>() {
            return None;
        }
        let bytes = std::slice::from_raw_parts(page.cast::<u8>().add(start), len);
        let tuple = &*bytes.as_ptr().cast::<pg_sys::HeapTupleHeaderData>();
        Some((tuple, bytes.get(usize::from(tuple.t_hoff)..)?))
    }
}

fn parse_head((tuple, data): Tuple<'_>, offset: u16) -> Option<RowHead> {
    let infomask = u32::from(tuple.t_infomask);
    let committed = if infomask & pg_sys::HEAP_XMIN_COMMITTED != 0 {
        Some(true)
    } else if infomask & pg_sys::HEAP_XMIN_INVALID != 0 {
        Some(false)
    } else {
        None
    };
    let position = Position { lsn: u64_at(data, 0)?, xid: u64_at(data, 8)? };
    // SAFETY: a heap tuple's header holds the heap's fields.
    let writer = unsafe { tuple.t_choice.t_heap.t_xmin };
    Some(RowHead { position, chunk: u32_at(data, 16)?, piece: u32_at(data, 20)?, offset, writer, committed })
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*data.get(at..)?.first_chunk()?))
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*data.get(at..)?.first_chunk()?))
}

/// The content of a varlena that is neither compressed nor out of line, with a header of one byte or of four.
fn inline_varlena(data: &[u8]) -> Option<&[u8]> {
    let first = *data.first()?;
    if first & 1 == 1 {
        data.get(1..usize::from(first >> 1))
    } else if first & 3 == 0 {
        data.get(4..(u32_at(data, 0)? >> 2) as usize)
    } else {
        None
    }
}
