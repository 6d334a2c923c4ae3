//! What can go wrong, and the one table that says what is done about it and what a person may do.

use duplex_protocol::codec::DecodeError;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// Whatever stops a loop's present attempt.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection to the database could be made.
    #[error("cannot connect to the database: {}", described(.0))]
    Connect(#[source] tokio_postgres::Error),
    /// TLS towards the database cannot be set up.
    #[error("cannot set up TLS towards the database: {0}")]
    Tls(String),
    /// The database failed at something that concerns no single record.
    #[error("{what}: {}", described(.source))]
    Database {
        /// What was being done.
        what: &'static str,
        /// What PostgreSQL or the connection to it says.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A record could not be applied.
    #[error("applying the record at offset {offset}: {}", described(.source))]
    Apply {
        /// The record, or the first chunk of its transaction.
        offset: i64,
        /// What PostgreSQL says.
        #[source]
        source: tokio_postgres::Error,
    },
    /// Kafka failed.
    #[error("{what}: {source}")]
    Kafka {
        /// What was being done.
        what: &'static str,
        /// What librdkafka says.
        #[source]
        source: KafkaError,
    },
    /// A stream has to be in order, which only one partition is.
    #[error("topic {topic} has {found} partitions, a stream needs exactly 1")]
    TopicPartitions {
        /// The topic.
        topic: String,
        /// What it has.
        found: usize,
    },
    /// The peer has not published anything yet.
    #[error("topic {topic} does not exist yet: the peer's relay has not started, or uses another Kafka")]
    TopicMissing {
        /// The topic.
        topic: String,
    },
    /// The topic does not hold what comes next, or is another one than before.
    #[error("{0}")]
    Gap(String),
    /// A record is none.
    #[error("the record at offset {offset} cannot be read: {source}")]
    Record {
        /// Where it is.
        offset: i64,
        /// What is wrong with it.
        #[source]
        source: DecodeError,
    },
    /// Records do not follow each other as a relay writes them.
    #[error("the stream is broken at offset {offset}: {reason}")]
    Broken {
        /// Where.
        offset: i64,
        /// How.
        reason: &'static str,
    },
    /// The database has no `duplex.create_node` behind it, or the extension is not there.
    #[error("{0}")]
    NotReady(&'static str),
    /// The relay is ending.
    #[error("the relay is ending")]
    Ending,
}

/// What is done about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// It passes: try again, waiting longer each time.
    Retry,
    /// It may be a race with a local writer: try this often, then stop.
    RetryTimes(u32),
    /// Another relay is at it: stand by.
    StandBy,
    /// What is needed is not there yet: look again each second.
    Wait,
    /// It is in the data: stop this stream until a person has acted.
    Stop,
    /// Kafka does not hold what comes next: stop this stream until a person has acted.
    Gap,
}

/// SQLSTATEs by prefix, first match wins; what matches nothing is in the data.
const SQLSTATES: &[(&str, Policy, &str)] = &[
    ("40001", Policy::Retry, "serialization failure: passes"),
    ("40P01", Policy::Retry, "deadlock with a local transaction: passes"),
    ("55P03", Policy::Retry, "a lock is held for long: look at pg_locks"),
    ("55006", Policy::StandBy, "another relay serves this node"),
    ("55000", Policy::Retry, "the database is not ready: is duplex.create_node called, track_commit_timestamp on?"),
    ("53", Policy::Retry, "the server is out of a resource: disk, memory or connections"),
    ("57014", Policy::Retry, "statement_timeout or a cancel: set no timeout for the relay's role"),
    ("57", Policy::Retry, "the server is starting, stopping or was told to end the session"),
    ("58", Policy::Retry, "the server has trouble with its system: see its log"),
    ("08", Policy::Retry, "the connection broke"),
    ("25006", Policy::Retry, "the server is read only, a standby perhaps: give the primary's address"),
    ("23505", Policy::RetryTimes(3), "a unique value is taken: see the row, then duplex.retry_peer"),
    ("23503", Policy::Stop, "a row that is referred to is missing: see the row, then duplex.retry_peer"),
    ("42P01", Policy::Stop, "a table is missing here: create and enable it, then duplex.retry_peer"),
    ("42703", Policy::Stop, "a column is missing here: add it, then duplex.retry_peer"),
    ("42501", Policy::Stop, "a right is missing: grant role duplex_relay to the relay's role, then duplex.retry_peer"),
    ("42883", Policy::Stop, "the extension lacks a function: alter extension pg_duplex update, then duplex.retry_peer"),
];

impl Error {
    /// Says what was being done when Kafka failed.
    pub fn kafka(what: &'static str) -> impl FnOnce(KafkaError) -> Self {
        move |source| Self::Kafka { what, source }
    }

    /// Says what was being done when the database failed.
    pub fn database(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Database { what, source }
    }

    /// What is done about this error, and what a person may do.
    pub fn treatment(&self) -> (Policy, &'static str) {
        match self {
            Self::Connect(_) => {
                (Policy::Retry, "is the server up, and are address, user, password and pg_hba.conf right?")
            }
            Self::Tls(_) => (Policy::Retry, "check --database-ca"),
            // While applying it says that the stream is not what it should be: another database under the peer's name,
            // or a clock far ahead.
            Self::Apply { source, .. } if source.code().is_some_and(|state| state.code() == "55000") => {
                (Policy::Stop, "remove the cause, then duplex.retry_peer")
            }
            Self::Database { source, .. } | Self::Apply { source, .. } => match source.code() {
                Some(state) => sqlstate(state.code()),
                None => (Policy::Retry, "the connection broke"),
            },
            Self::Kafka { source, .. } => kafka_code(source.rdkafka_error_code()),
            Self::TopicPartitions { .. } => {
                (Policy::Retry, "delete the topic while it is empty; the relay makes it anew")
            }
            Self::TopicMissing { .. } => (Policy::Wait, "start the peer's relay"),
            Self::Gap(_) => (
                Policy::Gap,
                "duplex.resync_peer once the tables are equal, or duplex.retry_peer once the records are back",
            ),
            Self::Record { .. } | Self::Broken { .. } => (
                Policy::Stop,
                "something else writes to the topic, or a newer pg_duplex does; then duplex.retry_peer or duplex.resync_peer",
            ),
            Self::NotReady(_) => (Policy::Wait, "create extension pg_duplex; select duplex.create_node('a name')"),
            Self::Ending => (Policy::Retry, ""),
        }
    }

    /// SQLSTATE, message, detail and hint, if PostgreSQL said so.
    pub fn report(&self) -> Report<'_> {
        let said = match self {
            Self::Database { source, .. } | Self::Apply { source, .. } | Self::Connect(source) => source.as_db_error(),
            _ => None,
        };
        match said {
            Some(said) => Report {
                sqlstate: said.code().code(),
                message: said.message().to_owned(),
                detail: said.detail(),
                hint: said.hint(),
            },
            // "data exception": what PostgreSQL calls a value that it cannot take.
            None => Report { sqlstate: "22000", message: self.to_string(), detail: None, hint: None },
        }
    }
}

/// An error as `duplex.report_error` takes it.
#[derive(Debug)]
pub struct Report<'a> {
    /// SQLSTATE.
    pub sqlstate: &'a str,
    /// What is wrong.
    pub message: String,
    /// More of it.
    pub detail: Option<&'a str>,
    /// What to do.
    pub hint: Option<&'a str>,
}

fn sqlstate(state: &str) -> (Policy, &'static str) {
    SQLSTATES.iter().find(|(prefix, ..)| state.starts_with(prefix)).map_or(
        (
            Policy::Stop,
            "this change cannot be applied here: remove the cause, then duplex.retry_peer; or duplex.skip_transaction",
        ),
        |&(_, policy, advice)| (policy, advice),
    )
}

fn kafka_code(code: Option<RDKafkaErrorCode>) -> (Policy, &'static str) {
    use RDKafkaErrorCode as Code;
    let advice = match code {
        Some(Code::Authentication | Code::SaslAuthenticationFailed) => {
            "Kafka refuses who we are: check sasl.* properties"
        }
        Some(Code::SSL) => "TLS towards Kafka fails: check security.protocol and ssl.* properties",
        Some(Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed | Code::GroupAuthorizationFailed) => {
            "Kafka refuses it: grant Describe, DescribeConfigs, Create, Read and Write on topics duplex.*"
        }
        Some(Code::MessageSizeTooLarge) => "raise max.message.bytes of the topic to 1 MiB",
        Some(Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend) => "too few of Kafka's replicas are in sync",
        _ => "is Kafka up, and are --kafka and its advertised listeners right?",
    };
    (Policy::Retry, advice)
}

/// tokio-postgres says only "db error" by itself; what the server said is one level below.
fn described(err: &tokio_postgres::Error) -> String {
    match err.as_db_error() {
        Some(said) => format!("{} ({})", said.message(), said.code().code()),
        None => match std::error::Error::source(err) {
            Some(below) => format!("{err}: {below}"),
            None => err.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_retried_and_what_is_in_the_data_stops_the_stream() {
        for state in ["40001", "40P01", "55P03", "53300", "53100", "57P01", "57P03", "08006", "57014"] {
            assert_eq!(sqlstate(state).0, Policy::Retry, "{state}");
        }
        for state in ["42P01", "42703", "23503", "23514", "22P02", "XX000", "42804"] {
            assert_eq!(sqlstate(state).0, Policy::Stop, "{state}");
        }
        assert_eq!(sqlstate("23505").0, Policy::RetryTimes(3));
        assert_eq!(sqlstate("55006").0, Policy::StandBy);
    }

    #[test]
    fn a_connection_error_is_never_a_data_error() {
        // Treating it so skipped a committed transaction elsewhere.
        let err = Error::Kafka { what: "x", source: KafkaError::Global(RDKafkaErrorCode::BrokerTransportFailure) };
        assert_eq!(err.treatment().0, Policy::Retry);
        assert_eq!(Error::Gap(String::new()).treatment().0, Policy::Gap);
    }

    #[test]
    fn every_error_has_advice() {
        assert!(SQLSTATES.iter().all(|(_, _, advice)| !advice.is_empty()));
    }
}
