//! A server that was promoted, or restored, before it had received all may have told its peers that it had more of them
//! than it has. They may have forgotten by that: what is added to counters here, and to which version of a row, cannot be
//! told by them any more. So tables with counters or merged columns take no local writes until that is caught up with.
//!
//! That it may lack something is known from the timeline, which every promotion changes, before any relay has had a look;
//! what it lacks the relay reads in the node's own stream (`sql/41_promotion.sql`).

use pgrx::{PgSqlErrorCode, pg_extern, pg_sys};

use crate::conflict::registers::each_row;
use crate::errors::Failure;

/// Where `duplex.node` has the timeline.
const TIMELINE: usize = 6;

/// Whether this database lacks what it once had, as of now, whatever this transaction sees.
pub(super) fn lacks() -> bool {
    let now = timeline();
    let mut lacks = false;
    each_row(c"node", None, |node| lacks = node.integer(TIMELINE) != now);
    each_row(c"promised", None, |_| lacks = true);
    lacks
}

/// Why a table takes no writes.
pub(super) fn refusal(table: &str) -> Failure {
    Failure::new(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!(
            "table \"{table}\" takes no writes yet: this database lacks what it had applied before it was promoted"
        ),
    )
    .detail("Its counters and merged columns would not become the same on all nodes.")
    .hint(
        "The relay catches up with that by itself: duplex.status shows what is missing. Setting \
         duplex.write_before_caught_up lets writes through before.",
    )
}

/// `duplex.timeline()`
#[pg_extern(sql = "")]
fn timeline() -> i32 {
    // SAFETY: reads shared memory; on a standby it is that of no WAL that is written.
    unsafe { pg_sys::GetWALInsertionTimeLine() }.cast_signed()
}

/// `duplex.announce_all()`: the message goes out with the commit.
#[pg_extern(sql = "")]
fn announce_all() {
    // SAFETY: inside a transaction.
    unsafe { pg_sys::CacheInvalidateRelcacheAll() }
}
