//! Writing a transaction's chunks into the queue, at heap level.
//!
//! No SPI and no change of user: the writer needs no right on schema `duplex`. No index and no TOAST: a chunk is cut
//! into pieces that fit a page. Pages are filled in order, without the free space map, so that the drain knows where
//! new rows can still turn up (`segment`).

use pgrx::pg_sys;

use super::page::PAYLOAD_AT;
use super::{limit, tables};
use crate::errors::Result;

/// Bytes of payload in one queue row: with the tuple's header and fixed columns it just fits an empty page.
const PIECE_BYTES: usize = pg_sys::BLCKSZ as usize - 160;

/// `HEAP_INSERT_SKIP_FSM`: take the last page or a new one, never an older page with room.
const INSERT_OPTIONS: i32 = pg_sys::HEAP_INSERT_SKIP_FSM as i32;

/// Where an earlier flush of the same transaction stopped: another extension's pre-commit callback may write after
/// ours, and its changes follow as further chunks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FlushPoint {
    /// WAL insert position of the first flush; all chunks of the transaction carry it.
    pub(crate) lsn: u64,
    /// Number of the next chunk.
    pub(crate) next_chunk: u32,
}

/// The queue table that writers append to, open for one transaction's chunks.
#[derive(Debug)]
pub(crate) struct QueueWriter {
    /// Null where the extension was dropped in this very transaction: there is no node any more to capture for.
    relation: pg_sys::Relation,
    xid: u64,
    point: FlushPoint,
    /// A row of the queue, filled anew for each piece that fits it.
    row: pg_sys::HeapTuple,
    /// The longest piece that fits.
    room: usize,
}

impl QueueWriter {
    /// Opens the current queue table; `after` continues an earlier flush of this transaction.
    ///
    /// The ordering position is taken here: a transaction that waited for another one comes here only after that one's
    /// commit, so its position is the greater one.
    ///
    /// # Errors
    /// As [`tables::lookup`] and [`limit::check`].
    pub(crate) fn open(after: Option<FlushPoint>) -> Result<Self> {
        let tables = tables::lookup()?;
        // SAFETY: called at pre-commit, inside a transaction that has written and so has a transaction id; the table
        // is open with its lock until the end of the transaction.
        unsafe {
            let relation = match tables {
                Some(tables) => {
                    limit::check(&tables)?;
                    let oid = tables.queue[tables.writing];
                    pg_sys::table_open(oid, pg_sys::RowExclusiveLock as _)
                }
                None => std::ptr::null_mut(),
            };
            if let Some(storage) = relation.as_ref().and_then(|relation| relation.rd_smgr.as_mut()) {
                // Forget the page that this backend used last: others have gone on since.
                storage.smgr_targblock = pg_sys::InvalidBlockNumber;
            }
            let point = after.unwrap_or_else(|| FlushPoint { lsn: pg_sys::GetXLogInsertRecPtr(), next_chunk: 0 });
            let xid = pg_sys::GetTopFullTransactionId().value;
            Ok(Self { relation, xid, point, row: std::ptr::null_mut(), room: 0 })
        }
    }

    /// Appends one chunk; `expanded_len` is 0 if `body` is not compressed.
    pub(crate) fn append(&mut self, body: &[u8], expanded_len: u32) -> Result<()> {
        if !self.relation.is_null() {
            for (number, piece) in body.chunks(PIECE_BYTES).enumerate() {
                self.insert(number as u32, expanded_len, piece);
            }
        }
        self.point.next_chunk += 1;
        Ok(())
    }

    fn insert(&mut self, number: u32, expanded_len: u32, piece: &[u8]) {
        let header = pg_sys::VARHDRSZ + piece.len();
        // SAFETY: the row has room for the piece behind its fixed columns, whose places `page` knows; heap_insert copies
        // it, and sets all of its header that belongs to one insert.
        unsafe {
            if self.row.is_null() || self.room < piece.len() {
                self.make_row(piece.len());
            }
            let start = (*self.row).t_data.cast::<u8>().add(usize::from((*(*self.row).t_data).t_hoff));
            start.cast::<u64>().write_unaligned(self.point.lsn);
            start.add(8).cast::<u64>().write_unaligned(self.xid);
            start.add(16).cast::<u32>().write_unaligned(self.point.next_chunk);
            start.add(20).cast::<u32>().write_unaligned(number);
            start.add(24).cast::<u32>().write_unaligned(expanded_len);
            let payload = start.add(PAYLOAD_AT);
            pgrx::set_varsize_4b(payload.cast(), header as i32);
            std::ptr::copy_nonoverlapping(piece.as_ptr(), payload.add(pg_sys::VARHDRSZ), piece.len());
            (*self.row).t_len = (payload.offset_from((*self.row).t_data.cast()) as usize + header) as u32;
            let command = pg_sys::GetCurrentCommandId(true);
            pg_sys::heap_insert(self.relation, self.row, command, INSERT_OPTIONS, std::ptr::null_mut());
        }
    }

    /// Makes the row, with room for a piece of this length.
    unsafe fn make_row(&mut self, room: usize) {
        // SAFETY: the values match the table's six columns in type and order; the varlena is palloc'd in its full size.
        unsafe {
            let payload = pg_sys::palloc0(pg_sys::VARHDRSZ + room).cast::<pg_sys::varlena>();
            pgrx::set_varsize_4b(payload, (pg_sys::VARHDRSZ + room) as i32);
            let mut values = [pg_sys::Datum::from(0_u64); 6];
            values[5] = pg_sys::Datum::from(payload);
            let mut nulls = [false; 6];
            self.free_row();
            self.row = pg_sys::heap_form_tuple((*self.relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            self.room = room;
            pg_sys::pfree(payload.cast());
        }
    }

    unsafe fn free_row(&mut self) {
        if !self.row.is_null() {
            // SAFETY: made by `make_row`.
            unsafe { pg_sys::heap_freetuple(self.row) };
            self.row = std::ptr::null_mut();
        }
    }

    /// Closes the table, keeping its lock to the end of the transaction.
    pub(crate) fn close(mut self) -> FlushPoint {
        if !self.relation.is_null() {
            // SAFETY: opened in `open`, closed once, since this consumes the writer.
            unsafe {
                self.free_row();
                pg_sys::table_close(self.relation, pg_sys::NoLock as _);
            }
        }
        self.point
    }
}
