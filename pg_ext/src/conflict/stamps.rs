//! Since when the columns of a row hold what they hold, in a table that merges by column.
//!
//! A stamp is a version and the number of the change in its transaction: one transaction may write a unique value
//! under one key and then under another, and only the number tells which of the two came later. Numbers are compared
//! between changes of one transaction alone, so it does not matter that a node counts its own from another start.
//!
//! Written down, a stamp without a version has that of the transaction that wrote it down, and one without a name is
//! this node's.

use duplex_protocol::version::{Timestamp, Version};
use pgrx::{PgSqlErrorCode, pg_sys};

use crate::conflict::version::{Stamp, Versions};
use crate::errors::{Failure, Result};

/// A version, and the number of the change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Since {
    pub(crate) version: Version,
    pub(crate) order: u64,
}

/// A stamp as it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    /// `None`: that of the transaction that writes it.
    pub(crate) version: Option<(Timestamp, Option<String>)>,
    pub(crate) order: u64,
}

/// The columns of a row by their names; `None` is older than any.
pub(crate) type Columns = Vec<(String, Option<Written>)>;

const OLDEST: u8 = 0;
const OWN: u8 = 1;
const LOCAL: u8 = 2;
const PEER: u8 = 3;

/// The columns as bytes, behind which others may follow.
pub(crate) fn encode(columns: &Columns) -> Vec<u8> {
    let mut out = (columns.len() as u16).to_le_bytes().to_vec();
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u16).to_le_bytes());
        out.extend(text.as_bytes());
    };
    for (name, stamp) in columns {
        text(&mut out, name);
        let Some(Written { version, order }) = stamp else {
            out.push(OLDEST);
            continue;
        };
        match version {
            None => out.push(OWN),
            Some((commit_ts, origin)) => {
                out.push(if origin.is_none() { LOCAL } else { PEER });
                out.extend(commit_ts.to_le_bytes());
                if let Some(origin) = origin {
                    text(&mut out, origin);
                }
            }
        }
        out.extend(order.to_le_bytes());
    }
    out
}

/// Reads columns, and says how many bytes they took.
///
/// # Errors
/// XX001 for what [`encode`] has not written.
pub(crate) fn decode(bytes: &[u8]) -> Result<(Columns, usize)> {
    let mut reader = Reader { bytes, place: 0 };
    let columns = reader.columns().ok_or_else(|| {
        Failure::new(PgSqlErrorCode::ERRCODE_DATA_CORRUPTED, "the stamps of a row's columns cannot be read")
    })?;
    Ok((columns, reader.place))
}

struct Reader<'b> {
    bytes: &'b [u8],
    place: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = self.bytes.get(self.place..self.place + N)?.try_into().ok()?;
        self.place += N;
        Some(taken)
    }

    fn text(&mut self) -> Option<String> {
        let len = usize::from(u16::from_le_bytes(self.take()?));
        let text = std::str::from_utf8(self.bytes.get(self.place..self.place + len)?).ok()?;
        self.place += len;
        Some(text.to_owned())
    }

    fn columns(&mut self) -> Option<Columns> {
        let count = u16::from_le_bytes(self.take()?);
        (0..count).map(|_| Some((self.text()?, self.stamp()?))).collect()
    }

    fn stamp(&mut self) -> Option<Option<Written>> {
        let [kind] = self.take()?;
        let version = match kind {
            OLDEST => return Some(None),
            OWN => None,
            LOCAL => Some((Timestamp::from_le_bytes(self.take()?), None)),
            PEER => Some((Timestamp::from_le_bytes(self.take()?), Some(self.text()?))),
            _ => return None,
        };
        Some(Some(Written { version, order: u64::from_le_bytes(self.take()?) }))
    }
}

/// The stamps of columns by the names of a descriptor's. A row of which none are written down has them all from the
/// version `of_row`, and since the end of its transaction.
///
/// # Safety
/// As [`Versions::of_row`]; `writer` is the transaction that wrote the columns down.
pub(crate) unsafe fn resolve(
    names: &[String],
    columns: Option<&Columns>,
    writer: pg_sys::TransactionId,
    of_row: Option<&Version>,
    versions: &mut Versions,
    incoming: &Version,
) -> Vec<Option<Since>> {
    let Some(columns) = columns else {
        let since = of_row.map(|version| Since { version: version.clone(), order: u64::MAX });
        return vec![since; names.len()];
    };
    let mut resolve = |name: &String| {
        let written = columns.iter().find(|(column, _)| column == name)?.1.as_ref()?;
        // SAFETY: as the caller promises.
        let version = unsafe { Stamp::of(writer, written.version.clone()).version(versions, incoming)? };
        Some(Since { version, order: written.order })
    };
    names.iter().map(&mut resolve).collect()
}

/// The stamps as the transaction with the version `incoming` writes them down.
pub(crate) fn written(names: &[String], stamps: &[Option<Since>], versions: &Versions, incoming: &Version) -> Columns {
    let written = |since: &Since| Written {
        version: (since.version != *incoming).then(|| {
            let origin = (!versions.is_own(&since.version)).then(|| since.version.origin.clone());
            (since.version.commit_ts, origin)
        }),
        order: since.order,
    };
    names.iter().zip(stamps).map(|(name, since)| (name.clone(), since.as_ref().map(written))).collect()
}

/// Since when a row has held its value in an index of these columns: they are written together.
pub(crate) fn held(stamps: &[Option<Since>], columns: &[u16]) -> Option<Since> {
    columns.iter().filter_map(|&column| stamps.get(usize::from(column))?.clone()).max()
}
