//! The benchmarks: pg_duplex beside no capture, an outbox trigger, native logical replication and the older pipeline
//! (Debezium, Kafka Connect, JDBC sink), on the same machine and the same tables, in one run.
//!
//! | file | subject |
//! |---|---|
//! | `capture`, `bulk` | what capture costs whoever writes |
//! | `drain`, `apply` | the extension's two ends alone, without Kafka |
//! | `conflicts` | rows that both sides have changed, and what it costs others that keys are remembered |
//! | `backlog`, `large`, `latency`, `idle` | the whole path, through Kafka |
//! | `path/` | the systems that have a whole path |
//! | `wide`, `outbox` | the tables |
//! | `cpu` | processor time of processes |
//! | `scale` | how much of everything |
//! | `turns` | pgbench that takes turns with others of its kind |
//! | `report`, `plot`, `docs` | what comes out |

mod apply;
mod backlog;
mod bulk;
mod capture;
mod conflicts;
mod cpu;
mod docs;
mod drain;
mod idle;
mod large;
mod latency;
mod outbox;
mod path;
mod plot;
mod records;
mod report;
mod scale;
mod turns;
mod wide;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use crate::path::{Path, System};
use crate::report::Report;
use crate::scale::Scale;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measurement {
    /// pgbench with and without capture; processor time of the writing backend.
    Capture,
    /// INSERT … SELECT of many rows.
    Bulk,
    /// Reading and decoding the queue.
    Drain,
    /// Large transactions given to duplex.apply_chunk.
    Apply,
    /// Rows that both sides have changed, given to duplex.apply_chunk.
    Conflicts,
    /// Many single-row transactions that have piled up.
    Backlog,
    /// One large transaction until both sides are equal.
    Large,
    /// Commit to visible on the peer.
    Latency,
    /// Processor time while nothing happens.
    Idle,
}

impl Measurement {
    /// Those that need Kafka and relays.
    const PATHS: [Self; 4] = [Self::Latency, Self::Idle, Self::Backlog, Self::Large];
}

/// Measures pg_duplex beside its peers, and prints a table.
#[derive(Debug, Parser)]
struct Options {
    /// Small amounts: whether it works, not how fast it is.
    #[arg(long)]
    quick: bool,
    /// How often systems take turns.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Only these; may be repeated, or a list with commas. All if not given.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Measurement>,
    /// Also measure Debezium + Kafka Connect + JDBC sink, whose jars are in this folder (scripts/connect.sh fetches them).
    #[arg(long, value_name = "FOLDER")]
    older: Option<PathBuf>,
    /// Where table.md and plot.svg go.
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    output: PathBuf,
    /// Put the table and the plot into this folder's benchmarks.md and benchmarks.svg, too.
    #[arg(long, value_name = "FOLDER")]
    docs: Option<PathBuf>,
}

impl Options {
    fn wants(&self, measurement: Measurement) -> bool {
        self.only.is_empty() || self.only.contains(&measurement)
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let options = Options::parse();
    let mut scale = if options.quick { Scale::quick() } else { Scale::full() };
    scale.rounds = options.rounds.unwrap_or(scale.rounds);
    let started = Instant::now();
    let mut report = Report::new();
    writers(&options, &scale, &mut report).await?;
    if Measurement::PATHS.into_iter().any(|measurement| options.wants(measurement)) {
        paths(&options, &scale, &mut report).await?;
    }
    report.took(started.elapsed(), options.quick);
    println!("\n{}", report.to_text());
    std::fs::create_dir_all(&options.output)?;
    let table = options.output.join("table.md");
    std::fs::write(&table, report.to_markdown()).with_context(|| format!("{}", table.display()))?;
    std::fs::write(options.output.join("plot.svg"), plot::draw(&report))?;
    println!("table and plot: {}", options.output.display());
    if let Some(folder) = &options.docs {
        docs::write(folder, &report)?;
    }
    Ok(())
}

/// What happens inside one server.
async fn writers(options: &Options, scale: &Scale, report: &mut Report) -> Result<()> {
    if options.wants(Measurement::Capture) {
        step("capture");
        capture::measure(scale, report).await.context("capture")?;
    }
    if options.wants(Measurement::Bulk) {
        step("bulk");
        bulk::measure(scale, report).await.context("bulk")?;
    }
    if options.wants(Measurement::Drain) {
        step("drain");
        drain::measure(scale, report).await.context("drain")?;
    }
    if options.wants(Measurement::Apply) {
        step("apply");
        apply::measure(scale, report).await.context("apply")?;
    }
    if options.wants(Measurement::Conflicts) {
        step("conflicts");
        conflicts::measure(scale, report).await.context("conflicts")?;
    }
    Ok(())
}

/// What goes from one server to another. Systems take turns in each measurement; the older one, which is slower by
/// orders of magnitude and not at rest while it waits, comes last and alone.
async fn paths(options: &Options, scale: &Scale, report: &mut Report) -> Result<()> {
    {
        let mut duplex = Path::open(System::Duplex, None).await?;
        let mut native = Path::open(System::Native, None).await?;
        along(options, scale, &mut [&mut duplex, &mut native], report).await?;
        report.log(&format!("largest relay: {} KiB", duplex.peak().await?));
        report.memory(&mut duplex).await?;
    }
    if let Some(jars) = &options.older {
        let mut older = Path::open(System::Older, Some(jars)).await?;
        along(options, &scale.for_older(), &mut [&mut older], report).await?;
        report.memory(&mut older).await?;
    }
    Ok(())
}

async fn along(options: &Options, scale: &Scale, paths: &mut [&mut Path], report: &mut Report) -> Result<()> {
    if options.wants(Measurement::Latency) {
        step("latency");
        latency::measure(scale, paths, report).await.context("latency")?;
    }
    if options.wants(Measurement::Idle) {
        step("idle");
        idle::measure(scale, paths, report).await.context("idle")?;
    }
    if options.wants(Measurement::Backlog) {
        step("backlog");
        backlog::measure(scale, paths, report).await.context("backlog")?;
    }
    if options.wants(Measurement::Large) {
        step("large");
        large::measure(scale, paths, report).await.context("large")?;
    }
    Ok(())
}

fn step(name: &str) {
    println!("== {name}");
}
