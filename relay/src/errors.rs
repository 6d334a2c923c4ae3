//! What can go wrong, and the one table that says what is done about it and what a person may do.

use std::borrow::Cow;

use duplex_protocol::codec::DecodeError;
use duplex_protocol::sqlstate::{self, Class};
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
    /// A record could not be applied. What PostgreSQL says may hold values of rows, and is not shown here.
    #[error("the record at offset {offset} cannot be applied: {}{}", shown(.change.as_deref()), without_values(.source))]
    Apply {
        /// The record, or the first chunk of its transaction.
        offset: i64,
        /// The very change that failed, if it is known.
        change: Option<Box<FailedChange>>,
        /// What PostgreSQL says.
        #[source]
        source: tokio_postgres::Error,
    },
    /// Kafka failed.
    #[error("{what}: {source}")]
    Kafka {
        /// What was being done.
        what: Cow<'static, str>,
        /// What librdkafka says.
        #[source]
        source: KafkaError,
    },
    /// librdkafka has forgotten where Kafka is (`watch`).
    #[error("a Kafka client gets no answer any more, and a new one does")]
    CutOff,
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
    /// This is not the Kafka that the node published to.
    #[error("this is Kafka cluster {found}, and this node published to {known}")]
    OtherKafka {
        /// The cluster that it published to.
        known: String,
        /// The one that answers.
        found: String,
    },
    /// The own topic was made anew while this relay wrote to it.
    #[error(
        "Kafka put a record at offset {offset} that comes behind {least} others: the topic of this node was deleted and \
         made anew"
    )]
    TopicRemade {
        /// Where the record is.
        offset: i64,
        /// Where it has to be at the least.
        least: i64,
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

/// A change that failed, as `duplex.apply_failure` tells it: without values, which are in `duplex.apply_errors`.
#[derive(Debug, Clone)]
pub struct FailedChange {
    /// Its number in its transaction, from 1.
    pub ordinal: i32,
    /// What it does.
    pub operation: String,
    /// To which table.
    pub table: String,
    /// The number under which `duplex.apply_errors` has it.
    pub error_id: i64,
}

impl Error {
    /// Says what was being done when Kafka failed.
    pub fn kafka(what: impl Into<Cow<'static, str>>) -> impl FnOnce(KafkaError) -> Self {
        let what = what.into();
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
            Self::Database { source, .. } | Self::Apply { source, .. } => {
                let Some(state) = source.code() else { return (Policy::Retry, "the connection broke") };
                let applying = matches!(self, Self::Apply { .. });
                match sqlstate::class(state.code()) {
                    // The stream is not what it should be: another database under the peer's name, a clock far ahead,
                    // a table that is not enabled.
                    (Class::NotReady, _) if applying => (Policy::Stop, "remove the cause, then duplex.retry_peer"),
                    (Class::Transient | Class::NotReady, advice) => (Policy::Retry, advice),
                    (Class::Race, advice) => (Policy::RetryTimes(3), advice),
                    (Class::Taken, advice) => (Policy::StandBy, advice),
                    (Class::Data, advice) => (Policy::Stop, advice),
                }
            }
            Self::Kafka { source, .. } => kafka_code(source.rdkafka_error_code()),
            Self::CutOff => (Policy::Retry, "the attempt that follows has a new client"),
            Self::TopicPartitions { .. } => {
                (Policy::Retry, "delete the topic while it is empty; the relay makes it anew")
            }
            Self::TopicMissing { .. } => (Policy::Wait, "start the peer's relay"),
            Self::OtherKafka { .. } => (
                Policy::Wait,
                "give the right --kafka; if this node moves to another Kafka, select duplex.change_kafka()",
            ),
            Self::TopicRemade { .. } => (
                Policy::Retry,
                "what is not confirmed is sent to the new topic; the peers' streams of this node become gaps, since what \
                 the old one held is lost",
            ),
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

    /// What is wrong and what a person may do, for `duplex.peers`, where only those who may see rows look.
    pub fn reason(&self) -> String {
        let advice = self.treatment().1;
        match self {
            Self::Apply { source, .. } => format!("{self}: {}; {advice}", described(source)),
            _ => format!("{self}; {advice}"),
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

fn shown(change: Option<&FailedChange>) -> String {
    change.map_or_else(String::new, |FailedChange { ordinal, operation, table, error_id }| {
        format!("change {ordinal} of its transaction, {operation} of {table} (duplex.apply_errors {error_id}), ")
    })
}

/// What PostgreSQL says without what it says of values.
fn without_values(err: &tokio_postgres::Error) -> String {
    let Some(said) = err.as_db_error() else { return described(err) };
    let mut text = format!("SQLSTATE {}", said.code().code());
    for (what, name) in [("table", said.table()), ("column", said.column()), ("constraint", said.constraint())] {
        if let Some(name) = name {
            text += &format!(", {what} {name}");
        }
    }
    text
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
    fn a_connection_error_is_never_a_data_error() {
        // Treating it so skipped a committed transaction elsewhere.
        let err =
            Error::Kafka { what: "x".into(), source: KafkaError::Global(RDKafkaErrorCode::BrokerTransportFailure) };
        assert_eq!(err.treatment().0, Policy::Retry);
        assert_eq!(Error::Gap(String::new()).treatment().0, Policy::Gap);
    }
}
