//! `duplex-relay check`.

use std::process::ExitCode;

use crate::check::{self, Finding};
use crate::config::Settings;

/// Prints a line for each finding.
///
/// # Errors
/// None by itself: what is missing is a finding.
pub async fn run(settings: Settings) -> anyhow::Result<ExitCode> {
    let findings = check::all(&settings).await;
    for finding in &findings {
        println!("{finding}");
    }
    Ok(if findings.iter().any(Finding::is_failure) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
