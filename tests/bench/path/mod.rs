//! Systems that bring what is written in one database to another.

mod duplex;
mod native;
mod older;

use std::path::Path as FilePath;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use duplex_lab::Builder;
use duplex_lab::{Lab, Node, Session, until};

use self::duplex::Duplex;
use self::native::Native;
use self::older::Older;
use crate::report::Report;
use crate::wide;

/// How long anything may take here.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum System {
    /// pg_duplex.
    Duplex,
    /// A database whose changes nobody captures.
    Bare,
    /// A trigger in PL/pgSQL that writes JSON into a table.
    Outbox,
    /// PostgreSQL's logical replication.
    Native,
    /// Debezium, Kafka Connect, JDBC sink.
    Older,
}

impl System {
    /// All, as they stand in the table.
    pub(crate) const ALL: [Self; 5] = [Self::Duplex, Self::Bare, Self::Outbox, Self::Native, Self::Older];

    /// What people know it by.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Duplex => "pg_duplex",
            Self::Bare => "no capture",
            Self::Outbox => "outbox",
            Self::Native => "native",
            Self::Older => "Debezium+JDBC",
        }
    }
}

/// One of them at work between two servers of its own: from the first node of its lab to the second.
#[derive(Debug)]
pub(crate) struct Path {
    lab: Lab,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Duplex(Duplex),
    Native(Native),
    Older(Box<Older>),
}

/// Servers as all systems get them: durable, with memory and WAL enough not to disturb.
fn servers() -> Builder {
    Lab::builder()
        .nodes(2)
        .durable()
        .setting("shared_buffers", "512MB")
        .setting("max_wal_size", "8GB")
        .setting("checkpoint_timeout", "1h")
}

impl Path {
    /// Brings it up with an empty table `wide` on both sides. `jars` is where the older pipeline's are.
    pub(crate) async fn open(system: System, jars: Option<&FilePath>) -> Result<Self> {
        let lab = match system {
            System::Duplex => servers().own_kafka().relays_stopped().start().await?,
            System::Older => servers().own_kafka().relays_stopped().setting("wal_level", "logical").start().await?,
            // A worker that was stopped a moment ago is started again at once, not after five seconds.
            _ => {
                let servers = servers().without_relays().setting("wal_level", "logical");
                servers.setting("wal_retrieve_retry_interval", "10ms").start().await?
            }
        };
        lab.exec_everywhere(&wide::create("wide")).await?;
        let kind = match system {
            System::Duplex => Kind::Duplex(Duplex::open(&lab).await?),
            System::Older => {
                Kind::Older(Box::new(Older::open(&lab, jars.context("no jars of the older pipeline")?).await?))
            }
            _ => Kind::Native(Native::open(&lab).await?),
        };
        let mut path = Self { lab, kind };
        path.go().await?;
        path.warm_up().await?;
        path.rest().await?;
        Ok(path)
    }

    /// Which system it is.
    pub(crate) fn system(&self) -> System {
        match self.kind {
            Kind::Duplex(_) => System::Duplex,
            Kind::Native(_) => System::Native,
            Kind::Older(_) => System::Older,
        }
    }

    /// Where rows are written.
    pub(crate) fn source(&self) -> &Node {
        self.lab.node(0)
    }

    /// Where they are to be seen.
    pub(crate) fn target(&self) -> &Node {
        self.lab.node(1)
    }

    /// Starts to move what is written, or goes on with it.
    pub(crate) async fn go(&mut self) -> Result<()> {
        match &mut self.kind {
            Kind::Duplex(duplex) => duplex.go(&self.lab),
            Kind::Native(native) => native.go(&self.lab).await,
            Kind::Older(older) => older.go(&self.lab).await,
        }
    }

    /// Stops, so that it does not disturb others that are measured; what is written waits.
    pub(crate) async fn rest(&mut self) -> Result<()> {
        match &mut self.kind {
            Kind::Duplex(duplex) => duplex.rest(&self.lab),
            Kind::Native(native) => native.rest(&self.lab).await,
            Kind::Older(older) => older.rest(),
        }
    }

    /// The most memory that one of its own processes ever had resident, in KiB; 0 if it lives in the servers.
    pub(crate) async fn peak(&mut self) -> Result<u64> {
        match &mut self.kind {
            Kind::Duplex(duplex) => duplex.peak(&self.lab),
            Kind::Native(_) => Ok(0),
            Kind::Older(older) => older.peak(),
        }
    }

    /// Processor time so far of each of its processes: its own, and the servers' that do its work.
    pub(crate) async fn processors(&self) -> Result<Vec<(String, Duration)>> {
        match &self.kind {
            Kind::Duplex(duplex) => duplex.processors(&self.lab).await,
            Kind::Native(native) => native.processors(&self.lab).await,
            Kind::Older(older) => older.processors(&self.lab),
        }
    }

    /// What its processes have spent on each of so many changes since `before`; those not there then have just started.
    pub(crate) async fn spent(&self, before: &[(String, Duration)], changes: u32) -> Result<String> {
        let times: Vec<String> = (self.processors().await?.into_iter())
            .map(|(what, after)| {
                let before = before.iter().find(|(of, _)| *of == what).map(|(_, time)| *time).unwrap_or_default();
                let each = after.saturating_sub(before).as_secs_f64() * 1e6 / f64::from(changes);
                format!("{what} {each:.2}")
            })
            .collect();
        Ok(format!("µs of processor time a change: {}", times.join(", ")))
    }

    /// Waits until the target gives `t` for a condition. Polled each few milliseconds, so it has to be cheap.
    pub(crate) async fn reaches(&self, target: &Session, condition: &str) -> Result<()> {
        let sql = format!("select {condition}");
        until(condition, PATIENCE, async || {
            let reached = target.one(&sql).await? == "t";
            Ok(if reached { Ok(()) } else { Err("not yet") })
        })
        .await
    }

    /// Makes sure that both ends hold the same rows. What the older pipeline changes on the way is said, and no failure of
    /// this run.
    pub(crate) async fn assert_equal(&self, source: &Session, target: &Session, report: &Report) -> Result<()> {
        if self.system() != System::Older {
            return wide::assert_equal(source, target).await;
        }
        let columns = wide::differing(source, target).await?;
        ensure!(!columns.contains(&"id"), "rows are missing, or too many");
        if !columns.is_empty() {
            report.log(&format!("arrived with other values in {}", columns.join(", ")));
        }
        Ok(())
    }

    /// One row there and gone again: whatever is made at first use is made.
    async fn warm_up(&self) -> Result<()> {
        let (source, target) = (self.source().connect().await?, self.target().connect().await?);
        source.exec(&wide::fill("wide", 1, 1)).await?;
        self.reaches(&target, "exists (select from wide where id = 1)").await?;
        source.exec("delete from wide").await?;
        self.reaches(&target, "not exists (select from wide where id = 1)").await
    }
}
