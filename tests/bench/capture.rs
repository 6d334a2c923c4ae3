//! What capture costs an application: transactions a second with durable commits, and processor time of the backend.
//!
//! Systems take turns of a fraction of a second, because a machine is not the same from one moment to the next. Two databases
//! of the same content differ too, and so do two processes that do the same, by one or two per cent for as long as they live:
//! so each system captures every database in turn, every time with new processes, and on several servers. No relay runs: this
//! is about the writer. Throughput has durable commits and several clients; processor time has one client, the same tables for
//! all, and no waiting for the disk, whose interrupts would count as the backend's.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use duplex_lab::{Cluster, Lab, Session};
use tokio::process::Command;

use crate::path::System;
use crate::report::{Bound, Report, mean_and_error, median};
use crate::scale::Scale;
use crate::turns::Pgbench;
use crate::{cpu, outbox, wide};

/// Rows of the table that single-row updates hit.
const ROWS: u32 = 10_000;
const CLIENTS: &str = "4";
/// Who captures a writer's changes, or nobody: the first is what the others are compared with.
pub(crate) const SYSTEMS: [System; 3] = [System::Bare, System::Outbox, System::Duplex];
const TABLES: [&str; 5] = ["wide", "pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history"];

/// Takes out what was captured, as a relay does.
pub(crate) const EMPTY_QUEUE: &str = "truncate duplex.queue_0, duplex.queue_1, duplex.queue_2";

/// Transactions a second, or time for each, of every system.
type Figures = [f64; SYSTEMS.len()];

/// Transactions that are measured.
#[derive(Debug, Clone, Copy)]
enum Workload {
    Update,
    Tpcb,
}

impl Workload {
    /// tpcb-like first: its large table is to be young.
    const ALL: [Self; 2] = [Self::Tpcb, Self::Update];

    fn name(self) -> &'static str {
        match self {
            Self::Update => "single-row UPDATE",
            Self::Tpcb => "tpcb-like",
        }
    }
}

/// A database whose tables are captured by one system at a time, or by none.
struct Tables<'a> {
    cluster: &'a Cluster,
    database: String,
    session: Session,
    captured_by: System,
}

impl<'a> Tables<'a> {
    async fn create(cluster: &'a Cluster, number: usize, scale: &Scale) -> Result<Self> {
        let database = format!("tables{number}");
        cluster.create_database(&database).await?;
        let session = cluster.connect(&database).await?;
        session.exec(&format!("select duplex.create_node('{database}')")).await?;
        session.exec(&wide::create("wide")).await?;
        session.exec(&wide::fill("wide", 1, ROWS)).await?;
        let tables = Self { cluster, database, session, captured_by: System::Bare };
        tables.pgbench(&["-i", "-q", "-I", "dtGvp", "-s", &scale.pgbench_scale.to_string()]).await?;
        // pgbench's history has no key, and what has no key cannot be replicated.
        let key = "alter table pgbench_history add hid bigint generated always as identity primary key";
        tables.session.exec(key).await?;
        tables.session.exec("vacuum analyze").await?;
        Ok(tables)
    }

    /// Has one system capture the tables, and the one before no longer. What that one captured is taken out, as a relay does,
    /// and tables of which all rows change are vacuumed, as pgbench does with its own.
    async fn captured_by(&mut self, system: System) -> Result<()> {
        for table in TABLES {
            match self.captured_by {
                System::Duplex => self.session.exec(&format!("select duplex.disable('{table}')")).await?,
                System::Outbox => self.session.exec(&format!("drop trigger outbox on {table}")).await?,
                _ => {}
            }
        }
        match self.captured_by {
            System::Duplex => self.session.exec(EMPTY_QUEUE).await?,
            System::Outbox => self.session.exec("truncate outbox").await?,
            _ => {}
        }
        for table in TABLES {
            capture(&self.session, system, table).await?;
        }
        self.captured_by = system;
        for table in ["wide", "pgbench_branches", "pgbench_tellers"] {
            self.session.exec(&format!("vacuum analyze {table}")).await?;
        }
        Ok(())
    }

    async fn pgbench(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new(self.cluster.program("pgbench"))
            .args(["-h", "127.0.0.1", "-U", "postgres", "-p", &self.cluster.port().to_string()])
            .args(arguments)
            .arg(&self.database)
            .output()
            .await
            .context("starting pgbench")?;
        ensure!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

/// The server that all measurements of writers use: durable, with WAL enough not to disturb.
pub(crate) async fn server(shared_buffers: &str) -> Result<Lab> {
    let settings = [("shared_buffers", shared_buffers), ("max_wal_size", "8GB"), ("checkpoint_timeout", "1h")];
    let lab = Lab::builder().nodes(1).durable().without_relays();
    settings.iter().fold(lab, |lab, (name, value)| lab.setting(name, value)).start().await
}

pub(crate) async fn measure(scale: &Scale, report: &mut Report) -> Result<()> {
    let mut rates = Workload::ALL.map(|workload| (workload, Vec::new()));
    let mut times = Workload::ALL.map(|workload| (workload, Vec::new()));
    for _ in 0..scale.capture_servers {
        // All three databases and what is captured in them are in memory.
        let lab = server("1GB").await?;
        let mut databases = Vec::new();
        for number in 0..SYSTEMS.len() {
            databases.push(Tables::create(lab.node(0).cluster(), number, scale).await?);
        }
        for (workload, rates) in &mut rates {
            for round in 0..SYSTEMS.len() * scale.capture_squares {
                hand_out(&mut databases, round).await?;
                // As in a server at work, many a page that is changed was last changed before a checkpoint.
                if round % SYSTEMS.len() == 0 {
                    databases[0].session.exec("checkpoint").await?;
                }
                rates.push(throughput(&databases, *workload, scale).await?);
            }
        }
        for (workload, times) in &mut times {
            for round in 0..SYSTEMS.len() * scale.capture_squares {
                let tables = &mut databases[round % SYSTEMS.len()];
                times.push(processor_time(tables, round, *workload, scale).await?);
            }
        }
    }
    for (workload, rates) in &rates {
        report_rates(*workload, rates, report);
    }
    for (workload, times) in &times {
        report_times(*workload, times, report);
    }
    Ok(())
}

/// Gives each system another database than in the round before.
async fn hand_out(databases: &mut [Tables<'_>], round: usize) -> Result<()> {
    for (index, tables) in databases.iter_mut().enumerate() {
        tables.captured_by(SYSTEMS[(index + round) % SYSTEMS.len()]).await?;
    }
    Ok(())
}

/// Puts down what was measured in all rounds.
fn report_rates(workload: Workload, rounds: &[Figures], report: &mut Report) {
    let of_each = |of: &dyn Fn(&Figures) -> f64| mean_and_error(&rounds.iter().map(of).collect::<Vec<_>>());
    for (index, system) in SYSTEMS.into_iter().enumerate() {
        let name = format!("capture: {}, durable commits, {CLIENTS} clients", workload.name());
        report.more(&name, "tx/s", None, system, of_each(&|rates| rates[index]).0);
    }
    for (index, system) in SYSTEMS.into_iter().enumerate().skip(1) {
        let name = format!("capture: {}, of the rate without capture", workload.name());
        let (mean, error) = of_each(&|rates| rates[index] / rates[0]);
        report.log(&format!("{:<14} {name}: {mean:.4} ± {error:.4}", system.name()));
        report.more(&name, "×", Some(Bound::AtLeast(0.95)), system, mean);
    }
}

fn report_times(workload: Workload, rounds: &[Figures], report: &mut Report) {
    let of_each = |of: &dyn Fn(&Figures) -> f64| median(&rounds.iter().map(of).collect::<Vec<_>>());
    let name = format!("capture: {}, processor time of the backend", workload.name());
    report.less(&name, "µs/tx", None, SYSTEMS[0], of_each(&|times| times[0]));
    for (index, system) in SYSTEMS.into_iter().enumerate().skip(1) {
        let name = format!("capture: {}, processor time added", workload.name());
        // The bound is for one change in a transaction; tpcb-like has four.
        let bound = matches!(workload, Workload::Update).then_some(Bound::AtMost(15.0));
        report.less(&name, "µs/tx", bound, system, of_each(&|times| times[index] - times[0]));
    }
}

/// Has a system capture a table.
pub(crate) async fn capture(session: &Session, system: System, table: &str) -> Result<()> {
    match system {
        System::Duplex => session.exec(&format!("select duplex.enable('{table}')")).await,
        System::Outbox => {
            if session.one("select to_regclass('outbox') is null").await? == "t" {
                session.exec(outbox::CREATE).await?;
            }
            session.exec(&outbox::enable(table)).await
        }
        _ => Ok(()),
    }
}

/// The transactions a second of each system.
async fn throughput(databases: &[Tables<'_>], workload: Workload, scale: &Scale) -> Result<Figures> {
    let script = tempfile::NamedTempFile::new()?;
    std::fs::write(
        script.path(),
        format!("\\set id random(1, {ROWS})\nupdate wide set a = a + 1, e = now() where id = :id;\n"),
    )?;
    let path = script.path().to_string_lossy();
    let mut arguments = vec!["-n", "-M", "prepared", "-c", CLIENTS];
    arguments.extend(match workload {
        Workload::Update => ["-f", &path],
        Workload::Tpcb => ["-b", "tpcb-like"],
    });
    let mut running = Vec::new();
    for tables in databases {
        running.push(Pgbench::start(tables.cluster, &tables.database, &arguments).await?);
    }
    for round in 0..scale.pgbench_turns {
        // Nobody always follows the same one.
        let number = |turn: usize| if round % 2 == 0 { round + turn } else { round + databases.len() - turn };
        for turn in 0..databases.len() {
            running[number(turn) % databases.len()].turn(scale.pgbench_turn).await?;
        }
    }
    let mut rates = Figures::default();
    for (tables, pgbench) in databases.iter().zip(running) {
        rates[place(tables.captured_by)] = pgbench.end().await?;
    }
    Ok(rates)
}

/// The processor time of a transaction of each system, in microseconds, on the same tables.
async fn processor_time(tables: &mut Tables<'_>, round: usize, workload: Workload, scale: &Scale) -> Result<Figures> {
    let mut times = Figures::default();
    for turn in 0..SYSTEMS.len() {
        let system = SYSTEMS[(round + turn) % SYSTEMS.len()];
        tables.captured_by(system).await?;
        let session = tables.cluster.connect(&tables.database).await?;
        session.exec("set synchronous_commit = off").await?;
        // What a session does once is not what a transaction costs.
        transactions(&session, workload, scale, scale.cpu_transactions / 4).await?;
        let time = transactions(&session, workload, scale, scale.cpu_transactions).await?;
        times[place(system)] = time.as_secs_f64() * 1e6 / f64::from(scale.cpu_transactions);
    }
    Ok(times)
}

/// A system's place among [`Figures`].
fn place(system: System) -> usize {
    SYSTEMS.iter().position(|&other| other == system).expect("one of them")
}

/// Runs transactions in one session, one statement after the other as pgbench does, and returns the backend's time.
async fn transactions(session: &Session, workload: Workload, scale: &Scale, count: u32) -> Result<Duration> {
    let client = session.client();
    let pid = i32::try_from(session.number("select pg_backend_pid()").await?)?;
    let number = |i: u32, of: u32| i32::try_from(u64::from(i) * 7919 % u64::from(of) + 1);
    match workload {
        Workload::Update => {
            let update = client.prepare("update wide set a = a + 1, e = now() where id = $1").await?;
            let before = cpu::of_backend(pid)?;
            for i in 0..count {
                client.execute(&update, &[&i64::from(number(i, ROWS)?)]).await?;
            }
            Ok(cpu::of_backend(pid)?.saturating_sub(before))
        }
        Workload::Tpcb => {
            let accounts = "update pgbench_accounts set abalance = abalance + $1 where aid = $2";
            let accounts = client.prepare(accounts).await?;
            let balance = client.prepare("select abalance from pgbench_accounts where aid = $1").await?;
            let tellers = "update pgbench_tellers set tbalance = tbalance + $1 where tid = $2";
            let tellers = client.prepare(tellers).await?;
            let branches = "update pgbench_branches set bbalance = bbalance + $1 where bid = $2";
            let branches = client.prepare(branches).await?;
            let history = "insert into pgbench_history (tid, bid, aid, delta, mtime) values ($1, $2, $3, $4, now())";
            let history = client.prepare(history).await?;
            let before = cpu::of_backend(pid)?;
            for i in 0..count {
                let account = number(i, scale.pgbench_scale * 100_000)?;
                let teller = number(i, scale.pgbench_scale * 10)?;
                let branch = number(i, scale.pgbench_scale)?;
                let delta = number(i, 5000)?;
                client.batch_execute("begin").await?;
                client.execute(&accounts, &[&delta, &account]).await?;
                client.query_one(&balance, &[&account]).await?;
                client.execute(&tellers, &[&delta, &teller]).await?;
                client.execute(&branches, &[&delta, &branch]).await?;
                client.execute(&history, &[&teller, &branch, &account, &delta]).await?;
                client.batch_execute("end").await?;
            }
            Ok(cpu::of_backend(pid)?.saturating_sub(before))
        }
    }
}
