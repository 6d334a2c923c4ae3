//! Waiting for a condition, with a deadline and a word about what was waited for.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything may take that takes milliseconds: long enough for a busy machine of two cores.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until `condition` gives `Ok(Ok(value))`; `Ok(Err(state))` means not yet, and is reported at the deadline.
///
/// # Errors
/// At the deadline, and at once if the condition itself fails.
pub async fn until<T, S, F>(what: &str, patience: Duration, mut condition: F) -> Result<T>
where
    S: Display,
    F: AsyncFnMut() -> Result<std::result::Result<T, S>>,
{
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        match condition().await? {
            Ok(value) => return Ok(value),
            Err(state) if start.elapsed() > patience => bail!("waited {patience:?} for {what}; in the end: {state}"),
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 5 / 4).min(Duration::from_millis(50));
    }
}

/// `Ok` if it is so, else the state as the reason to go on waiting.
///
/// # Errors
/// The state, if it is not so.
pub fn when<S>(so: bool, state: S) -> std::result::Result<(), S> {
    if so { Ok(()) } else { Err(state) }
}
