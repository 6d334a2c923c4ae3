//! The older pipeline: Debezium reads the source's WAL, Kafka Connect carries it, the JDBC sink writes it. Both connectors
//! run in one stand-alone worker, tuned for speed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use duplex_lab::process::{Process, Recipe};
use duplex_lab::{Lab, ports, until};
use nix::sys::signal::Signal;

use super::PATIENCE;
use crate::cpu;

/// The worker, once it was started.
#[derive(Debug)]
pub(crate) struct Older {
    recipe: Recipe,
    worker: Option<Process>,
    peak: u64,
}

impl Older {
    pub(super) async fn open(lab: &Lab, jars: &Path) -> Result<Self> {
        for part in ["connect", "plugins/source", "plugins/sink"] {
            ensure!(jars.join(part).is_dir(), "no {part} in {}: run scripts/connect.sh", jars.display());
        }
        // The sink may wait for no disk, as apply of the others does not.
        let [_, target] = lab.pair();
        target.exec(&format!("alter database \"{}\" set synchronous_commit = off", target.database())).await?;
        let home = lab.folder().join("connect");
        std::fs::create_dir(&home)?;
        let files = [
            ("worker.properties", worker(lab, jars, &home)?),
            ("source.properties", source(lab)),
            ("sink.properties", sink(lab)),
            ("log4j2.properties", include_str!("../../lab/kafka/log4j2.properties").to_owned()),
        ];
        for (name, text) in files {
            std::fs::write(home.join(name), text)?;
        }
        let path = |name: &str| home.join(name).to_string_lossy().into_owned();
        let recipe = Recipe {
            name: "Kafka Connect".into(),
            command: vec![
                "java".into(),
                "-Xmx1g".into(),
                format!("-Dlog4j2.configurationFile={}", path("log4j2.properties")),
                "-cp".into(),
                format!("{}/*", jars.join("connect").display()),
                "org.apache.kafka.connect.cli.ConnectStandalone".into(),
                path("worker.properties"),
                path("source.properties"),
                path("sink.properties"),
            ],
            env: Vec::new(),
            user: None,
            log: home.join("connect.log"),
            orphan_signal: "KILL",
        };
        Ok(Self { recipe, worker: None, peak: 0 })
    }

    pub(super) async fn go(&mut self, lab: &Lab) -> Result<()> {
        if let Some(worker) = &self.worker {
            return worker.signal(Signal::SIGCONT);
        }
        let worker = self.worker.insert(self.recipe.start()?);
        let source = lab.node(0).connect().await?;
        // What is written before its slot is there would never come.
        until("Debezium to follow the source", PATIENCE, async || {
            worker.check()?;
            let active = source.one("select exists (select from pg_replication_slots where active)").await?;
            Ok(if active == "t" { Ok(()) } else { Err("no slot is active") })
        })
        .await
    }

    /// Paused, not ended: it takes half a minute to start, which nobody would count.
    pub(super) fn rest(&mut self) -> Result<()> {
        self.peak()?;
        self.worker()?.signal(Signal::SIGSTOP)
    }

    pub(super) fn peak(&mut self) -> Result<u64> {
        self.peak = self.peak.max(cpu::peak_memory(self.worker()?.pid())?);
        Ok(self.peak)
    }

    pub(super) fn processors(&self, lab: &Lab) -> Result<Vec<(String, Duration)>> {
        let mut times = vec![("Connect".to_owned(), cpu::of_process(self.worker()?.pid())?)];
        if let Some(broker) = lab.kafka().pid() {
            times.push(("Kafka".to_owned(), cpu::of_process(broker)?));
        }
        Ok(times)
    }

    fn worker(&self) -> Result<&Process> {
        self.worker.as_ref().context("Kafka Connect was not started")
    }
}

fn worker(lab: &Lab, jars: &Path, home: &Path) -> Result<String> {
    let plugins: PathBuf = jars.join("plugins");
    Ok(format!(
        "bootstrap.servers={}\n\
         listeners=http://127.0.0.1:{}\n\
         key.converter=org.apache.kafka.connect.json.JsonConverter\n\
         value.converter=org.apache.kafka.connect.json.JsonConverter\n\
         offset.storage.file.filename={}\n\
         offset.flush.interval.ms=1000\n\
         connector.client.config.override.policy=All\n\
         plugin.path={}\n",
        lab.kafka().bootstrap(),
        ports::free()?,
        home.join("offsets").display(),
        plugins.display()
    ))
}

fn source(lab: &Lab) -> String {
    let node = lab.node(0);
    format!(
        "name=source\n\
         connector.class=io.debezium.connector.postgresql.PostgresConnector\n\
         tasks.max=1\n\
         database.hostname=127.0.0.1\n\
         database.port={}\n\
         database.user=postgres\n\
         database.password=unused\n\
         database.dbname={}\n\
         topic.prefix=bench\n\
         table.include.list=public.wide\n\
         plugin.name=pgoutput\n\
         publication.autocreate.mode=filtered\n\
         slot.name=bench\n\
         snapshot.mode=no_data\n\
         poll.interval.ms=2\n\
         max.batch.size=2000\n\
         max.queue.size=16000\n\
         topic.creation.default.partitions=1\n\
         topic.creation.default.replication.factor=1\n\
         producer.override.linger.ms=0\n",
        node.cluster().port(),
        node.database()
    )
}

fn sink(lab: &Lab) -> String {
    let node = lab.node(1);
    format!(
        "name=sink\n\
         connector.class=io.debezium.connector.jdbc.JdbcSinkConnector\n\
         tasks.max=1\n\
         topics=bench.public.wide\n\
         connection.url=jdbc:postgresql://127.0.0.1:{}/{}?reWriteBatchedInserts=true\n\
         connection.username=postgres\n\
         connection.password=unused\n\
         insert.mode=upsert\n\
         delete.enabled=true\n\
         primary.key.mode=record_key\n\
         schema.evolution=none\n\
         collection.name.format=${{source.table}}\n\
         batch.size=2000\n\
         consumer.override.max.poll.records=2000\n\
         consumer.override.fetch.min.bytes=1\n\
         consumer.override.metadata.max.age.ms=1000\n\
         consumer.override.auto.offset.reset=earliest\n",
        node.cluster().port(),
        node.database()
    )
}
