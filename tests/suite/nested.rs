//! Triggers that write: changes made inside a trigger are captured in the middle of the statement that fired it, and the
//! last state of each row must still be the last that is sent.

use anyhow::Result;
use duplex_lab::{Drain, Lab};

const ROW_WRITES_ITSELF: &str = "
    create function again() returns trigger language plpgsql as $$
    begin
        if new.n < 3 then update t set n = new.n + 1, v = v || '+' where id = new.id; end if;
        return null;
    end $$;
";

#[tokio::test]
async fn a_row_that_its_own_trigger_writes_again_arrives_as_it_is_in_the_end() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, _] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, n int, v text)", &["t"]).await?;
    a.exec(ROW_WRITES_ITSELF).await?;
    // PostgreSQL fires triggers in the order of their names: before ours, and after it.
    for name in [" first", "000", "A", "a", "zz"] {
        a.exec(&format!("create trigger \"{name}\" after insert or update on t for each row execute function again()"))
            .await?;
        a.exec("insert into t select coalesce(max(id), 0) + 1, 0, '' from t; update t set n = 0 where id % 2 = 0")
            .await?;
        a.exec(&format!("drop trigger \"{name}\" on t")).await?;
    }
    lab.converges(&["t"]).await?;
    assert_eq!(a.number("select count(*) from t where n = 3").await?, 5);
    lab.stop_relays()
}

#[tokio::test]
async fn a_row_of_the_same_statement_that_a_trigger_writes_again_arrives_as_it_is_in_the_end() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, _] = lab.pair();
    lab.create_everywhere("create table tree (id int primary key, parent int, n int default 0)", &["tree"]).await?;
    a.exec(
        "create function up() returns trigger language plpgsql as $$
         begin
             update tree set n = n + 1 where id = new.parent;
             return null;
         end $$;
         create trigger up after insert or update of parent on tree for each row execute function up();
         insert into tree (id, parent) values (1, null), (3, 4), (4, 1), (5, 4), (2, 1);
         update tree set parent = 5 where id > 1;
         create function back() returns trigger language plpgsql as $$
         begin insert into tree values (old.id, null, -1); return null; end $$;
         create trigger back after delete on tree for each row execute function back();
         delete from tree where id = 2;",
    )
    .await?;
    lab.converges(&["tree"]).await?;
    assert_eq!(a.one("select n from tree where id = 5").await?, "4");
    assert_eq!(a.one("select n from tree where id = 2").await?, "-1");
    lab.stop_relays()
}

#[tokio::test]
async fn a_foreign_key_that_cascades_into_the_very_row_arrives_as_it_is_in_the_end() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, _] = lab.pair();
    let sql = "create table t (id int primary key, boss int references t on update cascade on delete set null)";
    lab.create_everywhere(sql, &["t"]).await?;
    a.exec(
        "insert into t values (1, 1), (2, 1), (3, 2), (4, 4); update t set id = id + 10; delete from t where id = 12",
    )
    .await?;
    lab.converges(&["t"]).await?;
    assert_eq!(a.dump("t", &[]).await?, ["boss=11 | id=11", "boss=14 | id=14", "boss=␀ | id=13"]);
    lab.stop_relays()
}

#[tokio::test]
async fn what_a_trigger_wrote_and_took_back_does_not_hide_the_row() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    let mut drain = Drain::open(node).await?;
    node.exec(
        "create function tries() returns trigger language plpgsql as $$
         begin
             begin
                 update t set v = 'lost' where id = new.id;
                 raise exception 'no';
             exception when raise_exception then null;
             end;
             perform from t where id = new.id for update;
             return null;
         end $$;
         create trigger \" tries\" after insert on t for each row execute function tries();
         insert into t values (1, 'kept');",
    )
    .await?;
    assert_eq!(drain.changes().await?, [r#"insert {"id":1,"v":"kept"}"#]);
    Ok(())
}
