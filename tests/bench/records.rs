//! A node's stream read straight from the database, without a relay.

use std::sync::Arc;

use anyhow::{Context, Result};
use duplex_lab::{Node, PATIENCE, Session, until};
use duplex_protocol::record::Record;
use tokio_postgres::Statement;

/// Bytes asked for at once: what the relay asks for.
const BYTES: i32 = 512 * 1024;

/// Drains a node's queue as its relay would.
#[derive(Debug)]
pub(crate) struct Drain {
    session: Arc<Session>,
    drain: Statement,
}

impl Drain {
    /// Takes the node's place as its relay.
    pub(crate) async fn open(node: &Node) -> Result<Self> {
        let session = node.connect().await?;
        until("the place of the node's relay to be free", PATIENCE, async || {
            Ok(session.exec("select duplex.drain_open(0)").await.map_err(|err| format!("{err:#}")))
        })
        .await?;
        let drain = session.client().prepare("select duplex.drain(0, $1)").await?;
        Ok(Self { session: Arc::new(session), drain })
    }

    /// The next records; none once the queue is empty. What was handed out is confirmed when the server asks for it.
    async fn next(&self, newest: Option<&[u8]>) -> Result<Vec<Vec<u8>>> {
        let records = self.ask().await?;
        match newest {
            Some(newest) if records.is_empty() => {
                let position = Record::decode(newest)?.header.position;
                let confirm = format!("select duplex.drain_confirm({}, {}, 0)", position.lsn, position.xid);
                self.session.exec(&confirm).await?;
                self.ask().await
            }
            _ => Ok(records),
        }
    }

    async fn ask(&self) -> Result<Vec<Vec<u8>>> {
        let rows = self.session.client().query(&self.drain, &[&BYTES]).await.context("draining")?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Reads all there is. The next records are asked for while `take` looks at the last.
    pub(crate) async fn all(self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let this = Arc::new(self);
        let mut records = this.next(None).await?;
        while !records.is_empty() {
            let newest = records.last().cloned();
            let asked = tokio::spawn({
                let this = Arc::clone(&this);
                async move { this.next(newest.as_deref()).await }
            });
            for record in &records {
                take(record)?;
            }
            records = asked.await??;
        }
        Ok(())
    }
}
