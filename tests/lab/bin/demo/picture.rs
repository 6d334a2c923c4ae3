//! What the databases hold, side by side.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use duplex_lab::{Lab, Session, topic};

use super::screen::{Look, Screen, padded, row, row_width, rule, table, widths};

/// A table as both databases hold it at about the same time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    table: &'static str,
    heading: Vec<String>,
    sides: [Vec<Vec<String>>; 2],
}

impl Pair {
    /// Asks both. Rows are sorted by their first column, which is the key.
    pub(crate) async fn read(sessions: &[Session; 2], table: &'static str, columns: &[&str]) -> Result<Self> {
        let sql = format!("select {} from {table}", columns.join(", "));
        let (left, right) = tokio::try_join!(sessions[0].rows(&sql), sessions[1].rows(&sql))?;
        let sides = [left, right].map(|rows| {
            let cells = |row: Vec<Option<String>>| row.into_iter().map(|cell| cell.unwrap_or("␀".into())).collect();
            let mut rows: Vec<Vec<String>> = rows.into_iter().map(cells).collect();
            rows.sort();
            rows
        });
        Ok(Self { table, heading: columns.iter().map(|&name| name.to_owned()).collect(), sides })
    }

    /// Whether both hold the same rows.
    pub(crate) fn is_equal(&self) -> bool {
        self.sides[0] == self.sides[1]
    }

    /// Both sides beside each other: rows of one key on one line, with a sign between them that says whether they agree.
    pub(crate) fn draw(&self, screen: &Screen, databases: [&str; 2]) {
        let all = self.sides.iter().flatten().map(Vec::as_slice);
        let widths = widths(std::iter::once(self.heading.as_slice()).chain(all));
        let width = row_width(&widths);
        let names = databases.map(|database| padded(&format!("{} in {database}", self.table), width));
        screen.line(&screen.look(Look::Bold, format!("{}     {}", names[0], names[1]).trim_end()));
        let heading = row(&self.heading, &widths);
        screen.line(&screen.look(Look::Dim, format!("{heading}     {heading}").trim_end()));
        let rule = rule(&widths);
        screen.line(&screen.look(Look::Dim, &format!("{rule}     {rule}")));
        for [left, right] in self.lines() {
            let cells = |side: Option<&[String]>| side.map_or(padded("", width), |cells| row(cells, &widths));
            let sign = match left == right {
                true => screen.look(Look::Good, "="),
                false => screen.look(Look::Pending, "≠"),
            };
            screen.line(format!("{}  {sign}  {}", cells(left), cells(right)).trim_end());
        }
        screen.line("");
    }

    /// Rows by key, as each side has them.
    fn lines(&self) -> Vec<[Option<&[String]>; 2]> {
        let keys: BTreeSet<&String> = self.sides.iter().flatten().filter_map(|row| row.first()).collect();
        let find =
            |side: usize, key: &String| self.sides[side].iter().find(|row| row.first() == Some(key)).map(Vec::as_slice);
        keys.into_iter().map(|key| [find(0, key), find(1, key)]).collect()
    }
}

/// What was started, and where.
pub(crate) fn parts(screen: &Screen, lab: &Lab, took: Duration) {
    screen.heading(&format!("Running after {:.1} seconds", took.as_secs_f64()));
    let [a, b] = lab.pair();
    let at = |number: usize| format!("127.0.0.1:{}", lab.node(number).cluster().port());
    let topics = [a, b].map(|node| topic::name(node.name()));
    let rows = [
        [a.database(), &at(0), "PostgreSQL with the extension pg_duplex; takes writes"],
        [b.database(), &at(1), "PostgreSQL with the extension pg_duplex; takes writes"],
        ["Kafka", lab.kafka().bootstrap(), &format!("topics {} and {}", topics[0], topics[1])],
        ["relay 1", "–", &format!("{} → topic {}; topic {} → {}", a.database(), topics[0], topics[1], a.database())],
        ["relay 2", "–", &format!("{} → topic {}; topic {} → {}", b.database(), topics[1], topics[0], b.database())],
    ];
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|&cell| cell.to_owned()).collect()).collect();
    table(screen, &["part", "address", "what it does"], &rows);
}

/// Sessions to look through, one a database.
pub(crate) async fn sessions(lab: &Lab) -> Result<[Session; 2]> {
    let [a, b] = lab.pair();
    tokio::try_join!(a.connect(), b.connect()).map(<[Session; 2]>::from).context("connecting to both databases")
}
