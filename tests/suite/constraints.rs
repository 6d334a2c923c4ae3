//! Constraints on the side that applies: checked as on the side that wrote, never more and never less.

use anyhow::Result;
use duplex_lab::{Lab, PATIENCE, until};

/// A swap of two unique values passes through a state that a row-by-row check would refuse.
#[tokio::test]
async fn deferrable_unique_swap() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(
        "create table d (id int primary key, place int, unique (place) deferrable initially deferred);
         create table i (id int primary key, place int, unique (place) deferrable initially immediate);
         create table x (id int primary key, span int4range, exclude using gist (span with &&) deferrable)",
        &["d", "i", "x"],
    )
    .await?;
    a.exec(
        "insert into d select i, i from generate_series(1, 6) i; insert into i select * from d; \
         insert into x select i, int4range(i, i + 1) from generate_series(1, 6) i",
    )
    .await?;
    lab.converges(&["d", "i", "x"]).await?;
    a.exec("begin; update d set place = 2 where id = 1; update d set place = 1 where id = 2; commit").await?;
    b.exec("update i set place = 7 - place; update x set span = int4range(7 - id, 8 - id)").await?;
    lab.converges(&["d", "i", "x"]).await?;
    a.exec(
        "begin; insert into d values (7, 3); update d set place = 33 where id = 3; \
         set constraints all deferred; update i set place = place % 6 + 1; delete from x where id = 1; \
         insert into x values (9, '[6,7)'); commit",
    )
    .await?;
    lab.converges(&["d", "i", "x"]).await?;
    assert_eq!(b.dump("d", &[]).await?[0], "id=1 | place=2");
    Ok(())
}

/// A check that waits for the transaction's end has rows to look at, which a TRUNCATE must not have taken away.
#[tokio::test]
async fn a_check_that_waits_is_made_before_its_table_is_emptied() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(
        "create table gone (id int primary key, v text, unique (v) deferrable);
         create table again (id int primary key, v text, unique (v) deferrable);
         create table p (id int, n int, v text, primary key (id, n), unique (id, v) deferrable initially deferred)
                partition by list (id);
         create table p_1 partition of p for values in (1, 2);
         create table p_2 partition of p default;
         create table swap (id int primary key, v int, unique (v) deferrable initially deferred)",
        &["gone", "again", "p", "swap"],
    )
    .await?;
    a.exec("insert into swap values (1, 1), (2, 2)").await?;
    lab.converges(&["swap"]).await?;
    lab.stop_relays()?;
    b.exec("insert into gone values (1, 'x'); insert into again table gone; insert into p values (1, 1, 'x')").await?;
    // The values are taken there, so the rows' checks wait; another table's may go on waiting behind the TRUNCATE.
    a.exec(
        "begin; update swap set v = 2 where id = 1; insert into gone values (2, 'x'); insert into again table gone; \
         insert into p values (1, 2, 'x'); truncate gone, p; truncate again; \
         insert into again values (3, 'x'), (4, 'y'); set constraints again_v_key deferred; \
         update again set v = 'y' where id = 3; update again set v = 'x' where id = 4; \
         update swap set v = 1 where id = 2; commit",
    )
    .await?;
    for node in lab.nodes() {
        node.relay().start()?;
    }
    lab.converges(&["gone", "again", "p", "swap"]).await?;
    assert_eq!(b.dump("again", &[]).await?, ["id=3 | v=y", "id=4 | v=x"]);
    assert_eq!(b.one("select (select count(*) from gone) + (select count(*) from p)").await?, "0");
    Ok(())
}

/// What a unique index does not hold never clashes: other rows than its predicate's, NULLs; and its expression counts,
/// not the column.
#[tokio::test]
async fn partial_and_expression_unique_indexes() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(
        "create table t (id int primary key, mail text, active bool, code text, n int, m int, unique nulls not distinct (n));
         create unique index on t (mail) where active;
         create unique index on t (lower(code)) include (m);
         create unique index on t (m, (n / 10)) where code is not null",
        &["t"],
    )
    .await?;
    a.exec(
        "insert into t values (1, 'm', true, 'A', 1, null), (2, 'm', false, 'b', 2, null), (3, 'm', false, null, 3, 5), \
                              (4, 'm', null, null, null, 5)",
    )
    .await?;
    b.exec("insert into t values (5, 'k', true, null, 50, 5), (6, 'k', false, null, 60, 5)").await?;
    lab.converges(&["t"]).await?;
    a.exec("begin; update t set active = false where id = 1; update t set active = true where id = 2; commit").await?;
    b.exec("begin; update t set active = false where id = 5; update t set active = true where id = 6; commit").await?;
    lab.converges(&["t"]).await?;
    b.exec("begin; delete from t where id = 1; insert into t values (7, 'n', true, 'a', 1, null); commit").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(a.number("select count(*) from t").await?, 6);
    Ok(())
}

/// CHECK, domain and index functions may run queries: they find a snapshot, and the rows of their own transaction.
#[tokio::test]
async fn functions_that_run_queries_in_checks_domains_and_indexes() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(
        "create table known (id int primary key);
         create function is_known(n int) returns bool language plpgsql stable as
             $$ begin return n is null or exists (select from public.known where id = n); end $$;
         create function rank(n int) returns bigint language plpgsql immutable as
             $$ begin return (select count(*) from public.known where id < n); end $$;
         create function twice(n int) returns int language sql immutable as 'select n * 2';
         create domain known_id as int check (public.is_known(value));
         create table t (id int primary key, c int check (is_known(c)), d known_id, ds known_id[], e int,
                         g int generated always as (twice(e)) stored);
         create index on t (rank(e)); create unique index on t (twice(e)) where rank(e) >= 0;
         create table p (id int, v int, primary key (id, v)) partition by list (v);
         create table p_1 partition of p for values in (1);
         alter table p add check (is_known(v))",
        &["known", "t", "p"],
    )
    .await?;
    a.exec("begin; insert into known select generate_series(1, 5); insert into t values (1, 1, 2, '{3,4}', 5); commit")
        .await?;
    a.exec("insert into p values (1, 1); insert into t values (2, null, null, null, null)").await?;
    lab.converges(&["known", "t", "p"]).await?;
    b.exec("begin; insert into known values (6); update t set c = 6, d = 6, e = e + 1; update p set id = 7; commit")
        .await?;
    lab.converges(&["known", "t", "p"]).await?;
    assert_eq!(a.one("select concat(c, d, e, g) from t where id = 1").await?, "66612");
    Ok(())
}

#[tokio::test]
async fn truncate_of_several_tables_with_cascade_and_restart_identity() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    let tables = ["parent", "child", "grandchild", "other"];
    lab.create_everywhere(
        "create table parent (id int generated by default as identity primary key, v text);
         create table child (id int generated by default as identity primary key, parent int references parent);
         create table grandchild (id int primary key, child int references child);
         create table other (id serial primary key)",
        &tables,
    )
    .await?;
    let fill = "insert into parent (v) values ('x'), ('y'); insert into child (parent) values (1), (2); \
                insert into grandchild values (1, 1); insert into other default values";
    a.exec(fill).await?;
    lab.converges(&tables).await?;
    assert_eq!(b.number("select count(*) from grandchild").await?, 1);
    // What comes before and after it in the transaction stays in order; sequences start anew on both sides.
    a.exec(&format!(
        "begin; insert into other default values; truncate parent, other restart identity cascade; {fill}; commit"
    ))
    .await?;
    lab.converges(&tables).await?;
    assert_eq!(b.number("select count(*) from child").await?, 2);
    assert_eq!(b.one("select concat(nextval('parent_id_seq'), nextval('other_id_seq'))").await?, "11");
    // Of one table alone, and rolled back.
    b.exec("truncate grandchild").await?;
    b.exec("begin; truncate parent cascade; rollback").await?;
    b.exec("begin; savepoint s; truncate other; rollback to s; commit").await?;
    lab.converges(&tables).await?;
    assert_eq!(a.one("select concat((select count(*) from child), (select count(*) from other))").await?, "21");
    Ok(())
}

/// Keys may be equal to their index and yet not identical: rows are found by the operator, and the new image is written.
#[tokio::test]
async fn keys_that_are_equal_and_not_identical() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    let tables = ["scale", "folded", "plain", "zero"];
    lab.create_everywhere(
        "create extension citext;
         create table scale (k numeric primary key, v int);
         create table folded (k citext primary key, v int);
         create collation insensitive (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         create table plain (k text collate insensitive primary key, v int);
         create table zero (k float8 primary key, v int)",
        &tables,
    )
    .await?;
    a.exec(
        "insert into scale values (1.0, 1), (2.50, 1); insert into folded values ('Key', 1), ('other', 1); \
         insert into plain values ('Key', 1), ('other', 1); insert into zero values (0, 1)",
    )
    .await?;
    lab.converges(&tables).await?;
    b.exec(
        "update scale set k = 1.000 where k = 1; update folded set k = 'KEY' where k = 'key'; \
         update plain set k = 'KEY' where k = 'key'; update zero set k = '-0'",
    )
    .await?;
    lab.converges(&tables).await?;
    assert_eq!(a.one("select (select min(k) from scale) || (select min(k) from folded)").await?, "1.000KEY");
    a.exec("update scale set v = 2; update folded set v = 2; update plain set v = 2; update zero set v = 2").await?;
    lab.converges(&tables).await?;
    b.exec(
        "begin; delete from scale where k = 1; insert into scale values (1.00, 3); delete from folded where k = 'kEy'; \
         insert into folded values ('kEY', 3); delete from plain where k = 'OTHER'; delete from zero; commit",
    )
    .await?;
    lab.converges(&tables).await?;
    assert_eq!(a.one("select (select min(k) from scale) || (select min(k) from folded)").await?, "1.00kEY");
    Ok(())
}

/// The applier may be the victim of a deadlock: the whole transaction is tried again, and nobody has to look.
#[tokio::test]
async fn the_applier_as_a_deadlocks_victim() -> Result<()> {
    let lab = Lab::builder().setting("deadlock_timeout", "100ms").start().await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    a.exec("insert into t values (1, 'x'), (2, 'x')").await?;
    lab.converges(&["t"]).await?;
    let local = b.connect().await?;
    // The applier notices the cycle, for the other's patience is longer.
    local.exec("set deadlock_timeout = '10min'; begin; update t set v = 'local' where id = 2").await?;
    a.exec("begin; update t set v = 'remote' where id = 1; update t set v = 'remote' where id = 2; commit").await?;
    let waiting =
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    until("the applier to wait for the row", PATIENCE, async || {
        Ok(duplex_lab::wait::when(b.number(waiting).await? == 1, "it does not"))
    })
    .await?;
    // It holds row 1 and waits for row 2: the cycle closes.
    local.exec("update t set v = 'local' where id = 1; commit").await?;
    lab.converges(&["t"]).await?;
    // The local transaction committed later, so it stays.
    assert_eq!(a.dump("t", &[]).await?, ["id=1 | v=local", "id=2 | v=local"]);
    let log = std::fs::read_to_string(b.cluster().log())?;
    assert!(log.contains("40P01"), "there was no deadlock");
    assert_eq!(b.number("select count(*) from duplex.apply_errors").await?, 0);
    Ok(())
}

/// Several changes of one row in one transaction see each other, and a row that moves while the applier waits for it is
/// looked for again.
#[tokio::test]
async fn changes_of_one_row_that_follow_each_other() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v int, w text unique)", &["t"]).await?;
    a.exec(
        "begin; insert into t values (1, 0, 'a'); update t set v = v + 1; update t set v = v + 1, w = 'b'; \
         delete from t; insert into t values (1, 10, 'a'); update t set id = 2; insert into t values (1, 11, 'b'); \
         update t set w = null where id = 2; update t set w = 'a' where id = 1; commit",
    )
    .await?;
    lab.converges(&["t"]).await?;
    assert_eq!(b.dump("t", &[]).await?, ["id=1 | v=11 | w=a", "id=2 | v=10 | w=␀"]);
    let local = b.connect().await?;
    local.exec("begin; update t set v = 100 where id = 1; update t set v = 101 where id = 1").await?;
    a.exec("update t set v = 50 where id = 1").await?;
    let waiting =
        "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    until("the applier to wait for the row", PATIENCE, async || {
        Ok(duplex_lab::wait::when(b.number(waiting).await? == 1, "it does not"))
    })
    .await?;
    local.exec("commit").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(a.number("select v from t where id = 1").await?, 101);
    Ok(())
}
