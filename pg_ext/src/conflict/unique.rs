//! Second unique keys: which rows keep a value and which give way.
//!
//! A row is written first, with its duplicates noted instead of raised, and then one of each pair is hidden. So a row
//! that meets nobody costs no look-up, and a local transaction that takes a value at the same moment is met as well.

use duplex_protocol::rules::key::Standing;
use duplex_protocol::rules::unique;
use duplex_protocol::version::Version;
use pgrx::pg_sys;

use crate::apply::relation::Target;
use crate::apply::table::Leaf;
use crate::conflict::arrival::Arrival;
use crate::conflict::claim::Claims;
use crate::conflict::history::{Image, image};
use crate::conflict::index::{self, Values};
use crate::conflict::kept::{self, Keeper};
use crate::conflict::register::raw_xmin;
use crate::conflict::registers::Registers;
use crate::conflict::stamps::{Since, held};
use crate::conflict::tombstone::Tombstones;
use crate::errors::Result;

unsafe extern "C-unwind" {
    // Not among the bindings.
    fn get_partition_ancestors(relid: pg_sys::Oid) -> *mut pg_sys::List;
}

/// A unique index that is not the key's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unique {
    /// The index.
    pub(crate) index: pg_sys::Relation,
    pub(crate) info: *mut pg_sys::IndexInfo,
    /// `None` while an index is being built.
    pub(crate) claims: Option<Claims>,
}

/// What a row met among second unique keys.
#[derive(Debug, Default)]
pub(crate) struct Met {
    /// Rows that held or claimed one of its values.
    pub(crate) others: usize,
    /// Their images, as far as they were there.
    pub(crate) images: Vec<Image>,
    /// The latest version among them.
    pub(crate) version: Option<Version>,
    /// The row that came is not shown.
    pub(crate) hidden: bool,
}

/// Since when a row has held its unique values.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Holding<'h> {
    /// The version of the whole row; `None` is older than any.
    Row(Option<&'h Version>),
    /// The stamps of its columns.
    Columns(&'h [Option<Since>]),
    /// One moment for all.
    At(&'h Since),
}

impl Holding<'_> {
    /// For the leaf's unique index with that number.
    pub(crate) fn since(self, leaf: &Leaf, number: usize) -> Option<Since> {
        match self {
            Self::Row(version) => version.map(|version| Since { version: version.clone(), order: 0 }),
            Self::Columns(stamps) => held(stamps, &leaf.unique_columns[number]),
            Self::At(since) => Some(since.clone()),
        }
    }
}

/// The version of a row that is there, and the stamps of its columns if they have their own.
#[derive(Debug)]
pub(crate) struct OfRow {
    pub(crate) version: Option<Version>,
    pub(crate) stamps: Option<Vec<Option<Since>>>,
}

impl OfRow {
    pub(crate) fn holding(&self) -> Holding<'_> {
        match &self.stamps {
            Some(stamps) => Holding::Columns(stamps),
            None => Holding::Row(self.version.as_ref()),
        }
    }
}

/// Where it is remembered that a row was hidden.
pub(crate) enum Hiding<'t> {
    /// Among the tombstones.
    Plain(&'t Tombstones),
    /// In a table with a policy, with what its counters and columns hold.
    Kept(&'t mut Keeper, &'t Target),
}

impl Hiding<'_> {
    /// Since when the row in `leaf.other` is as it is.
    unsafe fn held(&mut self, leaf: &Leaf, arrival: &mut Arrival<'_>) -> Result<OfRow> {
        // SAFETY: the row is locked.
        unsafe {
            match self {
                Self::Plain(_) => {
                    let version = arrival.versions.of_row(raw_xmin(leaf.other), arrival.version).cloned();
                    Ok(OfRow { version, stamps: None })
                }
                Self::Kept(keeper, target) => {
                    keeper.of_row(&leaf.key_of(leaf.other), raw_xmin(leaf.other), target.merged.as_deref(), arrival)
                }
            }
        }
    }

    /// Remembers the row in `leaf.other`.
    unsafe fn hidden(&mut self, leaf: &Leaf, key: &[pg_sys::Datum], held: &OfRow, arrival: &Arrival<'_>) -> Result<()> {
        // A tombstone without a version would have that of this transaction.
        let version = held.version.clone().unwrap_or_else(kept::oldest);
        // SAFETY: the row is locked.
        unsafe {
            match self {
                Self::Plain(tombstones) => return tombstones.write(key, Standing::Hidden, Some(&version)),
                Self::Kept(keeper, target) => {
                    let residual = leaf.amounts(&target.counters, leaf.other);
                    let row = leaf.kept_row(target, leaf.other, held.stamps.as_deref(), arrival)?;
                    keeper.remember(key, Standing::Hidden, Some(&version), &residual, row.as_deref(), None);
                    keeper.forget(key);
                }
            }
        }
        Ok(())
    }
}

impl Unique {
    /// The second unique indexes of a table that is open for writing.
    ///
    /// # Safety
    /// `info` has its indexes open.
    pub(crate) unsafe fn of(
        info: *mut pg_sys::ResultRelInfo,
        key_index: pg_sys::Oid,
        registers: &Registers,
    ) -> Vec<Self> {
        // SAFETY: as the caller promises: both arrays have one entry an index.
        unsafe {
            let count = (*info).ri_NumIndices as usize;
            let at =
                |number: usize| (*(*info).ri_IndexRelationDescs.add(number), *(*info).ri_IndexRelationInfo.add(number));
            (0..count)
                .map(at)
                .filter(|&(index, info)| (*info).ii_Unique && (*index).rd_id != key_index)
                .map(|(index, info)| {
                    let claims = registers.claims_of(topmost(index));
                    let ordered = registers.policy.merges();
                    let claims = claims.map(|oid| Claims { oid, keys: registers.tombstones, ordered });
                    Self { index, info, claims }
                })
                .collect()
        }
    }
}

/// The index of the whole table that a partition's index is a part of.
///
/// # Safety
/// The index is open.
pub(crate) unsafe fn topmost(index: pg_sys::Relation) -> pg_sys::Oid {
    // SAFETY: as the caller promises; the guard turns an ERROR into a panic.
    unsafe {
        let oid = (*index).rd_id;
        if !(*(*index).rd_rel).relispartition {
            return oid;
        }
        let ancestors = pg_sys::ffi::pg_guard_ffi_boundary(|| get_partition_ancestors(oid));
        crate::apply::table::list_cells(ancestors).last().map_or(oid, |cell| cell.oid_value)
    }
}

/// What there is to know of the row that is being written.
pub(crate) struct Claimant<'t> {
    pub(crate) estate: *mut pg_sys::EState,
    /// The key, in the registers' order.
    pub(crate) key: &'t [pg_sys::Datum],
}

impl Claimant<'_> {
    /// The values of the row in a slot, for each second unique index.
    ///
    /// # Safety
    /// The slot holds a row of the leaf.
    pub(crate) unsafe fn values(&self, leaf: &Leaf, slot: *mut pg_sys::TupleTableSlot) -> Vec<Option<Values>> {
        // SAFETY: as the caller promises.
        leaf.uniques.iter().map(|unique| unsafe { index::values(unique.info, slot, self.estate) }).collect()
    }

    /// Looks whether another key has claimed one of the values later than the row holds it.
    ///
    /// # Safety
    /// Inside a transaction; the values are those of the row that arrives.
    pub(crate) unsafe fn note_claims(
        &self,
        leaf: &Leaf,
        values: &[Option<Values>],
        holding: Holding<'_>,
        arrival: &mut Arrival<'_>,
        met: &mut Met,
    ) {
        for (number, (unique, values)) in leaf.uniques.iter().zip(values).enumerate() {
            let (Some(claims), Some(values)) = (unique.claims, values) else { continue };
            // SAFETY: as the caller promises.
            let claim = unsafe { claims.of_others(values, self.key, arrival.versions, arrival.version) };
            if let Some(claim) = claim
                && unique::yields(holding.since(leaf, number).as_ref(), &claim)
            {
                met.others += 1;
                met.version = met.version.take().max(Some(claim.version));
                met.hidden = true;
            }
        }
    }

    /// Remembers the values that the key held and that `after` does not show any more.
    ///
    /// # Safety
    /// Inside a transaction; the values are those of rows that are still there.
    pub(crate) unsafe fn release(
        &self,
        leaf: &Leaf,
        before: &[Option<Values>],
        after: &[Option<Values>],
        holding: Holding<'_>,
        arrival: &mut Arrival<'_>,
    ) {
        for (number, unique) in leaf.uniques.iter().enumerate() {
            let (Some(claims), Some(values)) = (unique.claims, before.get(number).and_then(Option::as_ref)) else {
                continue;
            };
            // SAFETY: as the caller promises.
            unsafe {
                let after = after.get(number).and_then(Option::as_ref);
                if !after.is_some_and(|after| index::are_equal(unique.index, values, after))
                    && let Some(since) = holding.since(leaf, number)
                {
                    claims.remember(values, self.key, since, arrival.versions, arrival.version);
                }
            }
        }
    }

    /// Lets every row give way that has held one of the values for longer. Says whether one has not: then the row that
    /// arrives has to.
    ///
    /// `holding` says since when the row that arrives has the values, `own` where it was written.
    ///
    /// # Safety
    /// Inside a transaction; what was written before is visible.
    pub(crate) unsafe fn make_way(
        &self,
        leaf: &mut Leaf,
        values: &[Option<Values>],
        (holding, own): (Holding<'_>, Option<pg_sys::ItemPointerData>),
        mut registers: Hiding<'_>,
        arrival: &mut Arrival<'_>,
        met: &mut Met,
    ) -> Result<()> {
        for (number, values) in values.iter().enumerate() {
            let Some(values) = values else { continue };
            let index = leaf.uniques[number].index;
            let mut staying = Vec::new();
            // SAFETY: as the caller promises; the slot is the leaf's own for other rows.
            unsafe {
                let table = (*leaf.info).ri_RelationDesc;
                while index::lock_holder(table, index, values, own, &staying, leaf.other) {
                    let place = (*leaf.other).tts_tid;
                    let held = registers.held(leaf, arrival)?;
                    let since = held.holding().since(leaf, number);
                    let claim = holding.since(leaf, number);
                    let is_own = |since: Option<&Since>| since.is_some_and(|since| since.version == *arrival.version);
                    // One transaction may pass through a state like this under a deferrable constraint. Not so if the
                    // value is a column's that some other transaction left in a row of which this one writes the rest.
                    let may_pass = !(*(*index).rd_index).indimmediate;
                    let is_passing = may_pass && is_own(since.as_ref()) && is_own(claim.as_ref());
                    if !is_passing {
                        met.others += 1;
                        met.images.push(image(table, leaf.other));
                        met.version = met.version.take().max(held.version.clone());
                    }
                    if claim.is_some_and(|claim| unique::yields(since.as_ref(), &claim)) {
                        self.hide(leaf, &held, &mut registers, arrival)?;
                    } else {
                        staying.push(place);
                        met.hidden |= !is_passing;
                    }
                }
            }
        }
        Ok(())
    }

    /// Hides the row in `leaf.other`.
    unsafe fn hide(
        &self,
        leaf: &mut Leaf,
        held: &OfRow,
        registers: &mut Hiding<'_>,
        arrival: &mut Arrival<'_>,
    ) -> Result<()> {
        // SAFETY: the row is locked; its slot keeps it while it is being removed.
        unsafe {
            let slot = leaf.other;
            let key = leaf.key_of(slot);
            let hidden = Claimant { estate: self.estate, key: &key };
            let before = hidden.values(leaf, slot);
            hidden.release(leaf, &before, &[], held.holding(), arrival);
            registers.hidden(leaf, &key, held, arrival)?;
            leaf.remove(slot, self.estate);
        }
        Ok(())
    }
}
