//! A relay: the real binary, as a process.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::folder::Folder;
use crate::process::{Process, Recipe, tail};
use crate::{PATIENCE, Place};

/// A node's relay.
#[derive(Debug)]
pub struct Relay {
    recipe: Recipe,
    folder: Arc<Folder>,
    process: Mutex<Option<Arc<Process>>>,
}

/// The binary: `$DUPLEX_RELAY_BIN`, or the one built beside this program.
///
/// # Errors
/// If there is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("DUPLEX_RELAY_BIN") {
        return Ok(PathBuf::from(path));
    }
    let own = std::env::current_exe()?;
    // target/release/duplex-lab, or target/release/deps/suite-0123456789abcdef.
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("duplex-relay"))
        .find(|path| path.is_file())
        .context("duplex-relay is not built: `make build`, or set DUPLEX_RELAY_BIN")
}

/// The same built with failpoints, which lies beside it: `make failpoints`.
fn failing_binary() -> Result<PathBuf> {
    let path = binary()?.with_file_name("duplex-relay-failpoints");
    anyhow::ensure!(path.is_file(), "{} is not built: `make failpoints`", path.display());
    Ok(path)
}

impl Relay {
    /// A relay that is not started yet. `properties` are passed on to librdkafka.
    ///
    /// # Errors
    /// If the binary is not there.
    pub fn new(folder: Arc<Folder>, node: &str, database: &str, kafka: &str, properties: &[String]) -> Result<Self> {
        let mut command = vec![binary()?.to_string_lossy().into_owned(), "run".into()];
        for property in properties {
            command.extend(["--kafka-property".into(), property.clone()]);
        }
        let recipe = Recipe {
            name: format!("relay of {node}"),
            command,
            env: vec![("DUPLEX_DATABASE".into(), database.into()), ("DUPLEX_KAFKA".into(), kafka.into())],
            user: None,
            log: folder.path().join(format!("relay-{node}.log")),
            orphan_signal: "KILL",
        };
        Ok(Self { recipe, folder, process: Mutex::new(None) })
    }

    /// A second one of the same node, with a log of its own: a hot standby.
    pub fn standby(&self) -> Self {
        self.another("standby")
    }

    /// So many more of the same node, each with a log of its own.
    pub fn standbys(&self, count: usize) -> Vec<Self> {
        (1..=count).map(|number| self.another(&format!("standby{number}"))).collect()
    }

    fn another(&self, role: &str) -> Self {
        let mut recipe = self.recipe.clone();
        recipe.name = format!("{role} {}", recipe.name);
        recipe.log = recipe.log.with_extension(format!("{role}.log"));
        Self { recipe, folder: Arc::clone(&self.folder), process: Mutex::new(None) }
    }

    /// The same relay with another value in its environment: another Kafka, another database.
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut recipe = self.recipe.clone();
        recipe.env.retain(|(known, _)| known != name);
        recipe.env.push((name.to_owned(), value.to_owned()));
        Self { recipe, folder: Arc::clone(&self.folder), process: Mutex::new(None) }
    }

    /// The newest generation that it has announced in its log: its newest take-over; 0 if there was none.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn generation(&self) -> Result<u64> {
        let generations = self
            .said(&["publishing", "publishing goes on"])?
            .into_iter()
            .filter_map(|line| line["generation"].as_u64());
        Ok(generations.max().unwrap_or_default())
    }

    /// When it last began to apply a peer's stream, by its log: RFC 3339, in UTC; empty if it never did.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn applying_since(&self) -> Result<String> {
        let line = self.said(&["applying"])?.pop().unwrap_or_default();
        Ok(line["timestamp"].as_str().unwrap_or_default().to_owned())
    }

    /// The lines of its log with one of these messages; none if it was never started.
    fn said(&self, messages: &[&str]) -> Result<Vec<serde_json::Value>> {
        if self.process().is_err() {
            return Ok(Vec::new());
        }
        // A relay that was killed may have left half a line.
        let text = self.log_text()?;
        let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        Ok(lines.filter(|line| line["message"].as_str().is_some_and(|said| messages.contains(&said))).collect())
    }

    /// All of its log.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn log_text(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.recipe.log)?)
    }

    /// A second one of the same node that goes straight to the database and to Kafka, past any proxy.
    pub fn standby_at(&self, database: &str, kafka: &str) -> Self {
        let mut standby = self.standby();
        standby.recipe.env = vec![("DUPLEX_DATABASE".into(), database.into()), ("DUPLEX_KAFKA".into(), kafka.into())];
        standby
    }

    /// Starts it as a process that dies as if by kill -9 when it has passed a place `passes` times.
    ///
    /// # Errors
    /// If the binary with failpoints is not built, or cannot be started.
    pub fn start_failing(&self, place: Place, passes: u32) -> Result<()> {
        let mut recipe = self.recipe.clone();
        recipe.command[0] = failing_binary()?.to_string_lossy().into_owned();
        recipe.env.push(("FAILPOINTS".into(), format!("{}={passes}*off->return", place.name())));
        self.start_as(&recipe)
    }

    /// Starts it (again).
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self) -> Result<()> {
        self.start_as(&self.recipe)
    }

    fn start_as(&self, recipe: &Recipe) -> Result<()> {
        let process = Arc::new(recipe.start()?);
        self.folder.watch(process.pid());
        *self.process.lock().expect("no panic while it is held") = Some(process);
        Ok(())
    }

    /// The process.
    ///
    /// # Errors
    /// If it was never started.
    pub fn process(&self) -> Result<Arc<Process>> {
        let process = self.process.lock().expect("no panic while it is held").clone();
        process.with_context(|| format!("{} was never started", self.recipe.name))
    }

    /// SIGTERM: it drains and ends.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop(&self) -> Result<ExitStatus> {
        self.process()?.end(Signal::SIGTERM, PATIENCE)
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// If it was never started.
    pub fn kill(&self) -> Result<()> {
        self.process()?.kill().map(drop)
    }

    /// SIGSTOP.
    ///
    /// # Errors
    /// If it has ended.
    pub fn pause(&self) -> Result<()> {
        self.process()?.pause()
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// If it has ended.
    pub fn resume(&self) -> Result<()> {
        self.process()?.resume()
    }

    /// Its process id, if it runs.
    pub fn pid(&self) -> Option<i32> {
        self.process().ok().filter(|process| process.ended().is_none()).map(|process| process.pid())
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        &self.recipe.log
    }

    /// The end of its log, for messages.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.recipe.log, lines)
    }
}

/// Which of a node's relays took over last, by their logs: the active one, unless another is at it right now.
///
/// # Errors
/// If a log cannot be read, or there is no relay.
pub fn latest(relays: &[&Relay]) -> Result<usize> {
    let generations: Vec<u64> = relays.iter().map(|relay| relay.generation()).collect::<Result<_>>()?;
    (0..generations.len()).max_by_key(|&i| generations[i]).context("a node without relays")
}
