//! Control of a lab that is up: lines over a Unix socket in its folder.
//!
//! One line is one command, and is answered by one line of JSON; a connection may send many. Commands of all
//! connections are carried out one after the other.
//!
//! | line | what it does |
//! |---|---|
//! | `status` | says how every part is |
//! | `stop PART` | ends it in good order: SIGTERM to a relay or Kafka, a fast shutdown of PostgreSQL |
//! | `kill PART` | SIGKILL; of PostgreSQL to the postmaster, whose backends notice and end |
//! | `pause PART`, `resume PART` | SIGSTOP and SIGCONT: connections stay open, nothing answers |
//! | `start PART` | starts one that has ended, with the data and at the address that it had |
//! | `restart PART` | `stop` and `start` |
//! | `quit` | ends the lab |
//!
//! Parts are `kafka`, and `pg1`, `relay1`, `pg2`, `relay2` and so on. An answer is `{"part": …, "state": …, "pid": …}`
//! with the state `running`, `paused` or `ended`, or `{"error": …}`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use duplex_lab::wait::when;
use duplex_lab::{Lab, PATIENCE, until};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinSet;

/// The socket's place in a lab's folder.
pub(crate) fn socket(folder: &Path) -> PathBuf {
    folder.join("control.sock")
}

/// Serves the socket until `quit` is notified, which a connection may do as well. Nothing holds the lab afterwards.
pub(crate) async fn serve(lab: Arc<Lab>, quit: Arc<Notify>) -> Result<()> {
    let path = socket(lab.folder());
    let listener = UnixListener::bind(&path).with_context(|| format!("{}", path.display()))?;
    let turn = Arc::new(Mutex::new(lab));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = quit.notified() => {
                connections.shutdown().await;
                return Ok(());
            }
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("waiting for commands")?;
                connections.spawn(converse(stream, Arc::clone(&turn), Arc::clone(&quit)));
            }
            // Those that have ended are not kept.
            Some(_) = connections.join_next() => {}
        }
    }
}

/// A client that goes away is nobody's trouble.
async fn converse(mut stream: UnixStream, turn: Arc<Mutex<Arc<Lab>>>, quit: Arc<Notify>) {
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let ends = line.trim() == "quit";
        let answer = if ends { json!({ "state": "ending" }) } else { carry_out(&*turn.lock().await, &line) };
        if write.write_all(format!("{answer}\n").as_bytes()).await.is_err() {
            return;
        }
        if ends {
            quit.notify_one();
        }
    }
}

/// Carries a command out on this thread, because stopping a part waits for its end; other tasks need not wait.
fn carry_out(lab: &Lab, line: &str) -> Value {
    tokio::task::block_in_place(|| Handle::current().block_on(obey(lab, line)))
        .unwrap_or_else(|err| json!({ "error": format!("{err:#}") }))
}

async fn obey(lab: &Lab, line: &str) -> Result<Value> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["status"] => Ok(Value::Array(parts(lab).iter().map(|part| part.described(lab)).collect())),
        [word @ ("start" | "stop" | "kill" | "pause" | "resume" | "restart"), name] => {
            let part = parts(lab).into_iter().find(|part| part.name() == name);
            let part = part.with_context(|| format!("there is no part \"{name}\"; `status` lists them"))?;
            part.change(lab, word).await.with_context(|| format!("{word} {name}"))?;
            Ok(part.described(lab))
        }
        _ => bail!("not understood: use status, quit, or one of start, stop, kill, pause, resume, restart with a part"),
    }
}

/// A part of the lab; relays and servers by the number of their node, from 0.
#[derive(Debug, Clone, Copy)]
enum Part {
    Kafka,
    Postgres(usize),
    Relay(usize),
}

fn parts(lab: &Lab) -> Vec<Part> {
    let nodes = (0..lab.nodes().len()).flat_map(|i| [Part::Postgres(i), Part::Relay(i)]);
    std::iter::once(Part::Kafka).chain(nodes).collect()
}

impl Part {
    fn name(self) -> String {
        match self {
            Self::Kafka => "kafka".to_owned(),
            Self::Postgres(i) => format!("pg{}", i + 1),
            Self::Relay(i) => format!("relay{}", i + 1),
        }
    }

    fn pid(self, lab: &Lab) -> Option<i32> {
        match self {
            Self::Kafka => lab.kafka().pid(),
            Self::Postgres(i) => lab.node(i).cluster().pid(),
            Self::Relay(i) => lab.node(i).relay().pid(),
        }
    }

    fn described(self, lab: &Lab) -> Value {
        let pid = self.pid(lab);
        let state = match pid {
            // A broker that was there before is not ours to look after.
            None if matches!(self, Self::Kafka) && !lab.kafka().is_own() => "external",
            None => "ended",
            Some(pid) if is_paused(pid) => "paused",
            Some(_) => "running",
        };
        json!({ "part": self.name(), "state": state, "pid": pid })
    }

    async fn change(self, lab: &Lab, word: &str) -> Result<()> {
        match word {
            "start" => {
                ensure!(self.pid(lab).is_none(), "it runs already");
                self.start(lab).await
            }
            "restart" => {
                self.stop(lab)?;
                self.start(lab).await
            }
            "stop" => self.stop(lab),
            "kill" => self.kill(lab).await,
            "pause" => {
                self.pause(lab)?;
                self.comes_to(lab, true).await
            }
            _ => {
                self.resume(lab)?;
                self.comes_to(lab, false).await
            }
        }
    }

    /// A signal takes a moment to reach every thread of a process.
    async fn comes_to(self, lab: &Lab, pause: bool) -> Result<()> {
        until(&format!("{} to be signalled", self.name()), PATIENCE, async || {
            let pid = self.pid(lab).context("it has ended")?;
            Ok(when(is_paused(pid) == pause, "not yet"))
        })
        .await
    }

    async fn start(self, lab: &Lab) -> Result<()> {
        match self {
            Self::Kafka => lab.kafka().start().await,
            Self::Postgres(i) => lab.node(i).cluster().start().await,
            Self::Relay(i) => lab.node(i).relay().start(),
        }
    }

    fn stop(self, lab: &Lab) -> Result<()> {
        match self {
            Self::Kafka => lab.kafka().stop(),
            Self::Postgres(i) => lab.node(i).cluster().stop(),
            Self::Relay(i) => {
                let status = lab.node(i).relay().stop()?;
                ensure!(status.success(), "it ended with {status}");
                Ok(())
            }
        }
    }

    async fn kill(self, lab: &Lab) -> Result<()> {
        match self {
            Self::Kafka => lab.kafka().kill(),
            Self::Postgres(i) => lab.node(i).cluster().kill().await,
            Self::Relay(i) => lab.node(i).relay().kill(),
        }
    }

    fn pause(self, lab: &Lab) -> Result<()> {
        match self {
            Self::Kafka => lab.kafka().pause(),
            Self::Postgres(i) => lab.node(i).cluster().pause(),
            Self::Relay(i) => lab.node(i).relay().pause(),
        }
    }

    fn resume(self, lab: &Lab) -> Result<()> {
        match self {
            Self::Kafka => lab.kafka().resume(),
            Self::Postgres(i) => lab.node(i).cluster().resume(),
            Self::Relay(i) => lab.node(i).relay().resume(),
        }
    }
}

/// Whether a process is stopped by SIGSTOP, as the kernel says.
fn is_paused(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it is in parentheses and may hold anything.
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}
