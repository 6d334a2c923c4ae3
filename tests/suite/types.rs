//! Values of every type arrive as they were.

use anyhow::Result;
use duplex_lab::Lab;

use crate::samples;

#[tokio::test]
async fn every_built_in_type_and_arrays_of_it() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    let session = a.connect().await?;
    let all = samples::every_type(&session).await?;
    let names: Vec<String> = all.iter().flat_map(|tables| [tables.table("v"), tables.table("a")]).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let create: Vec<String> = all.iter().map(|tables| tables.create("")).collect();
    lab.create_everywhere(&create.concat(), &names).await?;
    for tables in &all {
        session.exec(&tables.fill("")).await?;
    }
    let mut expected = Vec::new();
    for tables in &all {
        expected.push((tables.contents(a, "v").await?, tables.contents(a, "a").await?));
    }
    lab.settled().await?;
    for (tables, (values, arrays)) in all.iter().zip(&expected) {
        assert_eq!(&tables.contents(b, "v").await?, values, "{}", tables.type_name);
        assert_eq!(&tables.contents(b, "a").await?, arrays, "{}[]", tables.type_name);
    }
    // And back, in rows that another column of was changed.
    let update: Vec<String> = names.iter().map(|name| format!("update {name} set note = 'b';")).collect();
    b.exec(&update.concat()).await?;
    lab.converges(&names).await?;
    for (tables, (values, arrays)) in all.iter().zip(&expected) {
        let noted = |rows: &[String]| rows.iter().map(|row| row.replace("None]", "Some(\"b\")]")).collect::<Vec<_>>();
        assert_eq!(tables.contents(a, "v").await?, noted(values), "{}", tables.type_name);
        assert_eq!(tables.contents(a, "a").await?, noted(arrays), "{}[]", tables.type_name);
    }
    // Nothing stays.
    let delete: Vec<String> = names.iter().map(|name| format!("delete from {name};")).collect();
    a.exec(&delete.concat()).await?;
    lab.settled().await?;
    for name in names {
        assert_eq!(b.number(&format!("select count(*) from {name}")).await?, 0, "{name}");
    }
    Ok(())
}

/// Raw images are checked before PostgreSQL's code sees them: nothing that the server itself makes may be refused.
#[tokio::test]
async fn every_numeric_and_jsonb_that_the_server_computes_is_taken() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, _] = lab.pair();
    lab.create_everywhere(
        "create table n (id int primary key, v numeric, w numeric(8,-3), x numeric(6,4)); \
         create table j (id int primary key, v jsonb)",
        &["n", "j"],
    )
    .await?;
    a.exec(
        "select setseed(0.5);
         with r as materialized (
             select i, (random() * 10 ^ (random() * 40 - 20)::int)::numeric x, (random() * 100)::numeric(20, 9) + 0.01 y
               from generate_series(1, 300) i)
         insert into n
         select i * 16 + k,
                case k when 0 then x + y when 1 then x - y when 2 then x * y when 3 then x / y when 4 then x % y
                       when 5 then sqrt(x) when 6 then ln(y) when 7 then exp(y / 10) when 8 then power(y, 2.5)
                       when 9 then round(x, 3) when 10 then trunc(x, -2) when 11 then avg(x) over ()
                       when 12 then stddev(y) over (order by i) when 13 then log(2, y) when 14 then trim_scale(y)
                       else -x::numeric(1000, 30) end,
                round(y * 1000, -3), y / 10
           from r, generate_series(0, 15) k;
         insert into j
         select i, case i % 8
                when 0 then to_jsonb(n) when 1 then jsonb_build_object('k' || i, v, v::text, array[v, x])
                when 2 then jsonb_set('{\"a\": {\"b\": [1, 2]}}', '{a,b,1}', to_jsonb(v))
                when 3 then jsonb_build_array(v, repeat('x', i % 50), null, v > 1)
                when 4 then to_jsonb(n) - 'v' || jsonb_build_object('z', to_jsonb(n))
                when 5 then jsonb_strip_nulls(jsonb_build_object('a', null, 'b', v))
                when 6 then to_jsonb(v::text) else to_jsonb(array[v, w, x]) end
           from (select row_number() over (order by id)::int i, * from n) n;
         insert into j select 100000, jsonb_agg(v) from j;
         insert into j select 100001, jsonb_object_agg(id, v) from j;
         update j set v = v #> '{100}' where id = 100000",
    )
    .await?;
    lab.converges(&["n", "j"]).await
}

#[tokio::test]
async fn enums_domains_composites_and_ranges_of_ones_own() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    let create = |first: &str| {
        // Other types first, so that the oids of all that follow differ between the nodes.
        format!(
            "{first}
             create schema \"A b\";
             create type \"A b\".\"Mood's\" as enum ('ok', 'so, so', 'sad \"\\', '한글');
             create domain positive as int check (value > 0);
             create domain short as varchar(5) not null default 'x';
             create domain nested as positive check (value < 1000);
             create type pair as (x int, \"Y y\" \"A b\".\"Mood's\", z timestamptz);
             create type deep as (p pair, list pair[], b bytea, f float8);
             create domain checked_pair as pair check ((value).x > 0);
             create type moods as range (subtype = \"A b\".\"Mood's\", multirange_type_name = moods_multi);
             create domain several as int[] check (cardinality(value) < 4);
             create table t (id int primary key, e \"A b\".\"Mood's\", es \"A b\".\"Mood's\"[], d positive, n nested, s short,
                             c pair, cs pair[], deep deep, cp checked_pair, r moods, rm moods_multi, l several,
                             dl positive[], tc regclass, ty regtype, whole t2);
             create table by_mood (e \"A b\".\"Mood's\" primary key, n int);
             create table by_pair (p pair primary key, n int)"
        )
    };
    a.exec(&create("create table t2 (a int, b text);")).await?;
    b.exec(&create(
        "create table t0 (a int, gone int, b text); alter table t0 drop gone; alter table t0 rename to t2;",
    ))
    .await?;
    lab.enable(&["t", "by_mood", "by_pair"]).await?;
    a.exec(
        "insert into t values
           (1, 'so, so', array['ok', null, 'sad \"\\']::\"A b\".\"Mood's\"[], 1, 999, 'abcde',
            row(1, 'sad \"\\', '2024-01-01 00:00+09'), array[row(null, null, null), null, row(2, '한글', 'infinity')]::pair[],
            row(row(1, 'ok', null), array[row(3, 'ok', null)]::pair[], '\\x00ff', 'NaN'), row(5, null, null),
            '[ok,한글)', '{[ok,\"so, so\"),[\"sad \\\"\\\\\",한글]}', '{1,2,3}', '{4,5}', 'by_mood', '\"A b\".\"Mood''s\"[]',
            row(1, 'x'))",
    )
    .await?;
    a.exec("insert into t (id) values (2); insert into by_mood values ('ok', 1), ('한글', 2)").await?;
    a.exec("insert into by_pair values (row(1, 'ok', '2024-01-01'), 1)").await?;
    lab.converges(&["t", "by_mood", "by_pair"]).await?;
    assert_eq!(b.one("select s from t where id = 2").await?, "x");
    b.exec(
        "update by_mood set e = 'so, so' where e = 'ok'; update by_pair set n = 2; \
         update t set e = 'ok', c.x = 7, cs[2].x = 8, deep.p.x = 9 where id = 1; delete from by_mood where e = '한글'",
    )
    .await?;
    lab.converges(&["t", "by_mood", "by_pair"]).await?;
    // A label added in the transaction's neighbourhood, and a type renamed on both sides, are read anew.
    lab.exec_everywhere("alter type \"A b\".\"Mood's\" add value 'new'").await?;
    lab.exec_everywhere("alter type \"A b\".\"Mood's\" rename to mood; alter schema \"A b\" rename to c").await?;
    a.exec("update t set e = 'new'; insert into by_mood values ('new', 3)").await?;
    lab.converges(&["t", "by_mood", "by_pair"]).await
}

#[tokio::test]
async fn types_of_extensions() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    // The extension's types live in another schema than what a session's search path may say.
    lab.create_everywhere(
        "create schema ext; create extension hstore schema ext; create extension citext schema ext;
         create extension ltree schema ext; create extension cube schema ext; create extension isn schema ext;
         create table t (id ext.citext primary key, h ext.hstore, l ext.ltree, q ext.lquery, c ext.cube, i ext.isbn13,
                         hs ext.hstore[])",
        &["t"],
    )
    .await?;
    a.exec(
        "set search_path = ext, public;
         insert into t values ('Key', 'a=>1, \"b \\\"\"=>NULL', 'Top.Science', '*.Astro*{1,2}', '(0.1,2),(3,4)',
                               '978-0-393-04002-9', array['a=>1'::hstore, null]); \
         insert into t values ('empty')",
    )
    .await?;
    lab.converges(&["t"]).await?;
    // Equal by the operator, not by bytes.
    b.exec("set search_path = ext, public; update t set l = 'Other' where id = 'KEY'").await?;
    lab.converges(&["t"]).await?;
    assert_eq!(a.number("select count(*) from t where l operator(ext.=) 'Other'").await?, 1);
    Ok(())
}
