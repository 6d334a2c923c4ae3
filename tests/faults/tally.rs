//! Which kinds of faults struck, and how often.
//!
//! A run that finds nothing wrong shows nothing about a fault that never struck: a place that was renamed, or that no
//! relay comes by any more, would only be missed each time.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, ensure};

use super::schedule::{Fault, kinds};

/// How often one kind of fault did what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Times {
    struck: usize,
    missed: usize,
}

/// All kinds of faults, and how often each struck and missed.
#[derive(Debug, Clone)]
pub struct Tally(BTreeMap<String, Times>);

impl Default for Tally {
    fn default() -> Self {
        Self(kinds().into_iter().map(|kind| (kind, Times::default())).collect())
    }
}

impl Tally {
    /// Counts a fault that struck, or found nobody home: no such session, or a place that was not passed.
    pub fn count(&mut self, fault: &Fault, struck: bool) {
        let times = self.0.entry(fault.kind()).or_default();
        *(if struck { &mut times.struck } else { &mut times.missed }) += 1;
    }

    /// Faults that struck.
    pub fn struck(&self) -> usize {
        self.0.values().map(|times| times.struck).sum()
    }

    /// Faults that found nobody home.
    pub fn missed(&self) -> usize {
        self.0.values().map(|times| times.missed).sum()
    }

    /// Checks that every kind struck at least once.
    ///
    /// # Errors
    /// If one did not; the message names it.
    pub fn has_all(&self) -> Result<()> {
        let never = self.0.iter().filter(|(_, times)| times.struck == 0).map(|(kind, _)| kind.as_str());
        let never: Vec<&str> = never.collect();
        ensure!(never.is_empty(), "never struck, so nothing is shown of it: {}", never.join(", "));
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:>6} {:>6}  fault", "struck", "missed")?;
        for (kind, Times { struck, missed }) in &self.0 {
            write!(out, "\n{struck:>6} {missed:>6}  {kind}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Place;
    use crate::faults::schedule::{How, draw};

    /// Every fault of a long run strikes, but those that this lets miss.
    fn after(misses: impl Fn(&Fault) -> bool) -> Tally {
        let mut tally = Tally::default();
        for fault in draw(1, 2).flat_map(|step| step.faults).take(300) {
            tally.count(&fault, !misses(&fault));
        }
        tally
    }

    #[test]
    fn a_run_in_which_all_strike_has_all() {
        let tally = after(|_| false);
        assert_eq!((tally.struck(), tally.missed()), (300, 0));
        tally.has_all().expect("all kinds struck");
    }

    #[test]
    fn a_place_that_is_always_missed_is_named() {
        let tally = after(|fault| matches!(fault.how, How::DieAt(Place::OutboundAfterTail, _)));
        assert!(tally.missed() > 0);
        let message = tally.has_all().expect_err("one never struck").to_string();
        assert!(message.ends_with(": active relay: dies at outbound-after-tail"), "{message}");
    }
}
