//! What becomes of one change: the rules are asked, the row and its table's registers are written as they say, and a
//! conflict is recorded.

use std::rc::Rc;

use duplex_protocol::rules::conflict::under_unique_values;
use duplex_protocol::rules::key::Standing;
use duplex_protocol::version::Version;
use pgrx::pg_sys;

use crate::apply::relation::Target;
use crate::apply::row::find;
use crate::apply::table::{Storage, Table};
use crate::conflict::arrival::{Arrival, Change, Verdict};
use crate::conflict::history::{Conflict, Image, Resolution, image};
use crate::conflict::index::Values;
use crate::conflict::register::raw_xmin;
use crate::conflict::unique::{Claimant, Hiding, Holding, Met};
use crate::conflict::write::{Written, generate};
use crate::errors::Result;

/// How a transaction uses a table's registers.
///
/// A row is its own lock. Where there is none, what one session remembers and what another decides on it could pass each
/// other by; so whoever decides without a row shares the registers, and who writes there without one has them alone.
/// Local transactions need neither: theirs are the latest versions, whatever the registers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guard {
    /// Decides on them.
    Shared,
    /// Writes there what no row stands for.
    Alone,
}

/// What was here, as a record of a conflict wants it. Made before it is overwritten.
pub(crate) struct Before {
    pub(crate) row: Image,
    pub(crate) incoming: Image,
    pub(crate) version: Option<Version>,
}

impl Table {
    /// Keeps the registers as [`Guard`] says, to the end of the transaction.
    ///
    /// # Safety
    /// Inside a transaction.
    pub(crate) unsafe fn guard(&mut self, guard: Guard) {
        if guard == Guard::Shared && std::mem::replace(&mut self.guarded, true) {
            return;
        }
        let mode = match guard {
            Guard::Shared => pg_sys::RowShareLock,
            Guard::Alone => pg_sys::ExclusiveLock,
        };
        self.alone |= guard == Guard::Alone;
        // SAFETY: as the caller promises. The lock's name is an object's that nobody else locks in this way.
        unsafe {
            let class = pg_sys::RelationRelationId;
            pg_sys::LockDatabaseObject(class, self.target.registers.tombstones, 0, mode.cast_signed());
        }
    }

    /// The key of the row in `remote`, in the registers' order.
    pub(crate) unsafe fn key(&self) -> Vec<pg_sys::Datum> {
        let values = self.target.registers.key.iter();
        // SAFETY: the slot is filled, at least with the key.
        values.map(|&attribute| unsafe { *(*self.remote).tts_values.add(attribute as usize - 1) }).collect()
    }

    /// A row is there. `false`: somebody else changed it in between, or took a unique value that it is to have.
    ///
    /// # Safety
    /// As [`Table::put`]; the row is found.
    pub(crate) unsafe fn put_over(&mut self, change: Change, arrival: &mut Arrival<'_>) -> Result<bool> {
        let (target, estate) = (Rc::clone(&self.target), self.estate);
        // SAFETY: as the caller promises.
        unsafe {
            let truncated = self.truncated.clone();
            let leaf = self.current();
            let xmin = raw_xmin(leaf.found);
            let verdict = arrival.meets_row(change, xmin, truncated.as_ref())?;
            let is_alone = leaf.uniques.is_empty();
            let before = self.before(verdict, || arrival.versions.of_row(xmin, arrival.version).cloned());
            if is_alone {
                if verdict.effect.wins && self.current().update(estate) == Written::Overtaken {
                    return Ok(false);
                }
            } else {
                let key = self.key();
                self.guard(Guard::Shared);
                let claimant = Claimant { estate, key: &key };
                let met = if verdict.effect.wins {
                    let (leaf, version) = (self.current(), arrival.versions.of_row(xmin, arrival.version).cloned());
                    let held = claimant.values(leaf, leaf.found);
                    self.show(&claimant, Some((&held, version)), arrival)?
                } else {
                    self.claim_in_vain(&claimant, true, arrival)?
                };
                match met {
                    None => return Ok(false),
                    Some(met) => self.record_met(&target, change, met, arrival)?,
                }
            }
            record(&target, verdict, before, false, arrival)?;
        }
        Ok(true)
    }

    /// No row is there.
    ///
    /// # Safety
    /// As [`Table::put`].
    pub(crate) unsafe fn put_anew(&mut self, change: Change, arrival: &mut Arrival<'_>) -> Result<bool> {
        let (target, estate) = (Rc::clone(&self.target), self.estate);
        // SAFETY: as the caller promises.
        unsafe {
            self.guard(Guard::Shared);
            let key = self.key();
            let truncated = self.truncated.as_ref();
            let tombstone = self.tombstones.find(&key, truncated, arrival.versions, arrival.version);
            let (standing, version) =
                tombstone.map_or((Standing::Unknown, None), |tombstone| (tombstone.standing, tombstone.version));
            let verdict = arrival.meets(change, standing, version.as_ref(), truncated)?;
            let before = self.before_none(verdict, version);
            let leaf = self.current();
            if leaf.uniques.is_empty() {
                if verdict.effect.wins && leaf.insert(estate) == Written::KeyTaken {
                    return Ok(false);
                }
            } else {
                let claimant = Claimant { estate, key: &key };
                let met = if verdict.effect.wins {
                    self.show(&claimant, None, arrival)?
                } else {
                    self.claim_in_vain(&claimant, false, arrival)?
                };
                match met {
                    None => return Ok(false),
                    Some(met) => self.record_met(&target, change, met, arrival)?,
                }
            }
            record(&target, verdict, before, false, arrival)?;
        }
        Ok(true)
    }

    /// A row is there that is to go. `false`: somebody else changed it in between.
    ///
    /// # Safety
    /// As [`Table::delete`]; the row is found.
    pub(crate) unsafe fn delete_found(&mut self, change: Change, arrival: &mut Arrival<'_>) -> Result<bool> {
        let (target, estate) = (Rc::clone(&self.target), self.estate);
        // SAFETY: as the caller promises.
        unsafe {
            let key = self.key();
            let truncated = self.truncated.clone();
            let leaf = self.current();
            let xmin = raw_xmin(leaf.found);
            let verdict = arrival.meets_row(change, xmin, truncated.as_ref())?;
            let before = self.before(verdict, || arrival.versions.of_row(xmin, arrival.version).cloned());
            if verdict.effect.wins {
                let leaf = self.current();
                if !leaf.uniques.is_empty() {
                    let claimant = Claimant { estate, key: &key };
                    let held = claimant.values(leaf, leaf.found);
                    let version = arrival.versions.of_row(xmin, arrival.version).cloned();
                    claimant.release(leaf, &held, &[], Holding::Row(version.as_ref()), arrival);
                }
                let leaf = self.current();
                if !leaf.remove(leaf.found, estate) {
                    return Ok(false);
                }
                self.tombstones.bury(&key)?;
            }
            record(&target, verdict, before, true, arrival)?;
        }
        Ok(true)
    }

    /// A row that is to go is not there: that it is gone is remembered all the same.
    ///
    /// # Safety
    /// As [`Table::delete`]; the registers are this transaction's alone.
    pub(crate) unsafe fn delete_missing(&mut self, change: Change, arrival: &mut Arrival<'_>) -> Result<()> {
        let target = Rc::clone(&self.target);
        // SAFETY: as the caller promises.
        unsafe {
            let key = self.key();
            let truncated = self.truncated.as_ref();
            let tombstone = self.tombstones.find(&key, truncated, arrival.versions, arrival.version);
            let (standing, version) =
                tombstone.map_or((Standing::Unknown, None), |tombstone| (tombstone.standing, tombstone.version));
            let verdict = arrival.meets(change, standing, version.as_ref(), truncated)?;
            if verdict.effect.wins {
                self.tombstones.write(&key, Standing::Gone, None)?;
                pg_sys::CommandCounterIncrement();
                pg_sys::UpdateActiveSnapshotCommandId();
            }
            let before = self.before_none(verdict, version);
            record(&target, verdict, before, true, arrival)
        }
    }

    /// The row in `write` wins its key: it is shown, unless another has a later claim of one of its values. `held` is
    /// what a row in its place held, and since when. `None`: the key was taken in this moment.
    ///
    /// # Safety
    /// As [`Table::put`].
    pub(crate) unsafe fn show(
        &mut self,
        claimant: &Claimant<'_>,
        held: Option<(&[Option<Values>], Option<Version>)>,
        arrival: &mut Arrival<'_>,
    ) -> Result<Option<Met>> {
        let estate = self.estate;
        // SAFETY: as the callers promise.
        unsafe {
            let mut met = Met::default();
            let leaf = self.current();
            let command = if held.is_some() { pg_sys::CmdType::CMD_UPDATE } else { pg_sys::CmdType::CMD_INSERT };
            generate(leaf, estate, command);
            let values = claimant.values(leaf, leaf.write);
            let holding = Holding::Row(Some(arrival.version));
            let written = if held.is_some() { leaf.update(estate) } else { leaf.insert(estate) };
            let taken = match written {
                Written::KeyTaken | Written::Overtaken => return Ok(None),
                Written::LeftOut => return Ok(Some(met)),
                Written::Row(taken) => taken,
            };
            if let Some((held, version)) = held {
                let after = claimant.values(leaf, leaf.write);
                claimant.release(leaf, held, &after, Holding::Row(version.as_ref()), arrival);
            }
            if !taken.is_empty() {
                let own = (*leaf.write).tts_tid;
                let mut after = claimant.values(leaf, leaf.write);
                for (unique, values) in leaf.uniques.iter().zip(&mut after) {
                    if !taken.contains(&(*unique.index).rd_id) {
                        *values = None;
                    }
                }
                self.make_way(claimant, &after, holding, Some(own), arrival, &mut met)?;
            }
            // Asked only now: a local transaction that gave a value up before this row stood in the indexes has ended, or was
            // waited for, and its claim is to be seen; one that comes later waits for this one.
            let leaf = self.current();
            claimant.note_claims(leaf, &values, holding, arrival, &mut met);
            if met.hidden && find(leaf, pg_sys::LockTupleMode::LockTupleExclusive) {
                leaf.remove(leaf.found, estate);
                self.hide_own(claimant, &values, arrival)?;
            }
            Ok(Some(met))
        }
    }

    /// Lets the rows give way that hold one of the values, as [`Claimant::make_way`] says.
    ///
    /// # Safety
    /// As [`Table::put`].
    pub(crate) unsafe fn make_way(
        &mut self,
        claimant: &Claimant<'_>,
        values: &[Option<Values>],
        holding: Holding<'_>,
        own: Option<pg_sys::ItemPointerData>,
        arrival: &mut Arrival<'_>,
        met: &mut Met,
    ) -> Result<()> {
        let leaf = match &mut self.storage {
            Storage::Plain(leaf) => leaf,
            Storage::Partitioned(routing) => routing.current(),
        };
        let registers = match &mut self.keeper {
            Some(keeper) => Hiding::Kept(keeper, &self.target),
            None => Hiding::Plain(&self.tombstones),
        };
        // SAFETY: as the callers promise.
        unsafe { claimant.make_way(leaf, values, (holding, own), registers, arrival, met) }
    }

    /// The row that arrived is not shown: its key and what it claimed are remembered.
    unsafe fn hide_own(
        &mut self,
        claimant: &Claimant<'_>,
        values: &[Option<Values>],
        arrival: &mut Arrival<'_>,
    ) -> Result<()> {
        // SAFETY: as the callers promise.
        unsafe {
            self.guard(Guard::Alone);
            let version = arrival.version;
            claimant.release(self.current(), values, &[], Holding::Row(Some(version)), arrival);
            if self.keeper.is_some() {
                self.keep_hidden(claimant.key);
                return Ok(());
            }
            self.tombstones.write(claimant.key, Standing::Hidden, None)?;
            pg_sys::CommandCounterIncrement();
            pg_sys::UpdateActiveSnapshotCommandId();
        }
        Ok(())
    }

    /// The row in `write` loses its key, and claims its values all the same.
    ///
    /// # Safety
    /// As [`Table::put`].
    pub(crate) unsafe fn claim_in_vain(
        &mut self,
        claimant: &Claimant<'_>,
        is_there: bool,
        arrival: &mut Arrival<'_>,
    ) -> Result<Option<Met>> {
        // SAFETY: as the callers promise.
        unsafe {
            self.guard(Guard::Alone);
            let leaf = self.current();
            generate(leaf, claimant.estate, pg_sys::CmdType::CMD_INSERT);
            let values = claimant.values(leaf, leaf.write);
            // What the row that stays holds itself needs no claim: it is the later one.
            let shown = if is_there { claimant.values(leaf, leaf.found) } else { Vec::new() };
            let version = arrival.version;
            claimant.release(leaf, &values, &shown, Holding::Row(Some(version)), arrival);
            let mut met = Met::default();
            let own = is_there.then(|| (*leaf.found).tts_tid);
            self.make_way(claimant, &values, Holding::Row(Some(version)), own, arrival, &mut met)?;
            met.hidden = true;
            Ok(Some(met))
        }
    }

    /// What is here, if the change is to be recorded as a conflict; `version` is that of the row found.
    ///
    /// # Safety
    /// As [`Table::put`]; the row is found.
    pub(crate) unsafe fn before(
        &mut self,
        verdict: Verdict,
        version: impl FnOnce() -> Option<Version>,
    ) -> Option<Before> {
        verdict.conflict?;
        let (rel, remote) = (self.rel, self.remote);
        let leaf = self.current();
        // SAFETY: as the caller promises.
        let (row, incoming) = unsafe { (image((*leaf.info).ri_RelationDesc, leaf.found), image(rel, remote)) };
        Some(Before { row, incoming, version: version() })
    }

    /// The same where no row is here; `version` is that of its tombstone.
    ///
    /// # Safety
    /// As [`Table::put`].
    pub(crate) unsafe fn before_none(&self, verdict: Verdict, version: Option<Version>) -> Option<Before> {
        verdict.conflict?;
        // SAFETY: as the caller promises.
        Some(Before { row: None, incoming: unsafe { image(self.rel, self.remote) }, version })
    }

    /// Records what the row met among second unique keys.
    ///
    /// # Safety
    /// As [`Table::put`].
    pub(crate) unsafe fn record_met(
        &mut self,
        target: &Target,
        change: Change,
        met: Met,
        arrival: &mut Arrival<'_>,
    ) -> Result<()> {
        let Some(kind) = under_unique_values(change.write, met.others) else { return Ok(()) };
        let conflict = Conflict {
            kind,
            resolution: if met.hidden { Resolution::Hidden } else { Resolution::Applied },
            table: &target.label,
            key: &target.key_names,
            local: met.images,
            local_version: met.version,
            // SAFETY: as the callers promise.
            incoming: unsafe { image(self.rel, self.remote) },
            is_delete: false,
            version: arrival.version,
        };
        conflict.record()
    }
}

/// Records what the change met under its key.
pub(crate) fn record(
    target: &Target,
    verdict: Verdict,
    before: Option<Before>,
    is_delete: bool,
    arrival: &Arrival<'_>,
) -> Result<()> {
    let (Some(kind), Some(before)) = (verdict.conflict, before) else { return Ok(()) };
    let conflict = Conflict {
        kind,
        resolution: if verdict.effect.wins { Resolution::Applied } else { Resolution::Skipped },
        table: &target.label,
        key: &target.key_names,
        local: before.row.map_or_else(Vec::new, |row| vec![Some(row)]),
        local_version: before.version,
        incoming: before.incoming,
        is_delete,
        version: arrival.version,
    };
    conflict.record()
}
