//! Capturing what happened to a row, whoever says so: the trigger, or the executor directly.

use std::cell::Cell;
use std::rc::Rc;

use duplex_protocol::encode::RowWriter;
use duplex_protocol::entry::{PutKind, Replaced};
use pgrx::pg_sys;

use super::encode::{self, Scratch};
use super::relation::Table;
use super::{passing, policy, replaced, transaction};
use crate::backend_local::BackendLocal;
use crate::conflict::local::{Change, Held, Holder};
use crate::errors::Result;

/// What happened to a row. The tuples are as they are in their table.
#[derive(Debug, Clone, Copy)]
pub(super) enum RowEvent {
    Insert { new: pg_sys::HeapTuple },
    Update { old: pg_sys::HeapTuple, new: pg_sys::HeapTuple },
    Delete { old: pg_sys::HeapTuple },
}

static SCRATCH: BackendLocal<Cell<Option<Scratch>>> = BackendLocal::new(Cell::new(None));

/// Captures it.
///
/// # Errors
/// 55000 if the table is not to be written to ([`Table::check_writable`]), 54000 for a row of more than 4 GiB.
///
/// # Safety
/// The relation is open and `table` describes it; the tuples are of it.
#[inline]
#[unsafe(link_section = ".text.duplex_hot")]
pub(super) unsafe fn capture(table: &Rc<Table>, relation: &pg_sys::RelationData, event: RowEvent) -> Result<()> {
    table.check_writable()?;
    if let Some((registers, kept)) = table.kept() {
        // SAFETY: as the caller promises.
        return unsafe { policy::Capture { table, relation, registers, kept }.row(event) };
    }
    // SAFETY: as the caller promises.
    unsafe {
        let is_done = match event {
            RowEvent::Insert { new } => is_superseded(new) || (table.is_copied && copy_inserted(table, new)?),
            RowEvent::Update { old, new } => {
                table.is_copied && !has_uniques(table) && !is_superseded(new) && copy_updated(table, old, new)?
            }
            RowEvent::Delete { .. } => false,
        };
        if is_done { Ok(()) } else { by_value(table, relation, event) }
    }
}

/// Captures it value by value. Kept apart from what most rows take, which is entered the faster the shorter it is.
#[inline(never)]
unsafe fn by_value(table: &Rc<Table>, relation: &pg_sys::RelationData, event: RowEvent) -> Result<()> {
    let mut scratch = SCRATCH.take().unwrap_or_default();
    // SAFETY: as the caller promises.
    unsafe {
        match event {
            RowEvent::Insert { new } => insert(table, relation.rd_att, new, &mut scratch)?,
            RowEvent::Update { old, new } => update(table, relation, old, new, &mut scratch)?,
            RowEvent::Delete { old } => delete(table, relation, old, &mut scratch)?,
        }
    }
    SCRATCH.set(Some(scratch));
    Ok(())
}

/// Captures a row that was inserted, value by value.
unsafe fn insert(
    table: &Rc<Table>,
    descriptor: pg_sys::TupleDesc,
    tuple: pg_sys::HeapTuple,
    scratch: &mut Scratch,
) -> Result<()> {
    let Scratch { new, row, .. } = scratch;
    // SAFETY: as the caller promises.
    unsafe {
        new.deform(tuple, descriptor, table.attributes);
        encode::row(table, new, row)?;
        transaction::add(table, Replaced::Nothing, encode::size(row, &[])?, |out| {
            encode::write(row, RowWriter::begun(out, &table.insert_beginning))
        })
    }
}

/// Captures a row that was inserted by copying it from its tuple; false if that cannot be done.
#[inline]
#[unsafe(link_section = ".text.duplex_hot")]
unsafe fn copy_inserted(table: &Rc<Table>, tuple: pg_sys::HeapTuple) -> Result<bool> {
    let mut written = 0;
    // SAFETY: as the caller promises.
    unsafe {
        transaction::add(table, Replaced::Nothing, encode::copied_size(table, tuple), |out| {
            written = encode::copy(table, tuple, RowWriter::begun(out, &table.insert_beginning));
            written
        })?;
    }
    Ok(written > 0)
}

/// Captures a row that was updated by copying it from its tuple; false if that cannot be done, or if its key has changed. What
/// registers remember of unique values is left to others.
#[inline]
#[unsafe(link_section = ".text.duplex_hot")]
unsafe fn copy_updated(table: &Rc<Table>, old: pg_sys::HeapTuple, new: pg_sys::HeapTuple) -> Result<bool> {
    /// What wider tables' bitmaps need is not worth a place here.
    const MOST: usize = 32;
    let mut room = [0; MOST];
    let columns = table.columns.len();
    let Some(changed) = room.get_mut(..columns.div_ceil(8)) else { return Ok(false) };
    let mut written = 0;
    // SAFETY: as the caller promises.
    unsafe {
        replaced::expect(old);
        if !encode::compare_stored(table, old, new, changed) {
            return Ok(false);
        }
        let replaced = replaced::version(old);
        transaction::add(table, replaced, encode::copied_size(table, new) + changed.len(), |out| {
            let writer = RowWriter::put(out, table.oid, PutKind::Update, replaced, changed, &[], columns);
            written = encode::copy(table, new, writer);
            written
        })?;
    }
    Ok(written > 0)
}

/// Whether what an UPDATE leaves of unique values has to be remembered.
#[inline]
fn has_uniques(table: &Table) -> bool {
    table.registers.as_ref().is_some_and(|registers| registers.has_uniques())
}

unsafe fn delete(
    table: &Rc<Table>,
    relation: &pg_sys::RelationData,
    tuple: pg_sys::HeapTuple,
    scratch: &mut Scratch,
) -> Result<()> {
    let Scratch { old, old_key, .. } = scratch;
    // SAFETY: as the caller promises.
    unsafe {
        old.deform(tuple, relation.rd_att, table.attributes);
        encode::key(table, old, old_key)?;
        let replaced = replaced::version(tuple);
        transaction::add(table, replaced, encode::size(old_key, &[])?, |out| {
            encode::write(old_key, RowWriter::delete(out, table.oid, replaced, &[], old_key.len()))
        })?;
        gone(table, relation, Change::gone(old.row(tuple)), replaced)
    }
}

/// Remembers a key that is gone.
unsafe fn gone(
    table: &Rc<Table>,
    relation: &pg_sys::RelationData,
    change: Change<'_>,
    replaced: Replaced,
) -> Result<()> {
    let Some(registers) = &table.registers else { return Ok(()) };
    let origin = if registers.has_uniques() { transaction::origin_name(replaced) } else { None };
    let held = Held { replaced, origin: origin.as_deref() };
    // SAFETY: as the callers promise.
    let holders = unsafe { registers.deleted(std::ptr::from_ref(relation).cast_mut(), change, held) };
    transaction::settle_if_late();
    // SAFETY: as the callers promise.
    unsafe { passing::give_back(table, relation, holders) }
}

/// Captures a row that was written again as it was, with these columns as changed.
///
/// # Safety
/// Both tuples are of the relation, which is open.
pub(super) unsafe fn written_again(
    table: &Rc<Table>,
    relation: &pg_sys::RelationData,
    (old, new): (pg_sys::HeapTuple, pg_sys::HeapTuple),
    columns: &[u16],
) -> Result<()> {
    if let Some((registers, kept)) = table.kept() {
        // SAFETY: as the caller promises.
        return unsafe { policy::Capture { table, relation, registers, kept }.again(old, new, columns) };
    }
    // SAFETY: as the caller promises.
    unsafe { update(table, relation, old, new, &mut Scratch::default()) }
}

unsafe fn update(
    table: &Rc<Table>,
    relation: &pg_sys::RelationData,
    old_tuple: pg_sys::HeapTuple,
    new_tuple: pg_sys::HeapTuple,
    scratch: &mut Scratch,
) -> Result<()> {
    let Scratch { new, old, row, old_key, changed } = scratch;
    // SAFETY: as the caller promises.
    unsafe {
        old.deform(old_tuple, relation.rd_att, table.attributes);
        new.deform(new_tuple, relation.rd_att, table.attributes);
        let key_changed = encode::compare(table, old, new, changed);
        let replaced = replaced::version(old_tuple);
        let superseded = is_superseded(new_tuple);
        if key_changed {
            encode::key(table, old, old_key)?;
        }
        if !superseded {
            encode::row(table, new, row)?;
        }
        match (key_changed, superseded) {
            (false, true) => {}
            (false, false) => transaction::add(table, replaced, encode::size(row, changed)?, |out| {
                let writer = RowWriter::put(out, table.oid, PutKind::Update, replaced, changed, &[], row.len());
                encode::write(row, writer)
            })?,
            (true, true) => transaction::add(table, replaced, encode::size(old_key, &[])?, |out| {
                encode::write(old_key, RowWriter::delete(out, table.oid, replaced, &[], old_key.len()))
            })?,
            (true, false) => {
                let bytes = encode::size(old_key, &[])? + encode::size(row, &[])?;
                transaction::add(table, replaced, bytes, |out| {
                    let deleted =
                        encode::write(old_key, RowWriter::delete(out, table.oid, replaced, &[], old_key.len()));
                    deleted + encode::write(row, RowWriter::begun(&mut out[deleted..], &table.insert_beginning))
                })?;
            }
        }
        let rows = (old.row(old_tuple), new.row(new_tuple));
        if key_changed {
            gone(table, relation, Change::moved(rows.0, rows.1), replaced)
        } else {
            let holders = given_up(table, relation, Change::updated(rows.0, rows.1), changed, replaced);
            passing::give_back(table, relation, holders)
        }
    }
}

/// Remembers the unique values that a row held and holds no more.
///
/// # Safety
/// Inside the transaction of the UPDATE; the rows are of the relation.
pub(super) unsafe fn given_up(
    table: &Table,
    relation: &pg_sys::RelationData,
    change: Change<'_>,
    changed: &[u8],
    replaced: Replaced,
) -> Vec<Holder> {
    let Some(registers) = table.registers.as_ref().filter(|registers| registers.has_uniques()) else {
        return Vec::new();
    };
    let is_changed = |attribute: usize| {
        let place = table.columns.iter().position(|column| column.attribute == attribute);
        place.is_some_and(|place| changed[place / 8] >> (place % 8) & 1 == 1)
    };
    let relation = std::ptr::from_ref(relation).cast_mut();
    // SAFETY: as the callers promise.
    unsafe { registers.updated(relation, change, is_changed, replaced, transaction::origin_name) }
}

/// Whether this transaction has changed the row once more meanwhile. That change was or will be captured by itself: from
/// inside a trigger that fired before this one, it was captured already, and this row must not come after it.
///
/// # Safety
/// `tuple` is a valid heap tuple as it is in its table now.
#[inline]
pub(super) unsafe fn is_superseded(tuple: pg_sys::HeapTuple) -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        let header = (*tuple).t_data;
        u32::from((*header).t_infomask) & pg_sys::HEAP_XMAX_INVALID == 0 && is_changed_again(header)
    }
}

#[cold]
unsafe fn is_changed_again(header: pg_sys::HeapTupleHeader) -> bool {
    const SHARED_OR_EXCLUSIVE: u32 = pg_sys::HEAP_XMAX_IS_MULTI | pg_sys::HEAP_LOCK_MASK;
    // SAFETY: the header is valid, and a multixact in it belongs to a transaction that is running: this one.
    unsafe {
        let infomask = u32::from((*header).t_infomask);
        let only_locked = infomask & pg_sys::HEAP_XMAX_LOCK_ONLY != 0
            || infomask & SHARED_OR_EXCLUSIVE == pg_sys::HEAP_XMAX_EXCL_LOCK;
        if only_locked {
            return false;
        }
        let changed_by = if infomask & pg_sys::HEAP_XMAX_IS_MULTI == 0 {
            (*header).t_choice.t_heap.t_xmax
        } else {
            pg_sys::HeapTupleGetUpdateXid(header)
        };
        pg_sys::TransactionIdIsCurrentTransactionId(changed_by)
    }
}
