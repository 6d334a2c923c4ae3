//! A transaction's body as its queue row holds it where the drain knows the descriptors: without them.
//!
//! A body of a few rows is mostly descriptors, the same ones again and again. The row has a [`Digest`] in place of each, and
//! whoever drains puts them back ([`restore`]): what goes to Kafka says by itself what it is about.
//!
//! The payload begins with one note for each descriptor that was left out: its place in the whole body (2 bytes, least first)
//! and its digest (16). What is left of the body follows. The row's `expanded_len` is minus the count of notes.

use std::rc::Rc;

use super::descriptors::{DIGEST_BYTES, Digest};
use super::page::malformed;
use crate::errors::Result;

const NOTE_BYTES: usize = 2 + DIGEST_BYTES;

/// So many descriptors are left out at most.
const MOST: usize = 8;

/// What is longer is compressed as a whole, in which the descriptors hardly count.
const MOST_BYTES: usize = 1024;

/// A body whose descriptors are left out.
#[derive(Debug)]
pub(crate) struct ShortBody<'b> {
    notes: [[u8; NOTE_BYTES]; MOST],
    /// What is left: the pieces between the descriptors.
    pieces: [&'b [u8]; MOST],
    count: usize,
    /// What follows the last descriptor.
    rest: &'b [u8],
    /// How much of the body is before that.
    done: usize,
    left_out: usize,
}

impl<'b> ShortBody<'b> {
    pub(crate) fn of(body: &'b [u8]) -> Self {
        let notes = [[0; NOTE_BYTES]; MOST];
        Self { notes, pieces: [&[]; MOST], count: 0, rest: body, done: 0, left_out: 0 }
    }

    /// Leaves out the descriptor that stands at `position` and has so many bytes; one before it was left out already. `None`
    /// if that cannot be said.
    pub(crate) fn leave_out(&mut self, position: usize, bytes: usize, digest: &Digest) -> Option<()> {
        let Some(kept) = position.checked_sub(self.done) else { return Some(()) };
        let note = self.notes.get_mut(self.count)?;
        note[..2].copy_from_slice(&u16::try_from(position).ok()?.to_le_bytes());
        note[2..].copy_from_slice(digest);
        self.pieces[self.count] = self.rest.get(..kept)?;
        self.rest = self.rest.get(kept + bytes..)?;
        self.done = position + bytes;
        self.left_out += bytes;
        self.count += 1;
        Some(())
    }

    /// Whether this is what the row is to hold.
    pub(crate) fn is_worth_it(&self) -> bool {
        let notes = self.count * NOTE_BYTES;
        self.left_out > notes && self.done - self.left_out + self.rest.len() + notes <= MOST_BYTES
    }

    /// Shows the row's `expanded_len` and the parts of its payload.
    pub(crate) fn with_parts<R>(&self, show: impl FnOnce(u32, &[&[u8]]) -> R) -> R {
        let mut parts: [&[u8]; MOST + 2] = [&[]; MOST + 2];
        parts[0] = self.notes[..self.count].as_flattened();
        parts[1..=self.count].copy_from_slice(&self.pieces[..self.count]);
        parts[self.count + 1] = self.rest;
        show((self.count as u32).wrapping_neg(), &parts[..self.count + 2])
    }
}

/// Puts the descriptors back into a payload that has so many notes, at the end of `body`. `find` finds each.
///
/// # Errors
/// XX001 if that cannot be a payload, and those of `find`.
pub(super) fn restore(
    payload: &[u8],
    notes: usize,
    body: &mut Vec<u8>,
    mut find: impl FnMut(&Digest) -> Result<Rc<[u8]>>,
) -> Result<()> {
    let start = body.len();
    let (notes, mut rest) = payload.split_at_checked(notes.saturating_mul(NOTE_BYTES)).ok_or_else(malformed)?;
    for note in notes.as_chunks::<NOTE_BYTES>().0 {
        let [low, high, digest @ ..] = note;
        let position = usize::from(u16::from_le_bytes([*low, *high]));
        let kept = position.checked_sub(body.len() - start).and_then(|kept| rest.split_at_checked(kept));
        let (kept, behind) = kept.ok_or_else(malformed)?;
        body.extend_from_slice(kept);
        body.extend_from_slice(&find(digest)?);
        rest = behind;
    }
    body.extend_from_slice(rest);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the queue would hold of a body, and how many notes that has.
    fn payload(body: &[u8], descriptors: &[(usize, &[u8])]) -> Option<(i32, Vec<u8>)> {
        let mut short = ShortBody::of(body);
        for (position, descriptor) in descriptors {
            short.leave_out(*position, descriptor.len(), &[descriptor[0]; DIGEST_BYTES])?;
        }
        let mut made = None;
        short.with_parts(|len, parts| made = Some((len.cast_signed(), parts.concat())));
        made
    }

    #[test]
    fn what_was_left_out_comes_back() {
        let (one, two) = ([b'1'; 60], [b'2'; 70]);
        let body = [&one[..], b"a change", &two, b"more", b" and more"].concat();
        let descriptors = [(0, &one[..]), (68, &two[..]), (0, &one[..])];
        let (len, payload) = payload(&body, &descriptors).unwrap();
        assert_eq!((len, payload.len()), (-2, body.len() - 130 + 2 * NOTE_BYTES));
        let mut restored = b"before".to_vec();
        let find = |digest: &Digest| Ok(Rc::from(if digest[0] == b'1' { &one[..] } else { &two[..] }));
        restore(&payload, 2, &mut restored, find).unwrap();
        assert_eq!(restored, [b"before", &body[..]].concat());
    }

    #[test]
    fn more_tables_than_there_is_room_for_are_written_out() {
        let descriptor = [7; 40];
        let body = descriptor.repeat(MOST + 1);
        let positions = |count: usize| (0..count).map(|number| (number * 40, &descriptor[..])).collect::<Vec<_>>();
        assert!(payload(&body, &positions(MOST)).is_some());
        assert!(payload(&body, &positions(MOST + 1)).is_none());
    }

    #[test]
    fn only_what_gets_shorter_and_would_not_be_compressed_is_left_out() {
        let is_worth_it = |left: usize, descriptor: usize| {
            let body = vec![0; left + descriptor];
            let mut short = ShortBody::of(&body);
            short.leave_out(0, descriptor, &[0; DIGEST_BYTES]).unwrap();
            short.is_worth_it()
        };
        assert!(is_worth_it(100, NOTE_BYTES + 1) && !is_worth_it(100, NOTE_BYTES));
        assert!(is_worth_it(MOST_BYTES - NOTE_BYTES, 100) && !is_worth_it(MOST_BYTES - NOTE_BYTES + 1, 100));
        assert!(!ShortBody::of(&[0; 10]).is_worth_it());
    }

    #[test]
    fn what_cannot_be_a_payload_is_refused() {
        let note = |position: u8| [&[position, 0][..], &[0; DIGEST_BYTES]].concat();
        let refused = |payload: &[u8], notes: usize| {
            restore(payload, notes, &mut Vec::new(), |_| Ok(Rc::from(&b"descriptor"[..]))).is_err()
        };
        assert!(refused(&note(0)[1..], 1) && refused(b"", usize::MAX));
        // Behind the end, and within the descriptor before.
        assert!(refused(&[&note(5)[..], b"four"].concat(), 1) && refused(&[note(0), note(5)].concat(), 2));
        assert!(!refused(&[&note(4)[..], b"four"].concat(), 1));
    }
}
