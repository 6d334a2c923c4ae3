//! Rounds with real relays and Kafka: sessions write on all nodes at once while streams are held and released,
//! connections cut and relays killed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::counters::Sums;
use super::layouts::LAYOUTS;
use super::plan::{NODES, Plan, Step, Strike, WRITERS};
use super::statements::Transaction;
use super::{Outcome, SKEWS, verdict};
use crate::proxy::Flow;
use crate::session::literal;
use crate::{Lab, Session, topic};

/// A session rests this long after a transaction.
const PACE: Duration = Duration::from_millis(3);
/// How long all may take to be published and applied in the end.
const QUIET: Duration = Duration::from_secs(120);

/// Three nodes with relays for any number of rounds; each has tables of its own.
pub struct Wild {
    lab: Lab,
    round: usize,
}

/// A transaction on its way to a session: its number in the round, layout, table.
type Order = (usize, usize, String, Transaction);

/// Sessions at work. Each gives the number of transactions in the end that its stream must hold.
struct Writers {
    orders: Vec<mpsc::UnboundedSender<Order>>,
    done: Vec<JoinHandle<Result<usize>>>,
}

impl Writers {
    async fn begin(lab: &Lab) -> Result<Self> {
        let mut writers = Self { orders: Vec::new(), done: Vec::new() };
        for i in 0..NODES * WRITERS {
            let session = lab.node(i / WRITERS).connect().await?;
            let (order, orders) = mpsc::unbounded_channel();
            writers.orders.push(order);
            writers.done.push(tokio::spawn(write(session, orders)));
        }
        Ok(writers)
    }

    /// Returns how many transactions each node has committed.
    async fn end(self) -> Result<[usize; NODES]> {
        drop(self.orders);
        let mut committed = [0; NODES];
        for (i, done) in self.done.into_iter().enumerate() {
            committed[i / WRITERS] += done.await??;
        }
        Ok(committed)
    }
}

async fn write(session: Session, mut orders: mpsc::UnboundedReceiver<Order>) -> Result<usize> {
    let mut committed = 0;
    while let Some((number, layout, table, transaction)) = orders.recv().await {
        let gid = format!("{table}-{number}");
        committed += usize::from(transaction.run(&session, &LAYOUTS[layout], &table, &gid).await?);
        tokio::time::sleep(PACE).await;
    }
    Ok(committed)
}

impl Wild {
    /// Brings the lab up.
    ///
    /// # Errors
    /// If a part does not start.
    pub async fn open() -> Result<Self> {
        let lab = Lab::builder().nodes(NODES).skewed(&SKEWS).proxied().start().await?;
        lab.running().await?;
        Ok(Self { lab, round: 0 })
    }

    /// Runs a plan.
    ///
    /// # Errors
    /// If the nodes differ in the end, or anything goes wrong on the way.
    pub async fn run(&mut self, plan: &Plan) -> Result<Outcome> {
        self.round += 1;
        let tables: Vec<String> = (0..plan.layouts.len()).map(|i| format!("r{}_t{i}", self.round)).collect();
        for (table, layout) in tables.iter().zip(&plan.layouts) {
            self.lab.exec_everywhere(&LAYOUTS[*layout].create(table)).await?;
        }
        let before = self.published().await?;
        let writers = Writers::begin(&self.lab).await?;
        let struck = self.play(plan, &tables, &writers).await;
        let committed = writers.end().await?;
        struck?;
        self.release().await?;
        self.lab.settled_within(QUIET).await?;
        let after = self.published().await?;
        for node in 0..NODES {
            let published = after[node] - before[node];
            let committed = committed[node];
            ensure!(
                published == committed,
                "node {node} has committed {committed} transactions and published {published}"
            );
        }
        let mut sessions = Vec::new();
        for node in self.lab.nodes() {
            sessions.push(node.connect().await?);
        }
        let sessions: Vec<&Session> = sessions.iter().collect();
        let mut streams = Vec::new();
        for node in self.lab.nodes() {
            streams.push(topic::read(self.lab.kafka(), node.name()).await?);
        }
        for (table, layout) in tables.iter().zip(&plan.layouts) {
            let layout = &LAYOUTS[*layout];
            verdict::equal(&sessions, layout, table).await?;
            if !layout.counts {
                continue;
            }
            let mut sums = Sums::default();
            for stream in &streams {
                sums.add(stream.iter().map(|record| record.value.as_slice()), table, "n")?;
            }
            sums.check(sessions[0], table, "n").await?;
        }
        for session in sessions {
            verdict::quiet(session).await?;
        }
        Ok(Outcome { committed: committed.iter().sum() })
    }

    async fn play(&self, plan: &Plan, tables: &[String], writers: &Writers) -> Result<()> {
        for (number, step) in plan.steps.iter().enumerate() {
            match step {
                Step::Commit { node, writer, table, transaction } => {
                    let order = (number, plan.layouts[*table], tables[*table].clone(), transaction.clone());
                    // One that has ended says why when it is joined.
                    let _ = writers.orders[node * WRITERS + writer].send(order);
                }
                Step::Nap(time) => tokio::time::sleep(*time).await,
                Step::Strike(strike) => {
                    self.strike(*strike, plan.causal).await.with_context(|| format!("{strike:?}"))?
                }
                Step::Publish(_) | Step::Deliver { .. } | Step::Maintain(_) => {}
            }
        }
        Ok(())
    }

    async fn strike(&self, strike: Strike, causal: bool) -> Result<()> {
        let node = |i: usize| self.lab.node(i);
        match strike {
            Strike::Hold { on, of } => {
                let call = format!("select duplex.pause_peer({}, others_wait => {causal})", literal(node(of).name()));
                node(on).exec(&call).await
            }
            Strike::Release { on, of } => {
                let name = literal(node(of).name());
                let held = "from duplex.peers where paused_at is not null and name =";
                node(on).exec(&format!("select duplex.resume_peer(name) {held} {name}")).await
            }
            Strike::CutDatabase(on) => {
                node(on).doors().database.cut();
                Ok(())
            }
            Strike::CutKafka(on) => {
                node(on).doors().kafka.cut();
                Ok(())
            }
            Strike::StallKafka(on, time) => {
                node(on).doors().kafka.set(Flow::Stalled);
                tokio::time::sleep(time).await;
                node(on).doors().kafka.set(Flow::Free);
                Ok(())
            }
            Strike::KillRelay(on) => {
                node(on).relay().kill()?;
                node(on).relay().start()
            }
            Strike::StopRelay(on) => {
                let status = node(on).relay().stop()?;
                ensure!(status.success(), "a relay ended with {status}:\n{}", node(on).relay().log_tail(20));
                node(on).relay().start()
            }
        }
    }

    /// Whatever is still held goes on.
    async fn release(&self) -> Result<()> {
        self.lab.exec_everywhere("select duplex.resume_peer(name) from duplex.peers where paused_at is not null").await
    }

    /// Transactions in each node's stream.
    async fn published(&self) -> Result<[usize; NODES]> {
        let mut published = [0; NODES];
        for (node, count) in self.lab.nodes().iter().zip(&mut published) {
            *count = self.lab.transactions(node).await?;
        }
        Ok(published)
    }

    /// What must hold after all rounds. Returns how many conflicts the nodes have met.
    ///
    /// # Errors
    /// If a relay does not end in good order.
    pub async fn close(self) -> Result<u64> {
        let mut conflicts = 0;
        for node in self.lab.nodes() {
            conflicts += verdict::conflicts(&node.connect().await?).await?;
        }
        self.lab.stop_relays()?;
        Ok(conflicts)
    }
}
