//! Tables and databases that leave: as they were before, with streams that stay sane.

use anyhow::Result;
use duplex_lab::{Lab, Session};

/// Everything that the catalog says of the tables of schema `public`, but for oids.
async fn traces(session: &Session) -> Result<String> {
    session
        .one(
            "select concat_ws(E'\\n',
                (select string_agg(concat_ws(' ', relname, relkind, relreplident, relpersistence, relacl, reloptions),
                                   ', ' order by relname) from pg_class where relnamespace = 'public'::regnamespace),
                (select string_agg(concat_ws(' ', tgrelid::regclass, tgname, tgenabled), ', ' order by tgrelid, tgname)
                   from pg_trigger where not tgisinternal),
                (select string_agg(evtname, ', ') from pg_event_trigger),
                (select string_agg(nspname, ', ') from pg_namespace where nspname = 'duplex'),
                (select count(*) from pg_depend where refclassid = 'pg_extension'::regclass
                    and refobjid = (select oid from pg_extension where extname = 'pg_duplex')))",
        )
        .await
}

const TABLES: &str = "create table t (id int primary key, v text);
     create function own() returns trigger language plpgsql as 'begin return new; end';
     create trigger own before insert on t for each row execute function own();
     create table p (id int primary key, v text) partition by range (id);
     create table p_1 partition of p for values from (0) to (10) partition by range (id);
     create table p_1_1 partition of p_1 default; create table p_2 partition of p default";

#[tokio::test]
async fn dropping_the_extension_leaves_tables_as_they_were() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let session = lab.node(0).connect().await?;
    session.exec(TABLES).await?;
    session.exec("drop extension pg_duplex").await?;
    let before = traces(&session).await?;
    for how in
        ["drop extension pg_duplex", "drop extension pg_duplex cascade", "begin; drop extension pg_duplex; commit"]
    {
        session
            .exec("create extension pg_duplex; select duplex.create_node('again'); select duplex.add_peer('peer')")
            .await?;
        session.exec("select duplex.enable('t'), duplex.enable('p')").await?;
        session
            .exec(
                "insert into t values (1, 'x') on conflict (id) do update set v = 'x'; insert into p values (1), (11)",
            )
            .await?;
        session.exec("create table p_3 partition of p for values from (100) to (200)").await?;
        assert!(traces(&session).await?.contains("duplex"));
        session.exec(how).await?;
        session.exec("drop table p_3; delete from p").await?;
        assert_eq!(traces(&session).await?, before, "{how}");
    }
    session.exec("insert into t values (2, 'as ever'); truncate p_2").await?;
    // Roles are the cluster's: that of the relay stays for other databases.
    assert_eq!(session.number("select count(*) from pg_roles where rolname = 'duplex_relay'").await?, 1);
    Ok(())
}

/// The extension goes in a transaction that has captured writes, or that writes afterwards.
#[tokio::test]
async fn dropping_the_extension_in_a_transaction_with_captured_writes() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    let session = node.connect().await?;
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    let other = node.connect().await?;
    other.exec("insert into t values (1, 'other session, library loaded')").await?;
    session
        .exec("begin; insert into t values (2, 'x'); drop extension pg_duplex; insert into t values (3, 'y'); rollback")
        .await?;
    assert_eq!(node.queued().await?, 1);
    session
        .exec("begin; insert into t values (2, 'x'); savepoint s; drop extension pg_duplex; rollback to s; commit")
        .await?;
    assert_eq!(node.queued().await?, 2);
    session
        .exec("begin; insert into t values (4, 'x'); drop extension pg_duplex; insert into t values (5, 'y'); commit")
        .await?;
    for session in [&session, &other] {
        session.exec("update t set v = 'free'; insert into t select max(id) + 1 from t").await?;
    }
    assert_eq!(session.number("select count(*) from t").await?, 6);
    // The same sessions, with another life of the extension.
    other.exec("create extension pg_duplex; select duplex.create_node('again'); select duplex.enable('t')").await?;
    for session in [&session, &other] {
        session.exec("update t set v = 'captured'").await?;
    }
    assert_eq!(node.queued().await?, 2);
    Ok(())
}

/// A table that is disabled, dropped, renamed or moved to another schema.
#[tokio::test]
async fn tables_that_are_disabled_dropped_renamed_and_moved() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(
        "create schema app; create table t (id int primary key, v text); create table d (id int primary key); \
         create table gone (id int primary key); create table cascaded (id int primary key); \
         create schema whole; create table whole.w (id int primary key)",
        &["t", "d", "gone", "cascaded", "whole.w"],
    )
    .await?;
    a.exec("insert into t values (1, 'x'); insert into d values (1); insert into gone values (1)").await?;
    lab.converges(&["t", "d", "gone"]).await?;

    // The name under which a table is known to the peers is the one that it has when it is written to.
    for node in lab.nodes() {
        node.exec("alter table t rename to r").await?;
    }
    a.exec("insert into r values (2, 'renamed')").await?;
    lab.converges(&["r"]).await?;
    for node in lab.nodes() {
        node.exec("alter table r set schema app; alter table app.r rename v to w; alter schema app rename to app2")
            .await?;
    }
    b.exec("insert into app2.r values (3, 'moved')").await?;
    a.exec("begin; insert into app2.r values (4, 'x'); alter table app2.r rename to s; insert into app2.s values (5, 'y'); rollback")
        .await?;
    lab.converges(&["app2.r"]).await?;
    assert_eq!(a.number("select count(*) from app2.r").await?, 3);

    // Dropped: forgotten, in whatever way, and a transaction that wrote to it before is still whole.
    for node in lab.nodes() {
        node.exec("drop table gone; drop schema whole cascade; create view on_it as select * from cascaded").await?;
        node.exec("drop table cascaded cascade").await?;
        assert_eq!(
            node.one("select string_agg(\"table\"::text, ' ' order by 1) from duplex.tables").await?,
            "app2.r d"
        );
        assert_eq!(node.number("select count(*) from duplex.table_registry").await?, 2);
    }
    // A new table of that name does not take part until it is enabled.
    a.exec("create table gone (id int primary key); insert into gone values (5)").await?;

    // Disabled on both sides: rows stay where they are written.
    for node in lab.nodes() {
        node.exec("select duplex.disable('d')").await?;
    }
    a.exec("insert into d values (2); insert into app2.r values (6, 'after')").await?;
    lab.converges(&["app2.r"]).await?;
    assert_eq!(b.number("select count(*) from d").await?, 1);
    assert_eq!(a.number("select count(*) from pg_trigger where tgrelid = 'd'::regclass").await?, 0);
    // And enabled again.
    lab.enable(&["d"]).await?;
    a.exec("insert into d values (3)").await?;
    lab.settled().await?;
    assert_eq!(b.one("select string_agg(id::text, ' ' order by id) from d").await?, "1 3");
    lab.stop_relays()
}

/// DROP TABLE, `disable` and TRUNCATE in transactions that have written to the table: what was captured is sent, and the
/// transaction's other changes arrive.
#[tokio::test]
async fn leaving_in_the_middle_of_a_transaction() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(
        "create table t (id int primary key, v text); create table d (id int primary key); create table x (id int primary key)",
        &["t", "d", "x"],
    )
    .await?;
    a.exec("begin; insert into d values (1); select duplex.disable('d'); insert into d values (2); insert into t values (1); commit")
        .await?;
    a.exec("begin; insert into x values (1); insert into t values (2); drop table x; insert into t values (3); commit")
        .await?;
    a.exec("begin; insert into t values (4); drop table d; rollback; insert into t values (5)").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(b.number("select count(*) from t").await?, 4);
    // What was written before it left is on the other side, where it has not left.
    assert_eq!(
        b.one("select (select string_agg(id::text, ' ') from d) || ' ' || (select count(*) from x)").await?,
        "1 1"
    );
    Ok(())
}
