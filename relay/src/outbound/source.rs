//! The database's end of the outbound way: `duplex.drain_open`, `drain`, `drain_confirm`.

use duplex_protocol::record::Position;
use futures_util::future;
use tokio_postgres::Statement;

use super::in_flight::Confirmation;
use super::promised::Promised;
use super::tail::Identity;
use crate::config::Settings;
use crate::database::Session;
use crate::errors::Error;

/// The session that drains the node's queue. It holds the node's advisory lock until it is dropped.
#[derive(Debug)]
pub struct Source {
    session: Session,
    drain: Statement,
    confirm: Statement,
}

/// Where the last relay stopped.
#[derive(Debug)]
pub struct Opening {
    /// The node's name.
    pub node: String,
    /// Which take-over this is.
    pub generation: u64,
    /// Offset of the newest record confirmed.
    pub topic_offset: Option<i64>,
    /// The record to publish first.
    pub hello: Vec<u8>,
}

impl Source {
    /// Connects.
    ///
    /// # Errors
    /// [`Error::Connect`], or [`Error::Database`] if the extension is not there.
    pub async fn connect(settings: &Settings) -> Result<Self, Error> {
        let session = Session::connect(settings, "outbound").await?;
        let prepared = Error::database("preparing to drain the queue");
        let drain = session.prepare("select duplex.drain($1, $2)").await;
        let drain = drain.map_err(prepared)?;
        let confirm = session.prepare("select duplex.drain_confirm($1, $2, $3)").await;
        let confirm = confirm.map_err(Error::database("preparing to drain the queue"))?;
        Ok(Self { session, drain, confirm })
    }

    /// Takes the stream over, with a generation above `newest_generation`. `None` if another relay has it.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn open(&self, newest_generation: u64) -> Result<Option<Opening>, Error> {
        let sql = "select node, generation, topic_offset, hello from duplex.drain_open($1)";
        let row = match self.session.query_one(sql, &[&(newest_generation as i64)]).await {
            Ok(row) => row,
            Err(err) if err.code() == Some(&tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE) => return Ok(None),
            Err(err) => return Err(Error::database("taking the stream over")(err)),
        };
        Ok(Some(Opening {
            node: row.get(0),
            generation: row.get::<_, i64>(1) as u64,
            topic_offset: row.get(2),
            hello: row.get(3),
        }))
    }

    /// Which of these transactions, found in the own topic, the database never committed.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn missing(&self, found: &[Identity]) -> Result<Vec<bool>, Error> {
        let xids: Vec<i64> = found.iter().map(|(position, _)| position.xid as i64).collect();
        let commit_ts: Vec<i64> = found.iter().map(|&(_, commit_ts)| commit_ts).collect();
        let rows = self.session.query("select duplex.drain_missing($1, $2)", &[&xids, &commit_ts]).await;
        let rows = rows.map_err(Error::database("asking what of the own topic the database has"))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Tells the database how far it had applied its peers by its own stream, and whether that has shown already that it
    /// was set back. Returns what it lacks.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn promised(&self, promised: Promised, set_back: bool) -> Result<Option<String>, Error> {
        let (peers, next_offsets) = promised.into_arguments();
        let sql = "select duplex.drain_promised($1, $2, $3)";
        let row = self.session.query_one(sql, &[&peers, &next_offsets, &set_back]).await;
        let row =
            row.map_err(Error::database("comparing what the database has with what the own topic says it had"))?;
        Ok(row.get(0))
    }

    /// Has the database forget where it stood in a topic that was made anew.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn remade(&self) -> Result<(), Error> {
        let done = self.session.execute("select duplex.drain_remade()", &[]).await;
        done.map(drop).map_err(Error::database("forgetting offsets of a topic that was made anew"))
    }

    /// Confirms, drains, or both in one go: the two travel together, and the server does them in this order.
    ///
    /// # Errors
    /// [`Error::Database`]; the session is of no use after that.
    pub async fn step(&self, confirm: Option<Confirmation>, drain: Option<(i32, i32)>) -> Result<Vec<Vec<u8>>, Error> {
        let confirming = async {
            let Some(Confirmation { position: Position { lsn, xid }, offset }) = confirm else { return Ok(()) };
            let arguments: [&(dyn tokio_postgres::types::ToSql + Sync); 3] = [&(lsn as i64), &(xid as i64), &offset];
            let done = self.session.query(&self.confirm, &arguments).await;
            done.map(drop).map_err(Error::database("confirming what is published"))
        };
        let draining = async {
            let Some((wait_ms, max_bytes)) = drain else { return Ok(Vec::new()) };
            let rows = self.session.query(&self.drain, &[&wait_ms, &max_bytes]).await;
            let rows = rows.map_err(Error::database("draining the queue"))?;
            Ok(rows.iter().map(|row| row.get(0)).collect())
        };
        // `join` polls the first before the second, and a query goes out at its first poll.
        let (confirmed, drained) = future::join(confirming, draining).await;
        confirmed?;
        drained
    }
}
