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

use super::row::{self, Columns, PIECE_BYTES, Row};
use super::short::ShortBody;
use super::{limit, tables};
use crate::errors::Result;

// Of the bindings each has a guard of its own, which every transaction would pay for.
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

/// The queue table that writers append to.
///
/// # Safety
/// At pre-commit, inside a transaction that has written and so has a transaction id. An ERROR may come from it.
unsafe fn open(table: pg_sys::Oid) -> (pg_sys::Relation, u64) {
    // SAFETY: as the caller promises. The lock stays to the end of the transaction.
    unsafe { (table_open(table, pg_sys::RowExclusiveLock.cast_signed()), GetTopFullTransactionId().value) }
}

/// # Safety
/// The relation is open, and the row is the one built last. An ERROR may come from it.
unsafe fn insert(relation: pg_sys::Relation, mut row: Row, lsn: u64, xid: u64) {
    // SAFETY: as the caller promises. heap_insert copies the row.
    unsafe {
        let row = row.placed(lsn, xid);
        heap_insert(relation, row, GetCurrentCommandId(true), INSERT_OPTIONS, std::ptr::null_mut());
    }
}

/// The table to append to; `None` where the extension was dropped in this very transaction: there is no node any more to
/// capture for.
///
/// # Errors
/// As [`tables::lookup`] and [`limit::check`].
#[unsafe(link_section = ".text.duplex_hot")]
fn table() -> Result<Option<pg_sys::Oid>> {
    let Some(tables) = tables::lookup()? else { return Ok(None) };
    limit::check(&tables)?;
    Ok(Some(tables.queue[tables.writing]))
}

/// The only row of a short transaction, ready to be inserted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShortRow {
    table: pg_sys::Oid,
    row: Row,
}

impl ShortRow {
    /// `None` where nobody captures any more.
    ///
    /// # Errors
    /// As [`QueueWriter::begin`].
    pub(crate) fn ready(body: &ShortBody<'_>) -> Result<Option<Self>> {
        Ok(table()?.map(|table| {
            let row = body.with_parts(|described, parts| {
                row::build(Columns { chunk: 0, piece: 0, expanded_len: described }, parts)
            });
            Self { table, row }
        }))
    }

    /// Inserts it. The ordering position is taken here: a transaction that waited for another one comes here only after that
    /// one's commit, so its position is the greater one.
    ///
    /// # Safety
    /// At pre-commit, before any other row is readied. An ERROR passes through the callers, which hold nothing that has a
    /// destructor: there is no guard here, because every transaction would pay for it.
    pub(crate) unsafe fn insert(self) -> FlushPoint {
        // SAFETY: as the caller promises.
        unsafe {
            let (relation, xid) = open(self.table);
            let lsn = GetXLogInsertRecPtr();
            insert(relation, self.row, lsn, xid);
            table_close(relation, pg_sys::NoLock.cast_signed());
            FlushPoint { lsn, next_chunk: 1 }
        }
    }
}

/// Appends a transaction's chunks.
#[derive(Debug)]
pub(crate) struct QueueWriter {
    table: Option<pg_sys::Oid>,
    /// Null until the first row.
    relation: pg_sys::Relation,
    xid: u64,
    point: FlushPoint,
}

impl QueueWriter {
    /// Begins; `after` continues an earlier flush of this transaction.
    ///
    /// # Errors
    /// 55000 if the queue is not there, 53400 if it is full and is to refuse.
    pub(crate) fn begin(after: Option<FlushPoint>) -> Result<Self> {
        Ok(Self { table: table()?, relation: std::ptr::null_mut(), xid: 0, point: after.unwrap_or_default() })
    }

    /// Appends one chunk; `expanded_len` is 0 if `body` is not compressed.
    pub(crate) fn append(&mut self, body: &[u8], expanded_len: u32) -> Result<()> {
        for (number, piece) in body.chunks(PIECE_BYTES).enumerate() {
            self.insert(number as u32, expanded_len, piece);
        }
        self.point.next_chunk += 1;
        Ok(())
    }

    fn insert(&mut self, piece: u32, expanded_len: u32, payload: &[u8]) {
        let Some(table) = self.table else { return };
        let Self { relation, xid, point, .. } = self;
        let row = row::build(Columns { chunk: point.next_chunk, piece, expanded_len }, &[payload]);
        // SAFETY: called at pre-commit; the relation stays open until `close`. Nothing within the guard has a destructor, and
        // nothing panics.
        unsafe {
            guarded(|| {
                if relation.is_null() {
                    (*relation, *xid) = open(table);
                    if point.lsn == 0 {
                        point.lsn = GetXLogInsertRecPtr();
                    }
                }
                insert(*relation, row, point.lsn, *xid);
            });
        }
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
