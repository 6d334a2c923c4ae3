//! Random rounds: with all registers none diverges, without one some do.

use std::time::Instant;

use crate::plan::{Plan, Step, Wanted};
use crate::run::{must_converge, run, shrink};
use crate::table::Missing;

const STEPS: usize = 60;

/// Runs rounds from `seed` on; says how many transactions, conflicts and things forgotten there were.
fn converge(rounds: u64, seed: u64) -> [usize; 3] {
    let mut transactions = 0;
    let (mut conflicts, mut forgotten) = (0, 0);
    for seed in seed..seed + rounds {
        let world = must_converge(&Plan::random(seed, STEPS), seed);
        let all = world.streams.iter().flatten();
        transactions += all.filter(|transaction| !transaction.changes.is_empty()).count();
        conflicts += world.nodes.iter().flat_map(|node| node.table.conflicts.values()).sum::<usize>();
        forgotten += world.nodes.iter().map(|node| node.table.forgotten).sum::<usize>();
    }
    [transactions, conflicts, forgotten]
}

/// A hundred thousand rounds, or as many as wanted: `make converge-model ROUNDS=1000000 SEED=7`.
#[test]
fn all_nodes_end_up_equal() {
    let number = |name: &str, default: u64| {
        std::env::var(name)
            .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
    };
    let (rounds, seed) = (number("ROUNDS", 100_000), number("SEED", 1));
    let started = Instant::now();
    let [transactions, conflicts, forgotten] = converge(rounds, seed);
    assert!(transactions > 3 * rounds as usize, "{transactions} transactions are too few");
    assert!(conflicts > 3 * rounds as usize, "{conflicts} conflicts are too few");
    assert!(forgotten > rounds as usize, "{forgotten} things forgotten are too few");
    println!(
        "{rounds} rounds from seed {seed}: none diverged; {transactions} transactions, {conflicts} conflicts, {forgotten} \
         things forgotten, {:.1} s",
        started.elapsed().as_secs_f64()
    );
}

/// How many of three thousand rounds diverge without something.
fn diverging(missing: Missing) -> usize {
    (0..3_000).filter(|seed| run(&Plan::random(*seed, STEPS), missing).is_err()).count()
}

#[test]
fn without_any_one_register_some_rounds_diverge() {
    for missing in [
        Missing::Tombstones,
        Missing::Residuals,
        Missing::Claims,
        Missing::LosersClaims,
        Missing::RowRegister,
        Missing::ColumnVersions,
        Missing::IndexesTogether,
        Missing::Order,
        Missing::Truncates,
        Missing::TiesByName,
        Missing::ClockGuard,
        Missing::LastTick,
        Missing::LeastHeld,
        Missing::KeptResiduals,
    ] {
        let count = diverging(missing);
        println!("without {missing:?}: {count} of 3000 rounds diverge");
        assert!(count > 0, "nothing diverges without {missing:?}: the model does not test it");
    }
}

/// Readers need causal order, so that an answer never shows before its question, and so does column merge. That nodes
/// end up equal where the later version wins as a whole row does not hang on it.
#[test]
fn without_causal_order_whole_rows_converge() {
    for seed in 0..3_000 {
        let plan = Plan::random(seed, STEPS);
        if !plan.spec.merge {
            run(&plan, Missing::CausalOrder).unwrap_or_else(|err| panic!("SEED={seed}: {err}\n{plan}"));
        }
    }
}

/// A failure is shown by a history that a person can follow.
#[test]
fn a_failing_history_is_cut_short() {
    let plan = (0..).map(|seed| Plan::random(seed, STEPS)).find(|plan| run(plan, Missing::Tombstones).is_err());
    let plan = plan.expect("some round diverges without tombstones");
    let short = shrink(&plan, Missing::Tombstones);
    assert!(run(&short, Missing::Tombstones).is_err());
    assert!(run(&short, Missing::Nothing).is_ok());
    let commits = short.steps.iter().filter(|step| matches!(step, Step::Commit { .. })).count();
    assert!(commits <= 4, "{commits} transactions are left: {short}");
}

/// Writes that each saw all that came before meet no conflict, wherever they are made.
#[test]
fn sequential_writes_are_no_conflicts() {
    for seed in 0..1_000 {
        let mut plan = Plan::random(seed, 30);
        let steps = std::mem::take(&mut plan.steps);
        for step in steps {
            let Step::Commit { node: from, mut ops } = step else { continue };
            // The model looks for conflicts row by row; a swap under a deferred constraint is none only at its end.
            ops.retain(|op| op.wanted != Wanted::Swap);
            plan.steps.extend([Step::Commit { node: from, ops }, Step::Tick(20)]);
            plan.steps.extend((0..plan.nodes).map(|to| Step::Deliver { to, from }));
        }
        let world = must_converge(&plan, seed);
        for node in &world.nodes {
            assert!(node.table.conflicts.is_empty(), "SEED={seed}: {:?}\n{plan}", node.table.conflicts);
        }
    }
}
