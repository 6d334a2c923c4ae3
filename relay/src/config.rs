//! What the relay is told: two addresses, and properties of Kafka clients. All that concerns data is set in SQL.
//!
//! The command line goes before the environment, and both before the file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Parser, Subcommand};
use serde::Deserialize;

use crate::commands::tail::TailArguments;
use crate::kafka::Kafka;
use crate::logs::LogFormat;

/// Carries one node's changes to Kafka, and its peers' changes into its database.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Cli {
    /// Addresses.
    #[command(flatten)]
    pub options: Options,
    /// How log lines look on stderr.
    #[arg(long, global = true, value_enum, default_value = "auto", env = "DUPLEX_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Carries changes until it is told to end (SIGTERM, SIGINT).
    Run,
    /// Says what is missing, before anything runs; exits 1 if anything is.
    Check,
    /// Prints a node's stream, one JSON object a record.
    Tail(TailArguments),
}

/// What all subcommands understand.
#[derive(Args, Clone, Default)]
pub struct Options {
    /// The node's database, as a URL or as key=value pairs.
    #[arg(long, global = true, env = "DUPLEX_DATABASE", hide_env_values = true, value_name = "URL")]
    pub database: Option<String>,
    /// Kafka brokers, host:port[,host:port].
    #[arg(long, global = true, env = "DUPLEX_KAFKA", value_name = "BOOTSTRAP")]
    pub kafka: Option<String>,
    /// A file with the same settings.
    #[arg(long, global = true, env = "DUPLEX_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A property of librdkafka, K=V; may be repeated.
    #[arg(long = "kafka-property", global = true, value_name = "K=V")]
    pub kafka_properties: Vec<String>,
    /// A PEM file with the authorities that may vouch for the database server. Without it TLS encrypts and verifies
    /// nothing, as libpq does with sslmode=require.
    #[arg(long, global = true, env = "DUPLEX_DATABASE_CA", value_name = "FILE")]
    pub database_ca: Option<PathBuf>,
}

impl std::fmt::Debug for Options {
    /// Leaves out what may hold a password.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Options").field("kafka", &self.kafka).field("config", &self.config).finish_non_exhaustive()
    }
}

/// The settings file.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct File {
    database: Option<String>,
    database_ca: Option<PathBuf>,
    #[serde(default)]
    kafka: KafkaSection,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct KafkaSection {
    bootstrap: Option<String>,
    #[serde(default)]
    properties: BTreeMap<String, toml::Value>,
}

/// Settings that are complete and well formed.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the database is. Its Debug form leaves the password out.
    pub database: tokio_postgres::Config,
    /// Authorities that may vouch for the database server.
    pub database_ca: Option<PathBuf>,
    /// Where Kafka is.
    pub kafka: Kafka,
}

impl Settings {
    /// Puts the settings together from command line, environment and file.
    ///
    /// # Errors
    /// If an address is missing or malformed, or the file cannot be read.
    pub fn resolve(options: Options) -> anyhow::Result<Self> {
        let file = File::read(options.config.as_deref())?;
        let kafka = options.kafka_with(&file.kafka)?;
        let Some(url) = options.database.or(file.database) else {
            bail!("no database is given: use --database, DUPLEX_DATABASE, or `database` in the file");
        };
        let database = tokio_postgres::Config::from_str(&url).context("the database address is malformed")?;
        Ok(Self { database, database_ca: options.database_ca.or(file.database_ca), kafka })
    }
}

impl Options {
    /// The settings of Kafka alone, for what needs no database.
    ///
    /// # Errors
    /// As [`Settings::resolve`].
    pub fn kafka(&self) -> anyhow::Result<Kafka> {
        let file = File::read(self.config.as_deref())?;
        self.kafka_with(&file.kafka)
    }

    fn kafka_with(&self, section: &KafkaSection) -> anyhow::Result<Kafka> {
        let Some(bootstrap) = self.kafka.clone().or_else(|| section.bootstrap.clone()) else {
            bail!("no Kafka is given: use --kafka, DUPLEX_KAFKA, or `bootstrap` under [kafka] in the file");
        };
        let mut properties = BTreeMap::new();
        for (name, value) in &section.properties {
            let value = match value {
                toml::Value::String(text) => text.clone(),
                toml::Value::Integer(_) | toml::Value::Float(_) | toml::Value::Boolean(_) => value.to_string(),
                _ => bail!("Kafka property {name} must be a string, a number or a boolean"),
            };
            properties.insert(name.clone(), value);
        }
        for pair in &self.kafka_properties {
            // The pair itself is not shown: it may be a password.
            let (name, value) = pair.split_once('=').context("--kafka-property needs the form K=V")?;
            properties.insert(name.to_owned(), value.to_owned());
        }
        Kafka::new(bootstrap, properties)
    }
}

impl File {
    fn read(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        // toml's own error shows the line that it stumbled over, and that line may hold a password.
        let parsed = toml::from_str::<Self>(&text);
        if let Err(err) = &parsed {
            let line = err.span().map_or(1, |span| text[..span.start].lines().count().max(1));
            ensure!(false, "{}, line {line}: {}", path.display(), err.message());
        }
        parsed.with_context(|| format!("cannot read {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Options {
        let mut all = vec!["duplex-relay", "run"];
        all.extend_from_slice(arguments);
        Cli::try_parse_from(all).expect("arguments parse").options
    }

    /// A settings file that goes away with the test.
    struct TemporaryFile(PathBuf);

    impl TemporaryFile {
        fn new(name: &str, text: &str) -> Self {
            let path = std::env::temp_dir().join(format!("duplex-relay-{}-{name}.toml", std::process::id()));
            std::fs::write(&path, text).expect("temporary file can be written");
            Self(path)
        }

        fn path(&self) -> &str {
            self.0.to_str().expect("path is text")
        }
    }

    impl Drop for TemporaryFile {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let file = TemporaryFile::new(
            "precedence",
            "database = 'postgresql://a@one/x'\n[kafka]\nbootstrap = 'k:1'\nproperties = { 'client.id' = 'f', 'linger.ms' = 3 }",
        );
        let given = options(&["--config", file.path(), "--kafka", "k:2", "--kafka-property", "client.id=c"]);
        let settings = Settings::resolve(given).expect("complete");
        assert_eq!(settings.kafka.bootstrap(), "k:2");
        assert_eq!(settings.kafka.property("client.id"), Some("c"));
        assert_eq!(settings.kafka.property("linger.ms"), Some("3"));
        assert_eq!(settings.database.get_dbname(), Some("x"));
    }

    #[test]
    fn what_the_file_does_not_know_is_refused_without_showing_its_value() {
        let file = TemporaryFile::new("unknown", "databse = 'postgresql://a:secret@one/x'\n");
        let given = options(&["--config", file.path(), "--kafka", "k:1"]);
        let text = format!("{:#}", Settings::resolve(given).expect_err("unknown field"));
        assert!(text.contains("databse") && !text.contains("secret"), "{text}");
    }

    #[test]
    fn properties_that_the_promises_stand_on_are_refused() {
        for property in ["acks=1", "enable.idempotence=false", "enable.auto.commit=true", "transactional.id=x"] {
            let given = options(&["--database", "host=x", "--kafka", "k:1", "--kafka-property", property]);
            assert!(Settings::resolve(given).is_err(), "{property}");
        }
    }

    #[test]
    fn properties_that_librdkafka_does_not_take_are_refused_without_showing_their_value() {
        for (property, name) in
            [("sasl.pasword=secret", "sasl.pasword"), ("socket.timeout.ms=secret", "socket.timeout.ms")]
        {
            let given = options(&["--database", "host=x", "--kafka", "k:1", "--kafka-property", property]);
            let text = format!("{:#}", Settings::resolve(given).expect_err(property));
            assert!(text.contains(name) && !text.contains("secret"), "{text}");
        }
    }

    #[test]
    fn passwords_do_not_show() {
        let given = options(&[
            "--database",
            "postgresql://a:secret@one/x",
            "--kafka",
            "k:1",
            "--kafka-property",
            "sasl.password=secret",
        ]);
        assert!(!format!("{given:?}").contains("secret"));
        let settings = Settings::resolve(given).expect("complete");
        assert!(!format!("{settings:?}").contains("secret"), "{settings:?}");
    }
}
