//! What becomes of an INSERT or UPDATE where columns are merged: each column that it changed is taken if no later change
//! has been there, whether the change wins the row or loses it, and whether the row is there or not.

use std::rc::Rc;

use duplex_protocol::entry::{Entry, Put, PutKind};
use duplex_protocol::rules::columns::{takes, together};
use duplex_protocol::rules::key::Standing;
use duplex_protocol::stream::EntryReader;
use duplex_protocol::version::Version;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;
use pgrx::{PgSqlErrorCode, PgTupleDesc, pg_sys};

use crate::apply::decide::{Guard, record};
use crate::apply::keep::sums;
use crate::apply::relation::Target;
use crate::apply::row::find;
use crate::apply::table::{Leaf, Table};
use crate::apply::value::Conversion;
use crate::capture::policy::row_frames;
use crate::conflict::arrival::{Arrival, Change};
use crate::conflict::counter::{Added, Amount};
use crate::conflict::index::{Values, are_equal};
use crate::conflict::kept::{KeptRow, Remembered, oldest};
use crate::conflict::stamps::{Since, encode, held, resolve, written};
use crate::conflict::unique::{Claimant, Holding, Met};
use crate::conflict::write::{Written, generate};
use crate::errors::{Failure, Result};
use crate::slot;

/// What a change makes of a row.
struct Outcome<'o> {
    /// Which of the descriptor's columns the change counts as having changed.
    changed: &'o [bool],
    /// The values of what came in each further unique index.
    image: &'o [Option<Values>],
    incoming: &'o Since,
    /// The stamps of the row's columns afterwards.
    stamps: &'o [Option<Since>],
    /// Its version, if it is not that of the change.
    version: Option<&'o Version>,
    sums: &'o [Amount],
}

impl Table {
    /// A put finds a row. Says whether it is done; if not, it is decided again.
    ///
    /// # Safety
    /// As [`Table::put`]; the row is found and locked.
    pub(crate) unsafe fn merge_over(
        &mut self,
        put: &Put<'_>,
        added: &Added,
        arrival: &mut Arrival<'_>,
    ) -> Result<bool> {
        let (target, estate) = (Rc::clone(&self.target), self.estate);
        let change = Change::put(put.kind, put.replaced);
        self.found = None;
        // SAFETY: as the caller promises.
        unsafe {
            let key = self.key();
            let of_row = self.of_found(&key, arrival)?;
            let version = of_row.version.clone();
            let verdict = arrival.meets(change, Standing::Row, version.as_ref(), self.truncated.as_ref())?;
            let before = self.before(verdict, || version.clone());
            let stamps = of_row.stamps.as_deref().unwrap_or_default();
            let incoming = Since { version: arrival.version.clone(), order: arrival.order };
            let leaf = self.current();
            let changed = changed(put, &target, leaf);
            let taken: Vec<bool> = taken(&changed, &incoming, stamps);
            let claimant = Claimant { estate, key: &key };
            let (mut image, mut shown) = (Vec::new(), Vec::new());
            if !leaf.uniques.is_empty() {
                generate(leaf, estate, pg_sys::CmdType::CMD_UPDATE);
                image = claimant.values(leaf, leaf.write);
                shown = claimant.values(leaf, leaf.found);
            }
            let sums = sums(leaf.amounts(&target.counters, leaf.found), added);
            leaf.take_untaken(&taken, leaf.found);
            leaf.set_counters(&target.counters, &sums)?;
            let after = stamped(&taken, &incoming, stamps);
            let oldest = oldest();
            let outcome = Outcome {
                changed: &changed,
                image: &image,
                incoming: &incoming,
                stamps: &after,
                version: (!verdict.effect.stamps).then_some(version.as_ref().unwrap_or(&oldest)),
                sums: &sums,
            };
            let mut met = Met::default();
            if taken.contains(&true) || added.is_something() || verdict.effect.stamps {
                let held = (&shown[..], of_row.holding());
                if !self.place(&claimant, Some(held), &outcome, arrival, &mut met)? {
                    return Ok(false);
                }
            } else {
                let own = (*self.current().found).tts_tid;
                self.claim_rest(&claimant, &shown, Some(own), &outcome, arrival, &mut met)?;
            }
            self.record_met(&target, change, met, arrival)?;
            record(&target, verdict, before, false, arrival)?;
        }
        Ok(true)
    }

    /// A put finds no row.
    ///
    /// # Safety
    /// As [`Table::put`].
    pub(crate) unsafe fn merge_anew(
        &mut self,
        put: &Put<'_>,
        added: &Added,
        arrival: &mut Arrival<'_>,
    ) -> Result<bool> {
        let (target, estate) = (Rc::clone(&self.target), self.estate);
        let change = Change::put(put.kind, put.replaced);
        let names = target.merged.as_deref().unwrap_or_default();
        // SAFETY: as the caller promises.
        unsafe {
            self.guard(Guard::Shared);
            let key = self.key();
            let Remembered { standing, version, residual, row, .. } = self.remembered(&key, arrival)?;
            let verdict = arrival.meets(change, standing, version.as_ref(), self.truncated.as_ref())?;
            if (standing != Standing::Unknown || !verdict.effect.wins) && !self.alone {
                self.guard(Guard::Alone);
                return Ok(false);
            }
            let before = self.before_none(verdict, version.clone());
            let stamps = match &row {
                None => vec![None; names.len()],
                Some(row) => row.stamps(names, version.as_ref(), arrival),
            };
            let incoming = Since { version: arrival.version.clone(), order: arrival.order };
            let leaf = self.current();
            let changed = changed(put, &target, leaf);
            let taken: Vec<bool> = taken(&changed, &incoming, &stamps);
            let claimant = Claimant { estate, key: &key };
            let mut image = Vec::new();
            if !leaf.uniques.is_empty() {
                generate(leaf, estate, pg_sys::CmdType::CMD_INSERT);
                image = claimant.values(leaf, leaf.write);
            }
            if let Some(row) = &row {
                self.restore(&target, &row.frames, &taken)?;
            }
            let sums = sums(residual, added);
            self.current().set_counters(&target.counters, &sums)?;
            let after = stamped(&taken, &incoming, &stamps);
            let oldest = oldest();
            let outcome = Outcome {
                changed: &changed,
                image: &image,
                incoming: &incoming,
                stamps: &after,
                version: (!verdict.effect.stamps).then_some(version.as_ref().unwrap_or(&oldest)),
                sums: &sums,
            };
            let mut met = Met::default();
            if verdict.effect.alive {
                if !self.place(&claimant, None, &outcome, arrival, &mut met)? {
                    return Ok(false);
                }
            } else {
                self.keep_row(&key, Standing::Gone, &outcome, arrival)?;
                self.claim_rest(&claimant, &[], None, &outcome, arrival, &mut met)?;
                met.hidden = true;
            }
            if met.hidden && self.has_come() {
                return Ok(false);
            }
            if !self.is_as_found(&key) {
                if !met.hidden && self.has_come() {
                    let leaf = self.current();
                    leaf.remove(leaf.found, estate);
                }
                return Ok(false);
            }
            self.record_met(&target, change, met, arrival)?;
            record(&target, verdict, before, false, arrival)?;
        }
        Ok(true)
    }

    /// Shows the row in `write`, unless another has a later claim of one of its values. `held` is what a row in its place
    /// held, and since when. `false`: the key was taken in this moment.
    unsafe fn place(
        &mut self,
        claimant: &Claimant<'_>,
        held: Option<(&[Option<Values>], Holding<'_>)>,
        outcome: &Outcome<'_>,
        arrival: &mut Arrival<'_>,
        met: &mut Met,
    ) -> Result<bool> {
        let estate = self.estate;
        let holding = Holding::Columns(outcome.stamps);
        // SAFETY: as the callers promise.
        unsafe {
            let leaf = self.current();
            let mut values = Vec::new();
            if !leaf.uniques.is_empty() {
                self.guard(Guard::Shared);
                let leaf = self.current();
                let command = if held.is_some() { pg_sys::CmdType::CMD_UPDATE } else { pg_sys::CmdType::CMD_INSERT };
                generate(leaf, estate, command);
                values = claimant.values(leaf, leaf.write);
            }
            let leaf = self.current();
            let written = if held.is_some() { leaf.update(estate) } else { leaf.insert(estate) };
            let taken = match written {
                Written::KeyTaken | Written::Overtaken => return Ok(false),
                Written::LeftOut => return Ok(true),
                Written::Row(taken) => taken,
            };
            let own = (*leaf.write).tts_tid;
            if let Some((shown, since)) = held {
                claimant.release(leaf, shown, &values, since, arrival);
            }
            if !taken.is_empty() {
                let mut clashing = values.clone();
                for (unique, values) in leaf.uniques.iter().zip(&mut clashing) {
                    if !taken.contains(&(*unique.index).rd_id) {
                        *values = None;
                    }
                }
                self.make_way(claimant, &clashing, holding, Some(own), arrival, met)?;
            }
            let leaf = self.current();
            claimant.note_claims(leaf, &values, holding, arrival, met);
            if std::mem::take(&mut met.hidden) {
                leaf.own_written();
            } else {
                self.note_row(claimant.key, outcome, arrival);
                return self.claim_rest(claimant, &values, Some(own), outcome, arrival, met).map(|()| true);
            }
            if find(leaf, pg_sys::LockTupleMode::LockTupleExclusive) {
                leaf.remove(leaf.found, estate);
                self.guard(Guard::Alone);
                self.keep_row(claimant.key, Standing::Hidden, outcome, arrival)?;
                self.claim_rest(claimant, &[], None, outcome, arrival, met)?;
                met.hidden = true;
            }
        }
        Ok(true)
    }

    /// Claims what came in indexes whose columns were changed and that the row does not show since this change. `shown`
    /// is what it shows, at `own`.
    unsafe fn claim_rest(
        &mut self,
        claimant: &Claimant<'_>,
        shown: &[Option<Values>],
        own: Option<pg_sys::ItemPointerData>,
        outcome: &Outcome<'_>,
        arrival: &mut Arrival<'_>,
        met: &mut Met,
    ) -> Result<()> {
        // SAFETY: as the callers promise.
        unsafe {
            let leaf = self.current();
            let mut rest = outcome.image.to_vec();
            for (number, values) in rest.iter_mut().enumerate() {
                let columns = &leaf.unique_columns[number];
                let is_changed = columns.iter().any(|&column| outcome.changed[usize::from(column)]);
                let shows =
                    shown.get(number).and_then(Option::as_ref).zip(values.as_ref()).is_some_and(|(one, other)| {
                        are_equal(leaf.uniques[number].index, one, other)
                            && held(outcome.stamps, columns).as_ref() >= Some(outcome.incoming)
                    });
                if shows || !is_changed {
                    *values = None;
                }
            }
            if rest.iter().all(Option::is_none) {
                return Ok(());
            }
            self.guard(Guard::Alone);
            let holding = Holding::At(outcome.incoming);
            claimant.release(self.current(), &rest, &[], holding, arrival);
            let mut others = Met::default();
            self.make_way(claimant, &rest, holding, own, arrival, &mut others)?;
            met.others += others.others;
            met.images.extend(others.images);
            met.version = met.version.take().max(others.version);
        }
        Ok(())
    }

    /// Remembers the row in `write`, which is not shown.
    unsafe fn keep_row(
        &mut self,
        key: &[pg_sys::Datum],
        standing: Standing,
        outcome: &Outcome<'_>,
        arrival: &Arrival<'_>,
    ) -> Result<()> {
        let target = Rc::clone(&self.target);
        // SAFETY: as the callers promise.
        unsafe {
            let leaf = self.current();
            let row = leaf.kept_row(&target, leaf.write, Some(outcome.stamps), arrival)?;
            let found = self.found.take();
            let row = row.as_deref();
            self.keeper().remember(key, standing, outcome.version, outcome.sums, row, found.as_deref());
            self.keeper().forget(key);
            self.found = found;
        }
        Ok(())
    }

    /// Writes down the stamps of the row that was just written. An INSERT that met nothing needs none, unless its number
    /// is to tell unique values apart.
    unsafe fn note_row(&mut self, key: &[pg_sys::Datum], outcome: &Outcome<'_>, arrival: &Arrival<'_>) {
        let target = Rc::clone(&self.target);
        let names = target.merged.as_deref().unwrap_or_default();
        let is_own = |since: &Option<Since>| since.as_ref().is_some_and(|since| since.version == *arrival.version);
        let is_plain = outcome.version.is_none() && outcome.stamps.iter().all(is_own);
        // SAFETY: as the callers promise.
        unsafe {
            if is_plain && self.current().uniques.is_empty() {
                self.keeper().forget(key);
            } else {
                let columns = written(names, outcome.stamps, arrival.versions, arrival.version);
                self.keeper().note(key, outcome.version, Some(&columns), arrival.versions);
            }
        }
    }

    /// Puts the columns that are not taken into the row to write as a tombstone has kept them.
    unsafe fn restore(&mut self, target: &Target, frames: &[u8], taken: &[bool]) -> Result<()> {
        let names = target.merged.as_deref().unwrap_or_default();
        let corrupt = || Failure::new(PgSqlErrorCode::ERRCODE_DATA_CORRUPTED, "a row that was kept cannot be read");
        let mut reader = EntryReader::default();
        reader.feed_kept(frames);
        let Some(Entry::Relation(relation)) = reader.next()? else { return Err(corrupt()) };
        let Some(Entry::Put(put)) = reader.next()? else { return Err(corrupt()) };
        self.kept_arena.reserve(put.row.0.iter().flatten().copied());
        // SAFETY: as the callers promise: the relation is open; the current memory is the row's.
        unsafe {
            let desc = PgTupleDesc::from_pg_unchecked((*self.rel).rd_att);
            for (place, name) in names.iter().enumerate().filter(|(place, _)| !taken[*place]) {
                let column = &target.columns[place];
                let Some(kept) = relation.columns.iter().position(|kept| kept.name == *name) else { continue };
                let Some(attribute) = desc.get(column.attribute as usize - 1) else { continue };
                if column.generated {
                    continue;
                }
                let conversion = Conversion::new(
                    &relation.columns[kept],
                    attribute.atttypid,
                    attribute.atttypmod,
                    pg_sys::CurrentMemoryContext,
                )?;
                let value = match put.row.0.get(kept).copied().flatten() {
                    None => None,
                    Some(bytes) => Some(conversion.value(bytes, &mut self.kept_arena)?),
                };
                let leaf = match &mut self.storage {
                    crate::apply::table::Storage::Plain(leaf) => leaf,
                    crate::apply::table::Storage::Partitioned(routing) => routing.current(),
                };
                let index = leaf.columns[place] as usize - 1;
                (*leaf.write).tts_values.add(index).write(value.unwrap_or(pg_sys::Datum::from(0)));
                (*leaf.write).tts_isnull.add(index).write(value.is_none());
            }
        }
        Ok(())
    }
}

impl KeptRow {
    /// The stamps of its columns.
    ///
    /// # Safety
    /// Inside a transaction.
    pub(crate) unsafe fn stamps(
        &self,
        names: &[String],
        version: Option<&Version>,
        arrival: &mut Arrival<'_>,
    ) -> Vec<Option<Since>> {
        let Arrival { version: incoming, versions, .. } = arrival;
        // SAFETY: as the caller promises.
        unsafe { resolve(names, Some(&self.columns), self.writer, version, versions, incoming) }
    }

    /// As it is, to be kept once more.
    ///
    /// # Safety
    /// Inside a transaction.
    pub(crate) unsafe fn again(&self, version: Option<&Version>, arrival: &mut Arrival<'_>) -> Vec<u8> {
        let names: Vec<String> = self.columns.iter().map(|(name, _)| name.clone()).collect();
        // SAFETY: as the caller promises.
        let stamps = unsafe { self.stamps(&names, version, arrival) };
        let mut row = encode(&written(&names, &stamps, arrival.versions, arrival.version));
        row.extend_from_slice(&self.frames);
        row
    }
}

impl Leaf {
    /// The row in a slot as a tombstone keeps it; `None` where columns are not merged.
    ///
    /// # Safety
    /// The slot is of this leaf and holds a row.
    pub(crate) unsafe fn kept_row(
        &self,
        target: &Target,
        slot: *mut pg_sys::TupleTableSlot,
        stamps: Option<&[Option<Since>]>,
        arrival: &Arrival<'_>,
    ) -> Result<Option<Vec<u8>>> {
        // SAFETY: as the caller promises.
        unsafe { kept_row((*self.info).ri_RelationDesc, target, slot, stamps, arrival) }
    }

    /// Makes the row to write independent of the one found, of which it may have columns: when another is found in its
    /// place, nothing keeps others from moving the first on its page.
    unsafe fn own_written(&mut self) {
        let slot = self.write;
        // SAFETY: the slot holds a row; what it pointed to is still there.
        unsafe {
            let materialize = (*(*slot).tts_ops).materialize.expect("a slot can be materialized");
            guarded(|| materialize(slot));
        }
    }

    /// Puts the columns that are not taken into the row to write as they are in another.
    unsafe fn take_untaken(&mut self, taken: &[bool], from: *mut pg_sys::TupleTableSlot) {
        // SAFETY: both slots are of this leaf, and `from` holds a row that is locked.
        unsafe {
            slot::deform(from, (*(*from).tts_tupleDescriptor).natts);
            for (&attribute, taken) in self.columns.iter().zip(taken) {
                if !taken {
                    let index = attribute as usize - 1;
                    (*self.write).tts_values.add(index).write(*(*from).tts_values.add(index));
                    (*self.write).tts_isnull.add(index).write(*(*from).tts_isnull.add(index));
                }
            }
        }
    }
}

/// A row as a tombstone keeps it; `None` where columns are not merged.
///
/// # Safety
/// The slot is of the relation, which is open, and holds a row.
pub(crate) unsafe fn kept_row(
    rel: pg_sys::Relation,
    target: &Target,
    slot: *mut pg_sys::TupleTableSlot,
    stamps: Option<&[Option<Since>]>,
    arrival: &Arrival<'_>,
) -> Result<Option<Vec<u8>>> {
    let (Some(names), Some(stamps)) = (&target.merged, stamps) else { return Ok(None) };
    let mut row = encode(&written(names, stamps, arrival.versions, arrival.version));
    // SAFETY: as the caller promises; a copy of the tuple is freed with the row's memory.
    unsafe {
        let mut is_copy = false;
        let tuple = pg_sys::ExecFetchSlotHeapTuple(slot, false, &mut is_copy);
        row.extend(row_frames(&*rel, tuple)?);
    }
    Ok(Some(row))
}

/// The columns that a change counts as having changed: all of an INSERT, and those that stand in a unique index with one
/// that an UPDATE changed.
fn changed(put: &Put<'_>, target: &Target, leaf: &Leaf) -> Vec<bool> {
    let count = target.columns.len();
    if put.kind == PutKind::Insert {
        return vec![true; count];
    }
    let bit = |place: usize| put.changed.get(place / 8).is_some_and(|byte| byte >> (place % 8) & 1 == 1);
    let changed: Vec<bool> = (0..count).map(bit).collect();
    let indexes: Vec<&[u16]> = leaf.unique_columns.iter().map(Vec::as_slice).collect();
    together(&changed, &indexes)
}

/// Changes of one version come in their order, so the later takes the column: only versions are compared.
fn taken(changed: &[bool], incoming: &Since, stamps: &[Option<Since>]) -> Vec<bool> {
    let take = |(changed, stamp): (&bool, &Option<Since>)| {
        takes(*changed, &incoming.version, stamp.as_ref().map(|stamp| &stamp.version))
    };
    changed.iter().zip(stamps).map(take).collect()
}

fn stamped(taken: &[bool], incoming: &Since, stamps: &[Option<Since>]) -> Vec<Option<Since>> {
    let stamp = |(taken, stamp): (&bool, &Option<Since>)| if *taken { Some(incoming.clone()) } else { stamp.clone() };
    taken.iter().zip(stamps).map(stamp).collect()
}
