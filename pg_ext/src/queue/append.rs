//! Writing a transaction's chunks into the queue, at heap level.
//!
//! No SPI and no change of user: the writer needs no right on schema `duplex`. No index and no TOAST: a chunk is cut
//! into pieces that fit a page.
//!
//! Each backend goes on with the page that it used last, without a look at the file's length and without another backend
//! on the same page; `heap_insert` remembers it. Where the drain says that this page is done with (`segment`), or there is
//! none yet, it takes the table's last page, and where that is full a new one. The free space map is never asked.

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;

use super::row::{Columns, PIECE_BYTES, with_row};
use super::short::ShortBody;
use super::{limit, tables};
use crate::errors::Result;

// Of the bindings each has a guard of its own, which every transaction would pay for. Here all that a short transaction calls
// shares one.
unsafe extern "C-unwind" {
    fn table_open(relation: pg_sys::Oid, lock: pg_sys::LOCKMODE) -> pg_sys::Relation;
    fn GetXLogInsertRecPtr() -> pg_sys::XLogRecPtr;
    fn GetTopFullTransactionId() -> pg_sys::FullTransactionId;
    fn GetCurrentCommandId(used: bool) -> pg_sys::CommandId;
    fn heap_insert(
        relation: pg_sys::Relation,
        tuple: pg_sys::HeapTuple,
        command: pg_sys::CommandId,
        options: i32,
        bulk: pg_sys::BulkInsertState,
    );
    // Raises no ERROR for a table that is open, and so needs no guard.
    fn table_close(relation: pg_sys::Relation, lock: pg_sys::LOCKMODE);
}

/// `HEAP_INSERT_SKIP_FSM`: take the page used last, the last page or a new one, never an older page with room.
const INSERT_OPTIONS: i32 = pg_sys::HEAP_INSERT_SKIP_FSM as i32;

/// Where an earlier flush of the same transaction stopped: another extension's pre-commit callback may write after
/// ours, and its changes follow as further chunks.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct FlushPoint {
    /// WAL insert position at the first row; all chunks of the transaction carry it. 0 before.
    pub(crate) lsn: u64,
    /// Number of the next chunk.
    pub(crate) next_chunk: u32,
}

/// The queue table that writers append to, for one transaction's chunks.
#[derive(Debug)]
pub(crate) struct QueueWriter {
    /// Nothing where the extension was dropped in this very transaction: there is no node any more to capture for.
    table: Option<pg_sys::Oid>,
    /// Null until the first row.
    relation: pg_sys::Relation,
    xid: u64,
    point: FlushPoint,
}

impl QueueWriter {
    /// Readies the current queue table; `after` continues an earlier flush of this transaction.
    ///
    /// # Errors
    /// As [`tables::lookup`] and [`limit::check`].
    pub(crate) fn open(after: Option<FlushPoint>) -> Result<Self> {
        let tables = tables::lookup()?;
        if let Some(tables) = &tables {
            limit::check(tables)?;
        }
        let table = tables.map(|tables| tables.queue[tables.writing]);
        Ok(Self { table, relation: std::ptr::null_mut(), xid: 0, point: after.unwrap_or_default() })
    }

    /// Appends one chunk; `expanded_len` is 0 if `body` is not compressed.
    pub(crate) fn append(&mut self, body: &[u8], expanded_len: u32) -> Result<()> {
        for (number, piece) in body.chunks(PIECE_BYTES).enumerate() {
            self.insert(number as u32, expanded_len, &[piece]);
        }
        self.point.next_chunk += 1;
        Ok(())
    }

    /// Appends one chunk without its descriptors.
    pub(crate) fn append_short(&mut self, body: &ShortBody<'_>) {
        body.with_parts(|described, parts| self.insert(0, described, parts));
        self.point.next_chunk += 1;
    }

    /// The ordering position is taken at the first row: a transaction that waited for another one comes here only after that
    /// one's commit, so its position is the greater one.
    fn insert(&mut self, piece: u32, expanded_len: u32, payload: &[&[u8]]) {
        let Some(table) = self.table else { return };
        let Self { relation, xid, point, .. } = self;
        let columns = Columns { chunk: point.next_chunk, piece, expanded_len };
        with_row(columns, payload, |mut row| {
            // SAFETY: called at pre-commit, inside a transaction that has written and so has a transaction id; the table is open
            // with its lock until the end of the transaction; heap_insert copies the row, which is complete. Nothing within
            // the guard has a destructor.
            unsafe {
                guarded(|| {
                    if relation.is_null() {
                        *relation = table_open(table, pg_sys::RowExclusiveLock.cast_signed());
                        *xid = GetTopFullTransactionId().value;
                        if point.lsn == 0 {
                            point.lsn = GetXLogInsertRecPtr();
                        }
                    }
                    let row = row.placed(point.lsn, *xid);
                    heap_insert(*relation, row, GetCurrentCommandId(true), INSERT_OPTIONS, std::ptr::null_mut());
                });
            }
        });
    }

    /// Closes the table, keeping its lock to the end of the transaction.
    pub(crate) fn close(self) -> FlushPoint {
        if !self.relation.is_null() {
            // SAFETY: opened at the first row, closed once, since this consumes the writer.
            unsafe { table_close(self.relation, pg_sys::NoLock.cast_signed()) };
        }
        self.point
    }
}
