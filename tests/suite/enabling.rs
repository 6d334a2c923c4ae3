//! What the functions that people call refuse: with which SQLSTATE, message and hint.

use anyhow::{Context, Result};
use duplex_lab::{Lab, Session};

/// Checks an error's SQLSTATE and message, and that it says what to do.
async fn refused(session: &Session, sqlstate: &str, message: &str, sql: &str) -> Result<()> {
    let error = session.refuses(sqlstate, sql).await?;
    assert_eq!(error.message(), message, "{sql}");
    let hint = error.hint().with_context(|| format!("no hint from: {sql}"))?;
    assert!(hint.ends_with(['.', '"']), "no sentence: {hint}");
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_enabled() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let session = lab.node(0).connect().await?;
    session
        .exec(
            "create table t (id int primary key);
             create view v as select * from t; create materialized view m as select * from t;
             create foreign data wrapper w; create server s foreign data wrapper w; create foreign table f (id int) server s;
             create temporary table tmp (id int primary key); create unlogged table u (id int primary key);
             create sequence seq; create type composite as (a int);
             create table p (id int primary key) partition by range (id);
             create table p_1 partition of p for values from (0) to (1) partition by range (id);
             create table p_1_1 partition of p_1 for values from (0) to (1);
             create table nokey (id int); create unique index on nokey (id);
             create table partitioned_nokey (id int) partition by hash (id);
             create table late (id int primary key deferrable initially deferred);
             create table lost (id int not null); create unique index lost_key on lost (id);
             alter table lost replica identity using index lost_key; drop index lost_key;
             create table identity (id int not null unique, k int primary key deferrable);
             alter table identity replica identity using index identity_id_key;
             create table by_identity (id int not null unique) partition by range (id);
             create table by_identity_1 partition of by_identity for values from (0) to (9);
             alter table by_identity replica identity using index by_identity_id_key",
        )
        .await?;
    for (table, sqlstate, message) in [
        ("v", "42809", "public.v is a view, not a table"),
        ("m", "42809", "public.m is a materialized view, not a table"),
        ("f", "42809", "public.f is a foreign table, not a table"),
        ("seq", "42809", "public.seq is a sequence, not a table"),
        ("t_pkey", "42809", "public.t_pkey is an index, not a table"),
        ("p_pkey", "42809", "public.p_pkey is a partitioned index, not a table"),
        ("composite", "42809", "public.composite is a composite type, not a table"),
        ("tmp", "42809", "tmp is a temporary table"),
        ("u", "42809", "public.u is an unlogged table"),
        ("p_1", "42809", "public.p_1 is a partition"),
        ("p_1_1", "42809", "public.p_1_1 is a partition"),
        ("pg_class", "42809", "pg_class belongs to the system"),
        ("information_schema.sql_features", "42809", "information_schema.sql_features belongs to the system"),
        ("duplex.node", "42809", "duplex.node belongs to the system"),
        ("nokey", "55000", "public.nokey has no usable key"),
        ("partitioned_nokey", "55000", "public.partitioned_nokey has no usable key"),
        ("late", "55000", "public.late has no usable key"),
        ("lost", "55000", "public.lost has no usable key"),
        ("by_identity", "55000", "public.by_identity has no usable key"),
    ] {
        let error = session.refuses(sqlstate, &format!("select duplex.enable('{table}')")).await?;
        assert_eq!(error.message(), message, "{table}");
        assert!(error.hint().is_some(), "no hint for {table}");
    }
    session.refuses("42P01", "select duplex.enable('unknown')").await?;
    session.refuses("42P01", "select duplex.disable('unknown')").await?;
    session.refuses("22004", "select duplex.enable(null)").await?;
    // What is left can.
    session.exec("select duplex.enable('t'), duplex.enable('p'), duplex.enable('identity')").await?;
    refused(&session, "42710", "table public.t is enabled already", "select duplex.enable('t')").await?;
    session.exec("select duplex.disable('t')").await?;
    refused(&session, "42704", "table public.t is not enabled", "select duplex.disable('t')").await?;
    refused(&session, "42704", "table public.nokey is not enabled", "select duplex.disable('nokey')").await?;
    assert_eq!(session.number("select count(*) from duplex.tables").await?, 2);
    Ok(())
}

/// A primary key that goes away later makes writes fail: none is lost in silence.
#[tokio::test]
async fn a_key_that_is_dropped_later() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let session = lab.node(0).connect().await?;
    session.exec("create table t (id int primary key)").await?;
    session.exec("select duplex.enable('t'); insert into t values (1); alter table t drop constraint t_pkey").await?;
    refused(&session, "55000", "table \"t\" is replicated but has no primary key", "insert into t values (2)").await?;
    session.exec("alter table t add primary key (id); insert into t values (2)").await
}

#[tokio::test]
async fn nodes_and_peers() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    let session = node.connect().await?;
    let own = node.name();
    for bad in ["''", "'Upper'", "'a b'", "'-a'", "'ä'", "null", "'a.b'", "repeat('x', 64)"] {
        for function in ["create_node", "add_peer"] {
            let error = session.refuses("42602", &format!("select duplex.{function}({bad})")).await?;
            assert!(error.message().starts_with("invalid node name: ") && error.hint().is_some(), "{error}");
        }
    }
    let again = format!("this database is node \"{own}\" already");
    refused(&session, "42710", &again, "select duplex.create_node('other')").await?;
    refused(&session, "42710", &again, &format!("select duplex.create_node('{own}')")).await?;
    let oneself = format!("node \"{own}\" cannot be its own peer");
    refused(&session, "22023", &oneself, &format!("select duplex.add_peer('{own}')")).await?;
    session.exec("select duplex.add_peer('peer'); select duplex.add_peer(repeat('x', 63))").await?;
    refused(&session, "42710", "node \"peer\" is a peer already", "select duplex.add_peer('peer')").await?;
    refused(&session, "42704", "node \"unknown\" is not a peer", "select duplex.remove_peer('unknown')").await?;
    refused(&session, "42704", "node \"\" is not a peer", "select duplex.remove_peer('')").await?;
    session.exec("select duplex.remove_peer('peer'); select duplex.add_peer('peer')").await?;
    let running = "the stream of node \"peer\" does not stand still";
    refused(&session, "55000", running, "select duplex.retry_peer('peer')").await?;
    refused(&session, "42704", "node \"nobody\" is not a peer", "select duplex.resync_peer('nobody', 0)").await?;
    session.refuses("22023", "select duplex.resync_peer('peer', -1)").await?;

    // Before there is a node.
    let name = format!("{own}-none");
    node.cluster().create_database(&name).await?;
    let session = node.cluster().connect(&name).await?;
    session.exec("create table t (id int primary key)").await?;
    for call in ["duplex.add_peer('x')", "duplex.enable('t')", "duplex.enable_schema('public')"] {
        refused(&session, "55000", "this database is not a pg_duplex node yet", &format!("select {call}")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn commit_timestamps_are_needed() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().setting("max_connections", "50").start().await?;
    let node = lab.node(0);
    node.exec("create table t (id int primary key); select duplex.add_peer('peer')").await?;
    node.exec("alter system set track_commit_timestamp = off").await?;
    node.cluster().stop()?;
    node.cluster().start().await?;
    let session = node.connect().await?;
    let message = "pg_duplex needs commit timestamps, and track_commit_timestamp is off";
    refused(&session, "55000", message, "select duplex.enable('t')").await?;
    refused(&session, "55000", message, "select * from duplex.apply_open('peer')").await?;
    session.exec("drop extension pg_duplex; create extension pg_duplex").await?;
    refused(&session, "55000", message, "select duplex.create_node('again')").await
}

/// An owner of the table is needed, also where EXECUTE was given away.
#[tokio::test]
async fn only_the_owner_enables_and_disables() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    let role = format!("operator-{}", node.name());
    node.exec(&format!(
        "create role \"{role}\" login; create table t (id int primary key); create table own (id int primary key);
         alter table own owner to \"{role}\"; grant usage on schema duplex to \"{role}\";
         grant execute on function duplex.enable(regclass, text, name[]), duplex.disable(regclass), duplex.enable_schema(name) to \"{role}\";
         select duplex.enable('t')"
    ))
    .await?;
    let session = node.connect_as(&role).await?;
    for call in ["duplex.disable('t')", "duplex.enable('t')"] {
        let error = session.refuses("42501", &format!("select {call}")).await?;
        assert_eq!(error.message(), "must be owner of table public.t");
    }
    session.exec("select duplex.enable('own'); insert into own values (1); select duplex.disable('own')").await?;
    session.exec("select duplex.enable_schema('public')").await?;
    node.exec("create table theirs (id int primary key)").await?;
    session.refuses("42501", "select duplex.enable_schema('public')").await?;
    node.exec(&format!("drop owned by \"{role}\"; drop role \"{role}\"")).await
}

#[tokio::test]
async fn a_schema_is_enabled_whole_or_not_at_all() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let session = lab.node(0).connect().await?;
    session
        .exec(
            "create schema \"My app\"; set search_path = \"My app\"; create table a (id int primary key);
             create table b (id int); create unlogged table c (id int primary key); create view v as select 1;
             create table p (id int primary key) partition by range (id); create table p_1 partition of p default;
             select duplex.enable('a')",
        )
        .await?;
    refused(&session, "3F000", "schema \"none\" does not exist", "select duplex.enable_schema('none')").await?;
    let error = session.refuses("55000", "select duplex.enable_schema('My app')").await?;
    assert_eq!(error.message(), "schema \"My app\" has tables that cannot be replicated");
    let detail = error.detail().context("a detail")?;
    assert!(
        detail.contains("\"My app\".b has no usable key (") && detail.contains("\"My app\".c is an unlogged table ("),
        "{detail}"
    );
    assert!(error.hint().is_some());
    assert_eq!(session.number("select count(*) from duplex.tables").await?, 1);
    session.exec("alter table b add primary key (id); alter table c set logged").await?;
    let enabled = session.rows("select duplex.enable_schema('My app')").await?;
    assert_eq!(enabled.into_iter().flatten().flatten().collect::<Vec<_>>(), ["b", "c", "p"]);
    assert!(session.rows("select duplex.enable_schema('My app')").await?.is_empty());
    assert_eq!(session.number("select count(*) from duplex.tables").await?, 4);
    for system in ["pg_catalog", "duplex", "information_schema"] {
        session.refuses("55000", &format!("select duplex.enable_schema('{system}')")).await?;
    }
    Ok(())
}
