//! What a round is to do, drawn from its seed before anything runs. Any part of a plan is a plan, so one that fails can
//! be cut down.

use std::fmt;
use std::time::Duration;

use super::layouts::LAYOUTS;
use super::statements::Transaction;
use crate::dice::Dice;

/// How many nodes take part.
pub const NODES: usize = 3;
/// Sessions that write on a node, where they write at the same time.
pub const WRITERS: usize = 2;

/// What happens to parts of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// The stream of one node is paused on another.
    Hold {
        /// Where.
        on: usize,
        /// Whose.
        of: usize,
    },
    /// It goes on.
    Release {
        /// Where.
        on: usize,
        /// Whose.
        of: usize,
    },
    /// Connections of a node's relay to its database end.
    CutDatabase(usize),
    /// Connections of a node's relay to Kafka end.
    CutKafka(usize),
    /// Nothing passes between a node's relay and Kafka for a while.
    StallKafka(usize, Duration),
    /// SIGKILL to a node's relay, which is started again.
    KillRelay(usize),
    /// SIGTERM to a node's relay, which is started again.
    StopRelay(usize),
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A transaction of an application.
    Commit {
        /// Where.
        node: usize,
        /// In which of its sessions.
        writer: usize,
        /// In which of the round's tables.
        table: usize,
        /// What it does.
        transaction: Transaction,
    },
    /// What a node has committed goes into its stream.
    Publish(usize),
    /// The next transactions of a stream are applied.
    Deliver {
        /// Where.
        to: usize,
        /// Whose.
        from: usize,
        /// So many at most, in one call.
        most: usize,
    },
    /// A node looks after its records, as its relay would have it do from time to time.
    Maintain(usize),
    /// Time passes.
    Nap(Duration),
    /// A part fails or is held.
    Strike(Strike),
}

/// A round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What it was drawn from.
    pub seed: u64,
    /// Its tables, by their number in [`LAYOUTS`].
    pub layouts: Vec<usize>,
    /// Whether transactions are applied in causal order across streams, or in whichever; where relays apply them,
    /// whether others wait for a stream that is held.
    pub causal: bool,
    /// Whether apply goes with care: each change in a subtransaction.
    pub careful: bool,
    /// What happens.
    pub steps: Vec<Step>,
}

impl Plan {
    /// A round whose every delivery is a step: without relays.
    pub fn exact(seed: u64) -> Self {
        let mut dice = Dice::of(seed, 1);
        let layouts = vec![dice.below(LAYOUTS.len() as u64) as usize];
        let (causal, careful) = (dice.percent(50) || is_causal(&layouts), dice.percent(20));
        // Some rounds hardly deliver before the end, some all the time.
        let delivers = dice.between(5, 55);
        let truncates = dice.pick(&[0, 0, 4, 15]);
        let length = dice.between(8, 60);
        let steps = (0..length)
            .map(|_| {
                if dice.percent(delivers) {
                    let to = dice.below(NODES as u64) as usize;
                    let from = (to + 1 + dice.below(NODES as u64 - 1) as usize) % NODES;
                    return Step::Deliver { to, from, most: dice.between(1, 4) as usize };
                }
                match dice.below(100) {
                    0..70 => commit(&mut dice, &layouts, truncates),
                    70..92 => Step::Publish(dice.below(NODES as u64) as usize),
                    92..96 => Step::Maintain(dice.below(NODES as u64) as usize),
                    _ => Step::Nap(dice.millis(1, 30)),
                }
            })
            .collect();
        Self { seed, layouts, causal, careful, steps }
    }

    /// A round with real relays, under which parts fail and streams are held.
    pub fn wild(seed: u64) -> Self {
        let mut dice = Dice::of(seed, 2);
        let mut layouts: Vec<usize> = (0..LAYOUTS.len()).collect();
        dice.shuffle(&mut layouts);
        layouts.truncate(4);
        let truncates = dice.pick(&[0, 2]);
        let mut steps = Vec::new();
        let mut held = Vec::new();
        for _ in 0..dice.between(8, 14) {
            for _ in 0..dice.between(5, 25) {
                steps.push(commit(&mut dice, &layouts, truncates));
            }
            steps.push(Step::Nap(dice.millis(20, 500)));
            let node = dice.below(NODES as u64) as usize;
            steps.push(Step::Strike(match dice.below(100) {
                0..35 => {
                    let pair = (node, (node + 1 + dice.below(NODES as u64 - 1) as usize) % NODES);
                    let (on, of) = pair;
                    match held.iter().position(|other| *other == pair) {
                        Some(at) => {
                            held.remove(at);
                            Strike::Release { on, of }
                        }
                        None => {
                            held.push(pair);
                            Strike::Hold { on, of }
                        }
                    }
                }
                35..50 if !held.is_empty() => {
                    let (on, of) = held.remove(dice.below(held.len() as u64) as usize);
                    Strike::Release { on, of }
                }
                35..60 => Strike::CutDatabase(node),
                60..70 => Strike::CutKafka(node),
                70..78 => Strike::StallKafka(node, dice.millis(50, 600)),
                78..93 => Strike::KillRelay(node),
                _ => Strike::StopRelay(node),
            }));
        }
        Self { seed, causal: is_causal(&layouts), layouts, careful: false, steps }
    }
}

/// Whether transactions have to come in causal order: an UPDATE that adds nothing, and comes before the row that it
/// replaced, would leave a counter without a number, and a column without its version.
fn is_causal(layouts: &[usize]) -> bool {
    layouts.iter().any(|layout| LAYOUTS[*layout].counts || LAYOUTS[*layout].merges)
}

fn commit(dice: &mut Dice, layouts: &[usize], truncates: u64) -> Step {
    let table = dice.below(layouts.len() as u64) as usize;
    Step::Commit {
        node: dice.below(NODES as u64) as usize,
        writer: dice.below(WRITERS as u64) as usize,
        table,
        transaction: Transaction::random(dice, &LAYOUTS[layouts[table]], truncates),
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.layouts.iter().map(|layout| LAYOUTS[*layout].name).collect();
        let order = if self.causal { "causal" } else { "any" };
        let care = if self.careful { ", with care" } else { "" };
        writeln!(out, "tables: {}; delivered in {order} order{care}", names.join(", "))?;
        for step in &self.steps {
            match step {
                Step::Commit { node, writer, table, transaction } => {
                    let layout = &LAYOUTS[self.layouts[*table]];
                    let sql = transaction.script(layout, &format!("t{table}"));
                    writeln!(out, "  node {node}, session {writer}, {:?}: {}", transaction.manner, sql.join("; "))?;
                }
                Step::Publish(node) => writeln!(out, "  node {node} publishes")?,
                Step::Deliver { to, from, most } => writeln!(out, "  node {to} applies {most} of node {from}")?,
                Step::Maintain(node) => writeln!(out, "  node {node} looks after its records")?,
                Step::Nap(time) => writeln!(out, "  {time:?} pass")?,
                Step::Strike(strike) => writeln!(out, "  {strike:?}")?,
            }
        }
        write!(out, "  then everything is delivered")
    }
}

/// Smaller plans, the smallest first: without a run of steps, without one operation, with simpler surroundings.
pub fn smaller(plan: &Plan) -> Vec<Plan> {
    let count = plan.steps.len();
    let mut plans = Vec::new();
    let mut size = count / 2;
    while size > 0 {
        for start in (0..count).step_by(size) {
            let kept = plan.steps.iter().enumerate().filter(|(i, _)| !(start..start + size).contains(i));
            plans.push(Plan { steps: kept.map(|(_, step)| step.clone()).collect(), ..plan.clone() });
        }
        size /= 2;
    }
    for (number, step) in plan.steps.iter().enumerate() {
        let Step::Commit { transaction, .. } = step else { continue };
        for transaction in transaction.smaller() {
            let mut smaller = plan.clone();
            if let Step::Commit { transaction: other, .. } = &mut smaller.steps[number] {
                *other = transaction;
            }
            plans.push(smaller);
        }
    }
    if plan.careful {
        plans.push(Plan { careful: false, ..plan.clone() });
    }
    plans
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan() {
        assert_eq!((Plan::exact(7), Plan::wild(7)), (Plan::exact(7), Plan::wild(7)));
        assert_ne!(Plan::exact(7), Plan::exact(8));
    }

    #[test]
    fn every_smaller_plan_is_smaller() {
        let size = |plan: &Plan| plan.to_string().len();
        let plan = Plan::exact(3);
        let smaller = smaller(&plan);
        assert!(smaller.len() > plan.steps.len());
        assert!(smaller.iter().all(|other| size(other) < size(&plan) || !other.careful && plan.careful));
    }

    #[test]
    fn all_that_may_happen_turns_up() {
        let shown: String = (0..200).map(|seed| format!("{}\n{}\n", Plan::exact(seed), Plan::wild(seed))).collect();
        let strikes = ["Hold", "Release", "CutDatabase", "CutKafka", "StallKafka", "KillRelay", "StopRelay"];
        let manners = ["Alone", "Whole", "StepByStep", "Prepared", "TakenBack"];
        let statements = ["on conflict", "truncate", "rollback to", "set id =", "delete from", "_child", "1.0"];
        for word in strikes.iter().chain(&manners).chain(&statements) {
            assert!(shown.contains(word), "{word}");
        }
        for layout in LAYOUTS {
            assert!(shown.contains(layout.name), "{}", layout.name);
        }
        let ops: usize = (0..200).map(|seed| Plan::exact(seed).steps.len()).sum();
        assert!(ops > 2_000, "{ops} steps in 200 rounds");
    }
}
