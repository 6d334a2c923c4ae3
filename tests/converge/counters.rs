//! What counters must come to: the sum of all that any node has ever added to them, as the streams hold it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use duplex_protocol::json::View;
use duplex_protocol::record::{Kind, Record};

use crate::Session;

/// What was added to one counter of a table, key by key.
#[derive(Debug, Default)]
pub struct Sums(BTreeMap<String, i64>);

impl Sums {
    /// Adds what one node's stream holds. Records of an earlier generation than one before them are void.
    ///
    /// # Errors
    /// If these are no records, or what they hold are no counters.
    pub fn add<'r>(&mut self, stream: impl IntoIterator<Item = &'r [u8]>, table: &str, column: &str) -> Result<()> {
        let (mut view, mut generation) = (View::default(), 0);
        let label = format!("public.{table}");
        for bytes in stream {
            let record = Record::decode(bytes)?;
            if record.header.generation < generation {
                continue;
            }
            generation = record.header.generation;
            if record.header.kind != Kind::Transaction {
                continue;
            }
            let shown = view.record(&record, 0)?;
            for change in shown["changes"].as_array().context("a transaction of one record")? {
                let added = change.get("added").and_then(|added| added.get(column));
                let Some(added) = added.filter(|_| change["table"] == label.as_str()) else { continue };
                let added = added.to_string().parse::<i64>().with_context(|| format!("{change}"))?;
                *self.0.entry(change["key"]["id"].to_string()).or_default() += added;
            }
        }
        Ok(())
    }

    /// Checks the rows that a node shows.
    ///
    /// # Errors
    /// If a counter is not the sum.
    pub async fn check(&self, session: &Session, table: &str, column: &str) -> Result<()> {
        for row in session.rows(&format!("select id::text, {column} from {table}")).await? {
            let text = |i: usize| row[i].clone().unwrap_or_default();
            let (key, shown) = (text(0), text(1).parse::<i64>()?);
            let sum = self.0.get(&key).copied().unwrap_or_default();
            ensure!(shown == sum, "{table}: the counter of {key} is {shown}, and the sum of all additions {sum}");
        }
        Ok(())
    }
}
