//! Which registers a table has here. Looked up when a table is first used, and again once PostgreSQL says that it has
//! changed; read at heap level, since a writer has no right to look.

use std::ffi::CStr;

use pgrx::{FromDatum as _, PgSqlErrorCode, pg_extern, pg_sys};

use crate::conflict::policy::Policy;
use crate::conflict::register::Register;
use crate::conflict::version::Stamp;
use crate::errors::{Failure, OrRaise as _, Result};

/// The registers of a table, which are those of all its partitions.
#[derive(Debug, Clone)]
pub(crate) struct Registers {
    /// The register of keys that are gone or hidden.
    pub(crate) tombstones: pg_sys::Oid,
    /// The key's attributes in the table itself, in the register's order.
    pub(crate) key: Vec<i16>,
    /// For each unique index but the key's (the whole table's, if it is a partition's), the register of its values.
    pub(crate) claims: Vec<(pg_sys::Oid, pg_sys::Oid)>,
    /// The newest TRUNCATE.
    pub(crate) truncated: Option<Stamp>,
    /// How the table decides.
    pub(crate) policy: Policy,
    /// In a table with a policy, the register of true versions of rows.
    pub(crate) rows: Option<pg_sys::Oid>,
}

impl Registers {
    /// The registers of a table; `None` if it has none, as one that is not enabled.
    ///
    /// # Errors
    /// 55000 if they do not fit the table's key.
    ///
    /// # Safety
    /// Inside a transaction; the relation is open and is the whole table, no partition.
    pub(crate) unsafe fn load(relation: pg_sys::Relation) -> Result<Option<Self>> {
        // SAFETY: as the caller promises.
        let (oid, key) = unsafe { ((*relation).rd_id, key(relation)) };
        let policy = Policy::load(oid);
        let mut this =
            Self { tombstones: pg_sys::InvalidOid, key, claims: Vec::new(), truncated: None, policy, rows: None };
        each_row(c"registers", Some(oid), |row| {
            let (of_index, register) = (row.oid(1), row.oid(2));
            if of_index == pg_sys::InvalidOid {
                this.tombstones = register;
            } else if of_index == oid {
                this.rows = Some(register);
            } else {
                this.claims.push((of_index, register));
            }
        });
        each_row(c"truncates", Some(oid), |row| this.truncated = Some(row.stamp(1)));
        if this.tombstones == pg_sys::InvalidOid {
            return Ok(None);
        }
        // SAFETY: as above.
        unsafe { this.check(relation)? };
        Ok(Some(this))
    }

    /// A value of another type written into a register would be read as what it is not.
    unsafe fn check(&self, relation: pg_sys::Relation) -> Result<()> {
        // SAFETY: as the caller promises; the register is closed at once.
        let fits = unsafe {
            let register = Register::open(self.tombstones);
            let types = register.types();
            register.close();
            let of = |&attribute: &i16| pg_sys::getBaseType(pg_sys::get_atttype((*relation).rd_id, attribute));
            self.key.iter().map(of).eq(types)
        };
        if fits && self.rows.is_some() != self.policy.is_default() {
            return Ok(());
        }
        // SAFETY: the relation is open; its name is NUL-terminated.
        let name =
            unsafe { CStr::from_ptr((*(*relation).rd_rel).relname.data.as_ptr()).to_string_lossy().into_owned() };
        Err(Failure::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("the registers of table \"{name}\" do not fit its key and its policy"),
        )
        .hint("Call duplex.fit_registers for it."))
    }

    /// The register of the values of a unique index, if the index is known.
    pub(crate) fn claims_of(&self, index: pg_sys::Oid) -> Option<pg_sys::Oid> {
        self.claims.iter().find(|(of, _)| *of == index).map(|(_, register)| *register)
    }
}

/// The index that identifies a relation's rows: the replica identity's if one was chosen, else the primary key's.
///
/// # Safety
/// The relation is open.
pub(crate) unsafe fn identity_index(relation: pg_sys::Relation) -> pg_sys::Oid {
    // SAFETY: as the caller promises; the first call fills what the others read.
    unsafe {
        let chosen = pg_sys::RelationGetReplicaIndex(relation);
        if chosen != pg_sys::InvalidOid {
            return chosen;
        }
        #[cfg(feature = "pg18")]
        return pg_sys::RelationGetPrimaryKeyIndex(relation, false);
        #[cfg(not(feature = "pg18"))]
        return pg_sys::RelationGetPrimaryKeyIndex(relation);
    }
}

/// The attributes of that index.
///
/// # Safety
/// As [`identity_index`].
unsafe fn key(relation: pg_sys::Relation) -> Vec<i16> {
    // SAFETY: as the caller promises; the index is open while it is looked at.
    unsafe {
        let oid = identity_index(relation);
        if oid == pg_sys::InvalidOid {
            return Vec::new();
        }
        let index = pg_sys::index_open(oid, pg_sys::AccessShareLock.cast_signed());
        let form = &*(*index).rd_index;
        let key = form.indkey.values.as_slice(usize::from(form.indnkeyatts.cast_unsigned())).to_vec();
        pg_sys::index_close(index, pg_sys::NoLock.cast_signed());
        key
    }
}

/// A row of one of the small tables that say what belongs to a table.
pub(crate) struct Row<'t> {
    values: &'t [pg_sys::Datum],
    nulls: &'t [bool],
    tuple: pg_sys::HeapTuple,
}

impl Row<'_> {
    fn oid(&self, column: usize) -> pg_sys::Oid {
        pg_sys::Oid::from(self.values[column].value() as u32)
    }

    /// A number.
    pub(crate) fn integer(&self, column: usize) -> i32 {
        self.values[column].value() as i32
    }

    /// A text.
    pub(crate) fn text(&self, column: usize) -> String {
        // SAFETY: the column is one of texts.
        unsafe { String::from_datum(self.values[column], self.nulls[column]).unwrap_or_default() }
    }

    /// A list of names.
    pub(crate) fn names(&self, column: usize) -> Vec<String> {
        // SAFETY: the column is an array of names, which are of fixed length and end in NUL.
        unsafe {
            let array = pg_sys::pg_detoast_datum(self.values[column].cast_mut_ptr()).cast::<pg_sys::ArrayType>();
            let (mut elements, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
            let (of, length) = (pg_sys::NAMEOID, pg_sys::NAMEDATALEN.cast_signed());
            let align = pg_sys::TYPALIGN_CHAR.cast_signed();
            pg_sys::deconstruct_array(array, of, length, false, align, &mut elements, &mut nulls, &mut count);
            let name = |n: usize| CStr::from_ptr((*elements.add(n)).cast_mut_ptr()).to_string_lossy().into_owned();
            (0..count as usize).map(name).collect()
        }
    }

    /// Version columns: commit_ts, and origin after it.
    fn stamp(&self, column: usize) -> Stamp {
        let value = |column: usize| (!self.nulls[column]).then_some(self.values[column]);
        // SAFETY: the tuple is one of the heap; the columns are bigint and text.
        unsafe {
            let xmin = (*(*self.tuple).t_data).t_choice.t_heap.t_xmin;
            Stamp::read(xmin, value(column), value(column + 1))
        }
    }

    /// Where the row is.
    pub(crate) fn place(&self) -> pg_sys::ItemPointerData {
        // SAFETY: the tuple is there while the row is shown.
        unsafe { (*self.tuple).t_self }
    }
}

/// Shows the rows of a table of schema `duplex`: all, or those whose first column is this oid.
pub(crate) fn each_row(table: &CStr, of: Option<pg_sys::Oid>, mut each: impl FnMut(&Row<'_>)) {
    // SAFETY: a sequential scan under a fresh catalogue snapshot of a table, with an oid in front if asked for; what is opened is
    // closed, and an ERROR on the way releases all of it with the transaction.
    unsafe {
        let Some(oid) = own_table(table) else { return };
        let relation = pg_sys::table_open(oid, pg_sys::AccessShareLock.cast_signed());
        let mut key = pg_sys::ScanKeyData::default();
        let equal = pg_sys::BTEqualStrategyNumber as u16;
        if let Some(of) = of {
            pg_sys::ScanKeyInit(&mut key, 1, equal, pg_sys::Oid::from(pg_sys::F_OIDEQ), of.into());
        }
        let (keys, none) = (of.is_some().into(), std::ptr::null_mut());
        let scan = pg_sys::systable_beginscan(relation, pg_sys::InvalidOid, false, none, keys, &mut key);
        let width = (*(*relation).rd_att).natts as usize;
        let (mut values, mut nulls) = (vec![pg_sys::Datum::from(0); width], vec![true; width]);
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            pg_sys::heap_deform_tuple(tuple, (*relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            each(&Row { values: &values, nulls: &nulls, tuple });
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::NoLock.cast_signed());
    }
}

/// A table of schema `duplex`; `None` where the extension is gone.
pub(crate) fn own_table(name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: catalogue look-ups inside a transaction.
    let oid = unsafe {
        let schema = pg_sys::get_namespace_oid(c"duplex".as_ptr(), true);
        if schema == pg_sys::InvalidOid {
            return None;
        }
        pg_sys::get_relname_relid(name.as_ptr(), schema)
    };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// `duplex.announce(relation)`: what sessions know of the table and its partitions is to be looked up anew.
#[pg_extern(sql = "")]
fn announce(relation: pg_sys::Oid) {
    // SAFETY: inside a transaction; the lock keeps writers out who would go by what they knew.
    unsafe {
        let rel = pg_sys::try_table_open(relation, pg_sys::ShareRowExclusiveLock.cast_signed());
        if rel.is_null() {
            Err::<(), _>(Failure::new(PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE, "the table does not exist")).or_raise();
        } else {
            pg_sys::CacheInvalidateRelcache(rel);
            pg_sys::table_close(rel, pg_sys::NoLock.cast_signed());
        }
    }
}
