//! Policies of tables: what can be chosen, how it is shown, and what becomes of changes between nodes that have chosen
//! otherwise.

use anyhow::{Result, ensure};
use duplex_lab::Lab;

const TABLES: &str = "
    create table account (
        id int primary key, owner text not null, balance numeric(12, 2) not null, visits bigint, weight real,
        code int unique, low int, high int, double_visits bigint generated always as (visits * 2) stored,
        exclude using gist (int4range(low, high) with &&));
    create unique index on account (owner) where visits > 5;
    create unique index on account (double_visits);
    create table child (id int primary key, account int references account, n smallint);
    create domain amount as bigint check (value >= 0);
    create table kinds (id int primary key, a smallint, b int, c bigint, d numeric, e amount);
";

#[tokio::test]
async fn what_cannot_be_a_delta_column_is_refused() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let session = lab.node(0).connect().await?;
    session.exec(TABLES).await?;
    let cases = [
        ("42703", "account", "{nothing}"),
        ("42703", "account", "{\"Balance\"}"),
        ("42P10", "account", "{id}"),
        ("42P10", "account", "{code}"),
        ("42P10", "account", "{low}"),
        ("42P10", "account", "{visits}"),
        ("42P10", "account", "{double_visits}"),
        ("42P10", "child", "{account}"),
        ("42804", "account", "{weight}"),
        ("42804", "account", "{owner}"),
        ("42701", "account", "{balance,balance}"),
        ("22004", "account", "{balance,null}"),
    ];
    for (sqlstate, table, columns) in cases {
        let error = session
            .refuses(sqlstate, &format!("select duplex.enable('{table}', delta_columns => '{columns}')"))
            .await?;
        ensure!(error.hint().is_some(), "no hint: {error}");
    }
    for resolution in ["'newest'", "null"] {
        let error = session.refuses("22023", &format!("select duplex.enable('account', {resolution})")).await?;
        ensure!(error.hint().is_some(), "no hint: {error}");
    }
    session.refuses("42704", "select duplex.set_policy('account', delta_columns => '{balance}')").await?;
    session.exec("select duplex.enable('account', delta_columns => '{balance}')").await?;
    session.exec("select duplex.enable('kinds', 'last_update_wins', '{a,b,c,d,e}')").await?;
    session.refuses("42703", "select duplex.set_policy('account', delta_columns => '{nothing}')").await?;
    let shown = "select \"table\", resolution, delta_columns from duplex.tables order by 1";
    let rows = session.rows(shown).await?;
    let text = |i: usize, j: usize| rows[i][j].clone().unwrap_or_default();
    assert_eq!([text(0, 0), text(0, 1), text(0, 2)], ["account", "last_update_wins", "{balance}"]);
    assert_eq!([text(1, 0), text(1, 1), text(1, 2)], ["kinds", "last_update_wins", "{a,b,c,d,e}"]);
    let role = format!("stranger_{}", lab.node(0).database());
    session
        .exec(&format!(
            "create role \"{role}\" login; grant usage on schema duplex to \"{role}\"; \
             grant execute on function duplex.set_policy(regclass, text, name[]) to \"{role}\""
        ))
        .await?;
    lab.node(0).connect_as(&role).await?.refuses("42501", "select duplex.set_policy('account')").await?;
    session.exec(&format!("drop owned by \"{role}\"; drop role \"{role}\"")).await
}

#[tokio::test]
async fn a_table_cannot_be_altered_against_its_policy() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let session = lab.node(0).connect().await?;
    session.exec("create table t (id int primary key, n int, v text)").await?;
    session.exec("select duplex.enable('t', delta_columns => '{n}')").await?;
    for (sqlstate, ddl) in [
        ("42703", "alter table t drop column n"),
        ("42703", "alter table t rename column n to m"),
        ("42804", "alter table t alter column n type float8"),
        ("42P10", "create unique index on t (n)"),
        ("42P10", "create unique index on t (v) where n > 0"),
        ("42P10", "alter table t add unique (v, n)"),
    ] {
        let error = session.refuses(sqlstate, ddl).await?;
        ensure!(error.hint().is_some_and(|hint| hint.contains("duplex.set_policy")), "{error:?}");
    }
    session.exec("alter table t alter column n type bigint").await?;
    session.exec("insert into t values (1, 5000000000, 'x')").await?;
    session.exec("select duplex.set_policy('t'); alter table t drop column n").await
}

#[tokio::test]
async fn what_is_no_addition_is_refused() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let session = lab.node(0).connect().await?;
    session.exec("create table t (id int primary key, n numeric, v text)").await?;
    session.exec("insert into t values (1, null, 'x'), (2, 7, 'x')").await?;
    session.exec("select duplex.enable('t', delta_columns => '{n}')").await?;
    for (sqlstate, sql) in [
        ("22004", "insert into t values (3, null, 'x')"),
        ("22004", "update t set n = null where id = 2"),
        ("22003", "insert into t values (3, 'NaN', 'x')"),
        ("22003", "update t set n = 'Infinity' where id = 2"),
    ] {
        let error = session.refuses(sqlstate, sql).await?;
        ensure!(error.message().contains("delta column") && error.hint().is_some(), "{error:?}");
    }
    // What was NULL before may stay so, until it is given a number.
    session.exec("update t set v = 'y'; update t set n = 3 where id = 1; delete from t").await
}

/// Two nodes that decide otherwise stop before they differ, and say what to do.
#[tokio::test]
async fn another_policy_than_the_peers_stops_the_stream_until_it_is_the_same() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.exec_everywhere("create table t (id int primary key, n int not null)").await?;
    a.exec("select duplex.enable('t', delta_columns => '{n}')").await?;
    b.exec("select duplex.enable('t')").await?;
    a.exec("insert into t values (1, 10)").await?;
    b.stream_is(a.name(), "stopped").await?;
    let error = b
        .one(
            "select concat_ws(' | ', sqlstate, message, detail, hint) from duplex.apply_errors \
              where resolution is null order by id desc limit 1",
        )
        .await?;
    for part in ["55000", "last_update_wins with delta columns (n)", "duplex.set_policy('public.t'"] {
        ensure!(error.contains(part), "{part} is not in: {error}");
    }
    let descriptor = "{\"schema\": \"public\", \"name\": \"t\", \"key\": [\"id\"], \"columns\": [], \
                       \"resolution\": \"last_update_wins\", \"delta_columns\": [\"n\"]}";
    let compare = format!("select string_agg(what, '; ') from duplex.compare_table('{descriptor}')");
    let what = b.one(&compare).await?;
    ensure!(what.contains("decides conflicts by last_update_wins here and by last_update_wins with delta"), "{what}");
    ensure!(!a.one(&compare).await?.contains("decides conflicts"), "the peer has that policy");
    b.exec(&format!(
        "select duplex.set_policy('t', delta_columns => '{{n}}'); select duplex.retry_peer('{}')",
        a.name()
    ))
    .await?;
    lab.settled().await?;
    a.exec("update t set n = n + 1").await?;
    b.exec("update t set n = n + 2").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(b.dump("t", &[]).await?, ["id=1 | n=13"]);
    lab.stop_relays()
}

/// The documented way: nobody writes, everything is applied, then each node is told.
#[tokio::test]
async fn the_policy_of_a_running_system_is_changed() -> Result<()> {
    let lab = Lab::shared(3).await?;
    lab.create_everywhere("create table t (id int primary key, n int not null, v text unique)", &["t"]).await?;
    let [a, b, c] = [lab.node(0), lab.node(1), lab.node(2)];
    a.exec("insert into t values (1, 10, 'a'), (2, 20, 'b'), (3, 30, 'c')").await?;
    b.exec("insert into t values (4, 10, 'd')").await?;
    lab.settled().await?;
    b.exec("delete from t where id = 3; update t set v = 'e' where id = 2").await?;
    lab.settled().await?;
    lab.exec_everywhere("select duplex.set_policy('t', delta_columns => '{n}')").await?;
    for (node, added) in [(a, 1), (b, 2), (c, 4)] {
        // Row by row, so that nothing here can be in a deadlock with what is being applied.
        let session = node.connect().await?;
        for id in [1, 2, 4] {
            session.exec(&format!("update t set n = n + {added} where id = {id}")).await?;
        }
    }
    c.exec("insert into t values (3, 5, 'again')").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(
        c.dump("t", &[]).await?,
        ["id=1 | n=17 | v=a", "id=2 | n=27 | v=e", "id=3 | n=5 | v=again", "id=4 | n=17 | v=d"]
    );
    // And back.
    lab.exec_everywhere("select duplex.set_policy('t')").await?;
    a.exec("update t set n = 1 where id = 1").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(b.one("select n from t where id = 1").await?, "1");
    lab.stop_relays()
}
