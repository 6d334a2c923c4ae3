//! Every way to write, on both nodes at once: each commit is one transaction of the stream, and the rows are the same.

use anyhow::{Context, Result, ensure};
use duplex_lab::{Drain, Lab, Node, Session};
use futures_util::SinkExt as _;

const TABLES: [&str; 5] = ["t", "item", "seat", "log", "note"];

const SCHEMA: &str = "
    create table t (id int primary key, v text, n int not null default 0);
    create table item (a int, b text, v text, primary key (a, b));
    create table seat (id int primary key, place int unique deferrable initially deferred);
    create table log (id int primary key, what text);
    create table note (id int primary key, v text);
    create view shown as select id, v from t;

    create procedure in_parts(base int) language plpgsql as $$
    begin
        for i in 1..4 loop
            insert into t values (base + i, 'part');
            if i = 3 then rollback; else commit; end if;
        end loop;
    end $$;

    create function guarded(base int) returns int language plpgsql as $$
    declare kept int := 0;
    begin
        for i in 1..6 loop
            begin
                insert into t values (base + i, 'guarded');
                begin
                    update t set v = 'inner' where id = base + i;
                    perform 1 / (i % 2);
                exception when division_by_zero then
                    insert into log values (base + i, 'inner caught');
                end;
                if i > 4 then raise exception 'outer'; end if;
                kept := kept + 1;
            exception when raise_exception then
                insert into log values (base + 10 + i, 'outer caught');
            end;
        end loop;
        return kept;
    end $$;

    create function late() returns trigger language plpgsql as $$
    begin
        if new.v = 'watched' then insert into log values (new.id, 'deferred trigger'); end if;
        return null;
    end $$;
    create constraint trigger late after insert on t deferrable initially deferred
        for each row execute function late();

    create function written(id int) returns int language sql as
        $$ insert into t values ($1, 'by a cursor') returning id $$;
";

/// Transactions as scripts, each of which commits as often as the number says. `B` stands for the node's first id.
const SCRIPTS: [(u32, &str); 23] = [
    (1, "insert into t select B + i, 'row ' || i from generate_series(1, 40) i"),
    (1, "update t set v = v || '!', n = n + 1 where id between B + 1 and B + 20"),
    (1, "update t set id = id + 100 where id between B + 1 and B + 3"),
    (1, "insert into item values (B, 'x', '1'), (B, 'y', '2'); update item set b = b || 'z', a = a + 1 where a = B"),
    (1, "delete from t where id between B + 35 and B + 37"),
    (
        1,
        "begin; insert into t values (B + 150, 'a'); delete from t where id = B + 150; \
         insert into t values (B + 150, 'again'); update t set v = 'and again' where id = B + 150; commit",
    ),
    (1, "insert into t values (B + 10, 'no'), (B + 160, 'new') on conflict (id) do update set v = 'taken: ' || t.v"),
    (0, "insert into t values (B + 10, 'no') on conflict do nothing"),
    (
        1,
        "merge into t using (values (B + 11, 'm'), (B + 12, null), (B + 170, 'merged')) s(id, v) on t.id = s.id \
         when matched and s.v is null then delete when matched then update set v = s.v \
         when not matched then insert values (s.id, s.v)",
    ),
    (
        1,
        "with gone as (delete from t where id = B + 13 returning *), \
              moved as (insert into log select id, v from gone returning id) \
         update t set n = 99 where id = B + 14",
    ),
    (1, "select guarded(B + 200)"),
    (
        1,
        "begin; insert into t values (B + 220, 'kept'); savepoint a; insert into t values (B + 221, 'lost'); \
         savepoint b; update t set v = 'lost' where id = B + 220; release b; rollback to a; \
         savepoint c; insert into t values (B + 221, 'kept, too'); release c; commit",
    ),
    (0, "begin; insert into t values (B + 230, 'lost'); rollback"),
    (3, "call in_parts(B + 240)"),
    (
        2,
        "begin; insert into t values (B + 250, 'first'); commit and chain; insert into t values (B + 251, 'lost'); \
         rollback and chain; insert into t values (B + 252, 'second'); commit",
    ),
    (1, "insert into t values (B + 260, 'watched')"),
    (1, "begin; insert into seat values (B, B), (B + 1, B + 1), (B + 2, B + 2); commit"),
    (1, "begin; update seat set place = B + 1 where id = B; update seat set place = B where id = B + 1; commit"),
    (
        1,
        "begin; declare c cursor with hold for select written(i) from generate_series(B + 270, B + 274) i; commit; close c",
    ),
    (
        1,
        "begin isolation level serializable; insert into note select id, v from t where id < B + 10 and id >= B; commit",
    ),
    (1, "update shown set v = 'through a view' where id = B + 15"),
    (
        1,
        "begin; create temp table scratch on commit drop as select B + 280 as id; listen x; notify x; \
         insert into t select id, 'from a temporary table' from scratch; commit",
    ),
    (
        1,
        "set session_replication_role = replica; insert into t values (B + 281, 'replica'); reset session_replication_role",
    ),
];

/// Runs everything; returns how many transactions committed with a change.
async fn write(node: &Node, base: i32) -> Result<usize> {
    let session = node.connect().await?;
    let mut committed = 0;
    for (commits, script) in SCRIPTS {
        let script = script.replace('B', &base.to_string());
        session.exec(&script).await.with_context(|| script.clone())?;
        committed += commits as usize;
    }
    committed += copy(&session, base + 300).await?;
    committed += prepared(&session, node.name(), base + 320).await?;
    session
        .refuses(
            "23505",
            &format!(
                "begin; insert into seat values ({0}, {0}); insert into seat values ({1}, {0}); commit",
                base + 5,
                base + 6
            ),
        )
        .await?;
    Ok(committed)
}

async fn copy(session: &Session, base: i32) -> Result<usize> {
    let sink = session.client().copy_in("copy t (id, v) from stdin").await?;
    let mut sink = std::pin::pin!(sink);
    let rows: String = (0..10).map(|i| format!("{}\tcopied {i}\n", base + i)).collect();
    sink.send(std::io::Cursor::new(rows.into_bytes())).await?;
    ensure!(sink.finish().await? == 10, "COPY takes all rows");
    Ok(1)
}

async fn prepared(session: &Session, name: &str, base: i32) -> Result<usize> {
    for (i, end) in ["commit", "rollback"].iter().enumerate() {
        let id = base + i32::try_from(i)?;
        let write = format!(
            "begin; insert into t values ({id}, '{end} prepared'); update t set n = 7 where id = {id}; \
             prepare transaction '{name}-{end}'"
        );
        session.each(&[&write, &format!("{end} prepared '{name}-{end}'")]).await?;
    }
    Ok(1)
}

#[tokio::test]
async fn every_way_to_write_goes_over_in_both_directions_at_once() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(SCHEMA, &TABLES).await?;
    let (of_a, of_b) = tokio::try_join!(write(a, 0), write(b, 100_000))?;
    lab.converges(&TABLES).await?;
    assert_eq!(lab.transactions(a).await?, of_a);
    assert_eq!(lab.transactions(b).await?, of_b);
    // The scripts did what their names say, on both sides.
    let sums = "select count(*) || ' ' || sum(n) || ' ' || count(distinct v) from t where id / 100000 = ";
    assert_eq!(a.one(&format!("{sums} 0")).await?, a.one(&format!("{sums} 1")).await?);
    assert_eq!(b.one("select v from t where id = 281").await?, "replica");
    assert_eq!(
        a.one("select string_agg(what, ', ' order by id) from log where id between 100201 and 100216").await?,
        "inner caught, inner caught, outer caught, outer caught"
    );
    assert_eq!(b.one("select string_agg(place::text, ',' order by id) from seat where id < 100").await?, "1,0,2");
    lab.stop_relays()
}

#[tokio::test]
async fn ddl_between_two_writes_of_one_transaction_changes_the_layout_in_the_middle() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, gone text, v text)", &["t"]).await?;
    b.exec("alter table t add w int, alter v type varchar(20)").await?;
    a.exec(
        "begin; insert into t values (1, 'x', 'one'); alter table t add w int; insert into t values (2, 'x', 'two', 22); \
         savepoint s; alter table t drop column gone; insert into t values (3, 'lost', 0); rollback to s; \
         insert into t values (3, 'x', 'three', 33); alter table t alter v type varchar(20); \
         update t set v = v || '!', w = coalesce(w, 0) + 1; alter table t drop column gone; \
         insert into t values (4, 'four', 44); commit",
    )
    .await?;
    lab.settled().await?;
    lab.assert_equal_except("t", &["gone"]).await?;
    assert_eq!(b.dump("t", &["gone"]).await?[3], "id=4 | v=four | w=44");
    lab.stop_relays()
}

#[tokio::test]
async fn rows_of_partitions_travel_under_their_roots_name() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    let sql = "create table p (id int, v text, primary key (id)) partition by range (id);
               create table p1 partition of p for values from (0) to (10);
               create table p2 (v text, junk int, id int not null);
               alter table p2 drop column junk;
               alter table p attach partition p2 for values from (10) to (20);";
    lab.create_everywhere(sql, &["p"]).await?;
    let mut drain = Drain::open(node).await?;
    node.exec("insert into p values (1, 'a'), (11, 'b'); update p set id = 12 where id = 1").await?;
    let changes = drain.changes().await?;
    assert_eq!(
        changes,
        [
            r#"insert {"id":1,"v":"a"}"#,
            r#"insert {"v":"b","id":11}"#,
            r#"delete {"id":1}"#,
            r#"insert {"v":"a","id":12}"#
        ]
    );
    Ok(())
}
