//! The lab: real PostgreSQL clusters, one real Apache Kafka, and relays, in one temporary folder, removed whatever
//! ends the process. The tests, the demo and the benchmarks stand on it.
//!
//! ```no_run
//! # async fn f() -> anyhow::Result<()> {
//! use duplex_lab::Lab;
//!
//! // Two nodes with relays, in databases of clusters that all tests of this process share: ready in a second.
//! let lab = Lab::shared(2).await?;
//! let [a, b] = lab.pair();
//! lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
//! a.exec("insert into t values (1, 'one')").await?;
//! lab.settled().await?; // both queues empty, both streams applied to their end
//! lab.assert_equal("t").await?;
//! assert_eq!(lab.transactions(a).await?, 1); // what the topic duplex.<a> holds
//! assert_eq!(lab.transactions(b).await?, 0); // nothing came back
//!
//! // Clusters and a broker of its own, for a test that kills them.
//! let lab = Lab::builder().nodes(2).own_clusters().own_kafka().durable().start().await?;
//! lab.node(0).relay().kill()?;
//! lab.kafka().pause()?;
//! # Ok(()) }
//! ```
//!
//! | module | subject |
//! |---|---|
//! | [`folder`], [`process`], [`ports`] | what every part needs: a folder that goes away, a process that cannot outlive us |
//! | [`cluster`], [`kafka`], [`relay`] | the parts; each can be stopped, killed, paused, resumed, restarted |
//! | [`clock`] | a server whose clock is wrong |
//! | [`proxy`] | what can be put between a relay and its database or Kafka: it cuts, stalls, delays, forgets brokers |
//! | [`session`] | a connection with short ways to ask and to expect errors |
//! | [`node`], [`lab`] | a database with extension, name and relay; all of them together |
//! | [`builder`] | how they are brought up |
//! | [`wait`] | waiting for a condition with a deadline, never for a time |
//! | [`topic`] | what a node's stream holds |
//! | [`drain`] | what a node's queue holds, without a relay |
//! | [`dice`] | chance that a seed repeats |
//! | [`faults`] | a seeded schedule of faults under load, and what must hold after it |
//! | [`converge`] | random transactions and deliveries, after which all nodes are equal |
//! | [`storm`] | many writers on every node at once, after which all nodes are equal |
//! | [`logs`] | finding what must never be in a server's log |
//!
//! A lab that is dropped looks through its servers' logs and panics on a crash, unless the test said
//! [`Builder::crashes`]; if the test is failing already it prints the ends of all logs.
//!
//! Environment: `PG_CONFIG` (which PostgreSQL), `DUPLEX_KAFKA_HOME` (folder of jars), `KAFKA_BOOTSTRAP_SERVERS` (use
//! this broker and start none), `DUPLEX_RELAY_BIN`, `TMPDIR`, `DUPLEX_LAB_KEEP=1` (leave the folder).

pub mod builder;
pub mod clock;
pub mod cluster;
#[path = "../converge/mod.rs"]
pub mod converge;
pub mod dice;
pub mod drain;
#[path = "../faults/mod.rs"]
pub mod faults;
pub mod folder;
pub mod kafka;
pub mod lab;
pub mod logs;
pub mod node;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod relay;
pub mod session;
#[path = "../storm/mod.rs"]
pub mod storm;
pub mod topic;
pub mod wait;

pub use builder::Builder;
pub use clock::Skew;
pub use cluster::Cluster;
pub use drain::Drain;
pub use duplex_relay::failpoints::Place;
pub use kafka::Kafka;
pub use lab::Lab;
pub use node::{Doors, Node};
pub use proxy::Proxy;
pub use relay::Relay;
pub use session::Session;
pub use wait::{PATIENCE, until};
