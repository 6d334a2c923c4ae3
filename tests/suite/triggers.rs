//! Users' triggers, foreign keys and row security on both sides.

use anyhow::Result;
use duplex_lab::Lab;

const NOTED: &str = "create table noted (who text, what text, op text, new text);
     create function note() returns trigger language plpgsql as $$
     begin
         insert into public.noted values (current_user, tg_name, tg_op, case when tg_level = 'ROW' then new::text end);
         return new;
     end $$;";

/// REPLICA and ALWAYS triggers fire when a change is applied, and know old and new row; ORIGIN ones and disabled ones do
/// not. Statement triggers do not, but for TRUNCATE.
#[tokio::test]
async fn which_triggers_fire_on_apply() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    let mut sql = NOTED.to_owned();
    for (name, enabled) in [("o", ""), ("r", "enable replica"), ("a", "enable always"), ("d", "disable")] {
        for timing in ["before", "after"] {
            sql += &format!(
                "create trigger {name}_{timing} {timing} insert or update or delete on t for each row execute function note();
                 create trigger {name}_{timing}_s {timing} insert or truncate on t for each statement execute function note();"
            );
            if !enabled.is_empty() {
                sql +=
                    &format!("alter table t {enabled} trigger {name}_{timing}, {enabled} trigger {name}_{timing}_s;");
            }
        }
    }
    b.exec(&sql.replace("return new;", "return case when tg_op = 'DELETE' then old else new end;")).await?;
    a.exec("insert into t values (1, 'x')").await?;
    lab.settled().await?;
    let fired = "select coalesce(string_agg(what || ' ' || op, ', ' order by what, op), '') from noted";
    assert_eq!(b.one(fired).await?, "a_after INSERT, a_before INSERT, r_after INSERT, r_before INSERT");
    b.exec("truncate noted").await?;
    a.exec("update t set v = 'y'; delete from t").await?;
    lab.settled().await?;
    assert_eq!(
        b.one(fired).await?,
        "a_after DELETE, a_after UPDATE, a_before DELETE, a_before UPDATE, \
         r_after DELETE, r_after UPDATE, r_before DELETE, r_before UPDATE"
    );
    assert_eq!(b.one("select distinct new from noted where op = 'UPDATE'").await?, "(1,y)");
    b.exec("truncate noted").await?;
    a.exec("truncate t").await?;
    lab.settled().await?;
    assert_eq!(b.one(fired).await?, "a_after_s TRUNCATE, a_before_s TRUNCATE, r_after_s TRUNCATE, r_before_s TRUNCATE");
    // What they wrote is nobody's change but this node's own, and does not go back.
    assert_eq!(lab.transactions(b).await?, 0);
    // Here they fire as ever.
    b.exec("truncate noted; insert into t values (2, 'own')").await?;
    lab.settled().await?;
    assert!(b.one(fired).await?.contains("o_after INSERT"));
    lab.assert_equal("t").await
}

/// BEFORE triggers change the row that is written, with WHEN, column lists and arguments, in partitions too.
#[tokio::test]
async fn before_triggers_change_the_row() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(
        "create table t (id int primary key, v text, seen int default 0);
         create table p (id int primary key, v text) partition by range (id);
         create table p_1 partition of p for values from (0) to (100)",
        &["t", "p"],
    )
    .await?;
    b.exec(
        "create function mark() returns trigger language plpgsql as
             $$ begin new.v := coalesce(new.v, 'null') || tg_argv[0]; return new; end $$;
         create trigger big before insert or update of v on t for each row when (new.id > 5) execute function mark('!');
         create trigger mark before insert on p for each row execute function mark('?');
         create function see() returns trigger language plpgsql as
             $$ begin update public.t set seen = seen + 1 where id = 1; return null; end $$;
         create trigger see after insert on p for each row execute function see();
         alter table t enable always trigger big; alter table p enable replica trigger mark; alter table p enable always trigger see",
    )
    .await?;
    a.exec("insert into t values (1, 'a'), (6, 'b'), (7, null); insert into p values (1, 'x'), (2, 'y')").await?;
    lab.settled().await?;
    assert_eq!(b.dump("t", &[]).await?, ["id=1 | seen=2 | v=a", "id=6 | seen=0 | v=b!", "id=7 | seen=0 | v=null!"]);
    assert_eq!(b.dump("p", &[]).await?, ["id=1 | v=x?", "id=2 | v=y?"]);
    Ok(())
}

/// A foreign key's cascade is captured where it ran, and not run again where it is applied.
#[tokio::test]
async fn foreign_key_cascades_run_once() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    let tables = ["parent", "child", "nulled", "defaulted"];
    lab.create_everywhere(
        "create table parent (id int primary key);
         create table child (id int primary key, parent int references parent on delete cascade on update cascade, v int);
         create table nulled (id int primary key, parent int references parent on delete set null on update cascade);
         create table defaulted (id int primary key, parent int default 0 references parent on delete set default)",
        &tables,
    )
    .await?;
    let gone = "create table gone (id int, parent int); \
                create function gone() returns trigger language plpgsql as \
                $$ begin insert into public.gone values (old.id, old.parent); return null; end $$; \
                create trigger gone after delete on child for each row execute function gone(); \
                alter table child enable always trigger gone";
    lab.exec_everywhere(gone).await?;
    a.exec(
        "insert into parent select generate_series(0, 3); insert into child select i, i % 4, 0 from generate_series(1, 12) i; \
         insert into nulled select id, parent from child; insert into defaulted select id, parent from child where parent < 2",
    )
    .await?;
    lab.converges(&tables).await?;
    a.exec("delete from parent where id = 1").await?;
    lab.settled().await?;
    b.exec("update parent set id = 20 where id = 2").await?;
    lab.converges(&tables).await?;
    assert_eq!(a.number("select count(*) from child where parent = 20").await?, 3);
    assert_eq!(a.number("select count(*) from nulled where parent is null").await?, 3);
    assert_eq!(b.number("select count(*) from defaulted where parent = 0").await?, 6);
    for node in [a, b] {
        assert_eq!(node.number("select count(*) from gone").await?, 3);
    }
    assert_eq!((lab.transactions(a).await?, lab.transactions(b).await?), (2, 1));
    Ok(())
}

/// Writers that are no superuser and owners of tables with row security write as ever: all that they see is captured.
#[tokio::test]
async fn row_security_and_writers_without_rights() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    let (owner, writer) = (format!("owner-{}", a.name()), format!("writer-{}", a.name()));
    lab.exec_everywhere(&format!(
        "create role \"{owner}\" login; create role \"{writer}\" login;
         create table t (id int primary key, who text default current_user, v text);
         create table secret (id int primary key, v text);
         alter table t owner to \"{owner}\"; alter table secret owner to \"{owner}\";
         alter table t enable row level security;
         create policy own on t using (who = current_user) with check (who = current_user);
         grant select, insert, update, delete, truncate on t to \"{writer}\"; grant insert on secret to \"{writer}\""
    ))
    .await?;
    lab.enable(&["t", "secret"]).await?;
    let [as_owner, as_writer] = [a.connect_as(&owner).await?, b.connect_as(&writer).await?];
    as_owner.exec("insert into t (id, v) values (1, 'o'), (2, 'o')").await?;
    lab.settled().await?;
    // It may not read what it writes.
    as_writer.exec("insert into secret values (1, 's'); insert into t (id, v) values (3, 'w')").await?;
    lab.settled().await?;
    as_writer.exec("update t set v = 'w2'; set row_security = on; delete from t where id < 3").await?;
    lab.converges(&["t", "secret"]).await?;
    assert_eq!(a.number("select count(*) from t").await?, 3);
    assert_eq!(a.one("select v from t where id = 3").await?, "w2");
    // Forced on the owner it would hide rows from who applies: said, not skipped.
    a.exec("alter table t force row level security").await?;
    as_writer.exec("update t set v = 'hidden'").await?;
    let reason = duplex_lab::until("the stream to stop", duplex_lab::PATIENCE, async || {
        let rows = a.rows("select sqlstate, message, hint from duplex.apply_errors").await?;
        Ok(rows.into_iter().next().ok_or("no error yet"))
    })
    .await?;
    assert_eq!(reason[0].as_deref(), Some("42501"));
    assert!(reason[1].as_deref().is_some_and(|message| message.contains("row security")), "{reason:?}");
    assert!(reason[2].is_some());
    a.exec(&format!("alter table t no force row level security; select duplex.retry_peer('{}')", b.name())).await?;
    lab.converges(&["t", "secret"]).await?;
    lab.exec_everywhere(&format!("drop owned by \"{owner}\", \"{writer}\"; drop role \"{owner}\", \"{writer}\"")).await
}
