//! A change that arrives: what it meets under its key, and what the rules say about that.

use std::collections::HashMap;

use duplex_protocol::entry::{PutKind, Replaced};
use duplex_protocol::rules::conflict::{self, ConflictKind, Write};
use duplex_protocol::rules::key::{Effect, Registers, Standing, Wish, arrive};
use duplex_protocol::version::{Timestamp, Version};
use pgrx::{PgSqlErrorCode, pg_sys};

use crate::conflict::version::Versions;
use crate::errors::{Failure, Result};

/// A version as it is compared: nothing of it has to be copied for that.
type Light<'v> = (Timestamp, &'v str);

fn light(version: &Version) -> Light<'_> {
    (version.commit_ts, &version.origin)
}

/// What all changes of a transaction have in common when they arrive.
#[derive(Debug)]
pub(crate) struct Arrival<'t> {
    /// The transaction's version.
    pub(crate) version: &'t Version,
    /// Number of the change in its transaction.
    pub(crate) order: u64,
    /// Reads versions of rows here.
    pub(crate) versions: &'t mut Versions,
    /// The nodes that replaced versions refer to by number.
    pub(crate) origins: &'t HashMap<u32, String>,
}

/// A change, as the rules see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    pub(crate) write: Write,
    pub(crate) replaced: Replaced,
}

impl Change {
    /// An INSERT or UPDATE.
    pub(crate) fn put(kind: PutKind, replaced: Replaced) -> Self {
        let write = match kind {
            PutKind::Insert => Write::Insert,
            PutKind::Update => Write::Update,
        };
        Self { write, replaced }
    }

    /// A DELETE.
    pub(crate) fn delete(replaced: Replaced) -> Self {
        Self { write: Write::Delete, replaced }
    }

    fn wish(self) -> Wish {
        if self.write == Write::Delete { Wish::Delete } else { Wish::Put }
    }
}

/// What the rules say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Verdict {
    pub(crate) effect: Effect,
    pub(crate) conflict: Option<ConflictKind>,
}

impl Arrival<'_> {
    /// The change meets a row, written by the transaction `xmin`.
    ///
    /// # Safety
    /// As [`Versions::of_row`].
    pub(crate) unsafe fn meets_row(
        &mut self,
        change: Change,
        xmin: pg_sys::TransactionId,
        truncated: Option<&Version>,
    ) -> Result<Verdict> {
        // SAFETY: as the caller promises.
        let version = unsafe { self.versions.of_row(xmin, self.version) };
        judge(change, Standing::Row, version, truncated, self.version, self.origins)
    }

    /// The change meets no row; `standing` and `version` are those of the key's tombstone, if there is one. Or it meets
    /// one whose version is not its writer's.
    pub(crate) fn meets(
        &self,
        change: Change,
        standing: Standing,
        version: Option<&Version>,
        truncated: Option<&Version>,
    ) -> Result<Verdict> {
        judge(change, standing, version, truncated, self.version, self.origins)
    }
}

fn judge(
    change: Change,
    standing: Standing,
    version: Option<&Version>,
    truncated: Option<&Version>,
    incoming: &Version,
    origins: &HashMap<u32, String>,
) -> Result<Verdict> {
    let (version, truncated) = (version.map(light), truncated.map(light));
    let replaced = match change.replaced {
        Replaced::Version { commit_ts, origin: 0 } => Some((commit_ts, incoming.origin.as_str())),
        Replaced::Version { commit_ts, origin } => {
            let name = origins.get(&origin).ok_or_else(|| {
                Failure::new(
                    PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
                    "a replaced version is of a node that is not named",
                )
            })?;
            Some((commit_ts, name.as_str()))
        }
        _ => None,
    };
    let replaced = match change.replaced {
        Replaced::Nothing => conflict::Replaced::Nothing,
        Replaced::SameTransaction => conflict::Replaced::SameTransaction,
        Replaced::Ancient | Replaced::Version { .. } => conflict::Replaced::Version(replaced.as_ref()),
    };
    let registers = Registers { standing, version: version.as_ref(), truncated: truncated.as_ref() };
    let effect = arrive(&registers, change.wish(), &light(incoming));
    let conflict = conflict::under_key(change.write, replaced, standing, version.as_ref(), effect.wins);
    Ok(Verdict { effect, conflict })
}
