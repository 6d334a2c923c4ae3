//! One large transaction: from its first write at the source until the target shows it whole.

use std::time::Instant;

use anyhow::Result;

use crate::path::Path;
use crate::report::{Bound, Report, median};
use crate::scale::Scale;
use crate::wide;

/// What the transaction does.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Insert,
    Update,
    Delete,
}

/// What is measured, in this order. The last two find the keys remembered as deleted.
const CASES: [(&str, Kind, Option<Bound>); 5] = [
    ("large: INSERT until equal", Kind::Insert, Some(Bound::AsNative)),
    ("large: UPDATE until equal", Kind::Update, Some(Bound::AsNative)),
    ("large: DELETE until equal", Kind::Delete, Some(Bound::AsNative)),
    ("large: INSERT of the deleted keys again", Kind::Insert, None),
    ("large: DELETE of the same keys again", Kind::Delete, None),
];

pub(crate) async fn measure(scale: &Scale, paths: &mut [&mut Path], report: &mut Report) -> Result<()> {
    let rows = scale.large_rows;
    let mut rates = vec![vec![Vec::new(); CASES.len()]; paths.len()];
    for round in 0..scale.rounds {
        // Keys that nobody has seen before: what deleting and inserting the same ones again costs is measured by itself.
        let first = 1 + round as u32 * rows;
        for (path, rates) in paths.iter_mut().zip(&mut rates) {
            path.go().await?;
            let (source, target) = (path.source().connect().await?, path.target().connect().await?);
            awake(path).await?;
            for ((name, kind, _), rates) in CASES.iter().zip(rates.iter_mut()) {
                let (write, reached) = statements(*kind, first, rows);
                source.exec("checkpoint").await?;
                target.exec("checkpoint").await?;
                let before = path.processors().await?;
                let started = Instant::now();
                source.exec(&write).await?;
                let written = started.elapsed();
                path.reaches(&target, &reached).await?;
                let all = started.elapsed();
                rates.push(f64::from(rows) / all.as_secs_f64());
                report.log(&format!(
                    "{name}: written in {:.2} s, there in {:.2} s; {}",
                    written.as_secs_f64(),
                    all.as_secs_f64(),
                    path.spent(&before, rows).await?
                ));
                path.assert_equal(&source, &target, report).await?;
            }
            source.exec("vacuum wide").await?;
            target.exec("vacuum wide").await?;
            path.rest().await?;
        }
    }
    for (index, path) in paths.iter().enumerate() {
        for ((name, _, bound), rates) in CASES.iter().zip(&rates[index]) {
            report.more(name, "rows/s", *bound, path.system(), median(rates));
        }
    }
    Ok(())
}

/// The statement, and what shows at the target that all of it is there: whole transactions arrive whole, and the older
/// pipeline's rows arrive one by one, in the order of the heap.
fn statements(kind: Kind, first: u32, rows: u32) -> (String, String) {
    let last = first + rows - 1;
    match kind {
        Kind::Insert => (wide::fill("wide", first, rows), format!("exists (select from wide where id = {last})")),
        Kind::Update => (
            format!("update wide set {}", wide::CHANGE),
            format!("exists (select from wide where id = {last} and a = {} + 1)", last % 1000),
        ),
        Kind::Delete => ("delete from wide".to_owned(), "not exists (select from wide)".to_owned()),
    }
}

/// Waits until a system that was at rest is at work again.
pub(crate) async fn awake(path: &Path) -> Result<()> {
    let (source, target) = (path.source().connect().await?, path.target().connect().await?);
    source.exec(&wide::fill("wide", 2_000_000_000, 1)).await?;
    path.reaches(&target, "exists (select from wide where id = 2000000000)").await?;
    source.exec("delete from wide where id = 2000000000").await?;
    path.reaches(&target, "not exists (select from wide where id = 2000000000)").await
}
