//! A random history: what is wanted of the nodes, and in which order. A wish that cannot be had (an INSERT of a row
//! that exists) is left out when it is run, so any part of a plan is a plan.

use std::fmt;

use crate::table::{COLUMNS, Cell, Key, Spec};

/// splitmix64: seeds stay good for ever, whatever a library does.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 11) as usize % limit
    }

    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Insert,
    Update,
    Delete,
    ChangeKey,
    Swap,
    Truncate,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Op {
    pub(crate) wanted: Wanted,
    pub(crate) key: Key,
    pub(crate) other: Key,
    pub(crate) cells: [Cell; COLUMNS],
    /// Which columns an UPDATE sets.
    pub(crate) mask: u8,
    pub(crate) delta: i8,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Commit {
        node: usize,
        ops: Vec<Op>,
    },
    /// `to` applies the next transaction of `from`, if it may.
    Deliver {
        to: usize,
        from: usize,
    },
    Tick(i64),
    /// The node publishes its watermarks.
    Beat {
        node: usize,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) nodes: usize,
    pub(crate) spec: Spec,
    /// Rows that are there at first.
    pub(crate) rows: Key,
    /// By how much each node's clock is wrong.
    pub(crate) skews: Vec<i64>,
    pub(crate) steps: Vec<Step>,
    /// Order in which what is left is delivered in the end.
    pub(crate) rest: u64,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} nodes, {:?}, {} rows at first, clocks off by {:?}",
            self.nodes, self.spec, self.rows, self.skews
        )?;
        for step in &self.steps {
            writeln!(f, "  {step:?}")?;
        }
        write!(f, "  the rest in order {}", self.rest)
    }
}

/// Few keys, so that nodes meet.
const KEYS: usize = 4;
const CELLS: usize = 4;

impl Plan {
    pub(crate) fn random(seed: u64, steps: usize) -> Self {
        let mut random = Random(seed);
        let nodes = 2 + random.below(4);
        let spec = Spec {
            merge: random.one_in(2),
            unique: random.below(3),
            composite: random.one_in(4),
            counters: random.one_in(2),
        };
        let rows = random.below(3) as Key;
        let skews = (0..nodes).map(|_| random.below(9) as i64 - 4).collect();
        // Some histories hardly truncate, some do all the time; some hardly deliver.
        let truncates = [0, 1, 10][random.below(3)];
        let delivers = 1 + random.below(6);
        let beats = [0, 1, 3][random.below(3)];
        let length = 1 + random.below(steps);
        let steps = (0..length)
            .map(|_| match random.below(4 + delivers + beats) {
                0..=2 => {
                    let ops = (0..1 + random.below(3)).map(|_| op(&mut random, truncates)).collect();
                    Step::Commit { node: random.below(nodes), ops }
                }
                3 => Step::Tick(random.below(3) as i64),
                n if n < 4 + delivers => Step::Deliver { to: random.below(nodes), from: random.below(nodes) },
                _ => Step::Beat { node: random.below(nodes) },
            })
            .collect();
        Self { nodes, spec, rows, skews, steps, rest: random.next() }
    }
}

fn op(random: &mut Random, truncates: usize) -> Op {
    let wanted = match random.below(100 + truncates) {
        0..30 => Wanted::Insert,
        30..62 => Wanted::Update,
        62..78 => Wanted::Delete,
        78..92 => Wanted::ChangeKey,
        92..100 => Wanted::Swap,
        _ => Wanted::Truncate,
    };
    let cell = |random: &mut Random| (!random.one_in(5)).then(|| random.below(CELLS) as u8);
    Op {
        wanted,
        key: random.below(KEYS) as Key,
        other: random.below(KEYS) as Key,
        cells: std::array::from_fn(|_| cell(random)),
        mask: random.below(8) as u8,
        delta: random.below(7) as i8 - 3,
    }
}
