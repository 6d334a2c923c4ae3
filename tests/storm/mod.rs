//! A storm: many writers on every node, all kinds of statements on few keys, as fast as they can. No stream ever stops, and
//! soon after the last commit all nodes are equal, row for row and version for version.
//!
//! | module | subject |
//! |---|---|
//! | [`tables`] | the tables, by what decides over their rows |
//! | [`statements`] | transactions as applications make them |
//! | [`writer`] | sessions that make them |
//! | [`watch`] | the state of every stream, looked at all the time |
//! | [`report`] | what a storm came to |
//!
//! The suite has short ones; `make storm SECONDS=60 NODES=3 SEED=…` lasts as long as one likes.

pub mod report;
pub mod statements;
pub mod tables;
pub mod watch;
pub mod writer;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::{try_join_all, try_join3};

use self::report::{NodeReport, Report};
use self::tables::{POLICIES, Policy, TALLIES, Table};
use self::writer::{Writer, Written};
use crate::converge::counters::Sums;
use crate::converge::verdict;
use crate::dice::Dice;
use crate::{Lab, Session, topic};

/// A storm.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many nodes.
    pub nodes: usize,
    /// Sessions that write on each.
    pub writers: usize,
    /// How long they write.
    pub lasting: Duration,
    /// A session rests so long after a transaction. Without rest they write more than a machine that runs everything can
    /// apply meanwhile, and the streams are far behind each other: most meetings are conflicts.
    pub pace: Duration,
    /// What they write is drawn from it.
    pub seed: u64,
    /// Which tables there are.
    pub policies: Vec<Policy>,
    /// Whether nodes forget all that they may, all the time.
    pub forgets: bool,
}

impl Plan {
    /// A storm on all tables, with two writers a node that never rest.
    pub fn new(nodes: usize, lasting: Duration, seed: u64) -> Self {
        let policies = POLICIES.to_vec();
        Self { nodes, writers: 2, lasting, pace: Duration::ZERO, seed, policies, forgets: false }
    }

    fn tables(&self) -> Vec<Table> {
        self.policies.iter().flat_map(|policy| policy.tables()).collect()
    }

    fn has_tallies(&self) -> bool {
        self.policies.contains(&Policy::Counters)
    }
}

/// Lets a storm rage, waits until all is applied, and compares.
///
/// # Errors
/// If a stream stops, anything cannot be applied, nodes differ in the end, or a counter is not the sum of all additions.
pub async fn run(plan: &Plan) -> Result<Report> {
    let lab = Lab::builder().nodes(plan.nodes).heartbeats(if plan.forgets { "100ms" } else { "5s" }).start().await?;
    let tables = plan.tables();
    let create: Vec<&str> = tables.iter().map(|table| table.create).collect();
    lab.exec_everywhere(&create.join("; ")).await?;
    if plan.has_tallies() {
        let last = TALLIES - 1;
        lab.node(0).exec(&format!("insert into tally select g, 0 from generate_series(0, {last}) g")).await?;
    }
    lab.settled().await?;
    lab.running().await?;
    let (written, looks) = rage(&lab, plan, &tables).await?;
    let last_commit = written.iter().filter_map(|writer| writer.last_commit).max().context("nothing was committed")?;
    lab.settled().await?;
    let mut sessions = Vec::new();
    for node in lab.nodes() {
        sessions.push(node.connect().await?);
    }
    let sessions: Vec<&Session> = sessions.iter().collect();
    for table in &tables {
        verdict::equal_rows(&sessions, table.name, &["id"]).await?;
    }
    let until_equal = last_commit.elapsed();
    counters(&lab, &sessions, &tables, plan, &written).await?;
    let mut nodes = Vec::new();
    for (number, (node, session)) in lab.nodes().iter().zip(&sessions).enumerate() {
        verdict::quiet(session).await?;
        let of_node = &written[number * plan.writers..(number + 1) * plan.writers];
        nodes.push(NodeReport::of(node.name(), of_node, session).await?);
    }
    lab.stop_relays()?;
    Ok(Report { nodes, lasting: plan.lasting, until_equal, looks })
}

/// Everybody writes until the time is over. Returns what each writer has done, and how often the streams were looked at.
async fn rage(lab: &Lab, plan: &Plan, tables: &[Table]) -> Result<(Vec<Written>, usize)> {
    let until = Instant::now() + plan.lasting;
    let (mut writers, mut watchers, mut sweepers) = (Vec::new(), Vec::new(), Vec::new());
    for node in lab.nodes() {
        for _ in 0..plan.writers {
            let dice = Dice::of(plan.seed, writers.len() as u64 + 1);
            let writer = Writer { session: node.connect().await?, dice, tables, pace: plan.pace };
            writers.push(writer.write(until));
        }
        watchers.push(watch::watch(node.name(), node.connect().await?, until));
        if plan.forgets {
            sweepers.push(watch::sweep(node.connect().await?, until));
        }
    }
    let all = try_join3(try_join_all(writers), try_join_all(watchers), try_join_all(sweepers)).await;
    let (written, looks, _) = all.map_err(|err| err.context(format!("in the storm\n{}", lab.logs())))?;
    Ok((written, looks.into_iter().sum()))
}

/// Counters are the sum of all that was added: as the streams hold it, and the tallies also as their writers know it.
async fn counters(lab: &Lab, sessions: &[&Session], tables: &[Table], plan: &Plan, written: &[Written]) -> Result<()> {
    let mut streams = Vec::new();
    for node in lab.nodes() {
        streams.push(topic::read(lab.kafka(), node.name()).await?);
    }
    for table in tables {
        let Some(column) = table.counter else { continue };
        let mut sums = Sums::default();
        for stream in &streams {
            sums.add(stream.iter().map(|record| record.value.as_slice()), table.name, column)?;
        }
        sums.check(sessions[0], table.name, column).await?;
    }
    if plan.has_tallies() {
        for id in 0..TALLIES {
            let sum: i64 = written.iter().map(|writer| writer.tallies[id]).sum();
            let shown = sessions[0].number(&format!("select n from tally where id = {id}")).await?;
            ensure!(shown == sum, "tally {id} is {shown}, and {sum} was added to it");
        }
    }
    Ok(())
}
