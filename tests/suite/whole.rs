//! A reader never sees half a transaction, on either side, while both write.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Result, ensure};
use duplex_lab::{Lab, Node};

const SCHEMA: &str = "
    create table left_account (id int primary key, amount int not null);
    create table right_account (id int primary key, amount int not null);
    create table entry (id int primary key, amount int not null);
    create table counter_entry (id int primary key, amount int not null);
    insert into left_account select i, 1000 from generate_series(1, 20) i;
    insert into right_account select i, 1000 from generate_series(1, 20) i;
";

/// One look at all tables: what no whole number of transactions can change.
const INVARIANT: &str = "
    select (select sum(amount) from left_account) + (select sum(amount) from right_account) || ' '
        || (select coalesce(sum(amount), 0) from entry) + (select coalesce(sum(amount), 0) from counter_entry) || ' '
        || (select count(*) from entry) - (select count(*) from counter_entry) || ' '
        || (select count(*) from entry) % 2
";

/// How many different states each reader is to have seen while the load ran; more than a few rounds of it, at least.
const STATES: usize = 20;
const ROUNDS: i32 = 150;
const MOST_ROUNDS: i32 = 10_000;

/// Transfers between accounts of its own, small and large, the steps of each in statements of their own, until the readers
/// have seen enough of them, however slow they are. Returns how many transfers that took.
async fn transfer(node: &Node, first: i32, seen: &[AtomicUsize; 2]) -> Result<usize> {
    let session = node.connect().await?;
    let enough = || seen.iter().all(|states| states.load(Ordering::Relaxed) > STATES);
    let mut rounds = 0;
    for round in 0..MOST_ROUNDS {
        if round >= ROUNDS && enough() {
            break;
        }
        rounds += 1;
        let (from, to) = (first + round % 10, first + (round * 7 + 3) % 10);
        let rows = if round % 50 == 49 { 20_000 } else { 2 };
        let base = (first / 10) * 500_000_000 + round * 20_000;
        session
            .exec(&format!(
                "begin;
                 update left_account set amount = amount - {round} where id = {from};
                 insert into entry select {base} + i, i + {round} from generate_series(1, {rows}) i;
                 update right_account set amount = amount + {round} where id = {to};
                 insert into counter_entry select {base} + i, -i - {round} from generate_series(1, {rows}) i;
                 commit"
            ))
            .await?;
    }
    Ok(rounds)
}

/// Looks without pause until told to stop, and says how many different states it has seen.
async fn watch(node: &Node, done: &AtomicBool, states: &AtomicUsize) -> Result<()> {
    let session = node.connect().await?;
    let mut seen = std::collections::HashSet::new();
    while !done.load(Ordering::Relaxed) {
        let state = session.one(INVARIANT).await?;
        ensure!(state == "40000 0 0 0", "a reader on {} saw half a transaction: {state}", node.name());
        seen.insert(session.number("select count(*) from entry").await?);
        states.store(seen.len(), Ordering::Relaxed);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_never_sees_half_a_transaction() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    let tables = ["left_account", "right_account", "entry", "counter_entry"];
    lab.create_everywhere(SCHEMA, &tables).await?;
    let (done, seen) = (AtomicBool::new(false), [AtomicUsize::new(0), AtomicUsize::new(0)]);
    let load = async {
        let written = tokio::try_join!(transfer(a, 1, &seen), transfer(b, 11, &seen));
        let settled = lab.settled().await;
        done.store(true, Ordering::Relaxed);
        settled.and(written)
    };
    let (loaded, on_a, on_b) = tokio::join!(load, watch(a, &done, &seen[0]), watch(b, &done, &seen[1]));
    on_a.and(on_b)?;
    let (of_a, of_b) = loaded?;
    assert!(seen.iter().all(|states| states.load(Ordering::Relaxed) > STATES), "the readers saw the load while it ran");
    lab.converges(&tables).await?;
    assert_eq!(lab.transactions(a).await?, of_a);
    assert_eq!(lab.transactions(b).await?, of_b);
    lab.stop_relays()
}
