//! What must never be in a server's log.

use std::path::Path;

/// Words of a crash. A test that kills a server on purpose says so ([`crate::Builder::crashes`]).
const CRASHES: [&str; 5] = ["PANIC:", "TRAP:", "was terminated by signal", "Segmentation fault", "panicked at"];

/// The lines that tell of a crash.
pub fn crashes(log: &Path) -> Vec<String> {
    let bytes = std::fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .lines()
        .filter(|line| CRASHES.iter().any(|word| line.contains(word)))
        .map(str::to_owned)
        .collect()
}
