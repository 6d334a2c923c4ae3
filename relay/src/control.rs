//! What the relay asks and tells the database beside the streams themselves, over one connection for all of it.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, error::SqlState};

use crate::backoff::Backoff;
use crate::config::Settings;
use crate::database::Session;
use crate::errors::{Error, Report};

/// Who this node is and whose streams it applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// The node's name.
    pub node: String,
    /// Version of the extension.
    pub extension_version: String,
    /// Its peers' names.
    pub peers: Vec<String>,
    /// Those of them whose streams an operator holds.
    pub paused: Vec<String>,
}

/// State of a peer's stream, as `duplex.peers` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerState {
    /// Nothing to apply from yet.
    Waiting,
    /// Being applied.
    Running,
    /// Failed on something that passes.
    Retrying,
    /// Failed on something that does not pass.
    Stopped,
    /// Kafka does not hold what comes next.
    Gap,
}

impl PeerState {
    /// The word for it in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Stopped => "stopped",
            Self::Gap => "gap",
        }
    }
}

/// How a stream is to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orders {
    /// The transaction at which it stopped is to be left out.
    pub skip_next: bool,
    /// What comes next has failed before, or a change of it is to be left out: it is to be applied with care.
    pub careful: bool,
}

/// How often a stream that stands still looks whether a person has acted.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// The connection for questions and reports. It is made when first needed, and anew after a failure.
#[derive(Debug)]
pub struct Control {
    settings: Settings,
    session: Mutex<Option<Session>>,
}

impl Control {
    /// Prepares it; connects to nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, session: Mutex::new(None) }
    }

    /// Who this node is.
    ///
    /// # Errors
    /// [`Error::NotReady`] if the extension or the node is not there.
    pub async fn info(&self) -> Result<Info, Error> {
        let rows = self.query(
            "asking who this node is",
            "select node, extension_version, peers, paused from duplex.relay_info()",
            &[],
        );
        let rows = match rows.await {
            Err(Error::Database { source, .. })
                if matches!(source.code(), Some(&SqlState::INVALID_SCHEMA_NAME | &SqlState::UNDEFINED_FUNCTION)) =>
            {
                return Err(Error::NotReady("the extension pg_duplex is not in this database"));
            }
            other => other?,
        };
        let row = rows.first().ok_or(Error::NotReady("this database is not a node yet"))?;
        Ok(Info {
            node: row.get(0),
            extension_version: row.get(1),
            peers: row.get::<_, Option<_>>(2).unwrap_or_default(),
            paused: row.get::<_, Option<_>>(3).unwrap_or_default(),
        })
    }

    /// Writes the state of a peer's stream down, or of what comes back of the own one.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn report_peer(&self, peer: &str, state: PeerState, reason: Option<&str>) -> Result<(), Error> {
        let sql = "select duplex.report_peer($1, $2, $3)";
        self.query("reporting a peer's state", sql, &[&peer, &state.as_str(), &reason]).await.map(drop)
    }

    /// Writes down why a stream stopped, however long the database is away.
    pub async fn record_error(&self, peer: &str, offset: i64, err: &Error) {
        let Report { sqlstate, message, detail, hint } = err.report();
        let sql = "select duplex.report_error($1, $2, $3, $4, $5, $6)";
        let arguments: [&(dyn ToSql + Sync); 6] = [&peer, &offset, &sqlstate, &message, &detail, &hint];
        let mut backoff = Backoff::default();
        while let Err(err) = self.query("reporting why a stream stopped", sql, &arguments).await {
            tracing::debug!(error = %err, "an error could not be written down");
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    /// Waits until a person has set the state of a stream that stands still back to `waiting`.
    pub async fn told_to_go_on(&self, peer: &str) {
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            match self.peer_state(peer).await {
                Ok(Some(found)) if found == PeerState::Waiting.as_str() => {
                    tracing::info!("told to try again");
                    return;
                }
                Ok(_) => {}
                Err(err) => tracing::debug!(error = %err, "a stream's state could not be read"),
            }
        }
    }

    /// Lets the database look after what it keeps: a little at a time. Returns whether it wants to go on soon.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn maintain(&self) -> Result<bool, Error> {
        let rows = self.query("looking after the database's records", "select duplex.maintain()", &[]).await?;
        Ok(rows.first().is_some_and(|row| row.get(0)))
    }

    /// What people, and failures before, say about how to go on with a stream.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn orders(&self, peer: &str, next_offset: i64) -> Result<Orders, Error> {
        let sql = "select skip_next, careful from duplex.stream_orders($1, $2)";
        let rows = self.query("reading a peer's state", sql, &[&peer, &next_offset]).await?;
        let row = rows.first().ok_or(Error::NotReady("duplex.stream_orders gives no row"))?;
        Ok(Orders { skip_next: row.get(0), careful: row.get(1) })
    }

    /// The Kafka cluster known so far for the own stream, or for a peer's; the first one met is kept.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn meet_kafka(&self, cluster: &str, peer: Option<&str>) -> Result<Option<String>, Error> {
        let sql = "select duplex.meet_kafka($1, $2)";
        let rows = self.query("comparing Kafka clusters", sql, &[&cluster, &peer]).await?;
        Ok(rows.first().and_then(|row| row.get(0)))
    }

    /// A stream's state, for one that waits for a person to set it back to `waiting`. `None` if the peer is gone.
    async fn peer_state(&self, peer: &str) -> Result<Option<String>, Error> {
        let rows = self.query("reading a peer's state", "select duplex.peer_state($1)", &[&peer]).await?;
        Ok(rows.first().and_then(|row| row.get(0)))
    }

    async fn query(&self, what: &'static str, sql: &str, arguments: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        let mut held = self.session.lock().await;
        let session = match held.take() {
            Some(session) if !session.is_closed() => session,
            _ => Session::connect(&self.settings, "control").await?,
        };
        let result = session.query(sql, arguments).await;
        *held = Some(session);
        result.map_err(Error::database(what))
    }
}
