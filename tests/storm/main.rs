//! `duplex-storm`: a storm of as many seconds as one likes, for `make storm`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use duplex_lab::dice::seed;
use duplex_lab::storm::{Plan, run};

/// Lets many sessions write to few keys on every node at once, then compares the nodes.
#[derive(Debug, Parser)]
struct Cli {
    /// How long they write.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many nodes, one number a storm.
    #[arg(long, value_delimiter = ',', default_value = "2,3", value_parser = clap::value_parser!(u64).range(2..))]
    nodes: Vec<u64>,
    /// Sessions that write on each node.
    #[arg(long, default_value_t = 3)]
    writers: usize,
    /// How many milliseconds each rests after a transaction. With 0 they write more than can be applied meanwhile on a
    /// small machine, and how long the rest takes is not judged.
    #[arg(long, default_value_t = 10)]
    pace: u64,
    /// How many seconds after the last commit all nodes are to be equal.
    #[arg(long, default_value_t = 10)]
    within: u64,
    /// What they write is drawn from it; without it, the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// Nodes forget all that they may, all the time.
    #[arg(long)]
    forget: bool,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 4)]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let seed = cli.seed.map_or_else(seed, Ok)?;
    for nodes in cli.nodes {
        let Cli { seconds, writers, pace, .. } = cli;
        println!("{seconds} s on {nodes} nodes, {writers} writers each that rest {pace} ms, seed {seed}");
        let plan = Plan {
            writers: cli.writers,
            pace: Duration::from_millis(cli.pace),
            forgets: cli.forget,
            ..Plan::new(usize::try_from(nodes)?, Duration::from_secs(cli.seconds), seed)
        };
        let report = run(&plan).await.with_context(|| format!("the storm on {nodes} nodes of seed {seed}"))?;
        println!("{report}\n");
        let within = Duration::from_secs(cli.within);
        ensure!(cli.pace == 0 || report.until_equal <= within, "equal only after {:.1?}", report.until_equal);
    }
    Ok(())
}
