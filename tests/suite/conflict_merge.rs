//! Column merge: where two nodes change different columns of one row at once, both changes stay.

use anyhow::Result;

use crate::meeting::{Case, QUIET, play};

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
        ..QUIET
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
        ..QUIET
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
        ..QUIET
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
        ..QUIET
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
        ..QUIET
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
        ..QUIET
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
        ..QUIET
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
        ..QUIET
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
        ..QUIET
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
        ..QUIET
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
        ..QUIET
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
        ..QUIET
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
        ..QUIET
    },
    Case {
        name: "another_rows_column_in_a_row_written_beside_the_value",
        columns: "a text unique, b text",
        setup: "insert into {t} values (2, 2, 'y', 'y')",
        older: "update {t} set a = 'taken'",
        newer: "begin\\; insert into {t} values (1, 1, 'taken', 'x')\\; \
                update {t} set b = 'newer' where id = 2\\; commit",
        rows: &["a=taken | b=x | id=1 | n=1"],
        after: "insert into {t} values (2, 5, 'free', 'again')",
        rows_after: &["a=free | b=again | id=2 | n=5", "a=taken | b=x | id=1 | n=1"],
        ..QUIET
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
        ..QUIET
    },
];

#[tokio::test]
async fn every_kind_of_meeting_and_either_side_the_newer() -> Result<()> {
    play(CASES, "id int primary key, n int not null default 0", ", 'column_merge', '{n}'").await
}
