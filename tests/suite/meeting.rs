//! Two nodes that write while neither hears of the other, and what both have once they have met.

use anyhow::{Context, Result, ensure};
use duplex_lab::{Lab, Node};

/// What both nodes do while neither hears of the other.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Columns after those that all cases have.
    pub(crate) columns: &'static str,
    /// An index beside those of the columns.
    pub(crate) index: &'static str,
    /// What both have at first.
    pub(crate) setup: &'static str,
    pub(crate) older: &'static str,
    pub(crate) newer: &'static str,
    /// What both have in the end.
    pub(crate) rows: &'static [&'static str],
    /// What the node that wrote first has on record then, and what the other one has: kind and resolution.
    pub(crate) on_record: Option<[&'static [&'static str]; 2]>,
    /// What the older node does once both have met, and what both have then.
    pub(crate) after: &'static str,
    pub(crate) rows_after: &'static [&'static str],
}

/// A case of which nothing is said yet.
pub(crate) const QUIET: Case = Case {
    name: "",
    columns: "",
    index: "",
    setup: "",
    older: "",
    newer: "",
    rows: &[],
    on_record: None,
    after: "",
    rows_after: &[],
};

/// A case in a table of its own.
struct Meeting<'a> {
    table: String,
    case: &'static Case,
    older: &'a Node,
    newer: &'a Node,
}

/// Plays all cases, with either side the newer; `first` are the columns that all tables begin with, `policy` what follows
/// the table's name where it is enabled.
pub(crate) async fn play(cases: &'static [Case], first: &str, policy: &str) -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    let meetings: Vec<Meeting<'_>> = cases
        .iter()
        .flat_map(|case| [(case, true, a, b), (case, false, b, a)])
        .map(|(case, a_first, older, newer)| Meeting { table: format!("{}_{a_first}", case.name), case, older, newer })
        .collect();
    let (mut ddl, mut dml) = (String::new(), String::new());
    for Meeting { table, case, .. } in &meetings {
        ddl += &format!(
            "create table {table} ({first}, {}); {}; select duplex.enable('{table}'{policy});",
            case.columns,
            case.index.replace("{t}", table)
        );
        dml += &format!("{};", case.setup.replace("{t}", table));
    }
    futures_util::future::try_join(a.exec(&ddl), b.exec(&ddl)).await?;
    a.exec(&dml).await?;
    lab.settled().await?;
    lab.stop_relays()?;
    for meeting in &meetings {
        meeting.each(meeting.older, meeting.case.older).await?;
        meeting.each(meeting.newer, meeting.case.newer).await?;
    }
    for node in lab.nodes() {
        node.relay().start()?;
    }
    lab.settled().await?;
    let mut wrong = Vec::new();
    for meeting in &meetings {
        meeting.compare(meeting.case.rows, &mut wrong).await?;
        meeting.compare_records(&mut wrong).await?;
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    for meeting in &meetings {
        meeting.each(meeting.older, meeting.case.after).await?;
    }
    lab.settled().await?;
    for meeting in meetings.iter().filter(|meeting| !meeting.case.after.is_empty()) {
        meeting.compare(meeting.case.rows_after, &mut wrong).await?;
    }
    ensure!(wrong.is_empty(), "after the meeting: {}", wrong.join("\n"));
    lab.stop_relays()
}

impl Meeting<'_> {
    /// Statements, each a transaction with a version of its own, but for those between `begin` and `commit`.
    async fn each(&self, node: &Node, sql: &str) -> Result<()> {
        let session = node.connect().await?;
        for statement in sql.replace("\\;", "\u{1}").split("; ") {
            let statement = statement.replace('\u{1}', ";").replace("{t}", &self.table);
            session.exec(&statement).await.with_context(|| self.table.clone())?;
        }
        Ok(())
    }

    async fn compare(&self, rows: &[&str], wrong: &mut Vec<String>) -> Result<()> {
        for (role, node) in [("older", self.older), ("newer", self.newer)] {
            let found = node.dump(&self.table, &[]).await?;
            if found != rows {
                wrong.push(format!("{}: the {role} node has {found:?}", self.table));
            }
        }
        Ok(())
    }

    async fn compare_records(&self, wrong: &mut Vec<String>) -> Result<()> {
        let Some([at_older, at_newer]) = self.case.on_record else { return Ok(()) };
        let sql = format!(
            "select kind || ' ' || resolution from duplex.conflict_history where \"table\" = 'public.{}' order by id",
            self.table
        );
        for (role, node, records) in [("older", self.older, at_older), ("newer", self.newer, at_newer)] {
            let found: Vec<String> = node.rows(&sql).await?.into_iter().flatten().flatten().collect();
            if found != records {
                wrong.push(format!("{}: the {role} node recorded {found:?}", self.table));
            }
        }
        Ok(())
    }
}
