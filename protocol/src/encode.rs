//! Writing entries without building them first.
//!
//! Capture runs inside an application's transaction, so a row goes straight from the tuple into the buffer. The bytes
//! are exactly those that bincode makes of the structures in [`crate::entry`]; a test holds the two together.

use bincode::Encode;
use bincode::enc::write::Writer;
use bincode::error::EncodeError;

use crate::codec::ENCODE;
use crate::entry::{Contribution, Entry, PutKind, Replaced};

struct Appender<'b>(&'b mut Vec<u8>);

impl Writer for Appender<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Appends the encoding of `value` to `out`.
pub(crate) fn append<T: Encode>(value: &T, out: &mut Vec<u8>) {
    bincode::encode_into_writer(value, Appender(out), ENCODE).expect("encoding into memory does not fail");
}

/// Appends `entry` as a frame. For descriptors and tests; rows take [`RowWriter`].
pub fn append_entry(entry: &Entry<'_>, out: &mut Vec<u8>) {
    let frame = Frame::open(out);
    append(entry, out);
    frame.close(out);
}

/// The place of a frame's length, to be filled in once the length is known.
#[derive(Debug)]
struct Frame {
    start: usize,
}

impl Frame {
    fn open(out: &mut Vec<u8>) -> Self {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        Self { start }
    }

    fn close(self, out: &mut [u8]) {
        let len = u32::try_from(out.len() - self.start - 4).expect("a row is at most 1 GiB");
        out[self.start..self.start + 4].copy_from_slice(&len.to_le_bytes());
    }
}

/// Writes one [`crate::entry::Put`] or [`crate::entry::Delete`], value by value.
///
/// Until [`RowWriter::finish`] the frame has length zero; a writer that is dropped half way leaves bytes that only
/// cutting the buffer back makes good, which is what an aborting transaction does.
#[derive(Debug)]
pub struct RowWriter<'b> {
    out: &'b mut Vec<u8>,
    frame: Frame,
}

// The variant numbers that the derived encoding of `Entry` gives.
const PUT: u32 = 2;
const DELETE: u32 = 3;

impl<'b> RowWriter<'b> {
    /// Begins a `Put` of `columns` values.
    pub fn put(
        out: &'b mut Vec<u8>,
        relation: u32,
        kind: PutKind,
        replaced: Replaced,
        changed: &[u8],
        contributions: &[Contribution<'_>],
        columns: usize,
    ) -> Self {
        let frame = Frame::open(out);
        append(&PUT, out);
        append(&relation, out);
        append(&kind, out);
        append(&replaced, out);
        append(&changed, out);
        append(&contributions, out);
        append(&(columns as u64), out);
        Self { out, frame }
    }

    /// What [`Self::put`] begins with: to be kept, where rows begin alike, and given to [`Self::begun`].
    pub fn put_beginning(relation: u32, kind: PutKind, columns: usize) -> Vec<u8> {
        let mut out = Vec::new();
        RowWriter::put(&mut out, relation, kind, Replaced::Nothing, &[], &[], columns);
        out
    }

    /// Begins a frame with the bytes that another one had begun with.
    #[inline]
    pub fn begun(out: &'b mut Vec<u8>, beginning: &[u8]) -> Self {
        let frame = Frame { start: out.len() };
        out.extend_from_slice(beginning);
        Self { out, frame }
    }

    /// Begins a `Delete` whose key has `columns` values.
    pub fn delete(
        out: &'b mut Vec<u8>,
        relation: u32,
        replaced: Replaced,
        contributions: &[Contribution<'_>],
        columns: usize,
    ) -> Self {
        let frame = Frame::open(out);
        append(&DELETE, out);
        append(&relation, out);
        append(&replaced, out);
        append(&contributions, out);
        append(&(columns as u64), out);
        Self { out, frame }
    }

    /// The next value is NULL.
    #[inline]
    pub fn null(&mut self) {
        self.out.push(0);
    }

    /// The next value has these bytes.
    #[inline]
    pub fn bytes(&mut self, bytes: &[u8]) {
        // What bincode makes of a length up to 250 is that one byte, and most values are as short.
        match u8::try_from(bytes.len()) {
            Ok(len @ 0..=250) => self.out.extend_from_slice(&[1, len]),
            _ => {
                self.out.push(1);
                append(&(bytes.len() as u64), self.out);
            }
        }
        self.out.extend_from_slice(bytes);
    }

    /// The row is complete.
    pub fn finish(self) {
        self.frame.close(self.out);
    }
}
