//! A node: a database with the extension and a name, and its relay.

use std::sync::Arc;

use anyhow::{Context, Result};

use crate::cluster::{Cluster, RELAY_ROLE};
use crate::proxy::Proxy;
use crate::relay::Relay;
use crate::session::{Session, TextRow};
use crate::{PATIENCE, relay, until};

/// A node of a lab.
#[derive(Debug)]
pub struct Node {
    pub(crate) name: String,
    pub(crate) database: String,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) relay: Option<Relay>,
    pub(crate) doors: Option<Doors>,
}

/// What stands between a node's relay and the two that it talks to.
#[derive(Debug)]
pub struct Doors {
    /// To the database.
    pub database: Proxy,
    /// To Kafka.
    pub kafka: Proxy,
}

impl Node {
    /// The node's name; its topic is `duplex.<name>`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its database's name.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The cluster that the database is in; other tests may use it too.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Its relay.
    ///
    /// # Panics
    /// If the lab was built without relays.
    pub fn relay(&self) -> &Relay {
        self.relay.as_ref().expect("a lab with relays")
    }

    /// The proxies that its relay goes through.
    ///
    /// # Panics
    /// If the lab was built without them.
    pub fn doors(&self) -> &Doors {
        self.doors.as_ref().expect("a lab with proxies")
    }

    /// A URL as a role sees the database.
    pub fn url_as(&self, role: &str) -> String {
        self.cluster.url(role, &self.database)
    }

    /// The URL that its relay uses.
    pub fn relay_url(&self) -> String {
        match &self.doors {
            None => self.url_as(RELAY_ROLE),
            Some(doors) => format!("postgresql://{RELAY_ROLE}@127.0.0.1:{}/{}", doors.database.port(), self.database),
        }
    }

    /// Connects as superuser.
    ///
    /// # Errors
    /// If the server refuses or is not there.
    pub async fn connect(&self) -> Result<Session> {
        self.connect_as("postgres").await
    }

    /// Connects as a role.
    ///
    /// # Errors
    /// If the server refuses or is not there.
    pub async fn connect_as(&self, role: &str) -> Result<Session> {
        self.cluster.connect_as(role, &self.database).await
    }

    /// Runs statements in a session of their own.
    ///
    /// # Errors
    /// The server's.
    pub async fn exec(&self, sql: &str) -> Result<()> {
        self.connect().await?.exec(sql).await.with_context(|| format!("on {}", self.name))
    }

    /// The rows of a query, as text.
    ///
    /// # Errors
    /// The server's.
    pub async fn rows(&self, sql: &str) -> Result<Vec<TextRow>> {
        self.connect().await?.rows(sql).await.with_context(|| format!("on {}", self.name))
    }

    /// The one value of a query, as text.
    ///
    /// # Errors
    /// The server's; no row; NULL.
    pub async fn one(&self, sql: &str) -> Result<String> {
        self.connect().await?.one(sql).await.with_context(|| format!("on {}", self.name))
    }

    /// The one value of a query, as a number.
    ///
    /// # Errors
    /// The server's; no number.
    pub async fn number(&self, sql: &str) -> Result<i64> {
        self.connect().await?.number(sql).await.with_context(|| format!("on {}", self.name))
    }

    /// A table as text, a line a row, sorted: what two nodes must have alike. Columns go by name, so that their order
    /// does not count, and `except` are left out.
    ///
    /// # Errors
    /// The server's.
    pub async fn dump(&self, table: &str, except: &[&str]) -> Result<Vec<String>> {
        let session = self.connect().await?;
        let skip: Vec<String> = except.iter().map(|name| crate::session::literal(name)).collect();
        let list = session
            .rows(&format!(
                "select quote_ident(attname) from pg_attribute \
                  where attrelid = {}::regclass and attnum > 0 and not attisdropped \
                    and attname <> all (array[{}]::name[]) order by attname collate \"C\"",
                crate::session::literal(table),
                skip.join(", ")
            ))
            .await?;
        let columns: Vec<String> =
            list.into_iter().map(|row| row.into_iter().next().flatten().unwrap_or_default()).collect();
        let rows = session.rows(&format!("select {} from {table}", columns.join(", "))).await?;
        let mut lines: Vec<String> = rows
            .into_iter()
            .map(|row| {
                let cells = columns.iter().zip(row);
                cells
                    .map(|(name, cell)| format!("{name}={}", cell.unwrap_or("␀".into())))
                    .collect::<Vec<_>>()
                    .join(" | ")
            })
            .collect();
        lines.sort_unstable();
        Ok(lines)
    }

    /// Waits until a peer's stream is in a state here, and returns the reason.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn stream_is(&self, peer: &str, state: &str) -> Result<String> {
        let session = self.connect().await?;
        let sql = format!(
            "select state, coalesce(reason, '') from duplex.peers where name = {}",
            crate::session::literal(peer)
        );
        until(&format!("the stream of {peer} on {} to be {state}", self.name), PATIENCE, async || {
            let row = session.rows(&sql).await?.into_iter().next().context("no such peer")?;
            let text = |i: usize| row[i].clone().unwrap_or_default();
            Ok(if text(0) == state { Ok(text(1)) } else { Err(format!("{}: {}", text(0), text(1))) })
        })
        .await
    }

    /// The sessions that apply a peer's stream here, by what they wait for.
    ///
    /// # Errors
    /// The server's.
    pub async fn applying(&self, peer: &str) -> Result<Vec<String>> {
        let name = crate::session::literal(&format!("duplex-relay inbound {peer}"));
        let sql = format!(
            "select coalesce(wait_event, '') from pg_stat_activity
              where datname = current_database() and application_name = {name}"
        );
        Ok(self.rows(&sql).await?.into_iter().flatten().flatten().collect())
    }

    /// Holds a peer's stream, of which the relay lets go at its next look.
    ///
    /// # Errors
    /// The server's.
    pub async fn pause(&self, peer: &str, others_wait: bool) -> Result<()> {
        let name = crate::session::literal(peer);
        self.exec(&format!("select duplex.pause_peer({name}, others_wait => {others_wait})")).await
    }

    /// Waits until nobody applies a peer's stream that is held. Of a stream that ran before, nothing is applied from then
    /// on until [`Self::resume`].
    ///
    /// # Errors
    /// The server's; at the deadline.
    pub async fn lets_go_of(&self, peer: &str) -> Result<()> {
        until(&format!("the relay of {} to let go of the stream of {peer}", self.name), PATIENCE, async || {
            let sessions = self.applying(peer).await?;
            Ok(crate::wait::when(sessions.is_empty(), format!("{sessions:?}")))
        })
        .await
    }

    /// Holds a peer's stream and waits until the relay has let go of it.
    ///
    /// # Errors
    /// The server's; at the deadline.
    pub async fn hold(&self, peer: &str, others_wait: bool) -> Result<()> {
        self.pause(peer, others_wait).await?;
        self.lets_go_of(peer).await
    }

    /// Lets a stream that is held go on.
    ///
    /// # Errors
    /// The server's.
    pub async fn resume(&self, peer: &str) -> Result<()> {
        self.exec(&format!("select duplex.resume_peer({})", crate::session::literal(peer))).await
    }

    /// Waits until a query gives this text.
    ///
    /// # Errors
    /// The server's; at the deadline.
    pub async fn shows(&self, sql: &str, text: &str) -> Result<()> {
        let session = self.connect().await?;
        until(&format!("{text} from {sql} on {}", self.name), PATIENCE, async || {
            let row = session.rows(sql).await?.into_iter().next().and_then(|row| row.into_iter().next().flatten());
            let found = row.unwrap_or_default();
            Ok(crate::wait::when(found == text, found))
        })
        .await
    }

    /// Which of these relays of this node is the active one, once it says so: the one that has the newest generation that
    /// the database has given out.
    ///
    /// # Errors
    /// At the deadline.
    pub async fn active(&self, relays: &[&Relay]) -> Result<usize> {
        until(&format!("a relay to serve {}", self.name), PATIENCE, async || {
            let latest = relay::latest(relays)?;
            let announced = relays[latest].generation()?;
            // The server may still be recovering.
            let given = self.number("select generation from duplex.drain_state").await;
            let so = given.as_ref().is_ok_and(|&given| u64::try_from(given) == Ok(announced));
            Ok(if so { Ok(latest) } else { Err(format!("{announced} of {given:?}")) })
        })
        .await
    }

    /// Waits until Kafka has acknowledged all that is captured.
    ///
    /// # Errors
    /// The server's; at the deadline.
    pub async fn published(&self) -> Result<()> {
        until(&format!("{} to have published its queue", self.name), PATIENCE, async || {
            let queued = self.queued().await?;
            Ok(crate::wait::when(queued == 0, format!("{queued} transactions")))
        })
        .await
        .with_context(|| self.relay.as_ref().map_or_else(String::new, |relay| relay.log_tail(20)))
    }

    /// Captured transactions that Kafka has not acknowledged yet.
    ///
    /// # Errors
    /// The server's.
    pub async fn queued(&self) -> Result<i64> {
        self.number("select transactions from duplex.queue_status").await
    }
}
