//! The trigger functions: what PostgreSQL calls for each row and for each TRUNCATE.
//!
//! They are plain C functions (`sql/20_capture.sql` declares them): what `#[pg_trigger]` makes of the trigger's data
//! costs more than everything done here.

use std::cell::RefCell;
use std::rc::Rc;

use duplex_protocol::encode::{RowWriter, append_entry};
use duplex_protocol::entry::{Entry, PutKind, Replaced, Truncate};
use pgrx::{PgSqlErrorCode, pg_guard, pg_sys};

use super::encode::{self, Scratch};
use super::relation::{self, Table};
use super::{emptied, passing, policy, replaced, transaction, truncated};
use crate::conflict::local::{self, Change, Held, Holder};
use crate::errors::{Failure, OrRaise as _, Result};
use crate::gucs;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Says that the functions here follow PostgreSQL's version-1 calling convention.
static VERSION_1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };

/// The calling convention of [`duplex_capture_row`].
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_duplex_capture_row() -> &'static pg_sys::Pg_finfo_record {
    &VERSION_1
}

/// The calling convention of [`duplex_capture_truncate`].
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_duplex_capture_truncate() -> &'static pg_sys::Pg_finfo_record {
    &VERSION_1
}

/// `duplex.capture_row()`: AFTER INSERT, UPDATE or DELETE, for each row.
///
/// # Safety
/// PostgreSQL's function manager calls it.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn duplex_capture_row(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    if !gucs::is_replication() {
        // SAFETY: the function manager passes a valid call.
        unsafe { row(call).or_raise() };
    }
    pg_sys::Datum::from(0)
}

/// `duplex.capture_truncate()`: AFTER TRUNCATE, for each statement; BEFORE it too where there are partitions.
///
/// # Safety
/// As [`duplex_capture_row`].
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn duplex_capture_truncate(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    if !gucs::is_replication() {
        // SAFETY: the function manager passes a valid call.
        unsafe { truncate(call).or_raise() };
    }
    pg_sys::Datum::from(0)
}

/// What of an event says for what and when a trigger fires.
const SHAPE: u32 = pg_sys::TRIGGER_EVENT_ROW | pg_sys::TRIGGER_EVENT_TIMINGMASK;

/// The trigger's data, if this is a call by a trigger.
unsafe fn trigger_data<'a>(call: pg_sys::FunctionCallInfo) -> Result<&'a pg_sys::TriggerData> {
    // SAFETY: the call is valid, so its context is null or a node, and a TriggerData node is what it says.
    unsafe {
        let context = (*call).context;
        match context.as_ref() {
            Some(node) if node.type_ == pg_sys::NodeTag::T_TriggerData => Ok(&*context.cast::<pg_sys::TriggerData>()),
            _ => Err(misused()),
        }
    }
}

pub(super) fn misused() -> Failure {
    Failure::new(
        PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
        "capture functions can only be called by the triggers that duplex.enable creates",
    )
}

unsafe fn row(call: pg_sys::FunctionCallInfo) -> Result<()> {
    // SAFETY: as the caller promises; the relation is open while its trigger runs.
    let (data, relation) = unsafe {
        let data = trigger_data(call)?;
        if data.tg_event & SHAPE != pg_sys::TRIGGER_EVENT_ROW | pg_sys::TRIGGER_EVENT_AFTER {
            return Err(misused());
        }
        (data, &*data.tg_relation)
    };
    let table = relation::lookup(relation)?;
    table.check_writable()?;
    if let Some((registers, kept)) = table.kept() {
        // SAFETY: as below.
        return unsafe { policy::Capture { table: &table, relation, registers, kept }.row(data) };
    }
    let mut scratch = SCRATCH.take();
    // SAFETY: the tuples are of the open relation, and there until the trigger returns; an UPDATE has both.
    unsafe {
        match data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
            pg_sys::TRIGGER_EVENT_INSERT => insert(&table, relation.rd_att, data.tg_trigtuple, &mut scratch)?,
            pg_sys::TRIGGER_EVENT_DELETE => delete(&table, relation, data.tg_trigtuple, &mut scratch)?,
            pg_sys::TRIGGER_EVENT_UPDATE => {
                update(&table, relation, data.tg_trigtuple, data.tg_newtuple, &mut scratch)?;
            }
            _ => return Err(misused()),
        }
    }
    SCRATCH.set(scratch);
    Ok(())
}

unsafe fn insert(
    table: &Rc<Table>,
    descriptor: pg_sys::TupleDesc,
    tuple: pg_sys::HeapTuple,
    scratch: &mut Scratch,
) -> Result<()> {
    let Scratch { new, row, .. } = scratch;
    // SAFETY: as the caller promises.
    unsafe {
        if is_superseded(tuple) {
            return Ok(());
        }
        if table.is_copied && copy(table, tuple)? {
            return Ok(());
        }
        new.deform(tuple, descriptor, table.attributes);
        encode::row(table, new, row)?;
        transaction::add(table, Replaced::Nothing, encode::size(row, &[])?, |out| {
            encode::write(row, RowWriter::begun(out, &table.insert_beginning))
        })
    }
}

/// Captures a row that was inserted by copying it from its tuple; false if that cannot be done.
#[inline]
unsafe fn copy(table: &Rc<Table>, tuple: pg_sys::HeapTuple) -> Result<bool> {
    let mut written = 0;
    // SAFETY: as the caller promises.
    unsafe {
        transaction::add(table, Replaced::Nothing, encode::copied_size(table, tuple), |out| {
            written = encode::copy_inserted(table, tuple, out);
            written
        })?;
    }
    Ok(written > 0)
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

unsafe fn truncate(call: pg_sys::FunctionCallInfo) -> Result<()> {
    // SAFETY: as the caller promises; the relation is open while its trigger runs, and has its row of pg_class.
    let (data, relation, is_partition) = unsafe {
        let data = trigger_data(call)?;
        let relation = &*data.tg_relation;
        (data, relation, (*relation.rd_rel).relispartition)
    };
    match (data.tg_event & SHAPE, is_partition) {
        (pg_sys::TRIGGER_EVENT_BEFORE, _) => {
            truncated::announce((!is_partition).then_some(relation.rd_id));
            if is_partition {
                return Ok(());
            }
            // SAFETY: the TRUNCATE has locked the table and its partitions.
            unsafe { emptied::before_truncate(relation) }
        }
        // Its rows are among those of the whole table, which is captured.
        (pg_sys::TRIGGER_EVENT_AFTER, true) => truncated::check_partition(relation::root_of(relation)),
        (pg_sys::TRIGGER_EVENT_AFTER, false) => {
            truncated::over();
            let table = relation::lookup(relation)?;
            table.check_writable()?;
            let restart_identity = restarted_identity(relation.rd_id);
            let entry = Entry::Truncate(Truncate { relation: table.oid, restart_identity });
            let mut frame = Vec::new();
            append_entry(&entry, &mut frame);
            transaction::add(&table, Replaced::Nothing, frame.len(), |out| {
                out.copy_from_slice(&frame);
                frame.len()
            })?;
            if table.registers.is_some() {
                // SAFETY: the relation is open, and no partition.
                unsafe { local::truncated(std::ptr::from_ref(relation).cast_mut()) };
            }
            Ok(())
        }
        _ => Err(misused()),
    }
}

/// Whether the TRUNCATE that is running was told RESTART IDENTITY.
///
/// A trigger is not told. But restarting a sequence gives it a new file, and the relation remembers the subtransaction
/// that did so.
fn restarted_identity(table: pg_sys::Oid) -> bool {
    // SAFETY: the sequences belong to a table that this transaction has locked, so they cannot be dropped; each is
    // opened and closed here, and its lock kept to the end of the transaction.
    unsafe {
        let current = pg_sys::GetCurrentSubTransactionId();
        relation::oids(pg_sys::getOwnedSequences(table)).any(|oid| {
            let sequence = pg_sys::relation_open(oid, pg_sys::AccessShareLock as i32);
            #[cfg(feature = "pg15")]
            let renewed_in = (*sequence).rd_newRelfilenodeSubid;
            #[cfg(not(feature = "pg15"))]
            let renewed_in = (*sequence).rd_newRelfilelocatorSubid;
            pg_sys::relation_close(sequence, pg_sys::NoLock as i32);
            renewed_in == current
        })
    }
}
