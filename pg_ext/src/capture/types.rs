//! How the values of each type travel.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};

use duplex_protocol::entry::Format;
use pgrx::{PgSqlErrorCode, pg_sys};

use super::settings::Settings;
use crate::backend_local::BackendLocal;
use crate::errors::{Failure, Result};

/// How a column's values become bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoder {
    /// The first bytes of the datum itself.
    ByValue(usize),
    /// So many bytes behind the pointer.
    Fixed(usize),
    /// The payload of a varlena.
    Varlena,
    /// The same for text in a database whose encoding is not UTF-8.
    Transcoded,
    /// The type's output function.
    Output(*mut pg_sys::FmgrInfo),
}

impl Encoder {
    /// Whether a value's bytes travel as they are.
    pub(super) fn copies(self) -> bool {
        matches!(self, Self::ByValue(_) | Self::Fixed(_) | Self::Varlena)
    }
}

/// What there is to know of a column's type.
#[derive(Debug)]
pub(super) struct TypePlan {
    /// `None` for `pg_catalog`.
    pub(super) schema: Option<String>,
    pub(super) name: String,
    pub(super) modifier: i32,
    pub(super) format: Format,
    pub(super) encoder: Encoder,
    pub(super) settings: Settings,
    /// Hash of the type's row in the syscache, for invalidation; of types that cannot change, nothing.
    pub(super) hashes: Vec<u32>,
}

/// What is read from `pg_type`.
struct TypeRow {
    name: pg_sys::NameData,
    schema: pg_sys::Oid,
    kind: u8,
    element: pg_sys::Oid,
    /// A true array, as `point` and `name` are not, which have elements too.
    is_array: bool,
    base: pg_sys::Oid,
    modifier: i32,
    output: pg_sys::Oid,
}

const DOMAIN: u8 = pg_sys::TYPTYPE_DOMAIN;
const ENUM: u8 = pg_sys::TYPTYPE_ENUM;
const RANGE: u8 = pg_sys::TYPTYPE_RANGE;
const MULTIRANGE: u8 = pg_sys::TYPTYPE_MULTIRANGE;
const COMPOSITE: u8 = pg_sys::TYPTYPE_COMPOSITE;

impl TypePlan {
    /// Looks a column's type up. Reads the catalog.
    pub(super) fn load(oid: pg_sys::Oid, modifier: i32) -> Result<Self> {
        let mut hashes = Vec::new();
        let (mut oid, mut modifier) = (oid, modifier);
        let mut row = TypeRow::load(oid, &mut hashes)?;
        while row.kind == DOMAIN {
            modifier = if modifier == -1 { row.modifier } else { modifier };
            oid = row.base;
            row = TypeRow::load(oid, &mut hashes)?;
        }
        let raw = raw_encoder(oid);
        let (format, encoder, settings) = match raw {
            Some(encoder) => (Format::Raw, encoder, Settings::NONE),
            None => (Format::Text, Encoder::Output(output_function(oid, row.output)), text_settings(oid, &row)?),
        };
        // SAFETY: the name is a NUL-terminated array within a row that was copied.
        let name = unsafe { to_utf8(row.name.data.as_ptr()) };
        let schema = if row.schema == pg_sys::Oid::from(pg_sys::PG_CATALOG_NAMESPACE) {
            None
        } else {
            Some(schema_name(row.schema)?)
        };
        Ok(Self { schema, name, modifier, format, encoder, settings, hashes })
    }
}

impl TypeRow {
    fn load(oid: pg_sys::Oid, hashes: &mut Vec<u32>) -> Result<Self> {
        const TYPEOID: i32 = pg_sys::SysCacheIdentifier::TYPEOID as i32;
        // SAFETY: an entry of the syscache holds a row of pg_type, pinned until it is released; what is needed is
        // copied before that.
        unsafe {
            if oid.to_u32() >= pg_sys::FirstNormalObjectId {
                let none = pg_sys::Datum::from(0);
                hashes.push(pg_sys::GetSysCacheHashValue(TYPEOID, oid.into(), none, none, none));
            }
            let tuple = pg_sys::SearchSysCache1(TYPEOID, oid.into());
            if tuple.is_null() {
                let message = format!("cache lookup failed for type {}", oid.to_u32());
                return Err(Failure::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, message));
            }
            let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_type>();
            let row = Self {
                name: form.typname,
                schema: form.typnamespace,
                kind: form.typtype as u8,
                element: form.typelem,
                is_array: form.typsubscript.to_u32() == pg_sys::F_ARRAY_SUBSCRIPT_HANDLER,
                base: form.typbasetype,
                modifier: form.typtypmod,
                output: form.typoutput,
            };
            pg_sys::ReleaseSysCache(tuple);
            Ok(row)
        }
    }
}

/// The types that travel as their own image: exactly those that `duplex_protocol::value` can check and print.
fn raw_encoder(oid: pg_sys::Oid) -> Option<Encoder> {
    let is_utf8 = database_is_utf8();
    Some(match oid {
        pg_sys::BOOLOID | pg_sys::CHAROID => Encoder::ByValue(1),
        pg_sys::INT2OID => Encoder::ByValue(2),
        pg_sys::INT4OID | pg_sys::FLOAT4OID | pg_sys::OIDOID | pg_sys::DATEOID => Encoder::ByValue(4),
        pg_sys::INT8OID
        | pg_sys::FLOAT8OID
        | pg_sys::TIMEOID
        | pg_sys::TIMESTAMPOID
        | pg_sys::TIMESTAMPTZOID
        | pg_sys::MONEYOID => Encoder::ByValue(8),
        pg_sys::UUIDOID | pg_sys::INTERVALOID => Encoder::Fixed(16),
        pg_sys::TIMETZOID => Encoder::Fixed(12),
        pg_sys::MACADDROID => Encoder::Fixed(6),
        pg_sys::BYTEAOID | pg_sys::NUMERICOID => Encoder::Varlena,
        pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID if is_utf8 => Encoder::Varlena,
        pg_sys::TEXTOID | pg_sys::VARCHAROID | pg_sys::BPCHAROID => Encoder::Transcoded,
        // Strings inside a jsonb are in the database's encoding, and cannot be converted in place.
        pg_sys::JSONBOID if is_utf8 => Encoder::Varlena,
        _ => return None,
    })
}

/// Which settings the output of a type depends on.
fn text_settings(oid: pg_sys::Oid, row: &TypeRow) -> Result<Settings> {
    if row.is_array {
        return inner_settings(row.element);
    }
    match row.kind {
        ENUM => return Ok(Settings::NONE),
        RANGE => {
            // SAFETY: a catalog lookup by the oid of a range type.
            let subtype = unsafe { pg_sys::get_range_subtype(oid) };
            return inner_settings(subtype);
        }
        MULTIRANGE => {
            // SAFETY: a catalog lookup by the oid of a multirange type.
            let range = unsafe { pg_sys::get_multirange_range(oid) };
            return inner_settings(range);
        }
        // Its fields may be anything, and may be altered without a word to those who use the type.
        COMPOSITE => return Ok(Settings::ALL),
        _ => {}
    }
    Ok(match oid {
        pg_sys::DATEOID | pg_sys::TIMESTAMPOID | pg_sys::TIMESTAMPTZOID => Settings::DATE_STYLE,
        pg_sys::INTERVALOID => Settings::INTERVAL_STYLE,
        pg_sys::FLOAT4OID
        | pg_sys::FLOAT8OID
        | pg_sys::POINTOID
        | pg_sys::LSEGOID
        | pg_sys::PATHOID
        | pg_sys::BOXOID
        | pg_sys::POLYGONOID
        | pg_sys::LINEOID
        | pg_sys::CIRCLEOID => Settings::FLOAT_DIGITS,
        pg_sys::BYTEAOID => Settings::BYTEA_OUTPUT,
        pg_sys::MONEYOID => Settings::MONETARY,
        pg_sys::BOOLOID
        | pg_sys::CHAROID
        | pg_sys::NAMEOID
        | pg_sys::INT2OID
        | pg_sys::INT4OID
        | pg_sys::INT8OID
        | pg_sys::INT2VECTOROID
        | pg_sys::OIDOID
        | pg_sys::OIDVECTOROID
        | pg_sys::XIDOID
        | pg_sys::XID8OID
        | pg_sys::CIDOID
        | pg_sys::TIDOID
        | pg_sys::TEXTOID
        | pg_sys::VARCHAROID
        | pg_sys::BPCHAROID
        | pg_sys::NUMERICOID
        | pg_sys::UUIDOID
        | pg_sys::TIMEOID
        | pg_sys::TIMETZOID
        | pg_sys::JSONOID
        | pg_sys::JSONBOID
        | pg_sys::JSONPATHOID
        | pg_sys::XMLOID
        | pg_sys::INETOID
        | pg_sys::CIDROID
        | pg_sys::MACADDROID
        | pg_sys::MACADDR8OID
        | pg_sys::BITOID
        | pg_sys::VARBITOID
        | pg_sys::TSVECTOROID
        | pg_sys::TSQUERYOID
        | pg_sys::PG_LSNOID
        | pg_sys::PG_SNAPSHOTOID => Settings::NONE,
        _ => Settings::ALL,
    })
}

fn inner_settings(oid: pg_sys::Oid) -> Result<Settings> {
    let row = TypeRow::load(oid, &mut Vec::new())?;
    if row.kind == DOMAIN { inner_settings(row.base) } else { text_settings(oid, &row) }
}

static OUTPUTS: BackendLocal<RefCell<BTreeMap<(u32, u32), *mut pg_sys::FmgrInfo>>> =
    BackendLocal::new(RefCell::new(BTreeMap::new()));

/// A type's output function, ready to be called, for as long as the backend lives.
///
/// One for each type, not for each plan of a column: what a function remembers in it is never freed.
fn output_function(of_type: pg_sys::Oid, function: pg_sys::Oid) -> *mut pg_sys::FmgrInfo {
    let key = (of_type.to_u32(), function.to_u32());
    if let Some(known) = OUTPUTS.with_borrow(|outputs| outputs.get(&key).copied()) {
        return known;
    }
    // SAFETY: the struct is allocated zeroed in a context that lives as long as the backend, and so is what the
    // function remembers in it.
    let info = unsafe {
        let context = pg_sys::TopMemoryContext;
        let info = pg_sys::MemoryContextAllocZero(context, size_of::<pg_sys::FmgrInfo>()).cast();
        pg_sys::fmgr_info_cxt(function, info, context);
        info
    };
    OUTPUTS.with_borrow_mut(|outputs| outputs.insert(key, info));
    info
}

/// The name of a schema, in UTF-8.
pub(super) fn schema_name(oid: pg_sys::Oid) -> Result<String> {
    // SAFETY: the result is null or a palloc'd string that ends in NUL.
    unsafe {
        let name = pg_sys::get_namespace_name(oid);
        if name.is_null() {
            let message = format!("cache lookup failed for schema {}", oid.to_u32());
            return Err(Failure::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, message));
        }
        Ok(to_utf8(name))
    }
}

/// A name in UTF-8, whatever the database's encoding is.
///
/// # Safety
/// `name` points to a string that ends in NUL.
pub(super) unsafe fn to_utf8(name: *const c_char) -> String {
    // SAFETY: as the caller promises; the conversion gives the string itself or a palloc'd one that ends in NUL.
    unsafe {
        let len = CStr::from_ptr(name).to_bytes().len();
        let converted = pg_sys::pg_server_to_any(name, len as i32, pg_sys::pg_enc::PG_UTF8 as i32);
        CStr::from_ptr(converted).to_string_lossy().into_owned()
    }
}

pub(super) fn database_is_utf8() -> bool {
    // SAFETY: a plain read of the backend's state.
    unsafe { pg_sys::GetDatabaseEncoding() == pg_sys::pg_enc::PG_UTF8 as i32 }
}
