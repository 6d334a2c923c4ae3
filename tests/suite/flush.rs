//! The moment at which a transaction's changes go into the queue: what fails there fails the whole transaction, and what
//! comes after it still belongs to it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use duplex_lab::{Drain, Lab, PATIENCE, until};

const TABLE: &str = "create table t (id int primary key, v text)";

/// About so many kB that do not compress.
const NOISE: &str = "create function noise(kb int) returns text language sql volatile as
    $$ select string_agg(encode(sha512((random() || '-' || i)::bytea), 'base64'), '') from generate_series(1, kb * 11) i $$";

#[tokio::test]
async fn an_error_in_the_flush_turns_commit_into_abort_and_leaves_nothing() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    lab.create_everywhere(TABLE, &["t"]).await?;
    let mut drain = Drain::open(node).await?;
    let [blocker, writer] = [node.connect().await?, node.connect().await?];
    blocker.exec("begin; lock duplex.queue_0, duplex.queue_1, duplex.queue_2 in share mode").await?;
    // Commits that cannot reach the queue: by a timeout, by a cancel.
    writer.exec("begin; set local lock_timeout = '50ms'; insert into t values (1, 'lost')").await?;
    writer.refuses("55P03", "commit").await?;
    writer.exec("begin; insert into t values (2, 'lost')").await?;
    let pid = writer.number("select pg_backend_pid()").await?;
    let cancel = async {
        let waits = format!("select count(*) from pg_stat_activity where pid = {pid} and wait_event_type = 'Lock'");
        until("the commit to wait", PATIENCE, async || {
            let waiting = blocker.number(&waits).await?;
            Ok(if waiting == 1 { Ok(()) } else { Err("it does not") })
        })
        .await?;
        blocker.exec(&format!("select pg_cancel_backend({pid})")).await
    };
    tokio::try_join!(async { writer.refuses("57014", "commit").await.map(drop) }, cancel)?;
    writer.each(&["set lock_timeout = '50ms'", "begin; insert into t values (3, 'lost')"]).await?;
    writer.refuses("55P03", &format!("prepare transaction '{}'", node.name())).await?;
    writer.refuses("55P03", "do $$ begin insert into t values (4, 'lost'); commit; end $$").await?;
    assert_eq!(writer.number("select count(*) from t").await?, 0);
    blocker.exec("rollback").await?;
    writer.exec("insert into t values (5, 'kept')").await?;
    assert_eq!(drain.changes().await?, [r#"insert {"id":5,"v":"kept"}"#]);
    assert_eq!(node.number("select count(*) from duplex.queue").await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_serialization_failure_after_the_flush_sends_nothing() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    lab.create_everywhere(TABLE, &["t"]).await?;
    node.exec("insert into t values (1, 'on'), (2, 'on')").await?;
    let mut drain = Drain::open(node).await?;
    drain.rest().await?;
    let [one, two] = [node.connect().await?, node.connect().await?];
    for (session, id) in [(&one, 1), (&two, 2)] {
        session
            .exec(&format!(
                "begin isolation level serializable; select count(*) from t where v = 'on'; \
                 update t set v = 'off {id}' where id = {id}"
            ))
            .await?;
    }
    one.exec("commit").await?;
    two.refuses("40001", "commit").await?;
    assert_eq!(drain.changes().await?, [r#"update {"id":1,"v":"off 1"}"#]);
    Ok(())
}

#[tokio::test]
async fn a_full_disk_for_spilling_fails_the_statement_and_a_savepoint_before_it_still_commits() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    lab.create_everywhere(TABLE, &["t"]).await?;
    node.exec(NOISE).await?;
    let mut drain = Drain::open(node).await?;
    let session = node.connect().await?;
    session.exec("set duplex.transaction_buffer = '1MB'; set temp_file_limit = '3MB'").await?;
    let large = "insert into t select 100 + i, noise(500) from generate_series(1, 12) i";
    session.refuses("53400", &format!("begin; insert into t values (1, 'lost'); {large}")).await?;
    session.exec("rollback").await?;
    session.exec("begin; insert into t values (2, 'kept'); savepoint s").await?;
    session.refuses("53400", large).await?;
    session.exec("rollback to s; insert into t values (3, 'kept'); commit").await?;
    session.exec(&format!("do $$ begin insert into t values (4, 'kept'); begin {large}; \
                           exception when configuration_limit_exceeded then insert into t values (5, 'kept'); end; end $$")).await?;
    // The limit is not in the way where the chunks are taken back, or few.
    session.exec("begin; savepoint s; insert into t select 200 + i, noise(500) from generate_series(1, 4) i; rollback to s; commit").await?;
    let changes = drain.changes().await?;
    assert_eq!(changes, [2, 3, 4, 5].map(|id| format!("insert {{\"id\":{id},\"v\":\"kept\"}}")));
    assert_eq!(node.number("select count(*) from t").await?, 4);
    let log = std::fs::read_to_string(node.cluster().log())?;
    let leaks = log.lines().filter(|line| line.contains(node.database()) && line.contains("leak"));
    assert_eq!(leaks.collect::<Vec<_>>(), Vec::<&str>::new());
    Ok(())
}

#[tokio::test]
async fn parallel_workers_in_a_writing_transaction_flush_nothing_of_their_own() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    lab.create_everywhere(TABLE, &["t"]).await?;
    node.exec("create table big as select i, repeat('x', 200) as filler from generate_series(1, 50000) i; analyze big")
        .await?;
    let mut drain = Drain::open(node).await?;
    let session = node.connect().await?;
    session
        .exec(
            "set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0; \
               set max_parallel_workers_per_gather = 2; insert into t values (0, 'loads the library')",
        )
        .await?;
    let plan = session.rows("explain select count(*) from big where filler like '%y%'").await?;
    ensure!(format!("{plan:?}").contains("Workers Planned"), "the plan is parallel: {plan:?}");
    session
        .exec(
            "begin; insert into t values (1, 'before'); select count(*) from big where filler like '%y%'; \
               create table copied as select i from big where filler like '%y%'; \
               insert into t values (2, 'after'); commit",
        )
        .await?;
    let transactions = drain.rest().await?;
    assert_eq!(transactions.len(), 2);
    assert_eq!(transactions[1].changes, [r#"insert {"id":1,"v":"before"}"#, r#"insert {"id":2,"v":"after"}"#]);
    Ok(())
}

/// Builds the library of `late_writer.c` beside the lab's other files; returns its path.
fn late_writer(lab: &Lab) -> Result<PathBuf> {
    let config = std::env::var("PG_CONFIG").ok().filter(|path| !path.is_empty());
    let config = config.unwrap_or_else(|| "pg_config".to_owned());
    let include = Command::new(&config).arg("--includedir-server").output().with_context(|| config.clone())?;
    let include = String::from_utf8(include.stdout)?;
    let library = lab.folder().join(format!("late_writer-{}.so", lab.node(0).name()));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/suite/late_writer.c");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-I", include.trim(), "-o"]).arg(&library).arg(source);
    let output = cc.output().context("a C compiler")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(library)
}

#[tokio::test]
async fn another_extension_that_writes_after_our_flush_is_captured_too() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    lab.create_everywhere(TABLE, &["t"]).await?;
    let library = late_writer(&lab)?;
    node.exec(&format!(
        "create function at_commit(text) returns void language c strict as '{}', 'at_commit'",
        library.display()
    ))
    .await?;
    let mut drain = Drain::open(node).await?;
    let session = node.connect().await?;
    // Callbacks run in the reverse order of their registration, so that library has to be loaded before ours.
    session.exec("select at_commit(''); insert into t values (1, 'loads the library')").await?;
    drain.rest().await?;
    let late = [
        // (what the transaction does, what the callback does, what is sent)
        ("insert into t values (2, 'early')", "insert into t values (3, 'late'), (4, 'late')", 3),
        // Nothing was captured before the flush.
        ("select 1", "insert into t values (5, 'late')", 1),
        // What is written late and taken back is in the queue's pages, and no part of the transaction.
        (
            "insert into t values (6, 'early')",
            "do $$ begin insert into t values (7, 'late'); \
             begin insert into t values (8, 'lost'), (9, 'lost'); perform 1 / 0; \
             exception when division_by_zero then insert into t values (10, 'caught'); end; \
             insert into t values (11, 'late'); end $$",
            4,
        ),
        (
            "select 2",
            "do $$ begin begin insert into t values (12, 'lost'); perform 1 / 0; \
             exception when division_by_zero then null; end; end $$",
            0,
        ),
        ("select 3", "insert into t select 100 + i, repeat('x', 1000) from generate_series(1, 2000) i", 2000),
    ];
    for (statement, at_commit, sent) in late {
        session.exec(&format!("begin; {statement}; select at_commit($late${at_commit}$late$); commit")).await?;
        let transactions = drain.rest().await?;
        assert_eq!(transactions.len(), usize::from(sent > 0), "{statement}: one transaction at most");
        assert_eq!(
            transactions.iter().map(|transaction| transaction.changes.len()).sum::<usize>(),
            sent,
            "{at_commit}"
        );
        let text = format!("{transactions:?}");
        assert!(!text.contains("lost"), "{text}");
    }
    assert_eq!(node.number("select count(*) from t").await?, 1 + 3 + 1 + 4 + 2000);
    Ok(())
}
