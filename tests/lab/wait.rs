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

/// Waits for something that moves on: `condition` gives `Ok(Ok(value))` in the end, until then `Ok(Err((at, state)))`. What
/// is slow is waited for, what stands still is not: the deadline counts from when `at` last changed.
///
/// # Errors
/// Once it has stood still for so long, and at once if the condition itself fails.
pub async fn while_moving<T, S, F>(what: &str, patience: Duration, mut condition: F) -> Result<T>
where
    S: Display,
    F: AsyncFnMut() -> Result<std::result::Result<T, (i64, S)>>,
{
    let (mut last, mut since) = (None, Instant::now());
    let mut pause = Duration::from_millis(2);
    loop {
        match condition().await? {
            Ok(value) => return Ok(value),
            Err((at, _)) if last != Some(at) => (last, since) = (Some(at), Instant::now()),
            Err((_, state)) if since.elapsed() > patience => {
                bail!("{what} has not moved on for {patience:?}; in the end: {state}");
            }
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
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
