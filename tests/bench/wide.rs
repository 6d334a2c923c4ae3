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

/// Count of rows, and a sum over all their text: equal on equal tables.
pub(crate) async fn digest(session: &Session, name: &str) -> Result<String> {
    session
        .one(&format!("select count(*) || ' ' || coalesce(sum(hashtextextended(t::text, 0)), 0) from {name} t"))
        .await
}

/// Makes sure that both ends hold the same rows.
pub(crate) async fn assert_equal(source: &Session, target: &Session, name: &str) -> Result<()> {
    let (source, target) = (digest(source, name).await?, digest(target, name).await?);
    ensure!(source == target, "{name} differs: {source} at the source, {target} at the target");
    Ok(())
}
