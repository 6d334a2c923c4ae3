//! Under a deferrable constraint a transaction may take a value and give it up again while another row holds it. That row
//! holds it in the end, everywhere.

use anyhow::Result;
use duplex_lab::wait::when;
use duplex_lab::{Lab, Node, PATIENCE, until};

/// Tables of one kind each, with what follows their name where they are enabled.
const TABLES: [(&str, &str); 3] =
    [("plain", ""), ("counted", ", delta_columns => '{n}'"), ("merged", ", 'column_merge', '{n}'")];

/// Two nodes that have them, each with three rows.
async fn lab() -> Result<Lab> {
    let lab = Lab::shared(2).await?;
    for node in lab.nodes() {
        for (table, options) in TABLES {
            node.exec(&format!(
                "create table {table} (id int primary key, v text, n int not null, unique (v) deferrable);
                 select duplex.enable('{table}'{options})"
            ))
            .await?;
        }
    }
    for table in names() {
        lab.node(0).exec(&format!("insert into {table} values (1, 'x', 10), (2, 'y', 20), (9, 'z', 90)")).await?;
    }
    lab.converges(&names()).await?;
    Ok(lab)
}

fn names() -> Vec<&'static str> {
    TABLES.iter().map(|(table, _)| *table).collect()
}

/// Runs statements with all checks deferred; `{t}` stands for the table.
async fn in_one_transaction(node: &Node, table: &str, statements: &[&str]) -> Result<()> {
    let writer = node.connect().await?;
    writer.exec("begin; set constraints all deferred").await?;
    for statement in statements {
        writer.exec(&statement.replace("{t}", table)).await?;
    }
    writer.exec("commit").await
}

#[tokio::test]
async fn a_value_that_was_given_up_by_update_by_delete_and_under_another_key() -> Result<()> {
    let lab = lab().await?;
    let [a, b] = lab.pair();
    for table in names() {
        let statements = [
            "insert into {t} values (3, 'x', 30)",
            "update {t} set v = 'three' where id = 3",
            "insert into {t} values (4, 'y', 40)",
            "delete from {t} where id = 4",
            "insert into {t} values (5, 'x', 50)",
            "update {t} set id = 6 where id = 5",
            "update {t} set v = 'six', n = n + 1 where id = 6",
        ];
        in_one_transaction(a, table, &statements).await?;
    }
    lab.converges(&names()).await?;
    for table in names() {
        let rows = b.dump(table, &[]).await?;
        let expected = [
            "id=1 | n=10 | v=x",
            "id=2 | n=20 | v=y",
            "id=3 | n=30 | v=three",
            "id=6 | n=51 | v=six",
            "id=9 | n=90 | v=z",
        ];
        assert_eq!(rows, expected, "{table}");
    }
    Ok(())
}

#[tokio::test]
async fn a_value_that_its_holder_was_given_in_the_same_transaction_or_that_is_taken_back() -> Result<()> {
    let lab = lab().await?;
    let [a, b] = lab.pair();
    for table in names() {
        let statements = [
            // Both rows are this transaction's, and one statement writes holder and taker.
            "update {t} set v = 'new' where id = 1",
            "update {t} set v = 'new', n = n + 1 where id <= 2",
            "update {t} set v = case id when 1 then 'new' else 'two' end where id <= 2",
            "savepoint s",
            "update {t} set v = 'z' where id = 2",
            "update {t} set v = 'lost' where id = 2",
            "rollback to s",
            "update {t} set v = 'z' where id = 1",
            "savepoint s",
            "update {t} set v = 'lost' where id = 1",
            "rollback to s",
            "update {t} set v = 'one' where id = 1",
        ];
        in_one_transaction(a, table, &statements).await?;
    }
    lab.converges(&names()).await?;
    for table in names() {
        let rows = b.dump(table, &[]).await?;
        assert_eq!(rows, ["id=1 | n=11 | v=one", "id=2 | n=21 | v=two", "id=9 | n=90 | v=z"], "{table}");
    }
    Ok(())
}

/// Both by constraints of their own: the row is written again once, not once for each.
#[tokio::test]
async fn two_values_that_one_row_holds() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    for node in lab.nodes() {
        for (table, options) in TABLES {
            node.exec(&format!(
                "create table {table} (id int primary key, v text unique deferrable, w text unique deferrable,
                                       n int not null default 0);
                 select duplex.enable('{table}'{options})"
            ))
            .await?;
        }
    }
    for table in names() {
        a.exec(&format!("insert into {table} values (1, 'x', 'y')")).await?;
    }
    lab.converges(&names()).await?;
    for table in names() {
        let statements = [
            "insert into {t} values (2, 'x', 'y')",
            "update {t} set v = 'v', w = 'w' where id = 2",
            "insert into {t} values (3, 'x', 'y')",
            "delete from {t} where id = 3",
        ];
        in_one_transaction(a, table, &statements).await?;
    }
    lab.converges(&names()).await?;
    for table in names() {
        let rows = b.dump(table, &[]).await?;
        assert_eq!(rows, ["id=1 | n=0 | v=x | w=y", "id=2 | n=0 | v=v | w=w"], "{table}");
    }
    Ok(())
}

#[tokio::test]
async fn a_value_that_was_held_in_another_partition() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(
        "create table p (id int, v text, n int, primary key (id, v), unique (n, v) deferrable) partition by list (v);
         create table p_x (n int, gone int, v text not null, id int not null);
         alter table p_x drop column gone; alter table p attach partition p_x for values in ('x');
         create table p_rest partition of p default",
        &["p"],
    )
    .await?;
    a.exec("insert into p values (1, 'x', 10), (2, 'y', 20)").await?;
    lab.converges(&["p"]).await?;
    a.exec(
        "begin; set constraints all deferred; insert into p values (3, 'x', 10), (4, 'y', 20), (5, 'y', 20); \
         update p set v = 'moved' where id = 3; update p set n = 40 where id = 4; delete from p where id = 5; commit",
    )
    .await?;
    lab.converges(&["p"]).await?;
    let rows = b.dump("p", &[]).await?;
    assert_eq!(rows, ["id=1 | n=10 | v=x", "id=2 | n=20 | v=y", "id=3 | n=10 | v=moved", "id=4 | n=40 | v=y"]);
    Ok(())
}

const WAITING: &str =
    "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";

/// Who took it first comes first, though its transaction had not ended when the other gave it up.
#[tokio::test]
async fn a_holder_that_has_not_committed_is_waited_for() -> Result<()> {
    let lab = lab().await?;
    let [a, b] = lab.pair();
    for table in names() {
        let (first, second) = (a.connect().await?, a.connect().await?);
        first.exec(&format!("begin; set constraints all deferred; insert into {table} values (11, 'late', 0)")).await?;
        second
            .exec(&format!("begin; set constraints all deferred; insert into {table} values (12, 'late', 0)"))
            .await?;
        let give_up = format!("update {table} set v = 'other' where id = 12");
        let (given_up, committed) = tokio::join!(second.exec(&give_up), async {
            until("the second to wait for the first", PATIENCE, async || {
                let waiting = a.number(WAITING).await?;
                Ok(when(waiting > 0, "it does not"))
            })
            .await?;
            first.exec("commit").await
        });
        committed?;
        given_up?;
        second.exec("commit").await?;
    }
    lab.converges(&names()).await?;
    for table in names() {
        let rows = b.one(&format!("select string_agg(id || v, ' ' order by id) from {table} where id > 10")).await?;
        assert_eq!(rows, "11late 12other", "{table}");
    }
    Ok(())
}
