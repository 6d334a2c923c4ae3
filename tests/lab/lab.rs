//! All parts together.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::builder::Builder;
use crate::cluster::Cluster;
use crate::folder::Folder;
use crate::kafka::Kafka;
use crate::node::Node;
use crate::session::literal;
use crate::wait::when;
use crate::wait::while_moving;
use crate::{PATIENCE, topic, until};

/// Nodes, each every other's peer, with Kafka between them.
#[derive(Debug)]
pub struct Lab {
    // Relays end first, then servers, then the folder goes.
    pub(crate) nodes: Vec<Node>,
    pub(crate) kafka: Option<Arc<Kafka>>,
    pub(crate) crashes: bool,
    pub(crate) folder: Arc<Folder>,
}

impl Lab {
    /// A lab of one's own making.
    pub fn builder() -> Builder {
        Builder::default()
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

    /// All nodes use this broker from now on. Their relays, which have to be stopped, are to be started.
    pub fn move_to(&mut self, kafka: Kafka) {
        for node in &mut self.nodes {
            node.relay = node.relay.take().map(|relay| relay.with("DUPLEX_KAFKA", kafka.bootstrap()));
        }
        self.kafka = Some(Arc::new(kafka));
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
