//! A node's queue, drained without a relay and read by what it says.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result};
use duplex_protocol::json::View;
use duplex_protocol::record::{Header, Kind, Position, Record};
use serde_json::Value;

use crate::Node;
use crate::cluster::RELAY_ROLE;
use crate::session::Session;

/// A transaction as the queue hands it out.
#[derive(Debug, Clone)]
pub struct Drained {
    /// The header of its last chunk.
    pub header: Header,
    /// Its chunks.
    pub chunks: u32,
    /// Its changes in order: `insert {"id":1}` with the whole row, `update …` the same, `delete …` with the key.
    pub changes: Vec<String>,
    /// The same as `duplex-relay tail` shows them.
    pub shown: Vec<Value>,
}

/// A session that drains as a relay would, with a topic that only counts.
#[derive(Debug)]
pub struct Drain {
    session: Session,
    view: View,
    offset: i64,
    /// What is known of transactions whose last chunk has not come.
    open: HashMap<Position, Vec<Value>>,
}

impl Drain {
    /// Takes the node's stream over.
    ///
    /// # Errors
    /// The server's: another one drains it.
    pub async fn open(node: &Node) -> Result<Self> {
        let session = node.connect_as(RELAY_ROLE).await?;
        session.exec("select duplex.drain_open()").await?;
        Ok(Self { session, view: View::default(), offset: 0, open: HashMap::new() })
    }

    /// What one call hands out at once, of about so many bytes: the transactions that it completes. Nothing is confirmed.
    ///
    /// # Errors
    /// The server's; records that cannot be read.
    pub async fn take(&mut self, max_bytes: i32) -> Result<Vec<Drained>> {
        self.take_within(Duration::ZERO, max_bytes).await
    }

    /// The same, waiting for so long where there is nothing.
    ///
    /// # Errors
    /// As [`Drain::take`].
    pub async fn take_within(&mut self, patience: Duration, max_bytes: i32) -> Result<Vec<Drained>> {
        let patience = patience.as_millis() as i32;
        let rows = self.session.client().query("select duplex.drain($1, $2)", &[&patience, &max_bytes]).await?;
        let mut whole = Vec::new();
        for row in rows {
            let bytes: Vec<u8> = row.get(0);
            let record = Record::decode(&bytes)?;
            if record.header.kind != Kind::Transaction {
                continue;
            }
            let shown = self.view.record(&record, self.offset)?;
            self.offset += 1;
            let listed = shown["changes"].as_array().context("chunks that follow each other")?;
            self.open.entry(record.header.position).or_default().extend(listed.iter().cloned());
            if record.header.last {
                let shown = self.open.remove(&record.header.position).unwrap_or_default();
                let changes = shown.iter().map(summary).collect();
                whole.push(Drained { chunks: record.header.chunk + 1, header: record.header, changes, shown });
            }
        }
        Ok(whole)
    }

    /// The process that serves the session.
    ///
    /// # Errors
    /// The server's.
    pub async fn pid(&self) -> Result<i64> {
        self.session.number("select pg_backend_pid()").await
    }

    /// Confirms everything up to this transaction.
    ///
    /// # Errors
    /// The server's.
    pub async fn confirm(&self, header: &Header) -> Result<()> {
        let Position { lsn, xid } = header.position;
        let arguments = [lsn.cast_signed(), xid.cast_signed(), self.offset];
        let sql = format!("select duplex.drain_confirm({}, {}, {})", arguments[0], arguments[1], arguments[2]);
        self.session.exec(&sql).await
    }

    /// All that there is by now, confirmed.
    ///
    /// # Errors
    /// As [`Drain::take`] and [`Drain::confirm`].
    pub async fn rest(&mut self) -> Result<Vec<Drained>> {
        let mut all = Vec::new();
        loop {
            let before = self.offset;
            let taken = self.take(1 << 20).await?;
            if self.offset == before {
                return Ok(all);
            }
            if let Some(newest) = taken.last() {
                self.confirm(&newest.header).await?;
            }
            all.extend(taken);
        }
    }

    /// The changes of all transactions that there are by now.
    ///
    /// # Errors
    /// As [`Drain::rest`].
    pub async fn changes(&mut self) -> Result<Vec<String>> {
        Ok(self.rest().await?.into_iter().flat_map(|transaction| transaction.changes).collect())
    }
}

fn summary(change: &Value) -> String {
    let op = change["op"].as_str().unwrap_or_default();
    let content = change.get("row").or_else(|| change.get("key")).unwrap_or(&Value::Null);
    format!("{op} {content}")
}
