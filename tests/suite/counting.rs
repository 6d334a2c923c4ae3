//! Delta columns in every way in which a row is written, and where a sum cannot be written.

use anyhow::{Result, ensure};
use duplex_lab::Lab;

const TABLES: &str = "
    create table t (id int primary key, a smallint not null default 0, b int not null default 0,
                    c bigint not null default 0, d numeric(20, 4) not null default 0, e numeric not null default 0, v text);
    create table parts (id int, part int, n int not null, v text, primary key (id, part)) partition by list (part);
    create table parts_1 partition of parts for values in (1);
    create table parts_2 (v text, n int not null, gone int, part int not null, id int not null);
    alter table parts_2 drop column gone;
    alter table parts attach partition parts_2 for values in (2);
    create table triggered (id int primary key, n int not null, m int not null);
    create function count_again() returns trigger language plpgsql as $$
    begin
        if pg_trigger_depth() = 1 then
            update public.triggered set m = m + 1, n = n + 10 where id = new.id;
        end if;
        return null;
    end $$;
    create trigger \"00_a\" after insert or update on triggered for each row execute function count_again();
";

#[tokio::test]
async fn every_way_to_write_is_an_addition() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.exec_everywhere(TABLES).await?;
    lab.exec_everywhere(
        "select duplex.enable('t', delta_columns => '{e,a,b,c,d}');
         select duplex.enable('parts', delta_columns => '{n}');
         select duplex.enable('triggered', delta_columns => '{m,n}')",
    )
    .await?;
    a.exec("insert into t (id) select generate_series(1, 20); insert into parts select g, 1 + g % 2, g from generate_series(1, 6) g; insert into triggered values (1, 0, 0)")
        .await?;
    lab.settled().await?;
    // Each node adds to every counter, in other ways.
    let at_a = a.connect().await?;
    at_a.each(&[
        "update t set a = a + 1, b = b + 1000000, c = c - 5000000000, d = d + 0.0001, e = e + 1e30 where id = 1",
        "insert into t (id, b) values (2, 5) on conflict (id) do update set b = t.b + excluded.b",
        "merge into t using (values (3, 7), (40, 9)) s (id, b) on t.id = s.id \
           when matched then update set b = t.b + s.b when not matched then insert (id, b) values (s.id, s.b)",
        "begin; update t set b = b + 1 where id = 4; savepoint s; update t set b = b + 100 where id = 4; \
           rollback to s; update t set b = b + 10 where id = 4; release s; commit",
        "do $$ begin update public.t set b = b + 1 where id = 5; \
            begin update public.t set b = b + 100 where id = 5; perform 1 / 0; exception when others then null; end; end $$",
        "begin; delete from t where id = 6; insert into t (id, b) values (6, 50); update t set id = 46 where id = 6; commit",
        "update parts set n = n + 1, v = 'a' where id = 1",
        "update parts set part = 3 - part where id = 2",
        "update triggered set n = n + 1",
        "insert into triggered values (2, 5, 5)",
    ])
    .await?;
    let at_b = b.connect().await?;
    at_b.each(&[
        "update t set a = a + 2, b = b + 2, c = c + 2, d = d + 2, e = e + 0.5, v = 'b' where id <= 3",
        "begin; update t set b = b + 7 where id in (4, 5); prepare transaction 'adding'",
        "update parts set n = n + 10",
        "update triggered set m = m + 100 where id = 1",
        "commit prepared 'adding'",
    ])
    .await?;
    lab.converges(&["t", "parts", "triggered"]).await?;
    let rows = b.rows("select id, a, b, c, d, e from t where id <= 6 or id > 20 order by id").await?;
    let text: Vec<String> =
        rows.into_iter().map(|row| row.into_iter().flatten().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        text,
        [
            "1 3 1000002 -4999999998 2.0001 1000000000000000000000000000000.5",
            "2 2 7 2 2.0000 0.5",
            "3 2 9 2 2.0000 0.5",
            "4 0 18 0 0.0000 0",
            "5 0 8 0 0.0000 0",
            "40 0 9 0 0.0000 0",
            "46 0 50 0 0.0000 0",
        ]
    );
    assert_eq!(b.dump("triggered", &[]).await?, ["id=1 | m=103 | n=31", "id=2 | m=6 | n=15"]);
    // A partitioned table is emptied while the other node adds.
    lab.stop_relays()?;
    b.exec("update parts set n = n + 1000 where id = 4").await?;
    a.exec("truncate parts").await?;
    b.exec("update parts set n = n + 1 where id in (4, 5)").await?;
    for node in lab.nodes() {
        node.relay().start()?;
    }
    lab.converges(&["parts"]).await?;
    a.exec("insert into parts select g, 1 + g % 2, 1 from generate_series(1, 3) g").await?;
    lab.converges(&["parts"]).await?;
    assert_eq!(
        b.one("select string_agg(id || ':' || n, ' ' order by id) from parts").await?,
        "1:1 2:1 3:1 4:1015 5:16"
    );
    ensure!(a.number("select count(*) from duplex.apply_errors").await? == 0, "an addition failed");
    lab.stop_relays()
}

/// A sum beyond its type is an error of the data: the stream says so, and goes on once the column is wider.
#[tokio::test]
async fn a_sum_that_does_not_fit_stops_the_stream() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.exec_everywhere(
        "create table t (id int primary key, n smallint not null); select duplex.enable('t', delta_columns => '{n}')",
    )
    .await?;
    a.exec("insert into t values (1, 10000)").await?;
    lab.settled().await?;
    lab.stop_relays()?;
    lab.exec_everywhere("update t set n = n + 20000").await?;
    for node in lab.nodes() {
        node.relay().start()?;
    }
    for (node, peer) in [(a, b), (b, a)] {
        node.stream_is(peer.name(), "stopped").await?;
        let error = "select sqlstate || ' ' || message from duplex.apply_errors where resolution is null";
        assert_eq!(
            node.one(error).await?,
            "22003 delta column \"n\" cannot hold the sum of what was added on all nodes"
        );
    }
    for (node, peer) in [(a, b), (b, a)] {
        node.exec(&format!("alter table t alter column n type integer; select duplex.retry_peer('{}')", peer.name()))
            .await?;
    }
    lab.converges(&["t"]).await?;
    assert_eq!(a.one("select n from t").await?, "50000");
    lab.stop_relays()
}

/// What was parked is added once it can be.
#[tokio::test]
async fn a_parked_addition_is_made_later() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.exec_everywhere(
        "create table t (id int primary key, n int not null check (n >= 0));
         select duplex.enable('t', delta_columns => '{n}'); select duplex.set_error_policy('t', 'park')",
    )
    .await?;
    a.exec("insert into t values (1, 10)").await?;
    lab.settled().await?;
    lab.stop_relays()?;
    lab.exec_everywhere("update t set n = n - 8").await?;
    for node in lab.nodes() {
        node.relay().start()?;
    }
    for node in [a, b] {
        node.shows("select count(*) from duplex.parked", "1").await?;
    }
    lab.exec_everywhere("update t set n = n + 10").await?;
    for node in [a, b] {
        node.exec("select duplex.retry_parked()").await?;
        node.shows("select count(*) from duplex.parked", "0").await?;
    }
    lab.converges(&["t"]).await?;
    assert_eq!(b.one("select n from t").await?, "14");
    lab.stop_relays()
}
