//! `duplex-relay run`.

use std::process::ExitCode;

use crate::config::Settings;
use crate::node;

/// Carries changes until told to end.
///
/// # Errors
/// As [`node::run`].
pub async fn run(settings: Settings) -> anyhow::Result<ExitCode> {
    #[cfg(feature = "failpoints")]
    let _places = crate::failpoints::set_up();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), kafka = settings.kafka.bootstrap(), "duplex-relay starts");
    node::run(settings).await?;
    Ok(ExitCode::SUCCESS)
}
