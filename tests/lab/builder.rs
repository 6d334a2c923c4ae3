//! How a lab is brought up: what it is to be like, and what its tests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use tokio::sync::OnceCell;

use crate::clock::Skew;
use crate::cluster::{Cluster, Plan};
use crate::folder::Folder;
use crate::kafka::{Kafka, Layout};
use crate::lab::Lab;
use crate::node::{Doors, Node};
use crate::proxy::Proxy;
use crate::relay::Relay;
use crate::session::literal;

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
    brokers: usize,
    durable: bool,
    relays: bool,
    start_relays: bool,
    crashes: bool,
    settings: Vec<(String, String)>,
    kafka_properties: Vec<String>,
    proxied: bool,
    makes_topics: bool,
    skews: Vec<Option<Skew>>,
    newcomers: usize,
    heartbeats: Option<String>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            nodes: 2,
            names: Vec::new(),
            own_clusters: false,
            own_kafka: false,
            brokers: 1,
            durable: false,
            relays: true,
            start_relays: true,
            crashes: false,
            settings: Vec::new(),
            kafka_properties: Vec::new(),
            proxied: false,
            makes_topics: false,
            skews: Vec::new(),
            newcomers: 0,
            heartbeats: None,
        }
    }
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

    /// A Kafka of so many brokers for this lab alone.
    pub fn brokers(mut self, brokers: usize) -> Self {
        self.brokers = brokers;
        self.own_kafka()
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

    /// Proxied, and the broker makes topics by itself that somebody writes to: `auto.create.topics.enable`, Kafka's default.
    pub fn makes_topics(mut self) -> Self {
        self.makes_topics = true;
        self.proxied()
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
        // What is shared lasts as long as the process; a lab that needs nothing of it goes when it is dropped.
        let unshared_kafka = self.own_kafka || Kafka::external().is_some();
        let shared = if self.own_clusters && unshared_kafka { None } else { Some(Shared::get().await?) };
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
                _ if self.own_kafka => {
                    let layout = Layout { brokers: self.brokers, doors: &kafka_doors, makes_topics: self.makes_topics };
                    Some(Arc::new(Kafka::create_as(Arc::clone(&folder), &layout).await?))
                }
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
