//! Finding a tuple's values where they lie, for a row that is only to be copied.
//!
//! `heap_deform_tuple` makes a datum of each value, and the datum has to be taken apart again. Capturing an INSERT or an
//! UPDATE of values that travel as they are stored needs neither, and what it costs counts a million times in a bulk load. The
//! layout of a tuple is the server's file format: a header, a bitmap where there are NULLs, then each value, aligned as
//! its type says; a varlena with a header of one byte is not aligned (`att_align_pointer` in `access/tupmacs.h`).

use std::ffi::CStr;

use pgrx::pg_sys;

/// What finding an attribute's value takes, dropped attributes included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    /// `attlen`: above 0 a fixed length, -1 a varlena, -2 a string.
    pub(super) length: i16,
    /// It begins at a multiple of one more than this, which is a power of two.
    align_mask: u8,
    /// Whether it is a column that travels.
    pub(super) travels: bool,
}

impl Slot {
    pub(super) fn of(attribute: &pg_sys::FormData_pg_attribute, travels: bool) -> Self {
        let align_mask = match attribute.attalign as u8 {
            pg_sys::TYPALIGN_CHAR => 0,
            pg_sys::TYPALIGN_SHORT => 1,
            pg_sys::TYPALIGN_INT => 3,
            _ => 7,
        };
        Self { length: attribute.attlen, align_mask, travels }
    }
}

/// The bytes of a value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// Null for NULL.
    pub(super) start: *const u8,
    pub(super) len: usize,
}

impl Piece {
    pub(super) const NULL: Self = Self { start: std::ptr::null(), len: 0 };
}

/// How a varlena is stored, by the lowest bits of its first byte.
pub(super) enum Stored {
    /// What is in it.
    Plain(Piece),
    /// The same, compressed.
    Compressed(Piece),
    /// Where it is.
    Elsewhere(Piece),
}

impl Stored {
    /// # Safety
    /// `varlena` points to one.
    #[inline]
    pub(super) unsafe fn of(varlena: *const u8) -> Self {
        const ELSEWHERE: u8 = 0x01;
        // SAFETY: as the caller promises: the first byte says how long the header is, the header how long the value.
        unsafe {
            let first = *varlena;
            if first == ELSEWHERE {
                return Self::Elsewhere(Piece { start: varlena, len: pgrx::varsize_external(varlena.cast()) });
            }
            if first & 1 == 1 {
                return Self::Plain(Piece { start: varlena.add(1), len: (first >> 1) as usize - 1 });
            }
            let size = (varlena.cast::<u32>().read_unaligned() >> 2) as usize;
            let content = Piece { start: varlena.add(4), len: size - 4 };
            if first & 2 == 2 { Self::Compressed(content) } else { Self::Plain(content) }
        }
    }

    fn piece(&self) -> Piece {
        let (Self::Plain(piece) | Self::Compressed(piece) | Self::Elsewhere(piece)) = *self;
        piece
    }
}

/// Goes through a tuple's values in their order, each once.
pub(super) struct Walk {
    /// Where the next value lies, but for its alignment.
    at: *const u8,
    /// The bitmap of the values that are not NULL; null if all are.
    present: *const u8,
}

impl Walk {
    /// `None` if the tuple is of a time when the table had fewer attributes: what is missing there is not in the tuple.
    ///
    /// # Safety
    /// `tuple` is a valid tuple, and there as long as the walk.
    #[inline]
    pub(super) unsafe fn begin(tuple: pg_sys::HeapTuple, attributes: usize) -> Option<Self> {
        // SAFETY: as the caller promises.
        unsafe {
            let header = (*tuple).t_data;
            if ((u32::from((*header).t_infomask2) & pg_sys::HEAP_NATTS_MASK) as usize) < attributes {
                return None;
            }
            let has_nulls = u32::from((*header).t_infomask) & pg_sys::HEAP_HASNULL != 0;
            let present = if has_nulls { (*header).t_bits.as_ptr() } else { std::ptr::null() };
            Some(Self { at: header.cast::<u8>().add(usize::from((*header).t_hoff)), present })
        }
    }

    /// Whether the value of this number is NULL. It takes no room then.
    ///
    /// # Safety
    /// The tuple has as many attributes.
    #[inline]
    pub(super) unsafe fn is_null(&self, number: usize) -> bool {
        // SAFETY: as the caller promises.
        !self.present.is_null() && unsafe { *self.present.add(number / 8) >> (number % 8) & 1 == 0 }
    }

    /// The bytes of the next value; `None` if it is stored compressed or elsewhere.
    ///
    /// # Safety
    /// The slot is the next one, and its value is not NULL.
    #[inline]
    pub(super) unsafe fn next(&mut self, slot: Slot) -> Option<Piece> {
        // SAFETY: as the caller promises.
        unsafe {
            Some(match slot.length {
                -1 => match self.varlena(slot) {
                    Stored::Plain(value) => value,
                    Stored::Compressed(_) | Stored::Elsewhere(_) => return None,
                },
                -2 => self.string(slot),
                length => Piece { start: self.fixed(slot, length as usize), len: length as usize },
            })
        }
    }

    /// The next value, if it has a fixed length.
    ///
    /// # Safety
    /// The slot is the next one and says so; its value is not NULL.
    #[inline]
    pub(super) unsafe fn fixed(&mut self, slot: Slot, len: usize) -> *const u8 {
        self.align(slot);
        let start = self.at;
        // SAFETY: as the caller promises.
        self.at = unsafe { start.add(len) };
        start
    }

    /// The next value, if it is a varlena.
    ///
    /// # Safety
    /// The slot is the next one and says so; its value is not NULL.
    #[inline]
    pub(super) unsafe fn varlena(&mut self, slot: Slot) -> Stored {
        // SAFETY: as the caller promises. A byte of padding is 0, and no header of one byte is.
        unsafe {
            if *self.at == 0 {
                self.align(slot);
            }
            let stored = Stored::of(self.at);
            let piece = stored.piece();
            self.at = piece.start.add(piece.len);
            stored
        }
    }

    /// The next value, if it is a string.
    ///
    /// # Safety
    /// The slot is the next one and says so; its value is not NULL.
    pub(super) unsafe fn string(&mut self, slot: Slot) -> Piece {
        self.align(slot);
        // SAFETY: as the caller promises: it ends in NUL.
        unsafe {
            let value = Piece { start: self.at, len: CStr::from_ptr(self.at.cast()).count_bytes() };
            self.at = self.at.add(value.len + 1);
            value
        }
    }

    /// A tuple's values begin where any alignment may begin, on a page as in memory, so an address tells as well as a place
    /// in the tuple.
    #[inline]
    fn align(&mut self, slot: Slot) {
        let mask = usize::from(slot.align_mask);
        self.at = self.at.map_addr(|at| (at + mask) & !mask);
    }
}
