//! Which table and columns a descriptor of the stream means here.
//!
//! A descriptor comes with every transaction, so what it means is kept under its very bytes: a small transaction costs
//! one look-up. PostgreSQL tells when a table changes; that only marks the mapping stale, because it may happen in the
//! middle of a row.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::CString;
use std::rc::Rc;

use duplex_protocol::entry::{Entry, Relation};
use pgrx::{PgSqlErrorCode, PgTupleDesc, Spi, pg_guard, pg_sys};

use crate::apply::own::with_own_tables;
use crate::apply::value::Conversion;
use crate::backend_local::BackendLocal;
use crate::conflict::counter::Counter;
use crate::conflict::policy::no_column;
use crate::conflict::registers::Registers;
use crate::errors::{Failure, Result};

/// Mappings kept before all are forgotten: a bound on memory, far above the tables of one stream.
const KEPT: usize = 4096;

/// A column of the descriptor, and what it is here.
#[derive(Debug)]
pub(crate) struct TargetColumn {
    /// Attribute number here.
    pub(crate) attribute: i16,
    /// How its values are converted.
    pub(crate) conversion: Conversion,
    /// Whether this node computes it: then what comes is left aside, except to find the row by.
    pub(crate) generated: bool,
}

/// What a descriptor means here.
#[derive(Debug)]
pub(crate) struct Target {
    /// The table.
    pub(crate) relid: pg_sys::Oid,
    /// Its name for messages, quoted where needed.
    pub(crate) label: String,
    /// The role that writes.
    pub(crate) owner: pg_sys::Oid,
    /// For each column of the descriptor.
    pub(crate) columns: Vec<TargetColumn>,
    /// The key, as indexes into `columns`.
    pub(crate) key: Vec<u16>,
    /// What is remembered of its keys and unique values.
    pub(crate) registers: Registers,
    /// Names of the key's columns in the registers' order, for the record of conflicts.
    pub(crate) key_names: Vec<String>,
    /// The counters in the policy's order, each with its column of the descriptor.
    pub(crate) counters: Vec<(Counter, u16)>,
    /// In a table that merges by column, the names of the descriptor's columns.
    pub(crate) merged: Option<Vec<String>>,
    /// Attributes that the descriptor lacks and this node does not compute: default on INSERT, kept on UPDATE.
    pub(crate) unmapped: Vec<i16>,
    context: pg_sys::MemoryContext,
    stale: Rc<Cell<bool>>,
}

impl Target {
    /// Whether the table may have changed since the mapping was made.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale.get()
    }

    /// The key's attribute numbers here.
    pub(crate) fn key_attributes(&self) -> impl Iterator<Item = i16> + '_ {
        self.key.iter().map(|&index| self.columns[usize::from(index)].attribute)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // SAFETY: made by `Target::build` for this mapping alone; nothing of it is referred to from elsewhere.
        unsafe { pg_sys::MemoryContextDelete(self.context) };
    }
}

/// The mappings of one session.
#[derive(Debug, Default)]
pub(crate) struct Targets {
    by_frame: HashMap<Rc<[u8]>, Option<Rc<Target>>>,
}

impl Targets {
    /// The one copy of a descriptor's bytes.
    pub(crate) fn intern(&mut self, frame: &[u8]) -> Rc<[u8]> {
        if let Some((known, _)) = self.by_frame.get_key_value(frame) {
            return Rc::clone(known);
        }
        if self.by_frame.len() >= KEPT {
            self.by_frame.clear();
        }
        let frame: Rc<[u8]> = frame.into();
        self.by_frame.insert(Rc::clone(&frame), None);
        frame
    }

    /// What the descriptor in `frame` means here.
    ///
    /// # Safety
    /// Inside a transaction.
    pub(crate) unsafe fn get(&mut self, frame: &Rc<[u8]>) -> Result<Rc<Target>> {
        if let Some(Some(target)) = self.by_frame.get(frame)
            && !target.is_stale()
        {
            return Ok(Rc::clone(target));
        }
        let Entry::Relation(relation) = Entry::decode(frame)? else {
            return Err(Failure::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, "not a relation"));
        };
        // SAFETY: as the caller promises.
        let target = Rc::new(unsafe { Target::build(&relation)? });
        self.by_frame.insert(Rc::clone(frame), Some(Rc::clone(&target)));
        Ok(target)
    }
}

impl Target {
    unsafe fn build(relation: &Relation) -> Result<Self> {
        let label = format!(
            "{}.{}",
            pgrx::spi::quote_identifier(&relation.schema),
            pgrx::spi::quote_identifier(&relation.name)
        );
        // SAFETY: inside a transaction, as the caller promises; the lock is kept to its end.
        let rel = unsafe { open_by_name(relation) }.ok_or_else(|| {
            Failure::new(PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE, format!("table {label} does not exist here"))
                .hint("Create it as it is on the peer and call duplex.enable for it, then the stream goes on.")
        })?;
        // SAFETY: `rel` is open until the end of this function, or of the transaction if an error comes between.
        unsafe {
            let form = &*(*rel).rd_rel;
            check_enabled((*rel).rd_id, &label)?;
            // Watched from here on: what comes between is seen as a change.
            let stale = watch((*rel).rd_id);
            let registers = Registers::load(rel)?.ok_or_else(|| {
                Failure::new(
                    PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!("table {label} has no register of what is gone"),
                )
                .hint(format!("Call duplex.fit_registers('{label}')."))
            })?;
            let context = pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopMemoryContext,
                c"pg_duplex target".as_ptr(),
                0,
                1024,
                8192,
            );
            let mut target = Self {
                relid: (*rel).rd_id,
                label,
                owner: form.relowner,
                columns: Vec::with_capacity(relation.columns.len()),
                key: relation.key.clone(),
                registers,
                key_names: Vec::new(),
                counters: Vec::new(),
                merged: None,
                unmapped: Vec::new(),
                context,
                stale,
            };
            target.registers.policy.check(relation, &target.label)?;
            target.map_columns(rel, relation)?;
            target.map_counters(rel, relation)?;
            target.check_key()?;
            if target.key.iter().any(|&index| usize::from(index) >= target.columns.len()) {
                return Err(Failure::new(
                    PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
                    "key of a relation has no such column",
                ));
            }
            pg_sys::table_close(rel, pg_sys::NoLock.cast_signed());
            Ok(target)
        }
    }

    unsafe fn map_columns(&mut self, rel: pg_sys::Relation, relation: &Relation) -> Result<()> {
        // SAFETY: the relation is open, so its descriptor is valid.
        let desc = unsafe { PgTupleDesc::from_pg_unchecked((*rel).rd_att) };
        let mut found = vec![false; desc.len()];
        for column in &relation.columns {
            let attribute = desc
                .iter()
                .find(|attribute| !attribute.attisdropped && attribute.name() == column.name)
                .ok_or_else(|| {
                    Failure::new(
                        PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
                        format!("column \"{}\" of table {} does not exist here", column.name, self.label),
                    )
                    .hint("Add it here as it is on the peer, then the stream goes on.")
                })?;
            let seen = &mut found[attribute.attnum as usize - 1];
            if std::mem::replace(seen, true) {
                return Err(Failure::new(PgSqlErrorCode::ERRCODE_DATA_CORRUPTED, "relation has a column twice"));
            }
            // SAFETY: inside a transaction; the context lives as long as this mapping.
            let conversion = unsafe { Conversion::new(column, attribute.atttypid, attribute.atttypmod, self.context)? };
            let generated = attribute.attgenerated != 0;
            self.columns.push(TargetColumn { attribute: attribute.attnum, conversion, generated });
        }
        let name = |&attribute: &i16| desc.get(attribute as usize - 1).map(|a| a.name().to_owned()).unwrap_or_default();
        self.key_names = self.registers.key.iter().map(name).collect();
        self.unmapped = desc
            .iter()
            .filter(|a| !a.attisdropped && a.attgenerated == 0 && !found[a.attnum as usize - 1])
            .map(|a| a.attnum)
            .collect();
        Ok(())
    }
}

impl Target {
    unsafe fn map_counters(&mut self, rel: pg_sys::Relation, relation: &Relation) -> Result<()> {
        // SAFETY: the relation is open, so its descriptor is valid.
        let desc = unsafe { PgTupleDesc::from_pg_unchecked((*rel).rd_att) };
        if self.registers.policy.merges() {
            self.merged = Some(relation.columns.iter().map(|column| column.name.clone()).collect());
        }
        for name in &self.registers.policy.counters {
            let place =
                relation.columns.iter().position(|column| column.name == *name).ok_or_else(|| no_column(name))?;
            let attribute = desc.get(self.columns[place].attribute as usize - 1).ok_or_else(|| no_column(name))?;
            let counter = Counter::new(name, attribute.atttypid, attribute.atttypmod)?;
            self.counters.push((counter, place as u16));
        }
        Ok(())
    }

    /// Rows are remembered by the key that they have here: it has to be the one that the peer means.
    fn check_key(&self) -> Result<()> {
        let here = &self.registers.key;
        if here.len() == self.key.len() && self.key_attributes().all(|attribute| here.contains(&attribute)) {
            return Ok(());
        }
        Err(Failure::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("table {} has another key than on the peer", self.label),
        )
        .detail(format!("Here it is ({}).", self.key_names.join(", ")))
        .hint("Give the table the same primary key or replica identity index on every node."))
    }
}

/// Opens the table of that name for writing, or says that there is none.
unsafe fn open_by_name(relation: &Relation) -> Option<pg_sys::Relation> {
    let schema = CString::new(relation.schema.as_str()).ok()?;
    let name = CString::new(relation.name.as_str()).ok()?;
    // SAFETY: inside a transaction, strings are NUL-terminated.
    unsafe {
        let namespace = pg_sys::get_namespace_oid(schema.as_ptr(), true);
        if namespace == pg_sys::InvalidOid {
            return None;
        }
        let relid = pg_sys::get_relname_relid(name.as_ptr(), namespace);
        if relid == pg_sys::InvalidOid {
            return None;
        }
        let rel = pg_sys::try_table_open(relid, pg_sys::RowExclusiveLock.cast_signed());
        (!rel.is_null()).then_some(rel)
    }
}

/// Only tables that the administrator enabled here take what comes from a peer.
fn check_enabled(relid: pg_sys::Oid, label: &str) -> Result<()> {
    let enabled = with_own_tables(|| {
        Spi::get_one_with_args::<bool>(
            "select exists (select from duplex.table_registry where relid = $1)",
            &[relid.into()],
        )
    });
    if enabled.ok().flatten() == Some(true) {
        return Ok(());
    }
    Err(Failure::new(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("table {label} is not enabled for replication here"),
    )
    .hint(format!("Call duplex.enable('{label}'), or disable the table on the peer.")))
}

/// A table, and the flag that is set once it changes.
type Watched = (pg_sys::Oid, Rc<Cell<bool>>);

static WATCHED: BackendLocal<RefCell<Vec<Watched>>> = BackendLocal::new(RefCell::new(Vec::new()));
static REGISTERED: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(false));

/// A flag that is set once the table changes.
fn watch(relid: pg_sys::Oid) -> Rc<Cell<bool>> {
    if !REGISTERED.replace(true) {
        // SAFETY: the callback lives as long as the library, which is never unloaded.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(at_invalidation), pg_sys::Datum::from(0)) };
    }
    let flag = Rc::new(Cell::new(false));
    WATCHED.with_borrow_mut(|watched| {
        // Those that nobody but this list holds are mappings that are gone.
        watched.retain(|(_, flag)| Rc::strong_count(flag) > 1);
        watched.push((relid, Rc::clone(&flag)));
    });
    flag
}

/// Marks; frees nothing and asks nothing. The list is never borrowed across a call into the server.
#[pg_guard]
unsafe extern "C-unwind" fn at_invalidation(_arg: pg_sys::Datum, relid: pg_sys::Oid) {
    for (watched, flag) in WATCHED.borrow().iter() {
        if relid == pg_sys::InvalidOid || relid == *watched {
            flag.set(true);
        }
    }
}
