//! The drain's rule: a row is to be sent if the current snapshot sees its transaction and the previous one did not.
//!
//! This is PgQ's rule. A cursor by id would lose rows, because a lower id may become visible after a higher one.

use std::fmt::Write as _;

use pgrx::pg_sys;

/// Which transactions had ended at one moment, by full transaction ids. The text form is that of `pg_snapshot`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// All transactions below this had ended.
    pub(crate) xmin: u64,
    /// No transaction from here on had begun.
    pub(crate) xmax: u64,
    /// Those between the two that were running, sorted.
    running: Vec<u64>,
}

impl Snapshot {
    /// What has ended by now.
    pub(crate) fn take() -> Self {
        // SAFETY: called inside a transaction; the snapshot is static memory that is copied before anything else runs.
        unsafe {
            let next = pg_sys::ReadNextFullTransactionId().value;
            let snapshot = pg_sys::GetLatestSnapshot();
            let running = if (*snapshot).xcnt == 0 {
                Vec::new()
            } else {
                std::slice::from_raw_parts((*snapshot).xip, (*snapshot).xcnt as usize)
                    .iter()
                    .map(|&xid| widen(xid_bits(xid), next))
                    .collect()
            };
            Self::new(widen(xid_bits((*snapshot).xmin), next), widen(xid_bits((*snapshot).xmax), next), running)
        }
    }

    fn new(xmin: u64, xmax: u64, mut running: Vec<u64>) -> Self {
        running.sort_unstable();
        Self { xmin, xmax, running }
    }

    /// Whether the transaction had ended, by commit or by abort.
    pub(crate) fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.running.binary_search(&xid).is_err())
    }

    /// Whether a snapshot taken now would be this very one: nothing was running then, and nothing has begun since. Costs
    /// next to nothing.
    pub(crate) fn is_current(&self) -> bool {
        // SAFETY: a plain call.
        self.running.is_empty()
            && self.xmin == self.xmax
            && unsafe { pg_sys::ReadNextFullTransactionId() }.value == self.xmax
    }

    /// Reads the text form `xmin:xmax:xid,xid…`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ':');
        let xmin = parts.next()?.parse().ok()?;
        let xmax = parts.next()?.parse().ok()?;
        let running =
            parts.next()?.split(',').filter(|xid| !xid.is_empty()).map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Self::new(xmin, xmax, running))
    }

    /// Writes the text form, which `pg_snapshot` reads.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("{}:{}:", self.xmin, self.xmax);
        for (i, xid) in self.running.iter().enumerate() {
            let separator = if i == 0 { "" } else { "," };
            write!(text, "{separator}{xid}").expect("writing into memory");
        }
        text
    }
}

/// The full id of a transaction that is not further from `next`, the id to come, than half the 32-bit space.
fn widen(xid: u32, next: u64) -> u64 {
    let distance = (next as u32).wrapping_sub(xid) as i32;
    next.wrapping_sub(i64::from(distance) as u64)
}

/// pgrx's transaction id is a plain u32 on some versions of PostgreSQL and a wrapper on others.
fn xid_bits(xid: pg_sys::TransactionId) -> u32 {
    xid.into()
}
