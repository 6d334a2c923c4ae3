//! What a transaction has to wait for before it is applied.

use std::collections::HashMap;
use std::ffi::CString;
use std::time::{Duration, Instant};

use duplex_protocol::record::{Header, Seen};
use pgrx::{PgSqlErrorCode, Spi, check_for_interrupts, pg_sys};

use crate::apply::heard::Heard;
use crate::apply::own::with_own_tables;
use crate::errors::{Failure, Result};
use crate::{gucs, node};

/// How long to wait for another stream before the relay is told to try again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether that stream still goes on.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// How far other streams were known to be applied here when last looked at; they only go forward.
pub(crate) type Known = HashMap<String, u64>;

/// Waits until the local clock is strictly past the transaction's timestamp.
///
/// So whoever writes here after having read the row gets a later version, and last-update-wins never loses an update to
/// a fast clock.
pub(crate) fn clock(header: &Header, heard: &mut Heard) -> Result<()> {
    loop {
        // SAFETY: a plain call.
        let now = unsafe { pg_sys::GetCurrentTimestamp() };
        let ahead = header.commit_ts.saturating_sub(now);
        if ahead < 0 {
            return Ok(());
        }
        if ahead > gucs::max_clock_skew() {
            heard.ahead = Some((header.commit_ts, now));
            return Err(Failure::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("the clock of node \"{}\" is {} ms ahead of this one", header.node, ahead / 1000),
            )
            .hint("Synchronise the clocks (NTP), or raise duplex.max_clock_skew. The stream goes on once it may."));
        }
        pause(ahead / 1000 + 1);
    }
}

/// Waits until this node has applied the other streams as far as the sender had.
///
/// Nodes that are no peers here are passed over: nothing of theirs ever comes. Every stream is in Kafka, so nobody
/// waits for a node that is down. A stream that stands still here, until a person acts, holds up no other: then the order
/// is given up, visibly, rather than the others' changes, and versions decide as ever. So it is with one that a person
/// holds, unless that person said that others wait.
pub(crate) fn causes(header: &Header, own: &str, known: &mut Known) -> Result<()> {
    for seen in &header.seen {
        if seen.node != own && known.get(&seen.node).is_none_or(|&next| next < seen.next_offset) {
            cause(seen, &header.node, known)?;
        }
    }
    Ok(())
}

fn cause(seen: &Seen, waiting: &str, known: &mut Known) -> Result<()> {
    let origin = CString::new(node::origin_name(&seen.node)).map_err(|_| {
        Failure::new(PgSqlErrorCode::ERRCODE_DATA_CORRUPTED, "name of a node in a record is not a name")
    })?;
    let started = Instant::now();
    let mut looked: Option<Instant> = None;
    loop {
        // SAFETY: inside a transaction; the name is NUL-terminated.
        let progress = unsafe {
            match pg_sys::replorigin_by_name(origin.as_ptr(), true) {
                0 => None,
                id => Some(pg_sys::replorigin_get_progress(id, false)),
            }
        };
        if progress.is_some_and(|next| next >= seen.next_offset) {
            known.insert(seen.node.clone(), progress.unwrap_or_default());
            return Ok(());
        }
        // Asked only once there is something to wait for: a peer that was removed keeps its origin.
        if looked.is_none_or(|looked| looked.elapsed() >= LOOK_AGAIN) {
            looked = Some(Instant::now());
            if !with_own_tables(|| is_so(GOES_ON, &seen.node)) {
                return Ok(());
            }
            if with_own_tables(|| is_so(IS_PAUSED, waiting)) {
                return Err(Failure::new(
                    PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
                    format!("the stream of node \"{waiting}\" is paused"),
                ));
            }
        }
        if started.elapsed() > PATIENCE {
            return Err(Failure::new(
                PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
                format!("the stream of node \"{}\" has not come far enough here yet", seen.node),
            )
            .detail(format!(
                "The transaction was made after offset {} of it had been applied; here the next one is {}.",
                seen.next_offset,
                progress.unwrap_or(0)
            )));
        }
        pause(2);
    }
}

/// Whether that node is a peer whose stream does not stand still here, or is to be waited for.
const GOES_ON: &str = "select exists (select from duplex.peer_registry where name = $1 \
    and state not in ('stopped', 'gap') and (paused_at is null or paused_others_wait))";
/// Whether an operator holds that peer's stream: who waits for its next transaction's turn lets go of it.
const IS_PAUSED: &str = "select exists (select from duplex.peer_registry where name = $1 and paused_at is not null)";

fn is_so(sql: &str, node: &str) -> bool {
    // As a writer, for a snapshot of its own: the statement's may be older than the news.
    Spi::connect_mut(|client| client.update(sql, None, &[node.into()])?.first().get_one::<bool>())
        .ok()
        .flatten()
        .unwrap_or(false)
}

/// Sleeps, open to interrupts.
fn pause(milliseconds: i64) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: waits on this process's own latch.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events.cast_signed(), milliseconds, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    check_for_interrupts!();
}
