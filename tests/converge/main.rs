//! `duplex-converge`: as many rounds of the convergence checker as one likes, for `make converge`.

use anyhow::{Result, ensure};
use clap::Parser;
use duplex_lab::converge::{Kind, run};
use duplex_lab::dice::seed;

/// Lets three nodes make random transactions and apply each other's in random order, and compares them.
#[derive(Debug, Parser)]
struct Cli {
    /// Rounds without relays, in an exact order of deliveries.
    #[arg(long, default_value_t = 300)]
    rounds: u64,
    /// Rounds with relays, faults and many sessions at once.
    #[arg(long, default_value_t = 12)]
    wild: u64,
    /// The first round's seed; the next ones follow. Without it, the clock's.
    #[arg(long)]
    seed: Option<u64>,
    /// Goes on after a round that fails, and says how many did.
    #[arg(long)]
    count: bool,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 4)]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let seed = cli.seed.map_or_else(seed, Ok)?;
    println!("rounds from seed {seed} on");
    let mut failed = 0;
    for (kind, rounds) in [(Kind::Exact, cli.rounds), (Kind::Wild, cli.wild)] {
        if rounds > 0 {
            let report = run(kind, seed, rounds, cli.count).await?;
            println!("{report}");
            failed += report.failed.len();
        }
    }
    ensure!(failed == 0, "{failed} rounds failed");
    Ok(())
}
