//! What arrives does not depend on the settings of who wrote it, nor on the settings that the applying role has.

use anyhow::Result;
use duplex_lab::Lab;

use crate::samples;

/// Settings that change how values look as text.
const HOSTILE: &str = "set DateStyle = 'German, DMY'; set IntervalStyle = 'iso_8601'; set extra_float_digits = -15; \
     set bytea_output = 'escape'; set search_path = 'elsewhere'; set TimeZone = 'Asia/Kathmandu'; \
     set xmloption = 'document'; set xmlbinary = 'hex'; set client_encoding = 'LATIN1'; set array_nulls = off; \
     set quote_all_identifiers = on; set standard_conforming_strings = off; set lc_numeric = 'C'; set row_security = off";

/// Other values of the same, whose text would be taken for something else by a reader of another style.
const ALSO_HOSTILE: &str = "set DateStyle = 'SQL, DMY'; set IntervalStyle = 'sql_standard'; set extra_float_digits = 0; \
     set bytea_output = 'escape'; set search_path = ''; set TimeZone = '+13:45'; set client_encoding = 'SQL_ASCII'";

#[tokio::test]
async fn writers_with_hostile_settings() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    let session = a.connect().await?;
    let all = samples::every_type(&session).await?;
    let names: Vec<String> = all.iter().flat_map(|tables| [tables.table("v"), tables.table("a")]).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let create: Vec<String> = all.iter().map(|tables| tables.create("")).collect();
    lab.exec_everywhere("create schema elsewhere").await?;
    lab.create_everywhere(&create.concat(), &names).await?;
    // What the hostile sessions copy stands in tables that do not take part, written in a session of good manners.
    for tables in &all {
        session.exec(&tables.create("from_")).await?;
        session.exec(&tables.fill("from_")).await?;
    }
    let [hostile, also] = [a.connect().await?, a.connect().await?];
    hostile.exec(HOSTILE).await?;
    also.exec(ALSO_HOSTILE).await?;
    for locale in ["en_US.UTF-8", "de_DE.UTF-8", "ja_JP.UTF-8"] {
        // The machine may have none of them, and then money looks the same everywhere.
        if also.exec(&format!("set lc_monetary = '{locale}'")).await.is_ok() {
            break;
        }
    }
    for name in &names {
        for (writer, rows) in [(&hostile, "id % 2 = 0"), (&also, "id % 2 = 1")] {
            writer.exec(&format!("insert into public.{name} select * from public.from_{name} where {rows}")).await?;
            writer.exec(&format!("update public.{name} set note = 'set' where {rows}")).await?;
        }
    }
    lab.settled().await?;
    for tables in &all {
        for prefix in ["v", "a"] {
            let expected: Vec<String> = (tables.contents(a, &format!("from_{prefix}")).await?.iter())
                .map(|row| row.replace("None]", "Some(\"set\")]"))
                .collect();
            assert_eq!(tables.contents(a, prefix).await?, expected, "{prefix} of {}", tables.type_name);
            assert_eq!(tables.contents(b, prefix).await?, expected, "{prefix} of {}", tables.type_name);
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_session_keeps_its_settings() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    lab.create_everywhere("create table t (id int primary key, d date[], c regclass, p point)", &["t"]).await?;
    let session = node.connect().await?;
    session.exec("set DateStyle = 'German'; set search_path = ''; set extra_float_digits = -3").await?;
    session
        .exec("begin; insert into public.t values (1, '{01.02.2024}', 'public.t', '(0.1,0.2)'); savepoint s")
        .await?;
    session.exec("insert into public.t values (2, '{01.02.2024}', 'public.t', null); rollback to s").await?;
    for (setting, value) in [("DateStyle", "German, DMY"), ("search_path", "\"\""), ("extra_float_digits", "-3")] {
        assert_eq!(session.one(&format!("show {setting}")).await?, value);
    }
    session.exec("commit").await?;
    assert_eq!(session.one("select d::text || c || p from public.t").await?, "{01.02.2024}public.t(0.1,0.2)");
    Ok(())
}

/// The role that applies may have settings of its own, and so may the database.
#[tokio::test]
async fn a_database_with_hostile_settings_applies_the_same() -> Result<()> {
    let lab = Lab::builder().relays_stopped().start().await?;
    let [a, b] = lab.pair();
    lab.create_everywhere(
        "create type mood as enum ('ok'); \
         create table t (id int primary key, n int[], i interval[], d date[], x xml, m money[], e mood, c regclass, s text[])",
        &["t"],
    )
    .await?;
    let database = b.database();
    for setting in HOSTILE.split(';').map(|set| set.trim().trim_start_matches("set ")) {
        b.exec(&format!("alter database \"{database}\" set {setting}")).await?;
    }
    for node in lab.nodes() {
        node.relay().start()?;
    }
    a.exec(
        "insert into t values (1, '{1,NULL}', '{1 day -02:03:04}', '{2024-02-01}', 'no document', '{1.50}', 'ok', 't',
                               '{NULL,\"NULL\"}')",
    )
    .await?;
    b.exec(
        "insert into public.t values (2, array[1, null], array['1 day'::interval], array['2024-02-01'::date], '<d/>')",
    )
    .await?;
    lab.settled().await?;
    let shown = "set DateStyle = 'ISO'; set IntervalStyle = 'postgres'; set search_path = public; set quote_all_identifiers = off; \
                 select string_agg(concat_ws(' ', id, n, i, d, x, m, e, c, s), E'\\n' order by id) from t";
    let [of_a, of_b] = [a.connect().await?, b.connect().await?];
    let expected = of_a.one(shown).await?;
    assert_eq!(of_b.one(shown).await?, expected);
    assert!(expected.contains("{1,NULL} {\"1 day -02:03:04\"}"), "{expected}");
    Ok(())
}

#[tokio::test]
async fn a_database_in_another_encoding_cannot_be_a_node() -> Result<()> {
    let lab = Lab::builder().nodes(1).without_relays().start().await?;
    let node = lab.node(0);
    let name = format!("{}-latin1", node.name());
    node.exec(&format!("create database \"{name}\" template template0 encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'"))
        .await?;
    let session = node.cluster().connect(&name).await?;
    session.exec("create extension pg_duplex").await?;
    let error = session.refuses("55000", "select duplex.create_node('latin')").await?;
    assert!(error.message().contains("LATIN1"), "{error}");
    assert!(error.hint().is_some());
    assert_eq!(session.number("select count(*) from duplex.node").await?, 0);
    Ok(())
}
