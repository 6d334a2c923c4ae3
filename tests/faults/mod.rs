//! Faults under load: everything that may die does, and then the books must balance.
//!
//! | module | subject |
//! |---|---|
//! | [`schedule`] | which faults, and after how many transactions; drawn from the seed alone |
//! | [`ledger`] | tables in which any loss, double or tear shows by arithmetic |
//! | [`load`] | sessions that write them, and know what they were told is committed |
//! | [`strike`] | carrying a fault out |
//! | [`tally`] | which faults struck, and which found nobody home |
//! | [`verdict`] | databases, streams and books against each other, after quiet |
//!
//! The suite runs a short schedule; `make faults FAULTS=300 SEED=…` a long one.

pub mod ledger;
pub mod load;
pub mod schedule;
pub mod strike;
pub mod tally;
pub mod verdict;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::try_join_all;
use tokio::task::JoinHandle;

use self::load::{Known, Manner, Place, Pulse, Writer};
use self::tally::Tally;
use self::verdict::Stream;
use crate::dice::Dice;
use crate::session::literal;
use crate::{Lab, Node, Relay, Session};

/// What each node's sessions are.
const SESSIONS: [Manner; 6] =
    [Manner::Plain, Manner::Plain, Manner::Plain, Manner::Careless, Manner::Prepared, Manner::Bulk];
/// A session rests this long after a transaction: the machine is to be busy with faults, not with load.
const PACE: Duration = Duration::from_millis(10);
/// The next step comes after this long in any case: a fault may keep all sessions waiting.
const LONGEST_STEP: Duration = Duration::from_secs(5);
/// A reader rests this long after a look at the books.
const BETWEEN_LOOKS: Duration = Duration::from_millis(300);
/// How long publishing and applying may stand still in the end.
const QUIET: Duration = Duration::from_secs(90);
/// A run of so many faults or more goes through the whole deck several times, and has to have struck with every kind.
const WHOLE_RUN: usize = 300;
/// The session that closes a node's books: by then nothing else writes.
const CLOSING_SESSION: u32 = 99;

/// A run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// What the schedule is drawn from.
    pub seed: u64,
    /// How many faults are to strike.
    pub faults: usize,
}

/// How a run went.
#[derive(Debug)]
pub struct Report {
    /// Faults, by kind.
    pub tally: Tally,
    /// What each node's stream holds.
    pub streams: Vec<Stream>,
    /// Looks at the books during the run.
    pub looks: usize,
    /// Commits with `synchronous_commit = off` that a crash took back from its own node.
    pub taken_back: usize,
    /// From the first fault to the last.
    pub time: Duration,
}

impl Report {
    /// Checks that a run of this plan has struck with every kind of fault, if it was long enough for that.
    ///
    /// # Errors
    /// If it was, and has not.
    pub fn is_whole(&self, plan: Plan) -> Result<()> {
        if plan.faults < WHOLE_RUN { Ok(()) } else { self.tally.has_all() }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} faults in {:.0?} ({} found nobody home), the books read {} times, {} careless commits taken back",
            self.tally.struck(),
            self.time,
            self.tally.missed(),
            self.looks,
            self.taken_back
        )?;
        for (i, stream) in self.streams.iter().enumerate() {
            let Stream { transactions, records, hellos } = stream;
            write!(out, "\nstream {}: {transactions} transactions in {records} records, {hellos} take-overs", i + 1)?;
        }
        Ok(())
    }
}

/// Runs a schedule under load and checks everything.
///
/// # Errors
/// If anything is lost, doubled, torn, out of order or stands still.
pub async fn run(plan: Plan) -> Result<Report> {
    println!("{} faults of seed {}: DUPLEX_SEED={} repeats the schedule", plan.faults, plan.seed, plan.seed);
    let lab = Lab::builder()
        .proxied()
        .crashes()
        // A kill in the middle of a write may leave half a page.
        .setting("full_page_writes", "on")
        // Often, so that crashes fall before, into and behind a rotation of the queue and a checkpoint.
        .setting("duplex.queue_segment_size", "256kB")
        .setting("checkpoint_timeout", "30s")
        // A session that sees its postmaster gone while compiled code runs panics at its end, in PostgreSQL's own JIT.
        .setting("jit", "off")
        .start()
        .await?;
    ledger::open(&lab).await?;
    let standbys: Vec<Relay> = lab.nodes().iter().map(|node| node.relay().standby()).collect();
    for standby in &standbys {
        standby.start()?;
    }
    let pulse = Arc::new(Pulse::default());
    let load = Load::begin(&lab, plan.seed, &pulse);

    let start = Instant::now();
    let outcome = suffer(&lab, &standbys, plan, &pulse, &load).await;
    let time = start.elapsed();
    pulse.stop();
    let (tally, (known, looks)) = match (outcome, load.end().await) {
        // Who was cut off by what went wrong may say so too.
        (Err(outcome), Err(load)) => bail!("{outcome:#}\nand the load: {load:#}"),
        (outcome, ended) => (outcome?, ended?),
    };
    close(&lab).await?;
    lab.settled_within(QUIET).await?;
    let streams = verdict::pass(&lab, &known).await?;
    for relay in lab.nodes().iter().map(Node::relay).chain(&standbys) {
        relay.process()?.check()?;
    }
    let taken_back = known.iter().flatten().map(|session| session.taken_back).sum();
    Ok(Report { tally, streams, looks, taken_back, time })
}

/// Goes through the schedule until so many faults struck. Returns which did and which missed.
async fn suffer(lab: &Lab, standbys: &[Relay], plan: Plan, pulse: &Pulse, load: &Load) -> Result<Tally> {
    let mut tally = Tally::default();
    let start = Instant::now();
    for (number, step) in schedule::draw(plan.seed, lab.nodes().len()).enumerate() {
        if tally.struck() >= plan.faults {
            break;
        }
        let (due, waiting) = (pulse.committed() + step.after, Instant::now());
        while pulse.committed() < due && waiting.elapsed() < LONGEST_STEP {
            // What went wrong is said when they are joined.
            ensure!(!load.has_failed(), "the load has ended before step {number}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let shown: Vec<String> = step.faults.iter().map(ToString::to_string).collect();
        println!("{:>7.2?}  step {number}, {} committed: {}", start.elapsed(), pulse.committed(), shown.join(" + "));
        let strikes = step.faults.iter().map(|&fault| strike::strike(lab, standbys, fault));
        let hits = try_join_all(strikes).await.with_context(|| format!("at step {number}\n{}", lab.logs()))?;
        for (fault, hit) in step.faults.iter().zip(hits) {
            tally.count(fault, hit);
        }
    }
    Ok(tally)
}

/// One more transaction on each node: all that is void in the streams is before it.
async fn close(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        node.exec(&format!(
            "insert into journal (node, session, seq, legs, bulk, note) values ({}, {CLOSING_SESSION}, 1, 0, 0, 'closing')",
            literal(node.name())
        ))
        .await?;
    }
    Ok(())
}

/// Writers and readers, at work.
struct Load {
    writers: Vec<Vec<JoinHandle<Result<Known>>>>,
    readers: Vec<JoinHandle<Result<usize>>>,
}

impl Load {
    fn begin(lab: &Lab, seed: u64, pulse: &Arc<Pulse>) -> Self {
        let mut number = 0;
        let mut writers = Vec::new();
        for node in lab.nodes() {
            let sessions = SESSIONS.iter().map(|&manner| {
                number += 1;
                let dice = Dice::of(seed, u64::from(number));
                let writer = Writer::new(Place::of(node), number, manner, PACE, dice, Arc::clone(pulse));
                tokio::spawn(writer.run())
            });
            writers.push(sessions.collect());
        }
        let readers = lab.nodes().iter().map(|node| {
            let (name, url, pulse) = (node.name().to_owned(), node.url_as("postgres"), Arc::clone(pulse));
            tokio::spawn(read(name, url, pulse))
        });
        Self { writers, readers: readers.collect() }
    }

    fn has_failed(&self) -> bool {
        self.writers.iter().flatten().any(JoinHandle::is_finished) || self.readers.iter().any(JoinHandle::is_finished)
    }

    async fn end(self) -> Result<(Vec<Vec<Known>>, usize)> {
        let mut looks = 0;
        for reader in self.readers {
            looks += reader.await??;
        }
        let mut known = Vec::new();
        for writers in self.writers {
            let mut node = Vec::new();
            for writer in writers {
                node.push(writer.await??);
            }
            known.push(node);
        }
        Ok((known, looks))
    }
}

/// Looks at a node's books again and again while everything around it dies. Returns how often it did.
async fn read(name: String, url: String, pulse: Arc<Pulse>) -> Result<usize> {
    let mut looks = 0;
    while !pulse.stopping() {
        if let Ok(session) = Session::connect(&url).await {
            while let (false, Ok(found)) = (pulse.stopping(), ledger::wrong(&session).await) {
                ensure!(found.is_none(), "a reader on {name} saw wrong books: {}", found.unwrap_or_default());
                looks += 1;
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(looks)
}
