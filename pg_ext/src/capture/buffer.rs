//! What a transaction has captured so far, as the bytes of its body.
//!
//! The newest bytes are an open tail. Whenever it holds [`CHUNK_BYTES`], that many are sealed: compressed, and kept in
//! memory or, beyond `duplex.transaction_buffer`, in a temporary file. All sealed chunks have the same expanded length,
//! so a place in the body tells its chunk by a division, and cutting the buffer back expands one chunk at most.

use duplex_protocol::record::{self, CHUNK_BYTES};
use pgrx::PgSqlErrorCode;

use super::marks::Position;
use super::spill::SpillFile;
use crate::errors::{Failure, Result};
use crate::gucs;

/// What is larger than this is given back when the transaction ends.
const KEPT_BYTES: usize = 256 * 1024;

#[derive(Debug)]
enum Place {
    Memory(Vec<u8>),
    File { at: u64, len: usize },
}

#[derive(Debug)]
struct Sealed {
    place: Place,
    /// As the queue wants it: the expanded length, 0 for a chunk that is not compressed.
    expanded_len: u32,
}

/// The body of a transaction that is being written.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    sealed: Vec<Sealed>,
    in_memory: usize,
    spill: Option<SpillFile>,
    /// Room for what comes next, behind `used` bytes that have come.
    tail: Vec<u8>,
    used: usize,
    /// Where chunks are compressed.
    room: Vec<u8>,
}

impl Buffer {
    pub(super) const fn new() -> Self {
        Self { sealed: Vec::new(), in_memory: 0, spill: None, tail: Vec::new(), used: 0, room: Vec::new() }
    }

    /// The body's length so far.
    #[inline]
    pub(super) fn len(&self) -> Position {
        self.sealed.len() as Position * CHUNK_BYTES as Position + self.used as Position
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sealed.is_empty() && self.used == 0
    }

    /// Room for `bytes` more. Running out of memory here is an ERROR; in a `Vec` that grows by itself it would be an abort,
    /// which takes the whole cluster down.
    #[inline]
    pub(super) fn room(&mut self, bytes: usize) -> Result<&mut [u8]> {
        let end = self.used + bytes;
        if self.tail.len() < end {
            self.grow(end)?;
        }
        Ok(&mut self.tail[self.used..end])
    }

    #[cold]
    fn grow(&mut self, end: usize) -> Result<()> {
        let more = end - self.tail.len();
        reserve(&mut self.tail, more)?;
        self.tail.resize(self.tail.capacity(), 0);
        Ok(())
    }

    /// So many bytes of the room are written.
    #[inline]
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.used += bytes;
    }

    /// Adds bytes that are there already.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.room(bytes.len())?.copy_from_slice(bytes);
        self.wrote(bytes.len());
        Ok(())
    }

    /// Seals what is ready for it; called after each entry.
    #[inline]
    pub(super) fn settle(&mut self) -> Result<()> {
        if self.used < CHUNK_BYTES { Ok(()) } else { self.seal() }
    }

    fn seal(&mut self) -> Result<()> {
        let mut done = 0;
        // If a chunk cannot be written, the tail still holds those before it: the transaction, or the subtransaction
        // whose mark lies before this entry, is being aborted, and the cut that follows has to find its place.
        let result = loop {
            let Some(piece) = self.tail[..self.used].get(done..done + CHUNK_BYTES) else { break Ok(()) };
            match seal_piece(piece, &mut self.room, &mut self.spill, self.in_memory) {
                Ok(sealed) => {
                    if let Place::Memory(body) = &sealed.place {
                        self.in_memory += body.len();
                    }
                    self.sealed.push(sealed);
                    done += CHUNK_BYTES;
                }
                Err(failure) => break Err(failure),
            }
        };
        self.tail.copy_within(done..self.used, 0);
        self.used -= done;
        if self.tail.capacity() > 4 * CHUNK_BYTES {
            self.tail.truncate((2 * CHUNK_BYTES).max(self.used));
            self.tail.shrink_to_fit();
        }
        result
    }

    /// Forgets everything at `end` and after it.
    pub(super) fn cut(&mut self, end: Position) -> Result<()> {
        self.shorten(end)?;
        if !self.sealed.iter().any(|sealed| matches!(sealed.place, Place::File { .. })) {
            self.close_file();
        }
        Ok(())
    }

    fn shorten(&mut self, end: Position) -> Result<()> {
        let chunk = (end / CHUNK_BYTES as Position) as usize;
        let within = (end % CHUNK_BYTES as Position) as usize;
        if chunk >= self.sealed.len() {
            self.used = (end - self.sealed.len() as Position * CHUNK_BYTES as Position) as usize;
            return Ok(());
        }
        self.tail.clear();
        self.used = 0;
        reserve(&mut self.tail, CHUNK_BYTES)?;
        let sealed = &self.sealed[chunk];
        let expanded_len = sealed.expanded_len;
        let mut tail = std::mem::take(&mut self.tail);
        with_body(sealed, &mut self.spill, |body| match expanded_len {
            0 => {
                tail.extend_from_slice(body);
                Ok(())
            }
            len => record::expand_onto(body, len, &mut tail).map_err(Failure::from),
        })?;
        self.tail = tail;
        self.used = within;
        for sealed in self.sealed.drain(chunk..).rev() {
            match sealed.place {
                Place::Memory(body) => self.in_memory -= body.len(),
                Place::File { at, .. } => {
                    if let Some(spill) = &mut self.spill {
                        spill.truncate(at);
                    }
                }
            }
        }
        Ok(())
    }

    /// The whole body, if nothing of it was sealed.
    pub(super) fn unsealed(&self) -> Option<&[u8]> {
        self.sealed.is_empty().then(|| &self.tail[..self.used])
    }

    /// Hands out all chunks in order, with their expanded lengths, and leaves nothing behind.
    pub(super) fn drain(&mut self, mut take: impl FnMut(&[u8], u32) -> Result<()>) -> Result<()> {
        for sealed in &self.sealed {
            with_body(sealed, &mut self.spill, |body| take(body, sealed.expanded_len))?;
        }
        let tail = &self.tail[..self.used];
        if !tail.is_empty() {
            ready(&mut self.room, tail.len())?;
            match record::compress(tail, &mut self.room) {
                Some(body) => take(body, tail.len() as u32)?,
                None => take(tail, 0)?,
            }
        }
        self.close_file();
        self.reset();
        Ok(())
    }

    fn close_file(&mut self) {
        if let Some(spill) = self.spill.take() {
            spill.close();
        }
    }

    /// Forgets everything. Cannot fail: a temporary file that is still open belongs to the transaction, which closes it.
    #[unsafe(link_section = ".text.duplex_hot")]
    pub(super) fn reset(&mut self) {
        self.sealed = Vec::new();
        self.in_memory = 0;
        self.spill = None;
        self.used = 0;
        for kept in [&mut self.tail, &mut self.room] {
            if kept.capacity() > KEPT_BYTES {
                *kept = Vec::new();
            }
        }
    }
}

fn seal_piece(piece: &[u8], room: &mut Vec<u8>, spill: &mut Option<SpillFile>, in_memory: usize) -> Result<Sealed> {
    ready(room, piece.len())?;
    let packed = record::compress(piece, room);
    let expanded_len = if packed.is_some() { piece.len() as u32 } else { 0 };
    let body = packed.unwrap_or(piece);
    let place = if in_memory + body.len() <= gucs::transaction_buffer() {
        let mut kept = scratch(body.len())?;
        kept.extend_from_slice(body);
        Place::Memory(kept)
    } else {
        let at = spill.get_or_insert_with(SpillFile::create).append(body)?;
        Place::File { at, len: body.len() }
    };
    Ok(Sealed { place, expanded_len })
}

fn with_body<T>(
    sealed: &Sealed,
    spill: &mut Option<SpillFile>,
    use_body: impl FnOnce(&[u8]) -> Result<T>,
) -> Result<T> {
    match &sealed.place {
        Place::Memory(body) => use_body(body),
        Place::File { at, len } => {
            let mut body = scratch(*len)?;
            body.resize(*len, 0);
            match spill {
                Some(spill) => spill.read(*at, &mut body)?,
                None => return Err(Failure::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, "spilled chunk has no file")),
            }
            use_body(&body)
        }
    }
}

/// Makes sure that `room` is large enough for compressing so many bytes: the compressor grows it without asking.
fn ready(room: &mut Vec<u8>, bytes: usize) -> Result<()> {
    let most = record::compression_room(bytes);
    reserve(room, most.saturating_sub(room.len()))
}

fn scratch(bytes: usize) -> Result<Vec<u8>> {
    let mut scratch = Vec::new();
    scratch.try_reserve_exact(bytes).map_err(|_| out_of_memory(bytes))?;
    Ok(scratch)
}

#[inline]
fn reserve(out: &mut Vec<u8>, bytes: usize) -> Result<()> {
    out.try_reserve(bytes).map_err(|_| out_of_memory(bytes))
}

fn out_of_memory(bytes: usize) -> Failure {
    Failure::new(PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY, "out of memory")
        .detail(format!("Failed to get {bytes} bytes for captured changes."))
}
