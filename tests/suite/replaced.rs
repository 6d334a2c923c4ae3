//! The version that a change replaces: who had committed the row, and when, as the server has it on record. Sessions tell each
//! other of their commits; what one of them misses, it asks the server for.

use std::collections::HashMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use duplex_lab::dice::Dice;
use duplex_lab::{Drain, Lab, Node, Session};
use futures_util::future::try_join_all;

/// What is captured, and beside it what the server says of each row right before it is replaced.
const SCHEMA: &str = "
    create table hot (id int primary key, v int not null default 0);
    create table on_record (id int, v int, at timestamptz, primary key (id, v));
    insert into hot select i from generate_series(1, 24) i;
    create function change(row_id int) returns void language plpgsql as $$
    begin
        perform from hot where id = row_id for update;
        insert into on_record
            select id, v + 1, pg_xact_commit_timestamp(xmin) from hot where id = row_id;
        update hot set v = v + 1 where id = row_id;
    end $$";

const ROWS: u64 = 24;
const SESSIONS: u64 = 6;
const ROUNDS: u64 = 250;

/// A transaction of one kind or another that changes a row.
async fn change(session: &Session, dice: &mut Dice, name: &str) -> Result<()> {
    let id = 1 + dice.below(ROWS);
    let change = format!("select change({id})");
    match dice.below(5) {
        0 => session.each(&["begin", "savepoint s", &change, "release s", "commit"]).await,
        1 => {
            let gone = format!("select change({})", 1 + id % ROWS);
            session.each(&["begin", "savepoint s", &gone, "rollback to s", &change, "commit"]).await
        }
        2 => {
            let (prepare, commit) = (format!("prepare transaction '{name}'"), format!("commit prepared '{name}'"));
            session.each(&["begin", &change, &prepare, &commit]).await
        }
        3 => session.each(&["begin", "set local synchronous_commit = off", &change, "commit"]).await,
        _ => session.exec(&change).await,
    }
}

/// A session of somebody else's replication, whose commits have a time of their own.
async fn change_from_elsewhere(session: &Session, dice: &mut Dice, round: u64) -> Result<()> {
    let time = format!("select pg_replication_origin_xact_setup('0/{:X}', '2026-01-01 00:00:00+00')", 1 + round);
    session.each(&["begin", &time, &format!("select change({})", 1 + dice.below(ROWS)), "commit"]).await
}

async fn run(node: &Node, number: u64, origin: Option<String>) -> Result<()> {
    let session = node.connect().await?;
    if let Some(origin) = &origin {
        session.exec(&format!("select pg_replication_origin_session_setup('{origin}')")).await?;
    }
    let mut dice = Dice::new(number);
    let name = format!("{}-{number}", node.name());
    for round in 0..ROUNDS {
        match origin {
            Some(_) => change_from_elsewhere(&session, &mut dice, round).await?,
            None => change(&session, &mut dice, &name).await?,
        }
    }
    // Nobody may drop an origin that a session has, and a session ends some time after its client.
    if origin.is_some() {
        session.exec("select pg_replication_origin_session_reset()").await?;
    }
    Ok(())
}

/// By what a change left, a row's id and v: when the row that it replaced had been committed, in a form that can be compared.
async fn on_record(node: &Node) -> Result<HashMap<(i64, i64), String>> {
    let sql = "select id, v, to_char(at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US') from on_record";
    let mut on_record = HashMap::new();
    for row in node.rows(sql).await? {
        let column = |number: usize| row[number].as_deref().context("NULL");
        on_record.insert((column(0)?.parse()?, column(1)?.parse()?), column(2)?.to_owned());
    }
    Ok(on_record)
}

/// A time with all its microseconds.
fn micros(time: &str) -> Result<String> {
    let time = time.strip_suffix('Z').context("a time in UTC")?;
    let (seconds, fraction) = time.split_once('.').unwrap_or((time, ""));
    Ok(format!("{seconds}.{fraction:0<6}"))
}

/// Has sessions change the same rows, and compares what was captured with what the server has on record.
async fn race(lab: &Lab) -> Result<()> {
    let node = lab.node(0);
    let origin = format!("other_{}", node.name());
    node.exec(&format!("select pg_replication_origin_create('{origin}')")).await?;
    let mut drain = Drain::open(node).await?;
    drain.rest().await?;
    let running = (0..SESSIONS).map(|number| run(node, number, (number == 0).then(|| origin.clone())));
    try_join_all(running).await?;
    let on_record = on_record(node).await?;
    let mut compared = 0;
    for change in drain.rest().await?.into_iter().flat_map(|transaction| transaction.shown) {
        let number = |name: &str| change["row"][name].as_i64().with_context(|| format!("{change}"));
        let expected = &on_record[&(number("id")?, number("v")?)];
        let replaced = change["replaced"]["commit_time"].as_str().with_context(|| format!("{change}"))?;
        assert_eq!(micros(replaced)?, *expected, "{change}");
        assert_eq!(change["replaced"]["node"], node.name(), "{change}");
        compared += 1;
    }
    assert_eq!(compared, on_record.len());
    node.exec(&format!("select pg_replication_origin_drop('{origin}')")).await
}

/// Has the server keep dynamic shared memory in files, where a test can see and take it.
const IN_FILES: (&str, &str) = ("dynamic_shared_memory_type", "mmap");

/// How many segments of dynamic shared memory there are.
async fn segments(node: &Node) -> Result<i64> {
    node.number("select count(*) from pg_ls_dir('pg_dynshmem')").await
}

#[tokio::test]
async fn each_change_says_which_commit_it_replaced_as_the_server_has_it_on_record() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().setting(IN_FILES.0, IN_FILES.1).start().await?;
    let node = lab.node(0);
    lab.create_everywhere(SCHEMA, &["hot"]).await?;
    let before = segments(node).await?;
    race(&lab).await?;
    assert_eq!(segments(node).await?, before + 1, "sessions share one table of their commits");
    Ok(())
}

#[tokio::test]
async fn a_server_without_dynamic_shared_memory_has_them_right_too() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().setting(IN_FILES.0, IN_FILES.1).start().await?;
    let node = lab.node(0);
    lab.create_everywhere(SCHEMA, &["hot"]).await?;
    let before = segments(node).await?;
    let folder = PathBuf::from(node.one("show data_directory").await?).join("pg_dynshmem");
    // The server's user is never root, so this holds for it.
    std::fs::set_permissions(&folder, Permissions::from_mode(0o500))?;
    let raced = race(&lab).await;
    // Before anything can fail: who removes the lab has to get in.
    std::fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
    raced?;
    assert_eq!(segments(node).await?, before);
    let log = std::fs::read_to_string(node.cluster().log())?;
    assert!(!log.contains("leak"), "{log}");
    Ok(())
}

#[tokio::test]
async fn what_a_peer_wrote_is_replaced_as_the_peers() -> Result<()> {
    let lab = Lab::builder().nodes(2).start().await?;
    lab.create_everywhere(SCHEMA, &["hot"]).await?;
    let [a, b] = lab.pair();
    a.exec("update hot set v = 1").await?;
    lab.settled().await?;
    lab.stop_relays()?;
    let sql = "select to_char(pg_xact_commit_timestamp(xmin) at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US')
        from hot where id = 1";
    let written = a.one(sql).await?;
    let mut drain = Drain::open(b).await?;
    drain.rest().await?;
    let session = b.connect().await?;
    // A session asks the server for the first; the second it finds where the session that applied both has noted it.
    for id in [1, 2] {
        session.exec(&format!("update hot set v = 2 where id = {id}")).await?;
        let shown: Vec<_> = drain.rest().await?.into_iter().flat_map(|transaction| transaction.shown).collect();
        let [change] = &shown[..] else { panic!("one change: {shown:?}") };
        let replaced = change["replaced"]["commit_time"].as_str().with_context(|| format!("{change}"))?;
        assert_eq!((&change["key"]["id"], &change["replaced"]["node"]), (&id.into(), &a.name().into()), "{change}");
        assert_eq!(micros(replaced)?, written, "{change}");
    }
    Ok(())
}
