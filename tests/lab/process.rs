//! A process that cannot outlive this one.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

type Order = (Command, Sender<std::io::Result<Child>>);

/// Starts every process from one thread that never ends.
///
/// The kernel signals a child when the *thread* that made it ends (`PR_SET_PDEATHSIG`), and a test's thread ends with
/// the test, while servers are shared by all of them.
fn spawn(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, orders) = channel::<Order>();
        std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                for (mut command, reply) in orders {
                    let _ = reply.send(command.spawn());
                }
            })
            .expect("starting a thread");
        Mutex::new(sender)
    });
    let (reply, child) = channel();
    spawner.lock().expect("no panic while it is held").send((command, reply)).context("the spawner has ended")?;
    Ok(child.recv().context("the spawner has ended")??)
}

/// What to start, as often as is needed.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// For messages.
    pub name: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Environment on top of ours.
    pub env: Vec<(String, String)>,
    /// Run as this user; `None` for ours.
    pub user: Option<String>,
    /// Standard output and error go here, appended.
    pub log: PathBuf,
    /// What it gets when this process is gone: the signal for its quickest end that leaves nothing behind.
    pub orphan_signal: &'static str,
}

/// A running (or ended) process of the lab.
#[derive(Debug)]
pub struct Process {
    recipe: Recipe,
    child: Mutex<Child>,
    pid: Pid,
}

impl Recipe {
    /// Starts it.
    ///
    /// # Errors
    /// If the program or the log file cannot be had.
    pub fn start(&self) -> Result<Process> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new("setpriv");
        if let Some(user) = &self.user {
            command.args(["--reuid", user, "--regid", user, "--init-groups"]);
        }
        command
            .args(["--pdeathsig", self.orphan_signal, "--"])
            .args(&self.command)
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let child = spawn(command).with_context(|| format!("starting {}", self.name))?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        Ok(Process { recipe: self.clone(), child: Mutex::new(child), pid })
    }
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        &self.recipe.log
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child.lock().expect("no panic while it is held").try_wait().ok().flatten()
    }

    /// An error with the end of its log, if it has ended.
    ///
    /// # Errors
    /// If it has ended.
    pub fn check(&self) -> Result<()> {
        match self.ended() {
            None => Ok(()),
            Some(status) => bail!("{} has ended ({status}):\n{}", self.recipe.name, tail(self.log(), 30)),
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // Once waited for, the id may be somebody else's.
        self.check()?;
        kill(self.pid, signal).with_context(|| format!("signalling {}", self.recipe.name))
    }

    /// Whether it has said what is to happen on a signal. One that has only just started has not, and ends of it.
    ///
    /// # Errors
    /// If it has ended.
    pub fn heeds(&self, signal: Signal) -> Result<bool> {
        let status = self.status()?;
        let caught = field(&status, "SigCgt:").context("a process without signals")?;
        let mask = u64::from_str_radix(caught, 16)?;
        Ok(mask & (1 << (signal as u32 - 1)) != 0)
    }

    /// SIGSTOP: it is there, and does nothing.
    ///
    /// # Errors
    /// If it has ended.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// If it has ended.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// SIGKILL, and waits for its end.
    ///
    /// # Errors
    /// If it will not end.
    pub fn kill(&self) -> Result<ExitStatus> {
        self.end(Signal::SIGKILL, Duration::from_secs(10))
    }

    /// Asks it to end with a signal, and waits; one that does not end in time is killed, which is an error.
    ///
    /// # Errors
    /// If it did not end by itself in time.
    pub fn end(&self, signal: Signal, patience: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended() {
            return Ok(status);
        }
        let _ = kill(self.pid, signal);
        let _ = kill(self.pid, Signal::SIGCONT);
        let start = Instant::now();
        while start.elapsed() < patience {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = self.child.lock().expect("no panic while it is held").wait();
        bail!("{} did not end within {patience:?} after {signal}:\n{}", self.recipe.name, tail(self.log(), 30))
    }

    /// Resident memory in KiB: now, and the most it ever was.
    ///
    /// # Errors
    /// If it has ended.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let status = self.status()?;
        let kib = |name: &str| {
            let value = field(&status, name).unwrap_or_default();
            value.trim_end_matches(" kB").parse().with_context(|| format!("{name} of {}", self.recipe.name))
        };
        Ok((kib("VmRSS:")?, kib("VmHWM:")?))
    }

    /// What the kernel says of it.
    fn status(&self) -> Result<String> {
        self.check()?;
        std::fs::read_to_string(format!("/proc/{}/status", self.pid)).with_context(|| self.recipe.name.clone())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended().is_none() {
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = self.child.lock().map(|mut child| child.wait());
        }
    }
}

/// A field of what the kernel says of a process.
fn field<'s>(status: &'s str, name: &str) -> Option<&'s str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Whether a process ended by this signal.
pub fn died_of(status: ExitStatus, signal: Signal) -> bool {
    status.signal() == Some(signal as i32)
}

/// Runs a command to its end, as a user if one is given. It ends with this process too: what went on writing would bring
/// a folder back that is being removed.
///
/// # Errors
/// If it fails; the message holds what it printed.
pub fn run(user: Option<&str>, command: &[&str]) -> Result<()> {
    let mut run = Command::new("setpriv");
    if let Some(user) = user {
        run.args(["--reuid", user, "--regid", user, "--init-groups"]);
    }
    // This thread waits for the command, so it cannot end before it.
    run.args(["--pdeathsig", "KILL", "--"]).args(command);
    let output = run.stdin(Stdio::null()).output().with_context(|| format!("running {}", command[0]))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}):\n{}{}",
            command.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// The last lines of a file, for messages.
pub fn tail(path: &Path, lines: usize) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(64 * 1024)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_else(|err| format!("({}: {err})", path.display()));
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
