//! Partitioned tables: enabled as a whole, each side with partitions of its own making.

use anyhow::{Result, ensure};
use duplex_lab::Lab;

/// By list, range and hash, several levels deep, with another order of columns and dropped ones in partitions.
const TREE: &str =
    "create table p (region text, id int, at date, v text, primary key (region, at, id)) partition by list (region);
     create table p_kr partition of p for values in ('kr') partition by range (at);
     create table p_kr_old partition of p_kr for values from (minvalue) to ('2024-01-01');
     create table p_kr_new partition of p_kr for values from ('2024-01-01') to (maxvalue) partition by hash (id);
     create table p_kr_new_0 partition of p_kr_new for values with (modulus 2, remainder 0);
     create table p_kr_new_1 (gone int, v text, id int not null, at date not null, region text not null);
     alter table p_kr_new_1 drop gone;
     alter table p_kr_new attach partition p_kr_new_1 for values with (modulus 2, remainder 1);
     create table p_rest partition of p default";

const ROWS: &str = "insert into p select case i % 3 when 0 then 'kr' when 1 then 'de' else 'us' end, i,
                          date '2023-12-01' + i, 'v' || i from generate_series(1, 60) i";

#[tokio::test]
async fn rows_find_their_partition() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(TREE, &["p"]).await?;
    a.exec(ROWS).await?;
    lab.converges(&["p", "p_kr_old", "p_kr_new_0", "p_kr_new_1", "p_rest"]).await?;
    assert_eq!(lab.transactions(a).await?, 1);
    // By the root, by a middle level and by a leaf.
    b.exec("update p set v = 'root' where id % 5 = 0").await?;
    b.exec("update p_kr set v = 'middle' where id % 7 = 0; insert into p_kr values ('kr', 100, '2024-05-05', 'm')")
        .await?;
    lab.settled().await?;
    a.exec("delete from p_kr_new_1 where id % 2 = 0; insert into p_rest values ('fr', 200, '2024-01-01', 'leaf')")
        .await?;
    lab.converges(&["p"]).await?;
    // Rows that an UPDATE moves, within a level and across.
    a.exec(
        "update p set region = 'kr' where region = 'us'; update p_kr set at = '2020-01-01' where id between 20 and 40",
    )
    .await?;
    lab.settled().await?;
    b.exec(
        "begin; update p set id = id + 1000 where region = 'kr'; update p set region = 'de' where id > 1050; commit",
    )
    .await?;
    lab.converges(&["p", "p_kr_old", "p_kr_new_0", "p_kr_new_1", "p_rest"]).await?;
    b.exec("truncate p").await?;
    lab.settled().await?;
    assert_eq!(a.number("select count(*) from p").await?, 0);
    Ok(())
}

/// Changes of two partitions come as those of two tables, and share what is remembered of keys.
#[tokio::test]
async fn deletes_in_one_partition_and_many_inserts_in_another() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    let insert = "insert into {t} select 'de', i, 'v' from generate_series(200, 260) i";
    let delete = "delete from {t} where id < 100";
    for (table, statements) in [
        ("deletes_first", [delete, insert]),
        ("inserts_first", [insert, delete]),
        ("moves", ["update {t} set region = 'de' where id < 50", "update {t} set region = 'kr' where id < 20"]),
    ] {
        lab.create_everywhere(
            &format!(
                "create table {table} (region text, id int, v text, primary key (region, id)) partition by list (region);
                 create table {table}_kr partition of {table} for values in ('kr');
                 create table {table}_de partition of {table} for values in ('de')"
            ),
            &[table],
        )
        .await?;
        a.exec(&format!("insert into {table} select 'kr', i, 'v' from generate_series(1, 90) i")).await?;
        lab.settled().await?;
        let both = statements.map(|statement| statement.replace("{t}", table)).join("; ");
        a.exec(&format!("begin; {both}; commit")).await?;
        lab.converges(&[table]).await?;
        // None of it was only tried again until something had changed.
        let log = b.relay().log_text()?;
        ensure!(!log.contains("applying is interrupted"), "{log}");
    }
    lab.stop_relays()
}

#[tokio::test]
async fn partitioned_here_and_plain_or_otherwise_there() -> Result<()> {
    let lab = Lab::shared(3).await?;
    let [a, b, c] = [lab.node(0), lab.node(1), lab.node(2)];
    a.exec(TREE).await?;
    b.exec("create table p (id int, v text, at date, region text, primary key (region, at, id))").await?;
    // Columns that the others do not have, in yet another order in a partition.
    c.exec(
        "create sequence counter;
         create table p (v text, id int, region text, note text default 'dflt', at date, twice int generated always as (id * 2) stored,
                         nth int default nextval('counter'), primary key (region, at, id)) partition by range (id);
         create table p_low (nth int, gone int, at date not null, note text, v text, id int not null, region text not null,
                             twice int generated always as (id * 2) stored);
         alter table p_low drop gone; alter table p attach partition p_low for values from (minvalue) to (30);
         create table p_high partition of p for values from (30) to (maxvalue)",
    )
    .await?;
    lab.enable(&["p"]).await?;
    let own = ["note", "twice", "nth"];
    a.exec(ROWS).await?;
    lab.settled().await?;
    lab.assert_equal_except("p", &own).await?;
    let count = "select concat(count(*), min(note), max(note), sum(twice), count(distinct nth)) from p";
    assert_eq!(c.one(count).await?, "60dfltdflt366060");
    c.exec(
        "set session_replication_role = replica; alter table p disable trigger \"00_duplex_capture\"; \
            update p set note = 'own', nth = -id; alter table p enable always trigger \"00_duplex_capture\"",
    )
    .await?;
    b.exec("update p set v = 'b' where id % 4 = 0; delete from p where id % 11 = 0").await?;
    lab.settled().await?;
    lab.assert_equal_except("p", &own).await?;
    assert_eq!(c.one("select concat(count(*), min(note), max(note), sum(nth + id)) from p").await?, "55ownown0");
    a.exec("update p set id = 61 - id; update p set region = 'kr' where id > 50").await?;
    lab.settled().await?;
    lab.assert_equal_except("p", &own).await?;
    b.exec("truncate p").await?;
    lab.settled().await?;
    assert_eq!(a.number("select count(*) from p").await? + c.number("select count(*) from p").await?, 0);
    Ok(())
}

#[tokio::test]
async fn partitions_that_come_and_go_later() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(TREE, &["p"]).await?;
    // Capture fires in a replica session too, also in partitions that were made after the table was enabled.
    lab.exec_everywhere("create table p_jp partition of p for values in ('jp')").await?;
    lab.exec_everywhere(
        "create table p_br (region text not null, v text, at date not null, id int not null); \
         alter table p attach partition p_br for values in ('br')",
    )
    .await?;
    a.exec("set session_replication_role = replica; insert into p values ('jp', 1, '2024-01-01', 'x'), ('br', 1, '2024-01-01', 'y')")
        .await?;
    lab.converges(&["p", "p_jp", "p_br"]).await?;
    assert_eq!(b.number("select count(*) from p").await?, 2);
    // A partition that was detached is a table of its own, which was never enabled.
    a.exec("alter table p detach partition p_br; insert into p_br values ('br', 'y', '2024-01-01', 2); truncate p_br")
        .await?;
    assert_eq!(a.number("select count(*) from pg_trigger where tgrelid = 'p_br'::regclass").await?, 0);
    a.exec("insert into p values ('jp', 3, '2024-01-01', 'x')").await?;
    lab.settled().await?;
    assert_eq!(b.number("select count(*) from p where region = 'jp'").await?, 2);
    assert_eq!(b.number("select count(*) from p_br").await?, 1);
    Ok(())
}

/// TRUNCATE fires no trigger of the partitioned table when it names a partition: refused rather than not replicated.
#[tokio::test]
async fn truncating_a_partition_by_itself_is_refused() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(TREE, &["p"]).await?;
    lab.exec_everywhere("create table p_jp partition of p for values in ('jp')").await?;
    a.exec(ROWS).await?;
    a.exec("insert into p values ('jp', 1, '2024-01-01', 'x')").await?;
    let session = a.connect().await?;
    for partition in ["p_rest", "p_kr", "p_kr_new_0", "p_jp", "p_rest, p_jp"] {
        let error = session.refuses("0A000", &format!("truncate {partition}")).await?;
        assert!(error.hint().is_some());
    }
    lab.converges(&["p"]).await?;
    session.exec("truncate p, p_rest").await?;
    lab.settled().await?;
    assert_eq!(b.number("select count(*) from p").await?, 0);
    // What is not enabled any more is the owner's own again.
    a.exec("select duplex.disable('p'); truncate p_kr; truncate p_jp").await?;
    let left = "select count(*) from pg_trigger t join pg_partition_tree('p') p on p.relid = t.tgrelid \
                 where t.tgname like '%duplex%'";
    assert_eq!(a.number(left).await?, 0);
    Ok(())
}
