//! Descriptors that are on record in `duplex.descriptors`, so that queue rows need not repeat them (`short`).
//!
//! A descriptor is known by a digest of its own bytes. So a digest never comes to mean another one, whatever becomes of
//! tables, of their oids and of this extension; and a descriptor that is not on record is simply written out.

use std::collections::HashMap;
use std::ffi::CStr;
use std::rc::Rc;

use pgrx::{FromDatum as _, IntoDatum as _, PgSqlErrorCode, Uuid, direct_function_call, pg_sys};

use crate::conflict::registers::own_table;
use crate::errors::{Failure, Result};

pub(super) const DIGEST_BYTES: usize = 16;

/// The first half of a descriptor's SHA-256.
pub(crate) type Digest = [u8; DIGEST_BYTES];

const TABLE: &CStr = c"descriptors";
const KEY: &CStr = c"descriptors_pkey";

/// So many are kept by a session that drains.
const MOST_KEPT: usize = 4096;

/// What stands for a descriptor.
fn digest(descriptor: &[u8]) -> Digest {
    // SAFETY: the function takes a bytea, and returns one of 32 bytes.
    let hash = unsafe { direct_function_call::<&[u8]>(pg_sys::sha256_bytea, &[descriptor.into_datum()]) };
    hash.and_then(|hash| hash.first_chunk().copied()).expect("a hash is never NULL, and longer than a digest")
}

/// What stands for a descriptor, if it is on record.
pub(crate) fn known(descriptor: &[u8]) -> Option<Digest> {
    let digest = digest(descriptor);
    (find(&digest)? == descriptor).then_some(digest)
}

/// Reads from the record, whatever this transaction sees: below permission checks, since who writes to a captured table
/// needs no right on schema `duplex`.
fn find(digest: &Digest) -> Option<Vec<u8>> {
    let (table, key) = (own_table(TABLE)?, own_table(KEY)?);
    // SAFETY: an index scan under a fresh catalogue snapshot of a table (uuid, bytea); what is opened is closed, and an ERROR on
    // the way releases all of it with the transaction. The value is copied while the scan holds its row.
    unsafe {
        let lock = pg_sys::AccessShareLock.cast_signed();
        let relation = pg_sys::table_open(table, lock);
        let mut keys = pg_sys::ScanKeyData::default();
        let (equal, is) = (pg_sys::BTEqualStrategyNumber as u16, pg_sys::Oid::from(pg_sys::F_UUID_EQ));
        pg_sys::ScanKeyInit(&mut keys, 1, equal, is, Uuid::from_bytes(*digest).into_datum()?);
        let scan = pg_sys::systable_beginscan(relation, key, true, std::ptr::null_mut(), 1, &mut keys);
        let tuple = pg_sys::systable_getnext(scan);
        let mut found = None;
        if !tuple.is_null() {
            let (mut values, mut nulls) = ([pg_sys::Datum::from(0); 2], [true; 2]);
            pg_sys::heap_deform_tuple(tuple, (*relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            found = Vec::<u8>::from_datum(values[1], nulls[1]);
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, lock);
        found
    }
}

/// Those that a session which drains has met.
#[derive(Debug, Default)]
pub(super) struct Descriptors(HashMap<Digest, Rc<[u8]>>);

impl Descriptors {
    /// The descriptor behind a digest.
    ///
    /// # Errors
    /// XX001 if it is not on record any more.
    pub(super) fn get(&mut self, digest: &Digest) -> Result<Rc<[u8]>> {
        if let Some(known) = self.0.get(digest) {
            return Ok(Rc::clone(known));
        }
        let found: Rc<[u8]> = find(digest).ok_or_else(|| lost(digest))?.into();
        if self.0.len() >= MOST_KEPT {
            self.0.clear();
        }
        self.0.insert(*digest, Rc::clone(&found));
        Ok(found)
    }
}

fn lost(digest: &Digest) -> Failure {
    Failure::new(
        PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
        format!(
            "the queue refers to descriptor {:032x}, which is not in duplex.descriptors",
            u128::from_be_bytes(*digest)
        ),
    )
    .hint(
        "Somebody deleted it. While its table is as it was, \"select duplex.note_descriptors(…)\" with the table's name \
         brings it back.",
    )
}
