//! Who may do what: ordinary roles, owners of tables, the relay's role.

use anyhow::Result;
use duplex_lab::{Lab, Node, PATIENCE, Session, until};

/// A node, and an ordinary role of its cluster that may log in.
async fn node_and_role() -> Result<(Lab, String)> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let role = format!("app-{}", lab.node(0).name());
    lab.node(0).exec(&format!("create role \"{role}\" login; grant create on schema public to \"{role}\"")).await?;
    Ok((lab, role))
}

/// Loads the library into the session, which is what makes a placeholder a setting.
async fn load(session: &Session) -> Result<()> {
    session.exec("insert into public.t (v) values ('loads the library')").await
}

async fn origin(session: &Session) -> Result<String> {
    session.one("select coalesce(current_setting('duplex.origin', true), '')").await
}

#[tokio::test]
async fn an_ordinary_role_cannot_mark_its_session() -> Result<()> {
    let (lab, role) = node_and_role().await?;
    let node = lab.node(0);
    let table = "create table t (id int generated always as identity primary key, v text)";
    lab.create_everywhere(table, &["t"]).await?;
    node.exec(&format!("grant insert on t to \"{role}\"")).await?;

    // The library is there: the setting is a superuser's.
    let session = node.connect_as(&role).await?;
    load(&session).await?;
    session.refuses("42501", "set duplex.origin = 'peer'").await?;
    session.refuses("42501", "set local duplex.origin = 'peer'").await?;
    session.refuses("42501", "select set_config('duplex.origin', 'peer', false)").await?;
    session.refuses("42501", "update pg_settings set setting = 'peer' where name = 'duplex.origin'").await?;
    session
        .refuses("42501", "create function f() returns int language sql set duplex.origin = 'peer' as 'select 1'")
        .await?;
    session.refuses("42501", &format!("alter role \"{role}\" set duplex.origin = 'peer'")).await?;
    session.refuses("42501", "set session_replication_role = replica").await?;

    // It is not: a placeholder can be planted, and does not outlive the library's coming.
    let planted = node.connect_as(&role).await?;
    planted.exec("set duplex.origin = 'peer'").await?;
    load(&planted).await?;
    assert_eq!(origin(&planted).await?, "");
    let planted = node.connect_as(&role).await?;
    planted.exec("begin; set local duplex.origin = 'peer'; savepoint s; set local duplex.origin = 'other'").await?;
    load(&planted).await?;
    assert_eq!(origin(&planted).await?, "");
    planted.exec("release s; commit").await?;
    load(&planted).await?;
    assert_eq!(origin(&planted).await?, "");

    // With the connection itself.
    let url = format!("{}?options=-c%20duplex.origin%3Dpeer", node.url_as(&role));
    let planted = Session::connect(&url).await?;
    assert_eq!(origin(&planted).await?, "peer");
    load(&planted).await?;
    assert_eq!(origin(&planted).await?, "");

    // For the role, where the library has not been loaded, and for the database that it owns.
    let database = node.database();
    let other = node.connect_as(&role).await?;
    other.refuses("42501", &format!("alter role \"{role}\" set duplex.origin = 'peer'")).await?;
    other
        .refuses("42501", &format!("alter role \"{role}\" in database \"{database}\" set duplex.origin = 'peer'"))
        .await?;
    node.exec(&format!("alter database \"{database}\" owner to \"{role}\"")).await?;
    other.refuses("42501", &format!("alter database \"{database}\" set duplex.origin = 'peer'")).await?;
    other
        .refuses("42501", "create function f() returns int language sql set duplex.origin = 'peer' as 'select 1'")
        .await?;
    // A reset does not lift a superuser's mark either, nor is what others set inherited by SECURITY DEFINER.
    node.exec("create function as_superuser(text) returns void language sql security definer as 'insert into public.t (v) values ($1)'")
        .await?;
    let planted = node.connect_as(&role).await?;
    planted.exec("set duplex.origin = 'peer'; select as_superuser('x')").await?;
    assert_eq!(origin(&planted).await?, "");

    // Every one of these rows was captured: each session's library came with its first.
    assert_eq!(node.number("select count(*) from t").await?, 6);
    assert_eq!(node.queued().await?, 6);
    node.exec(&format!("drop owned by \"{role}\"; alter database \"{database}\" owner to postgres")).await?;
    node.exec(&format!("drop owned by \"{role}\"; drop role \"{role}\"")).await
}

/// A right that a superuser gives, to a role that is none.
#[tokio::test]
async fn a_role_may_be_granted_the_mark() -> Result<()> {
    let (lab, role) = node_and_role().await?;
    let node = lab.node(0);
    lab.create_everywhere("create table t (id int generated always as identity primary key, v text)", &["t"]).await?;
    node.exec(&format!("grant insert, select on t to \"{role}\"; grant set on parameter duplex.origin to \"{role}\""))
        .await?;
    let session = node.connect_as(&role).await?;
    session.exec("set duplex.origin = 'peer'; insert into t (v) values ('not captured')").await?;
    // No replication origin is set up: the commit is an ordinary one.
    session.exec("begin; insert into t (v) values ('nor this'); commit; set duplex.origin = ''").await?;
    assert_eq!(node.queued().await?, 0);
    session.exec("insert into t (v) values ('captured')").await?;
    assert_eq!(node.queued().await?, 1);
    node.exec(&format!(
        "revoke set on parameter duplex.origin from \"{role}\"; drop owned by \"{role}\"; drop role \"{role}\""
    ))
    .await
}

#[tokio::test]
async fn an_ordinary_role_can_neither_read_the_queue_nor_drain_nor_apply() -> Result<()> {
    let (lab, role) = node_and_role().await?;
    let node = lab.node(0);
    lab.create_everywhere("create table t (id int generated always as identity primary key, v text)", &["t"]).await?;
    node.exec(&format!("grant insert on t to \"{role}\"")).await?;
    let session = node.connect_as(&role).await?;
    load(&session).await?;
    for relation in relations(node).await? {
        session.refuses("42501", &format!("select * from {relation}")).await?;
        session.refuses("42501", &format!("delete from {relation}")).await?;
    }
    // The schema itself is closed; and were it opened, so is everything in it.
    let calls = calls(node).await?;
    assert!(calls.len() > 15, "{calls:?}");
    for open in [false, true] {
        if open {
            node.exec(&format!("grant usage on schema duplex to \"{role}\"")).await?;
        }
        for call in &calls {
            session.refuses("42501", call).await?;
        }
    }
    for relation in relations(node).await? {
        session.refuses("42501", &format!("select * from {relation}")).await?;
    }
    session.exec("create table own (id int primary key)").await?;
    session
        .refuses("42501", "create trigger t after insert on own for each row execute function duplex.capture_row()")
        .await?;
    session
        .refuses("42501", "create trigger t after truncate on own execute function duplex.capture_truncate()")
        .await?;
    node.exec(&format!("drop owned by \"{role}\"; drop role \"{role}\"")).await
}

/// Tables, views and sequences of the schema.
async fn relations(node: &Node) -> Result<Vec<String>> {
    let rows = node
        .rows("select oid::regclass::text from pg_class where relnamespace = 'duplex'::regnamespace and relkind in ('r', 'v', 'p', 'S')")
        .await?;
    Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
}

/// A call of each routine of the schema, but for trigger functions. A strict function of a constant NULL is never called,
/// so the NULLs are no constants; procedures take no subquery, and are not strict.
async fn calls(node: &Node) -> Result<Vec<String>> {
    let rows = node
        .rows(
            "select format('%s duplex.%I(%s)', case prokind when 'p' then 'call' else 'select' end, proname, \
                        (select string_agg(format(case when prokind = 'p' then 'null::%s' \
                                                       when provariadic <> 0 and n = pronargs then 'variadic (select null::%s)' \
                                                       else '(select null::%s)' end, t::regtype), ', ' order by n) \
                           from unnest(proargtypes) with ordinality u (t, n))) \
               from pg_proc where pronamespace = 'duplex'::regnamespace \
                and prorettype not in ('trigger'::regtype, 'event_trigger'::regtype)",
        )
        .await?;
    Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
}

/// What the catalog says of every object: nothing is PUBLIC's, definer functions have a search path of their own, and
/// people find a comment.
#[tokio::test]
async fn the_catalog_of_the_schema() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let session = lab.node(0).connect().await?;
    let none = async |what: &str, sql: &str| -> Result<()> {
        let rows = session.rows(sql).await?;
        assert!(rows.is_empty(), "{what}: {rows:?}");
        Ok(())
    };
    none(
        "security definer without a fixed search path",
        "select oid::regprocedure from pg_proc where pronamespace = 'duplex'::regnamespace and prosecdef \
            and not coalesce(proconfig @> array['search_path=pg_catalog, pg_temp'], false)",
    )
    .await?;
    none(
        "PUBLIC may use",
        "select p.oid::regprocedure::text from pg_proc p, aclexplode(coalesce(proacl, acldefault('f', proowner))) a
          where pronamespace = 'duplex'::regnamespace and a.grantee = 0
         union all
         select c.oid::regclass::text from pg_class c, aclexplode(coalesce(relacl, acldefault('r', relowner))) a
          where relnamespace = 'duplex'::regnamespace and a.grantee = 0
         union all
         select n.nspname from pg_namespace n, aclexplode(coalesce(nspacl, acldefault('n', nspowner))) a
          where nspname = 'duplex' and a.grantee = 0",
    )
    .await?;
    // What is called from outside is documented; check_name and the like are nobody's business.
    none(
        "no comment on",
        "select c.oid::regclass::text from pg_class c
          where relnamespace = 'duplex'::regnamespace and relkind in ('r', 'v') and obj_description(oid, 'pg_class') is null
         union all
         select p.oid::regprocedure::text from pg_proc p
          where pronamespace = 'duplex'::regnamespace and obj_description(oid, 'pg_proc') is null
            and (has_function_privilege('duplex_relay', oid, 'execute')
                 or proname in ('create_node', 'add_peer', 'remove_peer', 'enable', 'disable', 'enable_schema', 'retry_peer',
                                'skip_transaction', 'resync_peer', 'pause_peer', 'resume_peer', 'capture_row', 'capture_truncate'))
         union all
         select rolname::text from pg_roles where rolname = 'duplex_relay' and shobj_description(oid, 'pg_authid') is null",
    )
    .await?;
    // The views that operators look at run as their owner and show no more than they say.
    none(
        "an operator's view of everything",
        "select c.oid::regclass from pg_class c where relnamespace = 'duplex'::regnamespace and relkind in ('r', 'S', 'v')
            and has_table_privilege('duplex_relay', oid, 'insert, update, delete, truncate')",
    )
    .await
}

/// The relay's role has exactly what the relay calls, is no superuser, and owns nothing.
#[tokio::test]
async fn the_relays_role_has_what_it_needs_and_no_more() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    let relay = node.connect_as("relay").await?;
    relay.refuses("55000", "select duplex.apply_position()").await?;
    for statement in [
        "insert into t values (1, 'x')",
        "select * from t",
        "select * from duplex.queue",
        "select * from duplex.queue_0",
        "select * from duplex.drain_state",
        "update duplex.peer_registry set state = 'running'",
        "insert into duplex.table_registry values (1)",
        "select duplex.create_node('x')",
        "select duplex.add_peer('x')",
        "select duplex.remove_peer('x')",
        "select duplex.enable('t')",
        "select duplex.disable('t')",
        "select duplex.resync_peer('x', 1)",
        "select duplex.retry_peer('x')",
        "select duplex.pause_peer('x')",
        "select duplex.resume_peer('x')",
        "set session_replication_role = replica",
        "set duplex.origin = 'x'",
        "select pg_replication_origin_create('x')",
        "set role postgres",
        "create table duplex.x ()",
        "truncate duplex.queue_0",
    ] {
        relay.refuses("42501", statement).await?;
    }
    let attributes = "select concat(rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls, rolcanlogin) \
                        from pg_roles where rolname = 'duplex_relay'";
    assert_eq!(relay.one(attributes).await?, "ffffff");
    let owned = "select count(*) from pg_shdepend where refobjid = 'duplex_relay'::regrole and deptype = 'o'";
    assert_eq!(node.number(owned).await?, 0);
    // In a marked session neither: it applies what comes, and writes nothing else.
    node.exec("select duplex.add_peer('peer')").await?;
    relay.exec("select duplex.apply_open('peer')").await?;
    relay.refuses("42501", "insert into public.t values (1, 'x')").await?;
    relay.refuses("42501", "set duplex.origin = ''").await?;
    relay.exec("reset all; discard plans").await?;
    assert_eq!(origin(&relay).await?, "peer");
    Ok(())
}

/// Code of a table's owner that runs while the relay applies has the owner's rights and not the relay's, and leaves
/// nothing behind in the relay's session.
#[tokio::test]
async fn an_owners_code_cannot_use_the_relays_rights() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    let role = format!("mallory-{}", b.name());
    a.exec(
        "create table t (id int primary key, v int); create table x (id int primary key, v int); \
         create table other (id int primary key, n int[])",
    )
    .await?;
    b.exec(&format!(
        "create role \"{role}\" login; grant create on schema public to \"{role}\"; create table other (id int primary key, n int[])"
    ))
    .await?;
    let mallory = b.connect_as(&role).await?;
    mallory
        .exec(
            "create table seen (place text, who text, may bool, problem text);
             -- Everything that runs on apply comes by here.
             create function spy(place text) returns int language plpgsql volatile as $$
             declare problem text;
             begin
                 perform set_config('array_nulls', 'off', false);
                 begin
                     perform set_config('duplex.origin', '', false);
                 exception when others then problem := sqlstate; end;
                 insert into public.seen values (place, current_user,
                     has_schema_privilege('duplex', 'usage') or pg_has_role(current_user, 'duplex_relay', 'member'), problem);
                 return 1;
             end $$;
             create function sly(place text) returns int language plpgsql immutable as $$ begin return public.spy(place); end $$;
             create function by_trigger() returns trigger language plpgsql as $$
             begin perform public.spy(tg_name); return new; end $$;
             create table t (id int primary key, v int check (spy('check') = 1), d int default sly('default'),
                             w int default spy('volatile default'));
             create index on t ((sly('index') + v)); create index on t (v) where sly('predicate') = 1;
             create trigger always_before before insert on t for each row execute function by_trigger();
             create constraint trigger deferred after insert on t deferrable initially deferred for each row
                 execute function by_trigger();
             create trigger replica_after after update on t for each row execute function by_trigger();
             alter table t enable always trigger always_before, enable always trigger deferred, enable replica trigger replica_after;
             create trigger emptied after truncate on t execute function by_trigger(); alter table t enable always trigger emptied;
             create function per_row(n int) returns int language plpgsql immutable as
             $$ begin perform public.spy('deferred check'); return n; end $$;
             create table x (id int primary key, v int, exclude using btree (per_row(v) with =) deferrable initially deferred)",
        )
        .await?;
    lab.enable(&["t", "x", "other"]).await?;
    mallory.exec("truncate seen").await?;
    a.exec("begin; insert into t values (1, 1); update t set v = 2; insert into other values (1, '{1,null}'); commit")
        .await?;
    a.exec("begin; insert into x values (1, 1), (2, 2); update x set v = 3 - v; commit").await?;
    a.exec("begin; truncate t; insert into other values (3, '{null}'); commit").await?;
    lab.settled().await?;
    let seen = mallory.rows("select distinct place, who, may, problem from seen order by place").await?;
    for row in &seen {
        assert_eq!((row[1].as_deref(), row[2].as_deref()), (Some(&*role), Some("f")), "{row:?}");
        assert_eq!(row[3].as_deref(), Some("42501"), "{row:?}");
    }
    let places: Vec<_> = seen.iter().filter_map(|row| row[0].as_deref()).collect();
    for place in [
        "always_before",
        "check",
        "default",
        "deferred",
        "deferred check",
        "emptied",
        "index",
        "predicate",
        "replica_after",
        "volatile default",
    ] {
        assert!(places.contains(&place), "{place} did not run: {places:?}");
    }
    // A setting that it changed did not reach the next owner's rows.
    assert_eq!(b.one("select string_agg(n::text, '' order by id) from other").await?, "{1,NULL}{NULL}");
    a.exec("insert into other values (2, '{null,2}')").await?;
    lab.settled().await?;
    lab.assert_equal("other").await?;
    b.exec(&format!("drop owned by \"{role}\" cascade; drop role \"{role}\"")).await
}

/// A payload for a table that is not enabled changes nothing, and is reported.
#[tokio::test]
async fn a_change_of_a_table_that_is_not_enabled() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.exec_everywhere("create table t (id int primary key, v text); create table u (id int primary key)").await?;
    a.exec("select duplex.enable('t'); select duplex.enable('u')").await?;
    b.exec("select duplex.enable('u')").await?;
    a.exec("begin; insert into u values (1); insert into t values (1, 'x'); commit").await?;
    let error = until("the stream to stop", PATIENCE, async || {
        let rows = b.rows("select sqlstate, message, hint from duplex.apply_errors").await?;
        Ok(rows.into_iter().next().ok_or("no error yet"))
    })
    .await?;
    assert_eq!(error[1].as_deref(), Some("table public.t is not enabled for replication here"));
    assert!(error[2].as_deref().is_some_and(|hint| hint.contains("duplex.enable")), "{error:?}");
    let state = "select state || ' ' || (reason is not null) from duplex.peers";
    until("the state to be shown", PATIENCE, async || {
        let shown = b.one(state).await?;
        Ok(duplex_lab::wait::when(shown == "stopped true", shown))
    })
    .await?;
    assert_eq!(b.number("select (select count(*) from t) + (select count(*) from u)").await?, 0);
    b.exec(&format!("select duplex.enable('t'); select duplex.retry_peer('{}')", a.name())).await?;
    lab.converges(&["t", "u"]).await
}
