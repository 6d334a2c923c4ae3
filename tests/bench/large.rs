//! One large transaction: from its first write at the source until the target shows it whole.

use std::time::Instant;

use anyhow::Result;

use crate::path::Path;
use crate::report::{Bound, Report, median};
use crate::scale::Scale;
use crate::wide;

pub(crate) async fn measure(scale: &Scale, paths: &mut [&mut Path], report: &mut Report) -> Result<()> {
    let rows = scale.large_rows;
    // Whole transactions arrive whole; the older pipeline's rows arrive one by one, in the order of the heap.
    let cases = [
        (
            "large: INSERT until equal",
            wide::fill("wide", 1, rows),
            format!("exists (select from wide where id = {rows})"),
        ),
        (
            "large: UPDATE until equal",
            format!("update wide set {}", wide::CHANGE),
            format!("exists (select from wide where id = {rows} and a = {} + 1)", rows % 1000),
        ),
        ("large: DELETE until equal", "delete from wide".to_owned(), "not exists (select from wide)".to_owned()),
    ];
    let mut rates = vec![vec![Vec::new(); cases.len()]; paths.len()];
    for _ in 0..scale.rounds {
        for (path, rates) in paths.iter_mut().zip(&mut rates) {
            path.go().await?;
            let (source, target) = (path.source().connect().await?, path.target().connect().await?);
            awake(path).await?;
            for ((name, write, reached), rates) in cases.iter().zip(rates.iter_mut()) {
                source.exec("checkpoint").await?;
                target.exec("checkpoint").await?;
                let before = path.processors().await?;
                let started = Instant::now();
                source.exec(write).await?;
                let written = started.elapsed();
                path.reaches(&target, reached).await?;
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
        for ((name, ..), rates) in cases.iter().zip(&rates[index]) {
            report.more(name, "rows/s", Some(Bound::AsNative), path.system(), median(rates));
        }
    }
    Ok(())
}

/// Waits until a system that was at rest is at work again.
pub(crate) async fn awake(path: &Path) -> Result<()> {
    let (source, target) = (path.source().connect().await?, path.target().connect().await?);
    source.exec(&wide::fill("wide", 2_000_000_000, 1)).await?;
    path.reaches(&target, "exists (select from wide where id = 2000000000)").await?;
    source.exec("delete from wide where id = 2000000000").await?;
    path.reaches(&target, "not exists (select from wide where id = 2000000000)").await
}
