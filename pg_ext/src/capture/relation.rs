//! What capture knows of a table: its descriptor, ready to be copied into a transaction's body, and how to encode its
//! columns. Cached in the backend, looked up anew once PostgreSQL says that something has changed.
//!
//! Such a notice can come in the middle of a row (an output function may open a table), so it only marks an entry as
//! stale; whoever holds the entry keeps it alive.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use duplex_protocol::encode::{RowWriter, append_entry};
use duplex_protocol::entry::{Column, Entry, PutKind, Relation as Descriptor, Resolution};
use pgrx::{PgSqlErrorCode, pg_extern, pg_guard, pg_sys};

use super::promotion;
use super::settings::Settings;
use super::stored::Slot;
use super::types::{Encoder, TypePlan, schema_name, to_utf8};
use crate::backend_local::BackendLocal;
use crate::conflict::local::{Kept, Local};
use crate::errors::{Failure, OrRaise as _, Result};
use crate::gucs;
use crate::queue::descriptors::{self, Digest};

/// A column that travels.
#[derive(Debug)]
pub(super) struct ColumnPlan {
    /// The column's place in a tuple's values.
    pub(super) attribute: usize,
    /// `attlen`: above 0 a fixed length, -1 a varlena, -2 a string.
    pub(super) length: i16,
    pub(super) by_value: bool,
    pub(super) is_key: bool,
    pub(super) encoder: Encoder,
}

/// What is merged by column.
#[derive(Debug)]
pub(super) struct Merged {
    /// The names of the columns that travel.
    pub(super) names: Vec<String>,
    /// For each further unique index, which of them it depends on.
    pub(super) indexes: Vec<Vec<u16>>,
}

/// A table as capture knows it.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) oid: u32,
    /// The whole frame of the table's [`Entry::Relation`].
    pub(super) descriptor: Vec<u8>,
    /// What stands for the descriptor in the queue, if the drain knows it.
    pub(super) digest: Option<Digest>,
    /// What the frame of an INSERT begins with.
    pub(super) insert_beginning: Vec<u8>,
    /// All attributes of a tuple, dropped ones included.
    pub(super) attributes: usize,
    /// How to find each of them in a tuple.
    pub(super) slots: Vec<Slot>,
    pub(super) columns: Vec<ColumnPlan>,
    /// Whether all columns travel as they are stored, unless a value is compressed or elsewhere.
    pub(super) is_copied: bool,
    /// Indexes into `columns`.
    pub(super) key: Vec<u16>,
    /// What the text of its columns depends on.
    pub(super) settings: Settings,
    /// Where what is gone is remembered.
    pub(super) registers: Option<Local>,
    /// In a table that merges by column, what is merged.
    pub(super) merged: Option<Merged>,
    /// Which transaction's body describes it already; see `transaction`.
    pub(super) described_in: Cell<u64>,
    /// The table under whose name it is described: its root if it is a partition.
    root: u32,
    name: String,
    /// Whether the database lacked something when this was loaded, in a table that is not to be written to then.
    lacks: bool,
    type_hashes: Vec<u32>,
    stale: Cell<bool>,
}

/// Tables that are found without a search.
const PLACES: usize = 16;

/// Those asked for last, each in the one place that its oid says: a transaction mostly writes to few tables.
#[unsafe(link_section = ".data.duplex_hot")]
static LATEST: BackendLocal<RefCell<[Option<Rc<Table>>; PLACES]>> =
    BackendLocal::new(RefCell::new([const { None }; PLACES]));
static TABLES: BackendLocal<RefCell<BTreeMap<u32, Rc<Table>>>> = BackendLocal::new(RefCell::new(BTreeMap::new()));

/// A notice that came while the cache was borrowed: everything is stale.
#[unsafe(link_section = ".data.duplex_hot")]
static ALL_STALE: AtomicBool = AtomicBool::new(false);

/// Registers for notices of change; called once in a backend.
pub(super) fn init() {
    // SAFETY: registered once, from _PG_init; the callbacks take no argument and never fail.
    unsafe {
        let none = pg_sys::Datum::from(0);
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), none);
        pg_sys::CacheRegisterSyscacheCallback(pg_sys::SysCacheIdentifier::TYPEOID as c_int, Some(type_changed), none);
        pg_sys::CacheRegisterSyscacheCallback(
            pg_sys::SysCacheIdentifier::NAMESPACEOID as c_int,
            Some(schema_changed),
            none,
        );
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    let oid = relation.to_u32();
    mark_stale(|table| oid == 0 || table.oid == oid || table.root == oid);
}

#[pg_guard]
unsafe extern "C-unwind" fn type_changed(_arg: pg_sys::Datum, _cache: c_int, hash: u32) {
    mark_stale(|table| hash == 0 || table.type_hashes.contains(&hash));
}

#[pg_guard]
unsafe extern "C-unwind" fn schema_changed(_arg: pg_sys::Datum, _cache: c_int, _hash: u32) {
    mark_stale(|_| true);
}

fn mark_stale(is_affected: impl Fn(&Table) -> bool) {
    match TABLES.try_borrow() {
        Ok(tables) => tables.values().filter(|table| is_affected(table)).for_each(|table| table.stale.set(true)),
        Err(_) => ALL_STALE.store(true, Ordering::Relaxed),
    }
}

/// What is known of an open table.
#[inline]
#[unsafe(link_section = ".text.duplex_hot")]
pub(super) fn lookup(relation: &pg_sys::RelationData) -> Result<Rc<Table>> {
    // SAFETY: an open relation has a tuple descriptor.
    let attributes = unsafe { (*relation.rd_att).natts } as usize;
    let (oid, is_current) = (relation.rd_id.to_u32(), !ALL_STALE.load(Ordering::Relaxed));
    let fits = |table: &Rc<Table>| table.oid == oid && !table.stale.get() && table.attributes == attributes;
    if is_current {
        let place = oid as usize % PLACES;
        if let Some(table) = LATEST.with_borrow(|latest| latest[place].as_ref().filter(|table| fits(table)).cloned()) {
            return Ok(table);
        }
        let known = TABLES.with_borrow(|tables| tables.get(&oid).cloned());
        if let Some(table) = known.filter(fits) {
            let replaced = LATEST.with_borrow_mut(|latest| latest[place].replace(Rc::clone(&table)));
            drop(replaced);
            return Ok(table);
        }
    }
    rebuild(relation)
}

#[cold]
fn rebuild(relation: &pg_sys::RelationData) -> Result<Rc<Table>> {
    if ALL_STALE.swap(false, Ordering::Relaxed) {
        TABLES.with_borrow_mut(BTreeMap::clear);
        drop(LATEST.replace([const { None }; PLACES]));
    }
    let table = Rc::new(Table::load(relation)?);
    // What is replaced, or stale and so of no use, may go; whoever is using it holds it.
    let replaced = TABLES.with_borrow_mut(|tables| {
        tables.retain(|_, table| !table.stale.get());
        tables.insert(table.oid, Rc::clone(&table))
    });
    drop(replaced);
    Ok(table)
}

impl Table {
    fn load(relation: &pg_sys::RelationData) -> Result<Self> {
        // SAFETY: the relation is open, so its descriptor and its row of pg_class are there for as long as we look.
        let (attributes, class) = unsafe { ((*relation.rd_att).natts as usize, &*relation.rd_rel) };
        let key_attributes = key_attributes(relation);
        if key_attributes.is_empty() {
            return Err(no_key(class));
        }
        let mut slots = Vec::with_capacity(attributes);
        let mut plans = Vec::with_capacity(attributes);
        let mut columns = Vec::with_capacity(attributes);
        let mut settings = Settings::NONE;
        let mut type_hashes = Vec::new();
        for number in 0..attributes {
            // SAFETY: `number` is below the count of attributes.
            let attribute = unsafe { &*attribute(relation.rd_att, number) };
            let is_key = key_attributes.contains(&attribute.attnum);
            let travels = !attribute.attisdropped && (attribute.attgenerated == 0 || is_key);
            slots.push(Slot::of(attribute, travels));
            if !travels {
                continue;
            }
            let plan = TypePlan::load(attribute.atttypid, attribute.atttypmod)?;
            columns.push(Column {
                // SAFETY: the name is a NUL-terminated array within the attribute.
                name: unsafe { to_utf8(attribute.attname.data.as_ptr()) },
                type_schema: plan.schema,
                type_name: plan.name,
                type_modifier: plan.modifier,
                format: plan.format,
            });
            plans.push(ColumnPlan {
                attribute: number,
                length: attribute.attlen,
                by_value: attribute.attbyval,
                is_key,
                encoder: plan.encoder,
            });
            settings = settings | plan.settings;
            type_hashes.extend(plan.hashes);
        }
        let place = |attnum: &i16| plans.iter().position(|plan| plan.attribute + 1 == *attnum as usize);
        let key: Vec<u16> = key_attributes.iter().filter_map(place).map(|place| place as u16).collect();
        let root = root_of(relation);
        let ((schema, name), registers) = of_root(relation, root)?;
        let policy = registers.as_ref().map(|registers| &registers.policy);
        let counters = policy.map_or(&[][..], |policy| &policy.counters);
        let is_counter = |column: &Column| counters.contains(&column.name);
        let delta_columns =
            (0..).zip(&columns).filter(|(_, column)| is_counter(column)).map(|(place, _)| place).collect();
        let merged = registers.as_ref().filter(|registers| registers.policy.merges()).map(|registers| Merged {
            names: columns.iter().map(|column| column.name.clone()).collect(),
            indexes: registers
                .uses()
                .map(|uses| uses.iter().filter_map(&place).map(|place| place as u16).collect())
                .collect(),
        });
        let lacks = registers.as_ref().is_some_and(|registers| registers.kept.is_some()) && promotion::lacks();
        let entry = Entry::Relation(Descriptor {
            id: relation.rd_id.to_u32(),
            schema,
            name: name.clone(),
            columns,
            key: key.clone(),
            resolution: policy.map_or(Resolution::LastUpdateWins, |policy| policy.resolution.clone()),
            delta_columns,
        });
        let mut descriptor = Vec::new();
        append_entry(&entry, &mut descriptor);
        Ok(Self {
            oid: relation.rd_id.to_u32(),
            digest: descriptors::known(&descriptor),
            descriptor,
            insert_beginning: RowWriter::put_beginning(relation.rd_id.to_u32(), PutKind::Insert, plans.len()),
            attributes,
            slots,
            is_copied: plans.iter().all(|plan| plan.encoder.copies()),
            columns: plans,
            key,
            settings,
            registers,
            merged,
            described_in: Cell::new(0),
            root: root.to_u32(),
            name,
            lacks,
            type_hashes,
            stale: Cell::new(false),
        })
    }
}

impl Table {
    /// What a table with a policy keeps beside its registers.
    #[inline]
    pub(super) fn kept(&self) -> Option<(&Local, &Kept)> {
        let registers = self.registers.as_ref()?;
        Some((registers, registers.kept.as_ref()?))
    }

    /// Whether what happened to a row can be captured before the statement is over. Under a deferrable constraint it
    /// cannot: capturing one row may write another again ([`super::passing`]), which the statement may still have to write.
    #[inline]
    pub(super) fn is_captured_directly(&self) -> bool {
        self.registers.as_ref().is_none_or(|registers| !registers.has_deferrable())
    }

    /// Makes sure that it may be written to here and now.
    ///
    /// # Errors
    /// 55000 if the database lacks something that writes to this table go by, and `duplex.write_before_caught_up` is off.
    #[inline]
    pub(super) fn check_writable(&self) -> Result<()> {
        if self.lacks { self.check_promotion() } else { Ok(()) }
    }

    #[cold]
    fn check_promotion(&self) -> Result<()> {
        if gucs::writes_before_caught_up() {
            return Ok(());
        }
        if promotion::lacks() {
            return Err(promotion::refusal(&self.name));
        }
        // It has caught up since this was loaded.
        self.stale.set(true);
        Ok(())
    }
}

/// `duplex.describe(relation)`: the table's descriptor, if there is such a table and it has a key.
///
/// Who asks is about to put it on record. Sessions are told, so that they look the table up anew and find it there; and so is
/// this one where that is rolled back, and it must not refer to what is not on record after all.
#[pg_extern(sql = "")]
fn describe(relation: pg_sys::Oid) -> Option<Vec<u8>> {
    let lock = pg_sys::AccessShareLock.cast_signed();
    // SAFETY: what is opened is closed, and an ERROR in between leaves that to the abort.
    unsafe {
        let opened = pg_sys::try_table_open(relation, lock);
        let table = opened.as_ref()?;
        let descriptor = (!key_attributes(table).is_empty()).then(|| {
            pg_sys::CacheInvalidateRelcache(opened);
            Table::load(table).or_raise().descriptor
        });
        pg_sys::table_close(opened, lock);
        descriptor
    }
}

/// An attribute of a tuple descriptor.
///
/// # Safety
/// `descriptor` is one, and has more than `number` attributes.
#[inline]
unsafe fn attribute(descriptor: pg_sys::TupleDesc, number: usize) -> *const pg_sys::FormData_pg_attribute {
    // SAFETY: as the caller promises; since 18 the attributes lie behind the compact ones.
    #[cfg(feature = "pg18")]
    return unsafe {
        let compact = (*descriptor).compact_attrs.as_ptr();
        compact.add((*descriptor).natts as usize).cast::<pg_sys::FormData_pg_attribute>().add(number)
    };
    #[cfg(not(feature = "pg18"))]
    // SAFETY: as the caller promises; the attributes lie behind each other.
    return unsafe { (*descriptor).attrs.as_ptr().add(number) };
}

/// The attribute numbers of the index that identifies rows: the replica identity's if one was chosen, else the primary
/// key's. Empty if there is none.
fn key_attributes(relation: &pg_sys::RelationData) -> Vec<i16> {
    const INDEXRELID: c_int = pg_sys::SysCacheIdentifier::INDEXRELID as c_int;
    let relation: pg_sys::Relation = std::ptr::from_ref(relation).cast_mut();
    let (mut primary, mut identity) = (Vec::new(), Vec::new());
    // SAFETY: the relation is open; the list is ours to free; an index's row in the syscache is pinned while it is read,
    // and its int2vector holds `indnatts` numbers.
    unsafe {
        let indexes = pg_sys::RelationGetIndexList(relation);
        for oid in oids(indexes) {
            let tuple = pg_sys::SearchSysCache1(INDEXRELID, oid.into());
            if tuple.is_null() {
                continue;
            }
            let index = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_index>();
            let attributes =
                || std::slice::from_raw_parts(index.indkey.values.as_ptr(), index.indnkeyatts as usize).to_vec();
            if index.indisvalid && index.indisprimary {
                primary = attributes();
            }
            if index.indisvalid && index.indisreplident {
                identity = attributes();
            }
            pg_sys::ReleaseSysCache(tuple);
        }
        pg_sys::list_free(indexes);
    }
    if identity.is_empty() { primary } else { identity }
}

unsafe extern "C-unwind" {
    // Not among the bindings.
    fn get_partition_ancestors(relid: pg_sys::Oid) -> *mut pg_sys::List;
}

/// The partitioned table that a partition is of in the end; any other table itself.
pub(super) fn root_of(relation: &pg_sys::RelationData) -> pg_sys::Oid {
    // SAFETY: the relation is open. The guard turns an ERROR into a panic, and nothing in it has a destructor.
    unsafe {
        if !(*relation.rd_rel).relispartition {
            return relation.rd_id;
        }
        let oid = relation.rd_id;
        let ancestors = pg_sys::ffi::pg_guard_ffi_boundary(|| get_partition_ancestors(oid));
        oids(ancestors).last().unwrap_or(oid)
    }
}

/// The members of a list of oids.
///
/// # Safety
/// `list` is one, or null, and stays while the result is used.
pub(super) unsafe fn oids(list: *const pg_sys::List) -> impl Iterator<Item = pg_sys::Oid> {
    // SAFETY: as the caller promises; an empty list is null.
    unsafe {
        let count = if list.is_null() { 0 } else { (*list).length as usize };
        (0..count).map(move |number| (*(*list).elements.add(number)).oid_value)
    }
}

/// The qualified name and the registers of a table: both are its root's.
fn of_root(relation: &pg_sys::RelationData, root: pg_sys::Oid) -> Result<((String, String), Option<Local>)> {
    // SAFETY: the relation is open; its root is opened under the lock that a query on any partition holds or may take,
    // and the lock is kept to the end of the transaction, as queries keep theirs.
    unsafe {
        let of = |root: pg_sys::Relation| {
            let class = &*(*root).rd_rel;
            let name = (schema_name(class.relnamespace)?, to_utf8(class.relname.data.as_ptr()));
            Ok((name, Local::load(std::ptr::from_ref(relation).cast_mut(), root)?))
        };
        if root == relation.rd_id {
            return of(std::ptr::from_ref(relation).cast_mut());
        }
        let opened = pg_sys::relation_open(root, pg_sys::AccessShareLock as c_int);
        let result = of(opened);
        pg_sys::relation_close(opened, pg_sys::NoLock as c_int);
        result
    }
}

fn no_key(class: &pg_sys::FormData_pg_class) -> Failure {
    // SAFETY: the name is a NUL-terminated array within the row.
    let name = unsafe { to_utf8(class.relname.data.as_ptr()) };
    Failure::new(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("table \"{name}\" is replicated but has no primary key"),
    )
    .hint("Add a primary key, choose a unique index with ALTER TABLE ... REPLICA IDENTITY USING INDEX, or call duplex.disable for it.")
}
