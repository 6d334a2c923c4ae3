//! One pass over the rows of one snapshot, in the order of commits.
//!
//! A pass lists what its snapshot sees and the previous one did not, sorted, and hands it out chunk by chunk. A long
//! backlog is listed a part at a time, so that memory stays bounded.

use std::collections::BinaryHeap;

use duplex_protocol::record::Position;
use duplex_protocol::version::Timestamp;
use pgrx::pg_sys;

use super::page::{self, RowHead, RowId};
use super::segment::{self, Segment};
use super::snapshot::Snapshot;
use super::tables::COUNT;
use crate::errors::Result;

/// Rows listed at once: 40 bytes each.
const LISTED_ROWS: usize = 128 * 1024;

/// A piece of a chunk: first its place in the order of the stream, then where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    position: Position,
    chunk: u32,
    piece: u32,
    row: RowId,
}

/// A chunk, ready for its header.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) position: Position,
    pub(crate) chunk: u32,
    pub(crate) last: bool,
    /// As the row has it: above 0 the length of a compressed body, below 0 how many descriptors are left out (`short`).
    pub(crate) expanded_len: i32,
}

/// The rows that one snapshot added, and how far they have been handed out.
#[derive(Debug)]
pub(crate) struct Pass {
    /// What this pass is about.
    pub(crate) current: Snapshot,
    /// All that is stamped at or before this is in the topic once the pass is over, if so much is known.
    pub(crate) settles: Option<Timestamp>,
    listed: Vec<Piece>,
    /// The tables' files that `listed` points into.
    files: [u32; COUNT],
    next: usize,
    /// Whether `listed` goes to the end of the pass.
    complete: bool,
    /// The last piece handed out.
    handed_out: Option<(Position, u32)>,
}

impl Pass {
    /// Begins a pass. With `after`, all transactions up to it are left out: they were confirmed before a restart.
    pub(crate) fn begin(current: Snapshot, settles: Option<Timestamp>, after: Option<Position>) -> Self {
        let handed_out = after.map(|position| (position, u32::MAX));
        Self { current, settles, listed: Vec::new(), files: [0; COUNT], next: 0, complete: false, handed_out }
    }

    /// Lists the next rows, if those listed are used up and there may be more. Returns whether there is something to
    /// hand out.
    pub(crate) fn list(
        &mut self,
        relations: &[pg_sys::Relation; COUNT],
        segments: &mut [Segment; COUNT],
        previous: &Snapshot,
        heads: &mut Vec<RowHead>,
    ) -> Result<bool> {
        let files = relations.map(segment::file_number);
        if files != self.files {
            // Somebody had the table written anew (VACUUM FULL, CLUSTER): its rows are elsewhere now.
            self.files = files;
            self.listed.clear();
            self.next = 0;
            self.complete = false;
        }
        if self.has_chunk() || self.complete {
            return Ok(self.has_chunk());
        }
        let current = &self.current;
        let handed_out = self.handed_out;
        let mut smallest = BinaryHeap::new();
        let mut overflowed = false;
        for (table, (segment, &relation)) in segments.iter_mut().zip(relations).enumerate() {
            segment.scan(relation, current, heads, |block, head| {
                let news = !previous.sees(head.position.xid)
                    && handed_out.is_none_or(|done| (head.position, head.chunk) > done)
                    && head.committed.unwrap_or_else(|| did_commit(head.writer));
                if news {
                    let row = RowId { table: table as u8, block, offset: head.offset };
                    smallest.push(Piece { position: head.position, chunk: head.chunk, piece: head.piece, row });
                    if smallest.len() > LISTED_ROWS {
                        smallest.pop();
                        overflowed = true;
                    }
                }
            })?;
        }
        self.listed = smallest.into_sorted_vec();
        self.next = 0;
        self.complete = !overflowed;
        Ok(self.has_chunk())
    }

    /// Hands out the next chunk, appending its body to `body`; `None` if nothing more is listed.
    pub(crate) fn next_chunk(
        &mut self,
        relations: &[pg_sys::Relation; COUNT],
        body: &mut Vec<u8>,
    ) -> Result<Option<Chunk>> {
        if !self.has_chunk() {
            return Ok(None);
        }
        let rest = &self.listed[self.next..];
        let Piece { position, chunk, .. } = rest[0];
        let pieces = rest.iter().take_while(|piece| piece.position == position && piece.chunk == chunk).count();
        let mut expanded_len = 0;
        for piece in &rest[..pieces] {
            expanded_len = page::read_payload(relations[usize::from(piece.row.table)], piece.row, body)?;
        }
        let last = rest.get(pieces).is_none_or(|next| next.position != position);
        self.next += pieces;
        self.handed_out = Some((position, chunk));
        Ok(Some(Chunk { position, chunk, last, expanded_len }))
    }

    /// Whether all rows of this pass have been handed out.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.complete && self.next == self.listed.len()
    }

    /// Whether a chunk can be handed out. The last one of a part of the backlog cannot: whether it is the last of its
    /// transaction, and whole, shows only in the next part.
    fn has_chunk(&self) -> bool {
        match (self.listed.get(self.next), self.listed.last()) {
            (Some(next), Some(last)) => self.complete || (next.position, next.chunk) != (last.position, last.chunk),
            _ => false,
        }
    }
}

/// Whether the writer of a row committed; asked once its top-level transaction has ended. That one's own fate is not
/// enough: what was written after the flush, in a subtransaction that was rolled back, is no part of it.
fn did_commit(writer: pg_sys::TransactionId) -> bool {
    // SAFETY: a look-up by an id whose transaction has ended and whose row is still in the queue, so that its status
    // has not been truncated away: the queue row's own xmin holds it.
    unsafe { pg_sys::TransactionIdDidCommit(writer) }
}
