//! Delta columns: what is added on any node counts on all of them, whoever wins the row.

use anyhow::Result;
use duplex_lab::Lab;

use crate::meeting::{Case, QUIET, play};

const CASES: &[Case] = &[
    Case {
        name: "both_add",
        columns: "v text",
        setup: "insert into {t} values (1, 10, 'x')",
        older: "update {t} set n = n + 5, v = 'older'",
        newer: "update {t} set n = n - 7, v = 'newer'",
        rows: &["id=1 | n=8 | v=newer"],
        after: "update {t} set n = n + 1",
        rows_after: &["id=1 | n=9 | v=newer"],
        ..QUIET
    },
    Case {
        name: "one_adds_and_the_other_writes_else",
        columns: "v text",
        setup: "insert into {t} values (1, 10, 'x')",
        older: "update {t} set n = n + 5; update {t} set n = n + 5, v = 'older'",
        newer: "update {t} set v = 'newer'",
        rows: &["id=1 | n=20 | v=newer"],
        after: "update {t} set v = 'after'",
        rows_after: &["id=1 | n=20 | v=after"],
        ..QUIET
    },
    Case {
        name: "both_insert",
        columns: "v text",
        setup: "",
        older: "insert into {t} values (1, 10, 'older')",
        newer: "insert into {t} values (1, 7, 'newer')",
        rows: &["id=1 | n=17 | v=newer"],
        after: "update {t} set n = 0",
        rows_after: &["id=1 | n=0 | v=newer"],
        ..QUIET
    },
    Case {
        name: "addition_and_later_delete",
        columns: "v text",
        setup: "insert into {t} values (1, 10, 'x')",
        older: "update {t} set n = n + 5",
        newer: "delete from {t}",
        rows: &[],
        after: "insert into {t} values (1, 3, 'again')",
        rows_after: &["id=1 | n=3 | v=again"],
        ..QUIET
    },
    Case {
        name: "delete_and_later_addition",
        columns: "v text",
        setup: "insert into {t} values (1, 10, 'x')",
        older: "delete from {t}",
        newer: "update {t} set n = n + 5, v = 'newer'",
        rows: &["id=1 | n=5 | v=newer"],
        after: "update {t} set n = n + 1",
        rows_after: &["id=1 | n=6 | v=newer"],
        ..QUIET
    },
    Case {
        name: "delete_and_insert_again_and_addition",
        columns: "v text",
        setup: "insert into {t} values (1, 10, 'x')",
        older: "update {t} set n = n + 5",
        newer: "delete from {t}; insert into {t} values (1, 3, 'newer')",
        rows: &["id=1 | n=8 | v=newer"],
        after: "delete from {t}; insert into {t} values (1, 1, 'after')",
        rows_after: &["id=1 | n=1 | v=after"],
        ..QUIET
    },
    Case {
        name: "both_delete",
        columns: "v text",
        setup: "insert into {t} values (1, 10, 'x')",
        older: "delete from {t}",
        newer: "update {t} set n = 12; delete from {t}",
        rows: &[],
        after: "insert into {t} values (1, 3, 'again')",
        rows_after: &["id=1 | n=3 | v=again"],
        ..QUIET
    },
    Case {
        name: "addition_and_later_truncate",
        columns: "v text",
        setup: "insert into {t} values (1, 10, 'x'), (2, 20, 'x')",
        older: "update {t} set n = n + 5 where id = 1",
        newer: "truncate {t}",
        rows: &[],
        after: "insert into {t} values (1, 3, 'again'), (2, 4, 'again')",
        rows_after: &["id=1 | n=3 | v=again", "id=2 | n=4 | v=again"],
        ..QUIET
    },
    Case {
        name: "truncate_and_later_addition",
        columns: "v text",
        setup: "insert into {t} values (1, 10, 'x'), (2, 20, 'x')",
        older: "truncate {t}",
        newer: "update {t} set n = n + 5, v = 'newer' where id = 1",
        rows: &["id=1 | n=15 | v=newer"],
        after: "insert into {t} values (2, 4, 'again')",
        rows_after: &["id=1 | n=15 | v=newer", "id=2 | n=4 | v=again"],
        ..QUIET
    },
    Case {
        name: "key_changed_and_addition",
        columns: "v text",
        setup: "insert into {t} values (1, 10, 'x')",
        older: "update {t} set id = 2",
        newer: "update {t} set n = n + 5, v = 'newer' where id = 1",
        rows: &["id=1 | n=5 | v=newer", "id=2 | n=10 | v=x"],
        after: "update {t} set n = n + 1",
        rows_after: &["id=1 | n=6 | v=newer", "id=2 | n=11 | v=x"],
        ..QUIET
    },
    Case {
        name: "row_is_hidden_and_comes_back",
        columns: "v text unique",
        setup: "insert into {t} values (1, 10, 'a'), (2, 20, 'b')",
        older: "update {t} set v = 'taken', n = n + 1 where id = 1",
        newer: "update {t} set v = 'taken', n = n + 2 where id = 2",
        rows: &["id=2 | n=22 | v=taken"],
        after: "insert into {t} values (1, 5, 'free')",
        rows_after: &["id=1 | n=5 | v=free", "id=2 | n=22 | v=taken"],
        ..QUIET
    },
    Case {
        name: "addition_to_a_hidden_row",
        columns: "v text unique",
        setup: "insert into {t} values (1, 10, 'a'), (2, 20, 'b')",
        older: "update {t} set v = 'taken' where id = 1; update {t} set n = n + 1 where id = 1",
        newer: "update {t} set v = 'taken' where id = 2; update {t} set n = n + 3, v = 'c' where id = 1",
        rows: &["id=1 | n=14 | v=c", "id=2 | n=20 | v=taken"],
        after: "update {t} set n = n + 1",
        rows_after: &["id=1 | n=15 | v=c", "id=2 | n=21 | v=taken"],
        ..QUIET
    },
    Case {
        name: "a_loser_keeps_its_value_in_another_unique_key",
        columns: "v text unique",
        setup: "insert into {t} values (1, 10, 'a')",
        older: "update {t} set n = n + 1; insert into {t} values (2, 0, 'free')",
        newer: "update {t} set n = n + 2, v = 'b'",
        rows: &["id=1 | n=13 | v=b", "id=2 | n=0 | v=free"],
        after: "update {t} set v = 'a' where id = 2",
        rows_after: &["id=1 | n=13 | v=b", "id=2 | n=0 | v=a"],
        ..QUIET
    },
];

#[tokio::test]
async fn every_kind_of_meeting_and_either_side_the_newer() -> Result<()> {
    play(CASES, "id int primary key, n int not null default 0", ", delta_columns => '{n}'").await
}

#[tokio::test]
async fn a_write_that_comes_before_the_row_that_it_saw_adds_nothing_yet() -> Result<()> {
    let lab = Lab::shared(3).await?;
    let [a, b] = lab.pair();
    let c = lab.node(2);
    for node in lab.nodes() {
        node.exec(
            "create table t (id int primary key, n int not null, v text); select duplex.enable('t', delta_columns => '{n}')",
        )
        .await?;
    }
    lab.running().await?;
    // While one stream is held, the others do not wait for it.
    b.hold(a.name(), false).await?;
    a.exec("insert into t values (1, 100, 'made')").await?;
    c.shows("select v from t", "made").await?;
    c.exec("update t set v = 'seen'").await?;
    b.shows("select n || ' ' || v from t", "0 seen").await?;
    b.resume(a.name()).await?;
    lab.converges(&["t"]).await?;
    assert_eq!(b.dump("t", &[]).await?, ["id=1 | n=100 | v=seen"]);
    lab.stop_relays()
}
