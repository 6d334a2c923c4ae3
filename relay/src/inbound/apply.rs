//! The database's end of the inbound way: `duplex.apply_open`, `apply_batch`, `apply_chunk`.

use duplex_protocol::sqlstate;
use tokio_postgres::Statement;

use super::batch::Batch;
use super::consumer::Fetched;
use crate::config::Settings;
use crate::database::Session;
use crate::errors::{Error, FailedChange};
use crate::failpoints::{self, Place};

/// A session that is marked as replication from one peer, for as long as it lives.
#[derive(Debug)]
pub struct Applier {
    session: Session,
    batch: Statement,
    chunk: Statement,
    parked: Statement,
    /// The first chunk of the transaction that is open.
    open_since: Option<i64>,
}

/// Where this node stopped in the peer's stream.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The next offset to apply.
    pub next_offset: i64,
    /// The greatest generation read so far.
    pub generation: u64,
    /// The hello that announced it: where it is, and whose it is.
    pub hello: Option<(i64, Vec<u8>)>,
}

impl Applier {
    /// Opens such a session.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Database`].
    pub async fn open(settings: &Settings, peer: &str) -> Result<(Self, Opening), Error> {
        let session = Session::connect(settings, &format!("inbound {peer}")).await?;
        let failed = "opening a peer's stream";
        let sql = "select next_offset, generation, hello_offset, uuid_send(node_id) from duplex.apply_open($1)";
        let row = session.query_one(sql, &[&peer]).await.map_err(Error::database(failed))?;
        let hello = row.get::<_, Option<i64>>(2).zip(row.get::<_, Option<Vec<u8>>>(3));
        let opening = Opening { next_offset: row.get(0), generation: row.get::<_, i64>(1) as u64, hello };
        let batch = session.prepare("call duplex.apply_batch($1, $2)").await.map_err(Error::database(failed))?;
        let chunk = session.prepare("select duplex.apply_chunk($1, $2)").await.map_err(Error::database(failed))?;
        let parked = session.prepare("select duplex.apply_parked()").await.map_err(Error::database(failed))?;
        Ok((Self { session, batch, chunk, parked, open_since: None }, opening))
    }

    /// From now on with care, so that a change that fails is known by name.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn careful(&self) -> Result<(), Error> {
        let done = self.session.execute("select duplex.apply_careful()", &[]).await;
        done.map(drop).map_err(Error::database("applying with care"))
    }

    /// Whether a transaction is open: between two chunks of it.
    pub fn is_open(&self) -> bool {
        self.open_since.is_some()
    }

    /// Tries one parked change that is due; `None` if none is. Between two transactions.
    ///
    /// # Errors
    /// [`Error::Database`] for what passes; what does not stays parked.
    pub async fn parked(&self) -> Result<Option<bool>, Error> {
        let row = self.session.query_one(&self.parked, &[]).await;
        row.map(|row| row.get(0)).map_err(Error::database("trying a parked change again"))
    }

    /// Applies records that are complete by themselves, each as its own transaction.
    ///
    /// # Errors
    /// [`Error::Apply`] with the offset of the record that failed; those before it are applied.
    pub async fn batch(&self, batch: &Batch) -> Result<(), Error> {
        failpoints::pass(Place::InboundBeforeApply);
        if let Err(source) = self.session.execute(&self.batch, &[&batch.records, &batch.offsets]).await {
            let offset = self.failed_at(batch).await;
            return Err(self.failed(offset, source).await);
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
        failpoints::pass(Place::InboundBeforeApply);
        if let Err(source) = self.apply_chunk(fetched, first, last, since).await {
            return Err(self.failed(since, source).await);
        }
        if last {
            failpoints::pass(Place::InboundAfterApply);
        }
        Ok(())
    }

    async fn apply_chunk(
        &mut self,
        fetched: &Fetched,
        first: bool,
        last: bool,
        since: i64,
    ) -> Result<(), tokio_postgres::Error> {
        if first {
            self.session.batch_execute("begin").await?;
            self.open_since = Some(since);
        }
        self.session.execute(&self.chunk, &[&fetched.value, &fetched.offset]).await?;
        if last {
            failpoints::pass(Place::InboundBeforeCommit);
            self.session.batch_execute("commit").await?;
            self.open_since = None;
        }
        Ok(())
    }

    /// Has the very change recorded, if the session knows it.
    async fn failed(&self, offset: i64, source: tokio_postgres::Error) -> Error {
        let mut change = None;
        if source.code().is_some_and(|state| sqlstate::is_of_the_change(state.code())) {
            match self.failure().await {
                Ok(found) => change = found.map(Box::new),
                Err(err) => tracing::debug!(error = %err, "which change failed cannot be told"),
            }
        }
        Error::Apply { offset, change, source }
    }

    async fn failure(&self) -> Result<Option<FailedChange>, tokio_postgres::Error> {
        if self.is_open() {
            self.session.batch_execute("rollback").await?;
        }
        let sql = "select error_id, ordinal, operation, table_name from duplex.apply_failure()";
        let row = self.session.query_opt(sql, &[]).await?;
        Ok(row.map(|row| FailedChange {
            error_id: row.get(0),
            ordinal: row.get(1),
            operation: row.get(2),
            table: row.get(3),
        }))
    }

    /// Leaves out the transaction whose last record is at `offset`, as a person said.
    ///
    /// # Errors
    /// [`Error::Apply`].
    pub async fn skip(&self, offset: i64) -> Result<(), Error> {
        let failed = |source| Error::Apply { offset, change: None, source };
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
