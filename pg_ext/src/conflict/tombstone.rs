//! Keys that are gone or hidden. A tombstone under a row that is there again is stale: the row counts.

use std::cell::RefCell;
use std::rc::Rc;

use duplex_protocol::rules::key::{Standing, truncates};
use duplex_protocol::version::Version;
use pgrx::{PgSqlErrorCode, pg_sys};

use crate::conflict::batch::Batch;
use crate::conflict::register::{Register, Sight};
use crate::conflict::version::{Stamp, Versions, stored};
use crate::errors::{Failure, Result};

const GONE: u8 = b'g';
const HIDDEN: u8 = b'h';

/// What is remembered of a key.
#[derive(Debug)]
pub(crate) struct Tombstone {
    /// Gone or hidden.
    pub(crate) standing: Standing,
    /// Since when.
    pub(crate) version: Option<Version>,
}

/// So many times the register's length is asked for before it is trusted to stay as it is.
const ASKED: u8 = 8;

/// The tombstones of a table, while changes arrive at it.
///
/// Most tables hardly ever have one, and then a row that is new costs no look-up: the register's file has no length. That
/// too is a call into the system, so after a few rows it is trusted, and [`Tombstones::check`] asks once more.
///
/// Clones are of the same tombstones: changes of one table may come as those of several, one for each partition that
/// its peer has, and what one of them has written or not written yet is the others' as well.
#[derive(Debug, Clone)]
pub(crate) struct Tombstones(Rc<RefCell<State>>);

#[derive(Debug)]
struct State {
    oid: pg_sys::Oid,
    known: Known,
    open: Option<Register>,
    /// Keys that are gone, still to be written.
    gone: Option<Batch>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Empty when it was last asked, so many times.
    Empty(u8),
    /// Taken for empty without asking.
    Trusted,
    /// There may be some.
    Filled,
}

impl Tombstones {
    /// Those in a register.
    pub(crate) fn new(oid: pg_sys::Oid) -> Self {
        Self(Rc::new(RefCell::new(State { oid, known: Known::Empty(0), open: None, gone: None })))
    }

    /// The newest tombstone of a key.
    ///
    /// # Safety
    /// Inside a transaction, the replicated table is locked; the values are those of the key, in the register's order.
    pub(crate) unsafe fn find(
        &self,
        key: &[pg_sys::Datum],
        truncated: Option<&Version>,
        versions: &mut Versions,
        incoming: &Version,
    ) -> Option<Tombstone> {
        // SAFETY: as the caller promises.
        unsafe { self.0.borrow_mut().find(key, truncated, versions, incoming) }
    }

    /// Writes the tombstone of a key, in place of older ones. Without a version it has that of the transaction.
    ///
    /// # Errors
    /// As [`Self::check`].
    ///
    /// # Safety
    /// As [`Self::find`].
    pub(crate) unsafe fn write(
        &self,
        key: &[pg_sys::Datum],
        standing: Standing,
        version: Option<&Version>,
    ) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.0.borrow_mut().write(key, standing, version) }
    }

    /// Remembers that a row was removed, which is this transaction's until its end: so the tombstone may be written
    /// later, with others. [`Self::settle`] does so.
    ///
    /// # Errors
    /// As [`Self::check`].
    ///
    /// # Safety
    /// As [`Self::find`].
    pub(crate) unsafe fn bury(&self, key: &[pg_sys::Datum]) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.0.borrow_mut().bury(key) }
    }

    /// Whether [`Self::settle`] has something to write.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.0.borrow().is_unsettled()
    }

    /// Writes what is still to be written. It is visible to what comes next.
    ///
    /// # Safety
    /// As [`Self::find`], acting as the table's owner.
    pub(crate) unsafe fn settle(&self) {
        // SAFETY: as the caller promises.
        unsafe { self.0.borrow_mut().settle() }
    }

    /// Makes sure that the register was as empty as it was taken for.
    ///
    /// # Errors
    /// 40001 if it was not: the transaction has to be applied again.
    ///
    /// # Safety
    /// As [`Self::find`].
    pub(crate) unsafe fn check(&self) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.0.borrow().check() }
    }

    /// Whether these are the tombstones in that register.
    pub(crate) fn are_in(&self, register: pg_sys::Oid) -> bool {
        self.0.borrow().oid == register
    }

    /// Gives the register back, once the last clone is closed.
    ///
    /// # Safety
    /// Only after everything went well and is settled: an abort does it by itself.
    pub(crate) unsafe fn close(self) {
        let Some(State { gone, open, .. }) = Rc::into_inner(self.0).map(RefCell::into_inner) else { return };
        // SAFETY: both were made in the same transaction.
        unsafe {
            if let Some(batch) = gone {
                batch.free();
            }
            if let Some(register) = open {
                register.close();
            }
        }
    }
}

impl State {
    unsafe fn find(
        &mut self,
        key: &[pg_sys::Datum],
        truncated: Option<&Version>,
        versions: &mut Versions,
        incoming: &Version,
    ) -> Option<Tombstone> {
        // SAFETY: as the callers promise; the columns after the key's are kind, commit_ts and origin.
        unsafe {
            self.settle();
            match self.known {
                Known::Filled => {}
                Known::Trusted => return None,
                Known::Empty(_) if !Register::is_empty(self.oid) => self.known = Known::Filled,
                Known::Empty(times) => {
                    self.known = if times < ASKED { Known::Empty(times + 1) } else { Known::Trusted };
                    return None;
                }
            }
            let register = self.open();
            let mut newest: Option<Tombstone> = None;
            register.find(key, &[], Sight::Latest, |entry| {
                let kind = entry.value(key.len()).map_or(GONE, |kind| kind.value() as u8);
                let stamp = Stamp::read(entry.xmin(), entry.value(key.len() + 1), entry.value(key.len() + 2));
                let version = stamp.version(versions, incoming);
                let standing = if kind == HIDDEN { Standing::Hidden } else { Standing::Gone };
                if newest.as_ref().is_none_or(|newest| version >= newest.version) {
                    newest = Some(Tombstone { standing, version });
                }
            });
            // A hidden row that a TRUNCATE would have taken is gone.
            if let Some(tombstone) = &mut newest
                && truncated.is_some_and(|truncated| truncates(truncated, tombstone.version.as_ref()))
            {
                tombstone.standing = Standing::Gone;
            }
            newest
        }
    }

    unsafe fn write(&mut self, key: &[pg_sys::Datum], standing: Standing, version: Option<&Version>) -> Result<()> {
        // SAFETY: as the callers promise.
        unsafe {
            self.settle();
            let batch = self.batch()?;
            form(key, standing, version, |values, nulls| batch.add(values, nulls));
            self.settle();
        }
        Ok(())
    }

    unsafe fn bury(&mut self, key: &[pg_sys::Datum]) -> Result<()> {
        // SAFETY: as the callers promise.
        unsafe {
            let batch = self.batch()?;
            form(key, Standing::Gone, None, |values, nulls| batch.add(values, nulls));
            if batch.is_full() {
                self.settle();
            }
        }
        Ok(())
    }

    unsafe fn batch(&mut self) -> Result<&mut Batch> {
        // SAFETY: as the callers promise.
        unsafe {
            self.check()?;
            self.known = Known::Filled;
            if self.gone.is_none() {
                let layout = self.open().layout();
                self.gone = Some(Batch::new(layout));
            }
        }
        Ok(self.gone.as_mut().expect("made above"))
    }

    fn is_unsettled(&self) -> bool {
        self.gone.as_ref().is_some_and(|batch| !batch.is_empty())
    }

    unsafe fn settle(&mut self) {
        if !self.is_unsettled() {
            return;
        }
        // SAFETY: as the callers promise; no key comes twice, because a row has to be put back in between.
        unsafe {
            let mut batch = self.gone.take().expect("there is one that is not empty");
            self.open().write(&mut batch, Sight::Latest);
            self.gone = Some(batch);
            pg_sys::CommandCounterIncrement();
            pg_sys::UpdateActiveSnapshotCommandId();
        }
    }

    unsafe fn check(&self) -> Result<()> {
        // SAFETY: as the callers promise.
        if self.known != Known::Trusted || unsafe { Register::is_empty(self.oid) } {
            return Ok(());
        }
        Err(Failure::new(
            PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
            "the first keys of a table were deleted while a transaction was applied to it",
        )
        .hint("The transaction is applied again by itself."))
    }

    unsafe fn open(&mut self) -> &Register {
        let oid = self.oid;
        // SAFETY: as the callers promise.
        self.open.get_or_insert_with(|| unsafe { Register::open(oid) })
    }
}

/// The row of a tombstone, as a register has it.
///
/// # Safety
/// As [`stored`]; the row is to be copied.
pub(crate) unsafe fn form(
    key: &[pg_sys::Datum],
    standing: Standing,
    version: Option<&Version>,
    take: impl FnOnce(&mut [pg_sys::Datum], &mut [bool]),
) {
    const MOST: usize = pg_sys::INDEX_MAX_KEYS as usize + 3;
    let kind = if standing == Standing::Hidden { HIDDEN } else { GONE };
    // SAFETY: as the callers promise.
    let ([commit_ts, origin], [no_ts, no_origin]) = unsafe { stored(version) };
    let (mut values, mut nulls) = ([pg_sys::Datum::from(0); MOST], [false; MOST]);
    let rest = key.len();
    values[..rest].copy_from_slice(key);
    values[rest..rest + 3].copy_from_slice(&[pg_sys::Datum::from(kind.cast_signed()), commit_ts, origin]);
    nulls[rest + 1..rest + 3].copy_from_slice(&[no_ts, no_origin]);
    take(&mut values[..rest + 3], &mut nulls[..rest + 3]);
}
