//! A short run of the fault suite; `make faults` is the long one.

use anyhow::{Context, Result};
use duplex_lab::dice::seed;
use duplex_lab::faults::{Plan, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn forty_faults_lose_double_and_tear_nothing() -> Result<()> {
    let seed = seed()?;
    let report = run(Plan { seed, faults: 40 }).await.with_context(|| format!("DUPLEX_SEED={seed} repeats it"))?;
    println!("{report}");
    assert!(report.tally.struck() > report.tally.missed() * 3, "most faults found nobody home: {report}");
    assert!(report.looks > 10, "the books were hardly read during the run: {report}");
    Ok(())
}
