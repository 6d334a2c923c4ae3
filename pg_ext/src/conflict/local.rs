//! What a local change leaves in the registers, in its own transaction: the tombstone of a key that is gone, and claims
//! of unique values that were given up. An INSERT leaves nothing, nor does an UPDATE that touches no unique value.

use duplex_protocol::entry::Replaced;
use pgrx::{IntoDatum as _, pg_sys};

use crate::apply::table::list_cells;
use crate::conflict::claim::Claims;
use crate::conflict::counter::{Amount, Counter};
use crate::conflict::index::{self, Values};
use crate::conflict::policy::{Policy, no_column};
use crate::conflict::registers::{Registers, identity_index};
use crate::conflict::unique::topmost;
use crate::conflict::{kept, pending, truncates};

/// The registers as capture writes them.
#[derive(Debug)]
pub(crate) struct Local {
    tombstones: pg_sys::Oid,
    /// The key's attributes in the captured table, by their index, in the registers' order.
    key: Vec<usize>,
    uniques: Vec<Unique>,
    /// Whether one of them is checked later than a row is written.
    has_deferrable: bool,
    /// How the table decides.
    pub(crate) policy: Policy,
    /// What a table with a policy keeps.
    pub(crate) kept: Option<Kept>,
}

/// What a table with a policy keeps beside.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) registers: kept::Local,
    /// The counters in the policy's order, each with its attribute in the captured table, by its index.
    pub(crate) counters: Vec<(Counter, usize)>,
}

/// A unique index that is not the key's.
#[derive(Debug)]
struct Unique {
    index: pg_sys::Oid,
    claims: Claims,
    /// The attributes in it, by their index; `None` if it has expressions or a predicate, which may use any.
    attributes: Option<Vec<usize>>,
    /// All that it depends on.
    uses: Vec<i16>,
}

/// A row before or after a change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'t> {
    pub(crate) tuple: pg_sys::HeapTuple,
    pub(crate) datums: &'t [pg_sys::Datum],
}

/// What became of a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change<'t> {
    pub(crate) old: Row<'t>,
    new: Option<Row<'t>>,
    /// It, if it is there under another key.
    moved: Option<pg_sys::HeapTuple>,
}

/// A row that holds a unique value which another one was given and has lost again in this transaction: a deferrable
/// constraint allows it in between.
#[derive(Debug)]
pub(crate) struct Holder {
    /// A copy of it, locked.
    pub(crate) tuple: pg_sys::HeapTuple,
    /// The number of the further unique index.
    pub(crate) unique: usize,
}

/// Since when the row that a change replaced had been there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held<'t> {
    pub(crate) replaced: Replaced,
    /// The node's name, if it was another.
    pub(crate) origin: Option<&'t str>,
}

impl Local {
    /// The registers that changes of `relation`, which is `root` or a partition of it, are to be remembered in. `None`
    /// for a table that has none: its changes concern no peer.
    ///
    /// # Safety
    /// Inside a transaction; both are open.
    pub(crate) unsafe fn load(
        relation: pg_sys::Relation,
        root: pg_sys::Relation,
    ) -> crate::errors::Result<Option<Self>> {
        // SAFETY: as the caller promises; indexes are open while they are looked at.
        unsafe {
            let Some(registers) = Registers::load(root)? else { return Ok(None) };
            let (of_root, here) = (pgrx::PgTupleDesc::from_pg_unchecked((*root).rd_att), (*relation).rd_att);
            let here = pgrx::PgTupleDesc::from_pg_unchecked(here);
            let place = |attribute: &i16| {
                let name = of_root.get(*attribute as usize - 1)?.name().to_owned();
                here.iter().position(|a| !a.attisdropped && a.name() == name)
            };
            let key = registers.key.iter().filter_map(place).collect();
            let identity = identity_index(relation);
            let (mut uniques, mut has_deferrable) = (Vec::new(), false);
            for cell in list_cells(pg_sys::RelationGetIndexList(relation)) {
                let oid = cell.oid_value;
                let index = pg_sys::index_open(oid, pg_sys::AccessShareLock.cast_signed());
                let form = &*(*index).rd_index;
                if form.indisunique && oid != identity {
                    let info = pg_sys::BuildIndexInfo(index);
                    let is_plain = (*info).ii_Expressions.is_null() && (*info).ii_Predicate.is_null();
                    let attributes = form.indkey.values.as_slice(usize::from(form.indnkeyatts.cast_unsigned()));
                    // What is computed is in none of the columns that are captured.
                    let is_computed = attributes
                        .iter()
                        .any(|&a| a > 0 && here.get(a as usize - 1).is_some_and(|a| a.attgenerated != 0));
                    let attributes =
                        (is_plain && !is_computed).then(|| attributes.iter().map(|&a| a as usize - 1).collect());
                    if let Some(claims) = registers.claims_of(topmost(index)) {
                        let ordered = registers.policy.merges();
                        let claims = Claims { oid: claims, keys: registers.tombstones, ordered };
                        let uses = if ordered { index::attributes(relation, info) } else { Vec::new() };
                        has_deferrable |= !form.indimmediate;
                        uniques.push(Unique { index: oid, claims, attributes, uses });
                    }
                }
                pg_sys::index_close(index, pg_sys::NoLock.cast_signed());
            }
            let kept = registers.rows.map(|rows| Kept::load(&registers, rows, &here)).transpose()?;
            Ok(Some(Self {
                tombstones: registers.tombstones,
                key,
                uniques,
                has_deferrable,
                policy: registers.policy,
                kept,
            }))
        }
    }

    /// Whether a DELETE or a changed key leaves claims, or an UPDATE may do so.
    pub(crate) fn has_uniques(&self) -> bool {
        !self.uniques.is_empty()
    }

    /// Whether a transaction may give a row a unique value that another one holds, and take it away again.
    pub(crate) fn has_deferrable(&self) -> bool {
        self.has_deferrable
    }

    /// The key of a row, in the registers' order.
    pub(crate) fn key(&self, row: Row<'_>) -> Vec<pg_sys::Datum> {
        self.key.iter().map(|&attribute| row.datums[attribute]).collect()
    }

    /// A key is gone; the row may be there under another. What is returned is to be given its values again, by
    /// `capture::passing`, and so it is below.
    ///
    /// # Safety
    /// Inside the transaction that removed the row; `relation` is its table.
    pub(crate) unsafe fn deleted(&self, relation: pg_sys::Relation, change: Change<'_>, held: Held<'_>) -> Vec<Holder> {
        let key = self.key(change.old);
        // SAFETY: as the caller promises; `load` made sure that the register has the key's types.
        unsafe {
            pending::bury(self.tombstones, &key);
            self.release_all(relation, &key, change, |_| held.stored().map(|stored| (stored, 0)))
        }
    }

    /// The attributes that each further unique index depends on, in a table that merges by column.
    pub(crate) fn uses(&self) -> impl Iterator<Item = &[i16]> {
        self.uniques.iter().map(|unique| unique.uses.as_slice())
    }

    /// The same in a table with a policy, which keeps what is left of the counters, and the row if its columns are merged.
    /// `held` says since when each further unique index had its value.
    ///
    /// # Safety
    /// As [`Self::deleted`].
    pub(crate) unsafe fn deleted_with(
        &self,
        kept: &Kept,
        relation: pg_sys::Relation,
        change: Change<'_>,
        image: Option<&[u8]>,
        held: impl Fn(usize) -> Option<(kept::Written, u64)>,
        residual: &[Amount],
    ) -> Vec<Holder> {
        let key = self.key(change.old);
        let none = pg_sys::Datum::from(0);
        // SAFETY: as the caller promises. Without a version the tombstone has that of the transaction.
        unsafe {
            kept.registers.remember(&key, ([none; 2], [true; 2]), residual, image);
            self.release_all(relation, &key, change, held)
        }
    }

    /// A TRUNCATE takes a row of a table that merges by column: a later write of it may still have columns from before,
    /// and has to give way to what the others had claimed until then.
    ///
    /// # Safety
    /// As [`Self::deleted`].
    pub(crate) unsafe fn truncated_with(
        &self,
        relation: pg_sys::Relation,
        row: Row<'_>,
        held: impl Fn(usize) -> Option<(kept::Written, u64)>,
    ) {
        // SAFETY: as the caller promises. Nobody holds a value of a row that is to go: there was nothing left to check.
        unsafe { self.release_all(relation, &self.key(row), Change::gone(row), held) };
    }

    /// As [`Self::updated`], in a table that merges by column.
    ///
    /// # Safety
    /// As [`Self::deleted`].
    pub(crate) unsafe fn updated_with(
        &self,
        relation: pg_sys::Relation,
        change: Change<'_>,
        held: impl Fn(usize) -> Option<(kept::Written, u64)>,
    ) -> Vec<Holder> {
        // SAFETY: as the caller promises.
        unsafe { self.release_all(relation, &self.key(change.old), change, held) }
    }

    unsafe fn release_all(
        &self,
        relation: pg_sys::Relation,
        key: &[pg_sys::Datum],
        change: Change<'_>,
        held: impl Fn(usize) -> Option<(kept::Written, u64)>,
    ) -> Vec<Holder> {
        let numbered = self.uniques.iter().enumerate();
        let release = |(number, unique): (usize, &Unique)| {
            // SAFETY: as the callers promise.
            let tuple = unsafe { unique.release(relation, key, change, held(number))? };
            Some(Holder { tuple, unique: number })
        };
        numbered.filter_map(release).collect()
    }

    /// A row has another image under the same key. `changed` says of an attribute, by its index, whether it differs.
    ///
    /// # Safety
    /// As [`Self::deleted`].
    pub(crate) unsafe fn updated(
        &self,
        relation: pg_sys::Relation,
        change: Change<'_>,
        changed: impl Fn(usize) -> bool,
        replaced: Replaced,
        origin: impl FnOnce(Replaced) -> Option<String>,
    ) -> Vec<Holder> {
        let is_touched = |unique: &Unique| {
            unique.attributes.as_ref().is_none_or(|attributes| attributes.iter().any(|&a| changed(a)))
        };
        let touched: Vec<bool> = self.uniques.iter().map(is_touched).collect();
        if !touched.contains(&true) {
            return Vec::new();
        }
        let origin = origin(replaced);
        let held = Held { replaced, origin: origin.as_deref() };
        let held = |number: usize| touched[number].then(|| held.stored()).flatten().map(|stored| (stored, 0));
        // SAFETY: as the caller promises.
        unsafe { self.release_all(relation, &self.key(change.old), change, held) }
    }
}

impl Kept {
    unsafe fn load(
        registers: &Registers,
        rows: pg_sys::Oid,
        here: &pgrx::PgTupleDesc<'_>,
    ) -> crate::errors::Result<Self> {
        let mut counters = Vec::new();
        for name in &registers.policy.counters {
            let place = here.iter().position(|a| !a.attisdropped && a.name() == name);
            let attribute = place.and_then(|place| Some((place, here.get(place)?)));
            let (place, attribute) = attribute.ok_or_else(|| no_column(name))?;
            counters.push((Counter::new(name, attribute.atttypid, attribute.atttypmod)?, place));
        }
        Ok(Self { registers: kept::Local::new(registers.tombstones, rows, &registers.policy), counters })
    }
}

impl<'t> Change<'t> {
    /// A row that is gone.
    pub(crate) fn gone(old: Row<'t>) -> Self {
        Self { old, new: None, moved: None }
    }

    /// A row that has another image under its key.
    pub(crate) fn updated(old: Row<'t>, new: Row<'t>) -> Self {
        Self { old, new: Some(new), moved: None }
    }

    /// A row that has another key now.
    pub(crate) fn moved(old: Row<'t>, new: Row<'t>) -> Self {
        Self { old, new: None, moved: Some(new.tuple) }
    }
}

impl Unique {
    /// Remembers that the key held what `old` shows and `new` does not. Returns the row that holds it now, if it was
    /// given and taken in this transaction.
    unsafe fn release(
        &self,
        relation: pg_sys::Relation,
        key: &[pg_sys::Datum],
        change: Change<'_>,
        held: Option<(kept::Written, u64)>,
    ) -> Option<pg_sys::HeapTuple> {
        let (stamp, order) = held?;
        let mut holder = None;
        // SAFETY: as the callers promise; what is made is freed, or goes with the transaction after an error.
        unsafe {
            let index = pg_sys::index_open(self.index, pg_sys::AccessShareLock.cast_signed());
            let info = pg_sys::BuildIndexInfo(index);
            let estate = pg_sys::CreateExecutorState();
            let before = evaluated(relation, info, estate, change.old);
            let after = change.new.and_then(|new| evaluated(relation, info, estate, new));
            if let Some(before) = before
                && !after.is_some_and(|after| index::are_equal(index, &before, &after))
            {
                self.claims.release(&before, key, stamp, order);
                if is_of_transaction(stamp) && !(*(*index).rd_index).indimmediate {
                    holder = holder_of(relation, index, &before, change.moved);
                }
            }
            pg_sys::ExecResetTupleTable((*estate).es_tupleTable, false);
            pg_sys::FreeExecutorState(estate);
            pg_sys::index_close(index, pg_sys::NoLock.cast_signed());
        }
        holder
    }
}

/// Whether a register stores it as the version of the transaction that writes it.
fn is_of_transaction((_, no_stamp): kept::Written) -> bool {
    no_stamp == [true; 2]
}

/// Locks the row that holds these values, but for the one that gave them up, and copies it.
#[cold]
unsafe fn holder_of(
    relation: pg_sys::Relation,
    index: pg_sys::Relation,
    values: &Values,
    moved: Option<pg_sys::HeapTuple>,
) -> Option<pg_sys::HeapTuple> {
    // SAFETY: as the callers promise: both are open, and so is the transaction. What this command wrote is to be seen.
    unsafe {
        pg_sys::CommandCounterIncrement();
        let slot = pg_sys::table_slot_create(relation, std::ptr::null_mut());
        let own = moved.map(|tuple| (*tuple).t_self);
        let tuple = index::lock_holder(relation, index, values, own, &[], slot).then(|| copied(slot));
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        tuple
    }
}

/// A copy of a slot's row, with its place.
///
/// # Safety
/// The slot is one of a table, and holds a row.
pub(crate) unsafe fn copied(slot: *mut pg_sys::TupleTableSlot) -> pg_sys::HeapTuple {
    // SAFETY: as the caller promises: such a slot has a heap tuple of its own.
    unsafe { pg_sys::heap_copytuple(pg_sys::ExecFetchSlotHeapTuple(slot, false, std::ptr::null_mut())) }
}

unsafe fn evaluated(
    relation: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
    estate: *mut pg_sys::EState,
    row: Row<'_>,
) -> Option<Values> {
    // SAFETY: as the callers promise: the tuple is of the relation. The slot lives in the executor's memory.
    unsafe {
        let caller = pg_sys::MemoryContextSwitchTo((*estate).es_query_cxt);
        let slot = pg_sys::ExecInitExtraTupleSlot(estate, (*relation).rd_att, &raw const pg_sys::TTSOpsHeapTuple);
        pg_sys::ExecStoreHeapTuple(row.tuple, slot, false);
        let values = index::values(info, slot, estate);
        pg_sys::MemoryContextSwitchTo(caller);
        values
    }
}

impl Held<'_> {
    /// As a register stores it; `None` for what is older than any version, to which nothing gives way.
    pub(crate) fn stored(self) -> Option<([pg_sys::Datum; 2], [bool; 2])> {
        let none = pg_sys::Datum::from(0);
        match self.replaced {
            Replaced::Nothing | Replaced::Ancient => None,
            Replaced::SameTransaction => Some(([none; 2], [true; 2])),
            Replaced::Version { commit_ts, .. } => {
                let origin = self.origin.and_then(|origin| origin.into_datum());
                Some(([pg_sys::Datum::from(commit_ts), origin.unwrap_or(none)], [false, origin.is_none()]))
            }
        }
    }
}

/// A table was emptied.
///
/// # Safety
/// Inside the transaction of the TRUNCATE; the relation is open and is the whole table.
pub(crate) unsafe fn truncated(relation: pg_sys::Relation) {
    // SAFETY: as the caller promises.
    unsafe {
        truncates::remember((*relation).rd_id, None);
        pg_sys::CacheInvalidateRelcache(relation);
    }
}
