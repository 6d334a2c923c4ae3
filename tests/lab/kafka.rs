//! A real Apache Kafka: processes that are broker and controller (KRaft), one or several, or one that is there already.

mod broker;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

pub use self::broker::Broker;
use self::broker::{Address, Cluster};
use crate::folder::Folder;
use crate::process::tail;
use crate::{PATIENCE, Proxy, ports, until};

/// How long a broker that is there already may take to answer; more likely the address is wrong.
const PATIENCE_WITH_OTHERS: Duration = Duration::from_secs(15);

/// One broker, or several that are one cluster.
#[derive(Debug)]
pub struct Kafka {
    bootstrap: String,
    /// None, if it was there already.
    own: Vec<Broker>,
}

/// What a Kafka of the lab's own consists of.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    /// How many brokers: each topic is on all of them, and a record is acknowledged once all but one have it.
    pub brokers: usize,
    /// Proxies that the first broker can also be reached through. A client is told to come back where it knocked, so all
    /// of its connections go through the same one.
    pub doors: &'a [&'a Proxy],
    /// Topics that nobody made it makes itself, as a broker does that nobody configured.
    pub makes_topics: bool,
}

impl Default for Layout<'_> {
    fn default() -> Self {
        Self { brokers: 1, doors: &[], makes_topics: false }
    }
}

impl Kafka {
    /// The broker of `$KAFKA_BOOTSTRAP_SERVERS` if that is set, else a new one.
    ///
    /// # Errors
    /// If it does not start, or the one that is there does not answer.
    pub async fn create(folder: Arc<Folder>) -> Result<Self> {
        let Some(bootstrap) = Self::external() else { return Self::create_own(folder).await };
        let kafka = Self { bootstrap, own: Vec::new() };
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
        !self.own.is_empty()
    }

    /// A new broker, whatever the environment says: for tests that stop it.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn create_own(folder: Arc<Folder>) -> Result<Self> {
        Self::create_as(folder, &Layout::default()).await
    }

    /// New brokers, as the layout says.
    ///
    /// # Errors
    /// If they do not start.
    pub async fn create_as(folder: Arc<Folder>, layout: &Layout<'_>) -> Result<Self> {
        let homes = (0..layout.brokers)
            .map(|_| Ok(folder.path().join(format!("kafka-{}", ports::free()?))))
            .collect::<Result<Vec<_>>>()?;
        let mut attempts = 0;
        loop {
            homes.iter().try_for_each(std::fs::create_dir)?;
            let taken = |home: &PathBuf| tail(&home.join("kafka.log"), 100).contains("Address already in use");
            match Self::start_new(&folder, layout, &homes).await {
                Ok(kafka) => return Ok(kafka),
                Err(_) if attempts < 3 && homes.iter().any(taken) => {
                    attempts += 1;
                    homes.iter().try_for_each(std::fs::remove_dir_all)?;
                }
                Err(err) => return Err(err),
            }
        }
    }

    async fn start_new(folder: &Arc<Folder>, layout: &Layout<'_>, homes: &[PathBuf]) -> Result<Self> {
        let addresses = homes.iter().map(|_| Address::free()).collect::<Result<Vec<_>>>()?;
        let cluster = Cluster { id: uuid(), addresses: &addresses, makes_topics: layout.makes_topics };
        let mut brokers = Vec::new();
        for (index, home) in homes.iter().enumerate() {
            brokers.push(Broker::create(folder, home, &cluster, index, layout.doors)?);
        }
        let bootstrap: Vec<_> = addresses.iter().map(|address| format!("127.0.0.1:{}", address.clients)).collect();
        let kafka = Self { bootstrap: bootstrap.join(","), own: brokers };
        kafka.ready().await?;
        Ok(kafka)
    }

    /// Waits until Kafka answers, with all of its brokers.
    ///
    /// # Errors
    /// If one ends instead.
    pub async fn ready(&self) -> Result<()> {
        self.answers(PATIENCE).await
    }

    async fn answers(&self, patience: Duration) -> Result<()> {
        until("Kafka to answer", patience, async || {
            self.own.iter().try_for_each(Broker::check)?;
            let expected = self.own.len().max(1);
            let bootstrap = self.bootstrap.clone();
            let answer = tokio::task::spawn_blocking(move || {
                let client: BaseConsumer = config(&bootstrap).create()?;
                client.fetch_metadata(None, Duration::from_secs(2)).map(|metadata| metadata.brokers().len())
            });
            Ok(match answer.await? {
                Ok(found) if found < expected => Err(format!("{found} of {expected} brokers")),
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

    /// The first broker's process id, if it is the lab's own and runs.
    pub fn pid(&self) -> Option<i32> {
        self.own.first().and_then(Broker::pid)
    }

    /// Ends it in good order.
    ///
    /// # Errors
    /// If it does not end, is not the lab's own, or is several brokers, of which the last one would wait for the others.
    pub fn stop(&self) -> Result<()> {
        match self.own()? {
            [broker] => broker.stop(),
            _ => bail!("a Kafka of several brokers ends in no good order"),
        }
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// If it is not the lab's own.
    pub fn kill(&self) -> Result<()> {
        self.own()?.iter().try_for_each(Broker::kill)
    }

    /// SIGSTOP: connections stay open, nothing answers.
    ///
    /// # Errors
    /// If it is not the lab's own or has ended.
    pub fn pause(&self) -> Result<()> {
        self.own()?.iter().try_for_each(Broker::pause)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// If it is not the lab's own or has ended.
    pub fn resume(&self) -> Result<()> {
        self.own()?.iter().try_for_each(Broker::resume)
    }

    /// Starts it again, with the same data at the same address.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn start(&self) -> Result<()> {
        self.own()?.iter().try_for_each(Broker::start)?;
        self.ready().await
    }

    /// Its brokers, if it is the lab's own.
    pub fn brokers(&self) -> &[Broker] {
        &self.own
    }

    /// The first broker's log file, if it is the lab's own.
    pub fn log(&self) -> Option<&Path> {
        self.own.first().map(Broker::log)
    }

    /// The ends of the brokers' logs, for messages.
    pub fn log_tail(&self) -> String {
        self.own.iter().map(|broker| tail(broker.log(), 20)).collect()
    }

    fn own(&self) -> Result<&[Broker]> {
        anyhow::ensure!(self.is_own(), "this broker is not the lab's own (KAFKA_BOOTSTRAP_SERVERS)");
        Ok(&self.own)
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
