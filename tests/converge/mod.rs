//! The convergence checker: three real nodes, random transactions on few keys, streams that arrive in any order. Once
//! all is delivered the nodes are equal, row for row and version for version; nothing has stopped or is parked; and
//! each stream holds as many transactions as its node has committed.
//!
//! | module | subject |
//! |---|---|
//! | [`layouts`] | the tables: plain, with second unique keys of every kind, partitioned, with children, counters, merged columns |
//! | [`statements`] | transactions as applications make them |
//! | [`plan`] | what a round does, drawn from its seed, and how one that fails is cut down |
//! | [`exact`] | rounds without relays, in the very order of the plan: hundreds a minute |
//! | [`wild`] | rounds with relays, faults and many sessions at once |
//! | [`counters`] | what counters must come to |
//! | [`verdict`] | whether nodes are equal |
//!
//! The nodes' clocks are wrong, each by another time, in both kinds of rounds. `make converge ROUNDS=… SEED=…` runs as
//! many as one likes; the suite runs a few.

pub mod counters;
pub mod exact;
pub mod layouts;
pub mod plan;
pub mod statements;
pub mod verdict;
pub mod wild;

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use self::exact::Exact;
use self::plan::{Plan, smaller};
use self::wild::Wild;
use crate::Skew;

/// How wrong the nodes' clocks are. Between two of them lie many transactions of an exact round, and whoever applies
/// one from the future waits for so long.
const SKEWS: [Option<Skew>; plan::NODES] =
    [None, Some(Skew::Ahead(Duration::from_millis(12))), Some(Skew::Behind(Duration::from_millis(12)))];
/// How long a plan that fails is cut down.
const SHRINKING: Duration = Duration::from_secs(240);

/// The two kinds of rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Without relays.
    Exact,
    /// With relays and faults.
    Wild,
}

/// What a round came to.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// Transactions that the streams hold.
    pub committed: usize,
}

/// What rounds came to.
#[derive(Debug)]
pub struct Report {
    kind: Kind,
    /// How many there were.
    pub rounds: u64,
    /// Seeds of those that failed; only where they are counted.
    pub failed: Vec<u64>,
    /// Transactions that the streams hold.
    pub committed: usize,
    /// Conflicts on all nodes together.
    pub conflicts: u64,
    time: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, rounds, failed, committed, conflicts, time } = self;
        write!(
            out,
            "{kind:?}: {} of {rounds} rounds failed; {committed} transactions, {conflicts} conflicts, {time:.0?}",
            failed.len()
        )?;
        if !failed.is_empty() {
            write!(out, "\nseeds that failed: {failed:?}")?;
        }
        Ok(())
    }
}

/// Nodes of either kind.
enum Nodes {
    Exact(Exact),
    Wild(Wild),
}

impl Nodes {
    async fn open(kind: Kind) -> Result<Self> {
        Ok(match kind {
            Kind::Exact => Self::Exact(Box::pin(Exact::open()).await?),
            Kind::Wild => Self::Wild(Box::pin(Wild::open()).await?),
        })
    }

    async fn run(&mut self, plan: &Plan) -> Result<Outcome> {
        match self {
            // Boxed: futures within futures are more than the compiler cares to lay out.
            Self::Exact(exact) => Box::pin(exact.run(plan)).await,
            Self::Wild(wild) => Box::pin(wild.run(plan)).await,
        }
    }

    /// After a round that failed: nodes on which another one is not disturbed by it.
    async fn renewed(self) -> Result<Self> {
        match self {
            Self::Exact(_) => Ok(self),
            Self::Wild(wild) => {
                drop(wild);
                Self::open(Kind::Wild).await
            }
        }
    }

    async fn close(self) -> Result<u64> {
        match self {
            Self::Exact(exact) => exact.close().await,
            Self::Wild(wild) => wild.close().await,
        }
    }
}

fn drawn(kind: Kind, seed: u64) -> Plan {
    match kind {
        Kind::Exact => Plan::exact(seed),
        Kind::Wild => Plan::wild(seed),
    }
}

/// Runs so many rounds, of this seed and the next ones. The first that fails ends it, unless failures are only counted.
///
/// # Errors
/// The shortest plan found that fails like the first that failed.
pub async fn run(kind: Kind, seed: u64, rounds: u64, count: bool) -> Result<Report> {
    let start = Instant::now();
    let mut report = Report { kind, rounds, failed: Vec::new(), committed: 0, conflicts: 0, time: Duration::ZERO };
    let mut nodes = Nodes::open(kind).await?;
    for seed in seed..seed + rounds {
        let plan = drawn(kind, seed);
        match nodes.run(&plan).await {
            Ok(outcome) => report.committed += outcome.committed,
            Err(err) if count => {
                println!("seed {seed}: {}", format!("{err:#}").lines().next().unwrap_or_default());
                report.failed.push(seed);
                nodes = nodes.renewed().await?;
            }
            Err(err) => {
                println!("{kind:?} round of seed {seed} failed, and is cut down: {err:#}");
                let (plan, reason) = Box::pin(shrink(nodes.renewed().await?, plan, err)).await?;
                return Err(anyhow!("{kind:?} round of seed {seed} failed:\n{plan}\n{reason}"));
            }
        }
    }
    report.conflicts = nodes.close().await?;
    report.time = start.elapsed();
    Ok(report)
}

/// Takes away what can be taken away without the plan's success.
async fn shrink(mut nodes: Nodes, mut plan: Plan, err: anyhow::Error) -> Result<(Plan, String)> {
    let start = Instant::now();
    let mut reason = format!("{err:#}");
    'smaller: loop {
        for candidate in smaller(&plan) {
            if start.elapsed() > SHRINKING {
                return Ok((plan, reason));
            }
            if let Err(err) = nodes.run(&candidate).await {
                reason = format!("{err:#}");
                plan = candidate;
                nodes = nodes.renewed().await?;
                continue 'smaller;
            }
        }
        return Ok((plan, reason));
    }
}
