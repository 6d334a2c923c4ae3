//! `duplex-faults`: the long run of the fault suite, for `make faults`.

use anyhow::Result;
use clap::Parser;
use duplex_lab::dice::seed;
use duplex_lab::faults::{Plan, run};

/// Lets faults strike two nodes under load, then checks that every transaction arrived once, in order and whole.
#[derive(Debug, Parser)]
struct Cli {
    /// How many faults.
    #[arg(long, default_value_t = 300)]
    faults: usize,
    /// What the schedule is drawn from; without it, the clock.
    #[arg(long)]
    seed: Option<u64>,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 4)]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let seed = cli.seed.map_or_else(seed, Ok)?;
    let plan = Plan { seed, faults: cli.faults };
    let report = run(plan).await?;
    println!("{}\n{report}\nseed {seed}: all is where it belongs, once", report.tally);
    report.is_whole(plan)?;
    Ok(())
}
