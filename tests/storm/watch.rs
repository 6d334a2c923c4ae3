//! What goes on beside the writers for as long as they write.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::Session;

/// Between two looks: a stream that has stopped stays so, hence none is missed, and looking costs the storm little.
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// Looks at the streams that a node applies until then. One that is tried again is not counted against it: a deadlock
/// is what anybody who writes may meet. Returns how often it has looked.
///
/// # Errors
/// As soon as a stream has stopped, or something of it is parked.
pub async fn watch(node: &str, session: Session, until: Instant) -> Result<usize> {
    let mut looks = 0;
    while Instant::now() < until {
        let wrong = session
            .rows(
                "select name, state, reason, failed_change, parked from duplex.peers \
                  where state not in ('waiting', 'running', 'retrying') or parked > 0",
            )
            .await?;
        ensure!(wrong.is_empty(), "{node} does not apply all its streams: {wrong:?}");
        looks += 1;
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
    Ok(looks)
}

/// Has a node forget all that it may, all the time until then.
///
/// # Errors
/// If it never looks through any register to its end.
pub async fn sweep(session: Session, until: Instant) -> Result<()> {
    while Instant::now() < until {
        session.exec("select duplex.maintain()").await?;
    }
    let swept = session.number("select count(*) from duplex.sweeps where forgotten_to is not null").await?;
    ensure!(swept > 0, "nothing could ever be forgotten");
    Ok(())
}
