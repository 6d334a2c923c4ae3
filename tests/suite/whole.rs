//! A reader never sees half a transaction, on either side, while both write.

use std::sync::atomic::{AtomicBool, Ordering};

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

/// Transfers between accounts of its own, small and large, the steps of each in statements of their own.
async fn transfer(node: &Node, first: i32, rounds: i32) -> Result<()> {
    let session = node.connect().await?;
    for round in 0..rounds {
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
    Ok(())
}

/// Looks without pause until told to stop; returns how many different states it saw.
async fn watch(node: &Node, done: &AtomicBool) -> Result<usize> {
    let session = node.connect().await?;
    let mut seen = std::collections::HashSet::new();
    while !done.load(Ordering::Relaxed) {
        let state = session.one(INVARIANT).await?;
        ensure!(state == "40000 0 0 0", "a reader on {} saw half a transaction: {state}", node.name());
        seen.insert(session.number("select count(*) from entry").await?);
    }
    Ok(seen.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_never_sees_half_a_transaction() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    let tables = ["left_account", "right_account", "entry", "counter_entry"];
    lab.create_everywhere(SCHEMA, &tables).await?;
    let done = AtomicBool::new(false);
    let load = async {
        let written = tokio::try_join!(transfer(a, 1, 150), transfer(b, 11, 150));
        let settled = lab.settled().await;
        done.store(true, Ordering::Relaxed);
        written.map(drop).and(settled)
    };
    let (loaded, on_a, on_b) = tokio::join!(load, watch(a, &done), watch(b, &done));
    loaded?;
    assert!(on_a? > 20 && on_b? > 20, "the readers saw the load while it ran");
    lab.converges(&tables).await?;
    assert_eq!(lab.transactions(a).await?, 150);
    assert_eq!(lab.transactions(b).await?, 150);
    lab.stop_relays()
}
