//! A table opened for writing: executor state, indexes, triggers. Kept for all changes of one call, because opening is
//! what costs.

use std::ptr;
use std::rc::Rc;

use duplex_protocol::version::Version;
use pgrx::{PgSqlErrorCode, pg_sys};

use crate::apply::find::Finder;
use crate::apply::partition::Routing;
use crate::apply::relation::Target;
use crate::apply::triggers::{Deferrable, Triggers, keep_firing_triggers};
use crate::apply::value::Arena;
use crate::conflict::arrival::Arrival;
use crate::conflict::index::attributes;
use crate::conflict::kept::Keeper;
use crate::conflict::tombstone::Tombstones;
use crate::conflict::unique::Unique;
use crate::conflict::write::noted;
use crate::errors::{Failure, Result};
use crate::slot;

/// A table that rows are stored in: the table itself, or a partition of it.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) info: *mut pg_sys::ResultRelInfo,
    /// The unique index that rows are found by.
    pub(crate) key_index: pg_sys::Oid,
    pub(crate) finder: Finder,
    /// Where the row found is put.
    pub(crate) found: *mut pg_sys::TupleTableSlot,
    /// The row to write, in this leaf's layout.
    pub(crate) write: *mut pg_sys::TupleTableSlot,
    /// Attributes that an UPDATE keeps as they are here.
    pub(crate) kept: Vec<i16>,
    /// Which triggers are left to fire.
    pub(crate) triggers: Triggers,
    /// What BEFORE triggers lock rows with.
    pub(crate) epq: Box<pg_sys::EPQState>,
    /// The unique indexes but the key's.
    pub(crate) uniques: Vec<Unique>,
    /// Those in which duplicates are noted, not raised, and the key's.
    pub(crate) noted: *mut pg_sys::List,
    /// The key's attributes in this leaf, in the order of the table's registers.
    pub(crate) key: Vec<i16>,
    /// Where another row is put that holds a unique value of the one to write.
    pub(crate) other: *mut pg_sys::TupleTableSlot,
    /// The counters' attributes in this leaf, in the policy's order.
    pub(crate) counters: Vec<i16>,
    /// In a table that merges by column, the attribute of each of the descriptor's columns.
    pub(crate) columns: Vec<i16>,
    /// And for each of `uniques` the columns that it depends on.
    pub(crate) unique_columns: Vec<Vec<u16>>,
}

/// Where rows go.
#[derive(Debug)]
pub(crate) enum Storage {
    Plain(Box<Leaf>),
    Partitioned(Routing),
}

/// A table opened for writing. All pointers live in `estate`'s memory, or are of the relation while it is open; after
/// an error they are gone with the transaction, and this must not be used but dropped.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) target: Rc<Target>,
    pub(crate) rel: pg_sys::Relation,
    pub(crate) estate: *mut pg_sys::EState,
    /// The row that came, in the table's own layout.
    pub(crate) remote: *mut pg_sys::TupleTableSlot,
    pub(crate) econtext: *mut pg_sys::ExprContext,
    pub(crate) arena: Arena,
    /// The same for a row that a tombstone has kept.
    pub(crate) kept_arena: Arena,
    /// Defaults of the attributes that the descriptor lacks.
    pub(crate) defaults: Vec<(i16, *mut pg_sys::ExprState)>,
    pub(crate) storage: Storage,
    pub(crate) deferrable: Vec<Deferrable>,
    /// Version of the newest TRUNCATE.
    pub(crate) truncated: Option<Version>,
    /// This transaction reads the table's registers: nobody changes them under it.
    pub(crate) guarded: bool,
    /// What is known of whether there are tombstones.
    pub(crate) tombstones: Tombstones,
    /// What a table with a policy keeps, which is not among those tombstones.
    pub(crate) keeper: Option<Keeper>,
    /// This transaction has the table's registers alone.
    pub(crate) alone: bool,
    /// Where it was read what is remembered of the key that has no row now.
    pub(crate) found: Option<Vec<pg_sys::ItemPointerData>>,
}

impl Table {
    /// Opens the table that `target` says, or returns `None` if the mapping is out of date.
    ///
    /// # Safety
    /// Inside a transaction with an active snapshot; closed before the transaction's end or the call's.
    pub(crate) unsafe fn open(target: Rc<Target>, arrival: &mut Arrival<'_>) -> Result<Option<Self>> {
        // SAFETY: as the caller promises; locking takes in pending invalidations, which `is_stale` shows.
        let rel = unsafe { pg_sys::try_table_open(target.relid, pg_sys::RowExclusiveLock.cast_signed()) };
        if rel.is_null() || target.is_stale() {
            if !rel.is_null() {
                // SAFETY: opened above.
                unsafe { pg_sys::table_close(rel, pg_sys::NoLock.cast_signed()) };
            }
            return Ok(None);
        }
        // SAFETY: the relation is open from here on; memory of the executor state lives until `close`.
        unsafe {
            check_row_security(rel, &target)?;
            let estate = pg_sys::CreateExecutorState();
            let caller = pg_sys::MemoryContextSwitchTo((*estate).es_query_cxt);
            let info = root_info(estate, rel, &target);
            let remote = pg_sys::ExecInitExtraTupleSlot(estate, (*rel).rd_att, &raw const pg_sys::TTSOpsVirtual);
            let econtext = pg_sys::MakePerTupleExprContext(estate);
            let mut deferrable = Vec::new();
            let storage = match (*(*rel).rd_rel).relkind as u8 {
                pg_sys::RELKIND_RELATION => {
                    pg_sys::ExecOpenIndices(info, false);
                    let leaf = Leaf::new(info, estate, &target, None, remote, &mut deferrable)?;
                    Storage::Plain(Box::new(leaf))
                }
                pg_sys::RELKIND_PARTITIONED_TABLE => Storage::Partitioned(Routing::new(estate, rel, info)),
                _ => {
                    return Err(Failure::new(
                        PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
                        format!("{} is not a table", target.label),
                    ));
                }
            };
            let defaults = default_expressions(rel, &target);
            pg_sys::MemoryContextSwitchTo(caller);
            let arena = Arena::default();
            let stamp = target.registers.truncated.as_ref();
            let tombstones = Tombstones::new(target.registers.tombstones);
            let keeper = target
                .registers
                .rows
                .map(|rows| Keeper::new(target.registers.tombstones, rows, &target.registers.policy));
            let truncated = stamp.and_then(|stamp| stamp.version(arrival.versions, arrival.version));
            Ok(Some(Self {
                target,
                rel,
                estate,
                remote,
                econtext,
                arena,
                kept_arena: Arena::default(),
                defaults,
                storage,
                deferrable,
                truncated,
                guarded: false,
                tombstones,
                keeper,
                alone: false,
                found: None,
            }))
        }
    }

    /// Closes the table, keeping its lock to the end of the transaction.
    ///
    /// # Safety
    /// Only after everything went well: an abort releases all of this by itself.
    pub(crate) unsafe fn close(self) {
        // SAFETY: everything was opened by `open`, and is closed in the executor's own order.
        unsafe {
            self.tombstones.close();
            if let Some(keeper) = self.keeper {
                keeper.close();
            }
            match self.storage {
                Storage::Plain(leaf) => {
                    leaf.finder.close();
                    pg_sys::ExecCloseIndices(leaf.info);
                }
                Storage::Partitioned(routing) => routing.close(),
            }
            pg_sys::ExecResetTupleTable((*self.estate).es_tupleTable, false);
            pg_sys::FreeExecutorState(self.estate);
            pg_sys::table_close(self.rel, pg_sys::NoLock.cast_signed());
        }
    }
}

/// Row security that applies to the owner would hide rows, and what is hidden cannot be replicated.
unsafe fn check_row_security(rel: pg_sys::Relation, target: &Target) -> Result<()> {
    // SAFETY: the relation is open.
    let enabled = unsafe {
        (*(*rel).rd_rel).relrowsecurity
            && pg_sys::check_enable_rls(target.relid, target.owner, true).cast_unsigned()
                == pg_sys::CheckEnableRlsResult::RLS_ENABLED
    };
    if !enabled {
        return Ok(());
    }
    Err(Failure::new(
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!("row security of table {} applies to its owner, as whom changes are applied", target.label),
    )
    .hint("Use \"alter table … no force row level security\", or give the owner BYPASSRLS."))
}

/// The table as the executor knows a target of its own plan.
unsafe fn root_info(estate: *mut pg_sys::EState, rel: pg_sys::Relation, target: &Target) -> *mut pg_sys::ResultRelInfo {
    // SAFETY: nodes are zeroed memory with their tag, in the executor state's context; the relation is open.
    unsafe {
        let rte: *mut pg_sys::RangeTblEntry = node(pg_sys::NodeTag::T_RangeTblEntry);
        (*rte).rtekind = pg_sys::RTEKind::RTE_RELATION;
        (*rte).relid = target.relid;
        (*rte).relkind = (*(*rel).rd_rel).relkind;
        (*rte).rellockmode = pg_sys::RowExclusiveLock.cast_signed();
        let (mut written, mut generated) = (ptr::null_mut(), ptr::null_mut());
        for column in &target.columns {
            let member = i32::from(column.attribute) - pg_sys::FirstLowInvalidHeapAttributeNumber;
            let set = if column.generated { &mut generated } else { &mut written };
            *set = pg_sys::bms_add_member(*set, member);
        }
        let range_table = pg_sys::lappend(ptr::null_mut(), rte.cast());
        #[cfg(feature = "pg15")]
        {
            (*rte).updatedCols = written;
            (*rte).extraUpdatedCols = generated;
            pg_sys::ExecInitRangeTable(estate, range_table);
        }
        #[cfg(not(feature = "pg15"))]
        {
            let _ = generated;
            let mut permissions = ptr::null_mut();
            let permission = pg_sys::addRTEPermissionInfo(&mut permissions, rte);
            (*permission).updatedCols = written;
            #[cfg(not(feature = "pg18"))]
            pg_sys::ExecInitRangeTable(estate, range_table, permissions);
            #[cfg(feature = "pg18")]
            pg_sys::ExecInitRangeTable(estate, range_table, permissions, pg_sys::bms_make_singleton(1));
        }
        let info: *mut pg_sys::ResultRelInfo = node(pg_sys::NodeTag::T_ResultRelInfo);
        pg_sys::InitResultRelInfo(info, rel, 1, ptr::null_mut(), 0);
        (*estate).es_opened_result_relations = pg_sys::lappend((*estate).es_opened_result_relations, info.cast());
        info
    }
}

/// A zeroed node with its tag.
pub(crate) unsafe fn node<T>(tag: pg_sys::NodeTag) -> *mut T {
    // SAFETY: every node begins with its tag and is valid when zeroed.
    unsafe {
        let node = pg_sys::palloc0(size_of::<T>());
        node.cast::<pg_sys::NodeTag>().write(tag);
        node.cast()
    }
}

/// The cells of a server's list.
///
/// # Safety
/// The list is valid and is neither changed nor freed while the cells are looked at.
pub(crate) unsafe fn list_cells<'l>(list: *mut pg_sys::List) -> &'l [pg_sys::ListCell] {
    if list.is_null() {
        return &[];
    }
    // SAFETY: a list that is not null has `length` cells in one array.
    unsafe { std::slice::from_raw_parts((*list).elements, (*list).length as usize) }
}

unsafe fn default_expressions(rel: pg_sys::Relation, target: &Target) -> Vec<(i16, *mut pg_sys::ExprState)> {
    let prepare = |&attribute: &i16| {
        // SAFETY: the relation is open, the current memory is the executor state's.
        unsafe {
            let expression = pg_sys::build_column_default(rel, attribute.into());
            (!expression.is_null()).then(|| {
                let planned = pg_sys::expression_planner(expression.cast());
                (attribute, pg_sys::ExecInitExpr(planned, ptr::null_mut()))
            })
        }
    };
    target.unmapped.iter().filter_map(prepare).collect()
}

impl Leaf {
    /// Readies a table or partition. `layout` says for each attribute which of the root's it is, if they differ;
    /// `write` is where the row to write will be.
    ///
    /// # Safety
    /// The relation is open, the current memory is the executor state's.
    pub(crate) unsafe fn new(
        info: *mut pg_sys::ResultRelInfo,
        estate: *mut pg_sys::EState,
        target: &Target,
        layout: Option<&[i16]>,
        write: *mut pg_sys::TupleTableSlot,
        deferrable: &mut Vec<Deferrable>,
    ) -> Result<Self> {
        // SAFETY: as the caller promises.
        unsafe {
            let rel = (*info).ri_RelationDesc;
            let here = |root: i16| match layout {
                None => root,
                Some(layout) => layout.iter().position(|&a| a == root).map_or(0, |index| index as i16 + 1),
            };
            let key: Vec<i16> = target.key_attributes().map(here).collect();
            let key_index = key_index(rel, &key).ok_or_else(|| {
                Failure::new(
                    PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!("table {} has no unique index on the key that the peer has", target.label),
                )
                .hint("Give the table the same primary key or replica identity index on every node.")
            })?;
            let found = pg_sys::table_slot_create(rel, &raw mut (*estate).es_tupleTable);
            if (*found).tts_ops != &raw const pg_sys::TTSOpsBufferHeapTuple {
                return Err(Failure::new(
                    PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                    format!("table {} is not stored as a heap", target.label),
                )
                .hint("Versions of rows are read from the heap: use the access method heap."));
            }
            let generated = target.columns.iter().filter(|column| column.generated).map(|column| column.attribute);
            let kept = target.unmapped.iter().copied().chain(generated).map(here).filter(|&a| a > 0).collect();
            let triggers = keep_firing_triggers(info, target.owner, deferrable);
            let mut epq: Box<pg_sys::EPQState> = Box::default();
            #[cfg(feature = "pg15")]
            pg_sys::EvalPlanQualInit(&mut *epq, estate, ptr::null_mut(), ptr::null_mut(), -1);
            #[cfg(not(feature = "pg15"))]
            pg_sys::EvalPlanQualInit(&mut *epq, estate, ptr::null_mut(), ptr::null_mut(), -1, ptr::null_mut());
            let uniques = Unique::of(info, key_index, &target.registers);
            let other = match uniques.is_empty() {
                true => ptr::null_mut(),
                false => pg_sys::table_slot_create(rel, &raw mut (*estate).es_tupleTable),
            };
            let key = target.registers.key.iter().copied().map(here).collect();
            let noted = noted(key_index, &uniques);
            let indexes = std::slice::from_raw_parts((*info).ri_IndexRelationDescs, (*info).ri_NumIndices as usize);
            let index = indexes.iter().find(|index| (***index).rd_id == key_index).expect("all indexes are open");
            let finder = Finder::new(rel, *index);
            let of_counter = |(_, column): &(_, u16)| here(target.columns[usize::from(*column)].attribute);
            let counters = target.counters.iter().map(of_counter).collect();
            let (mut columns, mut unique_columns) = (Vec::new(), Vec::new());
            if target.merged.is_some() {
                columns = target.columns.iter().map(|column| here(column.attribute)).collect();
                let place = |attribute: i16| columns.iter().position(|&column| column == attribute);
                let of_index = |unique: &Unique| {
                    let attributes = attributes(rel, unique.info).into_iter();
                    attributes.filter_map(place).map(|place| place as u16).collect()
                };
                unique_columns = uniques.iter().map(of_index).collect();
            }
            Ok(Self {
                info,
                key_index,
                finder,
                found,
                write,
                kept,
                triggers,
                epq,
                uniques,
                noted,
                key,
                other,
                counters,
                columns,
                unique_columns,
            })
        }
    }
}

impl Leaf {
    /// The key of the row in a slot, in the order of the table's registers. The values point into the slot.
    ///
    /// # Safety
    /// The slot is of this leaf and holds a row.
    pub(crate) unsafe fn key_of(&self, slot: *mut pg_sys::TupleTableSlot) -> Vec<pg_sys::Datum> {
        let last = self.key.iter().copied().max().unwrap_or(0);
        // SAFETY: as the caller promises.
        unsafe {
            slot::deform(slot, last.into());
            self.key.iter().map(|&attribute| *(*slot).tts_values.add(attribute as usize - 1)).collect()
        }
    }
}

/// The index that holds exactly these attributes and can tell at once whether a row exists.
pub(crate) unsafe fn key_index(rel: pg_sys::Relation, key: &[i16]) -> Option<pg_sys::Oid> {
    if key.is_empty() {
        return None;
    }
    // SAFETY: the relation is open; each index is open while it is looked at.
    unsafe {
        let mut best = None;
        for cell in list_cells(pg_sys::RelationGetIndexList(rel)) {
            let oid = cell.oid_value;
            let index = pg_sys::index_open(oid, pg_sys::RowExclusiveLock.cast_signed());
            let form = &*(*index).rd_index;
            let columns = form.indkey.values.as_slice(usize::from(form.indnkeyatts.cast_unsigned()));
            let fits = form.indisunique
                && form.indimmediate
                && form.indisvalid
                && columns.len() == key.len()
                && columns.iter().all(|column| key.contains(column))
                && pg_sys::heap_attisnull(
                    (*index).rd_indextuple,
                    pg_sys::Anum_pg_index_indpred.cast_signed(),
                    ptr::null_mut(),
                );
            let preferred = form.indisprimary || form.indisreplident;
            pg_sys::index_close(index, pg_sys::NoLock.cast_signed());
            if fits && preferred {
                return Some(oid);
            }
            if fits {
                best.get_or_insert(oid);
            }
        }
        best
    }
}
