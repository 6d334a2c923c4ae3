//! The table that most measurements write to: ten columns of common types.

use anyhow::{Result, ensure};
use duplex_lab::Session;

/// Its definition, under a name.
pub(crate) fn create(name: &str) -> String {
    format!(
        "create table {name} (id bigint primary key, a int, b int, c text, d text, e timestamptz, f numeric, g bool, \
         h jsonb, i float8)"
    )
}

/// Statement that fills a table with `rows` rows from `from` on.
pub(crate) fn fill(name: &str, from: u32, rows: u32) -> String {
    format!(
        "insert into {name} select {} from generate_series({from}, {}) as n",
        values("n"),
        u64::from(from) + u64::from(rows) - 1
    )
}

/// The values of one row, for a number.
pub(crate) fn values(n: &str) -> String {
    format!(
        "{n}, {n} % 1000, {n} / 10, 'name ' || {n}, md5({n}::text), timestamptz '2026-01-01 00:00:00+00' + {n} * \
         interval '1 second', {n} * 1.01, {n} % 2 = 0, jsonb_build_object('n', {n}, 'tag', 'x' || {n} % 100), {n} / 7.0"
    )
}

/// What an UPDATE of it changes.
pub(crate) const CHANGE: &str = "a = a + 1, d = md5(d), e = e + interval '1 day', f = f + 1";

const COLUMNS: [&str; 10] = ["id", "a", "b", "c", "d", "e", "f", "g", "h", "i"];

/// The columns whose values are not the same at both ends; all of them if the counts of rows differ.
pub(crate) async fn differing(source: &Session, target: &Session) -> Result<Vec<&'static str>> {
    let sums = COLUMNS.map(|column| format!("sum(hashtextextended(id || ' ' || coalesce({column}::text, ''), 0))"));
    let sql = format!("select count(*), {} from wide", sums.join(", "));
    let (at_source, at_target) = (source.rows(&sql).await?, target.rows(&sql).await?);
    let (source, target) = (&at_source[0], &at_target[0]);
    let same_count = source[0] == target[0];
    let columns = COLUMNS.into_iter().zip(source.iter().zip(target).skip(1));
    Ok(columns.filter(|(_, (source, target))| !same_count || source != target).map(|(column, _)| column).collect())
}

/// Makes sure that both ends hold the same rows.
pub(crate) async fn assert_equal(source: &Session, target: &Session) -> Result<()> {
    let columns = differing(source, target).await?;
    ensure!(columns.is_empty(), "source and target differ in {}", columns.join(", "));
    Ok(())
}
