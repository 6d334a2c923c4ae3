//! What this backend's transaction has captured, from its first row to the queue.

use std::cell::RefCell;
use std::ffi::c_void;
use std::rc::Rc;

use duplex_protocol::encode::append_entry;
use duplex_protocol::entry::{Entry, Origin, Replaced};
use pgrx::{pg_guard, pg_sys};

use super::buffer::Buffer;
use super::marks::{Marks, Position};
use super::relation::Table;
use crate::backend_local::BackendLocal;
use crate::commits;
use crate::conflict::pending;
use crate::errors::{OrRaise as _, Result};
use crate::hot::guarded;
use crate::queue::append::{FlushPoint, QueueWriter, ShortRow};
use crate::queue::doorbell;
use crate::queue::short::ShortBody;

/// Positions of what is captured after the flush are counted in chunks from here on. No body is as long.
const FLUSHED: Position = 1 << 62;

/// A transaction's changes.
///
/// An empty one is the state between transactions: nothing here knows when a transaction starts.
#[derive(Debug)]
struct Transaction {
    /// Tells transactions apart in [`Table::described_in`].
    serial: u64,
    buffer: Buffer,
    marks: Marks,
    /// Our pre-commit callback has run: whatever follows (another extension's wrote) is written to the queue at once.
    is_late: bool,
    /// Where the last flush stopped; nothing if there was nothing to write.
    flushed: Option<FlushPoint>,
    /// The descriptors in the body, in the order in which a reader meets them.
    described: Vec<(Rc<Table>, Position)>,
    /// The origins that the body names.
    named: Vec<(u32, Position)>,
    /// Replication origins that were looked up, with the peer behind each.
    origins: Vec<(u32, Option<String>)>,
    /// The version looked up last: rows that are updated together were often written together.
    version: Option<(u32, Replaced)>,
}

#[unsafe(link_section = ".data.duplex_hot")]
static CURRENT: BackendLocal<RefCell<Transaction>> = BackendLocal::new(RefCell::new(Transaction {
    serial: 1,
    buffer: Buffer::new(),
    marks: Marks::new(),
    is_late: false,
    flushed: None,
    described: Vec::new(),
    named: Vec::new(),
    origins: Vec::new(),
    version: None,
}));

unsafe extern "C-unwind" {
    // The binding is made for functions that may raise an ERROR, which costs each row more than this one does.
    fn GetCurrentSubTransactionId() -> pg_sys::SubTransactionId;
}

/// Registers for the ends of transactions; called once in a backend.
pub(super) fn init() {
    // SAFETY: registered once, from _PG_init; the callbacks take no argument.
    unsafe {
        pg_sys::RegisterXactCallback(Some(transaction_event), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(subtransaction_event), std::ptr::null_mut());
    }
}

/// Nothing in it has a destructor, but what is within guards: an ERROR passes through.
#[unsafe(link_section = ".text.duplex_hot")]
unsafe extern "C-unwind" fn transaction_event(event: pg_sys::XactEvent::Type, _arg: *mut c_void) {
    use pg_sys::XactEvent::*;
    // Compared one by one: a table of where to go is one more place in memory, which nothing else keeps near.
    // SAFETY: the server calls, and nothing here has a destructor.
    unsafe {
        if event == XACT_EVENT_COMMIT {
            guarded(|| {
                commits::note();
                at_an_end(|current| {
                    if current.flushed.is_some() {
                        doorbell::ring();
                    }
                });
                over();
            });
        } else if event == XACT_EVENT_PRE_COMMIT || event == XACT_EVENT_PRE_PREPARE {
            // The only events in which an ERROR is allowed: it turns the commit into an abort.
            if let Some(row) = guarded(|| ready().or_raise()) {
                // Readied just now, in a transaction that has written.
                let point = row.insert();
                at_an_end(|current| current.flushed = Some(point));
            }
        } else if event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE {
            guarded(over);
        }
    }
    // Parallel workers do not write.
}

/// The transaction is over, one way or the other. Must not fail.
#[unsafe(link_section = ".text.duplex_hot")]
fn over() {
    pending::forget_all();
    at_an_end(Transaction::reset);
}

#[pg_guard]
unsafe extern "C-unwind" fn subtransaction_event(
    event: pg_sys::SubXactEvent::Type,
    subtransaction: pg_sys::SubTransactionId,
    parent: pg_sys::SubTransactionId,
    _arg: *mut c_void,
) {
    use pg_sys::SubXactEvent::*;
    match event {
        // SAFETY: the subtransaction is not over yet, and an ERROR rolls it back.
        SUBXACT_EVENT_PRE_COMMIT_SUB => unsafe { pending::settle() },
        SUBXACT_EVENT_COMMIT_SUB => at_an_end(|current| current.marks.commit(subtransaction, parent)),
        SUBXACT_EVENT_ABORT_SUB => {
            pending::forget(subtransaction);
            at_an_end(|current| current.marks.abort(subtransaction));
        }
        _ => {}
    }
}

/// Takes note of an end, which must not fail. A FATAL error ends the process without unwinding: then the transaction may
/// still be borrowed by the code that the error came from, and nobody will ask for it again.
fn at_an_end(note: impl FnOnce(&mut Transaction)) {
    if let Ok(mut current) = CURRENT.try_borrow_mut() {
        note(&mut current);
    }
}

/// Adds one change of `table`: `write` writes its frames, of `bytes` bytes at most, and returns how many bytes they are; 0
/// leaves it to another call.
///
/// `replaced` is what the frames refer to, so that the body names the node first. `write` must not call PostgreSQL.
#[inline]
pub(super) fn add(
    table: &Rc<Table>,
    replaced: Replaced,
    bytes: usize,
    write: impl FnOnce(&mut [u8]) -> usize,
) -> Result<()> {
    let is_late = CURRENT.with_borrow_mut(|current| {
        current.begin()?;
        current.describe(table)?;
        current.name(replaced)?;
        let written = write(current.buffer.room(bytes)?);
        current.buffer.wrote(written);
        current.buffer.settle()?;
        Result::Ok(current.is_late)
    })?;
    if is_late { flush_late() } else { Ok(()) }
}

/// Writes at once what was remembered of a change that comes after the flush.
pub(super) fn settle_if_late() {
    if CURRENT.with_borrow(|current| current.is_late) {
        // SAFETY: inside a transaction that is not aborted.
        unsafe { pending::settle() };
    }
}

/// The version of rows that this transaction id wrote, if it was the one looked up last.
#[inline]
pub(super) fn known_version(xid: u32) -> Option<Replaced> {
    CURRENT.with_borrow(|current| current.version.filter(|(known, _)| *known == xid).map(|(_, version)| version))
}

pub(super) fn remember_version(xid: u32, version: Replaced) {
    CURRENT.with_borrow_mut(|current| current.version = Some((xid, version)));
}

/// Whether a replication origin stands for a peer, if it was looked up in this transaction.
pub(super) fn known_origin(origin: u32) -> Option<bool> {
    CURRENT.with_borrow(|current| {
        current.origins.iter().find(|(known, _)| *known == origin).map(|(_, peer)| peer.is_some())
    })
}

pub(super) fn remember_origin(origin: u32, peer: Option<String>) {
    CURRENT.with_borrow_mut(|current| current.origins.push((origin, peer)));
}

/// The peer that a replaced version is of; `None` for this node itself.
pub(super) fn origin_name(replaced: Replaced) -> Option<String> {
    let Replaced::Version { origin, .. } = replaced else { return None };
    CURRENT.with_borrow(|current| {
        current.origins.iter().find(|(known, _)| *known == origin).and_then(|(_, peer)| peer.clone())
    })
}

/// Readies what was captured for the queue, and writes what it leaves in registers. Only a short transaction has something to
/// insert then: what others have captured is in the queue already.
fn ready() -> Result<Option<ShortRow>> {
    // SAFETY: inside a transaction that is not aborted.
    unsafe { pending::settle() };
    // What PostgreSQL does from here on writes to no captured table, which would want this, too.
    CURRENT.with_borrow_mut(|current| {
        current.make_cut()?;
        current.is_late = true;
        if current.buffer.is_empty() {
            return Ok(None);
        }
        doorbell::find();
        commits::join();
        commits::expect_own();
        let row = match current.short_body() {
            Some(body) => ShortRow::ready(&body)?,
            None => {
                current.append_all()?;
                None
            }
        };
        current.buffer.reset();
        Ok(row)
    })
}

/// Writes at once what comes after that.
#[cold]
fn flush_late() -> Result<()> {
    // SAFETY: inside a transaction that is not aborted.
    unsafe { pending::settle() };
    CURRENT.with_borrow_mut(|current| {
        current.make_cut()?;
        current.append_all()
    })
}

impl Transaction {
    /// The body without its descriptors, where the queue may have it so.
    fn short_body(&self) -> Option<ShortBody<'_>> {
        // Positions count from the first flush on.
        let body = if self.flushed.is_none() { self.buffer.unsealed()? } else { return None };
        let mut short = ShortBody::of(body);
        for (table, position) in &self.described {
            if let Some(digest) = &table.digest {
                short.leave_out(*position as usize, table.descriptor.len(), digest)?;
            }
        }
        short.is_worth_it().then_some(short)
    }

    /// Writes the body into the queue.
    #[inline(never)]
    fn append_all(&mut self) -> Result<()> {
        let mut writer = QueueWriter::begin(self.flushed)?;
        self.buffer.drain(|body, expanded_len| writer.append(body, expanded_len))?;
        self.flushed = Some(writer.close());
        Ok(())
    }

    fn position(&self) -> Position {
        if self.is_late {
            FLUSHED + self.flushed.map_or(0, |point| Position::from(point.next_chunk))
        } else {
            self.buffer.len()
        }
    }

    /// Readies everything for one more change.
    #[inline]
    fn begin(&mut self) -> Result<()> {
        self.make_cut()?;
        // SAFETY: a plain read of the backend's state.
        let subtransaction = unsafe { GetCurrentSubTransactionId() };
        self.marks.note(subtransaction, self.position());
        Ok(())
    }

    #[inline]
    fn make_cut(&mut self) -> Result<()> {
        match self.marks.pending_cut() {
            Some(end) => self.cut(end),
            None => Ok(()),
        }
    }

    #[cold]
    fn cut(&mut self, end: Position) -> Result<()> {
        if self.is_late {
            // What was written late and rolled back has left the queue with its subtransaction.
            self.buffer.cut(0)?;
            if let Some(point) = &mut self.flushed {
                point.next_chunk = (end - FLUSHED) as u32;
            }
        } else {
            self.buffer.cut(end)?;
        }
        self.described.retain(|(table, position)| {
            let stays = *position < end;
            if !stays {
                table.described_in.set(0);
            }
            stays
        });
        self.named.retain(|(_, position)| *position < end);
        self.marks.cut_made();
        Ok(())
    }

    /// Describes the table unless the body has the same descriptor already.
    #[inline]
    fn describe(&mut self, table: &Rc<Table>) -> Result<()> {
        if table.described_in.get() == self.serial { Ok(()) } else { self.describe_anew(table) }
    }

    #[inline(never)]
    #[unsafe(link_section = ".text.duplex_hot")]
    fn describe_anew(&mut self, table: &Rc<Table>) -> Result<()> {
        // The table was looked up anew in the middle of the transaction; what counts is what a reader met last.
        let last = self.described.iter().rev().find(|(described, _)| described.oid == table.oid);
        let position = match last {
            Some((described, position)) if described.descriptor == table.descriptor => *position,
            _ => {
                let position = self.position();
                self.buffer.append(&table.descriptor)?;
                position
            }
        };
        self.described.push((Rc::clone(table), position));
        table.described_in.set(self.serial);
        Ok(())
    }

    /// Names the node that a replaced version came from.
    #[inline]
    fn name(&mut self, replaced: Replaced) -> Result<()> {
        let Replaced::Version { origin, .. } = replaced else { return Ok(()) };
        if origin == 0 { Ok(()) } else { self.name_peer(origin) }
    }

    #[inline(never)]
    fn name_peer(&mut self, origin: u32) -> Result<()> {
        if self.named.iter().any(|(named, _)| *named == origin) {
            return Ok(());
        }
        let peer = self.origins.iter().find(|(known, _)| *known == origin).and_then(|(_, peer)| peer.clone());
        let entry = Entry::Origin(Origin { id: origin, name: peer.unwrap_or_default() });
        let position = self.position();
        let mut frame = Vec::new();
        append_entry(&entry, &mut frame);
        self.buffer.append(&frame)?;
        self.named.push((origin, position));
        Ok(())
    }

    /// The transaction is over. Must not fail.
    fn reset(&mut self) {
        self.serial += 1;
        self.buffer.reset();
        self.marks.reset();
        self.is_late = false;
        self.flushed = None;
        self.described.clear();
        self.named.clear();
        self.origins.clear();
        self.version = None;
    }
}
