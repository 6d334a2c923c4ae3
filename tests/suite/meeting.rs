//! Two nodes that write while neither hears of the other, and what both have once they have met.

use anyhow::{Context, Result, ensure};
use duplex_lab::{Lab, Node};

/// What both nodes do while neither hears of the other.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Columns after `id int primary key, n int not null default 0`, of which `n` is a counter.
    pub(crate) columns: &'static str,
    pub(crate) setup: &'static str,
    pub(crate) older: &'static str,
    pub(crate) newer: &'static str,
    /// What both have in the end.
    pub(crate) rows: &'static [&'static str],
    /// What the older node does once both have met, and what both have then.
    pub(crate) after: &'static str,
    pub(crate) rows_after: &'static [&'static str],
}

/// Plays all cases, with either side the newer; `policy` is what each table is enabled with.
pub(crate) async fn play(cases: &'static [Case], policy: &str) -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    let tables: Vec<(String, &Case, bool)> = cases
        .iter()
        .flat_map(|case| [true, false].map(|a_first| (format!("{}_{a_first}", case.name), case, a_first)))
        .collect();
    let (mut ddl, mut dml) = (String::new(), String::new());
    for (table, case, _) in &tables {
        ddl += &format!(
            "create table {table} (id int primary key, n int not null default 0, {}); \
             select duplex.enable('{table}', {policy});",
            case.columns
        );
        dml += &format!("{};", case.setup.replace("{t}", table));
    }
    futures_util::future::try_join(a.exec(&ddl), b.exec(&ddl)).await?;
    a.exec(&dml).await?;
    lab.settled().await?;
    lab.stop_relays()?;
    for (table, case, a_first) in &tables {
        let (older, newer) = if *a_first { (a, b) } else { (b, a) };
        each(older, case.older, table).await?;
        each(newer, case.newer, table).await?;
    }
    for node in lab.nodes() {
        node.relay().start()?;
    }
    lab.settled().await?;
    let mut wrong = Vec::new();
    for (table, case, _) in &tables {
        compare(&lab, table, case.rows, &mut wrong).await?;
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (table, case, a_first) in &tables {
        each(if *a_first { a } else { b }, case.after, table).await?;
    }
    lab.settled().await?;
    for (table, case, _) in &tables {
        compare(&lab, table, case.rows_after, &mut wrong).await?;
    }
    ensure!(wrong.is_empty(), "after the meeting: {}", wrong.join("\n"));
    lab.stop_relays()
}

/// Statements, each a transaction with a version of its own, but for those between `begin` and `commit`.
async fn each(node: &Node, sql: &str, table: &str) -> Result<()> {
    let session = node.connect().await?;
    for statement in sql.replace("\\;", "\u{1}").split("; ") {
        let statement = statement.replace('\u{1}', ";").replace("{t}", table);
        session.exec(&statement).await.with_context(|| table.to_owned())?;
    }
    Ok(())
}

async fn compare(lab: &Lab, table: &str, rows: &[&str], wrong: &mut Vec<String>) -> Result<()> {
    for node in lab.nodes() {
        let found = node.dump(table, &[]).await?;
        if found != rows {
            wrong.push(format!("{table}: {} has {found:?}", node.name()));
        }
    }
    Ok(())
}
