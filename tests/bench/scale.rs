//! How much of everything is measured.

use std::time::Duration;

/// Amounts, for all measurements.
#[derive(Debug, Clone)]
pub(crate) struct Scale {
    /// How often systems take turns; medians are reported.
    pub(crate) rounds: usize,
    /// How long each turn of pgbench is.
    pub(crate) pgbench_turn: Duration,
    /// Turns of each pgbench.
    pub(crate) pgbench_turns: usize,
    /// Servers on which capture is measured, one after the other.
    pub(crate) capture_servers: usize,
    /// How often every system has captured every database of a server.
    pub(crate) capture_squares: usize,
    /// pgbench's own scale.
    pub(crate) pgbench_scale: u32,
    /// Transactions in each turn of measuring a backend's processor time; short ones, so that a disturbance hits all alike.
    pub(crate) cpu_transactions: u32,
    /// Rows of the bulk INSERT.
    pub(crate) bulk_rows: u32,
    /// Rows of a large transaction.
    pub(crate) large_rows: u32,
    /// Rows that both sides change.
    pub(crate) conflicting_rows: u32,
    /// Single-row transactions of a backlog.
    pub(crate) backlog: u32,
    /// Single-row transactions whose way is timed, 200 a second.
    pub(crate) timed: u32,
    /// How long to look at nothing happening.
    pub(crate) idle: Duration,
}

impl Scale {
    /// What is reported.
    pub(crate) fn full() -> Self {
        Self {
            rounds: 3,
            pgbench_turn: Duration::from_millis(200),
            pgbench_turns: 12,
            capture_servers: 3,
            capture_squares: 3,
            pgbench_scale: 10,
            cpu_transactions: 1_000,
            bulk_rows: 500_000,
            large_rows: 300_000,
            conflicting_rows: 50_000,
            backlog: 100_000,
            timed: 6_000,
            idle: Duration::from_secs(30),
        }
    }

    /// Whether it works.
    pub(crate) fn quick() -> Self {
        Self {
            rounds: 1,
            pgbench_turn: Duration::from_millis(200),
            pgbench_turns: 5,
            capture_servers: 1,
            capture_squares: 1,
            pgbench_scale: 1,
            cpu_transactions: 1_000,
            bulk_rows: 50_000,
            large_rows: 30_000,
            conflicting_rows: 5_000,
            backlog: 10_000,
            timed: 600,
            idle: Duration::from_secs(3),
        }
    }

    /// A tenth: a rate of a pipeline that does some thousands of rows a second needs no more.
    pub(crate) fn for_older(&self) -> Self {
        Self { rounds: 1, large_rows: self.large_rows / 10, backlog: self.backlog / 10, ..self.clone() }
    }
}
