//! What a system costs while nothing happens.

use anyhow::Result;

use crate::large::awake;
use crate::path::{Path, System};
use crate::report::{Bound, Report};
use crate::scale::Scale;

pub(crate) async fn measure(scale: &Scale, paths: &mut [&mut Path], report: &mut Report) -> Result<()> {
    for path in paths.iter_mut() {
        path.go().await?;
        awake(path).await?;
        let before = path.processors().await?;
        // Time itself is what is measured against.
        tokio::time::sleep(scale.idle).await;
        let after = path.processors().await?;
        let mut total = 0.0;
        for ((what, before), (_, after)) in before.iter().zip(&after) {
            let share = after.saturating_sub(*before).as_secs_f64() * 100.0 / scale.idle.as_secs_f64();
            report.log(&format!("{what}: {share:.2} % of a core"));
            // The broker is there anyway, for others too.
            if what != "Kafka" {
                total += share;
            }
        }
        // Ours and native's are both ends'; one relay with its sessions is half of that.
        let (share, bound) = match path.system() {
            System::Duplex => (total / 2.0, Some(Bound::AtMost(3.0))),
            System::Native | System::Older | System::Bare | System::Outbox => (total, None),
        };
        report.less(
            "idle: one relay with its sessions (others: all processes)",
            "% of a core",
            bound,
            path.system(),
            share,
        );
        path.rest().await?;
    }
    Ok(())
}
