//! Where the chunks of a transaction go that is too large to be kept in memory: a temporary file of PostgreSQL's.
//!
//! It counts towards `temp_file_limit` and lies in `temp_tablespaces`. It has a resource owner of its own below the
//! top-level transaction's: so it outlives the subtransaction that happened to open it, an abort closes and removes it
//! with no help from here, and giving it up writes nothing, which could fail once more.

use pgrx::{PgSqlErrorCode, pg_sys};

use crate::errors::{Failure, Result};

/// A temporary file, open for one transaction.
#[derive(Debug)]
pub(super) struct SpillFile {
    file: *mut pg_sys::BufFile,
    owner: pg_sys::ResourceOwner,
    end: u64,
    /// Not so once a write has failed: where PostgreSQL's buffer of the file stands is unknown then.
    is_whole: bool,
}

impl SpillFile {
    pub(super) fn create() -> Self {
        // SAFETY: inside a transaction. An ERROR leaves the two globals switched, and the abort that follows sets them.
        unsafe {
            let owner = pg_sys::CurrentResourceOwner;
            let context = pg_sys::CurrentMemoryContext;
            pg_sys::PrepareTempTablespaces();
            let own = pg_sys::ResourceOwnerCreate(pg_sys::TopTransactionResourceOwner, c"pg_duplex".as_ptr());
            pg_sys::CurrentResourceOwner = own;
            pg_sys::CurrentMemoryContext = pg_sys::TopTransactionContext;
            let file = pg_sys::BufFileCreateTemp(false);
            pg_sys::CurrentMemoryContext = context;
            pg_sys::CurrentResourceOwner = owner;
            Self { file, owner: own, end: 0, is_whole: true }
        }
    }

    /// Writes `bytes` at the end and returns where they are.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<u64> {
        let at = self.end;
        self.seek(at)?;
        self.is_whole = false;
        // SAFETY: the file is open; BufFileWrite reads `bytes.len()` bytes and raises an ERROR where it cannot write.
        // A new segment is opened for the resource owner that the file was created with.
        unsafe { pg_sys::BufFileWrite(self.file, bytes.as_ptr().cast_mut().cast(), bytes.len()) };
        self.is_whole = true;
        self.end = at + bytes.len() as u64;
        Ok(at)
    }

    /// Fills `out` from what was written at `at`.
    pub(super) fn read(&mut self, at: u64, out: &mut [u8]) -> Result<()> {
        self.seek(at)?;
        // SAFETY: the file is open, and `out` has room for what is read.
        let read = unsafe { pg_sys::BufFileRead(self.file, out.as_mut_ptr().cast(), out.len()) };
        if read == out.len() { Ok(()) } else { Err(broken("is shorter than what was written to it")) }
    }

    /// Forgets what lies at `end` and after.
    pub(super) fn truncate(&mut self, end: u64) {
        self.end = self.end.min(end);
    }

    /// Closes and removes the file; needed before a commit, which would warn of a leak. What was not written yet never is.
    pub(super) fn close(self) {
        // SAFETY: the owner is a child of the transaction's that owns nothing but the file, and this consumes the only
        // handle to both. Released as if aborted, so that no leak is reported.
        unsafe {
            for phase in [
                pg_sys::ResourceReleasePhase::RESOURCE_RELEASE_BEFORE_LOCKS,
                pg_sys::ResourceReleasePhase::RESOURCE_RELEASE_LOCKS,
                pg_sys::ResourceReleasePhase::RESOURCE_RELEASE_AFTER_LOCKS,
            ] {
                pg_sys::ResourceOwnerRelease(self.owner, phase, false, false);
            }
            pg_sys::ResourceOwnerDelete(self.owner);
        }
    }

    fn seek(&mut self, offset: u64) -> Result<()> {
        if !self.is_whole {
            return Err(broken("could not be written").hint(
                "Writing it failed earlier in this transaction, which can only go on from before its first large change.",
            ));
        }
        // SAFETY: the file is open. Offsets beyond a segment's size are carried into the segments that follow.
        let failed = unsafe { pg_sys::BufFileSeek(self.file, 0, offset as pg_sys::off_t, 0) };
        if failed == 0 { Ok(()) } else { Err(broken("has no such place")) }
    }
}

fn broken(what: &str) -> Failure {
    Failure::new(PgSqlErrorCode::ERRCODE_IO_ERROR, format!("temporary file of captured changes {what}"))
}
