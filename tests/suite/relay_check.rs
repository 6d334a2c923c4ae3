//! `duplex-relay check`: everything that a user may have forgotten is named, with a line of advice.

use anyhow::Result;
use duplex_lab::wait::when;
use duplex_lab::{Kafka, Lab, Node, PATIENCE, topic, until};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;

use super::relay_command::{Ran, run};

/// An address at which no Kafka is.
const NO_KAFKA: &str = "127.0.0.1:1";

async fn check(url: &str, kafka: &str) -> Result<Ran> {
    run(&["check", "--database", url, "--kafka", kafka]).await
}

/// A line of the answer must hold all of these words.
fn says(ran: &Ran, words: &[&str]) {
    let found = ran.out.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(found, "no line with {words:?} in:\n{}{}", ran.out, ran.err);
}

/// Every line is a finding, and those that are not as they should be have advice.
fn is_well_formed(ran: &Ran) {
    for line in ran.out.lines() {
        let advised = line.split_once("  → ").is_some_and(|(_, advice)| advice.len() > 5);
        let (kind, _) = line.split_at(6);
        assert!(kind == "ok    " || (matches!(kind, "note  " | "FAIL  ") && advised), "{line}");
    }
    assert_eq!(ran.code, Some(i32::from(ran.out.contains("FAIL"))), "{}", ran.out);
}

#[tokio::test]
async fn a_node_that_works_is_all_well() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, v text)", &["t"]).await?;
    b.exec("insert into t values (1, 'one')").await?;
    lab.settled().await?;
    lab.running().await?;
    let ran = check(&a.relay_url(), lab.kafka().bootstrap()).await?;
    is_well_formed(&ran);
    assert!(!ran.out.contains("FAIL") && !ran.out.contains("note"), "{}", ran.out);
    for words in [
        &["database answers"][..],
        &["extension pg_duplex", env!("CARGO_PKG_VERSION")],
        &["track_commit_timestamp is on"],
        &["the role may call"],
        &["this is node", a.name(), "peers:", b.name()],
        &["1 table"],
        &["peer", b.name(), "running"],
        &["Kafka answers"],
        &["own topic", a.name(), "1 partition"],
        &["peer's topic", b.name()],
        &["peer", b.name(), "fit: public.t"],
    ] {
        says(&ran, words);
    }
    lab.stop_relays()
}

#[tokio::test]
async fn what_is_missing_in_the_database_is_named() -> Result<()> {
    let lab = Lab::builder().nodes(1).relays_stopped().start().await?;
    let (node, kafka) = (lab.node(0), lab.kafka().bootstrap());
    let cluster = node.cluster();

    let ran = check(&cluster.url("relay", "postgres"), kafka).await?;
    is_well_formed(&ran);
    says(&ran, &["FAIL", "extension pg_duplex is missing", "create extension pg_duplex"]);
    // The database's troubles keep nothing back of what can be said of Kafka.
    says(&ran, &["ok", "Kafka answers"]);

    let empty = format!("{}-empty", node.database());
    cluster.create_database(&empty).await?;
    let ran = check(&cluster.url("relay", &empty), kafka).await?;
    is_well_formed(&ran);
    says(&ran, &["FAIL", "not a node yet", "duplex.create_node"]);

    let stranger = format!("stranger-{}", node.database());
    node.exec(&format!("create role \"{stranger}\" login")).await?;
    let ran = check(&node.url_as(&stranger), kafka).await?;
    is_well_formed(&ran);
    says(&ran, &["FAIL", "may not call", "duplex.drain", "grant duplex_relay"]);
    node.exec(&format!("drop role \"{stranger}\"")).await?;

    let ran = check(&node.url_as("nobody-of-this-name"), kafka).await?;
    is_well_formed(&ran);
    says(&ran, &["FAIL", "cannot connect", "nobody-of-this-name", "28000"]);
    let ran = check(&cluster.url("relay", "no-such-database"), kafka).await?;
    says(&ran, &["FAIL", "cannot connect", "no-such-database", "3D000"]);

    // Nothing is wrong with a node that has neither peers nor tables yet; it is only worth knowing.
    let ran = check(&node.relay_url(), kafka).await?;
    is_well_formed(&ran);
    assert_eq!(ran.code, Some(0), "{}", ran.out);
    says(&ran, &["note", "no peer yet", "duplex.add_peer"]);
    says(&ran, &["note", "no table", "duplex.enable"]);
    says(&ran, &["ok", "own topic", "does not exist yet"]);
    Ok(())
}

#[tokio::test]
async fn a_server_with_the_wrong_settings_is_named() -> Result<()> {
    let lab = Lab::builder().nodes(1).own_clusters().without_relays().start().await?;
    let node = lab.node(0);
    let cluster = node.cluster();
    node.exec("create role locked login password 'right' in role duplex_relay").await?;
    let rules = cluster.sockets().join("data/pg_hba.conf");
    let before = std::fs::read_to_string(&rules)?;
    std::fs::write(&rules, format!("host all locked 127.0.0.1/32 scram-sha-256\n{before}"))?;
    node.exec("alter system set track_commit_timestamp = off").await?;
    cluster.stop()?;
    cluster.start().await?;

    let url = |password: &str| cluster.url(&format!("locked:{password}"), node.database());
    let ran = check(&url("wrong"), NO_KAFKA).await?;
    is_well_formed(&ran);
    says(&ran, &["FAIL", "password authentication failed", "28P01", "password"]);
    assert!(!ran.out.contains("wrong"), "a password shows: {}", ran.out);

    let ran = check(&url("right"), NO_KAFKA).await?;
    is_well_formed(&ran);
    says(&ran, &["FAIL", "track_commit_timestamp is off", "restart"]);
    says(&ran, &["FAIL", "asking Kafka", "is Kafka up"]);

    cluster.stop()?;
    let ran = check(&url("right"), NO_KAFKA).await?;
    says(&ran, &["FAIL", "cannot connect", "is the server up"]);
    Ok(())
}

async fn create_topic(kafka: &Kafka, node: &Node, partitions: i32, settings: &[(&str, &str)]) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = kafka.client().create()?;
    let name = topic::name(node.name());
    let mut new = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
    for (setting, value) in settings {
        new = new.set(setting, value);
    }
    for made in admin.create_topics(&[new], &AdminOptions::new()).await? {
        made.map_err(|(topic, code)| anyhow::anyhow!("{topic}: {code}"))?;
    }
    Ok(())
}

#[tokio::test]
async fn topics_that_would_lose_something_are_named() -> Result<()> {
    let lab = Lab::builder().nodes(3).relays_stopped().start().await?;
    let [a, b, c] = [lab.node(0), lab.node(1), lab.node(2)];
    let kafka = lab.kafka();
    create_topic(kafka, a, 3, &[]).await?;
    let forgets = [("retention.ms", "1000"), ("retention.bytes", "5000"), ("max.message.bytes", "100000")];
    create_topic(kafka, b, 1, &forgets).await?;

    let ran = check(&a.relay_url(), kafka.bootstrap()).await?;
    is_well_formed(&ran);
    says(&ran, &["FAIL", &topic::name(a.name()), "has 3 partitions", "exactly 1"]);
    says(&ran, &["ok", "peer's topic", b.name()]);
    says(&ran, &["note", "peer's topic", c.name(), "does not exist yet", "start the peer's relay"]);
    says(&ran, &["note", "peer", b.name(), "describes a table"]);

    let ran = check(&b.relay_url(), kafka.bootstrap()).await?;
    is_well_formed(&ran);
    says(&ran, &["note", b.name(), "by age", "retention.ms=-1"]);
    says(&ran, &["note", b.name(), "by size", "retention.bytes=-1"]);
    says(&ran, &["FAIL", b.name(), "at most 100000 bytes", "max.message.bytes"]);
    says(&ran, &["FAIL", a.name(), "has 3 partitions"]);
    Ok(())
}

/// The tables of a peer that writes to all of them.
const THERE: &str = "
    create schema chat;
    create table chat.\"Räume\" (id int primary key, name text);
    create table missing (id int primary key);
    create table idle (id int primary key);
    create table lacking (id int primary key, added varchar(20));
    create table demanding (id int primary key);
    create table keyed (id int, other int not null, primary key (id, other));
    create domain code as varchar(10);
    create table typed (id int primary key, amount bigint, label code);
    create table fitting (id int primary key, label code, note text);
    insert into chat.\"Räume\" values (1, 'Küche');
";

/// The same tables here, each with something else about it.
const HERE: &str = "
    create schema chat;
    create table chat.\"Räume\" (name text, id int primary key);
    create table idle (id int primary key);
    create table lacking (id int primary key);
    create table demanding (id int primary key, needed text not null, allowed text not null default 'x');
    create table keyed (id int primary key, other int not null);
    create table typed (id int primary key, amount int, label varchar(5));
    create table fitting (label varchar(10), extra text, id int primary key, note text);
";

#[tokio::test]
async fn tables_of_a_peer_that_do_not_fit_are_named_before_they_stop_the_stream() -> Result<()> {
    let lab = Lab::builder().relays_stopped().start().await?;
    let [here, there] = lab.pair();
    there.exec(THERE).await?;
    there
        .exec(
            "select duplex.enable_schema('public');
             select duplex.enable('chat.\"Räume\"');
             insert into missing values (1); insert into idle values (1); insert into lacking values (1, 'x');
             insert into demanding values (1); insert into keyed values (1, 1); insert into typed values (1, 7, 'abc');
             insert into fitting values (1, 'abc', 'n'); insert into chat.\"Räume\" values (2, 'Bad')",
        )
        .await?;
    here.exec(HERE).await?;
    here.exec(
        "select duplex.enable('chat.\"Räume\"'), duplex.enable('lacking'), duplex.enable('demanding'),
                duplex.enable('keyed'), duplex.enable('typed'), duplex.enable('fitting')",
    )
    .await?;
    there.relay().start()?;
    there.published().await?;

    let url = here.relay_url();
    let ran = check(&url, lab.kafka().bootstrap()).await?;
    is_well_formed(&ran);
    for words in [
        &["FAIL", "table public.missing does not exist here", "duplex.enable('public.missing')"][..],
        &["FAIL", "table public.idle is not enabled here", "duplex.enable('public.idle')"],
        &["FAIL", "column added of table public.lacking", "add column added character varying(20)"],
        &["FAIL", "column needed of table public.demanding is not null and has no default"],
        &["FAIL", "table public.keyed has no unique index", "(id, other)"],
        &["note", "column amount of table public.typed is integer here and bigint on the peer"],
        &[
            "note",
            "column label of table public.typed is character varying(5) here and character varying(10) on the peer",
        ],
    ] {
        says(&ran, words);
    }
    for fine in ["Räume", "public.fitting", "allowed", "extra"] {
        assert!(!ran.out.contains(fine), "{fine} is complained of:\n{}", ran.out);
    }

    // That all this is true shows when the relay runs: the stream stops, and check says so.
    here.relay().start()?;
    let session = here.connect().await?;
    until("the stream to stop", PATIENCE, async || {
        let state = session.one("select state from duplex.peers").await?;
        Ok(when(state == "stopped", state))
    })
    .await?;
    let ran = check(&url, lab.kafka().bootstrap()).await?;
    is_well_formed(&ran);
    says(&ran, &["FAIL", "peer", there.name(), "stopped", "duplex.retry_peer"]);

    // Mended as advised, all fits, and the stream goes to its end.
    here.exec(
        "create table missing (id int primary key);
         select duplex.enable('public.missing'), duplex.enable('public.idle');
         alter table public.lacking add column added character varying(20);
         alter table demanding alter needed set default '';
         alter table keyed drop constraint keyed_pkey, add primary key (id, other);
         alter table typed alter amount type bigint, alter label type varchar(10);",
    )
    .await?;
    let ran = check(&url, lab.kafka().bootstrap()).await?;
    says(&ran, &["ok", "peer", there.name(), "fit:", "public.missing", "chat.Räume"]);
    here.exec(&format!("select duplex.retry_peer('{}')", there.name())).await?;
    lab.settled().await?;
    assert_eq!(here.dump("typed", &[]).await?, ["amount=7 | id=1 | label=abc"]);
    lab.stop_relays()
}

#[tokio::test]
async fn the_newest_description_of_a_peers_table_counts_however_much_came_before_and_after() -> Result<()> {
    let lab = Lab::builder().relays_stopped().start().await?;
    let [here, there] = lab.pair();
    lab.create_everywhere("create table t (id int primary key); create table u (id int primary key)", &["t", "u"])
        .await?;
    there.exec("insert into t values (0)").await?;
    there.exec("alter table t add column later int").await?;
    there.exec("insert into t values (1, 1)").await?;
    // More transactions than the first blocks that are looked at, and one of many chunks.
    there.exec("do $$ begin for i in 1..1500 loop insert into u values (i); commit; end loop; end $$").await?;
    there.exec("insert into u select generate_series(10001, 200000)").await?;
    there.relay().start()?;
    there.published().await?;
    let ran = check(&here.relay_url(), lab.kafka().bootstrap()).await?;
    is_well_formed(&ran);
    says(&ran, &["FAIL", "column later of table public.t does not exist here", "add column later integer"]);
    here.exec("alter table t add column later int").await?;
    let ran = check(&here.relay_url(), lab.kafka().bootstrap()).await?;
    says(&ran, &["ok", "fit: public.t, public.u"]);
    Ok(())
}
