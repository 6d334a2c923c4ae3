//! What is remembered of deleted keys and released values goes once nobody can ask for it, and not before.

use anyhow::{Result, ensure};
use duplex_lab::{Lab, Node, PATIENCE, until};

const TABLE: &str = "create table t (id int primary key, v text, mail text unique)";
const HELD: &str = "select concat_ws(' ', held_because, held_by) from duplex.status";
const ROWS: &str = "select register_rows from duplex.status";
const TOMBSTONES: &str = "select sum(\"rows\") from duplex.registers_status where kind = 'tombstones'";

/// Does what the relay has done every ten seconds, until a query gives this text.
async fn maintained(node: &Node, sql: &str, text: &str) -> Result<()> {
    let session = node.connect().await?;
    until(&format!("{text} from {sql} on {}", node.name()), PATIENCE, async || {
        session.exec("select duplex.maintain()").await?;
        let found = session.one(sql).await?;
        Ok(if found == text { Ok(()) } else { Err(found) })
    })
    .await
}

async fn lab(nodes: usize) -> Result<Lab> {
    let lab = Lab::builder().nodes(nodes).heartbeats("100ms").start().await?;
    lab.create_everywhere(TABLE, &["t"]).await?;
    Ok(lab)
}

#[tokio::test]
async fn registers_shrink_to_nothing_on_nodes_at_rest() -> Result<()> {
    let builder = Lab::builder().nodes(2).heartbeats("100ms").setting("autovacuum_naptime", "1s");
    let lab = builder.start().await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(&format!("{TABLE}; create table s (id int primary key)"), &["t", "s"]).await?;
    a.exec("insert into t select i, 'x', 'm' || i from generate_series(1, 300) i; insert into s values (1)").await?;
    lab.settled().await?;
    a.exec("delete from t where id <= 100; truncate s").await?;
    b.exec("update t set mail = 'n' || id where id > 200").await?;
    lab.converges(&["t", "s"]).await?;
    let kinds = "select string_agg(distinct kind, ' ' order by kind) from duplex.registers_status where \"rows\" > 0";
    for node in lab.nodes() {
        assert_eq!(node.one(kinds).await?, "claims tombstones truncate");
    }
    // Nobody calls anything: the relays have it done.
    for node in lab.nodes() {
        node.shows(ROWS, "0").await?;
    }
    // The files are cut off again, and with them the look-ups of new rows.
    let sizes = "select sum(pg_relation_size(register)) from duplex.registers";
    for node in lab.nodes() {
        node.shows(sizes, "0").await?;
    }
    a.exec("insert into t select i, 'again', 'm' || i from generate_series(1, 100) i").await?;
    b.exec("delete from t where id between 90 and 110").await?;
    lab.converges(&["t", "s"]).await?;
    for node in lab.nodes() {
        assert_eq!(node.one("select count(*) from duplex.conflict_history").await?, "0");
    }
    lab.stop_relays()
}

#[tokio::test]
async fn a_peer_that_is_away_holds_what_its_late_changes_ask_for() -> Result<()> {
    let lab = lab(3).await?;
    let [a, b] = lab.pair();
    let c = lab.node(2);
    lab.create_everywhere("create table s (id int primary key)", &["s"]).await?;
    a.exec("insert into t values (1, 'x', 'm1'), (2, 'x', 'm2'), (3, 'x', 'm3')").await?;
    lab.converges(&["t"]).await?;
    for node in [a, b] {
        node.shows(&format!("select settled is not null from duplex.peers where name = '{}'", c.name()), "t").await?;
    }
    // Older than what is done on the others meanwhile, and published after it.
    c.relay().stop()?;
    c.exec("update t set v = 'late' where id = 1; update t set mail = 'm9' where id = 3; insert into s values (1)")
        .await?;
    a.exec("delete from t where id = 1; insert into t values (9, 'x', 'm9'); update t set mail = 'm8' where id = 9")
        .await?;
    a.exec("truncate s").await?;
    b.shows("select count(*) from duplex.truncates", "1").await?;
    for node in [a, b] {
        // The others go on saying that nothing older comes from them; this one does not.
        maintained(node, HELD, &format!("peer {}", c.name())).await?;
        let sql = "select held_since = (select settled from duplex.peers where name = held_by) and forgotten_to = held_since \
                     from duplex.status";
        assert_eq!(node.one(sql).await?, "t");
        assert_eq!(node.one(TOMBSTONES).await?, "1");
        assert_eq!(node.one("select count(*) from duplex.truncates").await?, "1");
    }
    c.relay().start()?;
    lab.converges(&["t", "s"]).await?;
    assert_eq!(a.one("select count(*) from s").await?, "0");
    assert_eq!(a.dump("t", &["v"]).await?, ["id=2 | mail=m2", "id=9 | mail=m8"]);
    let decided = "select string_agg(kind || ' ' || resolution, ', ' order by id) from duplex.conflict_history";
    assert_eq!(a.one(decided).await?, "update_missing skipped, update_exists hidden, update_missing skipped");
    for node in lab.nodes() {
        maintained(node, ROWS, "0").await?;
    }
    lab.stop_relays()
}

#[tokio::test]
async fn a_peer_that_is_removed_releases_what_it_held() -> Result<()> {
    let lab = lab(3).await?;
    let [a, b] = lab.pair();
    let c = lab.node(2);
    a.exec("insert into t values (1, 'x', 'm1')").await?;
    lab.converges(&["t"]).await?;
    c.relay().stop()?;
    a.exec("delete from t where id = 1").await?;
    b.shows("select count(*) from t", "0").await?;
    for node in [a, b] {
        maintained(node, HELD, &format!("peer {}", c.name())).await?;
        assert_eq!(node.one(TOMBSTONES).await?, "1");
        node.exec(&format!("select duplex.remove_peer('{}')", c.name())).await?;
        maintained(node, ROWS, "0").await?;
    }
    // The last one gone, too: nobody is left who could ask.
    a.exec(&format!("select duplex.remove_peer('{}')", b.name())).await?;
    a.exec("insert into t values (2, 'x', 'm2'); delete from t where id = 2").await?;
    maintained(a, ROWS, "0").await?;
    // One that is added and has not spoken holds everything, from when it was added.
    a.exec(&format!("select duplex.add_peer('{}')", c.name())).await?;
    a.exec("insert into t values (3, 'x', 'm3'); delete from t where id = 3").await?;
    a.exec("select duplex.maintain()").await?;
    let sql = "select concat_ws(' ', held_because, held_by, forgotten_to is null, register_rows > 0, \
                      held_since = (select added_at from duplex.peers)) from duplex.status";
    assert_eq!(a.one(sql).await?, format!("peer {} t t t", c.name()));
    lab.stop_relays()
}

#[tokio::test]
async fn a_stream_that_stands_still_holds_what_has_not_been_applied() -> Result<()> {
    let lab = lab(2).await?;
    let [a, b] = lab.pair();
    b.exec("insert into t values (1, 'x', 'm1'); alter table t add constraint no_bad check (v <> 'bad')").await?;
    lab.converges(&["t"]).await?;
    a.exec("update t set v = 'bad' where id = 1").await?;
    b.stream_is(a.name(), "stopped").await?;
    b.exec("delete from t where id = 1").await?;
    let sql = "select concat_ws(' ', held_because, held_by, standing_still[1]) from duplex.status";
    maintained(b, sql, &format!("peer {0} {0}", a.name())).await?;
    assert_eq!(b.one(TOMBSTONES).await?, "1");
    b.exec(&format!("alter table t drop constraint no_bad; select duplex.retry_peer('{}')", a.name())).await?;
    lab.converges(&["t"]).await?;
    assert_eq!(b.one("select count(*) from t").await?, "0");
    for node in lab.nodes() {
        maintained(node, ROWS, "0").await?;
    }
    lab.stop_relays()
}

#[tokio::test]
async fn a_parked_change_holds_what_it_will_ask_for() -> Result<()> {
    let lab = lab(2).await?;
    let [a, b] = lab.pair();
    b.exec("alter table t add constraint no_bad check (v <> 'bad'); select duplex.set_error_policy('park')").await?;
    a.exec("insert into t values (2, 'bad', 'm2')").await?;
    b.shows("select count(*) from duplex.parked", "1").await?;
    // Later than the parked change, which must not bring the row back.
    b.exec("insert into t values (2, 'here', 'm2'); delete from t where id = 2").await?;
    maintained(b, HELD, &format!("parked change {}", a.name())).await?;
    let sql = "select concat_ws(' ', parked, held_since = (select parked_at from duplex.parked)) from duplex.status";
    assert_eq!(b.one(sql).await?, "1 t");
    assert_eq!(b.one(TOMBSTONES).await?, "1");
    b.exec("alter table t drop constraint no_bad").await?;
    b.shows("select count(*) from duplex.parked", "0").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(b.one("select count(*) from t").await?, "0");
    maintained(b, ROWS, "0").await?;
    lab.stop_relays()
}

/// What is remembered of keys of a table that are gone.
fn tombstones(table: &str) -> String {
    format!(
        "select sum(\"rows\") from duplex.registers_status where \"table\" = '{table}'::regclass and kind = 'tombstones'"
    )
}

/// Three nodes with tables of every policy, and two rows in each.
async fn lab_of_all_policies() -> Result<Lab> {
    let lab = lab(3).await?;
    lab.exec_everywhere(
        "create table merged (id int primary key, v text, w text); select duplex.enable('merged', 'column_merge');
         create table counted (id int primary key, n int not null);
         select duplex.enable('counted', delta_columns => '{n}')",
    )
    .await?;
    let c = lab.node(2);
    c.exec("insert into t values (1, 'x', 'm1'), (2, 'x', 'm2'); insert into counted values (1, 10), (2, 20)").await?;
    c.exec("insert into merged values (1, 'x', 'x'), (2, 'x', 'x')").await?;
    lab.converges(&["t", "merged", "counted"]).await?;
    Ok(lab)
}

/// The third node deletes rows, and the second one hears from everybody that nothing older comes. Where there is nothing
/// but versions that is enough. With counters or merged columns it is not as long as the first has not got all of the
/// third's changes, which it says in its S.
async fn is_remembered_for_the_first(lab: &Lab) -> Result<()> {
    let ([a, b], c) = (lab.pair(), lab.node(2));
    c.exec("delete from t where id = 1; delete from merged where id = 1; delete from counted where id = 1").await?;
    b.shows("select count(*) from t", "1").await?;
    // Later by some seconds: a node does not ask itself anew for each heartbeat what it holds.
    let gone = b.one("select clock_timestamp() + '3s'").await?;
    let heard = format!(
        "select bool_and((settled > '{gone}' and (held > '{gone}' or name = '{}')) is true) from duplex.peers",
        a.name()
    );
    b.shows(&heard, "t").await?;
    maintained(b, &tombstones("t"), "0").await?;
    b.connect().await?.each(&["select duplex.maintain()"; 3]).await?;
    for table in ["merged", "counted"] {
        assert_eq!(b.one(&tombstones(table)).await?, "1", "{table}");
    }
    assert_eq!(b.one(HELD).await?, format!("peer {}", a.name()));
    Ok(())
}

#[tokio::test]
async fn counters_and_merged_columns_are_remembered_until_every_node_has_them() -> Result<()> {
    let lab = lab_of_all_policies().await?;
    let (a, c) = (lab.node(0), lab.node(2));
    a.hold(c.name(), false).await?;
    is_remembered_for_the_first(&lab).await?;
    a.resume(c.name()).await?;
    lab.converges(&["t", "merged", "counted"]).await?;
    for (node, table) in lab.nodes().iter().flat_map(|node| [(node, "merged"), (node, "counted")]) {
        maintained(node, &tombstones(table), "0").await?;
    }
    lab.stop_relays()
}

#[tokio::test]
async fn what_is_parked_elsewhere_is_not_there_yet() -> Result<()> {
    let lab = lab_of_all_policies().await?;
    let (a, c) = (lab.node(0), lab.node(2));
    a.exec("alter table merged add constraint no_bad check (v <> 'bad'); select duplex.set_error_policy('park')")
        .await?;
    c.exec("update merged set v = 'bad' where id = 2").await?;
    a.shows("select count(*) from duplex.parked", "1").await?;
    is_remembered_for_the_first(&lab).await?;
    a.exec("alter table merged drop constraint no_bad").await?;
    a.shows("select count(*) from duplex.parked", "0").await?;
    lab.converges(&["t", "merged", "counted"]).await?;
    for (node, table) in lab.nodes().iter().flat_map(|node| [(node, "merged"), (node, "counted")]) {
        maintained(node, &tombstones(table), "0").await?;
    }
    lab.stop_relays()
}

/// One node without relay, that has heard from its peer up to now; the caller says so again where time has gone on.
async fn alone() -> Result<Lab> {
    let lab = Lab::builder().nodes(2).without_relays().start().await?;
    lab.create_everywhere(TABLE, &["t"]).await?;
    Ok(lab)
}

const HEARD: &str = "update duplex.peer_registry set settled = clock_timestamp(), held = clock_timestamp(); \
                     update duplex.drain_state set settled = clock_timestamp()";

#[tokio::test]
async fn forgetting_goes_in_steps_and_waits_for_nobody() -> Result<()> {
    let lab = alone().await?;
    let a = lab.node(0);
    a.exec("insert into t select i, 'x', 'm' || i from generate_series(1, 50) i").await?;
    a.exec("delete from t").await?;
    let session = a.connect().await?;
    session.exec("set statement_timeout = '10s'").await?;
    assert_eq!(session.one("select duplex.forget()").await?, "f");
    assert_eq!(session.one(ROWS).await?, "100");
    session.exec(HEARD).await?;
    // A writer has just replaced a key's claim, and has not committed.
    let writer = a.connect().await?;
    writer.exec("begin; insert into t values (7, 'y', 'm7'); delete from t where id = 7").await?;
    assert_eq!(session.one("select duplex.forget(30)").await?, "t");
    assert_eq!(session.one(ROWS).await?, "70");
    while session.one("select duplex.forget(30)").await? == "t" {}
    // What it has replaced stays as it was before: the claim. The tombstone is only replaced at its commit.
    assert_eq!(session.one(ROWS).await?, "1");
    writer.exec("commit").await?;
    session.exec(HEARD).await?;
    assert_eq!(session.one("select duplex.forget()").await?, "f");
    assert_eq!(session.one(ROWS).await?, "0");
    // A register that somebody has for himself is left alone, and so is all of it while another forgets.
    a.exec("insert into t values (8, 'y', 'm8'); delete from t where id = 8").await?;
    session.exec(HEARD).await?;
    let register = a.one("select register::regclass from duplex.registers where of_index = 0").await?;
    writer.exec(&format!("begin; lock table {register} in access exclusive mode")).await?;
    session.exec("select duplex.forget()").await?;
    writer.exec("commit").await?;
    assert_eq!(session.one(ROWS).await?, "1");
    writer.exec("begin; select duplex.forget()").await?;
    assert_eq!(session.one("select duplex.forget()").await?, "f");
    // Writers go on meanwhile, also over a key that is just being forgotten.
    session.exec("insert into t values (9, 'y', 'm9'); delete from t where id = 9").await?;
    writer.exec("commit").await?;
    session.exec(HEARD).await?;
    session.exec("select duplex.forget()").await?;
    assert_eq!(session.one(ROWS).await?, "0");
    Ok(())
}

#[tokio::test]
async fn a_version_that_is_later_than_the_horizon_stays() -> Result<()> {
    let lab = alone().await?;
    let a = lab.node(0);
    a.exec("insert into t select i, 'x' from generate_series(1, 3) i").await?;
    a.exec("delete from t where id = 1").await?;
    a.exec(HEARD).await?;
    a.exec("delete from t where id = 2").await?;
    // Whoever is furthest behind counts, this node itself too, and also where a peer says it by S only.
    for behind in [
        "update duplex.drain_state set settled = '2001-01-01'",
        "update duplex.peer_registry set settled = null",
        "update duplex.table_registry set delta_columns = '{v}'; update duplex.peer_registry set held = '2001-01-01'",
        "update duplex.table_registry set resolution = 'column_merge'; update duplex.peer_registry set held = '2001-01-01'",
    ] {
        let session = a.connect().await?;
        session.exec("begin").await?;
        session.exec(behind).await?;
        session.exec("select duplex.forget()").await?;
        assert_eq!(session.one(ROWS).await?, "2", "{behind}");
        session.exec("rollback").await?;
    }
    a.exec("select duplex.forget()").await?;
    assert_eq!(a.one("select standing from duplex.row_version('t', '2')").await?, "gone");
    assert_eq!(a.one("select standing is null from duplex.row_version('t', '1')").await?, "t");
    Ok(())
}

#[tokio::test]
async fn a_node_that_never_had_a_peer_forgets_nothing() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    lab.create_everywhere(TABLE, &["t"]).await?;
    let a = lab.node(0);
    a.exec("insert into t values (1, 'x', 'm'); delete from t where id = 1").await?;
    a.exec(&format!("{HEARD}; select duplex.maintain()")).await?;
    assert_eq!(a.one(HELD).await?, format!("no peer yet {}", a.name()));
    ensure!(a.number(ROWS).await? == 2, "what its first peer may ask for is gone");
    Ok(())
}

#[tokio::test]
async fn what_is_left_of_a_counter_is_never_forgotten() -> Result<()> {
    let lab = Lab::builder().nodes(2).without_relays().start().await?;
    lab.exec_everywhere(
        "create table counted (id int primary key, n int not null);
         select duplex.enable('counted', delta_columns => '{n}')",
    )
    .await?;
    let a = lab.node(0);
    a.exec("insert into counted values (1, 10), (2, 20)").await?;
    // A DELETE takes away what it sees, a TRUNCATE takes nothing away from what the counters have come to.
    a.connect().await?.each(&["delete from counted where id = 1", "truncate counted"]).await?;
    assert_eq!(a.one(&tombstones("counted")).await?, "2");
    a.exec(HEARD).await?;
    maintained(a, &tombstones("counted"), "1").await?;
    a.connect().await?.each(&["select duplex.maintain()"; 3]).await?;
    assert_eq!(a.one("select standing is null from duplex.row_version('counted', '1')").await?, "t");
    assert_eq!(a.one("select standing from duplex.row_version('counted', '2')").await?, "gone");
    Ok(())
}
