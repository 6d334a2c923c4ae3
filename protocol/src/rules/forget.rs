//! What a node need not remember any more.
//!
//! A register is kept for changes that are still on the way. Two watermarks say what is: of each node *W*, "nothing
//! stamped at or before this will follow from me", and *S*, the least W that it holds, its own included. So what is
//! stamped at or before the least W of all nodes meets no older change here any more, and what is stamped at or before
//! the least S meets none anywhere.

/// What a table's registers are kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The later version wins as a whole row: a later change finds its way without what older ones left here.
    ForVersions,
    /// Counters or merged columns: what a later change carries counts from what its node had, so every node must have
    /// received what is forgotten.
    ForSums,
}

/// What a node has said of itself, or what something that waits here says of it; `None` if nothing is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermark<T> {
    /// W.
    pub settled: Option<T>,
    /// S.
    pub held: Option<T>,
}

/// Up to where a table's registers may be forgotten. `None`: nothing may be, since a node has said nothing yet or
/// there is no node at all.
pub fn horizon<T: Ord>(kept: Kept, all: impl IntoIterator<Item = Watermark<T>>) -> Option<T> {
    let mut least = None;
    for watermark in all {
        let at = match kept {
            Kept::ForVersions => watermark.settled,
            Kept::ForSums => watermark.held,
        }?;
        least = Some(match least {
            Some(least) => std::cmp::min(least, at),
            None => at,
        });
    }
    least
}

/// Whether what is remembered since `at` may go; `None` is older than any version. A tombstone that keeps a residual of
/// counters stays as long as it does: what it holds is nowhere else.
pub fn may_forget<T: Ord>(at: Option<&T>, horizon: Option<&T>, keeps_residual: bool) -> bool {
    !keeps_residual && horizon.is_some_and(|horizon| at.is_none_or(|at| at <= horizon))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(settled: i64, held: i64) -> Watermark<i64> {
        Watermark { settled: Some(settled), held: Some(held) }
    }

    #[test]
    fn the_node_that_is_furthest_behind_holds_all() {
        let all = [said(9, 4), said(7, 5), said(8, 6)];
        assert_eq!(horizon(Kept::ForVersions, all), Some(7));
        assert_eq!(horizon(Kept::ForSums, all), Some(4));
    }

    #[test]
    fn a_node_that_has_said_nothing_holds_everything() {
        let silent = Watermark { settled: None, held: None };
        assert_eq!(horizon(Kept::ForVersions, [said(9, 9), silent]), None);
        assert_eq!(horizon::<i64>(Kept::ForVersions, []), None);
        assert!(!may_forget(Some(&1), None, false));
    }

    #[test]
    fn what_is_stamped_at_the_horizon_may_go_and_what_is_later_may_not() {
        assert!(may_forget(Some(&7), Some(&7), false));
        assert!(!may_forget(Some(&8), Some(&7), false));
        assert!(may_forget(None, Some(&7), false) && !may_forget(None::<&i64>, None, false));
    }

    #[test]
    fn a_residual_is_never_forgotten() {
        assert!(!may_forget(Some(&1), Some(&7), true));
        assert!(!may_forget(None, Some(&7), true));
    }
}
