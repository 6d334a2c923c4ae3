//! From the moment a commit returns at the source to the moment a reader at the target sees the row; the reader looks
//! each millisecond. 200 single-row transactions a second, durable.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use duplex_lab::Session;

use crate::backlog::empty;
use crate::large::awake;
use crate::path::{PATIENCE, Path};
use crate::report::{Bound, Report, percentile};
use crate::scale::Scale;
use crate::wide;

/// 200 a second.
const EVERY: Duration = Duration::from_millis(5);
/// Transactions before those that count.
const WARM_UP: usize = 200;

pub(crate) async fn measure(scale: &Scale, paths: &mut [&mut Path], report: &mut Report) -> Result<()> {
    for path in paths.iter_mut() {
        path.go().await?;
        awake(path).await?;
        let count = WARM_UP + scale.timed as usize;
        let reader = tokio::spawn(read(path.target().connect().await?, count));
        let committed = write(path.source().connect().await?, count).await?;
        let seen = reader.await??;
        let delays: Vec<f64> = (committed.iter().zip(&seen).skip(WARM_UP))
            .map(|(committed, seen)| seen.saturating_duration_since(*committed).as_secs_f64() * 1e3)
            .collect();
        let system = path.system();
        report.less(
            "latency: commit to visible, median",
            "ms",
            Some(Bound::AtMost(10.0)),
            system,
            percentile(&delays, 50),
        );
        report.less(
            "latency: commit to visible, p99",
            "ms",
            Some(Bound::AtMost(40.0)),
            system,
            percentile(&delays, 99),
        );
        report.log(&format!("longest of {}: {:.1} ms", delays.len(), percentile(&delays, 100)));
        path.rest().await?;
        empty(path).await?;
    }
    Ok(())
}

/// Writes rows 1 to `count` in time, and says when each commit had returned.
async fn write(session: Session, count: usize) -> Result<Vec<Instant>> {
    let client = session.client();
    let insert = client.prepare(&format!("insert into wide select {}", wide::values("$1::int8"))).await?;
    let mut committed = Vec::with_capacity(count);
    let start = tokio::time::Instant::now();
    for i in 0..count {
        tokio::time::sleep_until(start + EVERY * u32::try_from(i)?).await;
        client.execute(&insert, &[&(i64::try_from(i)? + 1)]).await?;
        committed.push(Instant::now());
    }
    Ok(committed)
}

/// Looks each millisecond for rows that were not there before.
async fn read(session: Session, count: usize) -> Result<Vec<Instant>> {
    let client = session.client();
    let look = client.prepare("select id from wide where id > $1 order by id").await?;
    let mut seen = Vec::with_capacity(count);
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut newest = Instant::now();
    while seen.len() < count {
        ticks.tick().await;
        let rows = client.query(&look, &[&i64::try_from(seen.len())?]).await?;
        let now = Instant::now();
        for row in rows {
            ensure!(row.get::<_, i64>(0) == i64::try_from(seen.len())? + 1, "rows came out of order");
            seen.push(now);
            newest = now;
        }
        ensure!(newest.elapsed() < PATIENCE, "row {} does not come", seen.len() + 1);
    }
    Ok(seen)
}
