//! What a peer says of itself in heartbeats: its watermarks, and by the way what its clock shows.
//!
//! A node at rest is not to write its WAL for that every few seconds. So most heartbeats only move the stream's offset on,
//! in memory, where a crash may forget it: what would be read again is heartbeats. The offset and the watermarks are
//! written down together, in one commit, now and then; and at once where something here waits to be forgotten.

use std::time::{Duration, Instant};

use duplex_protocol::record::Header;
use duplex_protocol::version::Timestamp;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::{Spi, pg_sys};

use crate::apply::careful::internal;
use crate::apply::own::with_own_tables;
use crate::apply::session::Session;
use crate::errors::Result;
use crate::queue::watermark;

/// How often what a peer says is written down where nothing waits for it.
const WRITTEN_EVERY: Duration = Duration::from_secs(60);

/// What a session knows of the peer beside its changes.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    written: Option<Instant>,
    /// Whether the peer knew its watermarks then.
    known: (bool, bool),
    /// The peer's clock was further ahead than it may be: when the transaction was stamped, and what the clock said here.
    pub(crate) ahead: Option<(Timestamp, Timestamp)>,
}

/// Takes a heartbeat in. Returns whether the caller is to commit what was written, together with the offset.
pub(crate) fn take(session: &mut Session, header: &Header, offset: u64) -> Result<bool> {
    let known = (header.settled != i64::MIN, header.held != i64::MIN);
    let due = session.heard.written.is_none_or(|written| written.elapsed() >= WRITTEN_EVERY)
        || session.heard.known != known
        || watermark::is_wanted(Some(&session.peer))?;
    if !due {
        // SAFETY: the session's origin is set up. The local position is that of no commit and stays as it is; where the
        // server writes this down at a checkpoint, all commits before it are flushed.
        unsafe { pg_sys::replorigin_session_advance(offset + 1, 0) };
        return Ok(false);
    }
    write(session, header)?;
    session.heard.written = Some(Instant::now());
    session.heard.known = known;
    Ok(true)
}

/// Keeps the peer's watermarks, and how far its stream was applied.
///
/// A watermark is no promise for longer than the peer's clock goes on as it does, and one that is ahead will be set right
/// some day. So it counts up to what the clock says here, and no further.
fn write(session: &Session, header: &Header) -> Result<()> {
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    let time = |at: Timestamp| if at == i64::MIN { None } else { TimestampWithTimeZone::try_from(at.min(now)).ok() };
    let sql = "update duplex.peer_registry \
                  set settled = greatest(settled, $2), held = greatest(held, $3), \
                      clock_skew = $4::int8 * interval '1 microsecond', heard_at = clock_timestamp(), \
                      last_lsn = $5, last_xid = $6 \
                where name = $1";
    let arguments = [
        session.peer.as_str().into(),
        time(header.settled).into(),
        time(header.held).into(),
        header.commit_ts.saturating_sub(now).into(),
        session.position.lsn.cast_signed().into(),
        session.position.xid.cast_signed().into(),
    ];
    with_own_tables(|| Spi::run_with_args(sql, &arguments)).map_err(internal)
}

/// Writes down how far ahead the clock of the peer was when its stream stopped for that, and when it may go on.
pub(crate) fn record_skew(session: &mut Session) -> Result<()> {
    let Some((stamped, now)) = session.heard.ahead.take() else { return Ok(()) };
    let sql = "update duplex.peer_registry \
                  set clock_skew = $2::int8 * interval '1 microsecond', heard_at = clock_timestamp(), stamped_ahead = $3 \
                where name = $1";
    let arguments = [
        session.peer.as_str().into(),
        stamped.saturating_sub(now).into(),
        TimestampWithTimeZone::try_from(stamped).ok().into(),
    ];
    with_own_tables(|| Spi::run_with_args(sql, &arguments)).map_err(internal)
}
