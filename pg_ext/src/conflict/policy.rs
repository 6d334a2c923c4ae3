//! How a table decides between two writes of one row: what `duplex.table_registry` says here, and whether a peer that
//! describes the table says the same.
//!
//! Nodes that decide by different policies end up with different rows, and no later change tells. So a change is applied
//! only where both have the same one.

use duplex_protocol::entry::{Relation, Resolution};
use pgrx::{PgSqlErrorCode, pg_sys};

use crate::conflict::registers::each_row;
use crate::errors::{Failure, Result};

/// A table's policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) resolution: Resolution,
    /// The counters' names, in the order of the names: that of the residuals in a tombstone.
    pub(crate) counters: Vec<String>,
}

impl Policy {
    /// What is chosen for a table here; the default for one that is not enabled.
    pub(crate) fn load(relid: pg_sys::Oid) -> Self {
        let mut this = Self { resolution: Resolution::LastUpdateWins, counters: Vec::new() };
        each_row(c"table_registry", Some(relid), |row| {
            this.resolution = match row.text(1).as_str() {
                "column_merge" => Resolution::ColumnMerge,
                _ => Resolution::LastUpdateWins,
            };
            this.counters = row.names(2);
        });
        this.counters.sort_unstable();
        this
    }

    /// What the sender of a descriptor has chosen.
    fn of(relation: &Relation) -> Self {
        let name = |&index: &u16| relation.columns.get(usize::from(index)).map(|column| column.name.clone());
        let mut counters: Vec<String> = relation.delta_columns.iter().filter_map(name).collect();
        counters.sort_unstable();
        Self { resolution: relation.resolution.clone(), counters }
    }

    /// Whether more is to be remembered of a row than its version.
    pub(crate) fn is_default(&self) -> bool {
        self.counters.is_empty() && self.resolution == Resolution::LastUpdateWins
    }

    /// Whether the later version wins column by column.
    pub(crate) fn merges(&self) -> bool {
        self.resolution == Resolution::ColumnMerge
    }

    /// Makes sure that a peer decides as this node does.
    ///
    /// # Errors
    /// 55000 if not.
    pub(crate) fn check(&self, relation: &Relation, label: &str) -> Result<()> {
        let there = Self::of(relation);
        if *self == there {
            return Ok(());
        }
        Err(Failure::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("table {label} has another conflict policy than on the peer"),
        )
        .detail(format!("Here it is {}; the change was made under {}.", self.described(), there.described()))
        .hint(format!(
            "Give the table the same policy on every node: here with {}, or there with {}.",
            there.call(label),
            self.call(label)
        )))
    }

    fn described(&self) -> String {
        match self.counters.as_slice() {
            [] => self.resolution.name().to_owned(),
            counters => format!("{} with delta columns ({})", self.resolution.name(), counters.join(", ")),
        }
    }

    /// The call that sets it.
    fn call(&self, label: &str) -> String {
        let literal = |text: &str| pgrx::spi::quote_literal(text);
        let counters: Vec<String> = self.counters.iter().map(|name| literal(name)).collect();
        let counters = match counters.as_slice() {
            [] => String::new(),
            counters => format!(", delta_columns => array[{}]", counters.join(", ")),
        };
        format!("duplex.set_policy({}, {}{counters})", literal(label), literal(self.resolution.name()))
    }
}

/// A counter's column is not there.
pub(crate) fn no_column(name: &str) -> Failure {
    Failure::new(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("delta column \"{name}\" does not exist any more"),
    )
    .hint("Set the table's policy anew with duplex.set_policy.")
}
