//! The lab as a program: `duplex-lab up`, and control of its parts from outside.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use duplex_lab::process::tail;
use duplex_lab::wait::when;
use duplex_lab::{Lab, PATIENCE, Session, ports, topic, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// How long one call may take: a lab starts several servers, on a machine that may be busy with others.
const LONGEST: Duration = Duration::from_secs(240);

/// A temporary folder that servers of another user may enter.
pub(crate) fn temporary() -> Result<TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::Builder::new().prefix("dl-").tempdir()?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

/// `duplex-lab up` in a folder, with the broker at this address, if it is not empty.
fn program(temporary: &TempDir, kafka: &str) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_duplex-lab"));
    program.arg("up").env("TMPDIR", temporary.path()).env("KAFKA_BOOTSTRAP_SERVERS", kafka);
    program.stdin(Stdio::null()).kill_on_drop(true);
    program
}

/// A lab that is up in a process of its own.
struct Up {
    process: Child,
    described: Value,
    temporary: TempDir,
}

impl Up {
    async fn start(arguments: &[&str]) -> Result<Self> {
        Self::start_with("", arguments).await
    }

    /// With the broker at this address, if it is not empty.
    async fn start_with(kafka: &str, arguments: &[&str]) -> Result<Self> {
        let temporary = temporary()?;
        let mut process = program(&temporary, kafka).args(arguments).stdout(Stdio::piped()).spawn()?;
        let stdout = process.stdout.take().context("piped")?;
        let line = tokio::time::timeout(LONGEST, BufReader::new(stdout).lines().next_line()).await??;
        let described = serde_json::from_str(&line.context("the lab ended at once")?)?;
        Ok(Self { process, described, temporary })
    }

    fn text(&self, pointer: &str) -> &str {
        self.described
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_else(|| panic!("{pointer} in {}", self.described))
    }

    async fn ctl(&self, words: &[&str]) -> Result<Output> {
        let ctl = Command::new(env!("CARGO_BIN_EXE_duplex-lab"))
            .arg("ctl")
            .args(words)
            .env("TMPDIR", self.temporary.path())
            .output();
        Ok(tokio::time::timeout(LONGEST, ctl).await??)
    }

    /// The state that a part is in after a command.
    async fn state_after(&self, words: &[&str]) -> Result<String> {
        let output = self.ctl(words).await?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.status.success(), "{words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        let answer: Value = serde_json::from_str(&text)?;
        Ok(answer["state"].as_str().with_context(|| text.clone())?.to_owned())
    }

    /// All processes of the lab that the description names; a broker that was there before is none of them.
    fn pids(&self) -> Vec<i64> {
        let nodes = self.described["nodes"].as_array().expect("a list of nodes");
        let parts = nodes.iter().flat_map(|node| [&node["postgres"], &node["relay"]]);
        parts.chain([&self.described["kafka"]]).filter_map(|part| part["pid"].as_i64()).collect()
    }

    /// Waits until neither a process nor a file is left.
    async fn gone(&self, pids: &[i64]) -> Result<()> {
        until("the lab to be gone", LONGEST, async || {
            let alive: Vec<_> = pids.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).collect();
            let left: Vec<PathBuf> =
                std::fs::read_dir(self.temporary.path())?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
            Ok(when(alive.is_empty() && left.is_empty(), format!("processes {alive:?} and files {left:?} are left")))
        })
        .await
    }
}

#[tokio::test]
async fn every_part_of_a_lab_can_be_stopped_killed_paused_and_brought_back() -> Result<()> {
    let mut up = Up::start(&["--names", "left,right"]).await?;
    let (left, right) = (up.text("/nodes/0/url"), up.text("/nodes/1/url"));
    assert_eq!((up.text("/nodes/1/topic"), up.text("/nodes/1/relay/part")), ("duplex.right", "relay2"));
    for url in [left, right] {
        let sql = "create table t (id int primary key); select duplex.enable('t')";
        Session::connect(url).await?.exec(sql).await?;
    }

    assert_eq!(up.state_after(&["kill", "relay1"]).await?, "ended");
    assert_eq!(up.state_after(&["stop", "relay2"]).await?, "ended");
    Session::connect(left).await?.exec("insert into t values (1)").await?;
    assert_eq!(up.state_after(&["start", "relay1"]).await?, "running");
    assert_eq!(up.state_after(&["restart", "relay2"]).await?, "running");
    holds(&up, right, 1).await?;

    assert_eq!(up.state_after(&["pause", "kafka"]).await?, "paused");
    Session::connect(right).await?.exec("insert into t values (2)").await?;
    let status = String::from_utf8(up.ctl(&["status"]).await?.stdout)?;
    let parts: Vec<Value> = serde_json::from_str(&status)?;
    let found: Vec<_> = parts.iter().map(|part| (part["part"].as_str(), part["state"].as_str())).collect();
    let expected =
        [("kafka", "paused"), ("pg1", "running"), ("relay1", "running"), ("pg2", "running"), ("relay2", "running")];
    assert_eq!(found, expected.map(|(part, state)| (Some(part), Some(state))));
    assert_eq!(up.state_after(&["resume", "kafka"]).await?, "running");
    holds(&up, left, 2).await?;

    assert_eq!(up.state_after(&["kill", "pg1"]).await?, "ended");
    assert!(Session::connect(left).await.is_err());
    Session::connect(right).await?.exec("insert into t values (3)").await?;
    assert_eq!(up.state_after(&["start", "pg1"]).await?, "running");
    holds(&up, left, 3).await?;
    assert_eq!(up.state_after(&["pause", "pg2"]).await?, "paused");
    assert_eq!(up.state_after(&["resume", "pg2"]).await?, "running");
    assert_eq!(up.state_after(&["restart", "kafka"]).await?, "running");
    Session::connect(left).await?.exec("insert into t values (4)").await?;
    holds(&up, right, 4).await?;

    for (words, message) in [
        (&["kill", "relay9"][..], "no part \\\"relay9\\\""),
        (&["start", "relay1"], "runs already"),
        (&["explode", "relay1"], "not understood"),
        (&["pause"], "not understood"),
    ] {
        let output = up.ctl(words).await?;
        let text = String::from_utf8(output.stdout)?;
        assert!(!output.status.success() && text.contains(message), "{words:?}: {text}");
    }

    let pids = up.pids();
    assert_eq!(pids.len(), 5);
    assert_eq!(up.state_after(&["quit"]).await?, "ending");
    let status = tokio::time::timeout(LONGEST, up.process.wait()).await??;
    assert!(status.success(), "{status}");
    up.gone(&pids).await
}

#[tokio::test]
async fn a_lab_that_is_killed_takes_everything_with_it() -> Result<()> {
    let mut up = Up::start(&["--nodes", "1"]).await?;
    let pids = up.pids();
    assert_eq!(pids.len(), 3);
    // What is paused must end as well.
    assert_eq!(up.state_after(&["pause", "kafka"]).await?, "paused");
    assert_eq!(up.state_after(&["pause", "pg1"]).await?, "paused");
    up.process.start_kill()?;
    up.process.wait().await?;
    up.gone(&pids).await
}

#[tokio::test]
async fn sigterm_ends_a_lab_in_good_order() -> Result<()> {
    let mut up = Up::start(&["--nodes", "1", "--relays-stopped"]).await?;
    assert_eq!(up.state_after(&["start", "relay1"]).await?, "running");
    let pid = i32::try_from(up.process.id().context("it runs")?)?;
    kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    let status = tokio::time::timeout(LONGEST, up.process.wait()).await??;
    assert!(status.success(), "{status}");
    assert_eq!(std::fs::read_dir(up.temporary.path())?.count(), 0, "something is left in the temporary folder");
    Ok(())
}

#[tokio::test]
async fn a_broker_that_is_there_already_is_used_and_left_as_it_was() -> Result<()> {
    let other = Lab::shared(1).await?;
    let kafka = other.kafka();
    let mut up = Up::start_with(kafka.bootstrap(), &["--names", "left,right"]).await?;
    assert_eq!(up.text("/kafka/bootstrap"), kafka.bootstrap());
    for i in ["/nodes/0/url", "/nodes/1/url"] {
        let sql = "create table t (id int primary key); select duplex.enable('t')";
        Session::connect(up.text(i)).await?.exec(sql).await?;
    }
    Session::connect(up.text("/nodes/0/url")).await?.exec("insert into t values (1)").await?;
    holds(&up, up.text("/nodes/1/url"), 1).await?;
    // The stream of an earlier lab's node of that name may be there.
    let name = up.text("/nodes/0/name").to_owned();
    ensure!(name.starts_with("left-"), "{name}");
    let published = topic::transactions(&topic::read(kafka, &name).await?)?;
    assert_eq!(published.len(), 1);

    let output = up.ctl(&["kill", "kafka"]).await?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(!output.status.success() && text.contains("not the lab's own"), "{text}");
    let pids = up.pids();
    assert_eq!(pids.len(), 4);
    assert_eq!(up.state_after(&["quit"]).await?, "ending");
    let status = tokio::time::timeout(LONGEST, up.process.wait()).await??;
    assert!(status.success(), "{status}");
    up.gone(&pids).await?;
    kafka.ready().await?;
    until("the lab's topic to be gone", PATIENCE, async || {
        Ok(when(topic::end(kafka, &name).await? == 0, "it is still there"))
    })
    .await
}

#[tokio::test]
async fn a_broker_that_does_not_answer_is_named() -> Result<()> {
    let temporary = temporary()?;
    let address = format!("127.0.0.1:{}", ports::free()?);
    let output = tokio::time::timeout(LONGEST, program(&temporary, &address).output()).await??;
    let text = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("error: no Kafka answers at {address} (KAFKA_BOOTSTRAP_SERVERS)")), "{text}");
    assert_eq!(std::fs::read_dir(temporary.path())?.count(), 0, "something is left in the temporary folder");
    Ok(())
}

/// Waits until a database's table holds so many rows.
async fn holds(up: &Up, url: &str, count: i64) -> Result<()> {
    let session = Session::connect(url).await?;
    let came = until("rows to come over", PATIENCE, async || {
        let found = session.number("select count(*) from t").await?;
        Ok(when(found == count, format!("{found} of {count} rows")))
    });
    let logs =
        || ["/nodes/0/relay/log", "/nodes/1/relay/log"].map(|log| tail(Path::new(up.text(log)), 20)).join("\n\n");
    came.await.with_context(logs)
}
