//! Processor time, which says more than a clock on a machine that does other things too.

use std::time::Duration;

use anyhow::{Context, Result};

/// Processor time of a process of one thread so far, to the nanosecond: a PostgreSQL backend.
///
/// # Errors
/// If it has ended.
pub(crate) fn of_backend(pid: i32) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let word = text.split_whitespace().next().context("empty schedstat")?;
    Ok(Duration::from_nanos(word.parse()?))
}

/// Processor time of a process with all its threads, those that have ended too; to a hundredth of a second.
///
/// # Errors
/// If it has ended.
pub(crate) fn of_process(pid: i32) -> Result<Duration> {
    const TICKS_PER_SECOND: u64 = 100;
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field, a name in parentheses, may hold anything.
    let rest = text.rsplit_once(')').context("malformed stat")?.1;
    let field = |number: usize| -> Result<u64> {
        Ok(rest.split_whitespace().nth(number - 3).context("malformed stat")?.parse()?)
    };
    Ok(Duration::from_millis((field(14)? + field(15)?) * 1000 / TICKS_PER_SECOND))
}

/// The most memory that a process ever had resident, in KiB.
///
/// # Errors
/// If it has ended.
pub(crate) fn peak_memory(pid: i32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
