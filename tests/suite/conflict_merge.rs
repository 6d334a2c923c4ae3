//! Column merge: where two nodes change different columns of one row at once, both changes stay.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use duplex_lab::dice::Dice;
use duplex_lab::{Lab, Session};

use crate::meeting::{Case, play};

const CASES: &[Case] = &[
    Case {
        name: "different_columns",
        columns: "a text, b text",
        setup: "insert into {t} values (1, 10, 'x', 'x')",
        older: "update {t} set a = 'older', n = n + 1",
        newer: "update {t} set b = 'newer', n = n + 2",
        rows: &["a=older | b=newer | id=1 | n=13"],
        after: "update {t} set a = 'after'",
        rows_after: &["a=after | b=newer | id=1 | n=13"],
    },
    Case {
        name: "one_column_in_common",
        columns: "a text, b text, c text",
        setup: "insert into {t} values (1, 0, 'x', 'x', 'x')",
        older: "update {t} set a = 'older', b = 'older'",
        newer: "update {t} set b = 'newer', c = 'newer'",
        rows: &["a=older | b=newer | c=newer | id=1 | n=0"],
        after: "update {t} set b = null",
        rows_after: &["a=older | b=␀ | c=newer | id=1 | n=0"],
    },
    Case {
        name: "several_changes_of_one_node",
        columns: "a text, b text",
        setup: "insert into {t} values (1, 0, 'x', 'x')",
        older: "update {t} set a = 'a1'; update {t} set b = 'b1'",
        newer: "update {t} set a = 'a2'; update {t} set n = n + 5",
        rows: &["a=a2 | b=b1 | id=1 | n=5"],
        after: "delete from {t}",
        rows_after: &[],
    },
    Case {
        name: "both_insert",
        columns: "a text, b text",
        setup: "",
        older: "insert into {t} values (1, 1, 'older', 'older')",
        newer: "insert into {t} values (1, 2, 'newer', 'newer'); update {t} set a = 'newest'",
        rows: &["a=newest | b=newer | id=1 | n=3"],
        after: "update {t} set b = 'after'",
        rows_after: &["a=newest | b=after | id=1 | n=3"],
    },
    Case {
        name: "update_and_later_delete",
        columns: "a text, b text",
        setup: "insert into {t} values (1, 10, 'x', 'x')",
        older: "update {t} set a = 'older', n = n + 1",
        newer: "delete from {t}",
        rows: &[],
        after: "insert into {t} values (1, 3, 'again', 'again')",
        rows_after: &["a=again | b=again | id=1 | n=3"],
    },
    Case {
        name: "delete_and_later_update",
        columns: "a text, b text",
        setup: "insert into {t} values (1, 10, 'x', 'y')",
        older: "update {t} set b = 'older'; delete from {t}",
        newer: "update {t} set a = 'newer', n = n + 1",
        rows: &["a=newer | b=older | id=1 | n=1"],
        after: "update {t} set b = 'after'",
        rows_after: &["a=newer | b=after | id=1 | n=1"],
    },
    Case {
        name: "truncate_and_later_update",
        columns: "a text, b text",
        setup: "insert into {t} values (1, 10, 'x', 'y'), (2, 20, 'x', 'y')",
        older: "update {t} set b = 'older'; truncate {t}",
        newer: "update {t} set a = 'newer' where id = 1",
        rows: &["a=newer | b=older | id=1 | n=10"],
        after: "insert into {t} values (2, 1, 'again', 'again')",
        rows_after: &["a=again | b=again | id=2 | n=1", "a=newer | b=older | id=1 | n=10"],
    },
    Case {
        name: "update_and_later_truncate",
        columns: "a text, b text",
        setup: "insert into {t} values (1, 10, 'x', 'y')",
        older: "update {t} set b = 'older'",
        newer: "truncate {t}",
        rows: &[],
        after: "insert into {t} values (1, 1, 'again', 'again')",
        rows_after: &["a=again | b=again | id=1 | n=1"],
    },
    Case {
        name: "columns_of_one_unique_index_go_together",
        columns: "a text, b text, c text, unique (a, b)",
        setup: "insert into {t} values (1, 0, 'x', 'y', 'z')",
        older: "update {t} set a = 'older', c = 'older'",
        newer: "update {t} set b = 'newer'",
        rows: &["a=x | b=newer | c=older | id=1 | n=0"],
        after: "insert into {t} values (2, 0, 'older', 'y', 'free')",
        rows_after: &["a=older | b=y | c=free | id=2 | n=0", "a=x | b=newer | c=older | id=1 | n=0"],
    },
    Case {
        name: "a_unique_value_taken_twice",
        columns: "a text unique, b text",
        setup: "insert into {t} values (1, 1, 'x', 'x'), (2, 2, 'y', 'y')",
        older: "update {t} set a = 'taken', b = 'older' where id = 1",
        newer: "update {t} set a = 'taken', n = n + 1 where id = 2",
        rows: &["a=taken | b=y | id=2 | n=3"],
        after: "insert into {t} values (1, 7, 'free', 'again')",
        rows_after: &["a=free | b=again | id=1 | n=7", "a=taken | b=y | id=2 | n=3"],
    },
    Case {
        name: "a_hidden_row_comes_back_by_its_unique_column",
        columns: "a text unique, b text",
        setup: "insert into {t} values (1, 1, 'x', 'x'), (2, 2, 'y', 'y')",
        older: "update {t} set a = 'taken' where id = 1; update {t} set b = 'older' where id = 1",
        newer: "update {t} set a = 'taken' where id = 2; update {t} set a = 'other' where id = 1",
        rows: &["a=other | b=older | id=1 | n=1", "a=taken | b=y | id=2 | n=2"],
        after: "update {t} set b = 'after'",
        rows_after: &["a=other | b=after | id=1 | n=1", "a=taken | b=after | id=2 | n=2"],
    },
    Case {
        name: "a_value_moves_to_another_key_in_one_transaction",
        columns: "a text unique, b text",
        setup: "insert into {t} values (1, 1, 'x', 'x'), (2, 2, 'y', 'y')",
        older: "begin\\; update {t} set a = 'free' where id = 1\\; update {t} set a = 'x' where id = 2\\; commit",
        newer: "update {t} set b = 'newer' where id = 1",
        rows: &["a=free | b=newer | id=1 | n=1", "a=x | b=y | id=2 | n=2"],
        after: "update {t} set a = 'y' where id = 1",
        rows_after: &["a=x | b=y | id=2 | n=2", "a=y | b=newer | id=1 | n=1"],
    },
    Case {
        name: "a_value_taken_by_a_row_that_was_truncated",
        columns: "a text unique, b text",
        setup: "insert into {t} values (1, 0, 'x', 'x'), (2, 0, 'y', 'y')",
        older: "delete from {t} where id = 1; update {t} set a = 'x' where id = 2; truncate {t}",
        newer: "update {t} set b = 'newer' where id = 1",
        rows: &[],
        after: "insert into {t} values (1, 3, 'again', 'again')",
        rows_after: &["a=again | b=again | id=1 | n=3"],
    },
    Case {
        name: "key_changed_and_column_changed",
        columns: "a text, b text",
        setup: "insert into {t} values (1, 10, 'x', 'y')",
        older: "update {t} set id = 2, a = 'older'",
        newer: "update {t} set b = 'newer' where id = 1",
        rows: &["a=older | b=y | id=2 | n=10", "a=x | b=newer | id=1 | n=0"],
        after: "update {t} set a = 'after'",
        rows_after: &["a=after | b=newer | id=1 | n=0", "a=after | b=y | id=2 | n=10"],
    },
];

#[tokio::test]
async fn every_kind_of_meeting_and_either_side_the_newer() -> Result<()> {
    play(CASES, "'column_merge', '{n}'").await
}

const KEYS: u64 = 20;

fn statements(dice: &mut Dice) -> String {
    let (key, other, value) = (dice.below(KEYS), dice.below(KEYS), dice.below(KEYS));
    match dice.below(100) {
        0..12 => format!(
            "insert into p values ({key}, {value}, 'a{value}', 'b') on conflict (id) do update set a = excluded.a"
        ),
        12..22 => format!("update p set a = a || '+', n = n + 1 where id = {key}"),
        22..32 => format!("update p set b = 'b{value}' where id = {key}"),
        32..36 => format!("delete from p where id = {key}"),
        36..40 => format!("update p set id = {other} where id = {key}"),
        40..41 => "truncate p".to_owned(),
        41..55 => format!(
            "insert into q values ({key}, {value}, 'v{value}', 'w{other}', 'c') on conflict (id) do update \
             set v = excluded.v, c = 'again'"
        ),
        55..63 => format!("update q set v = 'v{value}' where id = {key}"),
        63..71 => format!("update q set w = 'w{value}', n = n + 1 where id = {key}"),
        71..80 => format!("update q set c = c || '.' where id = {key}"),
        80..85 => format!("delete from q where id = {key}"),
        85..89 => format!("update q set id = {other}, c = 'moved' where id = {key}"),
        89..95 => format!(
            "begin; update q set v = 'm{key}' where id = {key}; savepoint s; update q set c = 'lost' where id = {other}; \
             rollback to s; update q set v = 'v{value}' where id = {other}; commit"
        ),
        95..96 => "truncate q".to_owned(),
        _ => format!(
            "begin; delete from q where id = {key}; insert into q values ({key}, 1, 'x{key}', 'y{value}', 'c'); commit"
        ),
    }
}

async fn write(session: Session, seed: u64, until: Instant) -> Result<usize> {
    let mut dice = Dice::new(seed);
    let mut done = 0;
    while Instant::now() < until {
        let sql = statements(&mut dice);
        match session.client().batch_execute(&sql).await {
            Ok(()) => done += 1,
            Err(err) => {
                let code = err.code().map(|state| state.code().to_owned()).unwrap_or_default();
                if !["23505", "40P01", "40001"].contains(&code.as_str()) {
                    bail!("{err:?} in: {sql}");
                }
                session.exec("rollback").await?;
            }
        }
    }
    Ok(done)
}

/// Many writers at once on few keys: no stream ever stops, and all nodes are equal in the end.
async fn storm(nodes: usize, lasting: Duration) -> Result<()> {
    let lab = Lab::shared(nodes).await?;
    lab.exec_everywhere(
        "create table p (id int primary key, n int not null, a text, b text);
         create table q (id int primary key, n int not null, v text unique, w text, c text, unique (w, c));
         create unique index on q (lower(w)) where n > 1000;
         select duplex.enable('p', 'column_merge', '{n}');
         select duplex.enable('q', 'column_merge')",
    )
    .await?;
    let until = Instant::now() + lasting;
    let mut writers = Vec::new();
    for (number, node) in lab.nodes().iter().enumerate() {
        for writer in 0..2 {
            writers.push(tokio::spawn(write(node.connect().await?, (number * 2 + writer) as u64, until)));
        }
    }
    let mut done = 0;
    for writer in writers {
        done += writer.await??;
    }
    ensure!(done > 100, "only {done} transactions were made");
    lab.converges(&["p", "q"]).await?;
    for node in lab.nodes() {
        assert_eq!(node.rows("select * from duplex.apply_errors").await?, Vec::<Vec<Option<String>>>::new());
        ensure!(node.number("select count(*) from duplex.conflict_history").await? > 0, "nobody met anybody");
    }
    lab.stop_relays()
}

#[tokio::test]
async fn a_storm_on_two_nodes() -> Result<()> {
    storm(2, Duration::from_secs(8)).await
}

#[tokio::test]
async fn a_storm_on_three_nodes() -> Result<()> {
    storm(3, Duration::from_secs(8)).await
}
