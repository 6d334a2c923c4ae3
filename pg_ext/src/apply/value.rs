//! Bytes of the stream into values of a column.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;

use duplex_protocol::entry::{Column, Format};
use duplex_protocol::value::RawType;
use pgrx::{PgSqlErrorCode, pg_sys};

use crate::errors::{Failure, Result};

/// How the values of one column of the stream become values of the column of that name here.
#[derive(Debug)]
pub(crate) struct Conversion {
    how: How,
    domain: Option<Domain>,
}

#[derive(Debug)]
enum How {
    /// Same type, fixed length, passed by value.
    ByValue(RawType),
    /// Same type, fixed length, passed by reference.
    ByReference(RawType),
    /// Same type, of variable length.
    Varlena(RawType),
    /// A raw image of another type or with another modifier: through its text.
    RawAsText(RawType, Input),
    /// Text already.
    Text(Input),
}

/// The input function of the column's type.
#[derive(Debug)]
struct Input {
    // Cell: the function keeps what it looked up in here.
    function: Cell<*mut pg_sys::FmgrInfo>,
    parameter: pg_sys::Oid,
    modifier: i32,
}

/// A domain whose constraints a raw image or a NULL must pass; input functions check their own.
#[derive(Debug)]
struct Domain {
    oid: pg_sys::Oid,
    cache: Cell<*mut c_void>,
    context: pg_sys::MemoryContext,
}

/// Memory that holds the images of one row until the row is written. Pointers into it stay valid because it is
/// reserved before the first value.
#[derive(Debug, Default)]
pub(crate) struct Arena(Vec<u64>);

const ARENA_KEPT: usize = 1 << 17;

impl Arena {
    /// Makes room for the images of a row whose values have these lengths, and forgets the row before.
    pub(crate) fn reserve<'a>(&mut self, values: impl Iterator<Item = &'a [u8]>) {
        self.0.clear();
        if self.0.capacity() > ARENA_KEPT {
            self.0 = Vec::new();
        }
        self.0.reserve(values.map(|bytes| Self::words(bytes.len())).sum());
    }

    fn words(len: usize) -> usize {
        (len + size_of::<u32>()).div_ceil(size_of::<u64>())
    }

    /// Copies an image, behind a varlena header if `header`. Aligned to eight bytes.
    fn push(&mut self, bytes: &[u8], header: bool) -> pg_sys::Datum {
        let words = Self::words(bytes.len());
        let start = self.0.len();
        debug_assert!(self.0.capacity() - start >= words, "room for the row was reserved");
        self.0.resize(start + words, 0);
        let place = self.0[start..].as_mut_ptr().cast::<u8>();
        let offset = if header { size_of::<u32>() } else { 0 };
        // SAFETY: `words` words hold the header and the bytes. A four-byte header of an uncompressed value is its whole
        // length shifted by two on the little-endian machines that this builds for.
        unsafe {
            if header {
                place.cast::<u32>().write(((bytes.len() + offset) as u32) << 2);
            }
            ptr::copy_nonoverlapping(bytes.as_ptr(), place.add(offset), bytes.len());
        }
        pg_sys::Datum::from(place)
    }
}

impl Conversion {
    /// Decides how values of `source` become values of a column of type `type_oid` here. What functions remember
    /// lives in `context`.
    ///
    /// # Safety
    /// Inside a transaction; `context` outlives the conversion.
    pub(crate) unsafe fn new(
        source: &Column,
        type_oid: pg_sys::Oid,
        modifier: i32,
        context: pg_sys::MemoryContext,
    ) -> Result<Self> {
        let mut base_modifier = modifier;
        // SAFETY: inside a transaction, the oid is that of a column's type.
        let base = unsafe { pg_sys::getBaseTypeAndTypmod(type_oid, &mut base_modifier) };
        let domain = (base != type_oid).then(|| Domain { oid: type_oid, cache: Cell::new(ptr::null_mut()), context });
        // SAFETY: as the caller promises.
        let input = || unsafe { Input::new(type_oid, modifier, context) };
        let how = match source.format {
            Format::Text => How::Text(input()),
            Format::Raw => {
                let raw =
                    source.type_schema.is_none().then(|| RawType::from_name(&source.type_name)).flatten().ok_or_else(
                        || corrupted(format!("column \"{}\" has a raw type that is not known here", source.name)),
                    )?;
                let same = type_of(raw) == base && (base_modifier == -1 || base_modifier == source.type_modifier);
                match raw.fixed_len() {
                    _ if !same => How::RawAsText(raw, input()),
                    None => How::Varlena(raw),
                    Some(1 | 2 | 4 | 8) => How::ByValue(raw),
                    Some(_) => How::ByReference(raw),
                }
            }
        };
        Ok(Self { how, domain })
    }

    /// The value that `bytes` stand for.
    ///
    /// # Safety
    /// Inside a transaction, in a memory context that lives as long as the row; room was reserved in `arena`.
    #[inline]
    pub(crate) unsafe fn value(&self, bytes: &[u8], arena: &mut Arena) -> Result<pg_sys::Datum> {
        // SAFETY: as the caller promises, for all calls below.
        let datum = unsafe {
            match &self.how {
                How::ByValue(raw) => {
                    raw.check(bytes)?;
                    by_value(*raw, bytes)
                }
                How::ByReference(raw) => {
                    raw.check(bytes)?;
                    arena.push(bytes, false)
                }
                How::Varlena(raw) => {
                    raw.check(bytes)?;
                    arena.push(bytes, true)
                }
                // Input functions check a domain themselves.
                How::RawAsText(raw, input) => return input.call(raw.to_text(bytes)?.as_bytes()),
                How::Text(input) => return input.call(bytes),
            }
        };
        if let Some(domain) = &self.domain {
            // SAFETY: the datum is an image of the domain's base type.
            unsafe { domain.check(datum, false) };
        }
        Ok(datum)
    }

    /// Makes sure that the column's type takes NULL.
    ///
    /// # Safety
    /// Inside a transaction.
    #[inline]
    pub(crate) unsafe fn null(&self) {
        if let Some(domain) = &self.domain {
            // SAFETY: as the caller promises.
            unsafe { domain.check(pg_sys::Datum::from(0), true) };
        }
    }
}

/// The value of a type that is passed by value; its length has been checked. Sign-extended as the server does it.
fn by_value(raw: RawType, bytes: &[u8]) -> pg_sys::Datum {
    match *bytes {
        [a] if raw == RawType::Bool => pg_sys::Datum::from(a != 0),
        [a] => pg_sys::Datum::from(a.cast_signed()),
        [a, b] => pg_sys::Datum::from(i16::from_le_bytes([a, b])),
        [a, b, c, d] if raw == RawType::Oid => pg_sys::Datum::from(u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d] => pg_sys::Datum::from(i32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => pg_sys::Datum::from(i64::from_le_bytes([a, b, c, d, e, f, g, h])),
        _ => unreachable!("the length of {} was checked", raw.name()),
    }
}

impl Input {
    unsafe fn new(type_oid: pg_sys::Oid, modifier: i32, context: pg_sys::MemoryContext) -> Self {
        let (mut function, mut parameter) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
        // SAFETY: outputs are valid for writing; the memory for the function's descriptor is zeroed and in `context`.
        unsafe {
            pg_sys::getTypeInputInfo(type_oid, &mut function, &mut parameter);
            let info = pg_sys::MemoryContextAllocZero(context, size_of::<pg_sys::FmgrInfo>()).cast();
            pg_sys::fmgr_info_cxt(function, info, context);
            Self { function: Cell::new(info), parameter, modifier }
        }
    }

    unsafe fn call(&self, text: &[u8]) -> Result<pg_sys::Datum> {
        if std::str::from_utf8(text).is_err() || text.contains(&0) {
            return Err(corrupted("a value in text form is not text in UTF-8".to_owned()));
        }
        // SAFETY: the copy is NUL-terminated; the function's descriptor lives as long as this.
        unsafe {
            let copy = pg_sys::palloc(text.len() + 1).cast::<u8>();
            ptr::copy_nonoverlapping(text.as_ptr(), copy, text.len());
            copy.add(text.len()).write(0);
            Ok(pg_sys::InputFunctionCall(self.function.get(), copy.cast(), self.parameter, self.modifier))
        }
    }
}

impl Domain {
    unsafe fn check(&self, value: pg_sys::Datum, isnull: bool) {
        // SAFETY: the value is of the domain's base type; the cache is the server's own and lives in `context`.
        unsafe { pg_sys::domain_check(value, isnull, self.oid, self.cache.as_ptr(), self.context) }
    }
}

fn corrupted(message: String) -> Failure {
    Failure::new(PgSqlErrorCode::ERRCODE_DATA_CORRUPTED, message)
}

/// The type that a raw image is of.
fn type_of(raw: RawType) -> pg_sys::Oid {
    match raw {
        RawType::Bool => pg_sys::BOOLOID,
        RawType::Int2 => pg_sys::INT2OID,
        RawType::Int4 => pg_sys::INT4OID,
        RawType::Int8 => pg_sys::INT8OID,
        RawType::Float4 => pg_sys::FLOAT4OID,
        RawType::Float8 => pg_sys::FLOAT8OID,
        RawType::Oid => pg_sys::OIDOID,
        RawType::Char => pg_sys::CHAROID,
        RawType::Text => pg_sys::TEXTOID,
        RawType::Varchar => pg_sys::VARCHAROID,
        RawType::Bpchar => pg_sys::BPCHAROID,
        RawType::Bytea => pg_sys::BYTEAOID,
        RawType::Date => pg_sys::DATEOID,
        RawType::Time => pg_sys::TIMEOID,
        RawType::Timetz => pg_sys::TIMETZOID,
        RawType::Timestamp => pg_sys::TIMESTAMPOID,
        RawType::Timestamptz => pg_sys::TIMESTAMPTZOID,
        RawType::Interval => pg_sys::INTERVALOID,
        RawType::Uuid => pg_sys::UUIDOID,
        RawType::Numeric => pg_sys::NUMERICOID,
        RawType::Jsonb => pg_sys::JSONBOID,
        RawType::Money => pg_sys::MONEYOID,
        RawType::Macaddr => pg_sys::MACADDROID,
    }
}
