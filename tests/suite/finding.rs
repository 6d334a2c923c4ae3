//! Rows that fill many pages of their key's index: a peer's changes find every one, in whatever order they ask for them,
//! while pages split, empty and go to other keys beside the reader.

use anyhow::Result;
use duplex_lab::Lab;

const ROWS: u32 = 6000;
const TABLES: [&str; 2] = ["places", "codes"];

/// Two columns, one of them a text with a collation, in no order; and keys that are equal and not identical. An index on
/// what changes leaves an entry in the key's index for each image of a row.
const CREATE: &str = "create table places (a text collate \"und-x-icu\", n int, v int, primary key (a, n));
     create table codes (id numeric primary key, v int);
     create index on places (v); create index on codes (v);";

/// One transaction: every row in the table's order, upwards or downwards, changed so many times.
fn changed(round: u32) -> String {
    let order = ["md5(k::text)", "k", "-k"][round as usize % 3];
    format!(
        "begin;
         do $$ declare i int; begin
             for i in select k from generate_series(1, {ROWS}) k order by {order} loop
                 update places set v = {round} where n = i and a = 'Straße ' || i % 37;
                 update codes set v = {round}, id = (i || '.' || repeat('0', {round}))::numeric where id = i;
             end loop; end $$;
         commit"
    )
}

#[tokio::test]
async fn every_row_of_many_is_found_in_any_order() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(CREATE, &TABLES).await?;
    a.exec(&format!(
        "insert into places select 'Straße ' || i % 37, i, 0 from generate_series(1, {ROWS}) i order by md5(i::text);
         insert into codes select i, 0 from generate_series(1, {ROWS}) i"
    ))
    .await?;
    lab.converges(&TABLES).await?;
    b.hold(a.name(), false).await?;
    let writer = a.connect().await?;
    for round in 1..=9 {
        writer.exec(&changed(round)).await?;
    }
    writer
        .exec(
            "begin; delete from places where n % 3 = 0; delete from codes where id % 3 = 0;
             insert into places select 'Straße ' || i % 37, i, -1 from generate_series(6, 3000, 6) i order by i desc;
             insert into codes select i, -1 from generate_series(6, 3000, 6) i; commit",
        )
        .await?;
    b.resume(a.name()).await?;
    // Keys of this node's own come between the others and go again; what is left of their pages is used anew.
    let local = b.connect().await?;
    for round in 0..25 {
        local
            .exec(&format!(
                "insert into places select 'Straße ' || i % 37, -i, {round} from generate_series(1, 1500) i;
                 insert into codes select i + 0.5, {round} from generate_series({round} * 200 + 1, {round} * 200 + 1500) i;
                 delete from places where n < 0; delete from codes where id % 1 = 0.5;"
            ))
            .await?;
        local.exec("vacuum (index_cleanup on) places").await?;
        local.exec("vacuum (index_cleanup on) codes").await?;
    }
    lab.converges(&TABLES).await?;
    for table in TABLES {
        let counts = format!(
            "select string_agg(v || ' ' || n, ', ' order by v) from (select v, count(*) n from {table} group by v) t"
        );
        assert_eq!(b.one(&counts).await?, format!("-1 {}, 9 {}", ROWS / 12, ROWS / 3 * 2), "{table}");
    }
    Ok(())
}
