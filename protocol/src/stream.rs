//! Reading entries back from the pieces of a transaction.

use crate::codec::DecodeError;
use crate::entry::Entry;
use crate::record::{Record, expand_onto};

const LENGTH_BYTES: usize = 4;

/// Puts the chunks of one transaction together again and hands out its entries, holding no more than one chunk and
/// the longest entry.
///
/// ```
/// # use duplex_protocol::stream::EntryReader;
/// # fn f(record: &duplex_protocol::record::Record<'_>) -> Result<(), duplex_protocol::codec::DecodeError> {
/// let mut reader = EntryReader::default();
/// reader.feed(record)?;
/// while let Some(entry) = reader.next()? {
///     println!("{entry:?}");
/// }
/// # Ok(()) }
/// ```
#[derive(Debug, Default)]
pub struct EntryReader {
    pending: Vec<u8>,
    read: usize,
}

impl EntryReader {
    /// Takes the next chunk of the transaction.
    ///
    /// # Errors
    /// As [`expand_onto`].
    pub fn feed(&mut self, record: &Record<'_>) -> Result<(), DecodeError> {
        self.pending.drain(..self.read);
        self.read = 0;
        match record.header.expanded_len {
            Some(len) => expand_onto(record.body, len, &mut self.pending),
            None => {
                self.pending.extend_from_slice(record.body);
                Ok(())
            }
        }
    }

    /// Takes a piece of a body that is not compressed: entries that were kept.
    pub fn feed_kept(&mut self, body: &[u8]) {
        self.pending.drain(..self.read);
        self.read = 0;
        self.pending.extend_from_slice(body);
    }

    /// The next whole entry, or `None` if the rest of it is in a later chunk.
    ///
    /// # Errors
    /// As [`Entry::decode`].
    // Not an Iterator: an entry borrows from the reader.
    #[expect(clippy::should_implement_trait, reason = "an entry borrows from the reader, which Iterator cannot say")]
    pub fn next(&mut self) -> Result<Option<Entry<'_>>, DecodeError> {
        self.next_frame().map(Entry::decode).transpose()
    }

    /// The next whole entry, undecoded: equal bytes are equal entries, so a reader may know one by its bytes.
    pub fn next_frame(&mut self) -> Option<&[u8]> {
        let rest = &self.pending[self.read..];
        let (length, rest) = rest.split_first_chunk::<LENGTH_BYTES>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let frame = rest.get(..length)?;
        self.read += LENGTH_BYTES + length;
        Some(frame)
    }

    /// Call after the last chunk: makes sure that nothing is left over, and readies the reader for the next
    /// transaction.
    ///
    /// # Errors
    /// [`DecodeError::Length`] if the transaction ended inside an entry.
    pub fn finish(&mut self) -> Result<(), DecodeError> {
        let left = self.pending.len() - self.read;
        self.pending.clear();
        self.read = 0;
        if left == 0 { Ok(()) } else { Err(DecodeError::Length("transaction ends inside an entry")) }
    }
}
