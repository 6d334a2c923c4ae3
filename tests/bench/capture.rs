//! What capture costs an application: transactions a second with durable commits, and processor time of the backend.
//!
//! Systems take turns, because a machine is not the same from one moment to the next. No relay runs: this is about the
//! writer. Throughput has durable commits and several clients; processor time has one client and no waiting for the
//! disk, whose interrupts would count as the backend's.
//!
//! Where a process happens to lie in memory makes it one or two per cent faster or slower for as long as it lives. So
//! throughput is measured on several servers one after the other, each with databases and processes of its own.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use duplex_lab::{Cluster, Lab, Node, Session};
use tokio::process::Command;

use crate::path::System;
use crate::report::{Bound, Report, median};
use crate::scale::Scale;
use crate::turns::Pgbench;
use crate::{cpu, outbox, wide};

/// Rows of the table that single-row updates hit.
const ROWS: u32 = 10_000;
const CLIENTS: &str = "4";
/// Who captures a writer's changes, or nobody: the first is what the others are compared with.
pub(crate) const SYSTEMS: [System; 3] = [System::Bare, System::Outbox, System::Duplex];
const TPCB_TABLES: [&str; 4] = ["pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history"];

/// Takes out what was captured, as a relay does.
pub(crate) const EMPTY_QUEUE: &str = "truncate duplex.queue_0, duplex.queue_1, duplex.queue_2";

/// Where transactions are captured by one system, or by none.
struct Variant {
    system: System,
    database: String,
    session: Session,
}

impl Variant {
    /// Takes out what was captured, as a relay does, so that the files and the memory used next were used before; and vacuums
    /// tables of which all rows change, as pgbench does with its own, so that all start with as many dead ones.
    async fn tidy(&self) -> Result<()> {
        match self.system {
            System::Duplex => self.session.exec(EMPTY_QUEUE).await?,
            System::Outbox => self.session.exec("truncate outbox").await?,
            _ => {}
        }
        for table in ["wide", "pgbench_branches", "pgbench_tellers"] {
            self.session.exec(&format!("vacuum analyze {table}")).await?;
        }
        Ok(())
    }
}

/// Transactions that are measured.
#[derive(Debug, Clone, Copy)]
enum Workload {
    Update,
    Tpcb,
}

impl Workload {
    const ALL: [Self; 2] = [Self::Update, Self::Tpcb];

    fn name(self) -> &'static str {
        match self {
            Self::Update => "single-row UPDATE",
            Self::Tpcb => "tpcb-like",
        }
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
    for start in 1..=scale.pgbench_starts {
        // Three databases and what is captured in them, all in memory.
        let lab = server("1GB").await?;
        let node = lab.node(0);
        // No system always has the database that was made first.
        let mut variants = [None, None, None];
        for turn in 0..SYSTEMS.len() {
            let index = (start + turn) % SYSTEMS.len();
            variants[index] = Some(prepare(node, SYSTEMS[index], scale).await?);
        }
        let variants: Vec<Variant> = variants.into_iter().flatten().collect();
        for (workload, rates) in &mut rates {
            rates.push(throughput(node.cluster(), &variants, *workload, scale).await?);
        }
        if start == scale.pgbench_starts {
            for (workload, rates) in &rates {
                report_rates(*workload, rates, report);
            }
            for workload in Workload::ALL {
                processor_time(&variants, workload, scale, report).await?;
            }
        }
    }
    Ok(())
}

/// Puts down the mean of what was measured at each start.
fn report_rates(workload: Workload, rates: &[[f64; SYSTEMS.len()]], report: &mut Report) {
    let mean = |of: &dyn Fn(&[f64; SYSTEMS.len()]) -> f64| rates.iter().map(of).sum::<f64>() / rates.len() as f64;
    for (index, system) in SYSTEMS.into_iter().enumerate() {
        let name = format!("capture: {}, durable commits, {CLIENTS} clients", workload.name());
        report.more(&name, "tx/s", None, system, mean(&|rates| rates[index]));
    }
    for (index, system) in SYSTEMS.into_iter().enumerate().skip(1) {
        let name = format!("capture: {}, of the rate without capture", workload.name());
        let by_server: Vec<String> = rates.iter().map(|rates| format!("{:.3}", rates[index] / rates[0])).collect();
        report.log(&format!("{:<14} {name}, server by server: {}", system.name(), by_server.join(", ")));
        report.more(&name, "×", Some(Bound::AtLeast(0.95)), system, mean(&|rates| rates[index] / rates[0]));
    }
}

async fn prepare(node: &Node, system: System, scale: &Scale) -> Result<Variant> {
    let cluster = node.cluster();
    let database = match system {
        System::Duplex => node.database().to_owned(),
        other => {
            let name = other.name().replace(' ', "_");
            cluster.create_database(&name).await?;
            name
        }
    };
    let session = cluster.connect(&database).await?;
    session.exec(&wide::create("wide")).await?;
    session.exec(&wide::fill("wide", 1, ROWS)).await?;
    let scale = scale.pgbench_scale.to_string();
    pgbench(cluster, &database, &["-i", "-q", "-I", "dtGvp", "-s", &scale]).await?;
    // pgbench's history has no key, and what has no key cannot be replicated.
    session.exec("alter table pgbench_history add hid bigint generated always as identity primary key").await?;
    for table in TPCB_TABLES.into_iter().chain(["wide"]) {
        capture(&session, system, table).await?;
    }
    session.exec("vacuum analyze").await?;
    Ok(Variant { system, database, session })
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

async fn pgbench(cluster: &Cluster, database: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(cluster.program("pgbench"))
        .args(["-h", "127.0.0.1", "-U", "postgres", "-p", &cluster.port().to_string()])
        .args(arguments)
        .arg(database)
        .output()
        .await
        .context("starting pgbench")?;
    ensure!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The transactions a second of each system.
async fn throughput(
    cluster: &Cluster,
    variants: &[Variant],
    workload: Workload,
    scale: &Scale,
) -> Result<[f64; SYSTEMS.len()]> {
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
    let all_turns = (scale.pgbench_turn * scale.pgbench_rounds).as_secs().max(1).to_string();
    let first_time: Vec<&str> = arguments.iter().copied().chain(["-T", &all_turns]).collect();
    for variant in variants {
        pgbench(cluster, &variant.database, &first_time).await?;
        variant.tidy().await?;
    }
    variants[0].session.exec("checkpoint").await?;
    let mut running = Vec::new();
    for variant in variants {
        running.push(Pgbench::start(cluster, &variant.database, &arguments).await?);
    }
    for round in 0..scale.pgbench_rounds as usize {
        // Nobody always follows the same one.
        let number = |turn: usize| if round % 2 == 0 { round + turn } else { round + variants.len() - turn };
        for turn in 0..variants.len() {
            running[number(turn) % variants.len()].turn(scale.pgbench_turn).await?;
        }
    }
    let mut rates = [0.0; SYSTEMS.len()];
    for (rate, pgbench) in rates.iter_mut().zip(running) {
        *rate = pgbench.end().await?;
    }
    Ok(rates)
}

async fn processor_time(variants: &[Variant], workload: Workload, scale: &Scale, report: &mut Report) -> Result<()> {
    for variant in variants {
        variant.tidy().await?;
    }
    let mut costs = vec![Vec::new(); variants.len()];
    // One turn to warm up.
    for round in 0..=scale.cpu_rounds {
        for (variant, costs) in variants.iter().zip(&mut costs) {
            let session = &variant.session;
            session.exec("set synchronous_commit = off").await?;
            let time = transactions(session, workload, scale).await?;
            if round > 0 {
                costs.push(time.as_secs_f64() * 1e6 / f64::from(scale.cpu_transactions));
            }
        }
    }
    let name = format!("capture: {}, processor time of the backend", workload.name());
    report.less(&name, "µs/tx", None, variants[0].system, median(&costs[0]));
    for (index, variant) in variants.iter().enumerate().skip(1) {
        let added: Vec<f64> = costs[index].iter().zip(&costs[0]).map(|(cost, bare)| cost - bare).collect();
        let name = format!("capture: {}, processor time added", workload.name());
        // The bound is for one change in a transaction; tpcb-like has four.
        let bound = matches!(workload, Workload::Update).then_some(Bound::AtMost(15.0));
        report.less(&name, "µs/tx", bound, variant.system, median(&added));
    }
    Ok(())
}

/// Runs transactions in one session, one statement after the other as pgbench does, and returns the backend's time.
async fn transactions(session: &Session, workload: Workload, scale: &Scale) -> Result<Duration> {
    let client = session.client();
    let pid = i32::try_from(session.number("select pg_backend_pid()").await?)?;
    let number = |i: u32, of: u32| i32::try_from(u64::from(i) * 7919 % u64::from(of) + 1);
    match workload {
        Workload::Update => {
            let update = client.prepare("update wide set a = a + 1, e = now() where id = $1").await?;
            let before = cpu::of_backend(pid)?;
            for i in 0..scale.cpu_transactions {
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
            for i in 0..scale.cpu_transactions {
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
