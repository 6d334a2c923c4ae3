//! What must be true before a relay can work, each with a line of advice.

mod schemas;
mod topics;

use std::fmt;

use tokio_postgres::types::FromSqlOwned;

use crate::config::Settings;
use crate::control::{Control, Info};
use crate::database::Session;
use crate::errors::Error;

/// The functions that the relay calls.
const FUNCTIONS: [&str; 19] = [
    "duplex.relay_info()",
    "duplex.drain_open(bigint)",
    "duplex.drain(integer, integer)",
    "duplex.drain_confirm(bigint, bigint, bigint)",
    "duplex.apply_open(text)",
    "duplex.apply_batch(bytea[], bigint[])",
    "duplex.apply_chunk(bytea, bigint)",
    "duplex.apply_position()",
    "duplex.apply_skip(bigint)",
    "duplex.compare_table(jsonb)",
    "duplex.apply_careful()",
    "duplex.apply_failure()",
    "duplex.apply_parked()",
    "duplex.stream_orders(text, bigint)",
    "duplex.meet_kafka(text, text)",
    "duplex.drain_missing(bigint[], bigint[])",
    "duplex.drain_promised(text[], bigint[], boolean)",
    "duplex.report_peer(text, text, text)",
    "duplex.report_error(text, bigint, text, text, text, text)",
];

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// As it should be.
    Fine(String),
    /// Works, and is worth knowing.
    Note {
        /// What was found.
        what: String,
        /// What may be done.
        advice: String,
    },
    /// Must be mended.
    Failure {
        /// What was found.
        what: String,
        /// What to do.
        advice: String,
    },
}

impl Finding {
    /// Whether the relay cannot work like this.
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Failure { .. })
    }

    fn failure(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Failure { what: what.into(), advice: advice.into() }
    }

    fn note(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::Note { what: what.into(), advice: advice.into() }
    }

    fn error(err: &Error) -> Self {
        Self::failure(err.to_string(), err.treatment().1)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fine(what) => write!(out, "ok    {what}"),
            Self::Note { what, advice } => write!(out, "note  {what}  → {advice}"),
            Self::Failure { what, advice } => write!(out, "FAIL  {what}  → {advice}"),
        }
    }
}

/// Looks at everything.
pub async fn all(settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (session, info) = match Session::connect(settings, "check").await {
        Err(err) => {
            findings.push(Finding::error(&err));
            (None, None)
        }
        Ok(session) => {
            let info = database(&session, settings, &mut findings).await;
            (Some(session), info)
        }
    };
    let readable = topics::look(&settings.kafka, session.as_ref(), info.as_ref(), &mut findings).await;
    if let Some(session) = session {
        for peer in readable {
            schemas::compare(&session, &settings.kafka, &peer, &mut findings).await;
        }
    }
    findings
}

async fn database(session: &Session, settings: &Settings, findings: &mut Vec<Finding>) -> Option<Info> {
    findings.push(Finding::Fine("database answers".to_owned()));
    let installed = value::<Option<String>>(session, "select extversion from pg_extension where extname = 'pg_duplex'");
    let ours = env!("CARGO_PKG_VERSION");
    findings.push(match installed.await.flatten() {
        None => {
            findings.push(Finding::failure("extension pg_duplex is missing", "create extension pg_duplex"));
            return None;
        }
        Some(found) if found == ours => Finding::Fine(format!("extension pg_duplex {found}")),
        Some(found) => Finding::failure(
            format!("extension pg_duplex is {found}, the relay {ours}"),
            "install the same version of both, then alter extension pg_duplex update",
        ),
    });
    let setting = value::<String>(session, "select current_setting('track_commit_timestamp')").await;
    findings.push(match setting.as_deref() {
        Some("on") => Finding::Fine("track_commit_timestamp is on".to_owned()),
        _ => Finding::failure(
            "track_commit_timestamp is off",
            "alter system set track_commit_timestamp = on, and restart PostgreSQL",
        ),
    });
    rights(session, findings).await;
    let info = match Control::new(settings.clone()).info().await {
        Ok(info) => info,
        Err(err) => {
            findings.push(Finding::error(&err));
            return None;
        }
    };
    findings.push(Finding::Fine(format!("this is node {}, peers: {}", info.node, listed(&info.peers))));
    if info.peers.is_empty() {
        findings.push(Finding::note("no peer yet", "select duplex.add_peer('the other node')"));
    }
    match value::<i64>(session, "select count(*) from duplex.tables").await {
        Some(0) => findings.push(Finding::note("no table takes part yet", "select duplex.enable('a_table')")),
        Some(1) => findings.push(Finding::Fine("1 table takes part".to_owned())),
        Some(count) => findings.push(Finding::Fine(format!("{count} tables take part"))),
        None => {}
    }
    if let Some(lacks) = value::<Option<String>>(session, "select duplex.lacks()").await.flatten() {
        findings.push(Finding::note(
            format!("the database lacks {lacks}; tables with counters or merged columns take no writes"),
            "it catches up by itself once the relay runs",
        ));
    }
    stream_states(session, findings).await;
    Some(info)
}

async fn rights(session: &Session, findings: &mut Vec<Finding>) {
    let mut missing = Vec::new();
    for function in FUNCTIONS {
        let sql = "select coalesce(has_function_privilege(to_regprocedure($1)::oid, 'execute'), false)";
        let allowed = session.query_one(sql, &[&function]).await;
        if !allowed.is_ok_and(|row| row.get::<_, bool>(0)) {
            missing.push(function);
        }
    }
    findings.push(if missing.is_empty() {
        Finding::Fine("the role may call what the relay calls".to_owned())
    } else {
        Finding::failure(
            format!("the role may not call {}", missing.join(", ")),
            "grant duplex_relay to the role that the relay logs in as",
        )
    });
}

/// How applying went last: the peers' streams, and what a promoted server takes back of its own.
async fn stream_states(session: &Session, findings: &mut Vec<Finding>) {
    let sql = "select 'own stream of ', name, 'stopped', replay_stopped from duplex.node where replay_stopped is not null \
               union all (select 'peer ', name, state, coalesce(reason, '') from duplex.peers order by name)";
    let Ok(rows) = session.query(sql, &[]).await else { return };
    for row in rows {
        let (name, state, reason): (String, String, String) = (row.get(1), row.get(2), row.get(3));
        let stream = row.get::<_, String>(0) + &name;
        findings.push(match state.as_str() {
            "stopped" => Finding::failure(
                format!("{stream}: stopped: {reason}"),
                format!("remove the cause, then select duplex.retry_peer('{name}')"),
            ),
            "gap" => Finding::failure(
                format!("{stream}: gap: {reason}"),
                format!("copy the tables, then select duplex.resync_peer('{name}', offset)"),
            ),
            "paused" => Finding::note(
                format!("{stream}: paused: {reason}"),
                format!("select duplex.resume_peer('{name}') once it may go on"),
            ),
            "retrying" => Finding::note(format!("{stream}: retrying: {reason}"), "it goes on by itself"),
            _ => Finding::Fine(format!("{stream}: {state}")),
        });
    }
}

async fn value<T: FromSqlOwned>(session: &Session, sql: &str) -> Option<T> {
    session.query_opt(sql, &[]).await.ok().flatten().map(|row| row.get(0))
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_with_its_advice() {
        assert_eq!(Finding::Fine("x".to_owned()).to_string(), "ok    x");
        assert_eq!(Finding::failure("x", "do y").to_string(), "FAIL  x  → do y");
        assert!(Finding::failure("x", "y").is_failure() && !Finding::note("x", "y").is_failure());
    }
}
