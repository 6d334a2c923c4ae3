//! A row's values in an index, and the rows that hold them.

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;

use crate::btree::{begin_scan, scan_keys};

const MOST: usize = pg_sys::INDEX_MAX_KEYS as usize;

/// What a row has in the columns of an index.
#[derive(Debug, Clone)]
pub(crate) struct Values {
    values: [pg_sys::Datum; MOST],
    nulls: [bool; MOST],
    width: usize,
}

impl Values {
    /// The values.
    pub(crate) fn values(&self) -> &[pg_sys::Datum] {
        &self.values[..self.width]
    }

    /// Which of them are NULL.
    pub(crate) fn nulls(&self) -> &[bool] {
        &self.nulls[..self.width]
    }
}

/// The attributes that a row's place in an index depends on: also those in expressions and in a predicate, and what
/// generated columns are made of.
///
/// # Safety
/// The table is open, and the index is one of its.
pub(crate) unsafe fn attributes(table: pg_sys::Relation, info: *mut pg_sys::IndexInfo) -> Vec<i16> {
    let offset = pg_sys::FirstLowInvalidHeapAttributeNumber;
    // SAFETY: as the caller promises; the sets and expressions are this call's own or the relation's.
    unsafe {
        let mut set = std::ptr::null_mut();
        for &attribute in &(&(*info).ii_IndexAttrNumbers)[..(*info).ii_NumIndexKeyAttrs as usize] {
            if attribute != 0 {
                set = pg_sys::bms_add_member(set, i32::from(attribute) - offset);
            }
        }
        pg_sys::pull_varattnos((*info).ii_Expressions.cast(), 1, &mut set);
        pg_sys::pull_varattnos((*info).ii_Predicate.cast(), 1, &mut set);
        let members = |set: *mut pg_sys::Bitmapset| {
            let mut found = Vec::new();
            let mut member = -1;
            loop {
                member = pg_sys::bms_next_member(set, member);
                if member < 0 {
                    return found;
                }
                found.push((member + offset) as i16);
            }
        };
        let desc = pgrx::PgTupleDesc::from_pg_unchecked((*table).rd_att);
        for attribute in members(set) {
            let is_generated = attribute > 0 && desc.get(attribute as usize - 1).is_some_and(|a| a.attgenerated != 0);
            if is_generated {
                let expression = pg_sys::build_column_default(table, attribute.into());
                pg_sys::pull_varattnos(expression, 1, &mut set);
            }
        }
        members(set)
    }
}

/// The values of the row in `slot`, or `None` if it can never clash there: it is outside of a partial index, or has a
/// NULL that is distinct from every other.
///
/// # Safety
/// The slot is of the index's table, and `estate` of its executor; the values live as long as the slot's row and the
/// executor's memory for a row.
pub(crate) unsafe fn values(
    info: *mut pg_sys::IndexInfo,
    slot: *mut pg_sys::TupleTableSlot,
    estate: *mut pg_sys::EState,
) -> Option<Values> {
    // SAFETY: as the caller promises; expressions are evaluated in the executor's memory for a row.
    unsafe {
        let econtext = match (*estate).es_per_tuple_exprcontext {
            none if none.is_null() => pg_sys::MakePerTupleExprContext(estate),
            econtext => econtext,
        };
        (*econtext).ecxt_scantuple = slot;
        if !(*info).ii_Predicate.is_null() {
            if (*info).ii_PredicateState.is_null() {
                (*info).ii_PredicateState = pg_sys::ExecPrepareQual((*info).ii_Predicate, estate);
            }
            let state = (*info).ii_PredicateState;
            if !state.is_null() {
                let caller = pg_sys::MemoryContextSwitchTo((*econtext).ecxt_per_tuple_memory);
                let mut isnull = false;
                let evaluate = (*state).evalfunc.expect("a prepared expression has a function");
                let out = &raw mut isnull;
                let is_inside = guarded(|| evaluate(state, econtext, out));
                pg_sys::MemoryContextSwitchTo(caller);
                if isnull || is_inside.value() == 0 {
                    return None;
                }
            }
        }
        let mut found = Values {
            values: [pg_sys::Datum::from(0); MOST],
            nulls: [true; MOST],
            width: (*info).ii_NumIndexKeyAttrs as usize,
        };
        pg_sys::FormIndexDatum(info, slot, estate, found.values.as_mut_ptr(), found.nulls.as_mut_ptr());
        let is_distinct = !(*info).ii_NullsNotDistinct && found.nulls().contains(&true);
        (!is_distinct).then_some(found)
    }
}

/// Whether two rows have equal values in an index, by its own operators.
///
/// # Safety
/// The index is open, the values are of its columns.
pub(crate) unsafe fn are_equal(index: pg_sys::Relation, one: &Values, other: &Values) -> bool {
    if one.nulls() != other.nulls() {
        return false;
    }
    // SAFETY: as the caller promises.
    let keys = unsafe { scan_keys(index, one.values(), one.nulls()) };
    (0..one.width).filter(|&column| !one.nulls[column]).all(|column| {
        let key = &keys[column];
        let mut function = key.sk_func;
        // SAFETY: the key was made for this column.
        unsafe {
            let equal =
                pg_sys::FunctionCall2Coll(&mut function, key.sk_collation, one.values[column], other.values[column]);
            equal.value() != 0
        }
    })
}

/// Finds and locks a row other than `own` that has these values in the index, waiting for whoever is writing one. Puts
/// it into `slot`.
///
/// # Safety
/// Table and index are open; the slot is one of the table's.
pub(crate) unsafe fn lock_holder(
    table: pg_sys::Relation,
    index: pg_sys::Relation,
    values: &Values,
    own: Option<pg_sys::ItemPointerData>,
    passed: &[pg_sys::ItemPointerData],
    slot: *mut pg_sys::TupleTableSlot,
) -> bool {
    // SAFETY: as the caller promises; what is opened is closed, or given back by the abort that an error leads to.
    unsafe {
        loop {
            let mut snapshot =
                pg_sys::SnapshotData { snapshot_type: pg_sys::SnapshotType::SNAPSHOT_DIRTY, ..Default::default() };
            let mut keys = scan_keys(index, values.values(), values.nulls());
            let scan = begin_scan(table, index, &mut snapshot, keys.len());
            pg_sys::index_rescan(scan, keys.as_mut_ptr(), keys.len() as i32, std::ptr::null_mut(), 0);
            let (mut found, mut writer) = (false, pg_sys::TransactionId::INVALID);
            while pg_sys::index_getnext_slot(scan, pg_sys::ScanDirection::ForwardScanDirection, slot) {
                let place = (*slot).tts_tid;
                if own.is_some_and(|own| is_same(own, place)) || passed.iter().any(|&other| is_same(other, place)) {
                    continue;
                }
                writer = if snapshot.xmin == pg_sys::TransactionId::INVALID { snapshot.xmax } else { snapshot.xmin };
                found = true;
                break;
            }
            let mut place = (*slot).tts_tid;
            pg_sys::index_endscan(scan);
            if !found {
                return false;
            }
            if writer != pg_sys::TransactionId::INVALID {
                pg_sys::XactLockTableWait(
                    writer,
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                    pg_sys::XLTW_Oper::XLTW_None,
                );
                continue;
            }
            let mut failure = pg_sys::TM_FailureData::default();
            let lock = (*(*table).rd_tableam).tuple_lock.expect("a heap can lock rows");
            let (command, latest) = (pg_sys::GetCurrentCommandId(false), pg_sys::GetLatestSnapshot());
            let (place, failure) = (&raw mut place, &raw mut failure);
            let result = guarded(|| {
                lock(
                    table,
                    place,
                    latest,
                    slot,
                    command,
                    pg_sys::LockTupleMode::LockTupleExclusive,
                    pg_sys::LockWaitPolicy::LockWaitBlock,
                    0,
                    failure,
                )
            });
            if result == pg_sys::TM_Result::TM_Ok {
                return true;
            }
            // Changed in between: look again.
            pgrx::check_for_interrupts!();
        }
    }
}

pub(crate) fn is_same(mut one: pg_sys::ItemPointerData, mut other: pg_sys::ItemPointerData) -> bool {
    // SAFETY: both are places in a table.
    unsafe { pg_sys::ItemPointerEquals(&mut one, &mut other) }
}
