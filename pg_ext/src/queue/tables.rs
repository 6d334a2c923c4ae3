//! Where the three queue tables are, and which one writers append to.

use std::cell::Cell;

use pgrx::{PgSqlErrorCode, pg_guard, pg_sys};

use crate::backend_local::BackendLocal;
use crate::errors::{Failure, Result};

/// How many queue tables take turns.
pub(crate) const COUNT: usize = 3;

const NAMES: [&std::ffi::CStr; COUNT] = [c"queue_0", c"queue_1", c"queue_2"];

/// The tables as this backend last looked them up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tables {
    /// Oids of the queue tables.
    pub(crate) queue: [pg_sys::Oid; COUNT],
    /// Oid of `duplex.queue_turn`.
    pub(crate) turn: pg_sys::Oid,
    /// Index of the table that writers append to.
    pub(crate) writing: usize,
}

#[unsafe(link_section = ".data.duplex_hot")]
static CACHED: BackendLocal<Cell<Option<Tables>>> = BackendLocal::new(Cell::new(None));

pub(crate) fn init() {
    // SAFETY: registered once a backend, from _PG_init; the callback lives as long as the process.
    unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(forget), pg_sys::Datum::from(0)) };
}

/// A change to one of our tables, or to all: look again. Which table writers use is announced this way too.
#[pg_guard]
extern "C-unwind" fn forget(_arg: pg_sys::Datum, relid: pg_sys::Oid) {
    let affected =
        |tables: Tables| relid == pg_sys::InvalidOid || relid == tables.turn || tables.queue.contains(&relid);
    if CACHED.get().is_some_and(affected) {
        CACHED.set(None);
    }
}

/// The queue's tables, or `None` where the extension is gone (dropped in this very transaction).
///
/// A backend that has not heard yet of a new turn appends to the old table, which does no harm: the drain reads all
/// three, and a table is truncated only while no writer can hold it.
///
/// # Errors
/// 55000 if the extension is there and its queue is not.
#[inline]
pub(crate) fn lookup() -> Result<Option<Tables>> {
    match CACHED.get() {
        Some(tables) => Ok(Some(tables)),
        None => look_up(),
    }
}

#[cold]
fn look_up() -> Result<Option<Tables>> {
    // SAFETY: catalogue look-ups inside a transaction, with strings that live forever.
    let (turn, queue) = unsafe {
        let schema = pg_sys::get_namespace_oid(c"duplex".as_ptr(), true);
        if schema == pg_sys::InvalidOid || pg_sys::get_extension_oid(c"pg_duplex".as_ptr(), true) == pg_sys::InvalidOid
        {
            return Ok(None);
        }
        (
            pg_sys::get_relname_relid(c"queue_turn".as_ptr(), schema),
            NAMES.map(|name| pg_sys::get_relname_relid(name.as_ptr(), schema)),
        )
    };
    if turn == pg_sys::InvalidOid || queue.contains(&pg_sys::InvalidOid) {
        return Err(Failure::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "the queue tables of pg_duplex are missing",
        )
        .hint("Restore the tables duplex.queue_0 to duplex.queue_2, or drop the extension to stop capturing."));
    }
    let tables = Tables { queue, turn, writing: read_turn(turn)? };
    CACHED.set(Some(tables));
    Ok(Some(tables))
}

fn read_turn(turn: pg_sys::Oid) -> Result<usize> {
    let mut writing = None;
    // SAFETY: a sequential scan of a two-column table under a fresh catalogue snapshot; what is opened is closed, and
    // an ERROR on the way releases all of it with the transaction.
    unsafe {
        let relation = pg_sys::table_open(turn, pg_sys::AccessShareLock as _);
        let scan = pg_sys::systable_beginscan(
            relation,
            pg_sys::InvalidOid,
            false,
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
        let tuple = pg_sys::systable_getnext(scan);
        if !tuple.is_null() {
            let mut values = [pg_sys::Datum::from(0); 2];
            let mut nulls = [true; 2];
            pg_sys::heap_deform_tuple(tuple, (*relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            if !nulls[1] {
                writing = usize::try_from(values[1].value() as i16).ok().filter(|&turn| turn < COUNT);
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as _);
    }
    writing.ok_or_else(|| {
        Failure::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "duplex.queue_turn does not say which queue table is written",
        )
        .hint("Insert its one row again: insert into duplex.queue_turn default values.")
    })
}
