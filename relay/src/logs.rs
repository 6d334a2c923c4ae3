//! Log lines on stderr: text for a terminal, JSON for whatever collects them.

use std::io::IsTerminal as _;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// One line of text each.
    Text,
    /// One JSON object each.
    Json,
}

/// Starts logging. `RUST_LOG` chooses what is logged, `info` and above if it is not set.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let terminal = std::io::stderr().is_terminal();
    match format {
        LogFormat::Auto if !terminal => builder.json().flatten_event(true).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Auto | LogFormat::Text => builder.with_ansi(terminal).init(),
    }
}
