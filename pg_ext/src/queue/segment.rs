//! Which pages of one queue table still have to be looked at.
//!
//! A table may hold a hundred thousand published rows, and the drain looks every millisecond, so it must not read them
//! again. Writers take the page that they used last; otherwise the table's last page, or they add one. So the drain has
//! them forget what they used when the table had `n` pages: PostgreSQL does that to a backend which takes a lock after
//! [`forget_pages`]. Once all who were writing before have ended, no row can appear below page `n - 1` any more: those
//! pages are *closed*, and the *frontier* moves up to there. A closed page with a row whose transaction has not ended (a
//! prepared one, say) is remembered as a straggler.

use pgrx::pg_sys;

use super::page::{self, RowHead};
use super::snapshot::Snapshot;
use crate::errors::Result;

/// Pages that a table grows by before the frontier is worth moving, and so many more for each writer: a page that a writer
/// has to forget stays as full as it is.
const FRONTIER_STEP: u32 = 8;
const FRONTIER_STEP_A_WRITER: u32 = 8;
/// So many looks at a table that does not grow, and there are few writers by now, however many there were.
const QUIET_LOOKS: u32 = 100;

/// What was found on a page by the last look.
#[derive(Debug, Clone, Copy)]
struct PageNote {
    /// The page's LSN then.
    lsn: u64,
    /// Whether every row on it belonged to a transaction that had ended.
    settled: bool,
}

/// All who were writing when the table had this many pages.
#[derive(Debug)]
struct Barrier {
    blocks: u32,
    writers: Vec<Writer>,
}

/// What the drain knows about one queue table.
#[derive(Debug, Default)]
pub(crate) struct Segment {
    /// The file that all this is about: another one after TRUNCATE, or when the table was written anew.
    file: u32,
    /// Its pages at the last look. Fewer are there after a VACUUM that cut off empty ones, and writers use those numbers
    /// again.
    blocks: u32,
    frontier: u32,
    /// Notes on the pages from the frontier on, as of the last finished pass.
    notes: Vec<PageNote>,
    /// The same, as of the pass that is under way.
    fresh: Vec<PageNote>,
    stragglers: Vec<u32>,
    fresh_stragglers: Vec<u32>,
    closed: u32,
    barrier: Option<Barrier>,
    /// How many were writing when the frontier was moved last.
    writers: u32,
    /// Looks since the table has grown.
    quiet_looks: u32,
}

impl Segment {
    /// Shows `visit` all rows that may be news to the pass: (page, row). Rows of published transactions are among
    /// them; the pass sorts them out.
    pub(crate) fn scan(
        &mut self,
        relation: pg_sys::Relation,
        current: &Snapshot,
        heads: &mut Vec<RowHead>,
        mut visit: impl FnMut(u32, &RowHead),
    ) -> Result<()> {
        let (file, blocks) = (file_number(relation), block_count(relation));
        if file != self.file || blocks < self.blocks {
            *self = Self { file, ..Self::default() };
        }
        self.quiet_looks = if blocks == self.blocks { self.quiet_looks.saturating_add(1) } else { 0 };
        self.blocks = blocks;
        // Before the pages are read: a row below what is closed now is there to be found.
        self.watch_writers(relation, blocks);
        self.fresh.clear();
        self.fresh_stragglers.clear();
        let mut look = |block: u32, heads: &mut Vec<RowHead>| -> Result<PageNote> {
            let lsn = page::read_heads(relation, block, heads)?;
            let mut settled = true;
            for head in heads.iter() {
                if current.sees(head.position.xid) {
                    visit(block, head);
                } else {
                    settled = false;
                }
            }
            Ok(PageNote { lsn, settled })
        };
        for &block in &self.stragglers {
            if !look(block, heads)?.settled {
                self.fresh_stragglers.push(block);
            }
        }
        for block in self.frontier..blocks {
            let known = self.notes.get((block - self.frontier) as usize).filter(|note| note.settled);
            let note = match known {
                Some(note) if note.lsn == page::read_lsn(relation, block) => *note,
                _ => look(block, heads)?,
            };
            self.fresh.push(note);
        }
        Ok(())
    }

    /// The pass is over and all it found is published: its findings are what the next one starts from.
    pub(crate) fn finish_pass(&mut self) {
        std::mem::swap(&mut self.notes, &mut self.fresh);
        std::mem::swap(&mut self.stragglers, &mut self.fresh_stragglers);
        let closed = (self.closed.saturating_sub(self.frontier) as usize).min(self.notes.len());
        let frontier = self.frontier;
        let unsettled = self.notes.drain(..closed).enumerate().filter(|(_, note)| !note.settled);
        self.stragglers.extend(unsettled.map(|(i, _)| frontier + i as u32));
        self.frontier += closed as u32;
    }

    /// Whether all rows that the last finished pass found are published, so that truncating may be tried.
    pub(crate) fn looks_settled(&self) -> bool {
        self.stragglers.is_empty() && self.notes.iter().all(|note| note.settled)
    }

    fn watch_writers(&mut self, relation: pg_sys::Relation, blocks: u32) {
        match &mut self.barrier {
            Some(barrier) => {
                let still_there = writers(relation);
                barrier.writers.retain(|writer| still_there.contains(writer));
                if barrier.writers.is_empty() {
                    self.closed = barrier.blocks.saturating_sub(1);
                    self.barrier = None;
                }
            }
            None => {
                let open = blocks.saturating_sub(self.closed.max(self.frontier));
                if is_worth_moving(open, self.writers, self.quiet_looks) {
                    // Before it is seen who is writing: whoever is not seen takes the lock later, and forgets.
                    forget_pages(relation);
                    let writers = writers(relation);
                    self.writers = writers.len() as u32;
                    self.barrier = Some(Barrier { blocks, writers });
                }
            }
        }
    }
}

/// Whether the frontier is to move, where so many pages are looked at each time.
fn is_worth_moving(open: u32, writers: u32, quiet_looks: u32) -> bool {
    let writers = if quiet_looks < QUIET_LOOKS { writers } else { 0 };
    open > FRONTIER_STEP + FRONTIER_STEP_A_WRITER * writers
}

/// Number of pages in the table.
pub(crate) fn block_count(relation: pg_sys::Relation) -> u32 {
    // SAFETY: the relation is open.
    unsafe { pg_sys::RelationGetNumberOfBlocksInFork(relation, pg_sys::ForkNumber::MAIN_FORKNUM) }
}

/// Has every backend forget which page of the table it used last, at the latest once it has taken a lock on the table: then
/// it hears what was said to all before (`AcceptInvalidationMessages` in `LockRelationOid`), here that its notes on the
/// file are void, as they are when VACUUM cuts it short.
fn forget_pages(relation: pg_sys::Relation) {
    // SAFETY: the relation is open; the message is put into shared memory at once.
    unsafe {
        let backend = (*relation).rd_backend;
        #[cfg(feature = "pg15")]
        let file = pg_sys::RelFileNodeBackend { node: (*relation).rd_node, backend };
        #[cfg(not(feature = "pg15"))]
        let file = pg_sys::RelFileLocatorBackend { locator: (*relation).rd_locator, backend };
        pg_sys::CacheInvalidateSmgr(file);
    }
}

/// Number of the table's file on disk.
pub(crate) fn file_number(relation: pg_sys::Relation) -> u32 {
    // SAFETY: the relation is open.
    unsafe {
        #[cfg(feature = "pg15")]
        let number = (*relation).rd_node.relNode;
        #[cfg(not(feature = "pg15"))]
        let number = (*relation).rd_locator.relNumber;
        number.into()
    }
}

/// A transaction by its backend and that backend's number of it.
pub(crate) type Writer = (i32, u32);

/// The transactions that hold the table for writing now. Prepared ones are left out: they have written all they will.
fn writers(relation: pg_sys::Relation) -> Vec<Writer> {
    let mut writers = holders(relation);
    writers.retain(|&(backend, _)| backend != NO_BACKEND);
    writers
}

/// The transactions that hold the table for writing now, prepared ones among them.
pub(crate) fn holders(relation: pg_sys::Relation) -> Vec<Writer> {
    // SAFETY: the tag names an open relation of this database; the array has as many entries as the count says, and
    // is freed once.
    unsafe {
        let tag = pg_sys::LOCKTAG {
            locktag_field1: (*relation).rd_lockInfo.lockRelId.dbId.to_u32(),
            locktag_field2: (*relation).rd_lockInfo.lockRelId.relId.to_u32(),
            locktag_field3: 0,
            locktag_field4: 0,
            locktag_type: pg_sys::LockTagType::LOCKTAG_RELATION as u8,
            locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
        };
        let mut count = 0;
        let found = pg_sys::GetLockConflicts(&tag, pg_sys::ShareLock as _, &mut count);
        let writers = std::slice::from_raw_parts(found, usize::try_from(count).unwrap_or(0))
            .iter()
            .map(|vxid| (backend(vxid), vxid.localTransactionId))
            .collect();
        pg_sys::pfree(found.cast());
        writers
    }
}

/// What stands in place of the backend for a prepared transaction.
const NO_BACKEND: i32 = -1;

fn backend(vxid: &pg_sys::VirtualTransactionId) -> i32 {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    let backend = vxid.backendId;
    #[cfg(not(any(feature = "pg15", feature = "pg16")))]
    let backend = vxid.procNumber;
    backend
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_writers_keep_their_pages_for_longer() {
        assert!(!is_worth_moving(8, 0, 0));
        assert!(is_worth_moving(9, 0, 0));
        assert!(!is_worth_moving(800, 100, 0));
        assert!(is_worth_moving(809, 100, 0));
    }

    #[test]
    fn after_a_rush_few_pages_are_looked_at_again_and_again() {
        assert!(is_worth_moving(800, 100, QUIET_LOOKS));
        assert!(!is_worth_moving(8, 100, QUIET_LOOKS));
    }
}
