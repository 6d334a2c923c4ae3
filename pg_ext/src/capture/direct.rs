//! Capturing a row at the moment when the executor has written it.
//!
//! PostgreSQL queues an event for each row that an AFTER ROW trigger fires for, and at the end of the statement fetches the
//! row once more for each of them. For a trigger that does next to nothing, that is most of what it costs. But before it
//! queues the event it evaluates the trigger's WHEN condition, with both images of the row at hand (`AfterTriggerSaveEvent`
//! and `TriggerEnabled` in `commands/trigger.c`). So a statement's own copy of our trigger is given a condition when the
//! statement starts, which captures the row and says that there is nothing left to fire for.
//!
//! The trigger remains what decides: whether it is there, enabled, and for which rows it fires. Whatever is not seen when a
//! statement starts (COPY, partitions that rows are routed to) and what needs the statement's end
//! (`Table::is_captured_directly`) is captured by the trigger's function as ever.

use std::ffi::{CStr, c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use pgrx::{pg_guard, pg_sys};

use super::relation;
use super::row::{self, RowEvent};
use crate::apply::table::list_cells;
use crate::errors::{OrRaise as _, Result};
use crate::gucs;
use crate::hot::guarded;

/// What [`duplex.enable`](../../../sql/12_enable.sql) calls the trigger.
const NAME: &CStr = c"00_duplex_capture";

// Not thread-local: there is one thread, and finding such a variable costs a call, for each statement of the session.

/// `duplex.capture_row()`, once it was looked up; no function has the oid 0.
#[unsafe(link_section = ".data.duplex_hot")]
static CAPTURE_ROW: AtomicU32 = AtomicU32::new(0);
/// Who else wants to know of statements that start.
#[unsafe(link_section = ".data.duplex_hot")]
static NEXT: OnceLock<pg_sys::ExecutorStart_hook_type> = OnceLock::new();

/// Registers for the start of statements; called once in a backend.
pub(super) fn init() {
    // SAFETY: called from _PG_init; nobody else looks at the hook meanwhile.
    unsafe {
        if NEXT.set(pg_sys::ExecutorStart_hook).is_ok() {
            pg_sys::ExecutorStart_hook = Some(statement_starts);
        }
    }
}

/// Whether this is our trigger.
#[inline]
unsafe fn is_ours(trigger: &pg_sys::Trigger) -> bool {
    trigger.tgqual.is_null()
        && (trigger.tgfoid.to_u32() == CAPTURE_ROW.load(Ordering::Relaxed)
            // SAFETY: the caller passes a trigger's description, in which the name is a string.
            || unsafe { CStr::from_ptr(trigger.tgname) == NAME } && is_capture_row(trigger.tgfoid))
}

/// Whether this is the function of our triggers. It has another oid in a database where the extension was created anew.
/// Whoever writes to the table needs no right on our schema, so none is asked for.
#[cold]
#[pg_guard]
extern "C-unwind" fn is_capture_row(function: pg_sys::Oid) -> bool {
    // SAFETY: catalog lookups inside a transaction; a name is null or a palloc'd string.
    let is_ours = unsafe {
        let name = pg_sys::get_func_name(function);
        !name.is_null()
            && CStr::from_ptr(name) == c"capture_row"
            && pg_sys::get_func_namespace(function) == pg_sys::get_namespace_oid(c"duplex".as_ptr(), true)
    };
    if is_ours {
        CAPTURE_ROW.store(function.to_u32(), Ordering::Relaxed);
    }
    is_ours
}

unsafe extern "C-unwind" {
    // The binding's guard would cost each statement of the session, also those that only read.
    fn standard_ExecutorStart(query: *mut pg_sys::QueryDesc, flags: c_int);
    // Raises no ERROR with `MCXT_ALLOC_NO_OOM`.
    fn MemoryContextAllocExtended(context: pg_sys::MemoryContext, size: usize, flags: c_int) -> *mut c_void;
}

/// The hook. Nothing in it or in what it calls has a destructor: an ERROR passes through, as if there was no hook.
#[unsafe(link_section = ".text.duplex_hot")]
unsafe extern "C-unwind" fn statement_starts(query: *mut pg_sys::QueryDesc, flags: c_int) {
    // SAFETY: PostgreSQL passes a valid query, which has its state once it has started.
    unsafe {
        match NEXT.get().copied().flatten() {
            Some(next) => next(query, flags),
            None => standard_ExecutorStart(query, flags),
        }
        let estate = (*query).estate;
        if flags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as c_int == 0 {
            for cell in list_cells((*estate).es_opened_result_relations) {
                attach(estate, cell.ptr_value.cast());
            }
        }
    }
}

/// Memory that is all zero, or null.
const ROOM: c_int = (pg_sys::MCXT_ALLOC_NO_OOM | pg_sys::MCXT_ALLOC_ZERO) as c_int;

/// Gives our trigger on this relation, if there is one, its condition.
unsafe fn attach(estate: *mut pg_sys::EState, written: *mut pg_sys::ResultRelInfo) {
    // SAFETY: the caller passes what the executor has just set up. The triggers' descriptions are the statement's own copy,
    // and for each there is a place for its condition. All that is made here lives as long as the statement.
    unsafe {
        let Some(description) = (*written).ri_TrigDesc.as_ref() else { return };
        let triggers = std::slice::from_raw_parts_mut(description.triggers, description.numtriggers as usize);
        let Some((number, trigger)) = triggers.iter_mut().enumerate().find(|(_, trigger)| is_ours(trigger)) else {
            return;
        };
        let relation = &*(*written).ri_RelationDesc;
        if (*relation.rd_rel).relam != pg_sys::HEAP_TABLE_AM_OID {
            return;
        }
        let condition = MemoryContextAllocExtended((*estate).es_query_cxt, size_of::<pg_sys::ExprState>(), ROOM);
        // Without memory it is left to the trigger, or to whoever asks for some next.
        let Some(condition) = condition.cast::<pg_sys::ExprState>().as_mut() else { return };
        condition.type_ = pg_sys::NodeTag::T_ExprState;
        condition.flags = pg_sys::EEO_FLAG_IS_QUAL as u8;
        condition.evalfunc = Some(row_is_written);
        condition.evalfunc_private = written.cast();
        *(*written).ri_TrigWhenExprs.add(number) = condition;
        // What it says is never read, since the condition is there.
        trigger.tgqual = c"duplex".as_ptr().cast_mut();
    }
}

/// The condition: captures the row. True if it is left to the trigger.
#[unsafe(link_section = ".text.duplex_hot")]
unsafe extern "C-unwind" fn row_is_written(
    condition: *mut pg_sys::ExprState,
    context: *mut pg_sys::ExprContext,
    is_null: *mut bool,
) -> pg_sys::Datum {
    // SAFETY: the executor evaluates what `attach` made, with the row's images as a trigger's condition has them. Nothing out
    // here has a destructor.
    unsafe {
        *is_null = false;
        if gucs::is_replication() {
            return pg_sys::Datum::from(false);
        }
        let is_captured = guarded(|| capture((*condition).evalfunc_private.cast(), context).or_raise());
        pg_sys::Datum::from(!is_captured)
    }
}

/// False if the trigger has to do it.
unsafe fn capture(written: *mut pg_sys::ResultRelInfo, context: *mut pg_sys::ExprContext) -> Result<bool> {
    // SAFETY: as the caller promises; the relation stays open as long as the statement.
    unsafe {
        let relation = &*(*written).ri_RelationDesc;
        let table = relation::lookup(relation)?;
        if !table.is_captured_directly() {
            return Ok(false);
        }
        let (old, new) = ((*context).ecxt_innertuple, (*context).ecxt_outertuple);
        let event = match (old.is_null(), new.is_null()) {
            (true, false) => tuple(new).map(|new| RowEvent::Insert { new }),
            (false, false) => tuple(old).zip(tuple(new)).map(|(old, new)| RowEvent::Update { old, new }),
            (false, true) => tuple(old).map(|old| RowEvent::Delete { old }),
            (true, true) => None,
        };
        let Some(event) = event else { return Ok(false) };
        row::capture(&table, relation, event)?;
        Ok(true)
    }
}

/// The tuple that a slot holds as it is in its table, with what the heap has noted in its header.
unsafe fn tuple(slot: *mut pg_sys::TupleTableSlot) -> Option<pg_sys::HeapTuple> {
    // SAFETY: the caller passes a slot; its kind says that it is a larger one.
    unsafe {
        if !std::ptr::eq((*slot).tts_ops, &raw const pg_sys::TTSOpsBufferHeapTuple) {
            return None;
        }
        let tuple = (*slot.cast::<pg_sys::HeapTupleTableSlot>()).tuple;
        (!tuple.is_null()).then_some(tuple)
    }
}
