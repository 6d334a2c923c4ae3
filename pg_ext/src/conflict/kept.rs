//! What is kept of keys in a table with a policy, beside what every table has: in a tombstone the residual of its
//! counters, and the whole row where columns are merged; for a row that a change rewrote though it lost, the version that
//! the row really has, and the stamps of its columns.
//!
//! The register of rows has at most one entry a key. It is valid only for the tuple of its own transaction: whoever
//! writes the row anew, wins, and does not look here, makes it void by that.

mod local;

use duplex_protocol::rules::key::{Standing, truncates};
use duplex_protocol::version::Version;
use pgrx::{AnyNumeric, FromDatum as _, IntoDatum as _, pg_sys};

use crate::conflict::arrival::Arrival;
use crate::conflict::counter::{Amount, is_nothing};
use crate::conflict::policy::Policy;
use crate::conflict::register::{Entry, Register, Sight, is_same_place};
use crate::conflict::stamps::{Columns, decode, encode, resolve};
use crate::conflict::unique::OfRow;
use crate::conflict::version::{Stamp, Versions, stored};
use crate::errors::Result;

pub(crate) use local::Local;

const GONE: u8 = b'g';
const HIDDEN: u8 = b'h';

/// What is remembered of a key that has no row.
#[derive(Debug)]
pub(crate) struct Remembered {
    pub(crate) standing: Standing,
    pub(crate) version: Option<Version>,
    /// Each counter's, in the policy's order.
    pub(crate) residual: Vec<Amount>,
    /// Where this was read.
    pub(crate) places: Vec<pg_sys::ItemPointerData>,
    /// In a table that merges by column, the row that was there last.
    pub(crate) row: Option<KeptRow>,
}

/// A row that is not there, with the stamps of its columns.
#[derive(Debug)]
pub(crate) struct KeptRow {
    pub(crate) columns: Columns,
    /// The transaction that wrote this down.
    pub(crate) writer: pg_sys::TransactionId,
    /// The description of its table and itself, as in the stream.
    pub(crate) frames: Vec<u8>,
}

/// What the register of rows has of a row.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) stamp: Stamp,
    pub(crate) columns: Option<Columns>,
    /// The transaction that wrote this down, and the row.
    pub(crate) writer: pg_sys::TransactionId,
}

/// The two registers of a table with a policy, opened when they are first used.
#[derive(Debug)]
pub(crate) struct Keeper {
    tombstones: pg_sys::Oid,
    rows: pg_sys::Oid,
    counters: usize,
    merges: bool,
    open: Option<(Register, Register)>,
}

/// A version as a register stores it: commit_ts and origin, and which of them are NULL.
pub(crate) type Written = ([pg_sys::Datum; 2], [bool; 2]);

/// The version of what is older than any, where it has to be written down.
pub(crate) fn oldest() -> Version {
    Version { commit_ts: i64::MIN, origin: String::new() }
}

impl Keeper {
    /// Of a table with these registers and this policy.
    pub(crate) fn new(tombstones: pg_sys::Oid, rows: pg_sys::Oid, policy: &Policy) -> Self {
        Self { tombstones, rows, counters: policy.counters.len(), merges: policy.merges(), open: None }
    }

    unsafe fn open(&mut self) -> &(Register, Register) {
        let (tombstones, rows) = (self.tombstones, self.rows);
        // SAFETY: as the callers promise.
        self.open.get_or_insert_with(|| unsafe { (Register::open(tombstones), Register::open(rows)) })
    }

    /// Gives the registers back.
    ///
    /// # Safety
    /// Only after everything went well: an abort does it by itself.
    pub(crate) unsafe fn close(self) {
        if let Some((tombstones, rows)) = self.open {
            // SAFETY: opened by this in the same transaction.
            unsafe {
                tombstones.close();
                rows.close();
            }
        }
    }

    /// What is remembered of a key.
    ///
    /// # Safety
    /// Inside a transaction, the replicated table is locked; the values are those of the key, in the register's order.
    pub(crate) unsafe fn find(
        &mut self,
        key: &[pg_sys::Datum],
        truncated: Option<&Version>,
        versions: &mut Versions,
        incoming: &Version,
    ) -> Result<Remembered> {
        let (counters, merges) = (self.counters, self.merges);
        let mut newest: Option<Remembered> = None;
        let mut places = Vec::new();
        let mut row = None;
        // SAFETY: as the caller promises; the columns after the key's are kind, commit_ts, origin, residual and row.
        unsafe {
            let (register, _) = self.open();
            register.find(key, &[], Sight::Latest, |entry| {
                let kind = entry.value(key.len()).map_or(GONE, |kind| kind.value() as u8);
                let version = stamp(entry, key.len() + 1).version(versions, incoming);
                let standing = if kind == HIDDEN { Standing::Hidden } else { Standing::Gone };
                places.push(entry.place());
                if newest.as_ref().is_none_or(|newest| version >= newest.version) {
                    let residual = residual(entry, key.len() + 3, counters);
                    newest = Some(Remembered { standing, version, residual, places: Vec::new(), row: None });
                    row = merges.then(|| Some((entry.xmin(), bytes(entry, key.len() + 4)?))).flatten();
                }
            });
        }
        let Some(mut found) = newest else {
            let residual = vec![None; counters];
            return Ok(Remembered { standing: Standing::Unknown, version: None, residual, places, row: None });
        };
        found.places = places;
        if let Some((writer, bytes)) = row {
            let (columns, len) = decode(&bytes)?;
            found.row = Some(KeptRow { columns, writer, frames: bytes[len..].to_vec() });
        }
        // A hidden row that a TRUNCATE would have taken is gone.
        if truncated.is_some_and(|truncated| truncates(truncated, found.version.as_ref())) {
            found.standing = Standing::Gone;
        }
        Ok(found)
    }

    /// Whether what is remembered of a key is still what was found, but for what this transaction wrote itself. A local
    /// transaction may have put a row there and removed it again.
    ///
    /// # Safety
    /// As [`Self::find`].
    pub(crate) unsafe fn is_as_found(&mut self, key: &[pg_sys::Datum], found: &[pg_sys::ItemPointerData]) -> bool {
        let mut is_same = true;
        // SAFETY: as the caller promises.
        unsafe {
            if found.is_empty() && Register::is_empty(self.tombstones) {
                return true;
            }
            self.open().0.find(key, &[], Sight::Latest, |entry| {
                is_same &= entry.is_own() || found.iter().any(|&place| is_same_place(place, entry.place()));
            });
        }
        is_same
    }

    /// Nothing is left under a key, and no row to be remembered.
    ///
    /// # Safety
    /// As [`Self::find`].
    pub(crate) unsafe fn forget_residual(&mut self, key: &[pg_sys::Datum]) {
        // SAFETY: as the caller promises.
        unsafe {
            if !Register::is_empty(self.tombstones) && remove_all(&self.open().0, key) {
                pg_sys::CommandCounterIncrement();
                pg_sys::UpdateActiveSnapshotCommandId();
            }
        }
    }

    /// Remembers a key that has no row, in place of what was found of it, or of all that is there if its row was, which
    /// this transaction has removed. Without a version it has that of the transaction.
    ///
    /// # Safety
    /// As [`Self::find`].
    pub(crate) unsafe fn remember(
        &mut self,
        key: &[pg_sys::Datum],
        standing: Standing,
        version: Option<&Version>,
        residual: &[Amount],
        row: Option<&[u8]>,
        found: Option<&[pg_sys::ItemPointerData]>,
    ) {
        let merges = self.merges;
        // SAFETY: as the caller promises.
        unsafe {
            let (register, _) = self.open();
            remove(register, key, found);
            remember(register, key, standing, stored(version), residual, merges.then_some(row));
            pg_sys::UpdateActiveSnapshotCommandId();
        }
    }

    /// The version of a row that the transaction `xmin` wrote, and the stamps of its columns if there are `names` of
    /// columns that are merged.
    ///
    /// # Errors
    /// As [`decode`].
    ///
    /// # Safety
    /// As [`Self::find`]; the row is locked.
    pub(crate) unsafe fn of_row(
        &mut self,
        key: &[pg_sys::Datum],
        xmin: pg_sys::TransactionId,
        names: Option<&[String]>,
        arrival: &mut Arrival<'_>,
    ) -> Result<OfRow> {
        let Arrival { version: incoming, versions, .. } = arrival;
        let merges = self.merges;
        // SAFETY: as the caller promises.
        unsafe {
            let note = match Register::is_empty(self.rows) {
                true => None,
                false => valid(&self.open().1, key, xmin, Sight::Latest, merges)?,
            };
            let version = match &note {
                Some(note) => note.stamp.version(versions, incoming),
                None => versions.of_row(xmin, incoming).cloned(),
            };
            let columns = note.as_ref().and_then(|note| note.columns.as_ref());
            let stamps = names.map(|names| resolve(names, columns, xmin, version.as_ref(), versions, incoming));
            Ok(OfRow { version, stamps })
        }
    }

    /// Writes down which version a row really has that this transaction has written, if it is not this transaction's,
    /// and the stamps of its columns.
    ///
    /// # Safety
    /// As [`Self::find`].
    pub(crate) unsafe fn note(
        &mut self,
        key: &[pg_sys::Datum],
        version: Option<&Version>,
        columns: Option<&Columns>,
        versions: &Versions,
    ) {
        let merges = self.merges;
        // SAFETY: as the caller promises.
        unsafe {
            let mut written = stored(version);
            written.1[1] |= version.is_some_and(|version| versions.is_own(version));
            note(&self.open().1, key, written, merges.then_some(columns));
            pg_sys::UpdateActiveSnapshotCommandId();
        }
    }

    /// The row has the version of the transaction that wrote it.
    ///
    /// # Safety
    /// As [`Self::find`].
    pub(crate) unsafe fn forget(&mut self, key: &[pg_sys::Datum]) {
        // SAFETY: as the caller promises.
        unsafe {
            if !Register::is_empty(self.rows) && remove_all(&self.open().1, key) {
                pg_sys::CommandCounterIncrement();
                pg_sys::UpdateActiveSnapshotCommandId();
            }
        }
    }
}

unsafe fn remember(
    register: &Register,
    key: &[pg_sys::Datum],
    standing: Standing,
    ([commit_ts, origin], [no_ts, no_origin]): Written,
    residual: &[Amount],
    row: Option<Option<&[u8]>>,
) {
    // SAFETY: as the callers promise; the columns after the key's are kind, commit_ts, origin, residual and perhaps row.
    unsafe {
        let kind = if standing == Standing::Hidden { HIDDEN } else { GONE };
        // Nothing is left: then the column is NULL, which is how one sees that the tombstone may be forgotten.
        let kept = (!is_nothing(residual)).then(|| residual.to_vec().into_datum()).flatten();
        let mut values = key.to_vec();
        values.extend([
            pg_sys::Datum::from(kind.cast_signed()),
            commit_ts,
            origin,
            kept.unwrap_or(pg_sys::Datum::from(0)),
        ]);
        let mut nulls = vec![false; key.len() + 1];
        nulls.extend([no_ts, no_origin, kept.is_none()]);
        push_bytes(row, &mut values, &mut nulls);
        register.insert(&mut values, &mut nulls);
        pg_sys::CommandCounterIncrement();
    }
}

/// Takes all entries of a key out, also what this transaction has written. Says whether there were some.
unsafe fn remove_all(register: &Register, key: &[pg_sys::Datum]) -> bool {
    // SAFETY: as the callers promise.
    unsafe { remove(register, key, None) }
}

/// Takes entries of a key out: what this transaction has written, and of the others those that were found, if not all.
unsafe fn remove(register: &Register, key: &[pg_sys::Datum], found: Option<&[pg_sys::ItemPointerData]>) -> bool {
    let mut old = Vec::new();
    let is_found = |entry: Entry| found.is_none_or(|found| found.iter().any(|&at| is_same_place(at, entry.place())));
    // SAFETY: as the callers promise.
    unsafe {
        register.find(key, &[], Sight::RowByRow, |entry| {
            if entry.is_own() || is_found(entry) {
                old.push(entry.place());
            }
        });
    }
    for &place in &old {
        // SAFETY: just found there. Whoever wrote it has ended, or was this transaction, by an earlier command.
        unsafe { register.remove(place) };
    }
    !old.is_empty()
}

unsafe fn note(
    register: &Register,
    key: &[pg_sys::Datum],
    ([commit_ts, origin], no): Written,
    columns: Option<Option<&Columns>>,
) {
    // SAFETY: as the callers promise; the columns after the key's are commit_ts, origin and perhaps columns.
    unsafe {
        remove_all(register, key);
        let mut values = [key, &[commit_ts, origin]].concat();
        let mut nulls = vec![false; key.len()];
        nulls.extend(no);
        let columns = columns.map(|columns| columns.map(encode));
        push_bytes(columns.as_ref().map(Option::as_deref), &mut values, &mut nulls);
        register.insert(&mut values, &mut nulls);
        pg_sys::CommandCounterIncrement();
    }
}

/// A column of bytes, where the register has one.
fn push_bytes(bytes: Option<Option<&[u8]>>, values: &mut Vec<pg_sys::Datum>, nulls: &mut Vec<bool>) {
    let Some(bytes) = bytes else { return };
    let datum = bytes.and_then(pgrx::IntoDatum::into_datum);
    values.push(datum.unwrap_or(pg_sys::Datum::from(0)));
    nulls.push(datum.is_none());
}

unsafe fn bytes(entry: Entry, column: usize) -> Option<Vec<u8>> {
    // SAFETY: as the callers promise: the column is a bytea.
    entry.value(column).and_then(|value| unsafe { Vec::<u8>::from_datum(value, false) })
}

/// The entry of a row that the transaction `xmin` wrote.
unsafe fn valid(
    register: &Register,
    key: &[pg_sys::Datum],
    xmin: pg_sys::TransactionId,
    sight: Sight,
    merges: bool,
) -> Result<Option<Note>> {
    let mut found = None;
    // SAFETY: as the callers promise; the columns after the key's are commit_ts, origin and perhaps columns.
    unsafe {
        register.find(key, &[], sight, |entry| {
            if entry.xmin() == xmin {
                let columns = merges.then(|| bytes(entry, key.len() + 2)).flatten();
                found = Some((stamp(entry, key.len()), columns));
            }
        });
    }
    let Some((stamp, columns)) = found else { return Ok(None) };
    let columns = columns.map(|bytes| decode(&bytes)).transpose()?.map(|(columns, _)| columns);
    Ok(Some(Note { stamp, columns, writer: xmin }))
}

unsafe fn stamp(entry: Entry, first: usize) -> Stamp {
    // SAFETY: the columns there are commit_ts and origin.
    unsafe { Stamp::read(entry.xmin(), entry.value(first), entry.value(first + 1)) }
}

/// The residual in a column of a tombstone; NULL is zero for each counter.
unsafe fn residual(entry: Entry, column: usize, counters: usize) -> Vec<Amount> {
    match entry.value(column) {
        None => vec![Some(AnyNumeric::from(0)); counters],
        Some(array) => {
            // SAFETY: the column is an array of numeric.
            let mut read = unsafe { Vec::<Amount>::from_datum(array, false) }.unwrap_or_default();
            read.resize(counters, None);
            read
        }
    }
}
