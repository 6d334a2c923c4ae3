//! A table's layout changes while its rows are captured.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;
use duplex_lab::Lab;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notices_of_change_in_the_middle_of_a_row_do_no_harm() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    // Output functions that look things up: of the columns of a composite type, of tables and enums by name.
    let sql = "create type pair as (x numeric, y regclass); create type mood as enum ('well', 'ill');
               create table t (id int primary key, p pair, r regclass, m mood, many pair[], d date)";
    lab.create_everywhere(sql, &["t"]).await?;
    let done = AtomicBool::new(false);
    let disturb = async {
        let session = a.connect().await?;
        let mut round = 0;
        while !done.load(Ordering::Relaxed) {
            round += 1;
            session
                .exec(&format!(
                    "alter table t set (fillfactor = {}); analyze t; \
                     create temp table x{round} (i int); drop table x{round}; grant usage on type mood to relay; revoke usage on type mood from relay",
                    50 + round % 50
                ))
                .await?;
        }
        anyhow::Ok(round)
    };
    let write = async {
        let result = async {
            let session = a.connect().await?;
            session.exec("set datestyle = 'German'; set duplex.transaction_buffer = '1MB'").await?;
            for part in 0..20 {
                let first = part * 500;
                session
                    .exec(&format!(
                        "begin; insert into t select i, (i, 'pg_type')::pair, 'pg_class', 'well', array[(i, 't')::pair], \
                         '2024-02-29' from generate_series({first}, {first} + 499) i; savepoint s; \
                         update t set m = 'ill' where id >= {first} and id % 3 = 0; \
                         alter table t rename to u; alter table u rename to t; \
                         update t set p.x = 0.5 where id >= {first} and id % 7 = 0; release s; commit"
                    ))
                    .await?;
            }
            anyhow::Ok(())
        }
        .await;
        done.store(true, Ordering::Relaxed);
        result
    };
    let (disturbed, written) = tokio::join!(disturb, write);
    written?;
    assert!(disturbed? > 5, "the table was altered while it was written");
    lab.converges(&["t"]).await?;
    assert_eq!(b.one("select d || ' ' || p from t where id = 7").await?, "2024-02-29 (0.5,pg_type)");
    assert_eq!(lab.transactions(a).await?, 20);
    lab.stop_relays()
}

#[tokio::test]
async fn the_later_commit_wins_and_not_the_later_start() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    a.exec("insert into t values (1, 'first')").await?;
    lab.settled().await?;
    // On a: begins first, commits last. What b writes meanwhile has the later now() and the earlier version.
    let session = a.connect().await?;
    session.exec("begin; select now(); update t set v = 'begun first, committed last' where id = 1").await?;
    b.exec("update t set v = 'begun last, committed first' where id = 1").await?;
    session.exec("commit").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(b.one("select v from t where id = 1").await?, "begun first, committed last");
    lab.stop_relays()
}
