//! A session that writes, as fast as it can.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::statements::{Kind, Transaction};
use super::tables::{TALLIES, Table};
use crate::Session;
use crate::dice::Dice;

/// What every application meets and lives with: a value is taken, a deadlock.
const EXPECTED: [&str; 3] = ["23505", "40P01", "40001"];

/// What a writer has done.
#[derive(Debug, Clone, Default)]
pub struct Written {
    /// Transactions that were committed.
    pub committed: BTreeMap<Kind, usize>,
    /// Transactions that met a value that was taken, or a deadlock.
    pub refused: usize,
    /// What it has added to each tally.
    pub tallies: [i64; TALLIES],
    /// When the last commit had returned.
    pub last_commit: Option<Instant>,
}

/// Who writes.
pub(super) struct Writer<'a> {
    pub(super) session: Session,
    pub(super) dice: Dice,
    pub(super) tables: &'a [Table],
    pub(super) pace: Duration,
}

impl Writer<'_> {
    /// Writes until then.
    pub(super) async fn write(mut self, until: Instant) -> Result<Written> {
        let mut written = Written::default();
        while Instant::now() < until {
            let transaction = Transaction::random(&mut self.dice, self.tables);
            match self.session.client().batch_execute(&transaction.sql).await {
                Ok(()) => {
                    written.last_commit = Some(Instant::now());
                    *written.committed.entry(transaction.kind).or_default() += 1;
                    for (tally, added) in transaction.additions {
                        written.tallies[tally] += added;
                    }
                }
                Err(err) => {
                    let code = err.code().map(|state| state.code().to_owned()).unwrap_or_default();
                    if !EXPECTED.contains(&code.as_str()) {
                        bail!("{err:?} in: {}", transaction.sql);
                    }
                    self.session.exec("rollback").await?;
                    written.refused += 1;
                }
            }
            if !self.pace.is_zero() {
                tokio::time::sleep(self.pace).await;
            }
        }
        Ok(written)
    }
}
