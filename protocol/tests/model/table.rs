//! One node's table: its rows, and the registers beside them.

use std::collections::BTreeMap;

use duplex_protocol::rules::conflict::{self, ConflictKind, Write};
use duplex_protocol::rules::forget::{Kept, Watermark, horizon, may_forget};
use duplex_protocol::rules::key::{Effect, Registers, Standing, Wish, arrive, truncates};
use duplex_protocol::rules::{columns, counters, unique};

/// A version: time, and the origin's number. The numbers are in the order of the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) time: i64,
    pub(crate) origin: usize,
}

/// A version, and the number of the change in its origin's stream: what columns and claims are stamped with where
/// columns are merged (see [`duplex_protocol::rules::unique`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp {
    version: Version,
    order: usize,
}

pub(crate) type Key = u8;
/// A column's value; `None` is NULL, which never clashes.
pub(crate) type Cell = Option<u8>;
/// Columns that are not the key. The first ones may be unique.
pub(crate) const COLUMNS: usize = 3;

/// What can be taken away, to see that the model notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Nothing: the rules as they are.
    Nothing,
    /// A deleted or hidden row leaves no version.
    Tombstones,
    /// A tombstone keeps no counters.
    Residuals,
    /// No memory of unique values that were given up.
    Claims,
    /// Writes that lose do not claim their unique values.
    LosersClaims,
    /// A tuple rewritten by a loser gets the loser's version.
    RowRegister,
    /// Merged columns go by the row's version.
    ColumnVersions,
    /// Columns of one unique index are merged each for itself.
    IndexesTogether,
    /// Columns and claims of one version are told apart by nothing.
    Order,
    /// A TRUNCATE is not remembered.
    Truncates,
    /// Ties of time go to the change that comes later.
    TiesByName,
    /// Changes are applied before the local clock has passed them.
    ClockGuard,
    /// Transactions are applied before those that their node had seen.
    CausalOrder,
    /// Registers are forgotten one tick too early.
    LastTick,
    /// Counters and merged columns are forgotten as whole rows are: once nobody sends anything older.
    LeastHeld,
    /// Tombstones are forgotten whatever counters they keep.
    KeptResiduals,
}

/// How a table decides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spec {
    /// Column merge, else the later version wins as a whole row.
    pub(crate) merge: bool,
    /// How many of the columns are unique, each for itself.
    pub(crate) unique: usize,
    /// Whether the first two columns are unique together, as one index. Takes the place of `unique`.
    pub(crate) composite: bool,
    /// Whether there is a counter.
    pub(crate) counters: bool,
}

impl Spec {
    /// What the counter of a row is at first.
    pub(crate) fn first_counter(&self) -> i64 {
        if self.counters { 10 } else { 0 }
    }

    /// What the registers are kept for.
    fn kept(&self) -> Kept {
        if self.merge || self.counters { Kept::ForSums } else { Kept::ForVersions }
    }

    /// The columns of each unique index.
    pub(crate) fn indexes(&self) -> &'static [&'static [u16]] {
        const SINGLE: [&[u16]; 2] = [&[0], &[1]];
        if self.composite { &[&[0, 1]] } else { &SINGLE[..self.unique] }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Replaced {
    Nothing,
    SameTransaction,
    Version(Option<Version>),
}

#[derive(Debug, Clone)]
pub(crate) enum Change {
    Put { key: Key, insert: bool, row: [Cell; COLUMNS], changed: [bool; COLUMNS], added: i64, replaced: Replaced },
    Delete { key: Key, added: i64, replaced: Replaced },
    Truncate,
}

/// A row or a tombstone. In a tombstone the columns matter only where columns are merged.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) standing: Standing,
    pub(crate) version: Option<Version>,
    pub(crate) row: [Cell; COLUMNS],
    pub(crate) stamps: [Option<Stamp>; COLUMNS],
    pub(crate) counter: i64,
}

/// A unique value: the index, and what stands in its columns.
type Value = (usize, [u8; 2]);

#[derive(Debug, Clone)]
pub(crate) struct Table {
    spec: Spec,
    missing: Missing,
    pub(crate) slots: BTreeMap<Key, Slot>,
    claims: BTreeMap<(Value, Key), Stamp>,
    truncated: Option<Version>,
    pub(crate) conflicts: BTreeMap<ConflictKind, usize>,
    /// How much was forgotten.
    pub(crate) forgotten: usize,
}

impl Table {
    /// A table with rows that are older than any version and alike on all nodes: those with the keys below `rows`.
    pub(crate) fn new(spec: Spec, missing: Missing, rows: Key) -> Self {
        let slot = |key: Key| Slot {
            standing: Standing::Row,
            version: None,
            row: [Some(key), Some(key), None],
            stamps: [None; COLUMNS],
            counter: spec.first_counter(),
        };
        let slots = (0..rows).map(|key| (key, slot(key))).collect();
        Self {
            spec,
            missing,
            slots,
            claims: BTreeMap::new(),
            truncated: None,
            conflicts: BTreeMap::new(),
            forgotten: 0,
        }
    }

    /// The rows that a SELECT shows.
    pub(crate) fn visible(&self) -> BTreeMap<Key, ([Cell; COLUMNS], i64)> {
        let rows = self.slots.iter().filter(|(_, slot)| slot.standing == Standing::Row);
        rows.map(|(key, slot)| (*key, (slot.row, slot.counter))).collect()
    }

    /// The unique values of a row.
    fn values(&self, row: &[Cell; COLUMNS]) -> Vec<Value> {
        let value = |(number, index): (usize, &&[u16])| {
            let mut cells = [0; 2];
            for (cell, column) in cells.iter_mut().zip(*index) {
                *cell = row[usize::from(*column)]?;
            }
            Some((number, cells))
        };
        self.spec.indexes().iter().enumerate().filter_map(value).collect()
    }

    /// Since when a row has held its value in an index.
    fn held(&self, slot: &Slot, index: usize) -> Option<Stamp> {
        if !self.spec.merge {
            return slot.version.map(|version| Stamp { version, order: 0 });
        }
        // The columns of an index have one stamp, since they change together.
        self.spec.indexes()[index].iter().filter_map(|column| slot.stamps[usize::from(*column)]).max()
    }

    /// Whether two visible rows hold one unique value, at which a real index would fail.
    pub(crate) fn clash(&self) -> Option<(Key, Key)> {
        let mut holders = BTreeMap::new();
        for (key, (row, _)) in self.visible() {
            for value in self.values(&row) {
                if let Some(other) = holders.insert(value, key) {
                    return Some((other, key));
                }
            }
        }
        None
    }

    /// Applies a change of a transaction of this version, the `order`th change of its origin's stream.
    pub(crate) fn apply(&mut self, change: &Change, version: Version, order: usize, remote: bool) {
        let order = if self.spec.merge && self.missing != Missing::Order { order } else { 0 };
        let stamp = Stamp { version, order };
        match change {
            Change::Truncate => self.truncate(version),
            Change::Delete { key, added, replaced } => {
                let write = Write::Delete;
                let (effect, found, conflict) = self.arrive(*key, Wish::Delete, write, version, replaced);
                self.settle(*key, effect, found, stamp, *added, None);
                self.record(conflict.filter(|_| remote));
            }
            Change::Put { key, insert, row, changed, added, replaced } => {
                let write = if *insert { Write::Insert } else { Write::Update };
                let (effect, found, conflict) = self.arrive(*key, Wish::Put, write, version, replaced);
                let image = Image { row, changed: self.together(*insert, changed) };
                self.settle(*key, effect, found, stamp, *added, Some(&image));
                let others = self.make_way(*key, &image, stamp);
                self.record(conflict.or(conflict::under_unique_values(write, others)).filter(|_| remote));
            }
        }
    }

    fn record(&mut self, conflict: Option<ConflictKind>) {
        if let Some(kind) = conflict {
            *self.conflicts.entry(kind).or_default() += 1;
        }
    }

    fn together(&self, insert: bool, changed: &[bool; COLUMNS]) -> [bool; COLUMNS] {
        if insert {
            return [true; COLUMNS];
        }
        if self.missing == Missing::IndexesTogether {
            return *changed;
        }
        columns::together(changed, self.spec.indexes()).try_into().expect("as many columns as before")
    }

    /// Compares as the rules say; with [`Missing::TiesByName`] all origins are alike.
    fn comparable(&self, version: Version) -> Version {
        if self.missing == Missing::TiesByName { Version { origin: 0, ..version } } else { version }
    }

    fn arrive(
        &self,
        key: Key,
        wish: Wish,
        write: Write,
        version: Version,
        replaced: &Replaced,
    ) -> (Effect, Option<Slot>, Option<ConflictKind>) {
        let found = self.slots.get(&key).cloned();
        let standing = found.as_ref().map_or(Standing::Unknown, |slot| slot.standing);
        let local = found.as_ref().and_then(|slot| slot.version).map(|version| self.comparable(version));
        let truncated = self.truncated.map(|version| self.comparable(version));
        let registers = Registers { standing, version: local.as_ref(), truncated: truncated.as_ref() };
        let effect = arrive(&registers, wish, &self.comparable(version));
        let replaced = match replaced {
            Replaced::Nothing => conflict::Replaced::Nothing,
            Replaced::SameTransaction => conflict::Replaced::SameTransaction,
            Replaced::Version(version) => conflict::Replaced::Version(version.as_ref()),
        };
        let version = found.as_ref().and_then(|slot| slot.version);
        let conflict = conflict::under_key(write, replaced, standing, version.as_ref(), effect.wins);
        (effect, found, conflict)
    }

    /// Writes the row or tombstone as `effect` says, and remembers the claims that no row shows any more.
    fn settle(
        &mut self,
        key: Key,
        effect: Effect,
        found: Option<Slot>,
        stamp: Stamp,
        added: i64,
        image: Option<&Image<'_>>,
    ) {
        let unknown = Slot {
            standing: Standing::Unknown,
            version: None,
            row: image.map_or([None; COLUMNS], |image| *image.row),
            stamps: [None; COLUMNS],
            counter: 0,
        };
        let before = found.clone().unwrap_or_else(|| unknown.clone());
        let mut slot = found.unwrap_or(unknown);
        slot.counter = counters::after(Some(slot.counter), added);
        let mut rewritten = added != 0;
        if let Some(image) = image {
            for column in 0..COLUMNS {
                let takes = if self.spec.merge {
                    let local = match self.missing {
                        Missing::ColumnVersions => before.version.map(|version| Stamp { version, order: 0 }),
                        _ => slot.stamps[column],
                    };
                    columns::takes(image.changed[column], &stamp, local.as_ref())
                } else {
                    effect.wins
                };
                if takes {
                    slot.row[column] = image.row[column];
                    slot.stamps[column] = Some(stamp);
                    rewritten = true;
                }
            }
        }
        let loser_stamps = self.missing == Missing::RowRegister && rewritten && before.standing == Standing::Row;
        if effect.stamps || loser_stamps {
            slot.version = Some(stamp.version);
        }
        slot.standing = if effect.alive { Standing::Row } else { Standing::Gone };
        if effect.alive && self.is_claimed_by_others(key, &slot) {
            slot.standing = Standing::Hidden;
        }
        self.remember(key, &before, Some(&slot));
        self.put_slot(key, slot);
    }

    fn put_slot(&mut self, key: Key, mut slot: Slot) {
        if slot.standing != Standing::Row {
            match self.missing {
                Missing::Residuals => slot.counter = 0,
                Missing::Tombstones => slot.version = None,
                _ => {}
            }
        }
        self.slots.insert(key, slot);
    }

    fn is_claimed_by_others(&self, key: Key, slot: &Slot) -> bool {
        self.values(&slot.row).into_iter().any(|value| {
            let held = self.held(slot, value.0);
            let remembered =
                self.claims.range((value, 0)..=(value, Key::MAX)).map(|((_, other), at)| (*other, Some(*at)));
            let shown = self.slots.iter().filter(|(_, slot)| slot.standing == Standing::Row);
            let shown = shown
                .filter(|(_, other)| self.values(&other.row).contains(&value))
                .map(|(other, slot)| (*other, self.held(slot, value.0)));
            remembered
                .chain(shown)
                .filter(|(other, _)| *other != key)
                .any(|(_, claim)| claim.is_some_and(|claim| unique::yields(held.as_ref(), &claim)))
        })
    }

    /// Remembers what `before` showed and `after` no longer does.
    fn remember(&mut self, key: Key, before: &Slot, after: Option<&Slot>) {
        if before.standing != Standing::Row {
            return;
        }
        let after = after.filter(|slot| slot.standing == Standing::Row);
        let shown = after.map(|slot| self.values(&slot.row)).unwrap_or_default();
        for value in self.values(&before.row).into_iter().filter(|value| !shown.contains(value)) {
            self.claim(value, key, self.held(before, value.0));
        }
    }

    fn claim(&mut self, value: Value, key: Key, at: Option<Stamp>) {
        if self.missing == Missing::Claims {
            return;
        }
        if let Some(at) = unique::remember(self.claims.get(&(value, key)), at) {
            self.claims.insert((value, key), at);
        }
    }

    /// Claims the unique values of an image at its version, and hides every row that gives way. Says how many other
    /// keys it met.
    fn make_way(&mut self, key: Key, image: &Image<'_>, stamp: Stamp) -> usize {
        let mut met = 0;
        for value in self.values(image.row) {
            let unchanged = self.spec.indexes()[value.0].iter().all(|column| !image.changed[usize::from(*column)]);
            if self.spec.merge && unchanged {
                continue;
            }
            let slot = &self.slots[&key];
            let shows = slot.standing == Standing::Row
                && self.values(&slot.row).contains(&value)
                && self.held(slot, value.0) >= Some(stamp);
            if !shows {
                if self.missing == Missing::LosersClaims {
                    continue;
                }
                self.claim(value, key, Some(stamp));
            }
            let holders: Vec<Key> = self
                .slots
                .iter()
                .filter(|(other, slot)| **other != key && slot.standing == Standing::Row)
                .filter(|(_, slot)| self.values(&slot.row).contains(&value))
                .map(|(other, _)| *other)
                .collect();
            met += holders.len();
            for other in holders {
                let before = self.slots[&other].clone();
                if unique::yields(self.held(&before, value.0).as_ref(), &stamp) {
                    self.remember(other, &before, None);
                    self.put_slot(other, Slot { standing: Standing::Hidden, ..before });
                }
            }
        }
        met
    }

    /// Forgets all that these watermarks allow.
    pub(crate) fn forget(&mut self, all: &[Watermark<i64>]) {
        let kept = if self.missing == Missing::LeastHeld { Kept::ForVersions } else { self.spec.kept() };
        let early = i64::from(self.missing == Missing::LastTick);
        let horizon = horizon(kept, all.iter().copied()).map(|horizon| horizon + early);
        let goes = |at: Option<Version>, keeps_residual: bool| {
            may_forget(at.map(|at| at.time).as_ref(), horizon.as_ref(), keeps_residual)
        };
        let before = self.remembered();
        let residuals = self.missing != Missing::KeptResiduals;
        self.slots
            .retain(|_, slot| slot.standing == Standing::Row || !goes(slot.version, residuals && slot.counter != 0));
        self.claims.retain(|_, claim| !goes(Some(claim.version), false));
        self.truncated = self.truncated.filter(|truncated| !goes(Some(*truncated), false));
        self.forgotten += before - self.remembered();
    }

    /// How much is remembered beside the rows.
    fn remembered(&self) -> usize {
        let tombstones = self.slots.values().filter(|slot| slot.standing != Standing::Row).count();
        tombstones + self.claims.len() + usize::from(self.truncated.is_some())
    }

    fn truncate(&mut self, version: Version) {
        let keys: Vec<Key> = self.slots.keys().copied().collect();
        for key in keys {
            let before = self.slots[&key].clone();
            let alive = matches!(before.standing, Standing::Row | Standing::Hidden);
            let local = before.version.map(|version| self.comparable(version));
            if alive && truncates(&self.comparable(version), local.as_ref()) {
                self.remember(key, &before, None);
                self.put_slot(key, Slot { standing: Standing::Gone, ..before });
            }
        }
        if self.missing != Missing::Truncates {
            self.truncated = self.truncated.max(Some(version));
        }
    }
}

/// The image that a put carries, and the columns that it counts as having changed.
struct Image<'c> {
    row: &'c [Cell; COLUMNS],
    changed: [bool; COLUMNS],
}
