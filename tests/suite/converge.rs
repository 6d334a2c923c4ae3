//! A short run of the convergence checker; `make converge` is the long one.

use anyhow::{Context, Result, ensure};
use duplex_lab::converge::{Kind, run};
use duplex_lab::dice::seed;

async fn rounds(kind: Kind, rounds: u64) -> Result<()> {
    let seed = seed()?;
    println!("rounds of seed {seed}: DUPLEX_SEED={seed} repeats them");
    let report = run(kind, seed, rounds, false).await.with_context(|| format!("DUPLEX_SEED={seed} repeats it"))?;
    println!("{report}");
    ensure!(report.committed as u64 > 3 * rounds, "hardly anything was written: {report}");
    ensure!(report.conflicts > 2 * rounds, "hardly anybody met anybody: {report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_equal_whatever_the_order_of_deliveries() -> Result<()> {
    rounds(Kind::Exact, 60).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_are_equal_whatever_happens_to_relays_and_streams() -> Result<()> {
    rounds(Kind::Wild, 2).await
}
