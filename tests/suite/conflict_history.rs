//! What is on record of conflicts, and what is not one.

use anyhow::Result;
use duplex_lab::Lab;

const COUNT: &str = "select count(*) from duplex.conflict_history";

#[tokio::test]
async fn writes_that_take_turns_are_no_conflicts() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(
        "create table t (id int primary key, v text, mail text unique);
         create table p (id int, v text, primary key (id)) partition by range (id);
         create table p_low partition of p for values from (0) to (10);
         create table p_high partition of p for values from (10) to (20)",
        &["t", "p"],
    )
    .await?;
    for (node, sql) in [
        (a, "insert into t values (1, 'a', 'x'), (2, 'b', 'y'); insert into p values (1, 'a'), (11, 'b')"),
        (b, "update t set v = v || '1'; update p set v = 'c'"),
        (a, "update t set mail = 'z' where id = 1; update p set id = 12 where id = 1"),
        (b, "update t set mail = 'x' where id = 2; delete from p where id = 11"),
        (a, "begin; update t set v = 'c' where id = 1; update t set v = 'd' where id = 1; commit"),
        (b, "delete from t where id = 1"),
        (a, "insert into t values (1, 'again', 'z'); insert into p values (11, 'again')"),
        (b, "update t set id = 3 where id = 1; truncate p"),
        (a, "insert into t values (1, 'third', 'w'); insert into p values (1, 'new')"),
        (b, "update t set v = 'end'; update p set v = 'end'"),
    ] {
        node.exec(sql).await?;
        lab.converges(&["t", "p"]).await?;
    }
    for node in lab.nodes() {
        assert_eq!(node.number(COUNT).await?, 0, "{:?}", node.rows("select * from duplex.conflict_history").await?);
    }
    lab.stop_relays()
}

#[tokio::test]
async fn a_record_shows_both_rows_and_both_versions() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, \"Größe\" numeric, b bytea)", &["t"]).await?;
    a.exec("insert into t values (7, 1.50, '\\x00ff')").await?;
    lab.settled().await?;
    lab.stop_relays()?;
    a.exec("update t set \"Größe\" = 'NaN'").await?;
    b.exec("update t set \"Größe\" = 3").await?;
    for node in lab.nodes() {
        node.relay().start()?;
    }
    lab.converges(&["t"]).await?;
    let [at_a, at_b] = [a, b].map(|node| async {
        let sql = "select \"table\", kind, resolution, key, local_row, local_origin, incoming_row, incoming_origin, \
                          local_commit_time < incoming_commit_time \
                     from duplex.conflict_history";
        node.rows(sql).await
    });
    let text =
        |row: Vec<Option<String>>| row.into_iter().map(Option::unwrap_or_default).collect::<Vec<_>>().join(" | ");
    let (row_a, row_b) = (r#"{"b": "\\x00ff", "id": 7, "Größe": "NaN"}"#, r#"{"b": "\\x00ff", "id": 7, "Größe": 3}"#);
    let (name_a, name_b) = (a.name(), b.name());
    let head = "public.t | update_origin_differs";
    assert_eq!(
        at_a.await?.into_iter().map(text).collect::<Vec<_>>(),
        [format!(r#"{head} | applied | {{"id": 7}} | {row_a} | {name_a} | {row_b} | {name_b} | t"#)]
    );
    assert_eq!(
        at_b.await?.into_iter().map(text).collect::<Vec<_>>(),
        [format!(r#"{head} | skipped | {{"id": 7}} | {row_b} | {name_b} | {row_a} | {name_a} | f"#)]
    );
    assert_eq!(a.one("select * from duplex.conflict_stats").await?, "public.t");
    let version = "select commit_time || origin from duplex.row_version('t', '7')";
    assert_eq!(a.one(version).await?, b.one(version).await?);
    assert!(a.one(version).await?.ends_with(b.name()));
    a.connect().await?.refuses("22023", "select duplex.row_version('t', '7', '8')").await?;
    lab.stop_relays()
}

#[tokio::test]
async fn old_records_go_and_stay_counted() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    node.exec(
        "insert into duplex.conflict_history
             (recorded_at, \"table\", kind, resolution, incoming_commit_time, incoming_origin)
         select now() - i * interval '1 day', 'public.t', 'insert_exists', 'applied', now(), 'x'
           from generate_series(1, 100) i",
    )
    .await?;
    assert_eq!(node.number("select duplex.clean_conflict_history(50)").await?, 50);
    assert_eq!(node.number(COUNT).await?, 50);
    assert_eq!(node.number("select duplex.clean_conflict_history()").await?, 21);
    assert_eq!(node.number(COUNT).await?, 29);
    assert_eq!(node.number("select conflicts from duplex.conflict_stats").await?, 100);
    Ok(())
}

#[tokio::test]
async fn a_row_that_cannot_be_shown_stops_nothing() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    // The image of a row calls this cast; the row itself does not.
    lab.create_everywhere(
        "create type mood as enum ('low', 'middle', 'high');
         create table t (id int primary key, m mood);
         create function broken(mood) returns json language plpgsql as $$ begin raise 'no image'; end $$;
         create cast (mood as json) with function broken(mood)",
        &["t"],
    )
    .await?;
    a.exec("insert into t values (1, 'low')").await?;
    lab.settled().await?;
    lab.stop_relays()?;
    a.exec("update t set m = 'middle'").await?;
    b.exec("update t set m = 'high'").await?;
    for node in lab.nodes() {
        node.relay().start()?;
    }
    lab.converges(&["t"]).await?;
    assert_eq!(a.one("select m from t").await?, "high");
    assert_eq!(
        a.one("select kind || coalesce(local_row::text, ' without image') from duplex.conflict_history").await?,
        "update_origin_differs without image"
    );
    lab.stop_relays()
}
