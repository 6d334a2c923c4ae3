//! A key's entries, or that there are none.
//!
//! A page is locked and read as it is at that moment: nothing is taken for granted that somebody else may have changed
//! meanwhile. After Lehman and Yao, a key belongs to a leaf if it is above an entry there and not above the leaf's high
//! key; so a leaf that is come back to may have been split or deleted, and even be another one by now.

use std::cell::Cell;
use std::ptr;

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;

use crate::btree::access::{
    _bt_compare, _bt_metaversion, _bt_mkscankey, BufferGetBlockNumber, LockBuffer, READ, ReleaseBuffer, ScanInsert,
    UNLOCK, descend, pin,
};
use crate::btree::page::{HIGH_KEY, Page};

/// Keys that ascend have their entries near each other: so many are looked at one by one before the whole page is.
const NEAR: u16 = 4;
/// So many rows under one key are told of. More than a few are what an index scan cleans up.
const MOST: usize = 6;

/// Looks into one index.
#[derive(Debug)]
pub(crate) struct Probe {
    heap: pg_sys::Relation,
    index: pg_sys::Relation,
    key: *mut ScanInsert,
    at: Cell<Place>,
}

/// Where the last key stood or would have stood.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The leaf, or none.
    leaf: pg_sys::Buffer,
    block: pg_sys::BlockNumber,
    is_pinned: bool,
    /// The first entry that is above the key, or the one past the last.
    offset: pg_sys::OffsetNumber,
}

const NOWHERE: Place = Place { leaf: 0, block: 0, is_pinned: false, offset: 0 };

/// What an index says of a key.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Found {
    /// There is no entry.
    Absent,
    /// These are all.
    Rows(Rows),
    /// There may be many, or they are on several pages.
    Perhaps,
}

/// Rows that may have a key, or have had it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    places: [pg_sys::ItemPointerData; MOST],
    count: usize,
}

/// What a leaf says of a key: and if so, the first entry above it.
enum Look {
    Here(Found, pg_sys::OffsetNumber),
    /// It is another leaf's.
    Elsewhere,
}

impl Rows {
    pub(crate) fn places(&self) -> &[pg_sys::ItemPointerData] {
        &self.places[..self.count]
    }

    /// `false` if there is no room for them.
    fn add(&mut self, places: &[pg_sys::ItemPointerData]) -> bool {
        let Some(room) = self.places.get_mut(self.count..self.count + places.len()) else { return false };
        room.copy_from_slice(places);
        self.count += places.len();
        true
    }
}

impl Probe {
    /// # Safety
    /// Both are open, and the current memory context lives as long; the index is a B-tree.
    pub(crate) unsafe fn new(heap: pg_sys::Relation, index: pg_sys::Relation) -> Self {
        // SAFETY: as the caller promises. Without a tuple the key has the functions of all columns and no values yet.
        unsafe {
            let key = guarded(|| {
                let key = _bt_mkscankey(index, ptr::null_mut());
                // An index that a server before 12 made, and pg_upgrade kept, orders equal keys in another way.
                _bt_metaversion(index, &mut (*key).heap_key_space, &mut (*key).all_equal_image);
                key
            });
            (*key).key_size = (*(*index).rd_index).indnkeyatts.into();
            (*key).any_null_keys = false;
            Self { heap, index, key, at: Cell::new(NOWHERE) }
        }
    }

    /// The entries of a key, of the latest moment: one whose transaction has not ended is an entry. The leaf stays pinned:
    /// until [`Self::unpin`] nobody else's row takes the place of one that an entry points to.
    ///
    /// # Safety
    /// Inside the (sub)transaction that made this, and of a guard: an ERROR leaves pins and locks to the abort that it
    /// leads to. The values are of the index's types and none is NULL.
    pub(crate) unsafe fn look_up(&self, values: impl Iterator<Item = pg_sys::Datum>) -> Found {
        // SAFETY: as the caller promises.
        unsafe {
            for (key, value) in (*self.key).scan_keys.iter_mut().zip(values) {
                key.sk_argument = value;
                key.sk_flags &= !pg_sys::SK_ISNULL.cast_signed();
            }
            let at = self.at.get();
            let mut leaf = at.leaf;
            let mut look = Look::Elsewhere;
            if leaf != 0 && (at.is_pinned || pin(self.index, at.block, leaf)) {
                LockBuffer(leaf, READ);
                look = self.look_beside(Page(pg_sys::BufferGetPage(leaf)), at.offset);
                LockBuffer(leaf, UNLOCK);
                if let Look::Elsewhere = look {
                    ReleaseBuffer(leaf);
                }
            }
            if let Look::Elsewhere = look {
                self.at.set(NOWHERE);
                leaf = descend(self.heap, self.index, self.key);
                if leaf == 0 {
                    return Found::Absent;
                }
                look = self.look_through(Page(pg_sys::BufferGetPage(leaf)));
                LockBuffer(leaf, UNLOCK);
            }
            let (found, offset) = match look {
                Look::Here(found, offset) => (found, offset),
                Look::Elsewhere => (Found::Perhaps, 0),
            };
            let block = if leaf == at.leaf { at.block } else { BufferGetBlockNumber(leaf) };
            self.at.set(Place { leaf, block, is_pinned: true, offset });
            found
        }
    }

    /// Gives the pin back. The leaf is found again all the same, where it is.
    ///
    /// # Safety
    /// As [`Self::look_up`].
    pub(crate) unsafe fn unpin(&self) {
        let at = self.at.get();
        if at.is_pinned {
            self.at.set(Place { is_pinned: false, ..at });
            // SAFETY: as the caller promises.
            unsafe { ReleaseBuffer(at.leaf) };
        }
    }

    /// Whether the key is below, at or above an entry.
    unsafe fn compare(&self, page: Page, offset: pg_sys::OffsetNumber) -> i32 {
        // SAFETY: as the callers promise: the page is locked and has the entry.
        unsafe { _bt_compare(self.index, self.key, page.0, offset) }
    }

    /// Whether the key belongs to a page that it may not belong to. Looks beside the place where the last one was first.
    unsafe fn look_beside(&self, page: Page, offset: pg_sys::OffsetNumber) -> Look {
        // SAFETY: as the callers promise: the page is pinned and locked.
        unsafe {
            if !page.is_leaf() {
                return Look::Elsewhere;
            }
            let (first, last) = page.entries();
            if offset > first && offset <= last + 1 && self.compare(page, offset - 1) > 0 {
                let near = last.min(offset + NEAR);
                for offset in offset..=near {
                    let order = self.compare(page, offset);
                    if order <= 0 {
                        return self.gather(page, offset, order);
                    }
                }
                if near == last && page.is_rightmost() {
                    return Look::Here(Found::Absent, last + 1);
                }
            }
            if first > last || self.compare(page, first) <= 0 {
                return Look::Elsewhere;
            }
            if !page.is_rightmost() && self.compare(page, HIGH_KEY) > 0 {
                return Look::Elsewhere;
            }
            self.look_through(page)
        }
    }

    /// What the leaf says that the key belongs to.
    unsafe fn look_through(&self, page: Page) -> Look {
        // SAFETY: as the callers promise: the page is pinned and locked.
        unsafe {
            let (first, last) = page.entries();
            let (mut low, mut high) = (first, last + 1);
            while low < high {
                let middle = low + (high - low) / 2;
                if self.compare(page, middle) > 0 {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            if low <= last {
                return self.gather(page, low, self.compare(page, low));
            }
            Look::Here(if self.goes_on(page) { Found::Perhaps } else { Found::Absent }, low)
        }
    }

    /// The entries of the key, the first of which is at the offset, or would be. `order` is how the key compares to it.
    unsafe fn gather(&self, page: Page, mut offset: pg_sys::OffsetNumber, mut order: i32) -> Look {
        let mut rows = Rows { places: Default::default(), count: 0 };
        let start = offset;
        // SAFETY: as the callers promise: the page is pinned and locked.
        unsafe {
            let (_, last) = page.entries();
            while order == 0 {
                let is_all = rows.add(page.rows(offset));
                offset += 1;
                if !is_all || offset > last && self.goes_on(page) {
                    return Look::Here(Found::Perhaps, offset);
                }
                if offset > last {
                    break;
                }
                order = self.compare(page, offset);
            }
        }
        Look::Here(if offset == start { Found::Absent } else { Found::Rows(rows) }, offset)
    }

    /// Whether the key, which is above all entries of the page that are not its own, may have some on the next one.
    unsafe fn goes_on(&self, page: Page) -> bool {
        // SAFETY: as the callers promise.
        unsafe { !page.is_rightmost() && self.compare(page, HIGH_KEY) >= 0 }
    }

    /// Gives back what is pinned, and its memory.
    ///
    /// # Safety
    /// Inside the (sub)transaction that made this.
    pub(crate) unsafe fn close(self) {
        // SAFETY: as the caller promises.
        unsafe {
            guarded(|| self.unpin());
            pg_sys::pfree(self.key.cast());
        }
    }
}
