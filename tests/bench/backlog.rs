//! Many single-row transactions that piled up while the system was at rest: how fast they are caught up, each applied as
//! a transaction of its own. From the start of the system's own processes to the last row at the target.

use std::time::Instant;

use anyhow::Result;

use crate::path::Path;
use crate::report::{Bound, Report, median};
use crate::scale::Scale;
use crate::wide;

pub(crate) async fn measure(scale: &Scale, paths: &mut [&mut Path], report: &mut Report) -> Result<()> {
    let transactions = scale.backlog;
    let each =
        |statement: &str| format!("do $$ begin for n in 1..{transactions} loop {statement}; commit; end loop; end $$");
    let insert = each(&format!("insert into wide select {}", wide::values("n")));
    let update = each(&format!("update wide set {} where id = n", wide::CHANGE));
    let changed = format!("exists (select from wide where id = {transactions} and a = {} + 1)", transactions % 1000);
    let cases = [
        (
            "backlog: single-row INSERT transactions",
            insert,
            format!("exists (select from wide where id = {transactions})"),
        ),
        ("backlog: single-row UPDATE transactions", update, changed),
    ];
    let mut rates = vec![vec![Vec::new(); cases.len()]; paths.len()];
    for _ in 0..scale.rounds {
        for (path, rates) in paths.iter_mut().zip(&mut rates) {
            let (source, target) = (path.source().connect().await?, path.target().connect().await?);
            source.exec("set synchronous_commit = off").await?;
            for ((name, write, reached), rates) in cases.iter().zip(rates.iter_mut()) {
                source.exec(write).await?;
                source.exec("checkpoint").await?;
                target.exec("checkpoint").await?;
                let before = path.processors().await?;
                let started = Instant::now();
                path.go().await?;
                path.reaches(&target, reached).await?;
                rates.push(f64::from(transactions) / started.elapsed().as_secs_f64());
                report.log(&format!("{name}: {}", path.spent(&before, transactions).await?));
                path.assert_equal(&source, &target, report).await?;
                path.rest().await?;
            }
            empty(path).await?;
        }
    }
    for (index, path) in paths.iter().enumerate() {
        for ((name, ..), rates) in cases.iter().zip(&rates[index]) {
            report.more(name, "tx/s", Some(Bound::AtLeast(20_000.0)), path.system(), median(rates));
        }
    }
    Ok(())
}

/// Empties the table on both sides, in the system's own way, and leaves it at rest.
pub(crate) async fn empty(path: &mut Path) -> Result<()> {
    path.go().await?;
    let (source, target) = (path.source().connect().await?, path.target().connect().await?);
    source.exec("delete from wide").await?;
    path.reaches(&target, "not exists (select from wide)").await?;
    source.exec("vacuum wide").await?;
    target.exec("vacuum wide").await?;
    path.rest().await
}
