//! pgbench that takes turns with others of its kind: one runs, the others are stopped.
//!
//! A machine's disk and processors are not the same from one second to the next. Turns of a fraction of a second, many of
//! them, meet the same machine; what was committed in them is in pgbench's own log of transactions.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use duplex_lab::Cluster;
use duplex_lab::process::{Process, Recipe};
use tempfile::TempDir;

/// What is left out of a turn at its beginning: connections that wake up.
const RUN_UP: Duration = Duration::from_millis(20);

/// How long each runs before the first turn, and after the last: what pgbench has not written to its log yet is of that time.
const WARM_UP: Duration = Duration::from_secs(1);
const RUN_OUT: Duration = Duration::from_millis(200);

/// A pgbench without an end.
#[derive(Debug)]
pub(crate) struct Pgbench {
    process: Process,
    folder: TempDir,
    /// From when to when it ran, since the epoch.
    turns: Vec<(Duration, Duration)>,
}

impl Pgbench {
    /// Starts it, lets it warm up, and stops it. `arguments` say what it does.
    pub(crate) async fn start(cluster: &Cluster, database: &str, arguments: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let prefix = folder.path().join("log").to_string_lossy().into_owned();
        let port = cluster.port().to_string();
        let own = ["-h", "127.0.0.1", "-U", "postgres", "-p", &port, "-T", "86400", "-l", "--log-prefix", &prefix];
        let program = cluster.program("pgbench").to_string_lossy().into_owned();
        let arguments = own.iter().chain(arguments).chain([&database]).map(|&argument| argument.to_owned());
        let recipe = Recipe {
            name: format!("pgbench of {database}"),
            command: std::iter::once(program).chain(arguments).collect(),
            env: Vec::new(),
            user: None,
            log: folder.path().join("output"),
            orphan_signal: "KILL",
        };
        let process = recipe.start()?;
        tokio::time::sleep(WARM_UP).await;
        process.pause()?;
        Ok(Self { process, folder, turns: Vec::new() })
    }

    /// Runs for so long.
    pub(crate) async fn turn(&mut self, time: Duration) -> Result<()> {
        self.process.resume()?;
        let start = now()?;
        tokio::time::sleep(time).await;
        self.process.pause()?;
        self.turns.push((start + RUN_UP, now()?));
        Ok(())
    }

    /// Ends it. Returns the transactions a second of its turns.
    pub(crate) async fn end(self) -> Result<f64> {
        self.process.resume()?;
        tokio::time::sleep(RUN_OUT).await;
        let status = self.process.check();
        self.process.kill()?;
        status?;
        let mut committed = 0_u32;
        for path in self.logs()? {
            for line in std::fs::read_to_string(path)?.lines() {
                // Its last line may be cut off.
                let Some(at) = committed_at(line) else { continue };
                let turn = self.turns.partition_point(|(_, end)| *end < at);
                committed += u32::from(self.turns.get(turn).is_some_and(|(start, _)| *start <= at));
            }
        }
        let time: Duration = self.turns.iter().map(|(start, end)| end.saturating_sub(*start)).sum();
        Ok(f64::from(committed) / time.as_secs_f64())
    }

    fn logs(&self) -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(self.folder.path())?;
        let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        Ok(paths.into_iter().filter(|path| path.file_name().is_some_and(|name| name != "output")).collect())
    }
}

fn now() -> Result<Duration> {
    SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")
}

/// When the transaction of a line of pgbench's log ended: `client number time script seconds microseconds`.
fn committed_at(line: &str) -> Option<Duration> {
    let mut fields = line.split(' ').skip(4).map(str::parse::<u64>);
    let (Some(Ok(seconds)), Some(Ok(microseconds))) = (fields.next(), fields.next()) else { return None };
    Some(Duration::from_secs(seconds) + Duration::from_micros(microseconds))
}
