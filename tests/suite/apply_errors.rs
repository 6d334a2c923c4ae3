//! A change that cannot be applied stops its stream at that very change, others go on, and an operator decides.

use anyhow::{Context, Result, ensure};
use duplex_lab::{Lab, PATIENCE, topic, until};

/// A table of which the second node refuses some rows, and one that it takes.
async fn three() -> Result<Lab> {
    let lab = Lab::shared(3).await?;
    let tables = "create table t (id int primary key, v text); create table u (id int primary key)";
    lab.create_everywhere(tables, &["t", "u"]).await?;
    lab.node(1).exec("alter table t add constraint no_secrets check (v <> 's3cret')").await?;
    Ok(lab)
}

const FAILED: &str = "select ordinal, operation, table_name, key, new_row, sqlstate, message, detail, xid \
                      from duplex.apply_errors order by id desc limit 1";

#[tokio::test]
async fn the_very_change_that_fails_is_known_and_can_be_tried_again() -> Result<()> {
    let lab = three().await?;
    let [a, b] = lab.pair();
    a.exec("begin; insert into u values (1); insert into t values (1, 'x'), (2, 's3cret'), (3, 'y'); commit").await?;
    let reason = b.stream_is(a.name(), "stopped").await?;
    ensure!(reason.contains("no_secrets") && reason.contains("change 3 of its transaction"), "{reason}");
    let row = b.rows(FAILED).await?.remove(0);
    let text = |i: usize| row[i].clone().unwrap_or_default();
    assert_eq!([text(0), text(1), text(2)], ["3", "insert", "public.t"]);
    assert_eq!([text(3), text(4)], [r#"{"id": 2}"#, r#"{"v": "s3cret", "id": 2}"#]);
    assert_eq!(text(5), "23514");
    ensure!(text(6).contains("no_secrets") && text(7).contains("s3cret"), "{row:?}");
    let published = topic::transactions(&topic::read(lab.kafka(), a.name()).await?)?;
    assert_eq!(text(8), published.last().context("published")?.position.xid.to_string());
    assert_eq!(
        b.one("select failed_change ->> 'ordinal' || (failed_change ->> 'table_name') from duplex.peers where state = 'stopped'")
            .await?,
        "3public.t"
    );
    // Nothing is half applied; the other peer's stream goes on; the log names the change and shows no values.
    assert_eq!(b.one("select count(*) from t").await?, "0");
    assert_eq!(b.one("select count(*) from u").await?, "0");
    lab.node(2).exec("insert into u values (100)").await?;
    b.shows("select count(*) from u where id = 100", "1").await?;
    let log = b.relay().log_text()?;
    ensure!(log.contains("change 3 of its transaction, insert of public.t") && log.contains("23514"), "{log}");
    ensure!(!log.contains("s3cret"), "a value is in the log");

    b.exec(&format!("alter table t drop constraint no_secrets; select duplex.retry_peer('{}')", a.name())).await?;
    lab.converges(&["t", "u"]).await?;
    let sql = "select resolution || ' by ' || resolved_by from duplex.apply_errors where resolved_at is not null";
    assert_eq!(b.one(sql).await?, "retried by postgres");
    assert_eq!(b.one("select count(*) from duplex.apply_errors").await?, "1");
    lab.stop_relays()
}

#[tokio::test]
async fn one_change_can_be_left_out_and_the_rest_of_its_transaction_is_applied() -> Result<()> {
    let lab = three().await?;
    let [a, b] = lab.pair();
    a.exec("insert into t values (1, 'x'), (2, 's3cret'), (3, 'y'), (4, 's3cret')").await?;
    let skip = format!("select duplex.skip_change('{}')", a.name());
    b.stream_is(a.name(), "stopped").await?;
    b.exec(&skip).await?;
    // The next one that fails in the same transaction is another decision.
    b.shows("select ordinal from duplex.apply_errors where resolution is null", "4").await?;
    b.stream_is(a.name(), "stopped").await?;
    // What was decided holds through a restart of the relay.
    b.relay().kill()?;
    b.exec(&skip).await?;
    b.relay().start()?;
    lab.settled().await?;
    assert_eq!(b.dump("t", &[]).await?, ["id=1 | v=x", "id=3 | v=y"]);
    let sql = "select string_agg(ordinal || ' ' || resolution || ' by ' || resolved_by, ', ' order by id) from duplex.apply_errors";
    assert_eq!(b.one(sql).await?, "2 change skipped by postgres, 4 change skipped by postgres");
    a.exec("insert into t values (5, 'z')").await?;
    lab.settled().await?;
    assert_eq!(b.one("select v from t where id = 5").await?, "z");
    lab.stop_relays()
}

#[tokio::test]
async fn a_transaction_can_be_left_out_and_no_other_is() -> Result<()> {
    let lab = three().await?;
    let [a, b] = lab.pair();
    a.exec("insert into t values (1, 'x'), (2, 's3cret')").await?;
    a.exec("insert into t values (3, 'y')").await?;
    b.stream_is(a.name(), "stopped").await?;
    b.exec(&format!("select duplex.skip_transaction('{}')", a.name())).await?;
    lab.settled().await?;
    assert_eq!(b.dump("t", &[]).await?, ["id=3 | v=y"]);
    let sql = "select resolution || ' by ' || resolved_by from duplex.apply_errors";
    assert_eq!(b.one(sql).await?, "transaction skipped by postgres");
    lab.stop_relays()
}

#[tokio::test]
async fn the_change_is_found_in_a_transaction_of_many_chunks() -> Result<()> {
    let lab = three().await?;
    let [a, b] = lab.pair();
    a.exec(
        "insert into t select i, case i when 25000 then 's3cret' else repeat(md5(i::text), 3) end \
           from generate_series(1, 30000) i",
    )
    .await?;
    b.stream_is(a.name(), "stopped").await?;
    assert_eq!(b.one("select ordinal || ' ' || key::text from duplex.apply_errors").await?, r#"25000 {"id": 25000}"#);
    assert_eq!(b.one("select count(*) from t").await?, "0");
    b.exec(&format!("select duplex.skip_change('{}')", a.name())).await?;
    lab.settled().await?;
    assert_eq!(b.one("select count(*) from t").await?, "29999");
    lab.stop_relays()
}

#[tokio::test]
async fn missing_tables_columns_and_truncates_that_fail_are_named_too() -> Result<()> {
    let lab = three().await?;
    let [a, b] = lab.pair();
    let failed = async |state: &str, operation: &str| -> Result<()> {
        b.stream_is(a.name(), "stopped").await?;
        let row = b.rows(FAILED).await?.remove(0);
        ensure!(row[5].as_deref() == Some(state) && row[1].as_deref() == Some(operation), "{row:?}");
        Ok(())
    };
    let retry = format!("select duplex.retry_peer('{}')", a.name());
    a.exec("alter table t add column w int; insert into t values (1, 'x', 7)").await?;
    failed("42703", "insert").await?;
    b.exec(&format!("alter table t add column w int; {retry}")).await?;
    lab.node(2).exec("alter table t add column w int").await?;
    b.shows("select w from t where id = 1", "7").await?;

    a.exec("create table only_here (id int primary key); select duplex.enable('only_here'); insert into only_here values (1)")
        .await?;
    failed("42P01", "insert").await?;
    b.exec("create table only_here (id int primary key)").await?;
    b.exec(&retry).await?;
    failed("55000", "insert").await?;
    b.exec(&format!("select duplex.enable('only_here'); {retry}")).await?;
    b.shows("select count(*) from only_here", "1").await?;

    b.exec("create table refers (id int references u)").await?;
    a.exec("insert into u values (1); truncate u").await?;
    failed("0A000", "truncate").await?;
    b.exec(&format!("drop table refers; {retry}")).await?;
    b.shows("select count(*) from u", "0").await?;
    b.stream_is(a.name(), "running").await?;
    Ok(())
}

#[tokio::test]
async fn values_that_a_column_does_not_take_stop_the_stream_until_it_does() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    a.exec("create type mood as enum ('sad', 'happy', 'new')").await?;
    b.exec("create type mood as enum ('sad', 'happy')").await?;
    let wide = "create table t (id int primary key, label text, number bigint, mood mood, needed text)";
    let narrow = "create table t (id int primary key, label varchar(5), number int, mood mood, needed text not null default '-')";
    a.exec(wide).await?;
    b.exec(narrow).await?;
    lab.enable(&["t"]).await?;
    let cases = [
        ("label, needed) values ('longer', '')", "22001", "alter table t alter label type text"),
        ("number, needed) values (5000000000, '')", "22003", "alter table t alter number type bigint"),
        ("mood, needed) values ('new', '')", "22P02", "alter type mood add value 'new'"),
        ("label) values ('x')", "23502", "alter table t alter needed drop not null"),
    ];
    for (id, (row, sqlstate, mend)) in cases.into_iter().enumerate() {
        a.exec(&format!("insert into t (id, {}", row.replace("values (", &format!("values ({id}, ")))).await?;
        let reason = b.stream_is(a.name(), "stopped").await?;
        ensure!(reason.contains("duplex.retry_peer"), "{reason}");
        assert_eq!(b.rows(FAILED).await?.remove(0)[5].as_deref(), Some(sqlstate), "{reason}");
        b.exec(mend).await?;
        b.exec(&format!("select duplex.retry_peer('{}')", a.name())).await?;
        b.shows(&format!("select count(*) from t where id = {id}"), "1").await?;
    }
    lab.converges(&["t"]).await?;
    lab.stop_relays()
}

#[tokio::test]
async fn what_is_no_record_stops_the_stream_and_can_be_left_out() -> Result<()> {
    let lab = three().await?;
    let [a, b] = lab.pair();
    a.exec("insert into u values (1)").await?;
    lab.settled().await?;
    topic::publish(lab.kafka(), a.name(), &[b"no record".to_vec()]).await?;
    let reason = b.stream_is(a.name(), "stopped").await?;
    ensure!(reason.contains("cannot be read"), "{reason}");
    for node in &lab.nodes()[1..] {
        node.stream_is(a.name(), "stopped").await?;
        node.exec(&format!("select duplex.skip_transaction('{}')", a.name())).await?;
    }
    a.exec("insert into u values (2)").await?;
    lab.converges(&["u"]).await?;
    lab.stop_relays()
}

/// Each kind of error that passes, met by a change and then gone: the stream goes on by itself and nothing is recorded.
#[tokio::test]
async fn errors_that_pass_are_tried_again_until_they_have_passed() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    b.exec(
        "create table trouble (code text);
         create function trouble() returns trigger language plpgsql as $$
         declare c text := (select code from public.trouble);
         begin
             if c is not null then raise exception 'trouble' using errcode = c; end if;
             return new;
         end $$;
         create trigger trouble before insert on t for each row execute function trouble();
         alter table t enable always trigger trouble",
    )
    .await?;
    let codes = ["40001", "40P01", "55P03", "53100", "53200", "53300", "53400", "57014", "57P01", "57P03", "58030"];
    for (id, code) in codes.iter().enumerate() {
        b.exec(&format!("insert into trouble values ('{code}')")).await?;
        a.exec(&format!("insert into t values ({id}, '{code}')")).await?;
        b.shows(&format!("select reason ~ '{code}' from duplex.peers where state = 'retrying'"), "t").await?;
        b.exec("truncate trouble").await?;
        b.shows(&format!("select v from t where id = {id}"), code).await?;
    }
    lab.converges(&["t"]).await?;
    assert_eq!(b.one("select count(*) from duplex.apply_errors").await?, "0");
    lab.stop_relays()
}

#[tokio::test]
async fn locks_lost_connections_and_too_many_of_them_are_waited_out() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    let cut_all = "select pg_terminate_backend(pid) from pg_stat_activity \
                    where datname = current_database() and usename = 'relay'";
    // A lock that is held for longer than the relay's role waits.
    b.exec(&format!("alter role relay in database \"{}\" set lock_timeout = '100ms'", b.database())).await?;
    b.exec(cut_all).await?;
    let locker = b.connect().await?;
    locker.exec("begin; lock table t").await?;
    a.exec("insert into t values (1, 'x')").await?;
    b.shows("select reason ~ '55P03' from duplex.peers where state = 'retrying'", "t").await?;
    locker.exec("rollback").await?;
    lab.converges(&["t"]).await?;
    // No connection is to be had.
    b.exec(&format!("alter database \"{}\" connection limit 0", b.database())).await?;
    b.exec(cut_all).await?;
    a.exec("insert into t values (2, 'y')").await?;
    until("the relay to notice", PATIENCE, async || {
        Ok(if b.relay().log_text()?.contains("53300") { Ok(()) } else { Err("not a word") })
    })
    .await?;
    b.exec(&format!("alter database \"{}\" connection limit -1", b.database())).await?;
    b.exec("insert into t values (3, 'z')").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(b.one("select count(*) from duplex.apply_errors").await?, "0");
    lab.stop_relays()
}
