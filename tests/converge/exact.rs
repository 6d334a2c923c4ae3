//! Rounds without relays: the test itself drains each queue and applies each stream, transaction by transaction, in the
//! very order of the plan. Hundreds a minute, and a plan that fails fails again, as far as real clocks allow.

use anyhow::{Context, Result, ensure};
use duplex_protocol::record::{Header, Kind, Record};
use tokio_postgres::Statement;

use super::counters::Sums;
use super::layouts::LAYOUTS;
use super::plan::{NODES, Plan, Step};
use super::{Outcome, SKEWS, verdict};
use crate::cluster::RELAY_ROLE;
use crate::dice::Dice;
use crate::{Lab, Node, Session};

/// A record of a stream.
struct Published {
    bytes: Vec<u8>,
    header: Header,
}

/// A session that applies one peer's stream.
struct Applier {
    session: Session,
    batch: Statement,
    /// How many records it has applied.
    applied: usize,
}

/// A node, its stream, and those who apply the others' here.
struct Seat {
    name: String,
    writer: Session,
    tap: Session,
    stream: Vec<Published>,
    /// Nobody for its own stream.
    appliers: Vec<Option<Applier>>,
}

/// Three nodes for any number of rounds; each has tables of its own.
pub struct Exact {
    seats: Vec<Seat>,
    round: usize,
    _lab: Lab,
}

impl Seat {
    async fn open(lab: &Lab, node: &Node) -> Result<Self> {
        let tap = node.connect_as(RELAY_ROLE).await?;
        let hello: Vec<u8> = tap.client().query_one("select hello from duplex.drain_open()", &[]).await?.get(0);
        let header = Record::decode(&hello)?.header;
        let mut appliers = Vec::new();
        for peer in lab.nodes() {
            let own = peer.name() == node.name();
            appliers.push(if own { None } else { Some(Applier::open(node, peer.name()).await?) });
        }
        let stream = vec![Published { bytes: hello, header }];
        Ok(Self { name: node.name().to_owned(), writer: node.connect().await?, tap, stream, appliers })
    }

    /// What it has committed goes into its stream.
    async fn publish(&mut self) -> Result<()> {
        loop {
            let rows = self.tap.client().query("select duplex.drain(0, 1048576)", &[]).await?;
            if rows.is_empty() {
                return Ok(());
            }
            let mut newest = None;
            for row in rows {
                let bytes: Vec<u8> = row.get(0);
                let header = Record::decode(&bytes)?.header;
                ensure!(header.chunk == 0 && header.last, "a transaction of more than one record: {header:?}");
                if header.kind == Kind::Transaction {
                    newest = Some(header.position);
                }
                self.stream.push(Published { bytes, header });
            }
            // A heartbeat is not waited for.
            let Some(newest) = newest else { return Ok(()) };
            let offset = (self.stream.len() - 1) as i64;
            let arguments = [newest.lsn.cast_signed(), newest.xid.cast_signed(), offset];
            let [lsn, xid, offset] = &arguments;
            self.tap.client().execute("select duplex.drain_confirm($1, $2, $3)", &[lsn, xid, offset]).await?;
        }
    }

    /// How far it has applied another's stream, or its own is.
    fn applied(&self, from: usize) -> usize {
        self.appliers[from].as_ref().map_or(self.stream.len(), |applier| applier.applied)
    }
}

impl Applier {
    async fn open(node: &Node, peer: &str) -> Result<Self> {
        let session = node.connect_as(RELAY_ROLE).await?;
        session.client().execute("select duplex.apply_open($1)", &[&peer]).await?;
        let batch = session.client().prepare("call duplex.apply_batch($1, $2)").await?;
        Ok(Self { session, batch, applied: 0 })
    }
}

impl Exact {
    /// Brings the nodes up.
    ///
    /// # Errors
    /// If a part does not start.
    pub async fn open() -> Result<Self> {
        let lab = Lab::builder().nodes(NODES).skewed(&SKEWS).without_relays().start().await?;
        let mut seats = Vec::new();
        for node in lab.nodes() {
            seats.push(Seat::open(&lab, node).await?);
        }
        Ok(Self { seats, round: 0, _lab: lab })
    }

    /// Runs a plan.
    ///
    /// # Errors
    /// If the nodes differ in the end, or anything goes wrong on the way.
    pub async fn run(&mut self, plan: &Plan) -> Result<Outcome> {
        self.round += 1;
        let tables: Vec<String> = (0..plan.layouts.len()).map(|i| format!("r{}_t{i}", self.round)).collect();
        let outcome = self.play(plan, &tables).await;
        if outcome.is_err() {
            self.leave_behind().await?;
        }
        for seat in &self.seats {
            for (table, layout) in tables.iter().zip(&plan.layouts) {
                let names = LAYOUTS[*layout].tables(table).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
                seat.writer.exec(&format!("drop table if exists {}", names.join(", "))).await?;
            }
        }
        outcome
    }

    async fn play(&mut self, plan: &Plan, tables: &[String]) -> Result<Outcome> {
        let before: Vec<usize> = self.seats.iter().map(|seat| seat.stream.len()).collect();
        let mut committed = [0; NODES];
        for seat in &self.seats {
            for (table, layout) in tables.iter().zip(&plan.layouts) {
                seat.writer.exec(&LAYOUTS[*layout].create(table)).await?;
            }
        }
        self.order(plan.causal).await?;
        if plan.careful {
            for applier in self.seats.iter().flat_map(|seat| seat.appliers.iter().flatten()) {
                applier.session.exec("select duplex.apply_careful()").await?;
            }
        }
        for step in &plan.steps {
            match step {
                Step::Commit { node, table, transaction, .. } => {
                    let layout = &LAYOUTS[plan.layouts[*table]];
                    let gid = format!("{}-{node}", tables[*table]);
                    let kept = transaction.run(&self.seats[*node].writer, layout, &tables[*table], &gid).await?;
                    committed[*node] += usize::from(kept);
                }
                Step::Publish(node) => self.seats[*node].publish().await?,
                Step::Deliver { to, from, most } => {
                    self.deliver(*to, *from, *most, plan.causal).await?;
                }
                Step::Maintain(node) => self.seats[*node].tap.exec("select duplex.maintain()").await?,
                Step::Nap(time) => tokio::time::sleep(*time).await,
                Step::Strike(_) => {}
            }
        }
        self.finish(plan).await?;
        for (seat, (before, committed)) in self.seats.iter().zip(before.iter().zip(committed)) {
            let published = seat.stream[*before..].iter().filter(|record| record.header.kind == Kind::Transaction);
            let published = published.count();
            ensure!(
                published == committed,
                "{} has committed {committed} transactions and published {published}",
                seat.name
            );
        }
        let writers: Vec<&Session> = self.seats.iter().map(|seat| &seat.writer).collect();
        for (table, layout) in tables.iter().zip(&plan.layouts) {
            let layout = &LAYOUTS[*layout];
            verdict::equal(&writers, layout, table).await?;
            if !layout.counts {
                continue;
            }
            let mut sums = Sums::default();
            for (seat, before) in self.seats.iter().zip(&before) {
                sums.add(seat.stream[*before..].iter().map(|record| record.bytes.as_slice()), table, "n")?;
            }
            sums.check(writers[0], table, "n").await?;
        }
        Ok(Outcome { committed: committed.iter().sum() })
    }

    /// Whether streams wait for each other: those that an operator holds are not waited for. Nobody but a relay heeds
    /// that they are held.
    async fn order(&self, causal: bool) -> Result<()> {
        for seat in &self.seats {
            seat.writer.exec("select duplex.resume_peer(name) from duplex.peers where paused_at is not null").await?;
            if !causal {
                seat.writer.exec("select duplex.pause_peer(name) from duplex.peers").await?;
            }
        }
        Ok(())
    }

    /// Applies the next records of a stream, as many as may be. Says whether there were any.
    async fn deliver(&mut self, to: usize, from: usize, most: usize, causal: bool) -> Result<bool> {
        let start = self.seats[to].applied(from);
        let stream = &self.seats[from].stream;
        let mut end = start;
        while to != from && end < stream.len() && end - start < most && (!causal || self.has_seen(to, &stream[end])) {
            end += 1;
        }
        if end == start {
            return Ok(false);
        }
        let records: Vec<Vec<u8>> = stream[start..end].iter().map(|record| record.bytes.clone()).collect();
        let offsets: Vec<i64> = (start..end).map(|offset| offset as i64).collect();
        let applier = self.seats[to].appliers[from].as_mut().context("no node applies its own stream")?;
        let call = applier.session.client().execute(&applier.batch, &[&records, &offsets]).await;
        call.with_context(|| format!("node {to} applying {} of node {from}", end - start))?;
        applier.applied = end;
        Ok(true)
    }

    /// Whether a node has applied all that the record's node had.
    fn has_seen(&self, to: usize, record: &Published) -> bool {
        record.header.seen.iter().all(|seen| {
            let of = self.seats.iter().position(|seat| seat.name == seen.node);
            of.is_none_or(|of| self.seats[to].applied(of) as u64 >= seen.next_offset)
        })
    }

    /// Publishes and applies all that is left, in an order that hangs on the seed.
    async fn finish(&mut self, plan: &Plan) -> Result<()> {
        let mut dice = Dice::of(plan.seed, 3);
        let mut pairs: Vec<(usize, usize)> = (0..NODES * NODES).map(|i| (i / NODES, i % NODES)).collect();
        loop {
            // Each time: what was applied must not have been captured.
            for seat in &mut self.seats {
                seat.publish().await?;
            }
            dice.shuffle(&mut pairs);
            let mut moved = false;
            for (to, from) in &pairs {
                moved |= self.deliver(*to, *from, dice.between(1, 3) as usize, plan.causal).await?;
            }
            if !moved {
                break;
            }
        }
        for to in 0..NODES {
            for (from, seat) in self.seats.iter().enumerate() {
                let applied = self.seats[to].applied(from);
                ensure!(
                    applied == seat.stream.len(),
                    "node {to} has applied {applied} of node {from}'s {}",
                    seat.stream.len()
                );
            }
        }
        Ok(())
    }

    /// After a failure: what is left of it concerns no other round.
    async fn leave_behind(&mut self) -> Result<()> {
        for seat in &mut self.seats {
            seat.writer.exec("rollback").await?;
            let left =
                seat.writer.rows("select gid from pg_prepared_xacts where database = current_database()").await?;
            for gid in left.into_iter().flatten().flatten() {
                seat.writer.exec(&format!("rollback prepared '{gid}'")).await?;
            }
            seat.publish().await?;
        }
        let ends: Vec<usize> = self.seats.iter().map(|seat| seat.stream.len()).collect();
        for seat in &mut self.seats {
            for (applier, end) in seat.appliers.iter_mut().zip(&ends) {
                let Some(applier) = applier.as_mut().filter(|applier| applier.applied < *end) else { continue };
                applier.session.exec("rollback").await?;
                applier.session.exec(&format!("select duplex.apply_skip({})", end - 1)).await?;
                applier.applied = *end;
            }
            seat.writer.exec("delete from duplex.apply_errors").await?;
        }
        Ok(())
    }

    /// What must hold after all rounds. Returns how many conflicts the nodes have met.
    ///
    /// # Errors
    /// If anything was parked or has failed.
    pub async fn close(self) -> Result<u64> {
        self.order(true).await?;
        let mut conflicts = 0;
        for seat in &self.seats {
            verdict::quiet(&seat.writer).await?;
            conflicts += verdict::conflicts(&seat.writer).await?;
        }
        Ok(conflicts)
    }
}
