//! bincode's settings in one place, and what can be wrong with bytes that come from outside.
//!
//! Everything is bincode 2's standard configuration: little-endian, variable-length integers. A limit bounds what
//! a length found in the bytes may make us allocate, because a topic can hold anything.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};

/// The most that decoding one header, descriptor or row may allocate, in bytes. Values are borrowed from the input
/// and do not count; 1,600 columns (PostgreSQL's limit) with names of 63 bytes stay far below it.
pub const ALLOCATION_LIMIT: usize = 1 << 20;

/// The settings that all encoding and decoding uses.
pub const CONFIG: Configuration<LittleEndian, Varint, Limit<ALLOCATION_LIMIT>> =
    bincode::config::standard().with_limit::<ALLOCATION_LIMIT>();

/// The same without a limit, for encoding: what a node writes about itself needs no bound.
pub(crate) const ENCODE: Configuration<LittleEndian, Varint> = bincode::config::standard();

/// Why bytes are not a record of this format.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The first byte names a format that this version does not know.
    #[error("format {found} is not known to this version, which reads format {expected}")]
    Format {
        /// The format byte found.
        found: u8,
        /// The format that this version reads.
        expected: u8,
    },
    /// bincode could not read a structure.
    #[error("malformed {what}: {source}")]
    Malformed {
        /// The structure that was being read.
        what: &'static str,
        /// bincode's own words.
        source: bincode::error::DecodeError,
    },
    /// The bytes ended inside a structure, or went on after its end.
    #[error("{0}")]
    Length(&'static str),
    /// A structure was read, and contradicts itself.
    #[error("{0}")]
    Inconsistent(&'static str),
    /// The compressed body could not be expanded.
    #[error("compressed body cannot be expanded: {0}")]
    Compression(#[from] lz4_flex::block::DecompressError),
    /// A value is not an image of the type that its column has.
    #[error("value is not a valid {type_name}: {reason}")]
    Value {
        /// The PostgreSQL type expected.
        type_name: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
}

impl DecodeError {
    pub(crate) fn malformed(what: &'static str) -> impl FnOnce(bincode::error::DecodeError) -> Self {
        move |source| Self::Malformed { what, source }
    }
}
