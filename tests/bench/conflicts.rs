//! What conflicts cost: rows that both sides have changed, given to `duplex.apply_chunk` as in [`crate::apply`]; and what it
//! costs rows that meet nobody that deleted keys are remembered.

use std::time::Instant;

use anyhow::{Result, ensure};
use duplex_lab::{Lab, Node, Session};

use crate::apply::{apply, captured};
use crate::path::System;
use crate::report::{Bound, Report, median};
use crate::scale::Scale;
use crate::wide;

/// Two nodes, and a session that applies what the first one makes.
struct Bench {
    lab: Lab,
    writing: Session,
    here: Session,
    marked: Session,
    next_offset: i64,
}

pub(crate) async fn measure(scale: &Scale, report: &mut Report) -> Result<()> {
    let lab = Lab::builder()
        .nodes(2)
        .durable()
        .without_relays()
        .setting("shared_buffers", "512MB")
        .setting("max_wal_size", "8GB")
        .start()
        .await?;
    let [source, target] = lab.pair();
    let marked = target.connect().await?;
    marked.exec(&format!("select duplex.apply_open('{}')", source.name())).await?;
    let (writing, here) = (source.connect().await?, target.connect().await?);
    let mut bench = Bench { writing, here, marked, next_offset: 0, lab };
    let (mut met, mut remembered) = (vec![Vec::new(); 2], Vec::new());
    for _ in 0..scale.rounds {
        bench.meet(scale, &mut met).await?;
    }
    // The two tables differ by less than one round from the next.
    for _ in 0..3 * scale.rounds {
        let pace = bench.remember(scale).await?;
        report.log(&format!("INSERT with tombstones: {pace:.3} of the rate without"));
        remembered.push(pace);
    }
    let names = [
        "conflicts: UPDATE of rows changed here too, what comes is later",
        "conflicts: the same, what was here is later",
    ];
    for (name, rates) in names.into_iter().zip(met) {
        report.more(name, "conflicts/s", None, System::Duplex, median(&rates));
    }
    report.more(
        "apply: INSERT where deleted keys are remembered, of the rate without",
        "×",
        Some(Bound::AtLeast(0.95)),
        System::Duplex,
        median(&remembered),
    );
    Ok(())
}

/// Transactions in which each table of [`Bench::remember`] gets its new rows. A machine is not the same from one second to the
/// next, and one table beside the other in turns of less than that meets the same machine.
const TURNS: u32 = 50;

/// Empties the tombstones of a table as [`Bench::remember`] makes it.
const FORGET: &str =
    "do $$ begin execute format('truncate duplex.%I', 'tombstones_' || 'knows_nothing'::regclass::oid); end $$";

impl Bench {
    fn source(&self) -> &Node {
        self.lab.node(0)
    }

    /// Applies what the source has written since the last time. Returns how many seconds it took.
    async fn applied(&mut self) -> Result<f64> {
        let records = captured(self.source()).await?;
        let started = Instant::now();
        apply(&self.marked, &records, self.next_offset).await?;
        self.next_offset += i64::try_from(records.len())?;
        Ok(started.elapsed().as_secs_f64())
    }

    async fn on_both(&self, sql: &str) -> Result<()> {
        self.writing.exec(sql).await?;
        self.here.exec(sql).await
    }

    /// Both sides update all rows; the later one is the source, then the target.
    async fn meet(&mut self, scale: &Scale, rates: &mut [Vec<f64>]) -> Result<()> {
        let rows = scale.conflicting_rows;
        self.on_both(&(wide::create("wide") + "; select duplex.enable('wide')")).await?;
        self.writing.exec(&wide::fill("wide", 1, rows)).await?;
        self.applied().await?;
        let update = format!("update wide set {}", wide::CHANGE);
        for (later, rates) in rates.iter_mut().enumerate() {
            let order = if later == 0 { [&self.here, &self.writing] } else { [&self.writing, &self.here] };
            for session in order {
                session.exec(&update).await?;
            }
            self.here.exec("truncate duplex.conflict_history; checkpoint").await?;
            rates.push(f64::from(rows) / self.applied().await?);
            let kind = ["applied", "skipped"][later];
            let sql = format!(
                "select count(*) from duplex.conflict_history where kind = 'update_origin_differs' and resolution = '{kind}'"
            );
            let recorded = self.here.number(&sql).await?;
            ensure!(recorded == i64::from(rows), "{recorded} of {rows} conflicts are on record");
        }
        self.on_both("drop table wide").await
    }

    /// The same INSERT of new rows into a table that remembers as many deleted keys and into one that has forgotten them.
    async fn remember(&mut self, scale: &Scale) -> Result<f64> {
        let rows = scale.large_rows;
        let tables = ["remembers", "knows_nothing"];
        // Both begin with files that are empty and were full.
        for table in tables {
            self.on_both(&format!("{}; select duplex.enable('{table}')", wide::create(table))).await?;
            self.writing.exec(&wide::fill(table, 1, rows)).await?;
            self.applied().await?;
            self.writing.exec(&format!("delete from {table}")).await?;
            self.applied().await?;
            self.on_both(&format!("vacuum {table}")).await?;
        }
        self.here.exec(FORGET).await?;
        self.here.exec("checkpoint").await?;
        let mut seconds = [0.0; 2];
        for turn in 0..TURNS {
            let first = rows + 1 + turn * (rows / TURNS);
            // Nobody always comes first.
            for number in if turn % 2 == 0 { [0, 1] } else { [1, 0] } {
                self.writing.exec(&wide::fill(tables[number], first, rows / TURNS)).await?;
                seconds[number] += self.applied().await?;
            }
        }
        for (table, to_remember) in tables.into_iter().zip([rows, 0]) {
            let there = self.here.number(&format!("select count(*) from {table}")).await?;
            ensure!(there == i64::from(rows), "{there} of {rows} rows");
            let name = self.here.one(&format!("select 'tombstones_' || '{table}'::regclass::oid")).await?;
            let remembered = self.here.number(&format!("select count(*) from duplex.{name}")).await?;
            ensure!(remembered == i64::from(to_remember), "{remembered} keys are remembered, not {to_remember}");
            self.on_both(&format!("drop table {table}")).await?;
        }
        Ok(seconds[1] / seconds[0])
    }
}
