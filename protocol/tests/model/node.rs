//! A node: a table, a clock, and how far it has applied every stream.

use crate::plan::{Op, Wanted};
use crate::table::{COLUMNS, Cell, Change, Key, Missing, Replaced, Slot, Spec, Table, Version};
use duplex_protocol::rules::counters;
use duplex_protocol::rules::forget::Watermark;
use duplex_protocol::rules::key::Standing;
use std::collections::BTreeMap;

#[derive(Debug, Clone)]
pub(crate) struct Transaction {
    pub(crate) version: Version,
    pub(crate) changes: Vec<Change>,
    /// How many changes stand before these in their stream.
    pub(crate) order: usize,
    /// How many transactions of each node its node had applied.
    pub(crate) seen: Vec<usize>,
    /// What its node says of itself. A heartbeat says nothing else: it has no changes.
    pub(crate) watermark: Watermark<i64>,
}

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) table: Table,
    /// How many transactions of each node it has applied; its own included.
    pub(crate) applied: Vec<usize>,
    /// What each node has said of itself; its own included.
    heard: Vec<Watermark<i64>>,
}

type Rows = BTreeMap<Key, ([Cell; COLUMNS], i64)>;

const NOTHING: Watermark<i64> = Watermark { settled: None, held: None };

impl Node {
    pub(crate) fn new(nodes: usize, spec: Spec, missing: Missing, rows: Key) -> Self {
        Self { table: Table::new(spec, missing, rows), applied: vec![0; nodes], heard: vec![NOTHING; nodes] }
    }

    /// Makes a local transaction of the operations that this node's own checks let pass. `None` if nothing is left.
    pub(crate) fn commit(
        &mut self,
        ops: &[Op],
        version: Version,
        order: usize,
        spec: Spec,
    ) -> Result<Option<Transaction>, String> {
        let mut session =
            Session { table: self.table.clone(), rows: self.table.visible(), written: vec![], version, order };
        for op in ops {
            session.run(op, spec);
        }
        let changes: Vec<Change> = session.written;
        if changes.is_empty() {
            return Ok(None);
        }
        let shown = session.table.visible();
        if shown != session.rows {
            return Err(format!("a local transaction made {:?} and its node shows {shown:?}", session.rows));
        }
        self.table = session.table;
        Ok(Some(self.publish(version, changes, order)))
    }

    /// Publishes its watermarks, with changes or without. Something may follow at this very tick, and nothing before it.
    pub(crate) fn publish(&mut self, version: Version, changes: Vec<Change>, order: usize) -> Transaction {
        let settled = Some(version.time - 1);
        self.heard[version.origin].settled = settled;
        let watermark = Watermark { settled, held: self.held() };
        let seen = self.applied.clone();
        self.applied[version.origin] += 1;
        self.heard[version.origin] = watermark;
        self.forget();
        Transaction { version, changes, order, seen, watermark }
    }

    /// The least W that it holds.
    fn held(&self) -> Option<i64> {
        self.heard.iter().map(|watermark| watermark.settled).min().flatten()
    }

    /// Forgets what may be forgotten. What it holds itself counts as it is now.
    fn forget(&mut self) {
        let mut all = self.heard.clone();
        all.push(Watermark { settled: Some(i64::MAX), held: self.held() });
        self.table.forget(&all);
    }

    pub(crate) fn receive(&mut self, transaction: &Transaction) -> Result<(), String> {
        for (change, order) in transaction.changes.iter().zip(transaction.order..) {
            self.table.apply(change, transaction.version, order, true);
        }
        self.applied[transaction.version.origin] += 1;
        self.heard[transaction.version.origin] = transaction.watermark;
        self.forget();
        match self.table.clash() {
            Some((one, other)) => Err(format!("rows {one} and {other} hold one unique value")),
            None => Ok(()),
        }
    }

    /// Whether all that the transaction's node had seen has been applied here.
    pub(crate) fn has_seen(&self, transaction: &Transaction) -> bool {
        transaction.seen.iter().zip(&self.applied).all(|(seen, applied)| applied >= seen)
    }
}

/// A local transaction under way. `rows` is what its user has done to the rows, plainly; the table gets the changes
/// by the same rules as everywhere. Both must come out alike.
struct Session {
    table: Table,
    rows: Rows,
    written: Vec<Change>,
    version: Version,
    order: usize,
}

impl Session {
    fn run(&mut self, op: &Op, spec: Spec) {
        let Op { wanted, key, other, cells, mask, delta } = *op;
        let delta = if spec.counters { delta } else { 0 };
        match wanted {
            Wanted::Insert => self.insert(key, cells, i64::from(delta), spec),
            Wanted::Update => self.update(key, cells, mask, i64::from(delta), spec),
            Wanted::Delete if self.rows.contains_key(&key) => self.delete(key),
            Wanted::ChangeKey => {
                // An UPDATE of the key: DELETE and INSERT in one.
                if let Some((row, counter)) = self.rows.get(&key).copied()
                    && !self.rows.contains_key(&other)
                    && key != other
                {
                    self.delete(key);
                    self.insert(other, row, counter + i64::from(delta), spec);
                }
            }
            Wanted::Swap => {
                // Under a deferrable unique constraint two rows may change their values in one statement.
                if let (Some((one, _)), Some((two, _))) = (self.rows.get(&key).copied(), self.rows.get(&other).copied())
                    && key != other
                    && (spec.unique > 0 || spec.composite)
                {
                    let changed = [true, true, false];
                    self.put(key, false, [two[0], two[1], one[2]], changed, 0);
                    self.put(other, false, [one[0], one[1], two[2]], changed, 0);
                }
            }
            Wanted::Truncate => {
                self.rows.clear();
                self.write(Change::Truncate);
            }
            Wanted::Delete => {}
        }
    }

    fn is_free(&self, key: Key, row: &[Cell; COLUMNS], spec: Spec) -> bool {
        let clashes = |index: &&[u16], other: &[Cell; COLUMNS]| {
            index.iter().all(|column| {
                let column = usize::from(*column);
                row[column].is_some() && row[column] == other[column]
            })
        };
        let others = self.rows.iter().filter(|(other, _)| **other != key);
        others.into_iter().all(|(_, (other, _))| !spec.indexes().iter().any(|index| clashes(index, other)))
    }

    fn insert(&mut self, key: Key, row: [Cell; COLUMNS], value: i64, spec: Spec) {
        if self.rows.contains_key(&key) || !self.is_free(key, &row, spec) {
            return;
        }
        let residual = self.table.slots.get(&key).map(|slot| slot.counter);
        self.put(key, true, row, [true; COLUMNS], counters::inserted(value, residual));
    }

    fn update(&mut self, key: Key, cells: [Cell; COLUMNS], mask: u8, delta: i64, spec: Spec) {
        let Some((old, counter)) = self.rows.get(&key).copied() else { return };
        let mut row = old;
        for column in 0..COLUMNS {
            if mask >> column & 1 == 1 {
                row[column] = cells[column];
            }
        }
        if self.is_free(key, &row, spec) {
            let changed = std::array::from_fn(|column| row[column] != old[column]);
            self.put(key, false, row, changed, counters::updated(counter + delta, counter));
        }
    }

    fn put(&mut self, key: Key, insert: bool, row: [Cell; COLUMNS], changed: [bool; COLUMNS], added: i64) {
        let counter = match insert {
            true => counters::after(self.table.slots.get(&key).map(|slot| slot.counter), added),
            false => counters::after(self.rows.get(&key).map(|(_, counter)| *counter), added),
        };
        let replaced = if insert { Replaced::Nothing } else { self.replaced(key) };
        self.rows.insert(key, (row, counter));
        self.write(Change::Put { key, insert, row, changed, added, replaced });
    }

    fn delete(&mut self, key: Key) {
        let replaced = self.replaced(key);
        if let Some((_, counter)) = self.rows.remove(&key) {
            self.write(Change::Delete { key, added: counters::deleted(counter), replaced });
        }
    }

    fn replaced(&self, key: Key) -> Replaced {
        let wrote = |change: &Change| match change {
            Change::Put { key: other, .. } | Change::Delete { key: other, .. } => *other == key,
            Change::Truncate => false,
        };
        if self.written.iter().any(wrote) {
            return Replaced::SameTransaction;
        }
        match self.table.slots.get(&key) {
            Some(Slot { standing: Standing::Row, version, .. }) => Replaced::Version(*version),
            _ => Replaced::Nothing,
        }
    }

    fn write(&mut self, change: Change) {
        self.table.apply(&change, self.version, self.order + self.written.len(), false);
        self.written.push(change);
    }
}
