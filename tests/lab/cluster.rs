//! A real PostgreSQL cluster.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::unistd::Uid;

use crate::clock::Skew;
use crate::folder::Folder;
use crate::process::{Process, Recipe, run, tail};
use crate::session::Session;
use crate::{PATIENCE, logs, ports, until};

/// The role that the lab's relays log in as.
pub const RELAY_ROLE: &str = "relay";
/// A database with the extension, from which nodes' databases are copied.
const TEMPLATE: &str = "duplex_template";

/// What a cluster is to be like.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its folder's name.
    pub name: String,
    /// Whether it fsyncs. Off saves time where no test crashes the machine; a crash of the server alone needs none.
    pub durable: bool,
    /// More lines of `postgresql.conf`.
    pub settings: Vec<(String, String)>,
    /// A clock that is wrong.
    pub skew: Option<Skew>,
}

/// A cluster: its files, its port, its server.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    bin: PathBuf,
    data: PathBuf,
    sockets: PathBuf,
    port: u16,
    log: PathBuf,
    folder: Arc<Folder>,
    /// The server's environment.
    env: Vec<(String, String)>,
    server: Mutex<Option<Arc<Process>>>,
    /// CREATE DATABASE needs a template that nobody else is connected to.
    copying: tokio::sync::Mutex<()>,
}

/// The user that servers run as: PostgreSQL refuses to run as root.
fn server_user() -> Option<&'static str> {
    Uid::effective().is_root().then_some("postgres")
}

/// Folder of PostgreSQL's programs, from `$PG_CONFIG`, or the newest one installed, or the one in `$PATH`.
fn bindir() -> Result<PathBuf> {
    let config = match std::env::var("PG_CONFIG") {
        Ok(config) if !config.is_empty() => PathBuf::from(config),
        _ => (15..=18)
            .rev()
            .map(|major| PathBuf::from(format!("/usr/lib/postgresql/{major}/bin/pg_config")))
            .find(|path| path.exists())
            // Where scripts/pg-config.sh looks last, too.
            .unwrap_or_else(|| PathBuf::from("pg_config")),
    };
    let output = Command::new(&config).arg("--bindir").output().with_context(|| {
        format!("{}: is PostgreSQL 15 to 18 installed? `make deps`, or set PG_CONFIG", config.display())
    })?;
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}

impl Cluster {
    /// Makes a cluster, starts it, and makes its template database with the extension.
    ///
    /// # Errors
    /// If any of that fails; the extension must have been installed (`make install`).
    pub async fn create(folder: Arc<Folder>, plan: &Plan) -> Result<Self> {
        let bin = bindir()?;
        let home = folder.path().join(&plan.name);
        std::fs::create_dir(&home)?;
        if let Some(user) = server_user() {
            run(None, &["chown", user, &home.to_string_lossy()])?;
        }
        let data = home.join("data");
        let initdb = bin.join("initdb");
        let (initdb, data_text) = (initdb.to_string_lossy(), data.to_string_lossy());
        let options = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"];
        run(server_user(), &[&[&*initdb, "-D", &*data_text], &options[..]].concat()).context("making a cluster")?;
        let mut env = vec![("LC_ALL".into(), "C.UTF-8".into())];
        if let Some(skew) = plan.skew {
            env.extend(skew.environment(&folder)?);
        }
        let mut cluster = Self {
            name: plan.name.clone(),
            env,
            bin,
            sockets: home.clone(),
            log: home.join("server.log"),
            data,
            port: 0,
            folder,
            server: Mutex::new(None),
            copying: tokio::sync::Mutex::new(()),
        };
        // The log must exist before a server of another user opens it for append.
        std::fs::write(&cluster.log, "")?;
        cluster.start_on_a_free_port(plan).await?;
        cluster.make_template().await?;
        Ok(cluster)
    }

    async fn start_on_a_free_port(&mut self, plan: &Plan) -> Result<()> {
        let mut attempts = 0;
        loop {
            self.port = ports::free()?;
            self.write_settings(plan)?;
            match self.start().await {
                Ok(()) => return Ok(()),
                Err(_) if attempts < 5 && tail(&self.log, 20).contains("could not bind") => attempts += 1,
                Err(err) => return Err(err),
            }
        }
    }

    fn write_settings(&self, plan: &Plan) -> Result<()> {
        let mut settings = vec![
            ("port", self.port.to_string()),
            ("listen_addresses", "127.0.0.1".into()),
            ("unix_socket_directories", self.sockets.to_string_lossy().into_owned()),
            ("max_connections", "200".into()),
            ("shared_buffers", "64MB".into()),
            // Replication origins take slots of their own; tests share clusters.
            ("max_replication_slots", "400".into()),
            ("max_prepared_transactions", "20".into()),
            ("track_commit_timestamp", "on".into()),
            ("wal_level", "replica".into()),
            ("max_wal_size", "1GB".into()),
            // Shared memory that leaves nothing behind in /dev/shm.
            ("dynamic_shared_memory_type", "mmap".into()),
            ("log_line_prefix", "%m [%p] %d ".into()),
            ("log_error_verbosity", "verbose".into()),
            ("timezone", "UTC".into()),
        ];
        // From PostgreSQL 18 on, origins are counted apart from slots.
        if self.major()? >= 18 {
            settings.push(("max_active_replication_origins", "400".into()));
        }
        if !plan.durable {
            settings.push(("fsync", "off".into()));
            settings.push(("full_page_writes", "off".into()));
        }
        settings.extend(plan.settings.iter().map(|(name, value)| (name.as_str(), value.clone())));
        let lines: Vec<String> = settings.iter().map(|(name, value)| format!("{name} = '{value}'\n")).collect();
        std::fs::write(self.data.join("postgresql.auto.conf"), lines.concat())?;
        Ok(())
    }

    /// PostgreSQL's major version.
    ///
    /// # Errors
    /// If the cluster's files do not say it.
    pub fn major(&self) -> Result<u16> {
        let path = self.data.join("PG_VERSION");
        let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
        text.trim().parse().with_context(|| format!("{}: {text:?}", path.display()))
    }

    async fn make_template(&self) -> Result<()> {
        let session = self.connect("postgres").await?;
        session.exec(&format!("create role {RELAY_ROLE} login")).await?;
        session.exec(&format!("create database {TEMPLATE}")).await?;
        let template = self.connect(TEMPLATE).await?;
        template.exec("create extension pg_duplex").await.context("is the extension installed? `make install`")?;
        session.exec(&format!("grant duplex_relay to {RELAY_ROLE}")).await
    }

    /// Makes a physical standby of this cluster and starts it: it follows, asynchronously, and answers queries.
    ///
    /// # Errors
    /// If any of that fails.
    pub async fn standby(&self, name: &str) -> Result<Self> {
        let home = self.folder.path().join(name);
        std::fs::create_dir(&home)?;
        let data = home.join("data");
        let backup = self.bin.join("pg_basebackup");
        let (backup, data_text, port) = (backup.to_string_lossy(), data.to_string_lossy(), self.port.to_string());
        if let Some(user) = server_user() {
            run(None, &["chown", user, &home.to_string_lossy()])?;
        }
        let target = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-D", &*data_text];
        let options = ["--checkpoint=fast", "--no-sync", "-X", "stream"];
        run(server_user(), &[&[&*backup], &target[..], &options[..]].concat()).context("copying a cluster")?;
        let standby = Self {
            name: name.to_owned(),
            env: self.env.clone(),
            bin: self.bin.clone(),
            sockets: home.clone(),
            log: home.join("server.log"),
            data,
            port: ports::free()?,
            folder: Arc::clone(&self.folder),
            server: Mutex::new(None),
            copying: tokio::sync::Mutex::new(()),
        };
        std::fs::write(&standby.log, "")?;
        std::fs::write(standby.data.join("standby.signal"), "")?;
        let settings = standby.data.join("postgresql.auto.conf");
        let copied = std::fs::read_to_string(&settings)?;
        let own = format!(
            "port = '{}'\nunix_socket_directories = '{}'\nprimary_conninfo = 'host=127.0.0.1 port={port} user=postgres'\n",
            standby.port,
            home.to_string_lossy()
        );
        std::fs::write(&settings, copied + &own)?;
        standby.start().await?;
        Ok(standby)
    }

    /// Waits until this standby has replayed all that its primary has written by now.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn caught_up_with(&self, primary: &Self) -> Result<()> {
        // A commit that waits for its WAL makes durable, and so sends, what others committed without waiting; as relays do.
        let source = primary.connect("postgres").await?;
        source.exec("select pg_logical_emit_message(true, 'lab', 'a commit')").await?;
        let end = source.one("select pg_current_wal_flush_lsn()").await?;
        let session = self.connect("postgres").await?;
        until("the standby to catch up", PATIENCE, async || {
            let sql = format!("select pg_last_wal_replay_lsn() >= '{end}', pg_last_wal_replay_lsn()");
            let row = session.rows(&sql).await?.into_iter().next().unwrap_or_default();
            let text = |i: usize| row.get(i).cloned().flatten().unwrap_or_default();
            Ok(crate::wait::when(text(0) == "t", format!("at {} of {end}", text(1))))
        })
        .await
    }

    /// Cuts this standby off from its primary: from now on it receives nothing more.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn cut_off(&self) -> Result<()> {
        let session = self.connect("postgres").await?;
        session.exec("alter system set primary_conninfo = ''").await?;
        session.exec("select pg_reload_conf()").await?;
        until("the WAL receiver to end", PATIENCE, async || {
            let left = session.number("select count(*) from pg_stat_wal_receiver").await?;
            Ok(crate::wait::when(left == 0, "it is there"))
        })
        .await
    }

    /// Promotes this standby: it takes writes.
    ///
    /// # Errors
    /// If it does not.
    pub async fn promote(&self) -> Result<()> {
        let promoted = self.connect("postgres").await?.one("select pg_promote(true, 60)").await?;
        if promoted != "t" {
            bail!("{} was not promoted", self.name);
        }
        Ok(())
    }

    /// Makes a database with the extension in it.
    ///
    /// # Errors
    /// The server's.
    pub async fn create_database(&self, name: &str) -> Result<()> {
        let _one_at_a_time = self.copying.lock().await;
        let session = self.connect("postgres").await?;
        until("the template database to be free", PATIENCE, async || {
            match session.exec(&format!("create database \"{name}\" template {TEMPLATE}")).await {
                Ok(()) => Ok(Ok(())),
                // Who made the template may not have left it yet.
                Err(err) if format!("{err:#}").contains("55006") => Ok(Err(format!("{err:#}"))),
                Err(err) => Err(err),
            }
        })
        .await
    }

    /// Starts the server (again) and waits until it takes connections; after a crash it recovers first.
    ///
    /// # Errors
    /// If it ends instead.
    pub async fn start(&self) -> Result<()> {
        let recipe = Recipe {
            name: format!("PostgreSQL {}", self.name),
            command: vec![
                self.bin.join("postgres").to_string_lossy().into_owned(),
                "-D".into(),
                self.data.to_string_lossy().into_owned(),
            ],
            env: self.env.clone(),
            user: server_user().map(str::to_owned),
            log: self.log.clone(),
            // Immediate shutdown: takes its shared memory with it.
            orphan_signal: "QUIT",
        };
        let server = Arc::new(recipe.start()?);
        self.folder.watch(server.pid());
        *self.server.lock().expect("no panic while it is held") = Some(server);
        // Boxed: the compiler nests futures only so deep.
        Box::pin(self.recovered()).await
    }

    /// Waits until it takes connections: after a start, and after a backend was killed, when it restarts all of them.
    ///
    /// # Errors
    /// If it ends, or at the deadline.
    pub async fn recovered(&self) -> Result<()> {
        let server = self.server()?;
        until("PostgreSQL to take connections", PATIENCE, async || {
            server.check()?;
            Ok(self.connect("postgres").await.map(drop).map_err(|err| format!("{err:#}")))
        })
        .await
    }

    fn server(&self) -> Result<Arc<Process>> {
        let server = self.server.lock().expect("no panic while it is held").clone();
        server.with_context(|| format!("PostgreSQL {} was never started", self.name))
    }

    /// Fast shutdown: sessions are cut off, everything is on disk.
    ///
    /// # Errors
    /// If it does not end.
    pub fn stop(&self) -> Result<()> {
        self.server()?.end(Signal::SIGINT, PATIENCE).map(drop)
    }

    /// Immediate shutdown: as if the machine had lost power, but for the kernel's caches.
    ///
    /// # Errors
    /// If it does not end.
    pub fn crash(&self) -> Result<()> {
        self.server()?.end(Signal::SIGQUIT, Duration::from_secs(20)).map(drop)
    }

    /// SIGKILL to the postmaster, and waits until its backends have noticed.
    ///
    /// # Errors
    /// If they go on.
    pub async fn kill(&self) -> Result<()> {
        let server = self.server()?;
        let backends = children_of(server.pid());
        server.kill()?;
        until("backends to notice that the postmaster is gone", PATIENCE, async || {
            let left = backends.iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).count();
            Ok(crate::wait::when(left == 0, format!("{left} are left")))
        })
        .await
    }

    /// Stops every process of the server from running until [`Cluster::resume`]; connections stay open.
    ///
    /// # Errors
    /// If it has ended.
    pub fn pause(&self) -> Result<()> {
        let server = self.server()?;
        server.pause()?;
        self.signal_backends(Signal::SIGSTOP)
    }

    /// Undoes [`Cluster::pause`].
    ///
    /// # Errors
    /// If it has ended.
    pub fn resume(&self) -> Result<()> {
        self.signal_backends(Signal::SIGCONT)?;
        self.server()?.resume()
    }

    fn signal_backends(&self, signal: Signal) -> Result<()> {
        for pid in children_of(self.server()?.pid()) {
            // One that has just ended needs none.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
        }
        Ok(())
    }

    /// SIGKILL to one backend: the postmaster restarts all others.
    ///
    /// # Errors
    /// If the process is none of this server's.
    pub fn kill_backend(&self, pid: i32) -> Result<()> {
        if !children_of(self.server()?.pid()).contains(&pid) {
            bail!("process {pid} is no backend of {}", self.name);
        }
        Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL)?)
    }

    /// A program that came with this server, such as `pgbench`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// The cluster's name in its lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder of its programs.
    pub fn programs(&self) -> &Path {
        &self.bin
    }

    /// Its TCP port on the loopback interface.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of its Unix socket.
    pub fn sockets(&self) -> &Path {
        &self.sockets
    }

    /// The postmaster's process id, if it runs.
    pub fn pid(&self) -> Option<i32> {
        self.server().ok().filter(|server| server.ended().is_none()).map(|server| server.pid())
    }

    /// The server's log file.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Lines of the log that tell of a crash.
    pub fn crashes(&self) -> Vec<String> {
        logs::crashes(&self.log)
    }

    /// A URL as a role sees it, over TCP.
    pub fn url(&self, role: &str, database: &str) -> String {
        format!("postgresql://{role}@127.0.0.1:{}/{database}", self.port)
    }

    /// Connects as superuser.
    ///
    /// # Errors
    /// If the server refuses or is not there.
    pub async fn connect(&self, database: &str) -> Result<Session> {
        self.connect_as("postgres", database).await
    }

    /// Connects as a role.
    ///
    /// # Errors
    /// If the server refuses or is not there.
    pub async fn connect_as(&self, role: &str, database: &str) -> Result<Session> {
        Session::connect(&self.url(role, database)).await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Ok(server) = self.server() {
            let _ = server.end(Signal::SIGQUIT, Duration::from_secs(10));
        }
    }
}

/// Process ids of a process's children.
fn children_of(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}
