//! All parts together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use tokio::sync::OnceCell;

use crate::clock::Skew;
use crate::cluster::{Cluster, Plan};
use crate::folder::Folder;
use crate::kafka::Kafka;
use crate::node::{Doors, Node};
use crate::proxy::Proxy;
use crate::relay::Relay;
use crate::session::literal;
use crate::wait::when;
use crate::wait::while_moving;
use crate::{PATIENCE, topic, until};

/// What tests of one process share, until it ends.
struct Shared {
    folder: Arc<Folder>,
    kafka: OnceCell<Arc<Kafka>>,
    clusters: [OnceCell<Arc<Cluster>>; SHARED_CLUSTERS],
}

const SHARED_CLUSTERS: usize = 2;
static SHARED: OnceCell<Shared> = OnceCell::const_new();

impl Shared {
    async fn get() -> Result<&'static Self> {
        SHARED
            .get_or_try_init(async || {
                anyhow::Ok(Self {
                    folder: Arc::new(Folder::create()?),
                    kafka: OnceCell::new(),
                    clusters: [const { OnceCell::const_new() }; SHARED_CLUSTERS],
                })
            })
            .await
    }

    async fn kafka(&self) -> Result<Arc<Kafka>> {
        let kafka = self.kafka.get_or_try_init(async || Kafka::create(Arc::clone(&self.folder)).await.map(Arc::new));
        Ok(Arc::clone(kafka.await?))
    }

    /// Nodes take turns, so that two of one lab are in two clusters.
    async fn cluster(&self, i: usize) -> Result<Arc<Cluster>> {
        let i = i % SHARED_CLUSTERS;
        let cluster = self.clusters[i].get_or_try_init(async || {
            let plan = Plan { name: format!("shared{i}"), durable: false, settings: Vec::new(), skew: None };
            Cluster::create(Arc::clone(&self.folder), &plan).await.map(Arc::new)
        });
        Ok(Arc::clone(cluster.await?))
    }
}

/// What a lab is to be like; see [`Lab::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    nodes: usize,
    names: Vec<String>,
    own_clusters: bool,
    own_kafka: bool,
    durable: bool,
    relays: bool,
    start_relays: bool,
    crashes: bool,
    settings: Vec<(String, String)>,
    kafka_properties: Vec<String>,
    proxied: bool,
    skews: Vec<Option<Skew>>,
    newcomers: usize,
    heartbeats: Option<String>,
}

impl Builder {
    /// How many nodes; 2 unless said. Each is every other's peer.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Names of databases and nodes, as they are; names are made up if this is not called. On a broker that outlives the
    /// lab (`KAFKA_BOOTSTRAP_SERVERS`) a node's name gets a tag, because that broker may hold the stream of an earlier
    /// lab's node of that name, which was another database.
    pub fn names(mut self, names: &[&str]) -> Self {
        self.names = names.iter().map(|&name| name.to_owned()).collect();
        self.nodes = names.len();
        self
    }

    /// A cluster for each node alone, for tests that stop, crash or configure it.
    pub fn own_clusters(mut self) -> Self {
        self.own_clusters = true;
        self
    }

    /// A broker for this lab alone, for tests that stop it.
    pub fn own_kafka(mut self) -> Self {
        self.own_kafka = true;
        self
    }

    /// Own clusters that fsync, as in production; for measuring.
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self.own_clusters()
    }

    /// Neither Kafka nor relays: the test calls the extension's functions itself.
    pub fn without_relays(mut self) -> Self {
        self.relays = false;
        self
    }

    /// Relays are there but not started yet: `node.relay().start()`.
    pub fn relays_stopped(mut self) -> Self {
        self.start_relays = false;
        self
    }

    /// This test kills servers: words of a crash in their logs are right.
    pub fn crashes(mut self) -> Self {
        self.crashes = true;
        self.own_clusters()
    }

    /// A line of `postgresql.conf` in clusters of this lab's own.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self.own_clusters()
    }

    /// A librdkafka property `K=V` of each relay.
    pub fn kafka_property(mut self, property: &str) -> Self {
        self.kafka_properties.push(property.to_owned());
        self
    }

    /// Each relay reaches its database and Kafka through proxies that the test can cut and stall: [`Node::doors`].
    pub fn proxied(mut self) -> Self {
        self.proxied = true;
        self.own_clusters().own_kafka()
    }

    /// The last so many are databases with the extension that are no nodes yet; their relays are not started.
    pub fn newcomers(mut self, newcomers: usize) -> Self {
        self.newcomers = newcomers;
        self
    }

    /// Clocks of the first nodes that are wrong.
    pub fn skewed(mut self, skews: &[Option<Skew>]) -> Self {
        self.skews = skews.to_vec();
        self.own_clusters()
    }

    /// Nodes publish their watermarks in this interval.
    pub fn heartbeats(mut self, interval: &str) -> Self {
        self.heartbeats = Some(interval.to_owned());
        self
    }

    /// Brings it up.
    ///
    /// # Errors
    /// If a part does not start.
    pub async fn start(self) -> Result<Lab> {
        let shared = if self.own_clusters && self.own_kafka { None } else { Some(Shared::get().await?) };
        let folder = match shared {
            Some(shared) if !self.own_clusters => Arc::clone(&shared.folder),
            _ => Arc::new(Folder::create()?),
        };
        let mut doors = Vec::new();
        for _ in 0..if self.proxied { self.nodes } else { 0 } {
            doors.push(Doors { database: Proxy::open()?, kafka: Proxy::open()? });
        }
        let kafka_doors: Vec<&Proxy> = doors.iter().map(|doors| &doors.kafka).collect();
        let kafka = async {
            Ok::<_, anyhow::Error>(match shared {
                _ if !self.relays => None,
                _ if self.proxied => Some(Arc::new(Kafka::create_behind(Arc::clone(&folder), &kafka_doors).await?)),
                _ if self.own_kafka => Some(Arc::new(Kafka::create_own(Arc::clone(&folder)).await?)),
                Some(shared) => Some(shared.kafka().await?),
                None => Some(Arc::new(Kafka::create(Arc::clone(&folder)).await?)),
            })
        };
        let mut lab = Lab { nodes: Vec::new(), kafka: None, crashes: self.crashes, folder: Arc::clone(&folder) };
        let nodes = async {
            let mut nodes = Vec::new();
            let tag = unique();
            for i in 0..self.nodes {
                nodes.push(self.node(i, &tag, &folder, shared).await?);
            }
            Ok(nodes)
        };
        let (kafka, nodes) = tokio::try_join!(kafka, nodes)?;
        lab.kafka = kafka;
        lab.nodes = nodes;
        for (node, doors) in lab.nodes.iter_mut().zip(doors) {
            doors.database.lead_to(node.cluster.port());
            node.doors = Some(doors);
        }
        let acquainted = self.nodes - self.newcomers;
        introduce(&lab.nodes[..acquainted]).await?;
        if let Some(kafka) = lab.kafka.clone() {
            for (i, node) in lab.nodes.iter_mut().enumerate() {
                let url = node.relay_url();
                let bootstrap = match &node.doors {
                    None => kafka.bootstrap().to_owned(),
                    Some(doors) => format!("127.0.0.1:{}", doors.kafka.port()),
                };
                let relay = Relay::new(Arc::clone(&folder), &node.name, &url, &bootstrap, &self.kafka_properties)?;
                if self.start_relays && i < acquainted {
                    relay.start()?;
                }
                node.relay = Some(relay);
            }
        }
        Ok(lab)
    }

    async fn node(&self, i: usize, tag: &str, folder: &Arc<Folder>, shared: Option<&Shared>) -> Result<Node> {
        let (database, name) = match self.names.get(i) {
            Some(given) if self.own_kafka || Kafka::external().is_none() => (given.clone(), given.clone()),
            Some(given) => (given.clone(), format!("{given}-{tag}")),
            None => (format!("n{}-{tag}", i + 1), format!("n{}-{tag}", i + 1)),
        };
        let cluster = match shared {
            Some(shared) if !self.own_clusters => shared.cluster(i).await?,
            _ => {
                let plan = Plan {
                    name: format!("pg{}", i + 1),
                    durable: self.durable,
                    settings: self.settings.clone(),
                    skew: self.skews.get(i).copied().flatten(),
                };
                Arc::new(Cluster::create(Arc::clone(folder), &plan).await?)
            }
        };
        cluster.create_database(&database).await?;
        if let Some(interval) = &self.heartbeats {
            let sql = format!("alter database \"{database}\" set duplex.heartbeat_interval = {}", literal(interval));
            cluster.connect("postgres").await?.exec(&sql).await?;
        }
        Ok(Node { database, name, cluster, relay: None, doors: None })
    }
}

/// Nodes, each every other's peer, with Kafka between them.
#[derive(Debug)]
pub struct Lab {
    // Relays end first, then servers, then the folder goes.
    nodes: Vec<Node>,
    kafka: Option<Arc<Kafka>>,
    crashes: bool,
    folder: Arc<Folder>,
}

impl Lab {
    /// A lab of one's own making.
    pub fn builder() -> Builder {
        Builder {
            nodes: 2,
            names: Vec::new(),
            own_clusters: false,
            own_kafka: false,
            durable: false,
            relays: true,
            start_relays: true,
            crashes: false,
            settings: Vec::new(),
            kafka_properties: Vec::new(),
            proxied: false,
            skews: Vec::new(),
            newcomers: 0,
            heartbeats: None,
        }
    }

    /// So many nodes with relays, in clusters and on a broker that all tests share.
    ///
    /// # Errors
    /// If a part does not start.
    pub async fn shared(nodes: usize) -> Result<Self> {
        Self::builder().nodes(nodes).start().await
    }

    /// A node.
    pub fn node(&self, i: usize) -> &Node {
        &self.nodes[i]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The first two nodes.
    pub fn pair(&self) -> [&Node; 2] {
        [&self.nodes[0], &self.nodes[1]]
    }

    /// The broker.
    ///
    /// # Panics
    /// If the lab was built without relays.
    pub fn kafka(&self) -> &Kafka {
        self.kafka.as_ref().expect("a lab with relays")
    }

    /// Removes the nodes' topics from a broker that outlives the lab.
    ///
    /// # Errors
    /// If Kafka does not answer.
    pub async fn forget_topics(&self) -> Result<()> {
        let Some(kafka) = self.kafka.as_ref().filter(|kafka| !kafka.is_own()) else { return Ok(()) };
        let names: Vec<&str> = self.nodes.iter().map(Node::name).collect();
        topic::remove(kafka, &names).await
    }

    /// Another broker beside the lab's, with nothing in it.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn another_kafka(&self) -> Result<Kafka> {
        Kafka::create_own(Arc::clone(&self.folder)).await
    }

    /// A node's database is in another cluster from now on: a standby that was promoted. Its relay is to be started.
    pub fn fail_over(&mut self, i: usize, cluster: Cluster) {
        let node = &mut self.nodes[i];
        node.cluster = Arc::new(cluster);
        let url = node.relay_url();
        node.relay = node.relay.take().map(|relay| relay.with("DUPLEX_DATABASE", &url));
    }

    /// The lab's folder.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Runs statements on every node.
    ///
    /// # Errors
    /// The server's.
    pub async fn exec_everywhere(&self, sql: &str) -> Result<()> {
        for node in &self.nodes {
            node.exec(sql).await?;
        }
        Ok(())
    }

    /// Runs statements on every node, then enables these tables everywhere.
    ///
    /// # Errors
    /// The server's.
    pub async fn create_everywhere(&self, sql: &str, tables: &[&str]) -> Result<()> {
        self.exec_everywhere(sql).await?;
        self.enable(tables).await
    }

    /// Enables these tables everywhere.
    ///
    /// # Errors
    /// The server's.
    pub async fn enable(&self, tables: &[&str]) -> Result<()> {
        let calls: Vec<String> =
            tables.iter().map(|table| format!("select duplex.enable({});", literal(table))).collect();
        self.exec_everywhere(&calls.concat()).await
    }

    /// Waits until every stream is being applied. Changes need no such wait: they are applied once it is so far.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn running(&self) -> Result<()> {
        for node in &self.nodes {
            let session = node.connect().await?;
            until(&format!("{} to apply its peers' streams", node.name), PATIENCE, async || {
                let others =
                    session.rows("select name, state, reason from duplex.peers where state <> 'running'").await?;
                Ok(when(others.is_empty(), format!("{others:?}\n{}", self.logs())))
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until all that was committed is published, and all that was published is applied on every peer.
    ///
    /// # Errors
    /// Once something stands still, and as soon as a stream has stopped.
    pub async fn settled(&self) -> Result<()> {
        self.settled_within(PATIENCE).await
    }

    /// As [`Lab::settled`], with other patience for what stands still.
    ///
    /// # Errors
    /// As [`Lab::settled`].
    pub async fn settled_within(&self, patience: Duration) -> Result<()> {
        self.settle(patience).await.map_err(|err| err.context(format!("not settled\n{}", self.logs())))
    }

    async fn settle(&self, patience: Duration) -> Result<()> {
        for node in &self.nodes {
            let session = node.connect().await?;
            while_moving(&format!("publishing the queue of {}", node.name), patience, async || {
                let queued = session.number("select transactions from duplex.queue_status").await?;
                Ok(when(queued == 0, (queued, format!("{queued} transactions are queued"))))
            })
            .await?;
        }
        for source in &self.nodes {
            let end = topic::end(self.kafka(), &source.name).await?;
            for target in self.nodes.iter().filter(|target| target.name != source.name) {
                target.applied(&source.name, end, patience).await?;
            }
        }
        Ok(())
    }

    /// Transactions in a node's stream.
    ///
    /// # Errors
    /// If Kafka does not answer, or the stream breaks its rules.
    pub async fn transactions(&self, node: &Node) -> Result<usize> {
        Ok(topic::transactions(&topic::read(self.kafka(), &node.name).await?)?.len())
    }

    /// Checks that a table holds the same on all nodes, now.
    ///
    /// # Errors
    /// If it does not; the message shows rows that differ.
    pub async fn assert_equal(&self, table: &str) -> Result<()> {
        self.assert_equal_except(table, &[]).await
    }

    /// As [`Lab::assert_equal`], leaving out columns that only one side has.
    ///
    /// # Errors
    /// As [`Lab::assert_equal`].
    pub async fn assert_equal_except(&self, table: &str, except: &[&str]) -> Result<()> {
        let first = self.nodes[0].dump(table, except).await?;
        for node in &self.nodes[1..] {
            let other = node.dump(table, except).await?;
            if first != other {
                let only = |rows: &[String], others: &[String]| -> String {
                    let rows = rows.iter().filter(|row| others.binary_search(row).is_err());
                    rows.take(8).map(|row| format!("    {}\n", row.chars().take(400).collect::<String>())).collect()
                };
                bail!(
                    "{table} differs: {} rows on {}, {} on {}\n  only on {}:\n{}  only on {}:\n{}",
                    first.len(),
                    self.nodes[0].name,
                    other.len(),
                    node.name,
                    self.nodes[0].name,
                    only(&first, &other),
                    node.name,
                    only(&other, &first)
                );
            }
        }
        Ok(())
    }

    /// Waits until everything is applied, then checks that these tables are equal.
    ///
    /// # Errors
    /// As [`Lab::settled`] and [`Lab::assert_equal`].
    pub async fn converges(&self, tables: &[&str]) -> Result<()> {
        self.settled().await?;
        for table in tables {
            self.assert_equal(table).await?;
        }
        Ok(())
    }

    /// The ends of all logs, for messages.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            if let Some(relay) = &node.relay {
                text += &format!("--- relay of {}\n{}\n", node.name, relay.log_tail(20));
            }
            let log = crate::process::tail(node.cluster.log(), 400);
            // A cluster may be shared: lines of other databases are other tests'.
            let own: Vec<&str> = log.lines().filter(|line| line.contains(&node.database)).collect();
            text += &format!("--- PostgreSQL of {}\n{}\n", node.name, own[own.len().saturating_sub(20)..].join("\n"));
        }
        text
    }

    /// Ends relays in good order and checks that each exits with 0.
    ///
    /// # Errors
    /// If one does not.
    pub fn stop_relays(&self) -> Result<()> {
        for node in &self.nodes {
            let status = node.relay().stop()?;
            ensure!(status.success(), "the relay of {} ended with {status}:\n{}", node.name, node.relay().log_tail(20));
        }
        Ok(())
    }
}

impl Node {
    /// Waits until this node has applied a peer's stream up to an offset.
    ///
    /// # Errors
    /// Once it has not moved on for so long, and as soon as the stream has stopped.
    pub async fn applied(&self, peer: &str, end: i64, patience: Duration) -> Result<()> {
        let session = self.connect().await?;
        let sql = format!(
            "select next_offset, state, reason, \
                    (select message || coalesce(' — ' || detail, '') from duplex.apply_errors \
                      where resolved_at is null order by id desc limit 1) \
               from duplex.peers where name = {}",
            literal(peer)
        );
        while_moving(&format!("{} applying {peer} up to {end}", self.name), patience, async || {
            let row = session.rows(&sql).await?.into_iter().next().context("no such peer")?;
            let text = |i: usize| row[i].clone().unwrap_or_default();
            let state = format!("at {}, {} {} {}", text(0), text(1), text(2), text(3));
            ensure!(
                text(1) != "stopped" && text(1) != "gap",
                "{}: the stream of {peer} has stopped: {state}",
                self.name
            );
            let at = text(0).parse()?;
            Ok(when(at >= end, (at, state)))
        })
        .await
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
            return;
        }
        let crashes: Vec<String> = self.nodes.iter().flat_map(|node| node.cluster.crashes()).collect();
        assert!(self.crashes || crashes.is_empty(), "a server crashed:\n{}", crashes.join("\n"));
    }
}

/// Tells each database who it is and who its peers are.
async fn introduce(nodes: &[Node]) -> Result<()> {
    for node in nodes {
        let peers: Vec<String> = (nodes.iter())
            .filter(|peer| peer.name != node.name)
            .map(|peer| format!("select duplex.add_peer({});", literal(&peer.name)))
            .collect();
        node.exec(&format!("select duplex.create_node({}); {}", literal(&node.name), peers.concat())).await?;
    }
    Ok(())
}

/// A few letters that no other lab has: names of nodes are names of topics, and a broker may be shared.
fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let micros = SystemTime::now().duration_since(UNIX_EPOCH).map(|now| now.as_micros()).unwrap_or_default();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut rest = (micros << 12 | u128::from(std::process::id() % 64) << 6 | u128::from(count % 64)) & ((1 << 60) - 1);
    let mut text = String::new();
    while rest > 0 {
        text.push(char::from_digit((rest % 36) as u32, 36).unwrap_or('0'));
        rest /= 36;
    }
    text
}
