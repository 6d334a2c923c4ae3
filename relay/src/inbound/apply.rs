//! The database's end of the inbound way: `duplex.apply_open`, `apply_batch`, `apply_chunk`.

use tokio_postgres::Statement;

use super::batch::Batch;
use super::consumer::Fetched;
use crate::config::Settings;
use crate::database::Session;
use crate::errors::Error;
use crate::failpoints::{self, Place};

/// A session that is marked as replication from one peer, for as long as it lives.
#[derive(Debug)]
pub struct Applier {
    session: Session,
    batch: Statement,
    chunk: Statement,
    /// The first chunk of the transaction that is open.
    open_since: Option<i64>,
}

/// Where this node stopped in the peer's stream.
#[derive(Debug, Clone, Copy)]
pub struct Opening {
    /// The next offset to apply.
    pub next_offset: i64,
    /// The greatest generation read so far.
    pub generation: u64,
}

impl Applier {
    /// Opens such a session.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Database`].
    pub async fn open(settings: &Settings, peer: &str) -> Result<(Self, Opening), Error> {
        let session = Session::connect(settings, &format!("inbound {peer}")).await?;
        let failed = "opening a peer's stream";
        let sql = "select next_offset, generation from duplex.apply_open($1)";
        let row = session.query_one(sql, &[&peer]).await.map_err(Error::database(failed))?;
        let opening = Opening { next_offset: row.get(0), generation: row.get::<_, i64>(1) as u64 };
        let batch = session.prepare("call duplex.apply_batch($1, $2)").await.map_err(Error::database(failed))?;
        let chunk = session.prepare("select duplex.apply_chunk($1, $2)").await.map_err(Error::database(failed))?;
        Ok((Self { session, batch, chunk, open_since: None }, opening))
    }

    /// Applies records that are complete by themselves, each as its own transaction.
    ///
    /// # Errors
    /// [`Error::Apply`] with the offset of the record that failed; those before it are applied.
    pub async fn batch(&self, batch: &Batch) -> Result<(), Error> {
        failpoints::pass(Place::InboundBeforeApply);
        if let Err(source) = self.session.execute(&self.batch, &[&batch.records, &batch.offsets]).await {
            let offset = self.failed_at(batch).await;
            return Err(Error::Apply { offset, source });
        }
        failpoints::pass(Place::InboundAfterApply);
        Ok(())
    }

    /// The first record of the batch that is not applied.
    async fn failed_at(&self, batch: &Batch) -> i64 {
        let position = match self.session.query_one("select duplex.apply_position()", &[]).await {
            Ok(row) => row.get::<_, Option<i64>>(0).unwrap_or_default(),
            Err(err) => {
                tracing::debug!(error = %err, "where a batch failed cannot be told");
                0
            }
        };
        batch.offsets.iter().copied().find(|&offset| offset >= position).unwrap_or_else(|| batch.first_offset())
    }

    /// Applies one chunk of a long transaction, which is committed with its last.
    ///
    /// # Errors
    /// [`Error::Apply`] with the offset of the transaction's first chunk; nothing of it is applied.
    pub async fn chunk(&mut self, fetched: &Fetched, first: bool, last: bool) -> Result<(), Error> {
        let since = if first { fetched.offset } else { self.open_since.unwrap_or(fetched.offset) };
        let failed = |source| Error::Apply { offset: since, source };
        failpoints::pass(Place::InboundBeforeApply);
        if first {
            self.session.batch_execute("begin").await.map_err(failed)?;
            self.open_since = Some(since);
        }
        self.session.execute(&self.chunk, &[&fetched.value, &fetched.offset]).await.map_err(failed)?;
        if last {
            self.session.batch_execute("commit").await.map_err(failed)?;
            self.open_since = None;
            failpoints::pass(Place::InboundAfterApply);
        }
        Ok(())
    }

    /// Leaves out the transaction whose last record is at `offset`, as a person said.
    ///
    /// # Errors
    /// [`Error::Apply`].
    pub async fn skip(&self, offset: i64) -> Result<(), Error> {
        let failed = |source| Error::Apply { offset, source };
        self.session.execute("select duplex.apply_skip($1)", &[&offset]).await.map_err(failed).map(drop)
    }

    /// Discards the transaction that is open: its relay died before it had published all of it.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn abandon(&mut self) -> Result<(), Error> {
        self.open_since = None;
        self.session.batch_execute("rollback").await.map_err(Error::database("discarding a void transaction"))
    }
}
