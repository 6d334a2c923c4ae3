//! The relay of one node: takes what the database's queue holds to Kafka, and what Kafka holds of its peers into the
//! database. It knows no table; every decision about data is taken inside PostgreSQL.
//!
//! | module | subject |
//! |---|---|
//! | [`config`] | command line, environment and file, made into one [`config::Settings`] |
//! | [`node`] | one node's loops, and their end |
//! | [`outbound`] | queue → Kafka |
//! | [`inbound`] | Kafka → the database, a stream for each peer |
//! | [`sifter`] | which records of a stream are void |
//! | [`suspicion`] | which failures of applying are in the data |
//! | [`errors`] | what can go wrong, what is done about it, and what a person may do |
//! | [`database`], [`tls`], [`control`] | connections to PostgreSQL |
//! | [`kafka`] | settings of Kafka clients, and questions to the cluster |
//! | `watch` | clients of Kafka that get no answer, and topics that are not served |
//! | [`commands`], [`check`] | the subcommands |
//! | [`failpoints`] | where tests let it die |

pub mod backoff;
pub mod check;
pub mod commands;
pub mod config;
pub mod control;
pub mod database;
pub mod errors;
pub mod failpoints;
pub mod inbound;
pub mod kafka;
pub mod logs;
pub mod node;
pub mod outbound;
pub mod sifter;
pub mod stop;
pub mod suspicion;
pub mod tls;
mod watch;
