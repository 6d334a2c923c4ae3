//! What becomes of a change to a table with a policy: what it adds to counters is added whether it wins or loses, and a
//! row that is rewritten by a change that lost keeps its version.

use std::rc::Rc;

use duplex_protocol::entry::Contribution;
use duplex_protocol::rules::key::Standing;
use duplex_protocol::version::Version;
use pgrx::{AnyNumeric, pg_sys};

use crate::apply::decide::{Guard, record};
use crate::apply::row::find;
use crate::apply::table::{Leaf, Table};
use crate::conflict::arrival::{Arrival, Change, Verdict};
use crate::conflict::counter::{Added, Amount, Counter, after};
use crate::conflict::kept::{Keeper, Remembered, oldest};
use crate::conflict::register::raw_xmin;
use crate::conflict::stamps::written;
use crate::conflict::unique::{Claimant, OfRow};
use crate::conflict::write::Written;
use crate::errors::Result;
use crate::slot;

impl Table {
    /// What a change adds to the counters of a table with a policy; `None` for any other table.
    pub(crate) fn read_added(&self, contributions: &[Contribution<'_>]) -> Result<Option<Added>> {
        if self.keeper.is_none() {
            return Ok(None);
        }
        let counters = &self.target.counters;
        let place = |column| counters.iter().position(|(_, of)| *of == column);
        Added::read(contributions, counters.len(), place).map(Some)
    }

    pub(crate) fn keeper(&mut self) -> &mut Keeper {
        self.keeper.as_mut().expect("the table has a policy")
    }

    /// A put finds a row. Says whether it is done; if not, it is decided again.
    ///
    /// # Safety
    /// As [`Table::put`]; the row is found and locked.
    pub(crate) unsafe fn keep_over(
        &mut self,
        change: Change,
        added: &Added,
        arrival: &mut Arrival<'_>,
    ) -> Result<bool> {
        let (target, estate) = (Rc::clone(&self.target), self.estate);
        self.found = None;
        // SAFETY: as the caller promises.
        unsafe {
            let key = self.key();
            let OfRow { version, .. } = self.of_found(&key, arrival)?;
            let verdict = arrival.meets(change, Standing::Row, version.as_ref(), self.truncated.as_ref())?;
            let before = self.before(verdict, || version.clone());
            let leaf = self.current();
            let sums = sums(leaf.amounts(&target.counters, leaf.found), added);
            let wins = verdict.effect.wins;
            if wins {
                leaf.set_counters(&target.counters, &sums)?;
            }
            if !self.current().uniques.is_empty() {
                self.guard(Guard::Shared);
                let claimant = Claimant { estate, key: &key };
                let met = if wins {
                    let leaf = self.current();
                    let held = claimant.values(leaf, leaf.found);
                    self.show(&claimant, Some((&held, version.clone())), arrival)?
                } else {
                    self.claim_in_vain(&claimant, true, arrival)?
                };
                match met {
                    None => return Ok(false),
                    Some(met) => self.record_met(&target, change, met, arrival)?,
                }
            } else if wins {
                self.current().update(estate);
            }
            if wins {
                self.keeper().forget(&key);
            } else if added.is_something() {
                self.rewrite(&key, &sums, OfRow { version, stamps: None }, arrival)?;
            }
            record(&target, verdict, before, false, arrival)?;
        }
        Ok(true)
    }

    /// A put finds no row.
    ///
    /// # Safety
    /// As [`Table::put`].
    pub(crate) unsafe fn keep_anew(
        &mut self,
        change: Change,
        added: &Added,
        arrival: &mut Arrival<'_>,
    ) -> Result<bool> {
        let (target, estate) = (Rc::clone(&self.target), self.estate);
        // SAFETY: as the caller promises.
        unsafe {
            self.guard(Guard::Shared);
            let key = self.key();
            let Remembered { standing, version, residual, .. } = self.remembered(&key, arrival)?;
            let verdict = arrival.meets(change, standing, version.as_ref(), self.truncated.as_ref())?;
            let wins = verdict.effect.wins;
            if !wins && !self.alone {
                self.guard(Guard::Alone);
                return Ok(false);
            }
            let before = self.before_none(verdict, version.clone());
            let sums = sums(residual, added);
            let leaf = self.current();
            if wins {
                leaf.set_counters(&target.counters, &sums)?;
            }
            let mut is_shown = wins;
            let mut conflict = None;
            if !leaf.uniques.is_empty() {
                let claimant = Claimant { estate, key: &key };
                let met = if wins {
                    self.show(&claimant, None, arrival)?
                } else {
                    self.claim_in_vain(&claimant, false, arrival)?
                };
                let Some(met) = met else { return Ok(false) };
                is_shown &= !met.hidden;
                conflict = Some(met);
            } else if wins && leaf.insert(estate) == Written::KeyTaken {
                return Ok(false);
            }
            if !wins && (added.is_something() || verdict.effect.stamps) {
                self.keep_gone(&key, standing, verdict, version, &sums, None);
            }
            if !is_shown && self.has_come() {
                return Ok(false);
            }
            if !self.is_as_found(&key) {
                if is_shown && self.has_come() {
                    let leaf = self.current();
                    leaf.remove(leaf.found, estate);
                }
                return Ok(false);
            }
            if let Some(met) = conflict {
                self.record_met(&target, change, met, arrival)?;
            }
            record(&target, verdict, before, false, arrival)?;
        }
        Ok(true)
    }

    /// A row is to go.
    ///
    /// # Safety
    /// As [`Table::delete`].
    pub(crate) unsafe fn keep_delete(
        &mut self,
        change: Change,
        added: &Added,
        arrival: &mut Arrival<'_>,
    ) -> Result<bool> {
        // SAFETY: as the caller promises.
        unsafe {
            let mut found = find(self.leaf()?, pg_sys::LockTupleMode::LockTupleExclusive);
            if !found && !self.alone {
                self.guard(Guard::Alone);
                found = find(self.leaf()?, pg_sys::LockTupleMode::LockTupleExclusive);
            }
            if found {
                self.keep_delete_found(change, added, arrival)?;
                return Ok(true);
            }
            self.keep_delete_missing(change, added, arrival)
        }
    }

    unsafe fn keep_delete_found(&mut self, change: Change, added: &Added, arrival: &mut Arrival<'_>) -> Result<()> {
        let (target, estate) = (Rc::clone(&self.target), self.estate);
        // SAFETY: as the callers promise.
        unsafe {
            let key = self.key();
            let of_row = self.of_found(&key, arrival)?;
            let version = of_row.version.clone();
            let verdict = arrival.meets(change, Standing::Row, version.as_ref(), self.truncated.as_ref())?;
            let before = self.before(verdict, || version.clone());
            let leaf = self.current();
            let sums = sums(leaf.amounts(&target.counters, leaf.found), added);
            if verdict.effect.wins {
                if !leaf.uniques.is_empty() {
                    let claimant = Claimant { estate, key: &key };
                    let held = claimant.values(leaf, leaf.found);
                    claimant.release(leaf, &held, &[], of_row.holding(), arrival);
                }
                let row = leaf.kept_row(&target, leaf.found, of_row.stamps.as_deref(), arrival)?;
                self.keeper().remember(&key, Standing::Gone, None, &sums, row.as_deref(), None);
                self.keeper().forget(&key);
                let leaf = self.current();
                leaf.remove(leaf.found, estate);
            } else if added.is_something() {
                self.rewrite(&key, &sums, of_row, arrival)?;
            }
            record(&target, verdict, before, true, arrival)
        }
    }

    unsafe fn keep_delete_missing(&mut self, change: Change, added: &Added, arrival: &mut Arrival<'_>) -> Result<bool> {
        let target = Rc::clone(&self.target);
        // SAFETY: as the callers promise; the registers are this transaction's alone.
        unsafe {
            let key = self.key();
            let Remembered { standing, version, residual, row, .. } = self.remembered(&key, arrival)?;
            let row = row.map(|row| row.again(version.as_ref(), arrival));
            let verdict = arrival.meets(change, standing, version.as_ref(), self.truncated.as_ref())?;
            let before = self.before_none(verdict, version.clone());
            let sums = sums(residual, added);
            if verdict.effect.wins {
                let found = self.found.take();
                self.keeper().remember(&key, Standing::Gone, None, &sums, row.as_deref(), found.as_deref());
                self.found = found;
            } else if added.is_something() || verdict.effect.stamps {
                self.keep_gone(&key, standing, verdict, version, &sums, row.as_deref());
            }
            if self.has_come() || !self.is_as_found(&key) {
                return Ok(false);
            }
            record(&target, verdict, before, true, arrival)?;
        }
        Ok(true)
    }

    /// Since when the row found is as it is.
    pub(crate) unsafe fn of_found(&mut self, key: &[pg_sys::Datum], arrival: &mut Arrival<'_>) -> Result<OfRow> {
        let target = Rc::clone(&self.target);
        // SAFETY: as the callers promise: the row is locked.
        unsafe {
            let xmin = raw_xmin(self.current().found);
            self.keeper().of_row(key, xmin, target.merged.as_deref(), arrival)
        }
    }

    pub(crate) unsafe fn remembered(&mut self, key: &[pg_sys::Datum], arrival: &mut Arrival<'_>) -> Result<Remembered> {
        let truncated = self.truncated.clone();
        // SAFETY: as the callers promise.
        let remembered = unsafe { self.keeper().find(key, truncated.as_ref(), arrival.versions, arrival.version)? };
        self.found = Some(remembered.places.clone());
        Ok(remembered)
    }

    /// Whether what is remembered of the key is still what the change was decided on.
    pub(crate) unsafe fn is_as_found(&mut self, key: &[pg_sys::Datum]) -> bool {
        let found = self.found.take().unwrap_or_default();
        // SAFETY: as the callers promise.
        let is_same = unsafe { self.keeper().is_as_found(key, &found) };
        self.found = Some(found);
        is_same
    }

    /// A change that lost has left something under a key without a row.
    unsafe fn keep_gone(
        &mut self,
        key: &[pg_sys::Datum],
        standing: Standing,
        verdict: Verdict,
        version: Option<Version>,
        sums: &[Amount],
        row: Option<&[u8]>,
    ) {
        let standing = if standing == Standing::Hidden { standing } else { Standing::Gone };
        let version = (!verdict.effect.stamps).then(|| version.unwrap_or_else(oldest));
        let found = self.found.take();
        // SAFETY: as the callers promise; without a version it is that of the change.
        unsafe { self.keeper().remember(key, standing, version.as_ref(), sums, row, found.as_deref()) }
        self.found = found;
    }

    /// The row in `write` is hidden: remembers it with what its counters hold.
    ///
    /// # Safety
    /// As [`Table::put`].
    pub(crate) unsafe fn keep_hidden(&mut self, key: &[pg_sys::Datum]) {
        let target = Rc::clone(&self.target);
        let found = self.found.take();
        // SAFETY: as the caller promises.
        unsafe {
            let leaf = self.current();
            let left = leaf.amounts(&target.counters, leaf.write);
            self.keeper().remember(key, Standing::Hidden, None, &left, None, found.as_deref());
            self.keeper().forget(key);
        }
        self.found = found;
    }

    /// The row found stays but for its counters, and keeps its version.
    unsafe fn rewrite(
        &mut self,
        key: &[pg_sys::Datum],
        sums: &[Amount],
        of_row: OfRow,
        arrival: &mut Arrival<'_>,
    ) -> Result<()> {
        let (target, estate) = (Rc::clone(&self.target), self.estate);
        // SAFETY: as the callers promise: the row is locked.
        unsafe {
            let leaf = self.current();
            leaf.take_found();
            leaf.set_counters(&target.counters, sums)?;
            leaf.update(estate);
            let names = target.merged.as_deref().unwrap_or_default();
            let columns = of_row.stamps.map(|stamps| written(names, &stamps, arrival.versions, arrival.version));
            let version = of_row.version.unwrap_or_else(oldest);
            self.keeper().note(key, Some(&version), columns.as_ref(), arrival.versions);
        }
        Ok(())
    }

    /// Whether a row has come under the key after all: a local INSERT that had not seen what was remembered here just
    /// now. One that comes later waits for it.
    pub(crate) unsafe fn has_come(&mut self) -> bool {
        // SAFETY: as the callers promise.
        unsafe { find(self.current(), pg_sys::LockTupleMode::LockTupleNoKeyExclusive) }
    }
}

pub(crate) fn sums(found: Vec<Amount>, added: &Added) -> Vec<Amount> {
    found.into_iter().zip(&added.0).map(|(found, added)| after(found, added)).collect()
}

impl Leaf {
    /// What the counters of the row in a slot hold.
    ///
    /// # Safety
    /// The slot is of this leaf and holds a row.
    pub(crate) unsafe fn amounts(&self, counters: &[(Counter, u16)], slot: *mut pg_sys::TupleTableSlot) -> Vec<Amount> {
        let last = self.counters.iter().copied().max().unwrap_or(0);
        // SAFETY: as the caller promises.
        unsafe {
            slot::deform(slot, last.into());
            let amount = |(&attribute, (counter, _)): (&i16, &(Counter, u16))| {
                let index = attribute as usize - 1;
                counter.amount(*(*slot).tts_values.add(index), *(*slot).tts_isnull.add(index))
            };
            self.counters.iter().zip(counters).map(amount).collect()
        }
    }

    /// Puts amounts into the counters of the row to write.
    ///
    /// # Errors
    /// As [`Counter::value`].
    ///
    /// # Safety
    /// The row is filled; the current memory is the row's.
    pub(crate) unsafe fn set_counters(&mut self, counters: &[(Counter, u16)], amounts: &[Amount]) -> Result<()> {
        let zero = Some(AnyNumeric::from(0));
        for ((&attribute, (counter, _)), amount) in self.counters.iter().zip(counters).zip(amounts) {
            let index = attribute as usize - 1;
            // SAFETY: the attribute is one of the slot's; the current memory is the row's.
            unsafe {
                let (value, is_null) = (*(*self.write).tts_values.add(index), *(*self.write).tts_isnull.add(index));
                // Its writer saw a number. Out of causal order, what that was made of is still to come.
                let amount = if amount.is_none() && !is_null { &zero } else { amount };
                // Equal numbers may be written in several ways: where nobody else has added, it is as it came.
                if counter.amount(value, is_null) == *amount {
                    continue;
                }
                let (value, is_null) = counter.value(amount)?;
                (*self.write).tts_values.add(index).write(value);
                (*self.write).tts_isnull.add(index).write(is_null);
            }
        }
        Ok(())
    }

    /// Puts the row found into the row to write.
    unsafe fn take_found(&mut self) {
        // SAFETY: both slots are of this leaf, and `found` holds a row that is locked.
        unsafe {
            let count = (*(*self.found).tts_tupleDescriptor).natts as usize;
            slot::deform(self.found, count as i32);
            std::ptr::copy_nonoverlapping((*self.found).tts_values, (*self.write).tts_values, count);
            std::ptr::copy_nonoverlapping((*self.found).tts_isnull, (*self.write).tts_isnull, count);
        }
    }
}
