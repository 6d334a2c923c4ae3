//! Many writers at once on few keys: no stream ever stops, and all nodes are equal in the end.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use duplex_lab::dice::Dice;
use duplex_lab::{Lab, Session};

const KEYS: u64 = 40;
const WRITERS: usize = 2;
/// Counters that are only ever added to, so that their sums are known.
const TALLIES: usize = 4;

/// Statements that an application might run.
fn statements(dice: &mut Dice) -> String {
    let (key, other, value) = (dice.below(KEYS), dice.below(KEYS), dice.below(KEYS));
    match dice.below(150) {
        0..14 => format!("insert into s values ({key}, 'v{value}') on conflict (id) do update set v = excluded.v"),
        14..26 => format!("update s set v = v || '+' where id = {key}"),
        26..34 => format!("delete from s where id = {key}"),
        34..40 => format!("begin; delete from s where id = {key}; insert into s values ({key}, 'again'); commit"),
        40..46 => format!("update s set id = {other} where id = {key}"),
        46..52 => format!(
            "begin; update s set v = 'kept' where id = {key}; savepoint a; update s set v = 'lost' where id = {other}; \
             delete from s where id = {value}; rollback to a; update s set v = v || '.' where id = {value}; commit"
        ),
        52..53 => "truncate s".to_owned(),
        53..70 => format!(
            "insert into u values ({key}, 'm{value}', 'n{other}') on conflict (id) do update \
             set mail = excluded.mail, nick = excluded.nick"
        ),
        70..82 => format!("update u set mail = 'm{value}' where id = {key}"),
        82..88 => format!("update u set nick = 'n{value}' where id = {key}"),
        88..94 => format!("delete from u where id = {key}"),
        94..99 => format!("update u set id = {other} where id = {key}"),
        99..100 => "truncate u".to_owned(),
        100..112 => format!("update c set n = n + {value}.25, m = m - {other} where id = {key}"),
        112..122 => format!(
            "insert into c values ({key}, 'v{value}', {value}, {other}) on conflict (id) do update \
             set n = c.n + excluded.n, v = excluded.v"
        ),
        122..128 => format!("delete from c where id = {key}"),
        128..132 => format!(
            "begin; delete from c where id = {key}; insert into c values ({key}, 'w{value}', 1.5, 2); \
             savepoint a; update c set n = n + 100 where id = {other}; rollback to a; \
             update c set m = m + 3 where id = {other}; commit"
        ),
        132..137 => format!("update c set v = 'v{value}' where id = {key}"),
        137..141 => format!("update c set id = {other}, n = n + 1 where id = {key}"),
        141..142 => "truncate c".to_owned(),
        _ => String::new(),
    }
}

/// An addition to a tally: which, and how much.
fn addition(dice: &mut Dice) -> (usize, i64) {
    (dice.index(TALLIES), dice.below(1000) as i64 - 400)
}

/// How many transactions were made, and what was added to each tally.
async fn write(session: Session, seed: u64, until: Instant) -> Result<(usize, [i64; TALLIES])> {
    let mut dice = Dice::new(seed);
    let (mut done, mut sums) = (0, [0; TALLIES]);
    while Instant::now() < until {
        let (mut sql, added) = (statements(&mut dice), addition(&mut dice));
        let is_addition = sql.is_empty();
        if is_addition {
            sql = format!("update tally set n = n + {} where id = {}", added.1, added.0);
        }
        match session.client().batch_execute(&sql).await {
            Ok(()) => {
                done += 1;
                sums[added.0] += if is_addition { added.1 } else { 0 };
            }
            Err(err) => {
                // What every application meets: a value is taken, a deadlock.
                let code = err.code().map(|state| state.code().to_owned()).unwrap_or_default();
                if !["23505", "40P01", "40001"].contains(&code.as_str()) {
                    bail!("{err:?} in: {sql}");
                }
                session.exec("rollback").await?;
            }
        }
    }
    Ok((done, sums))
}

/// Has a node forget all that it may, all the time, for as long as the storm lasts. Returns how many registers it has
/// looked through to their end.
async fn forget(session: Session, until: Instant) -> Result<i64> {
    while Instant::now() < until {
        session.exec("select duplex.maintain()").await?;
    }
    session.number("select count(*) from duplex.sweeps where forgotten_to is not null").await
}

async fn storm(nodes: usize, lasting: Duration, forgets: bool) -> Result<()> {
    let lab = Lab::builder().nodes(nodes).heartbeats(if forgets { "100ms" } else { "5s" }).start().await?;
    lab.create_everywhere(
        "create table s (id int primary key, v text);
         create table u (id int primary key, mail text unique, nick text);
         create unique index on u (lower(nick)) where id % 2 = 0",
        &["s", "u"],
    )
    .await?;
    lab.exec_everywhere(
        "create table c (id int primary key, v text unique, n numeric(12, 2) not null, m bigint not null);
         create table tally (id int primary key, n bigint not null);
         select duplex.enable('c', delta_columns => '{n,m}');
         select duplex.enable('tally', delta_columns => '{n}')",
    )
    .await?;
    lab.node(0).exec(&format!("insert into tally select g, 0 from generate_series(0, {}) g", TALLIES - 1)).await?;
    lab.settled().await?;
    let until = Instant::now() + lasting;
    let mut writers = Vec::new();
    for (number, node) in lab.nodes().iter().enumerate() {
        for writer in 0..WRITERS {
            let seed = (number * WRITERS + writer) as u64;
            writers.push(tokio::spawn(write(node.connect().await?, seed, until)));
        }
    }
    let mut forgetting = Vec::new();
    for node in lab.nodes().iter().filter(|_| forgets) {
        forgetting.push(tokio::spawn(forget(node.connect().await?, until)));
    }
    let (mut done, mut sums) = (0, [0; TALLIES]);
    for writer in writers {
        let (made, added) = writer.await??;
        done += made;
        sums.iter_mut().zip(added).for_each(|(sum, added)| *sum += added);
    }
    ensure!(done > 100, "only {done} transactions were made");
    for forgotten in forgetting {
        ensure!(forgotten.await?? > 0, "nothing could ever be forgotten");
    }
    lab.converges(&["s", "u", "c", "tally"]).await?;
    let tallies: Vec<String> = sums.iter().enumerate().map(|(id, sum)| format!("id={id} | n={sum}")).collect();
    assert_eq!(lab.node(0).dump("tally", &[]).await?, tallies, "the sums of all additions");
    for node in lab.nodes() {
        assert_eq!(node.rows("select * from duplex.apply_errors").await?, Vec::<Vec<Option<String>>>::new());
        ensure!(node.number("select count(*) from duplex.conflict_history").await? > 0, "nobody met anybody");
    }
    lab.stop_relays()
}

#[tokio::test]
async fn two_nodes() -> Result<()> {
    storm(2, Duration::from_secs(8), false).await
}

#[tokio::test]
async fn three_nodes() -> Result<()> {
    storm(3, Duration::from_secs(8), false).await
}

#[tokio::test]
async fn three_nodes_that_forget_all_the_time() -> Result<()> {
    storm(3, Duration::from_secs(8), true).await
}
