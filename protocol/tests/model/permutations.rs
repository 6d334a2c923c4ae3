//! Every order in which a small history can arrive.

use crate::node::{Node, Transaction};
use crate::plan::{Plan, Step};
use crate::run::World;
use crate::table::Missing;

/// Histories of more records than this are cut: 7 make up to 5,040 orders.
const TRANSACTIONS: usize = 7;

/// Lets an observer receive the streams in every order that keeps each origin's own (and causal order, if `causal`),
/// and calls `arrived` at the end of each.
///
/// Column merge needs causal order, too: an UPDATE that comes before the row which it replaced brings columns along of
/// which nobody there knows the version, and two rows may show one unique value until it does.
fn every_order(observer: &Node, streams: &[Vec<Transaction>], causal: bool, arrived: &mut impl FnMut(&Node)) {
    let mut done = true;
    for (origin, stream) in streams.iter().enumerate() {
        let Some(transaction) = stream.get(observer.applied[origin]) else { continue };
        done = false;
        if causal && !observer.has_seen(transaction) {
            continue;
        }
        let mut next = observer.clone();
        next.receive(transaction).expect("no two rows hold one unique value");
        every_order(&next, streams, causal, arrived);
    }
    if done {
        arrived(observer);
    }
}

fn orders(seeds: std::ops::Range<u64>, causal: bool) -> usize {
    let mut orders = 0;
    for seed in seeds {
        let plan = Plan::random(seed, 24);
        if plan.spec.merge && !causal {
            continue;
        }
        let mut world = World::new(&plan, Missing::Nothing);
        for step in &plan.steps {
            let full = world.streams.iter().map(Vec::len).sum::<usize>() >= TRANSACTIONS;
            if full && matches!(step, Step::Commit { .. } | Step::Beat { .. }) {
                break;
            }
            world.step(step, &plan).unwrap_or_else(|err| panic!("SEED={seed}: {err}"));
        }
        let mut first = None;
        let observer = Node::new(plan.nodes, plan.spec, Missing::Nothing, plan.rows);
        every_order(&observer, &world.streams, causal, &mut |observer| {
            orders += 1;
            let rows = observer.table.visible();
            let first = first.get_or_insert_with(|| rows.clone());
            assert_eq!(*first, rows, "SEED={seed}: the rows hang on the order of arrival\n{:#?}", world.streams);
        });
        world.finish(plan.rest).and_then(|()| world.check(&plan)).unwrap_or_else(|err| panic!("SEED={seed}: {err}"));
        assert_eq!(first, Some(world.nodes[0].table.visible()), "SEED={seed}: an observer differs from the nodes");
    }
    orders
}

#[test]
fn every_order_of_arrival_ends_alike() {
    let causal = orders(0..150, true);
    let any = orders(0..150, false);
    assert!(causal > 1_000 && any > 1_000, "only {causal} and {any} orders");
}

#[test]
fn every_order_of_arrival_of_many_histories_ends_alike() {
    let (causal, any) = (orders(1_000..6_000, true), orders(1_000..6_000, false));
    println!(
        "5000 histories: {causal} causal orders of arrival end alike, and where rows win whole {any} that are not causal"
    );
}
