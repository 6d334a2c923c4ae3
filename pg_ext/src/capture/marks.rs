//! How far a transaction had come when each of its subtransactions first wrote.
//!
//! Marks are made lazily, at the first captured row of a subtransaction, never when one starts: the library may be
//! loaded in the middle of one, and a subtransaction that captures nothing costs nothing.

/// A place in what a transaction has captured.
pub(super) type Position = u64;

/// Subtransaction 1 is the transaction itself: its beginning is position 0 and needs no mark.
const TOP: u32 = 1;

#[derive(Debug, Clone, Copy)]
struct Mark {
    subtransaction: u32,
    position: Position,
}

/// The marks of the subtransactions that are open, ids and positions rising, and a cut that is still to be made.
///
/// The cut is only noted here, because aborting a subtransaction must not fail; whoever writes or flushes next makes it.
#[derive(Debug, Default)]
pub(super) struct Marks {
    open: Vec<Mark>,
    cut: Option<Position>,
}

impl Marks {
    pub(super) const fn new() -> Self {
        Self { open: Vec::new(), cut: None }
    }

    /// `subtransaction` is about to write at `position`.
    #[inline]
    pub(super) fn note(&mut self, subtransaction: u32, position: Position) {
        let newest = self.open.last().map_or(TOP, |mark| mark.subtransaction);
        if subtransaction > newest {
            self.open.push(Mark { subtransaction, position });
        }
    }

    /// `subtransaction` ended well: what it wrote is its parent's now.
    pub(super) fn commit(&mut self, subtransaction: u32, parent: u32) {
        let Some(newest) = self.open.last().filter(|mark| mark.subtransaction == subtransaction) else { return };
        let position = newest.position;
        self.open.pop();
        // A parent with a mark of its own keeps that one, which is the earlier.
        self.note(parent, position);
    }

    /// `subtransaction` was rolled back, and with it all that it and those within it wrote.
    pub(super) fn abort(&mut self, subtransaction: u32) {
        while let Some(mark) = self.open.pop_if(|mark| mark.subtransaction >= subtransaction) {
            self.cut = Some(self.cut.map_or(mark.position, |cut| cut.min(mark.position)));
        }
    }

    /// Where everything from there on has to be forgotten, if anywhere; asked before anything is written.
    #[inline]
    pub(super) fn pending_cut(&self) -> Option<Position> {
        self.cut
    }

    /// The cut was made.
    pub(super) fn cut_made(&mut self) {
        self.cut = None;
    }

    /// The transaction ended.
    pub(super) fn reset(&mut self) {
        self.open.clear();
        self.cut = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rolled_back_child_takes_only_its_own() {
        let mut marks = Marks::default();
        marks.note(1, 0);
        marks.note(2, 10);
        marks.note(3, 20);
        marks.note(3, 30);
        marks.abort(3);
        assert_eq!(marks.pending_cut(), Some(20));
        marks.cut_made();
        marks.note(2, 20);
        marks.abort(2);
        assert_eq!(marks.pending_cut(), Some(10));
    }

    #[test]
    fn a_committed_child_goes_with_a_parent_that_had_not_written() {
        let mut marks = Marks::default();
        marks.note(1, 0);
        marks.note(4, 10);
        marks.commit(4, 3);
        marks.commit(3, 2);
        marks.abort(2);
        assert_eq!(marks.pending_cut(), Some(10));
    }

    #[test]
    fn a_committed_child_leaves_its_parents_earlier_mark() {
        let mut marks = Marks::default();
        marks.note(2, 5);
        marks.note(3, 9);
        marks.commit(3, 2);
        marks.abort(2);
        assert_eq!(marks.pending_cut(), Some(5));
    }

    #[test]
    fn what_was_committed_into_the_transaction_stays() {
        let mut marks = Marks::default();
        marks.note(2, 5);
        marks.commit(2, 1);
        marks.note(3, 9);
        marks.abort(3);
        assert_eq!(marks.pending_cut(), Some(9));
    }

    #[test]
    fn the_lowest_of_several_cuts_counts() {
        let mut marks = Marks::default();
        marks.note(2, 5);
        marks.note(3, 9);
        marks.abort(3);
        marks.abort(2);
        assert_eq!(marks.pending_cut(), Some(5));
    }

    #[test]
    fn a_silent_subtransaction_cuts_nothing() {
        let mut marks = Marks::default();
        marks.note(1, 0);
        marks.abort(2);
        marks.note(1, 10);
        marks.commit(3, 1);
        assert_eq!(marks.pending_cut(), None);
    }
}
