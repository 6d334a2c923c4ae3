//! Whether nodes are equal: every row, and the version of every row.

use anyhow::{Context, Result, ensure};

use super::layouts::Layout;
use crate::Session;

/// Checks a table of this name on all nodes.
///
/// # Errors
/// If they differ, or an index does not fit its table.
pub async fn equal(sessions: &[&Session], layout: &Layout, table: &str) -> Result<()> {
    for (table, key) in layout.tables(table) {
        equal_rows(sessions, &table, key).await?;
    }
    Ok(())
}

/// Checks one table, by the columns of its key.
///
/// # Errors
/// As [`equal`].
pub async fn equal_rows(sessions: &[&Session], table: &str, key: &[&str]) -> Result<()> {
    let mut all = Vec::new();
    for (node, session) in sessions.iter().enumerate() {
        all.push(rows(session, table, key).await?);
        // It reads the whole table and finds what a unique index should never have let in.
        session.exec(&format!("reindex table {table}")).await.with_context(|| format!("on node {node}"))?;
    }
    for (node, rows) in all.iter().enumerate() {
        ensure!(*rows == all[0], "{table}: node 0 has {:#?}\nand node {node} has {rows:#?}", all[0]);
    }
    Ok(())
}

/// Each row with its version, in order.
async fn rows(session: &Session, table: &str, key: &[&str]) -> Result<Vec<String>> {
    let key: Vec<String> = key.iter().map(|column| format!("t.{column}::text")).collect();
    let sql = format!(
        "select concat_ws(' ', t, v.commit_time, v.origin) from {table} t, lateral duplex.row_version('{table}', {}) v",
        key.join(", ")
    );
    let mut rows: Vec<String> = session.rows(&sql).await?.into_iter().flatten().flatten().collect();
    rows.sort_unstable();
    let all = session.number(&format!("select count(*) from {table}")).await?;
    ensure!(rows.len() == usize::try_from(all)?, "{table}: {all} rows, and versions of {}", rows.len());
    Ok(rows)
}

/// Nothing has failed, is parked, or stands still.
///
/// # Errors
/// If anything has, does, or is.
pub async fn quiet(session: &Session) -> Result<()> {
    for sql in [
        "select peer, sqlstate, message from duplex.apply_errors",
        "select peer, table_name, operation, key from duplex.parked",
        "select name, state, reason from duplex.peers where state in ('stopped', 'gap', 'paused')",
    ] {
        let found = session.rows(sql).await?;
        ensure!(found.is_empty(), "{sql}: {found:?}");
    }
    Ok(())
}

/// Conflicts that a node has met.
///
/// # Errors
/// The server's.
pub async fn conflicts(session: &Session) -> Result<u64> {
    let met = session.number("select coalesce(sum(conflicts), 0)::bigint from duplex.conflict_stats").await?;
    Ok(u64::try_from(met)?)
}
