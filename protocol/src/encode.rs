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
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    append(entry, out);
    let content = out.len() - start - LENGTH_BYTES;
    out[start..start + LENGTH_BYTES].copy_from_slice(&frame_length(content));
}

/// A frame begins with its content's length.
const LENGTH_BYTES: usize = 4;

#[inline]
fn frame_length(content: usize) -> [u8; LENGTH_BYTES] {
    u32::try_from(content).expect("a row is at most 1 GiB").to_le_bytes()
}

/// The most that a frame takes beside its values, the bitmap of what changed and its contributions: its length, the
/// relation, the replaced version, the counts.
pub const FRAME_BYTES: usize = 64;

/// The most that a value takes beside its bytes: whether it is there, and its length.
pub const VALUE_BYTES: usize = 10;

/// The longest value whose length is one byte, and the largest number that is one.
const SHORT: usize = 250;

/// The most that a [`Contribution`] takes beside its text.
pub const CONTRIBUTION_BYTES: usize = 16;

/// Writes one [`crate::entry::Put`] or [`crate::entry::Delete`], value by value, into room that is there already: a place in
/// a slice is a number in a register, where the length of a `Vec` is read and written for each value.
///
/// Until [`RowWriter::finish`] the frame has no length, and whoever owns the room does not count it.
///
/// # Panics
/// If the room does not suffice; [`FRAME_BYTES`] and the others here say how much does.
#[derive(Debug)]
pub struct RowWriter<'b> {
    room: &'b mut [u8],
    at: usize,
}

// The variant numbers that the derived encoding of `Entry` gives.
const PUT: u64 = 2;
const DELETE: u64 = 3;

impl<'b> RowWriter<'b> {
    fn open(room: &'b mut [u8]) -> Self {
        Self { room, at: LENGTH_BYTES }
    }

    #[inline(never)]
    fn field<T: Encode>(&mut self, value: &T) {
        let encoded = bincode::encode_into_slice(value, &mut self.room[self.at..], ENCODE);
        self.at += encoded.expect("there is room enough");
    }

    /// A number of any width: a length, a count, that of a variant.
    #[inline]
    fn number(&mut self, number: u64) {
        // What bincode makes of one up to 250 is that one byte.
        if number <= SHORT as u64 {
            self.room[self.at] = number as u8;
            self.at += 1;
        } else {
            self.large(number);
        }
    }

    /// What bincode makes of larger ones is a mark that says how long they are, and the bytes, least first.
    fn large(&mut self, number: u64) {
        let room = &mut self.room[self.at..];
        self.at += if let Ok(short) = u16::try_from(number) {
            room[0] = 251;
            room[1..3].copy_from_slice(&short.to_le_bytes());
            3
        } else if let Ok(middle) = u32::try_from(number) {
            room[0] = 252;
            room[1..5].copy_from_slice(&middle.to_le_bytes());
            5
        } else {
            room[0] = 253;
            room[1..9].copy_from_slice(&number.to_le_bytes());
            9
        };
    }

    #[inline(always)]
    fn replaced(&mut self, replaced: Replaced) {
        // What most rows have first, and by itself: of four ways the compiler makes a table of jumps.
        if let Replaced::Version { commit_ts, origin } = replaced {
            self.number(3);
            // Numbers that may be negative are interleaved: 0, -1, 1, -2, …
            self.number(((commit_ts << 1) ^ (commit_ts >> 63)).cast_unsigned());
            self.number(origin.into());
        } else {
            self.number(match replaced {
                Replaced::Nothing => 0,
                Replaced::SameTransaction => 1,
                Replaced::Ancient | Replaced::Version { .. } => 2,
            });
        }
    }

    #[inline]
    fn raw(&mut self, bytes: &[u8]) {
        self.room[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    #[inline]
    fn contributions(&mut self, contributions: &[Contribution<'_>]) {
        if contributions.is_empty() { self.number(0) } else { self.field(&contributions) }
    }

    /// Begins a `Put` of `columns` values.
    #[inline(always)]
    pub fn put(
        room: &'b mut [u8],
        relation: u32,
        kind: PutKind,
        replaced: Replaced,
        changed: &[u8],
        contributions: &[Contribution<'_>],
        columns: usize,
    ) -> Self {
        let mut writer = Self::open(room);
        writer.number(PUT);
        writer.number(relation.into());
        writer.number(kind as u64);
        writer.replaced(replaced);
        writer.number(changed.len() as u64);
        writer.raw(changed);
        writer.contributions(contributions);
        writer.number(columns as u64);
        writer
    }

    /// What [`Self::put`] begins with: to be kept, where rows begin alike, and given to [`Self::begun`].
    pub fn put_beginning(relation: u32, kind: PutKind, columns: usize) -> Vec<u8> {
        let mut room = [0; FRAME_BYTES];
        let len = RowWriter::put(&mut room, relation, kind, Replaced::Nothing, &[], &[], columns).at;
        room[..len].to_vec()
    }

    /// Begins a frame with the bytes that another one had begun with.
    #[inline]
    pub fn begun(room: &'b mut [u8], beginning: &[u8]) -> Self {
        room[..beginning.len()].copy_from_slice(beginning);
        Self { room, at: beginning.len() }
    }

    /// Begins a `Delete` whose key has `columns` values.
    pub fn delete(
        room: &'b mut [u8],
        relation: u32,
        replaced: Replaced,
        contributions: &[Contribution<'_>],
        columns: usize,
    ) -> Self {
        let mut writer = Self::open(room);
        writer.number(DELETE);
        writer.number(relation.into());
        writer.replaced(replaced);
        writer.contributions(contributions);
        writer.number(columns as u64);
        writer
    }

    /// The next value is NULL.
    #[inline]
    pub fn null(&mut self) {
        self.room[self.at] = 0;
        self.at += 1;
    }

    /// The next value has these bytes.
    #[inline]
    pub fn bytes(&mut self, bytes: &[u8]) {
        // What bincode makes of a length up to 250 is that one byte, and most values are as short.
        if bytes.len() <= SHORT {
            let place = &mut self.room[self.at..self.at + 2 + bytes.len()];
            place[0] = 1;
            place[1] = bytes.len() as u8;
            place[2..].copy_from_slice(bytes);
            self.at += 2 + bytes.len();
        } else {
            self.long(bytes);
        }
    }

    #[cold]
    fn long(&mut self, bytes: &[u8]) {
        self.number(1);
        self.number(bytes.len() as u64);
        self.raw(bytes);
    }

    /// The same where the length is known when this is compiled: it is copied without a call.
    #[inline]
    pub fn array<const LEN: usize>(&mut self, bytes: &[u8; LEN]) {
        const { assert!(LEN <= SHORT) };
        let place = &mut self.room[self.at..self.at + 2 + LEN];
        place[0] = 1;
        place[1] = LEN as u8;
        place[2..].copy_from_slice(bytes);
        self.at += 2 + LEN;
    }

    /// The row is complete. Returns the length of its frame.
    #[inline]
    pub fn finish(self) -> usize {
        self.room[..LENGTH_BYTES].copy_from_slice(&frame_length(self.at - LENGTH_BYTES));
        self.at
    }
}
