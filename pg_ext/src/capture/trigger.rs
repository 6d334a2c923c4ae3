//! The trigger functions: what PostgreSQL calls for each row and for each TRUNCATE.
//!
//! They are plain C functions (`sql/20_capture.sql` declares them): what `#[pg_trigger]` makes of the trigger's data
//! costs more than everything done here.

use duplex_protocol::encode::append_entry;
use duplex_protocol::entry::{Entry, Replaced, Truncate};
use pgrx::{PgSqlErrorCode, pg_guard, pg_sys};

use super::row::{self, RowEvent};
use super::{emptied, relation, transaction, truncated};
use crate::conflict::local;
use crate::errors::{Failure, OrRaise as _, Result};
use crate::gucs;

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

fn misused() -> Failure {
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
    let event = match data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
        pg_sys::TRIGGER_EVENT_INSERT => RowEvent::Insert { new: data.tg_trigtuple },
        pg_sys::TRIGGER_EVENT_UPDATE => RowEvent::Update { old: data.tg_trigtuple, new: data.tg_newtuple },
        pg_sys::TRIGGER_EVENT_DELETE => RowEvent::Delete { old: data.tg_trigtuple },
        _ => return Err(misused()),
    };
    let table = relation::lookup(relation)?;
    // SAFETY: the tuples are of the open relation, and there until the trigger returns.
    unsafe { row::capture(&table, relation, event) }
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
