//! A real Apache Kafka: one process that is broker and controller (KRaft), or one that is there already.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::folder::Folder;
use crate::process::{Process, Recipe, run, tail};
use crate::{PATIENCE, Proxy, ports, until};

/// How long a broker that is there already may take to answer; more likely the address is wrong.
const PATIENCE_WITH_OTHERS: Duration = Duration::from_secs(15);

/// A broker.
#[derive(Debug)]
pub struct Kafka {
    bootstrap: String,
    own: Option<Own>,
}

/// What there is to a broker of the lab's own.
#[derive(Debug)]
struct Own {
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

impl Kafka {
    /// The broker of `$KAFKA_BOOTSTRAP_SERVERS` if that is set, else a new one.
    ///
    /// # Errors
    /// If it does not start, or the one that is there does not answer.
    pub async fn create(folder: Arc<Folder>) -> Result<Self> {
        let Some(bootstrap) = Self::external() else { return Self::create_own(folder).await };
        let kafka = Self { bootstrap, own: None };
        let asked = kafka.answers(PATIENCE_WITH_OTHERS).await;
        asked.with_context(|| format!("no Kafka answers at {} (KAFKA_BOOTSTRAP_SERVERS)", kafka.bootstrap))?;
        Ok(kafka)
    }

    /// Address of the broker that is to be used instead of a new one: `$KAFKA_BOOTSTRAP_SERVERS`.
    pub fn external() -> Option<String> {
        std::env::var("KAFKA_BOOTSTRAP_SERVERS").ok().filter(|bootstrap| !bootstrap.is_empty())
    }

    /// Whether it is the lab's own and ends with it.
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// A new broker, whatever the environment says: for tests that stop it.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn create_own(folder: Arc<Folder>) -> Result<Self> {
        Self::create_behind(folder, &[], false).await
    }

    /// A new broker that can also be reached through these proxies. A client is told to come back where it knocked,
    /// so all of its connections go through the same one. Topics that nobody made it makes itself, if it is told to, as a
    /// broker does that nobody configured.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn create_behind(folder: Arc<Folder>, doors: &[&Proxy], makes_topics: bool) -> Result<Self> {
        let home = folder.path().join(format!("kafka-{}", ports::free()?));
        std::fs::create_dir(&home)?;
        let mut attempts = 0;
        loop {
            match Self::start_new(&folder, &home, doors, makes_topics).await {
                Ok(kafka) => return Ok(kafka),
                Err(_) if attempts < 3 && tail(&home.join("kafka.log"), 100).contains("Address already in use") => {
                    attempts += 1;
                    std::fs::remove_dir_all(home.join("data"))?;
                }
                Err(err) => return Err(err),
            }
        }
    }

    async fn start_new(folder: &Arc<Folder>, home: &Path, doors: &[&Proxy], makes_topics: bool) -> Result<Self> {
        let (broker, controller) = (ports::free()?, ports::free()?);
        let (mut listeners, mut advertised, mut protocols) = (String::new(), String::new(), String::new());
        for (i, door) in doors.iter().enumerate() {
            let behind = ports::free()?;
            door.lead_to(behind);
            listeners += &format!(",DOOR{i}://127.0.0.1:{behind}");
            advertised += &format!(",DOOR{i}://127.0.0.1:{}", door.port());
            protocols += &format!(",DOOR{i}:PLAINTEXT");
        }
        let properties = home.join("kraft.properties");
        std::fs::write(
            &properties,
            format!(
                "process.roles=broker,controller\n\
                 node.id=1\n\
                 controller.quorum.voters=1@127.0.0.1:{controller}\n\
                 listeners=PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}{listeners}\n\
                 advertised.listeners=PLAINTEXT://127.0.0.1:{broker}{advertised}\n\
                 controller.listener.names=CONTROLLER\n\
                 listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}\n\
                 log.dirs={}\n\
                 auto.create.topics.enable={makes_topics}\n\
                 offsets.topic.replication.factor=1\n\
                 offsets.topic.num.partitions=1\n\
                 transaction.state.log.replication.factor=1\n\
                 transaction.state.log.min.isr=1\n\
                 transaction.state.log.num.partitions=1\n\
                 share.coordinator.state.topic.replication.factor=1\n\
                 share.coordinator.state.topic.min.isr=1\n\
                 group.initial.rebalance.delay.ms=0\n",
                home.join("data").display()
            ),
        )?;
        let classpath = format!("{}/*", jars()?.display());
        let log4j = home.join("log4j2.properties");
        std::fs::write(&log4j, include_str!("kafka/log4j2.properties"))?;
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
        let format = java("-Xmx64m", &["kafka.tools.StorageTool", "format", "-t", &uuid(), "-c", &properties]);
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
        let own = Own { recipe, folder: Arc::clone(folder), server: Mutex::new(server) };
        let kafka = Self { bootstrap: format!("127.0.0.1:{broker}"), own: Some(own) };
        kafka.ready().await?;
        Ok(kafka)
    }

    /// Waits until the broker answers.
    ///
    /// # Errors
    /// If it ends instead.
    pub async fn ready(&self) -> Result<()> {
        self.answers(PATIENCE).await
    }

    async fn answers(&self, patience: Duration) -> Result<()> {
        until("Kafka to answer", patience, async || {
            if let Some(own) = &self.own {
                own.server().check()?;
            }
            let bootstrap = self.bootstrap.clone();
            let answer = tokio::task::spawn_blocking(move || {
                let client: BaseConsumer = config(&bootstrap).create()?;
                client.fetch_metadata(None, Duration::from_secs(2)).map(|metadata| metadata.brokers().len())
            });
            Ok(match answer.await? {
                Ok(0) => Err("no broker yet".to_owned()),
                Ok(_) => Ok(()),
                Err(err) => Err(err.to_string()),
            })
        })
        .await
    }

    /// The address for clients.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Settings of a client of this broker.
    pub fn client(&self) -> ClientConfig {
        config(&self.bootstrap)
    }

    /// The server's process id, if it is the lab's own and runs.
    pub fn pid(&self) -> Option<i32> {
        self.own.as_ref().map(Own::server).filter(|server| server.ended().is_none()).map(|server| server.pid())
    }

    /// Ends it in good order.
    ///
    /// # Errors
    /// If it does not end, or is not the lab's own.
    pub fn stop(&self) -> Result<()> {
        self.own()?.server().end(Signal::SIGTERM, PATIENCE).map(drop)
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// If it is not the lab's own.
    pub fn kill(&self) -> Result<()> {
        self.own()?.server().kill().map(drop)
    }

    /// SIGSTOP: connections stay open, nothing answers.
    ///
    /// # Errors
    /// If it is not the lab's own or has ended.
    pub fn pause(&self) -> Result<()> {
        self.own()?.server().pause()
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// If it is not the lab's own or has ended.
    pub fn resume(&self) -> Result<()> {
        self.own()?.server().resume()
    }

    /// Starts it again, with the same data at the same address.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn start(&self) -> Result<()> {
        let own = self.own()?;
        let server = Arc::new(own.recipe.start()?);
        own.folder.watch(server.pid());
        *own.server.lock().expect("no panic while it is held") = server;
        self.ready().await
    }

    /// Its log file, if it is the lab's own.
    pub fn log(&self) -> Option<&Path> {
        self.own.as_ref().map(|own| own.recipe.log.as_path())
    }

    /// The end of its log, for messages.
    pub fn log_tail(&self) -> String {
        self.own.as_ref().map(|own| tail(&own.recipe.log, 20)).unwrap_or_default()
    }

    fn own(&self) -> Result<&Own> {
        self.own.as_ref().context("this broker is not the lab's own (KAFKA_BOOTSTRAP_SERVERS)")
    }
}

impl Own {
    fn server(&self) -> Arc<Process> {
        Arc::clone(&self.server.lock().expect("no panic while it is held"))
    }
}

fn config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    // What a broker that is down means is for the caller to say.
    config.set("log_level", "0");
    config
}

/// Sixteen random bytes as Kafka writes a cluster's id: base64 in the URL alphabet, unpadded.
fn uuid() -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let word = || RandomState::new().build_hasher().finish();
    let bits = u128::from(word()) << 64 | u128::from(word());
    // A leading letter: an id that begins with "-" looks like an option.
    let digit = |i: u32| char::from(ALPHABET[usize::try_from(bits >> (122 - 6 * i) & 63).unwrap_or(0) % 52]);
    // 22 digits hold 132 bits: the last one has only 2 of its own, in its upper bits.
    (0..21).map(digit).chain(std::iter::once('A')).collect()
}
