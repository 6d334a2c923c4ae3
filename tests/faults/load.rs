//! Sessions that write a node's books for as long as they are let, through every crash of their server.
//!
//! A session whose connection broke does not know whether its last transaction was committed. It asks the books: the
//! journal's row is in the same transaction as all else, so it is there or nothing is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::ledger::{ACCOUNTS, Entry};
use crate::dice::Dice;
use crate::session::literal;
use crate::{Node, PATIENCE, Session};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// How a session commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Durably: what was acknowledged must never be missing.
    Plain,
    /// `synchronous_commit = off`: a crash may take back what was acknowledged, on this node and then on every node.
    Careless,
    /// PREPARE TRANSACTION, some time, COMMIT PREPARED.
    Prepared,
    /// Thousands of rows at once.
    Bulk,
}

/// What all sessions of a run share.
#[derive(Debug, Default)]
pub struct Pulse {
    stop: AtomicBool,
    committed: AtomicU64,
}

impl Pulse {
    /// Lets the sessions finish what they are at.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether they are to finish.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Transactions that were acknowledged so far.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }
}

/// Where a session connects to.
#[derive(Debug, Clone)]
pub struct Place {
    name: String,
    url: String,
}

impl Place {
    /// A node's database, straight.
    pub fn of(node: &Node) -> Self {
        Self { name: node.name().to_owned(), url: node.url_as("postgres") }
    }
}

/// A session of the load.
#[derive(Debug)]
pub struct Writer {
    place: Place,
    number: u32,
    manner: Manner,
    pace: Duration,
    dice: Dice,
    pulse: Arc<Pulse>,
    /// What the server has acknowledged and must keep.
    acknowledged: Vec<Entry>,
    seq: i64,
}

/// What a session knows in the end.
#[derive(Debug)]
pub struct Known {
    /// The session.
    pub session: u32,
    /// What it was told is committed.
    pub acknowledged: Vec<Entry>,
    /// Acknowledged with `synchronous_commit = off` and taken back by a crash.
    pub taken_back: usize,
}

impl Writer {
    /// A session with throws of its own; `number` names it in the journal, from 1.
    pub fn new(place: Place, number: u32, manner: Manner, pace: Duration, dice: Dice, pulse: Arc<Pulse>) -> Self {
        Self { place, number, manner, pace, dice, pulse, acknowledged: Vec::new(), seq: 0 }
    }

    /// Writes until it is told to stop.
    ///
    /// # Errors
    /// If the server stays away, or does not have what it had acknowledged.
    pub async fn run(mut self) -> Result<Known> {
        let mut taken_back = 0;
        loop {
            let session = self.connect().await?;
            taken_back += self.look_up(&session).await?;
            let Err(err) = self.write(&session).await else { break };
            // Only a crash or a broken connection may come between; anything else is a finding.
            let message = format!("{err:#}");
            let expected = session.client().is_closed()
                || ["57P0", "08", "connection closed", "40P01"].iter().any(|sign| message.contains(sign));
            ensure!(expected, "session {} on {}: {message}", self.number, self.place.name);
        }
        Ok(Known { session: self.number, acknowledged: self.acknowledged, taken_back })
    }

    fn application(&self) -> String {
        format!("load {}", self.number)
    }

    // Plain loops where others use `until`: a task that may change threads cannot hold such a closure.
    async fn connect(&self) -> Result<Session> {
        let start = Instant::now();
        let session = loop {
            match Session::connect(&self.place.url).await {
                Ok(session) => break session,
                Err(err) if start.elapsed() > PATIENCE => {
                    return Err(err.context(format!("{} does not take session {}", self.place.name, self.number)));
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        };
        let mode = if self.manner == Manner::Careless { "off" } else { "on" };
        let name = literal(&self.application());
        // A connection that broke already is noticed by the next step.
        let _ = session.exec(&format!("set application_name = {name}; set synchronous_commit = {mode}")).await;
        Ok(session)
    }

    /// Waits until nothing is left of this session's former life, and ends what it had prepared.
    async fn bury(&self, session: &Session) -> Result<()> {
        let application = literal(&self.application());
        let sql = format!(
            "select count(*) from pg_stat_activity where application_name = {application} and pid <> pg_backend_pid()"
        );
        let start = Instant::now();
        while session.number(&sql).await? > 0 {
            ensure!(start.elapsed() < PATIENCE, "the former backend of session {} does not end", self.number);
            tokio::time::sleep(PAUSE).await;
        }
        if session.number(&format!("select count(*) from pg_prepared_xacts where gid = {application}")).await? > 0 {
            session.exec(&format!("commit prepared {application}")).await?;
        }
        Ok(())
    }

    /// How far this session had come, once nothing of its former life is left. Returns how much a crash took back.
    async fn look_up(&mut self, session: &Session) -> Result<usize> {
        let sql = format!(
            "select coalesce(max(seq), 0) from journal where node = {} and session = {}",
            literal(&self.place.name),
            self.number
        );
        let found = async {
            self.bury(session).await?;
            session.number(&sql).await
        };
        let seq = match found.await {
            Ok(seq) => seq,
            // The next step notices it too, and connects again.
            Err(_) if session.client().is_closed() => return Ok(0),
            Err(err) => return Err(err),
        };
        let kept = self.acknowledged.iter().filter(|entry| entry.seq <= seq).count();
        let lost = self.acknowledged.len() - kept;
        ensure!(
            lost == 0 || self.manner == Manner::Careless,
            "{} has lost {lost} durable transactions of session {}",
            self.place.name,
            self.number
        );
        self.acknowledged.truncate(kept);
        self.seq = seq;
        Ok(lost)
    }

    async fn write(&mut self, session: &Session) -> Result<()> {
        while !self.pulse.stopping() {
            self.transaction(session).await?;
            tokio::time::sleep(self.pace).await;
        }
        Ok(())
    }

    async fn transaction(&mut self, session: &Session) -> Result<()> {
        let seq = self.seq + 1;
        let body = match self.manner {
            Manner::Bulk => self.bulk(session, seq).await?,
            _ => self.transfers(seq),
        };
        let xid = session.one(&format!("begin; {body}")).await?.parse().context("a transaction id")?;
        let goes_through = !self.dice.percent(10);
        if self.manner == Manner::Prepared {
            let gid = literal(&self.application());
            session.exec(&format!("prepare transaction {gid}")).await?;
            // Others wait for the rows that it holds, so most of the time not for long.
            let held = if self.dice.percent(10) { self.dice.millis(500, 1500) } else { self.dice.millis(0, 200) };
            tokio::time::sleep(held).await;
            session.exec(&format!("{} prepared {gid}", if goes_through { "commit" } else { "rollback" })).await?;
        } else {
            session.exec(if goes_through { "commit" } else { "rollback" }).await?;
        }
        if goes_through {
            self.seq = seq;
            self.acknowledged.push(Entry { session: self.number, seq, xid });
            self.pulse.committed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn journal(&self, seq: i64, legs: usize, bulk: i64, note: &str) -> String {
        format!(
            "insert into journal (node, session, seq, legs, bulk, note) values ({}, {}, {seq}, {legs}, {bulk}, '{note}')
             returning xid;",
            literal(&self.place.name),
            self.number
        )
    }

    fn posting(&self, seq: i64, leg: usize, account: u64, amount: i64) -> String {
        let (node, number) = (literal(&self.place.name), self.number);
        format!(
            "update account set balance = balance + {amount} where node = {node} and id = {account};
             insert into posting values ({node}, {number}, {seq}, {leg}, {account}, {amount});"
        )
    }

    /// A transaction over four tables, with parts that are rolled back within it.
    fn transfers(&mut self, seq: i64) -> String {
        let (node, number) = (literal(&self.place.name), self.number);
        // Accounts in rising order: sessions wait for each other's rows and never in a circle.
        let mut accounts: Vec<u64> = (0..self.dice.between(2, 4)).map(|_| self.dice.between(1, ACCOUNTS)).collect();
        accounts.sort_unstable();
        let mut rest = 0;
        let mut parts = Vec::new();
        for (leg, &account) in accounts.iter().enumerate() {
            let amount = if leg + 1 == accounts.len() { -rest } else { self.dice.between(0, 2000) as i64 - 1000 };
            rest += amount;
            let posting = self.posting(seq, leg, account, amount);
            parts.push(match self.dice.below(6) {
                0 => format!("savepoint a; {} rollback to a; {posting}", self.posting(seq, leg, account, 7)),
                1 => format!("savepoint a; {posting} savepoint b; delete from memo where node = {node}; rollback to b; release a;"),
                2 => format!(
                    "do $do$ begin {} raise exception 'no'; exception when raise_exception then {posting} end $do$;",
                    self.posting(seq, leg, account, 9)
                ),
                _ => posting,
            });
        }
        let id = self.dice.below(20);
        parts.push(match self.dice.below(4) {
            0 => format!("delete from memo where node = {node} and session = {number} and id = {id};"),
            length => format!(
                "insert into memo values ({node}, {number}, {id}, repeat('{seq} ', {})) \
                 on conflict (node, session, id) do update set words = excluded.words;",
                if length == 1 { 3000 } else { 3 }
            ),
        });
        format!("{} {}", self.journal(seq, accounts.len(), 0, "transfers"), parts.concat())
    }

    /// Many rows that come, change or go together.
    async fn bulk(&mut self, session: &Session, seq: i64) -> Result<String> {
        let (node, number) = (literal(&self.place.name), self.number);
        let own = format!("node = {node} and session = {number}");
        let row = session.rows(&format!("select count(*), coalesce(max(n), 0) from bulk where {own}")).await?;
        let field = |i: usize| row[0][i].clone().unwrap_or_default().parse::<i64>();
        let (count, top) = (field(0)?, field(1)?);
        Ok(match self.dice.below(3) {
            0 if count > 0 => {
                self.journal(seq, 0, 0, "change")
                    + &format!("update bulk set filler = md5(filler) where {own} and n % 3 = {};", seq % 3)
            }
            1 if count > 0 => self.journal(seq, 0, -count, "clear") + &format!("delete from bulk where {own};"),
            _ => {
                // Incompressible, so that the large ones take many chunks.
                let rows =
                    if self.dice.percent(30) { self.dice.between(8_000, 20_000) } else { self.dice.between(50, 900) };
                self.journal(seq, 0, rows as i64, "fill")
                    + &format!(
                        "insert into bulk select {node}, {number}, {top} + i, md5(random()::text) || md5(random()::text) \
                           from generate_series(1, {rows}) i;"
                    )
            }
        })
    }
}
