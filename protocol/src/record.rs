//! One Kafka record: a header, and a piece of a transaction's body.
//!
//! Layout: the format byte, the [`Header`] in bincode, then the body to the end of the record. The body of a
//! transaction is a sequence of framed entries ([`crate::entry`]) cut into pieces of at most [`CHUNK_BYTES`].

use bincode::{Decode, Encode};

use crate::codec::{CONFIG, DecodeError, ENCODE};
use crate::version::Timestamp;

/// The format that this version writes and reads.
pub const FORMAT: u8 = 1;

/// The most body bytes in one record, before compression. Kafka's default limit of a record is 1 MiB.
pub const CHUNK_BYTES: usize = 512 * 1024;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Kind {
    /// A transaction, or one chunk of it.
    Transaction,
    /// A relay has taken the stream over; the body is a [`Hello`]. From here on records of an earlier generation are
    /// void, and so is a transaction that had not come to its last chunk.
    Hello,
    /// Nothing happened: the header's positions and watermarks are the content.
    Heartbeat,
}

/// Where a transaction stands in its node's order of commits.
///
/// The WAL position is read just before the commit, so of two transactions that depend on each other the later has
/// the greater one. The transaction id breaks ties between transactions that do not depend on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Position {
    /// WAL insert position just before the commit.
    pub lsn: u64,
    /// Full transaction id (`xid8`).
    pub xid: u64,
}

/// How far the sender had applied another node's stream.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Seen {
    /// The other node's name.
    pub node: String,
    /// The Kafka offset after the last record applied from it: all records below this one had been applied.
    pub next_offset: u64,
}

/// What stands before the body in every record.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Header {
    /// What this record is.
    pub kind: Kind,
    /// The node that wrote the stream.
    pub node: String,
    /// Which take-over of the stream this record belongs to; rises by one each time a relay opens it.
    pub generation: u64,
    /// The transaction's place in its node's order. Zero for other kinds.
    pub position: Position,
    /// Number of this chunk within the transaction, from 0.
    pub chunk: u32,
    /// Whether this is the transaction's last chunk.
    pub last: bool,
    /// When the transaction committed. For other kinds, when the record was made.
    pub commit_ts: Timestamp,
    /// How far this node had applied the other streams when it drained this transaction (causal order).
    pub seen: Vec<Seen>,
    /// Watermark W: nothing stamped at or before this will follow from this node.
    pub settled: Timestamp,
    /// Watermark S: the least W that this node holds, its own included.
    pub held: Timestamp,
    /// Length of the body once expanded, if it is compressed (one lz4 block).
    pub expanded_len: Option<u32>,
}

/// The body of a [`Kind::Hello`] record: who speaks.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// The node's identity, a random UUID made by `duplex.create_node`. Another one under the same name is another
    /// database, and its stream must not be applied as a continuation.
    pub node_id: [u8; 16],
    /// Version of the extension that wrote it.
    pub extension_version: String,
}

/// A record as it is read: the header decoded, the body borrowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'a> {
    /// What stands before the body.
    pub header: Header,
    /// The body, still compressed if `header.expanded_len` says so.
    pub body: &'a [u8],
}

impl Header {
    /// Encodes a whole record: format byte, this header, and `body` as it is.
    pub fn encode_record(&self, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(128 + body.len());
        self.encode_prefix(&mut out);
        out.extend_from_slice(body);
        out
    }

    /// Appends the format byte and this header to `out`; the body is to follow.
    pub fn encode_prefix(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        crate::encode::append(self, out);
    }
}

impl<'a> Record<'a> {
    /// Reads a record.
    ///
    /// # Errors
    /// [`DecodeError::Format`] for an unknown format byte, [`DecodeError::Malformed`] for a broken header,
    /// [`DecodeError::Length`] for an empty record.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let (&format, rest) = bytes.split_first().ok_or(DecodeError::Length("record is empty"))?;
        if format != FORMAT {
            return Err(DecodeError::Format { found: format, expected: FORMAT });
        }
        let (header, used) =
            bincode::decode_from_slice::<Header, _>(rest, CONFIG).map_err(DecodeError::malformed("record header"))?;
        Ok(Self { header, body: &rest[used..] })
    }
}

impl Hello {
    /// Encodes this as the body of a [`Kind::Hello`] record.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        crate::encode::append(self, &mut out);
        out
    }

    /// Reads the body of a [`Kind::Hello`] record.
    ///
    /// # Errors
    /// [`DecodeError::Malformed`] if the body is something else.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        bincode::decode_from_slice::<Self, _>(body, CONFIG)
            .map(|(hello, _)| hello)
            .map_err(DecodeError::malformed("hello"))
    }
}

/// Compresses a piece of a body into one lz4 block, in `room`, if that makes it smaller by an eighth at least.
///
/// Returns `None` where it does not pay; the piece then travels as it is. `room` grows to [`compression_room`] at most,
/// and is best used again: it is large, and what allocates it each time spends more on that than on compressing.
pub fn compress<'r>(piece: &[u8], room: &'r mut Vec<u8>) -> Option<&'r [u8]> {
    const WORTH_TRYING: usize = 1024;
    if piece.len() < WORTH_TRYING {
        return None;
    }
    let most = compression_room(piece.len());
    if room.len() < most {
        room.resize(most, 0);
    }
    let len = lz4_flex::block::compress_into(piece, room).ok()?;
    (len + piece.len() / 8 <= piece.len()).then(|| &room[..len])
}

/// The room that compressing a piece of this length may take.
pub fn compression_room(len: usize) -> usize {
    lz4_flex::block::get_maximum_output_size(len)
}

/// Expands a body of known length, never beyond [`CHUNK_BYTES`], onto the end of `out`.
///
/// # Errors
/// [`DecodeError::Length`] if the length is beyond the limit or not what comes out, [`DecodeError::Compression`]
/// for a broken block.
pub fn expand_onto(body: &[u8], expanded_len: u32, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let len = expanded_len as usize;
    if len > CHUNK_BYTES {
        return Err(DecodeError::Length("compressed body claims more than a chunk may hold"));
    }
    let start = out.len();
    out.resize(start + len, 0);
    match lz4_flex::block::decompress_into(body, &mut out[start..]) {
        Ok(n) if n == len => Ok(()),
        Ok(_) => {
            out.truncate(start);
            Err(DecodeError::Length("compressed body is shorter than it claims"))
        }
        Err(err) => {
            out.truncate(start);
            Err(err.into())
        }
    }
}

/// Encodes without a limit, for tests that compare with [`crate::encode`].
#[doc(hidden)]
pub fn reference_bytes<T: Encode>(value: &T) -> Vec<u8> {
    bincode::encode_to_vec(value, ENCODE).expect("encoding into memory")
}
