//! Capture of tables with a policy: what a change adds to counters travels with it, what is left of them is remembered,
//! and the version of the row that it replaced may be another than that of the tuple's writer.

use std::cell::Cell;
use std::rc::Rc;

use duplex_protocol::encode::{CONTRIBUTION_BYTES, RowWriter};
use duplex_protocol::entry::{Contribution, PutKind, Replaced};
use duplex_protocol::rules::columns::together;
use duplex_protocol::rules::counters;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;
use pgrx::{AnyNumeric, PgSqlErrorCode, pg_sys};

use super::encode::{self, Scratch, Values};
use super::relation::{self, Merged, Table};
use super::row::{RowEvent, given_up, is_superseded};
use super::{passing, replaced, transaction};
use crate::backend_local::BackendLocal;
use crate::btree::{begin_scan, scan_keys};
use crate::conflict::counter::{Added, Amount};
use crate::conflict::kept;
use crate::conflict::local::{Change, Held, Holder, Kept, Local, Row};
use crate::conflict::registers::identity_index;
use crate::conflict::stamps::{Columns, Written, encode as encode_columns};
use crate::errors::{Failure, Result};

static SCRATCH: BackendLocal<Cell<Option<Scratch>>> = BackendLocal::new(Cell::new(None));
/// Numbers changes, in this backend: only changes of one transaction are ever compared by them.
static ORDER: BackendLocal<Cell<u64>> = BackendLocal::new(Cell::new(0));

/// The number of the next change.
fn next_order() -> u64 {
    ORDER.set(ORDER.get() + 1);
    ORDER.get()
}

/// The version of a row that is replaced, and what its columns were stamped with if they are merged.
pub(super) struct Before {
    pub(super) replaced: Replaced,
    pub(super) columns: Option<Columns>,
}

/// A table with a policy whose change is captured.
pub(super) struct Capture<'t> {
    pub(super) table: &'t Rc<Table>,
    pub(super) relation: &'t pg_sys::RelationData,
    pub(super) registers: &'t Local,
    pub(super) kept: &'t Kept,
}

impl Capture<'_> {
    /// Captures what happened to a row.
    ///
    /// # Safety
    /// The tuples are of the relation, which is open.
    #[inline(never)]
    pub(super) unsafe fn row(&self, event: RowEvent) -> Result<()> {
        let mut scratch = SCRATCH.take().unwrap_or_default();
        // SAFETY: as the caller promises.
        unsafe {
            match event {
                RowEvent::Insert { new } => self.insert(new, &mut scratch)?,
                RowEvent::Update { old, new } => self.update(old, new, &mut scratch, &[])?,
                RowEvent::Delete { old } => self.delete(old, &mut scratch)?,
            }
        }
        SCRATCH.set(Some(scratch));
        Ok(())
    }

    /// Captures a row that was written again as it was, with these columns as changed.
    ///
    /// # Safety
    /// Both tuples are of the relation, which is open.
    pub(super) unsafe fn again(&self, old: pg_sys::HeapTuple, new: pg_sys::HeapTuple, columns: &[u16]) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.update(old, new, &mut Scratch::default(), columns) }
    }

    unsafe fn insert(&self, tuple: pg_sys::HeapTuple, scratch: &mut Scratch) -> Result<()> {
        let Scratch { new, row, .. } = scratch;
        // SAFETY: as the caller promises.
        unsafe {
            new.deform(tuple, self.relation.rd_att, self.table.attributes);
            let added = self.inserted(tuple, new)?;
            if is_superseded(tuple) {
                return self.late(tuple, new, &added, &[]);
            }
            self.stamp_inserted(tuple, new);
            encode::row(self.table, new, row)?;
            let texts = self.texts(&added)?;
            let contributions = contributions(&texts);
            let bytes = encode::size(row, &[])? + size(&texts);
            transaction::add(self.table, Replaced::Nothing, bytes, |out| {
                let (kind, replaced) = (PutKind::Insert, Replaced::Nothing);
                let writer = RowWriter::put(out, self.table.oid, kind, replaced, &[], &contributions, row.len());
                encode::write(row, writer)
            })
        }
    }

    unsafe fn delete(&self, tuple: pg_sys::HeapTuple, scratch: &mut Scratch) -> Result<()> {
        let Scratch { old, old_key, .. } = scratch;
        // SAFETY: as the caller promises.
        unsafe {
            old.deform(tuple, self.relation.rd_att, self.table.attributes);
            encode::key(self.table, old, old_key)?;
            let before = self.before(tuple, old)?;
            let replaced = before.replaced;
            let texts = self.texts(&self.deleted(old))?;
            let contributions = contributions(&texts);
            transaction::add(self.table, replaced, encode::size(old_key, &[])? + size(&texts), |out| {
                encode::write(old_key, RowWriter::delete(out, self.table.oid, replaced, &contributions, old_key.len()))
            })?;
            let holders = self.gone(Change::gone(old.row(tuple)), old, &before)?;
            passing::give_back(self.table, self.relation, holders)
        }
    }

    /// `again` are columns that count as changed whatever their values.
    unsafe fn update(
        &self,
        old_tuple: pg_sys::HeapTuple,
        new_tuple: pg_sys::HeapTuple,
        scratch: &mut Scratch,
        again: &[u16],
    ) -> Result<()> {
        let Scratch { new, old, row, old_key, changed } = scratch;
        let (table, oid) = (self.table, self.table.oid);
        // SAFETY: as the caller promises.
        unsafe {
            old.deform(old_tuple, self.relation.rd_att, table.attributes);
            new.deform(new_tuple, self.relation.rd_att, table.attributes);
            let key_changed = encode::compare(table, old, new, changed);
            again.iter().for_each(|&place| changed[usize::from(place / 8)] |= 1 << (place % 8));
            let before = self.before(old_tuple, old)?;
            let replaced = before.replaced;
            let superseded = is_superseded(new_tuple);
            let rows = (old.row(old_tuple), new.row(new_tuple));
            let mut holders = Vec::new();
            if key_changed {
                encode::key(table, old, old_key)?;
                let texts = self.texts(&self.deleted(old))?;
                let contributions = contributions(&texts);
                transaction::add(table, replaced, encode::size(old_key, &[])? + size(&texts), |out| {
                    encode::write(old_key, RowWriter::delete(out, oid, replaced, &contributions, old_key.len()))
                })?;
                holders = self.gone(Change::moved(rows.0, rows.1), old, &before)?;
            }
            let added = if key_changed { self.inserted(new_tuple, new)? } else { self.updated(old, new, changed)? };
            if superseded {
                self.late(new_tuple, new, &added, if key_changed { &[] } else { changed })?;
            } else {
                if key_changed {
                    self.stamp_inserted(new_tuple, new);
                }
                encode::row(table, new, row)?;
                let texts = self.texts(&added)?;
                let contributions = contributions(&texts);
                let (kind, replaced, changed) = match key_changed {
                    true => (PutKind::Insert, Replaced::Nothing, &[][..]),
                    false => (PutKind::Update, replaced, &changed[..]),
                };
                transaction::add(table, replaced, encode::size(row, changed)? + size(&texts), |out| {
                    let writer = RowWriter::put(out, oid, kind, replaced, changed, &contributions, row.len());
                    encode::write(row, writer)
                })?;
            }
            let change = Change::updated(rows.0, rows.1);
            match (&table.merged, &before.columns) {
                _ if key_changed => {}
                (Some(merged), Some(columns)) => {
                    let relation = std::ptr::from_ref(self.relation).cast_mut();
                    holders = self.registers.updated_with(relation, change, |number| held(merged, columns, number));
                    if !superseded {
                        self.stamp_updated(merged, columns, changed, rows.1);
                    }
                }
                _ => holders = given_up(table, self.relation, change, changed, replaced),
            }
            passing::give_back(table, self.relation, holders)
        }
    }

    /// What is known of the row that is replaced.
    pub(super) unsafe fn before(&self, tuple: pg_sys::HeapTuple, old: &Values) -> Result<Before> {
        // SAFETY: as the callers promise: a tuple from a table holds the heap's fields.
        unsafe {
            let xmin = (*(*tuple).t_data).t_choice.t_heap.t_xmin;
            let note = self.kept.registers.replaced(&self.registers.key(old.row(tuple)), xmin)?;
            let replaced = match note.as_ref().and_then(|note| note.stamp.written()) {
                Some((commit_ts, peer)) => replaced::written(commit_ts, peer),
                None => replaced::version(tuple),
            };
            let columns = self.table.merged.as_ref().map(|merged| {
                let noted = note.as_ref().and_then(|note| Some((note.columns.as_ref()?, note.writer)));
                let stamp = |name: &String| match noted {
                    None => stamp_of(replaced, u64::MAX),
                    Some((columns, writer)) => {
                        let (_, written) = columns.iter().find(|(column, _)| column == name)?;
                        let written = written.as_ref()?;
                        match written.version {
                            Some(_) => Some(written.clone()),
                            None => stamp_of(replaced::of_transaction(writer), written.order),
                        }
                    }
                };
                merged.names.iter().map(|name| (name.clone(), stamp(name))).collect()
            });
            Ok(Before { replaced, columns })
        }
    }

    /// All columns of a row that was inserted are of this change. That is written down only where unique values are told
    /// apart by its number.
    unsafe fn stamp_inserted(&self, tuple: pg_sys::HeapTuple, new: &Values) {
        let order = next_order();
        let Some(merged) = self.table.merged.as_ref().filter(|merged| !merged.indexes.is_empty()) else { return };
        let own = || Some(Written { version: None, order });
        let columns = merged.names.iter().map(|name| (name.clone(), own())).collect();
        // SAFETY: as the callers promise.
        unsafe { self.kept.registers.note(&self.registers.key(new.row(tuple)), &columns) };
    }

    /// The columns that an UPDATE counts as having changed are of this change; the others are what they were.
    unsafe fn stamp_updated(&self, merged: &Merged, columns: &Columns, changed: &[u8], new: Row<'_>) {
        let order = next_order();
        let bits: Vec<bool> = (0..merged.names.len()).map(|place| changed[place / 8] >> (place % 8) & 1 == 1).collect();
        let indexes: Vec<&[u16]> = merged.indexes.iter().map(Vec::as_slice).collect();
        let mut columns = columns.clone();
        for (column, is_changed) in columns.iter_mut().zip(together(&bits, &indexes)) {
            if is_changed {
                column.1 = Some(Written { version: None, order });
            }
        }
        // SAFETY: as the callers promise.
        unsafe { self.kept.registers.note(&self.registers.key(new), &columns) };
    }

    /// A row as a tombstone keeps it, where columns are merged.
    pub(super) unsafe fn image(&self, tuple: pg_sys::HeapTuple, before: &Before) -> Result<Option<Vec<u8>>> {
        let Some(columns) = &before.columns else { return Ok(None) };
        let mut image = encode_columns(columns);
        // SAFETY: as the callers promise.
        image.extend(unsafe { row_frames(self.relation, tuple)? });
        Ok(Some(image))
    }

    pub(super) fn amounts<'v>(&'v self, values: &'v Values) -> impl Iterator<Item = Amount> + 'v {
        // SAFETY: the values are of a tuple of this table.
        self.kept.counters.iter().map(|(counter, attribute)| unsafe {
            let (value, is_null) = values.get(*attribute);
            counter.amount(value, is_null)
        })
    }

    /// What an INSERT adds: it counts from what is left under its key.
    unsafe fn inserted(&self, tuple: pg_sys::HeapTuple, new: &Values) -> Result<Added> {
        // SAFETY: as the callers promise.
        let residual = unsafe { self.kept.registers.residual(&self.registers.key(new.row(tuple))) };
        let added =
            self.amounts(new).zip(residual).zip(&self.kept.counters).map(|((value, residual), (counter, _))| {
                let value = value.ok_or_else(|| is_null(&counter.name))?;
                Ok(Some(counters::inserted(value, residual)))
            });
        Ok(Added(added.collect::<Result<_>>()?))
    }

    /// What an UPDATE adds.
    fn updated(&self, old: &Values, new: &Values, changed: &[u8]) -> Result<Added> {
        let amounts = self.amounts(old).zip(self.amounts(new));
        let added = amounts.zip(&self.kept.counters).map(|((old, new), (counter, attribute))| {
            if !self.is_changed(*attribute, changed) {
                return Ok(None);
            }
            let new = new.ok_or_else(|| is_null(&counter.name))?;
            Ok(Some(counters::updated(new, old.unwrap_or_else(|| AnyNumeric::from(0)))))
        });
        Ok(Added(added.collect::<Result<_>>()?))
    }

    fn is_changed(&self, attribute: usize, changed: &[u8]) -> bool {
        let place = self.table.columns.iter().position(|column| column.attribute == attribute);
        place.is_some_and(|place| changed[place / 8] >> (place % 8) & 1 == 1)
    }

    /// What a DELETE takes.
    fn deleted(&self, old: &Values) -> Added {
        Added(self.amounts(old).map(|amount| amount.map(counters::deleted)).collect())
    }

    /// The contributions as texts, by the columns of the descriptor.
    fn texts(&self, added: &Added) -> Result<Vec<(u16, String)>> {
        let counters: Vec<_> = self.kept.counters.iter().map(|(counter, _)| counter.clone()).collect();
        let place = |(number, text): (usize, String)| {
            let attribute = self.kept.counters[number].1;
            let place = self.table.columns.iter().position(|column| column.attribute == attribute)?;
            Some((place as u16, text))
        };
        Ok(added.texts(&counters)?.into_iter().filter_map(place).collect())
    }

    /// Remembers a key that is gone. What this node saw is taken away, so nothing is left.
    unsafe fn gone(&self, change: Change<'_>, old: &Values, before: &Before) -> Result<Vec<Holder>> {
        next_order();
        let replaced = before.replaced;
        let origin = if self.registers.has_uniques() { transaction::origin_name(replaced) } else { None };
        let of_row = Held { replaced, origin: origin.as_deref() }.stored();
        let held = |number| match (&self.table.merged, &before.columns) {
            (Some(merged), Some(columns)) => held(merged, columns, number),
            _ => of_row.map(|stored| (stored, 0)),
        };
        let left: Vec<Amount> = self.amounts(old).map(|amount| amount.map(|_| AnyNumeric::from(0))).collect();
        let relation = std::ptr::from_ref(self.relation).cast_mut();
        // SAFETY: as the callers promise.
        unsafe {
            let image = self.image(change.old.tuple, before)?;
            Ok(self.registers.deleted_with(self.kept, relation, change, image.as_deref(), held, &left))
        }
    }

    /// What a row adds that was written once more before its trigger fired: that write was captured already, counting
    /// from this one, and nothing but the addition may come after it, and that more columns are changed.
    #[cold]
    unsafe fn late(&self, tuple: pg_sys::HeapTuple, written: &Values, added: &Added, changed: &[u8]) -> Result<()> {
        next_order();
        let texts = self.texts(added)?;
        if texts.is_empty() && self.table.merged.is_none() {
            return Ok(());
        }
        let contributions = contributions(&texts);
        let (oid, replaced) = (self.table.oid, Replaced::SameTransaction);
        let mut pieces = Vec::new();
        // SAFETY: as the callers promise; the slot is dropped once its row is in the buffer.
        unsafe {
            let slot = pg_sys::table_slot_create(std::ptr::from_ref(self.relation).cast_mut(), std::ptr::null_mut());
            let is_there = self.find(&self.registers.key(written.row(tuple)), slot);
            if is_there {
                let mut values = Values::default();
                let now = pg_sys::ExecFetchSlotHeapTuple(slot, true, std::ptr::null_mut());
                values.deform(now, self.relation.rd_att, self.table.attributes);
                encode::row(self.table, &values, &mut pieces)?;
                // Of a row that was inserted all columns are.
                let all = vec![0xff; self.table.columns.len().div_ceil(8)];
                let changed = if changed.is_empty() { &all[..] } else { changed };
                transaction::add(self.table, replaced, encode::size(&pieces, changed)? + size(&texts), |out| {
                    let kind = PutKind::Update;
                    let writer = RowWriter::put(out, oid, kind, replaced, changed, &contributions, pieces.len());
                    encode::write(&pieces, writer)
                })?;
            } else {
                encode::key(self.table, written, &mut pieces)?;
                transaction::add(self.table, replaced, encode::size(&pieces, &[])? + size(&texts), |out| {
                    encode::write(&pieces, RowWriter::delete(out, oid, replaced, &contributions, pieces.len()))
                })?;
            }
            pg_sys::ExecDropSingleTupleTableSlot(slot);
        }
        Ok(())
    }

    /// Finds the row that is under a key now.
    unsafe fn find(&self, key: &[pg_sys::Datum], slot: *mut pg_sys::TupleTableSlot) -> bool {
        let relation = std::ptr::from_ref(self.relation).cast_mut();
        // SAFETY: the relation is open and has an index that identifies its rows; what is opened is closed.
        unsafe {
            let mut snapshot =
                pg_sys::SnapshotData { snapshot_type: pg_sys::SnapshotType::SNAPSHOT_SELF, ..Default::default() };
            let index = pg_sys::index_open(identity_index(relation), pg_sys::AccessShareLock.cast_signed());
            let mut keys = scan_keys(index, key, &[]);
            let scan = begin_scan(relation, index, &raw mut snapshot, keys.len());
            pg_sys::index_rescan(scan, keys.as_mut_ptr(), keys.len() as i32, std::ptr::null_mut(), 0);
            let is_there = pg_sys::index_getnext_slot(scan, pg_sys::ScanDirection::ForwardScanDirection, slot);
            if is_there {
                let materialize = (*(*slot).tts_ops).materialize.expect("a slot can be materialized");
                guarded(|| materialize(slot));
            }
            pg_sys::index_endscan(scan);
            pg_sys::index_close(index, pg_sys::NoLock.cast_signed());
            is_there
        }
    }
}

/// Since when a row has held its value in a further unique index, as its claim is written down.
pub(super) fn held(merged: &Merged, columns: &Columns, number: usize) -> Option<(kept::Written, u64)> {
    let of_index = merged.indexes[number].iter().filter_map(|&place| columns.get(usize::from(place))?.1.as_ref());
    // A stamp of this transaction is later than any other.
    let latest = of_index.max_by_key(|stamp| (stamp.version.is_none(), stamp.version.clone(), stamp.order))?;
    let none = pg_sys::Datum::from(0);
    let stored = match &latest.version {
        None => ([none; 2], [true; 2]),
        Some((commit_ts, origin)) => {
            let origin = origin.as_deref().and_then(pgrx::IntoDatum::into_datum);
            ([pg_sys::Datum::from(*commit_ts), origin.unwrap_or(none)], [false, origin.is_none()])
        }
    };
    Some((stored, latest.order))
}

/// A version as a stamp; `None` is older than any.
fn stamp_of(version: Replaced, order: u64) -> Option<Written> {
    match version {
        Replaced::Nothing | Replaced::Ancient => None,
        Replaced::SameTransaction => Some(Written { version: None, order }),
        Replaced::Version { commit_ts, .. } => {
            Some(Written { version: Some((commit_ts, transaction::origin_name(version))), order })
        }
    }
}

/// A row as it is kept: the description of its table, and itself, as in the stream.
///
/// # Safety
/// The relation is open, and the tuple is one of it.
pub(crate) unsafe fn row_frames(relation: &pg_sys::RelationData, tuple: pg_sys::HeapTuple) -> Result<Vec<u8>> {
    let table = relation::lookup(relation)?;
    let (mut values, mut pieces) = (Values::default(), Vec::new());
    let mut out = table.descriptor.clone();
    let described = out.len();
    // SAFETY: as the caller promises.
    unsafe {
        values.deform(tuple, relation.rd_att, table.attributes);
        encode::row(&table, &values, &mut pieces)?;
        out.resize(described + encode::size(&pieces, &[])?, 0);
        let (kind, replaced) = (PutKind::Update, Replaced::Nothing);
        let room = &mut out[described..];
        let written = encode::write(&pieces, RowWriter::put(room, table.oid, kind, replaced, &[], &[], pieces.len()));
        out.truncate(described + written);
    }
    Ok(out)
}

fn contributions(texts: &[(u16, String)]) -> Vec<Contribution<'_>> {
    texts.iter().map(|(column, amount)| Contribution { column: *column, amount }).collect()
}

fn size(texts: &[(u16, String)]) -> usize {
    texts.iter().map(|(_, text)| text.len() + CONTRIBUTION_BYTES).sum()
}

fn is_null(name: &str) -> Failure {
    Failure::new(
        PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
        format!("delta column \"{name}\" cannot be set to NULL: what is added to it has to be a number"),
    )
    .hint("Write 0, or give the column a default of 0.")
}
