//! The relay's functions, called by its role in every order: an error where it is wrong, a crash never.

use anyhow::{Result, ensure};
use duplex_lab::{Lab, Session};

#[tokio::test]
async fn calls_in_the_wrong_place() -> Result<()> {
    let lab = Lab::builder().without_relays().start().await?;
    let [a, b] = lab.pair();
    let peer = a.name();
    let relay = b.connect_as("relay").await?;
    for call in [
        "call duplex.apply_batch('{}', '{}')",
        "begin; select duplex.apply_chunk('\\x01', 0)",
        "select duplex.apply_position()",
        "select duplex.drain(0, 1000)",
        "select duplex.drain_confirm(1, 1, 1)",
        // A replication origin that was never set up: PostgreSQL itself would crash at the commit.
        "select duplex.apply_skip(5)",
    ] {
        relay.refuses("55000", call).await?;
        relay.exec("rollback").await?;
    }
    relay.refuses("42704", "select duplex.apply_open('unknown')").await?;
    relay.refuses("42704", "select duplex.apply_open('')").await?;

    // Rolled back, so not marked; and what it had set up does not make the next commit crash.
    relay.exec(&format!("begin; select duplex.apply_open('{peer}'); rollback")).await?;
    relay.refuses("55000", "select duplex.apply_position()").await?;
    relay.exec("begin; select duplex.report_error('x', 1, '00000', 'm', null, null); commit").await?;
    relay.exec(&format!("begin; savepoint s; select duplex.apply_open('{peer}'); rollback to s; commit")).await?;
    relay.refuses("55000", "call duplex.apply_batch('{}', '{}')").await?;
    relay.exec("select duplex.report_error('x', 1, '00000', 'm', null, null)").await?;

    relay.exec(&format!("select duplex.apply_open('{peer}'); select duplex.apply_open('{peer}')")).await?;
    assert_eq!(relay.one("select duplex.apply_position()").await?, "0");
    relay.refuses("2D000", "begin; call duplex.apply_batch('{}', '{}')").await?;
    relay.exec("rollback").await?;
    relay.refuses("25P01", "select duplex.apply_chunk('\\x01', 0)").await?;
    relay.refuses("2202E", "call duplex.apply_batch('{\"\\\\x01\"}', '{}')").await?;
    relay.refuses("22004", "call duplex.apply_batch('{null}', '{1}')").await?;
    relay.refuses("22004", "call duplex.apply_batch('{\"\\\\x01\"}', '{null}')").await?;
    relay.refuses("22004", "call duplex.apply_batch('{\"\\\\x01\"}', '{-1}')").await?;
    relay.refuses("22004", "call duplex.apply_batch(null, null)").await?;
    relay.refuses("22004", "call duplex.apply_batch('{}', null)").await?;
    relay.exec("call duplex.apply_batch('{}', '{}')").await?;
    relay.exec("do 'begin call duplex.apply_batch(''{}'', ''{}''); end'").await?;
    relay
        .refuses(
            "2D000",
            "do 'begin begin call duplex.apply_batch(''{}'', ''{}''); exception when others then raise; end; end'",
        )
        .await?;
    relay.refuses("22023", "begin; select duplex.apply_chunk('\\x01', -1)").await?;
    relay.exec("rollback").await?;

    // A stream is applied by one session, and a session applies one stream.
    let second = b.connect_as("relay").await?;
    second.refuses("55006", &format!("select duplex.apply_open('{peer}')")).await?;
    b.exec("select duplex.add_peer('another')").await?;
    let error = relay.refuses("55000", "select duplex.apply_open('another')").await?;
    assert_eq!(error.hint(), Some("A session is marked for good; open another connection."));
    second.exec("select duplex.apply_open('another')").await?;
    drop(relay);
    // One relay drains a node.
    let [one, two] = [b.connect_as("relay").await?, b.connect_as("relay").await?];
    one.exec("select duplex.drain_open()").await?;
    two.refuses("55P03", "select duplex.drain_open()").await?;
    two.refuses("55000", "select duplex.drain(0, 1)").await?;
    one.exec("select duplex.drain(-5, -5); select duplex.drain(0, 0)").await
}

/// What a walk may do next; `%p` is a peer, `%o` an offset.
const STEPS: [&str; 34] = [
    "begin",
    "begin isolation level serializable",
    "begin read only",
    "commit",
    "commit and chain",
    "rollback",
    "savepoint s",
    "rollback to s",
    "release s",
    "prepare transaction '%g'",
    "rollback prepared '%g'",
    "select duplex.apply_open('%p')",
    "select duplex.apply_open('%p')",
    "select duplex.apply_open('unknown')",
    "select duplex.apply_position()",
    "select duplex.apply_skip(%o)",
    "call duplex.apply_batch(array[%r], array[%o]::bigint[])",
    "call duplex.apply_batch(array[%r, %r], array[%o, %o]::bigint[])",
    "call duplex.apply_batch(null, null)",
    "do $$ begin call duplex.apply_batch(array[%r], array[%o]::bigint[]); end $$",
    "select duplex.apply_chunk(%r, %o)",
    "select duplex.apply_chunk('\\x00', %o)",
    "declare c cursor for select duplex.apply_chunk(%r, %o)",
    "fetch c",
    "select duplex.drain_open(%o)",
    "select duplex.drain(0, %o)",
    "declare d cursor for select duplex.drain(0, 1)",
    "fetch d",
    "select duplex.drain_confirm(%o, %o, %o)",
    "select duplex.report_peer('%p', 'retrying', null)",
    "select duplex.report_error('%p', %o, '00000', 'm', null, null)",
    "select * from duplex.relay_info(), duplex.peers, duplex.queue_status",
    "discard all",
    "set session characteristics as transaction read write",
];

#[tokio::test]
async fn random_walks_over_all_calls() -> Result<()> {
    let lab = Lab::builder().nodes(3).without_relays().start().await?;
    let (a, b) = (lab.node(0), lab.node(1));
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    b.exec("insert into t values (1, 'something to drain')").await?;
    a.exec("insert into t values (2, 'something to apply')").await?;
    let source = a.connect_as("relay").await?;
    source.exec("select duplex.drain_open()").await?;
    let record = source.one("select encode(r, 'hex') from duplex.drain(1000, 1) r").await?;
    let started = "select pg_postmaster_start_time()";
    let before = b.one(started).await?;
    let mut seed = 0x5eed_0003_u64;
    let mut pick = |bound: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % bound as u64) as usize
    };
    let (mut done, mut refused) = (0, 0);
    for walk in 0..40 {
        let session = b.connect_as("relay").await?;
        session.exec("set statement_timeout = '10s'").await?;
        for _ in 0..25 {
            let offset = ["0", "1", "7", "1000", "-1", "9223372036854775807"][pick(6)];
            let step = STEPS[pick(STEPS.len())]
                .replace("%p", if pick(4) == 0 { lab.node(2).name() } else { a.name() })
                .replace("%r", &format!("'\\x{record}'::bytea"))
                .replace("%g", &format!("{}-{walk}", b.name()))
                .replace("%o", offset);
            match session.client().simple_query(&step).await {
                Ok(_) => done += 1,
                Err(err) => {
                    ensure!(err.as_db_error().is_some(), "walk {walk}: the connection broke ({err}) over: {step}");
                    let error = err.as_db_error().expect("just looked at");
                    ensure!(error.code().code() != "XX000", "walk {walk}: {} from {step}", error.message());
                    refused += 1;
                }
            }
        }
        let _ = session.exec("rollback").await;
        for gid in b.rows("select gid from pg_prepared_xacts where database = current_database()").await? {
            b.exec(&format!("rollback prepared '{}'", gid[0].as_deref().unwrap_or_default())).await?;
        }
    }
    assert!(done > 200 && refused > 200, "{done} calls went well, {refused} did not");
    assert_eq!(b.one(started).await?, before, "the server has started again");
    // Whatever was called, a relay that comes now gets on: nothing is held any more.
    let last: Session = b.connect_as("relay").await?;
    last.exec(&format!(
        "select duplex.apply_open('{}'); select duplex.drain_open(0); select duplex.drain(0, 1000)",
        a.name()
    ))
    .await
}
