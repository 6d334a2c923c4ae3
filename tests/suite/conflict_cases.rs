//! One table of cases for what two nodes may do to one row at once: every kind of conflict, and either side the newer.

use anyhow::Result;

use crate::meeting::{Case, QUIET, play};

const CASES: &[Case] = &[
    Case {
        name: "insert_insert",
        columns: "v text",
        setup: "",
        older: "insert into {t} values (1, 'older')",
        newer: "insert into {t} values (1, 'newer')",
        rows: &["id=1 | v=newer"],
        on_record: Some([&["insert_exists applied"], &["insert_exists skipped"]]),
        ..QUIET
    },
    Case {
        name: "update_update",
        columns: "v text",
        setup: "insert into {t} values (1, 'x')",
        older: "update {t} set v = 'older'",
        newer: "update {t} set v = 'newer'",
        rows: &["id=1 | v=newer"],
        on_record: Some([&["update_origin_differs applied"], &["update_origin_differs skipped"]]),
        ..QUIET
    },
    Case {
        name: "delete_update",
        columns: "v text",
        setup: "insert into {t} values (1, 'x')",
        older: "delete from {t}",
        newer: "update {t} set v = 'newer'",
        rows: &["id=1 | v=newer"],
        on_record: Some([&["update_missing applied"], &["delete_origin_differs skipped"]]),
        ..QUIET
    },
    Case {
        name: "update_delete",
        columns: "v text",
        setup: "insert into {t} values (1, 'x')",
        older: "update {t} set v = 'older'",
        newer: "delete from {t}",
        rows: &[],
        on_record: Some([&["delete_origin_differs applied"], &["update_missing skipped"]]),
        ..QUIET
    },
    Case {
        name: "delete_delete",
        columns: "v text",
        setup: "insert into {t} values (1, 'x')",
        older: "delete from {t}",
        newer: "delete from {t}",
        rows: &[],
        on_record: Some([&["delete_missing applied"], &["delete_missing skipped"]]),
        ..QUIET
    },
    Case {
        name: "delete_reinsert",
        columns: "v text",
        setup: "insert into {t} values (1, 'x')",
        older: "delete from {t}",
        newer: "delete from {t}; insert into {t} values (1, 'newer')",
        rows: &["id=1 | v=newer"],
        on_record: Some([&["delete_missing applied"], &["delete_origin_differs skipped"]]),
        ..QUIET
    },
    Case {
        name: "insert_then_deleted_elsewhere",
        columns: "v text",
        setup: "",
        older: "insert into {t} values (1, 'older')",
        newer: "insert into {t} values (1, 'newer'); delete from {t}",
        rows: &[],
        on_record: Some([&["insert_exists applied"], &["update_missing skipped"]]),
        ..QUIET
    },
    Case {
        name: "update_truncate",
        columns: "v text",
        setup: "insert into {t} values (1, 'x'), (2, 'x')",
        older: "update {t} set v = 'older' where id = 1",
        newer: "truncate {t}",
        rows: &[],
        on_record: Some([&[], &["update_missing skipped"]]),
        ..QUIET
    },
    Case {
        name: "truncate_update",
        columns: "v text",
        setup: "insert into {t} values (1, 'x'), (2, 'x')",
        older: "truncate {t}",
        newer: "update {t} set v = 'newer' where id = 1",
        rows: &["id=1 | v=newer"],
        on_record: Some([&["update_missing applied"], &[]]),
        ..QUIET
    },
    Case {
        name: "truncate_truncate",
        columns: "v text",
        setup: "insert into {t} values (1, 'x')",
        older: "truncate {t}; insert into {t} values (2, 'older')",
        newer: "truncate {t}; insert into {t} values (3, 'newer')",
        rows: &["id=3 | v=newer"],
        on_record: Some([&[], &["update_missing skipped"]]),
        ..QUIET
    },
    Case {
        name: "key_change_into_taken",
        columns: "v text",
        setup: "insert into {t} values (1, 'x')",
        older: "update {t} set id = 2, v = 'older'",
        newer: "insert into {t} values (2, 'newer')",
        rows: &["id=2 | v=newer"],
        on_record: Some([&["insert_exists applied"], &["insert_exists skipped"]]),
        ..QUIET
    },
    Case {
        name: "insert_into_key_changed",
        columns: "v text",
        setup: "insert into {t} values (1, 'x')",
        older: "insert into {t} values (2, 'older')",
        newer: "update {t} set id = 2, v = 'newer' where id = 1",
        rows: &["id=2 | v=newer"],
        on_record: Some([&["insert_exists applied"], &["insert_exists skipped"]]),
        ..QUIET
    },
    Case {
        name: "key_changed_and_updated",
        columns: "v text",
        setup: "insert into {t} values (1, 'x')",
        older: "update {t} set id = 2",
        newer: "update {t} set v = 'newer'",
        rows: &["id=1 | v=newer", "id=2 | v=x"],
        on_record: Some([&["update_missing applied"], &["delete_origin_differs skipped"]]),
        ..QUIET
    },
    Case {
        name: "unique_insert_insert",
        columns: "v text unique",
        setup: "",
        older: "insert into {t} values (1, 'taken')",
        newer: "insert into {t} values (2, 'taken')",
        rows: &["id=2 | v=taken"],
        on_record: Some([&["insert_exists applied"], &["insert_exists hidden"]]),
        ..QUIET
    },
    Case {
        name: "unique_update_update",
        columns: "v text unique",
        setup: "insert into {t} values (1, 'a'), (2, 'b')",
        older: "update {t} set v = 'taken' where id = 1",
        newer: "update {t} set v = 'taken' where id = 2",
        rows: &["id=2 | v=taken"],
        on_record: Some([&["update_exists applied"], &["update_exists hidden"]]),
        ..QUIET
    },
    Case {
        name: "unique_given_up_since",
        columns: "v text unique",
        setup: "",
        older: "insert into {t} values (1, 'taken')",
        newer: "insert into {t} values (2, 'taken'); update {t} set v = 'other' where id = 2",
        rows: &["id=2 | v=other"],
        on_record: Some([&["insert_exists applied"], &["insert_exists hidden"]]),
        ..QUIET
    },
    Case {
        name: "unique_deleted_since",
        columns: "v text unique",
        setup: "",
        older: "insert into {t} values (1, 'taken')",
        newer: "insert into {t} values (2, 'taken'); delete from {t} where id = 2",
        rows: &[],
        on_record: Some([&["insert_exists applied"], &["insert_exists hidden"]]),
        ..QUIET
    },
    Case {
        name: "several_unique_keys",
        columns: "v text unique, w text unique",
        setup: "",
        older: "insert into {t} values (2, 'a', 'x'), (3, 'y', 'b')",
        newer: "insert into {t} values (1, 'a', 'b')",
        rows: &["id=1 | v=a | w=b"],
        on_record: Some([&["multiple_unique_conflicts applied"], &["insert_exists hidden", "insert_exists hidden"]]),
        ..QUIET
    },
    Case {
        name: "unique_expression",
        columns: "v text",
        index: "create unique index on {t} (lower(v))",
        setup: "",
        older: "insert into {t} values (1, 'Taken')",
        newer: "insert into {t} values (2, 'tAKEN')",
        rows: &["id=2 | v=tAKEN"],
        on_record: Some([&["insert_exists applied"], &["insert_exists hidden"]]),
        ..QUIET
    },
    Case {
        name: "unique_partial",
        columns: "v text, active bool",
        index: "create unique index on {t} (v) where active",
        setup: "",
        older: "insert into {t} values (1, 'taken', true), (3, 'free', true)",
        newer: "insert into {t} values (2, 'taken', true), (4, 'free', false)",
        rows: &["active=f | id=4 | v=free", "active=t | id=2 | v=taken", "active=t | id=3 | v=free"],
        on_record: Some([&["insert_exists applied"], &["insert_exists hidden"]]),
        ..QUIET
    },
    Case {
        name: "unique_nulls",
        columns: "v text unique, w text unique nulls not distinct",
        setup: "",
        older: "insert into {t} values (1, null, null)",
        newer: "insert into {t} values (2, null, null)",
        rows: &["id=2 | v=␀ | w=␀"],
        on_record: Some([&["insert_exists applied"], &["insert_exists hidden"]]),
        ..QUIET
    },
    Case {
        name: "unique_deferrable",
        columns: "v text unique deferrable initially deferred",
        setup: "insert into {t} values (1, 'a'), (2, 'b')",
        older: "update {t} set v = 'taken' where id = 1",
        newer: "update {t} set v = 'taken' where id = 2",
        rows: &["id=2 | v=taken"],
        on_record: Some([&["update_exists applied"], &["update_exists hidden"]]),
        ..QUIET
    },
    Case {
        name: "unique_generated",
        columns: "v text, w text generated always as (upper(v)) stored unique",
        setup: "",
        older: "insert into {t} (id, v) values (1, 'taken')",
        newer: "insert into {t} (id, v) values (2, 'Taken')",
        rows: &["id=2 | v=Taken | w=TAKEN"],
        on_record: Some([&["insert_exists applied"], &["insert_exists hidden"]]),
        ..QUIET
    },
];

#[tokio::test]
async fn every_kind_and_either_side_the_newer() -> Result<()> {
    play(CASES, "id int primary key", "").await
}
