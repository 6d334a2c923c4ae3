//! One process that is broker and controller.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::folder::Folder;
use crate::process::{Process, Recipe, run};
use crate::{PATIENCE, Proxy, ports};

/// The ports of a broker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Address {
    pub(super) clients: u16,
    pub(super) controller: u16,
}

impl Address {
    pub(super) fn free() -> Result<Self> {
        Ok(Self { clients: ports::free()?, controller: ports::free()? })
    }
}

/// What the brokers of a cluster have in common.
#[derive(Debug)]
pub(super) struct Cluster<'a> {
    pub(super) id: String,
    pub(super) addresses: &'a [Address],
    pub(super) makes_topics: bool,
}

/// A broker of a Kafka of the lab's own.
#[derive(Debug)]
pub struct Broker {
    recipe: Recipe,
    folder: Arc<Folder>,
    server: Mutex<Arc<Process>>,
}

/// Where Kafka's jars are.
fn jars() -> Result<PathBuf> {
    let home = match std::env::var_os("DUPLEX_KAFKA_HOME") {
        Some(home) => PathBuf::from(home),
        None => {
            PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache/pg_duplex/kafka-4.1.0")
        }
    };
    anyhow::ensure!(home.is_dir(), "no Kafka in {}: run `make kafka`", home.display());
    Ok(home)
}

impl Broker {
    /// Starts a new one of this number in the cluster. The proxies lead to the first one.
    pub(super) fn create(
        folder: &Arc<Folder>,
        home: &Path,
        cluster: &Cluster<'_>,
        index: usize,
        doors: &[&Proxy],
    ) -> Result<Self> {
        let Address { clients, controller } = cluster.addresses[index];
        let (mut listeners, mut advertised, mut protocols) = (String::new(), String::new(), String::new());
        for (i, door) in doors.iter().enumerate().filter(|_| index == 0) {
            let behind = ports::free()?;
            door.lead_to(behind);
            listeners += &format!(",DOOR{i}://127.0.0.1:{behind}");
            advertised += &format!(",DOOR{i}://127.0.0.1:{}", door.port());
            protocols += &format!(",DOOR{i}:PLAINTEXT");
        }
        let voter = |(index, address): (usize, &Address)| format!("{}@127.0.0.1:{}", index + 1, address.controller);
        let voters: Vec<_> = cluster.addresses.iter().enumerate().map(voter).collect();
        let replicas = voters.len();
        let properties = home.join("kraft.properties");
        std::fs::write(
            &properties,
            format!(
                "process.roles=broker,controller\n\
                 node.id={}\n\
                 controller.quorum.voters={}\n\
                 listeners=PLAINTEXT://127.0.0.1:{clients},CONTROLLER://127.0.0.1:{controller}{listeners}\n\
                 advertised.listeners=PLAINTEXT://127.0.0.1:{clients}{advertised}\n\
                 controller.listener.names=CONTROLLER\n\
                 listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}\n\
                 log.dirs={}\n\
                 auto.create.topics.enable={}\n\
                 default.replication.factor={replicas}\n\
                 min.insync.replicas={}\n\
                 offsets.topic.replication.factor=1\n\
                 offsets.topic.num.partitions=1\n\
                 transaction.state.log.replication.factor=1\n\
                 transaction.state.log.min.isr=1\n\
                 transaction.state.log.num.partitions=1\n\
                 share.coordinator.state.topic.replication.factor=1\n\
                 share.coordinator.state.topic.min.isr=1\n\
                 group.initial.rebalance.delay.ms=0\n",
                index + 1,
                voters.join(","),
                home.join("data").display(),
                cluster.makes_topics,
                (replicas - 1).max(1),
            ),
        )?;
        let classpath = format!("{}/*", jars()?.display());
        let log4j = home.join("log4j2.properties");
        std::fs::write(&log4j, include_str!("log4j2.properties"))?;
        let log4j = format!("-Dlog4j2.configurationFile={}", log4j.display());
        // What a JVM that is killed leaves behind (native libraries, counters) goes with the lab's folder.
        let temporary = format!("-Djava.io.tmpdir={}", home.display());
        let java = |memory: &str, rest: &[&str]| -> Vec<String> {
            ["java", memory, "-XX:+UseSerialGC", "-XX:-UsePerfData", &temporary, &log4j, "-cp", &classpath]
                .into_iter()
                .chain(rest.iter().copied())
                .map(str::to_owned)
                .collect()
        };
        let properties = properties.to_string_lossy();
        let format = java("-Xmx64m", &["kafka.tools.StorageTool", "format", "-t", &cluster.id, "-c", &properties]);
        run(None, &format.iter().map(String::as_str).collect::<Vec<_>>())?;
        let recipe = Recipe {
            name: "Kafka".into(),
            command: java("-Xmx256m", &["kafka.Kafka", &properties]),
            env: Vec::new(),
            user: None,
            log: home.join("kafka.log"),
            orphan_signal: "KILL",
        };
        let server = Arc::new(recipe.start()?);
        folder.watch(server.pid());
        Ok(Self { recipe, folder: Arc::clone(folder), server: Mutex::new(server) })
    }

    /// Fails if it has ended, with the end of its log.
    pub(super) fn check(&self) -> Result<()> {
        self.server().check()
    }

    /// Its process id, if it runs.
    pub fn pid(&self) -> Option<i32> {
        Some(self.server()).filter(|server| server.ended().is_none()).map(|server| server.pid())
    }

    /// Ends it in good order.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop(&self) -> Result<()> {
        self.server().end(Signal::SIGTERM, PATIENCE).map(drop)
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// If it does not end.
    pub fn kill(&self) -> Result<()> {
        self.server().kill().map(drop)
    }

    /// SIGSTOP: connections stay open, nothing answers.
    ///
    /// # Errors
    /// If it has ended.
    pub fn pause(&self) -> Result<()> {
        self.server().pause()
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// If it has ended.
    pub fn resume(&self) -> Result<()> {
        self.server().resume()
    }

    /// Starts it again, with the same data at the same address; does not wait until it answers.
    ///
    /// # Errors
    /// If the process cannot be started.
    pub fn start(&self) -> Result<()> {
        let server = Arc::new(self.recipe.start()?);
        self.folder.watch(server.pid());
        *self.server.lock().expect("no panic while it is held") = server;
        Ok(())
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        &self.recipe.log
    }

    fn server(&self) -> Arc<Process> {
        Arc::clone(&self.server.lock().expect("no panic while it is held"))
    }
}
