//! What a storm came to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::Result;

use super::statements::Kind;
use super::writer::Written;
use crate::Session;

/// What came of a storm.
#[derive(Debug)]
pub struct Report {
    /// Of each node.
    pub nodes: Vec<NodeReport>,
    /// How long everybody wrote.
    pub lasting: Duration,
    /// From the last commit until all nodes were seen to be equal.
    pub until_equal: Duration,
    /// How often a node's streams were looked at, and none had stopped.
    pub looks: usize,
}

/// What a node has written and met.
#[derive(Debug)]
pub struct NodeReport {
    name: String,
    /// Transactions of its own that were committed, by kind.
    pub committed: BTreeMap<Kind, usize>,
    /// Those that met a value that was taken, or a deadlock.
    pub refused: usize,
    /// Conflicts on record here, by PostgreSQL's names.
    pub conflicts: Vec<(String, i64)>,
}

impl NodeReport {
    pub(super) async fn of(name: &str, written: &[Written], session: &Session) -> Result<Self> {
        let mut committed = BTreeMap::new();
        for (kind, count) in written.iter().flat_map(|writer| &writer.committed) {
            *committed.entry(*kind).or_default() += count;
        }
        let mut conflicts = Vec::new();
        let sql = "select kind, sum(conflicts) from duplex.conflict_stats group by 1 order by 1";
        for row in session.rows(sql).await? {
            let text = |i: usize| row[i].clone().unwrap_or_default();
            conflicts.push((text(0), text(1).parse()?));
        }
        let refused = written.iter().map(|writer| writer.refused).sum();
        Ok(Self { name: name.to_owned(), committed, refused, conflicts })
    }

    /// Transactions of its own.
    pub fn transactions(&self) -> usize {
        self.committed.values().sum()
    }

    /// Conflicts of all kinds.
    pub fn met(&self) -> i64 {
        self.conflicts.iter().map(|(_, count)| count).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for node in &self.nodes {
            let (transactions, refused, met) = (node.transactions(), node.refused, node.met());
            writeln!(out, "{}: {transactions} transactions committed, {refused} refused", node.name)?;
            for (kind, count) in &node.committed {
                writeln!(out, "    {kind:<28}{count:>8}")?;
            }
            writeln!(out, "  {met} conflicts on record")?;
            for (kind, count) in &node.conflicts {
                writeln!(out, "    {kind:<28}{count:>8}")?;
            }
        }
        write!(
            out,
            "streams looked at {} times, none had stopped; equal {:.1?} after the last commit of {:.0?}",
            self.looks, self.until_equal, self.lasting
        )
    }
}
