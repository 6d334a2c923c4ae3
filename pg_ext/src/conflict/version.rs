//! The version of a row as this node holds it: read from PostgreSQL's commit-timestamp store, stored nowhere else.

use std::collections::HashMap;
use std::ffi::CStr;
use std::ptr;

use duplex_protocol::version::Version;
use pgrx::pg_sys;

use crate::node;

/// Reads versions, and remembers what it has asked the server before.
#[derive(Debug)]
pub(crate) struct Versions {
    own: String,
    origins: HashMap<pg_sys::RepOriginId, String>,
    /// The row asked about last: the rows that one transaction wrote tend to follow each other.
    last: Option<(pg_sys::TransactionId, Option<Version>)>,
}

impl Versions {
    /// `own` is this node's name: the origin of rows written here.
    pub(crate) fn new(own: String) -> Self {
        Self { own, origins: HashMap::new(), last: None }
    }

    /// A new transaction begins: forgets what may have changed since.
    pub(crate) fn begin(&mut self) {
        self.last = None;
    }

    /// The version of a row by its raw xmin, which outlives freezing. `None`: the commit timestamp is gone, so the row
    /// is older than any other. A row that the current transaction wrote has the version `incoming`.
    ///
    /// # Safety
    /// Inside a transaction; the row's writer is the current transaction or has committed.
    pub(crate) unsafe fn of_row<'v>(
        &'v mut self,
        xmin: pg_sys::TransactionId,
        incoming: &'v Version,
    ) -> Option<&'v Version> {
        // SAFETY: a plain call inside a transaction.
        if unsafe { pg_sys::TransactionIdIsCurrentTransactionId(xmin) } {
            return Some(incoming);
        }
        if self.last.as_ref().is_none_or(|(last, _)| *last != xmin) {
            // SAFETY: as the caller promises.
            let version = unsafe { self.look_up(xmin) };
            self.last = Some((xmin, version));
        }
        self.last.as_ref().and_then(|(_, version)| version.as_ref())
    }

    unsafe fn look_up(&mut self, xmin: pg_sys::TransactionId) -> Option<Version> {
        if xmin < pg_sys::TransactionId::FIRST_NORMAL {
            return None;
        }
        let (mut commit_ts, mut origin) = (0, 0);
        // SAFETY: both outputs are valid for writing, the id is a normal one.
        let found = unsafe { pg_sys::TransactionIdGetCommitTsData(xmin, &mut commit_ts, &mut origin) };
        if !found {
            return None;
        }
        if origin == 0 {
            return Some(Version { commit_ts, origin: self.own.clone() });
        }
        // SAFETY: inside a transaction, as the caller promises.
        let name = self.origins.entry(origin).or_insert_with(|| unsafe { origin_node(origin) }.unwrap_or_default());
        // Rows that another replication brought here are this node's own to the peers: capture sent them as such.
        let origin = if name.is_empty() { self.own.clone() } else { name.clone() };
        Some(Version { commit_ts, origin })
    }
}

/// The peer that a replication origin stands for.
unsafe fn origin_node(origin: pg_sys::RepOriginId) -> Option<String> {
    let mut name = ptr::null_mut();
    // SAFETY: the output is valid for writing; on success it is a NUL-terminated string in the current context.
    let name = unsafe {
        if !pg_sys::replorigin_by_oid(origin, true, &mut name) || name.is_null() {
            return None;
        }
        CStr::from_ptr(name).to_string_lossy().into_owned()
    };
    node::peer_of_origin(&name).map(str::to_owned)
}
