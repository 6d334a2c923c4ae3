//! Deleted keys that fill many pages of a register: every one is found, in whatever order peers' changes ask for them.

use anyhow::Result;
use duplex_lab::Lab;

const ROWS: u32 = 6000;

/// Keys of two columns, one of them a text with a collation, in no order; and one that is equal and not identical.
const TABLES: &str = "create table pairs (a text collate \"und-x-icu\", n int, v text, primary key (a, n));
     create table numbers (id numeric primary key, v text);";

/// The other node deletes later what is changed here meanwhile: nothing of it may come back there, and what it has left
/// alone is changed. Its deletes go on while the changes arrive, so entries come in and pages split beside the reader.
#[tokio::test]
async fn every_one_of_many_is_found_in_any_order() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(TABLES, &["pairs", "numbers"]).await?;
    a.exec(&format!(
        "insert into pairs select 'Straße ' || i % 37, i, 'first' from generate_series(1, {ROWS}) i order by md5(i::text);
         insert into numbers select i, 'first' from generate_series(1, {ROWS}) i"
    ))
    .await?;
    lab.converges(&["pairs", "numbers"]).await?;
    b.hold(a.name(), false).await?;
    // In the order of the table, upwards, and downwards; with keys that were never there in between.
    let writer = a.connect().await?;
    for part in 0..30 {
        writer
            .exec(&format!(
                "begin;
                 insert into pairs select 'Straße ' || i, -i, 'new' from generate_series({part} * 30 + 1, {part} * 30 + 30) i;
                 update pairs set v = 'changed' where n % 30 = {part} and n > 0;
                 do $$ declare k record; begin
                     for k in select id from numbers where id % 30 = {part} order by id * {direction} loop
                         insert into numbers values (k.id + 0.5, 'new');
                         update numbers set id = (k.id || '.0')::numeric, v = 'changed' where id = k.id;
                     end loop; end $$;
                 commit",
                direction = if part % 2 == 0 { 1 } else { -1 },
            ))
            .await?;
    }
    b.exec("delete from pairs where n % 2 = 0; delete from numbers where id % 2 = 0").await?;
    b.resume(a.name()).await?;
    let local = b.connect().await?;
    for part in 0..100 {
        local
            .exec(&format!(
                "delete from pairs where n % 400 = {part} * 4 + 1; delete from numbers where id % 400 = {part} * 4 + 1"
            ))
            .await?;
    }
    lab.converges(&["pairs", "numbers"]).await?;
    for (table, new) in [("pairs", 900), ("numbers", ROWS)] {
        let counts = format!(
            "select string_agg(v || ' ' || n, ', ' order by v) from (select v, count(*) n from {table} group by v) t"
        );
        assert_eq!(b.one(&counts).await?, format!("changed {}, new {new}", ROWS / 4), "{table}");
    }
    Ok(())
}
