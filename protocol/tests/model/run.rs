//! Running a plan, and cutting one that fails down to what makes it fail.

use std::collections::BTreeMap;

use crate::node::{Node, Transaction};
use crate::plan::{Plan, Random, Step};
use crate::table::{Change, Key, Missing, Version};

pub(crate) struct World {
    plan_skews: Vec<i64>,
    missing: Missing,
    time: i64,
    pub(crate) nodes: Vec<Node>,
    /// Each node's stream.
    pub(crate) streams: Vec<Vec<Transaction>>,
}

impl World {
    pub(crate) fn new(plan: &Plan, missing: Missing) -> Self {
        Self {
            plan_skews: plan.skews.clone(),
            missing,
            time: 100,
            nodes: vec![Node::new(plan.nodes, plan.spec, missing, plan.rows); plan.nodes],
            streams: vec![vec![]; plan.nodes],
        }
    }

    fn clock(&self, node: usize) -> i64 {
        self.time + self.plan_skews[node]
    }

    pub(crate) fn step(&mut self, step: &Step, plan: &Plan) -> Result<(), String> {
        match step {
            Step::Tick(ticks) => self.time += ticks,
            Step::Deliver { to, from } => {
                self.deliver(*to, *from)?;
            }
            Step::Commit { node, ops } => {
                let (version, order) = self.next(*node);
                if let Some(transaction) = self.nodes[*node].commit(ops, version, order, plan.spec)? {
                    self.streams[*node].push(transaction);
                }
            }
            Step::Beat { node } => self.beat(*node),
        }
        Ok(())
    }

    fn beat(&mut self, node: usize) {
        let (now, order) = self.next(node);
        let heartbeat = self.nodes[node].publish(now, vec![], order);
        self.streams[node].push(heartbeat);
    }

    /// The version of what a node publishes now, and its place in the node's stream.
    fn next(&self, node: usize) -> (Version, usize) {
        let order = self.streams[node].last().map_or(0, |last| last.order + last.changes.len());
        (Version { time: self.clock(node), origin: node }, order)
    }

    /// Whether there was something to deliver, and it was allowed.
    fn deliver(&mut self, to: usize, from: usize) -> Result<bool, String> {
        let Some(transaction) = self.streams[from].get(self.nodes[to].applied[from]) else { return Ok(false) };
        let too_early = self.missing != Missing::ClockGuard && transaction.version.time >= self.clock(to);
        let unseen = self.missing != Missing::CausalOrder && !self.nodes[to].has_seen(transaction);
        // A heartbeat has nothing that would have to wait.
        if to == from || !transaction.changes.is_empty() && (too_early || unseen) {
            return Ok(false);
        }
        self.nodes[to].receive(transaction)?;
        Ok(true)
    }

    /// Delivers all that is left, in random order, and with it what nodes at rest say of themselves: once for W, once more
    /// for S.
    pub(crate) fn finish(&mut self, seed: u64) -> Result<(), String> {
        let mut random = Random(seed);
        for _ in 0..2 {
            self.time += 1000;
            for node in 0..self.nodes.len() {
                self.beat(node);
            }
            self.deliver_all(&mut random)?;
        }
        Ok(())
    }

    fn deliver_all(&mut self, random: &mut Random) -> Result<(), String> {
        let count = self.nodes.len();
        while self.nodes.iter().any(|node| (0..count).any(|from| node.applied[from] < self.streams[from].len())) {
            self.deliver(random.below(count), random.below(count))?;
        }
        Ok(())
    }

    /// What every key's counter must be: what it was at first, and all that was added.
    fn sums(&self, plan: &Plan) -> BTreeMap<Key, i64> {
        let mut sums: BTreeMap<Key, i64> = (0..plan.rows).map(|key| (key, plan.spec.first_counter())).collect();
        for change in self.streams.iter().flatten().flat_map(|transaction| &transaction.changes) {
            if let Change::Put { key, added, .. } | Change::Delete { key, added, .. } = change {
                *sums.entry(*key).or_default() += added;
            }
        }
        sums
    }

    pub(crate) fn check(&self, plan: &Plan) -> Result<(), String> {
        let sums = self.sums(plan);
        let first = self.nodes[0].table.visible();
        for (number, node) in self.nodes.iter().enumerate() {
            let rows = node.table.visible();
            if rows != first {
                return Err(format!("node 0 has {first:?}\nnode {number} has {rows:?}"));
            }
            for (key, sum) in &sums {
                let counter = node.table.slots.get(key).map_or(0, |slot| slot.counter);
                if counter != *sum {
                    return Err(format!("node {number}: the counter of {key} is {counter} and the sum {sum}"));
                }
            }
        }
        Ok(())
    }
}

/// Runs a plan to its end. An error says in what the nodes differ.
pub(crate) fn run(plan: &Plan, missing: Missing) -> Result<World, String> {
    let mut world = World::new(plan, missing);
    for step in &plan.steps {
        world.step(step, plan)?;
    }
    world.finish(plan.rest)?;
    world.check(plan)?;
    Ok(world)
}

/// Takes steps and operations away for as long as the plan still fails.
pub(crate) fn shrink(plan: &Plan, missing: Missing) -> Plan {
    let mut plan = plan.clone();
    loop {
        let smaller = candidates(&plan).find(|smaller| run(smaller, missing).is_err());
        match smaller {
            Some(smaller) => plan = smaller,
            None => return plan,
        }
    }
}

fn candidates(plan: &Plan) -> impl Iterator<Item = Plan> {
    let count = plan.steps.len();
    let halves = std::iter::successors(Some(count / 2), |size| Some(size / 2)).take_while(|size| *size > 1);
    let sizes: Vec<usize> = halves.chain([1]).collect();
    let runs = sizes.into_iter().flat_map(move |size| (0..count).step_by(size).map(move |start| (start, size)));
    let without_steps = runs.map(move |(start, size)| {
        let kept = plan.steps.iter().enumerate().filter(|(i, _)| !(start..start + size).contains(i));
        Plan { steps: kept.map(|(_, step)| step.clone()).collect(), ..plan.clone() }
    });
    let without_ops = (0..count).flat_map(move |number| {
        let ops = match &plan.steps[number] {
            Step::Commit { ops, .. } if ops.len() > 1 => ops.len(),
            _ => 0,
        };
        (0..ops).map(move |op| {
            let mut smaller = plan.clone();
            if let Step::Commit { ops, .. } = &mut smaller.steps[number] {
                ops.remove(op);
            }
            smaller
        })
    });
    let level = plan.skews.iter().any(|skew| *skew != 0);
    let without_skew = level.then(|| Plan { skews: vec![0; plan.nodes], ..plan.clone() });
    without_steps.chain(without_ops).chain(without_skew)
}

/// Runs a plan with all registers; a failure is shown at its shortest.
pub(crate) fn must_converge(plan: &Plan, seed: u64) -> World {
    match run(plan, Missing::Nothing) {
        Ok(world) => world,
        Err(_) => {
            let plan = shrink(plan, Missing::Nothing);
            let reason = run(&plan, Missing::Nothing).err().unwrap_or_default();
            panic!("SEED={seed} diverges:\n{plan}\n{reason}");
        }
    }
}
