//! The raw images of PostgreSQL's built-in types.
//!
//! A value of [`crate::entry::Format::Raw`] is the very bytes that PostgreSQL keeps in memory, little-endian, without
//! the varlena header. That saves both sides the text conversion, and it means that bytes from a topic end up in
//! PostgreSQL's C code, which trusts them. So the receiver calls [`check`] on every value first. What it accepts can
//! be handed to any function of the type without a crash or a read out of bounds, and is in the form in which
//! PostgreSQL itself would have written it.
//!
//! What is *not* checked is the column's type modifier (`varchar(10)`, `numeric(8,2)`): that is the receiver's table,
//! of which this crate knows nothing.
//!
//! | type | image |
//! |---|---|
//! | `bool` | one byte, 0 or 1 |
//! | `int2` `int4` `int8` `oid` `money` | the integer |
//! | `float4` `float8` | IEEE 754 |
//! | `char` (the one-byte type `"char"`) | the byte |
//! | `text` `varchar` `bpchar` | UTF-8 without NUL; databases of another encoding send these as text |
//! | `bytea` | the bytes |
//! | `date` | days since 2000-01-01, `i32`; least and greatest are ∓infinity |
//! | `timestamp` `timestamptz` | microseconds since 2000-01-01, `i64`; least and greatest are ∓infinity |
//! | `time` | microseconds since midnight, `i64` |
//! | `timetz` | the same, then seconds west of UTC, `i32`: 12 bytes |
//! | `interval` | microseconds `i64`, days `i32`, months `i32` |
//! | `uuid` | 16 bytes |
//! | `macaddr` | 6 bytes |
//! | `numeric` | [`numeric`] |
//! | `jsonb` | [`jsonb`] |

pub mod jsonb;
pub mod numeric;
pub mod time;

use std::fmt::Write as _;

use crate::codec::DecodeError;

/// A type whose values travel as raw images. Look it up once a column rather than once a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are PostgreSQL's own")]
pub enum RawType {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Oid,
    Char,
    Text,
    Varchar,
    Bpchar,
    Bytea,
    Date,
    Time,
    Timetz,
    Timestamp,
    Timestamptz,
    Interval,
    Uuid,
    Numeric,
    Jsonb,
    Money,
    Macaddr,
}

use RawType::{
    Bool, Bpchar, Bytea, Char, Date, Float4, Float8, Int2, Int4, Int8, Interval, Jsonb, Macaddr, Money, Numeric, Oid,
    Text, Time, Timestamp, Timestamptz, Timetz, Uuid, Varchar,
};

impl RawType {
    /// Every type that may travel raw.
    pub const ALL: [Self; 23] = [
        Bool,
        Int2,
        Int4,
        Int8,
        Float4,
        Float8,
        Oid,
        Char,
        Text,
        Varchar,
        Bpchar,
        Bytea,
        Date,
        Time,
        Timetz,
        Timestamp,
        Timestamptz,
        Interval,
        Uuid,
        Numeric,
        Jsonb,
        Money,
        Macaddr,
    ];

    /// The type of that name in `pg_catalog`, if its values may travel raw.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "bool" => Bool,
            "int2" => Int2,
            "int4" => Int4,
            "int8" => Int8,
            "float4" => Float4,
            "float8" => Float8,
            "oid" => Oid,
            // `pg_type` says char; format_type() quotes it, to tell it from char(n).
            "char" | "\"char\"" => Char,
            "text" => Text,
            "varchar" => Varchar,
            "bpchar" => Bpchar,
            "bytea" => Bytea,
            "date" => Date,
            "time" => Time,
            "timetz" => Timetz,
            "timestamp" => Timestamp,
            "timestamptz" => Timestamptz,
            "interval" => Interval,
            "uuid" => Uuid,
            "numeric" => Numeric,
            "jsonb" => Jsonb,
            "money" => Money,
            "macaddr" => Macaddr,
            _ => return None,
        })
    }

    /// The type's name in `pg_catalog`.
    pub fn name(self) -> &'static str {
        match self {
            Bool => "bool",
            Int2 => "int2",
            Int4 => "int4",
            Int8 => "int8",
            Float4 => "float4",
            Float8 => "float8",
            Oid => "oid",
            Char => "char",
            Text => "text",
            Varchar => "varchar",
            Bpchar => "bpchar",
            Bytea => "bytea",
            Date => "date",
            Time => "time",
            Timetz => "timetz",
            Timestamp => "timestamp",
            Timestamptz => "timestamptz",
            Interval => "interval",
            Uuid => "uuid",
            Numeric => "numeric",
            Jsonb => "jsonb",
            Money => "money",
            Macaddr => "macaddr",
        }
    }

    /// The length that every image of this type has; `None` for those of variable length (varlena).
    pub fn fixed_len(self) -> Option<usize> {
        match self {
            Bool | Char => Some(1),
            Int2 => Some(2),
            Int4 | Float4 | Oid | Date => Some(4),
            Int8 | Float8 | Money | Time | Timestamp | Timestamptz => Some(8),
            Timetz => Some(12),
            Interval | Uuid => Some(16),
            Macaddr => Some(6),
            Text | Varchar | Bpchar | Bytea | Numeric | Jsonb => None,
        }
    }

    /// Makes sure that `bytes` are an image that PostgreSQL could have written. See [`check`].
    ///
    /// # Errors
    /// [`DecodeError::Value`] if they are not.
    #[inline]
    pub fn check(self, bytes: &[u8]) -> Result<(), DecodeError> {
        if self.fixed_len().is_some_and(|len| len != bytes.len()) {
            return Err(self.invalid("wrong length"));
        }
        let valid = match self {
            Int2 | Int4 | Int8 | Float4 | Float8 | Oid | Char | Money | Uuid | Macaddr | Interval | Bytea => Ok(()),
            Text | Varchar | Bpchar => check_text(bytes).map(drop),
            Bool if bytes[0] > 1 => Err("neither true nor false"),
            Bool => Ok(()),
            Date => time::check_date(int4(bytes)),
            Time => time::check_time(int8(bytes)),
            Timetz => time::check_time(int8(bytes)).and_then(|()| time::check_zone(int4(&bytes[8..]))),
            Timestamp | Timestamptz => time::check_timestamp(int8(bytes)),
            Numeric => numeric::Parts::read(bytes).map(drop),
            Jsonb => jsonb::check(bytes),
        };
        valid.map_err(|reason| self.invalid(reason))
    }

    /// The text of an image. See [`to_text`].
    ///
    /// # Errors
    /// As [`RawType::check`]; also if the text would be out of all proportion to the image.
    pub fn to_text(self, bytes: &[u8]) -> Result<String, DecodeError> {
        self.check(bytes)?;
        Ok(match self {
            Bool => if bytes[0] == 1 { "t" } else { "f" }.to_owned(),
            Int2 => i16::from_le_bytes([bytes[0], bytes[1]]).to_string(),
            Int4 => int4(bytes).to_string(),
            Int8 => int8(bytes).to_string(),
            Oid => int4(bytes).cast_unsigned().to_string(),
            Float4 => float4_text(f32::from_bits(int4(bytes).cast_unsigned())),
            Float8 => float8_text(f64::from_bits(int8(bytes).cast_unsigned())),
            Char => char_text(bytes[0]),
            Text | Varchar | Bpchar => check_text(bytes).map_err(|reason| self.invalid(reason))?.to_owned(),
            Bytea => hex("\\x", bytes),
            Date => time::date_text(int4(bytes)),
            Time => time::time_text(int8(bytes)),
            Timetz => time::timetz_text(int8(bytes), int4(&bytes[8..])),
            Timestamp => time::timestamp_text(int8(bytes), ""),
            Timestamptz => time::timestamp_text(int8(bytes), "+00"),
            Interval => time::interval_text(int8(bytes), int4(&bytes[8..]), int4(&bytes[12..])),
            Uuid => uuid_text(bytes),
            Numeric => numeric::Parts::read(bytes).map_err(|reason| self.invalid(reason))?.to_string(),
            Jsonb => jsonb::to_text(bytes).map_err(|reason| self.invalid(reason))?,
            Money => money_text(int8(bytes)),
            Macaddr => macaddr_text(bytes),
        })
    }

    fn invalid(self, reason: &'static str) -> DecodeError {
        DecodeError::Value { type_name: self.name(), reason }
    }
}

/// Makes sure that `bytes` are an image of the type that PostgreSQL could have written, so that its C code can be
/// given them.
///
/// # Errors
/// [`DecodeError::Value`] if they are not, or if values of this type never travel raw.
pub fn check(type_name: &str, bytes: &[u8]) -> Result<(), DecodeError> {
    raw_type(type_name)?.check(bytes)
}

/// Text that PostgreSQL's input function for the type reads back to the same value.
///
/// It is ISO for dates and times (with `BC` and `infinity`; `timestamptz` in UTC), PostgreSQL's own style for
/// intervals, the shortest text that reads back exactly for floats, hex for `bytea`. Two types depend on the reader:
/// `money` is a plain decimal number with two fraction digits, which is right for most `lc_monetary` and for C; and a
/// `"char"` beyond ASCII is written `\ooo`, which PostgreSQL 16 and later read.
///
/// # Errors
/// [`DecodeError::Value`] if the image is not valid, if values of this type never travel raw, or if the text would be
/// out of all proportion to the image (a forged `jsonb` of many numbers of 100,000 digits).
pub fn to_text(type_name: &str, bytes: &[u8]) -> Result<String, DecodeError> {
    raw_type(type_name)?.to_text(bytes)
}

fn raw_type(type_name: &str) -> Result<RawType, DecodeError> {
    RawType::from_name(type_name)
        .ok_or(DecodeError::Value { type_name: "raw image", reason: "values of this type travel as text" })
}

/// UTF-8 without NUL, which `text` cannot hold.
fn check_text(bytes: &[u8]) -> Result<&str, &'static str> {
    if bytes.contains(&0) {
        return Err("text holds a NUL");
    }
    std::str::from_utf8(bytes).map_err(|_| "text is not UTF-8")
}

// Callers have checked the length.
fn int4(bytes: &[u8]) -> i32 {
    i32::from_le_bytes(*bytes.first_chunk().expect("length is checked"))
}

fn int8(bytes: &[u8]) -> i64 {
    i64::from_le_bytes(*bytes.first_chunk().expect("length is checked"))
}

// Rust's own text of a float is the shortest that reads back, but never has an exponent: 1e308 would be 309 digits.
macro_rules! float_text {
    ($name:ident, $float:ty, $plain_below:expr) => {
        fn $name(value: $float) -> String {
            if value.is_nan() {
                return "NaN".to_owned();
            }
            if value.is_infinite() {
                return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
            }
            let magnitude = value.abs();
            if magnitude == 0.0 || (1e-4..$plain_below).contains(&magnitude) {
                format!("{value}")
            } else {
                // PostgreSQL writes the exponent's sign, and two digits of it at least.
                let text = format!("{value:e}");
                let (mantissa, exponent) = text.split_once('e').expect("the format has an exponent");
                let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
                format!("{mantissa}e{sign}{exponent:0>2}")
            }
        }
    };
}

float_text!(float4_text, f32, 1e6);
float_text!(float8_text, f64, 1e15);

fn char_text(byte: u8) -> String {
    match byte {
        0 => String::new(),
        1..=0x7f => char::from(byte).to_string(),
        _ => format!("\\{byte:03o}"),
    }
}

fn hex(prefix: &str, bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(prefix.len() + 2 * bytes.len());
    text.push_str(prefix);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// A UUID as people write it. `bytes` are 16.
pub(crate) fn uuid_text(bytes: &[u8]) -> String {
    let digits = hex("", bytes);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

fn money_text(cents: i64) -> String {
    let sign = if cents < 0 { "-" } else { "" };
    let cents = cents.unsigned_abs();
    format!("{sign}{}.{:02}", cents / 100, cents % 100)
}

fn macaddr_text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(17);
    for (i, byte) in bytes.iter().enumerate() {
        let separator = if i == 0 { "" } else { ":" };
        write!(text, "{separator}{byte:02x}").expect("writing to a string does not fail");
    }
    text
}
