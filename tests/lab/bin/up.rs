//! `duplex-lab up`: a lab for whoever wants to work with one by hand or from a script.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use duplex_lab::{Kafka, Lab, Node, topic};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::control;
use crate::ending::Ending;

/// Arguments of `up`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How many nodes, each every other's peer.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=16))]
    nodes: u8,
    /// Names of the databases and nodes, separated by commas; node1, node2, … unless given.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…", conflicts_with = "nodes")]
    names: Vec<String>,
    /// Servers that fsync, as in production.
    #[arg(long)]
    durable: bool,
    /// A setting of every PostgreSQL server; may be repeated.
    #[arg(long = "setting", value_name = "NAME=VALUE")]
    settings: Vec<String>,
    /// A librdkafka property of every relay; may be repeated.
    #[arg(long = "kafka-property", value_name = "NAME=VALUE")]
    kafka_properties: Vec<String>,
    /// Prepare the relays, but do not start them: `duplex-lab ctl start relay1` does.
    #[arg(long)]
    relays_stopped: bool,
}

/// Brings it up, says so, and waits to be told to end.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut ending = Ending::awaited()?;
    let quit = Arc::new(Notify::new());
    let up = async {
        let lab = Arc::new(start(&arguments).await?);
        if !arguments.relays_stopped {
            lab.running().await?;
        }
        let described = describe(&lab);
        let served = tokio::spawn(control::serve(Arc::clone(&lab), Arc::clone(&quit)));
        if std::io::stdout().is_terminal() {
            println!("{described:#}");
        } else {
            println!("{described}");
        }
        Ok::<_, anyhow::Error>((lab, served))
    };
    let (lab, mut served) = tokio::select! {
        biased;
        () = ending.signal() => return Ok(ExitCode::SUCCESS),
        up = up => up?,
    };
    let served = tokio::select! {
        () = ending.signal() => {
            quit.notify_one();
            served.await
        }
        result = &mut served => result,
    };
    served.context("the control socket failed")??;
    lab.forget_topics().await?;
    Ok(ExitCode::SUCCESS)
}

async fn start(arguments: &Arguments) -> Result<Lab> {
    let names: Vec<String> = match arguments.names.is_empty() {
        true => (1..=arguments.nodes).map(|i| format!("node{i}")).collect(),
        false => arguments.names.clone(),
    };
    ensure!(names.iter().all(|name| !name.is_empty()), "a name is empty");
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut builder = Lab::builder().names(&names).own_clusters();
    if Kafka::external().is_none() {
        builder = builder.own_kafka();
    }
    if arguments.durable {
        builder = builder.durable();
    }
    if arguments.relays_stopped {
        builder = builder.relays_stopped();
    }
    for setting in &arguments.settings {
        let (name, value) = setting.split_once('=').context("--setting needs the form NAME=VALUE")?;
        builder = builder.setting(name, value);
    }
    for property in &arguments.kafka_properties {
        builder = builder.kafka_property(property);
    }
    // Whoever uses it may kill servers: that is no fault to complain of at the end.
    builder.crashes().start().await
}

/// Everything that one needs to work with the lab.
fn describe(lab: &Lab) -> Value {
    let kafka = lab.kafka();
    json!({
        "folder": lab.folder(),
        "control": control::socket(lab.folder()),
        "pid": std::process::id(),
        "kafka": { "part": "kafka", "bootstrap": kafka.bootstrap(), "pid": kafka.pid(), "log": kafka.log() },
        "nodes": lab.nodes().iter().enumerate().map(|(i, node)| describe_node(i + 1, node)).collect::<Vec<_>>(),
    })
}

fn describe_node(number: usize, node: &Node) -> Value {
    let (cluster, relay) = (node.cluster(), node.relay());
    json!({
        "name": node.name(),
        "topic": topic::name(node.name()),
        "database": node.database(),
        "url": node.url_as("postgres"),
        "postgres": {
            "part": format!("pg{number}"),
            "port": cluster.port(),
            "sockets": cluster.sockets(),
            "pid": cluster.pid(),
            "log": cluster.log(),
        },
        "relay": {
            "part": format!("relay{number}"),
            "database_url": node.relay_url(),
            "pid": relay.pid(),
            "log": relay.log(),
        },
    })
}
