//! `duplex-relay tail`: a stream as JSON lines.

use std::process::Stdio;

use anyhow::{Context, Result};
use duplex_lab::{Kafka, Lab, Node, PATIENCE, topic, until};
use duplex_protocol::record::Kind;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::relay_command::{command, run};

/// A stream as `tail` shows it.
async fn tail(kafka: &Kafka, node: &Node, arguments: &[&str]) -> Result<Vec<Value>> {
    let ran = run(&[&["tail", node.name(), "--kafka", kafka.bootstrap()], arguments].concat()).await?;
    anyhow::ensure!(ran.code == Some(0), "{:?}: {}{}", ran.code, ran.out, ran.err);
    ran.out.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

#[tokio::test]
async fn a_stream_is_shown_with_all_its_changes() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let [a, b] = lab.pair();
    lab.create_everywhere("create table t (id int primary key, name text, amount numeric, extra jsonb)", &["t"])
        .await?;
    a.exec("insert into t values (1, '김철수', 12.50, '{\"a\": [1, null]}'), (2, null, 'NaN', null)").await?;
    a.exec("update t set name = '이영희' where id = 1").await?;
    lab.settled().await?;
    b.exec("delete from t where id = 2").await?;
    lab.settled().await?;
    a.exec("update t set id = 3 where id = 1").await?;
    a.exec("truncate t").await?;
    lab.settled().await?;

    let lines = tail(lab.kafka(), a, &["--beginning"]).await?;
    assert_eq!((&lines[0]["kind"], &lines[0]["offset"]), (&json!("hello"), &json!(0)));
    assert_eq!(lines[0]["extension_version"], env!("CARGO_PKG_VERSION"));
    let transactions: Vec<&Value> = lines.iter().filter(|line| line["kind"] == "transaction").collect();
    assert_eq!(transactions.len(), 4);
    assert!(transactions.iter().all(|line| line["node"] == a.name() && line["last"] == true));
    let changes: Vec<&Value> =
        transactions.iter().flat_map(|line| line["changes"].as_array().expect("a list of changes")).collect();
    let ops: Vec<&str> = changes.iter().filter_map(|change| change["op"].as_str()).collect();
    assert_eq!(ops, ["insert", "insert", "update", "delete", "insert", "truncate"]);
    assert!(changes.iter().all(|change| change["table"] == "public.t"));
    // The text of the line, because a JSON library may not keep all digits.
    let ran = run(&["tail", a.name(), "--kafka", lab.kafka().bootstrap(), "--from", "1"]).await?;
    let first = ran.out.lines().find(|line| line.contains("\"transaction\"")).context("no transaction")?;
    assert!(first.contains("\"amount\":12.50") && first.contains("\"name\":\"김철수\""), "{first}");
    assert_eq!(changes[0]["row"]["extra"], json!({ "a": [1, null] }));
    assert_eq!((&changes[1]["row"]["name"], &changes[1]["row"]["amount"]), (&Value::Null, &json!("NaN")));
    assert_eq!((&changes[2]["key"], &changes[2]["changed"]), (&json!({ "id": 1 }), &json!(["name"])));
    assert_eq!((&changes[3]["key"], &changes[4]["key"]), (&json!({ "id": 1 }), &json!({ "id": 3 })));

    let [theirs] = &tail(lab.kafka(), b, &["--beginning"])
        .await?
        .into_iter()
        .filter(|line| line["kind"] == "transaction")
        .collect::<Vec<_>>()[..]
    else {
        panic!("the stream of {} holds more than its own transaction", b.name());
    };
    let deleted = &theirs["changes"][0];
    assert_eq!((&deleted["op"], &deleted["replaced"]["node"]), (&json!("delete"), &json!(a.name())));
    lab.stop_relays()
}

#[tokio::test]
async fn the_last_ten_records_are_shown_unless_told_otherwise() -> Result<()> {
    let lab = Lab::builder().heartbeats("100ms").start().await?;
    let a = lab.node(0);
    lab.create_everywhere("create table t (id int primary key)", &["t"]).await?;
    for id in 0..15 {
        a.exec(&format!("insert into t values ({id})")).await?;
    }
    lab.settled().await?;
    // Heartbeats are for peers, not for people: they are shown if asked for, and do not count.
    let beats = async || -> Result<(Vec<i64>, Vec<i64>)> {
        let mut offsets = (Vec::new(), Vec::new());
        for record in topic::read(lab.kafka(), a.name()).await? {
            let heartbeat = record.header()?.kind == Kind::Heartbeat;
            if heartbeat { &mut offsets.1 } else { &mut offsets.0 }.push(record.offset);
        }
        Ok(offsets)
    };
    until("twenty heartbeats", PATIENCE, async || {
        let heard = beats().await?.1.len();
        Ok(if heard >= 20 { Ok(()) } else { Err(format!("{heard}")) })
    })
    .await?;
    lab.stop_relays()?;
    let (others, heartbeats) = beats().await?;
    let end = topic::end(lab.kafka(), a.name()).await?;
    let offsets = |lines: Vec<Value>| lines.iter().filter_map(|line| line["offset"].as_i64()).collect::<Vec<_>>();
    assert_eq!(offsets(tail(lab.kafka(), a, &[]).await?), others[others.len() - 10..]);
    assert_eq!(offsets(tail(lab.kafka(), a, &["--beginning"]).await?), others);
    assert_eq!(offsets(tail(lab.kafka(), a, &["--from", "3"]).await?), others[others.partition_point(|&at| at < 3)..]);
    let all: Vec<i64> = (0..end).collect();
    assert_eq!(offsets(tail(lab.kafka(), a, &["--heartbeats", "--beginning"]).await?), all);
    assert_eq!(offsets(tail(lab.kafka(), a, &["--heartbeats"]).await?), all[all.len() - 10..]);
    assert!(others.len() == 16 && heartbeats.len() + others.len() == all.len(), "{others:?} {heartbeats:?}");
    assert!(tail(lab.kafka(), a, &["--from", "1000000"]).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn following_a_stream_shows_what_comes_and_ends_with_its_reader() -> Result<()> {
    let lab = Lab::shared(2).await?;
    let a = lab.node(0);
    lab.create_everywhere("create table t (id int primary key)", &["t"]).await?;
    a.exec("insert into t values (1)").await?;
    lab.settled().await?;
    let mut following =
        command(&["tail", a.name(), "--kafka", lab.kafka().bootstrap(), "--follow"])?.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(following.stdout.take().context("piped")?).lines();
    let mut written = 1;
    loop {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.context("nothing comes")??;
        let line: Value = serde_json::from_str(&line.context("it ended")?)?;
        if line["changes"][0]["row"]["id"] == json!(written) {
            if written == 3 {
                break;
            }
            written += 1;
            a.exec(&format!("insert into t values ({written})")).await?;
        }
    }
    // Nobody reads on, as after `| head`: the next record ends it, and that is no error.
    drop(lines);
    a.exec("insert into t values (4)").await?;
    let status = tokio::time::timeout(PATIENCE, following.wait()).await.context("it does not end")??;
    assert!(status.success(), "{status}");
    lab.stop_relays()
}

#[tokio::test]
async fn a_stream_that_cannot_be_read_is_said_in_words() -> Result<()> {
    let lab = Lab::builder().nodes(1).relays_stopped().start().await?;
    let (node, kafka) = (lab.node(0).name(), lab.kafka());
    let ran = run(&["tail", node, "--kafka", kafka.bootstrap()]).await?;
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains(&format!("error: topic duplex.{node} does not exist yet")), "{}", ran.err);
    assert!(ran.err.contains("hint: start the peer's relay") && ran.out.is_empty(), "{}", ran.err);

    let ran = run(&["tail", node, "--kafka", "127.0.0.1:1"]).await?;
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("error: asking Kafka") && ran.err.contains("hint: is Kafka up"), "{}", ran.err);

    let name = topic::name(node);
    let admin: AdminClient<DefaultClientContext> = kafka.client().create()?;
    let made =
        admin.create_topics(&[NewTopic::new(&name, 2, TopicReplication::Fixed(1))], &AdminOptions::new()).await?;
    assert!(made.iter().all(std::result::Result::is_ok), "{made:?}");
    let ran = run(&["tail", node, "--kafka", kafka.bootstrap()]).await?;
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("has 2 partitions, a stream needs exactly 1"), "{}", ran.err);

    let ran = run(&["tail", node, "--kafka", kafka.bootstrap(), "--from", "3", "--beginning"]).await?;
    assert_eq!(ran.code, Some(2));
    Ok(())
}
