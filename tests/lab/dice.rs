//! Chance that can be repeated: the same seed gives the same throws, on every machine and with every compiler.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// SplitMix64: a small generator that is good enough for tests and needs no library whose next version throws
/// differently.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The throws of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Throws of their own for one of several users of a seed, so that nobody's number of throws changes another's.
    pub fn of(seed: u64, user: u64) -> Self {
        let mut dice = Self(seed ^ user.wrapping_mul(0xA076_1D64_78BD_642F));
        dice.next();
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// Whether something happens that happens in so many of a hundred cases.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.index(of.len())]
    }

    /// An index of so many.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// A time between these, in milliseconds.
    pub fn millis(&mut self, low: u64, high: u64) -> Duration {
        Duration::from_millis(self.between(low, high))
    }

    /// Shuffles.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

/// A seed from the clock, or from `DUPLEX_SEED`.
///
/// # Errors
/// If that is no number.
pub fn seed() -> Result<u64> {
    match std::env::var("DUPLEX_SEED") {
        Ok(text) if !text.is_empty() => text.parse().context("DUPLEX_SEED is a number"),
        _ => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            Ok(u64::try_from(now.as_millis())? % 1_000_000_000)
        }
    }
}
