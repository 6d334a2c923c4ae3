//! One table of cases for what two nodes may do to one row at once: every kind of conflict, and either side the newer.

use anyhow::{Context, Result};
use duplex_lab::{Lab, Node};

/// What both nodes do while neither hears of the other.
struct Case {
    name: &'static str,
    /// Columns after `id int primary key`.
    columns: &'static str,
    /// What both have at first.
    setup: &'static str,
    older: &'static str,
    newer: &'static str,
    /// What both have in the end.
    rows: &'static [&'static str],
    /// What the node that wrote first has on record, and what the other one has: kind and resolution.
    at_older: &'static [&'static str],
    at_newer: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        name: "insert_insert",
        columns: "v text",
        setup: "",
        older: "insert into {t} values (1, 'older')",
        newer: "insert into {t} values (1, 'newer')",
        rows: &["id=1 | v=newer"],
        at_older: &["insert_exists applied"],
        at_newer: &["insert_exists skipped"],
    },
    Case {
        name: "update_update",
        columns: "v text",
        setup: "insert into {t} values (1, 'x')",
        older: "update {t} set v = 'older'",
        newer: "update {t} set v = 'newer'",
        rows: &["id=1 | v=newer"],
        at_older: &["update_origin_differs applied"],
        at_newer: &["update_origin_differs skipped"],
    },
    Case {
        name: "delete_update",
        columns: "v text",
        setup: "insert into {t} values (1, 'x')",
        older: "delete from {t}",
        newer: "update {t} set v = 'newer'",
        rows: &["id=1 | v=newer"],
        at_older: &["update_missing applied"],
        at_newer: &["delete_origin_differs skipped"],
    },
    Case {
        name: "update_delete",
        columns: "v text",
        setup: "insert into {t} values (1, 'x')",
        older: "update {t} set v = 'older'",
        newer: "delete from {t}",
        rows: &[],
        at_older: &["delete_origin_differs applied"],
        at_newer: &["update_missing skipped"],
    },
    Case {
        name: "delete_delete",
        columns: "v text",
        setup: "insert into {t} values (1, 'x')",
        older: "delete from {t}",
        newer: "delete from {t}",
        rows: &[],
        at_older: &["delete_missing applied"],
        at_newer: &["delete_missing skipped"],
    },
    Case {
        name: "delete_reinsert",
        columns: "v text",
        setup: "insert into {t} values (1, 'x')",
        older: "delete from {t}",
        newer: "delete from {t}; insert into {t} values (1, 'newer')",
        rows: &["id=1 | v=newer"],
        at_older: &["delete_missing applied"],
        at_newer: &["delete_origin_differs skipped"],
    },
    Case {
        name: "insert_then_deleted_elsewhere",
        columns: "v text",
        setup: "",
        older: "insert into {t} values (1, 'older')",
        newer: "insert into {t} values (1, 'newer'); delete from {t}",
        rows: &[],
        at_older: &["insert_exists applied"],
        at_newer: &["update_missing skipped"],
    },
    Case {
        name: "update_truncate",
        columns: "v text",
        setup: "insert into {t} values (1, 'x'), (2, 'x')",
        older: "update {t} set v = 'older' where id = 1",
        newer: "truncate {t}",
        rows: &[],
        at_older: &[],
        at_newer: &["update_missing skipped"],
    },
    Case {
        name: "truncate_update",
        columns: "v text",
        setup: "insert into {t} values (1, 'x'), (2, 'x')",
        older: "truncate {t}",
        newer: "update {t} set v = 'newer' where id = 1",
        rows: &["id=1 | v=newer"],
        at_older: &["update_missing applied"],
        at_newer: &[],
    },
    Case {
        name: "truncate_truncate",
        columns: "v text",
        setup: "insert into {t} values (1, 'x')",
        older: "truncate {t}; insert into {t} values (2, 'older')",
        newer: "truncate {t}; insert into {t} values (3, 'newer')",
        rows: &["id=3 | v=newer"],
        at_older: &[],
        at_newer: &["update_missing skipped"],
    },
    Case {
        name: "key_change_into_taken",
        columns: "v text",
        setup: "insert into {t} values (1, 'x')",
        older: "update {t} set id = 2, v = 'older'",
        newer: "insert into {t} values (2, 'newer')",
        rows: &["id=2 | v=newer"],
        at_older: &["insert_exists applied"],
        at_newer: &["insert_exists skipped"],
    },
    Case {
        name: "insert_into_key_changed",
        columns: "v text",
        setup: "insert into {t} values (1, 'x')",
        older: "insert into {t} values (2, 'older')",
        newer: "update {t} set id = 2, v = 'newer' where id = 1",
        rows: &["id=2 | v=newer"],
        at_older: &["insert_exists applied"],
        at_newer: &["insert_exists skipped"],
    },
    Case {
        name: "key_changed_and_updated",
        columns: "v text",
        setup: "insert into {t} values (1, 'x')",
        older: "update {t} set id = 2",
        newer: "update {t} set v = 'newer'",
        rows: &["id=1 | v=newer", "id=2 | v=x"],
        at_older: &["update_missing applied"],
        at_newer: &["delete_origin_differs skipped"],
    },
    Case {
        name: "unique_insert_insert",
        columns: "v text unique",
        setup: "",
        older: "insert into {t} values (1, 'taken')",
        newer: "insert into {t} values (2, 'taken')",
        rows: &["id=2 | v=taken"],
        at_older: &["insert_exists applied"],
        at_newer: &["insert_exists hidden"],
    },
    Case {
        name: "unique_update_update",
        columns: "v text unique",
        setup: "insert into {t} values (1, 'a'), (2, 'b')",
        older: "update {t} set v = 'taken' where id = 1",
        newer: "update {t} set v = 'taken' where id = 2",
        rows: &["id=2 | v=taken"],
        at_older: &["update_exists applied"],
        at_newer: &["update_exists hidden"],
    },
    Case {
        name: "unique_given_up_since",
        columns: "v text unique",
        setup: "",
        older: "insert into {t} values (1, 'taken')",
        newer: "insert into {t} values (2, 'taken'); update {t} set v = 'other' where id = 2",
        rows: &["id=2 | v=other"],
        at_older: &["insert_exists applied"],
        at_newer: &["insert_exists hidden"],
    },
    Case {
        name: "unique_deleted_since",
        columns: "v text unique",
        setup: "",
        older: "insert into {t} values (1, 'taken')",
        newer: "insert into {t} values (2, 'taken'); delete from {t} where id = 2",
        rows: &[],
        at_older: &["insert_exists applied"],
        at_newer: &["insert_exists hidden"],
    },
    Case {
        name: "several_unique_keys",
        columns: "v text unique, w text unique",
        setup: "",
        older: "insert into {t} values (2, 'a', 'x'), (3, 'y', 'b')",
        newer: "insert into {t} values (1, 'a', 'b')",
        rows: &["id=1 | v=a | w=b"],
        at_older: &["multiple_unique_conflicts applied"],
        at_newer: &["insert_exists hidden", "insert_exists hidden"],
    },
    Case {
        name: "unique_expression",
        columns: "v text",
        setup: "create unique index on {t} (lower(v))",
        older: "insert into {t} values (1, 'Taken')",
        newer: "insert into {t} values (2, 'tAKEN')",
        rows: &["id=2 | v=tAKEN"],
        at_older: &["insert_exists applied"],
        at_newer: &["insert_exists hidden"],
    },
    Case {
        name: "unique_partial",
        columns: "v text, active bool",
        setup: "create unique index on {t} (v) where active",
        older: "insert into {t} values (1, 'taken', true), (3, 'free', true)",
        newer: "insert into {t} values (2, 'taken', true), (4, 'free', false)",
        rows: &["active=f | id=4 | v=free", "active=t | id=2 | v=taken", "active=t | id=3 | v=free"],
        at_older: &["insert_exists applied"],
        at_newer: &["insert_exists hidden"],
    },
    Case {
        name: "unique_nulls",
        columns: "v text unique, w text unique nulls not distinct",
        setup: "",
        older: "insert into {t} values (1, null, null)",
        newer: "insert into {t} values (2, null, null)",
        rows: &["id=2 | v=␀ | w=␀"],
        at_older: &["insert_exists applied"],
        at_newer: &["insert_exists hidden"],
    },
    Case {
        name: "unique_deferrable",
        columns: "v text unique deferrable initially deferred",
        setup: "insert into {t} values (1, 'a'), (2, 'b')",
        older: "update {t} set v = 'taken' where id = 1",
        newer: "update {t} set v = 'taken' where id = 2",
        rows: &["id=2 | v=taken"],
        at_older: &["update_exists applied"],
        at_newer: &["update_exists hidden"],
    },
    Case {
        name: "unique_generated",
        columns: "v text, w text generated always as (upper(v)) stored unique",
        setup: "",
        older: "insert into {t} (id, v) values (1, 'taken')",
        newer: "insert into {t} (id, v) values (2, 'Taken')",
        rows: &["id=2 | v=Taken | w=TAKEN"],
        at_older: &["insert_exists applied"],
        at_newer: &["insert_exists hidden"],
    },
];

async fn on_record(node: &Node, table: &str) -> Result<Vec<String>> {
    let sql = format!(
        "select kind || ' ' || resolution from duplex.conflict_history where \"table\" = 'public.{table}' order by id"
    );
    Ok(node.rows(&sql).await?.into_iter().map(|row| row[0].clone().unwrap_or_default()).collect())
}

#[tokio::test]
async fn every_kind_and_either_side_the_newer() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    let tables: Vec<(String, &Case, bool)> = CASES
        .iter()
        .flat_map(|case| [true, false].map(|a_first| (format!("{}_{a_first}", case.name), case, a_first)))
        .collect();
    let (mut ddl, mut dml) = (String::new(), String::new());
    for (table, case, _) in &tables {
        let create = format!("create table {table} (id int primary key, {});", case.columns);
        let (index, rows) = if case.setup.starts_with("create") { (case.setup, "") } else { ("", case.setup) };
        ddl += &format!("{create} {}; select duplex.enable('{table}');", index.replace("{t}", table));
        dml += &format!("{};", rows.replace("{t}", table));
    }
    let (at_a, at_b) = (a.exec(&ddl), b.exec(&ddl));
    futures_util::future::try_join(at_a, at_b).await?;
    a.exec(&dml).await?;
    lab.settled().await?;
    lab.stop_relays()?;
    for (table, case, a_first) in &tables {
        let (older, newer) = if *a_first { (a, b) } else { (b, a) };
        // Each statement a transaction of its own, with a version of its own.
        for (node, sql) in [(older, case.older), (newer, case.newer)] {
            let session = node.connect().await?;
            for statement in sql.split("; ") {
                session.exec(&statement.replace("{t}", table)).await.with_context(|| case.name)?;
            }
        }
    }
    for node in lab.nodes() {
        node.relay().start()?;
    }
    lab.settled().await?;
    let mut wrong = Vec::new();
    for (table, case, a_first) in &tables {
        let (older, newer) = if *a_first { (a, b) } else { (b, a) };
        for (node, role, records) in [(older, "older", case.at_older), (newer, "newer", case.at_newer)] {
            let rows = node.dump(table, &[]).await?;
            if rows != case.rows {
                wrong.push(format!("{table}: the {role} node has {rows:?}"));
            }
            let found = on_record(node, table).await?;
            if found != records {
                wrong.push(format!("{table}: the {role} node recorded {found:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    lab.stop_relays()
}
