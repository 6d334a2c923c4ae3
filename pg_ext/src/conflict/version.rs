//! The version of a row as this node holds it: as PostgreSQL's commit-timestamp store has it, stored nowhere else.

use std::collections::HashMap;
use std::ffi::CStr;
use std::ptr;

use duplex_protocol::version::{Timestamp, Version};
use pgrx::{FromDatum as _, IntoDatum as _, pg_sys};

use crate::commits::{self, Commit};
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

    /// Whether a version is of this node.
    pub(crate) fn is_own(&self, version: &Version) -> bool {
        version.origin == self.own
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
        let Commit { commit_ts, origin } = commits::find(xmin)?;
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

/// The version of something that a register holds: written down, or else that of the transaction that wrote it.
#[derive(Debug, Clone)]
pub(crate) struct Stamp {
    xmin: pg_sys::TransactionId,
    /// Without a name: this node.
    written: Option<(Timestamp, Option<String>)>,
}

impl Stamp {
    /// As a register's row has it: its writer, and what stands in its columns commit_ts and origin.
    ///
    /// # Safety
    /// The values are a bigint and a text.
    pub(crate) unsafe fn read(
        xmin: pg_sys::TransactionId,
        commit_ts: Option<pg_sys::Datum>,
        origin: Option<pg_sys::Datum>,
    ) -> Self {
        // SAFETY: as the caller promises.
        let origin = origin.and_then(|origin| unsafe { String::from_datum(origin, false) });
        Self { xmin, written: commit_ts.map(|commit_ts| (commit_ts.value() as Timestamp, origin)) }
    }

    /// A version that the transaction `xmin` wrote down, or its own.
    pub(crate) fn of(xmin: pg_sys::TransactionId, written: Option<(Timestamp, Option<String>)>) -> Self {
        Self { xmin, written }
    }

    /// What is written down: when, and on which node if it was another.
    pub(crate) fn written(&self) -> Option<(Timestamp, Option<&str>)> {
        self.written.as_ref().map(|(commit_ts, origin)| (*commit_ts, origin.as_deref()))
    }

    /// The version; `None` is older than any.
    ///
    /// # Safety
    /// As [`Versions::of_row`].
    pub(crate) unsafe fn version(&self, versions: &mut Versions, incoming: &Version) -> Option<Version> {
        match &self.written {
            Some((commit_ts, origin)) => {
                let origin = origin.clone().unwrap_or_else(|| versions.own.clone());
                Some(Version { commit_ts: *commit_ts, origin })
            }
            // SAFETY: as the caller promises.
            None => unsafe { versions.of_row(self.xmin, incoming).cloned() },
        }
    }
}

/// The columns commit_ts and origin of a register, and which of them are NULL. Without a version that of the
/// transaction counts that writes them.
///
/// # Safety
/// In a memory context that lives as long as the row is being written.
pub(crate) unsafe fn stored(version: Option<&Version>) -> ([pg_sys::Datum; 2], [bool; 2]) {
    let none = pg_sys::Datum::from(0);
    match version {
        None => ([none; 2], [true; 2]),
        Some(Version { commit_ts, origin }) => {
            ([pg_sys::Datum::from(*commit_ts), origin.as_str().into_datum().unwrap_or(none)], [false; 2])
        }
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
