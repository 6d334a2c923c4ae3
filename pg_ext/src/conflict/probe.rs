//! Whether a register's index has an entry for a key at all. Mostly it has none, and that is all that is to be known.
//!
//! A scan for it would take a snapshot and go down the tree from its root. What is asked for here are keys of rows that
//! are new, and these mostly come in ascending order; so the leaf where the last one would have stood is kept pinned, and
//! looked at first, next to that place. The page is locked and read as it is at that moment: nothing is taken for granted
//! that somebody else may have changed meanwhile. After Lehman and Yao, a key belongs to a leaf if it is above an entry
//! there and not above the leaf's high key.
//!
//! The functions are those of PostgreSQL's own access method (access/nbtree.h), which exports them to itself.

use std::cell::Cell;
use std::ptr;

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;

/// `BTScanInsertData`, the same in PostgreSQL 15 to 18.
#[repr(C)]
struct ScanInsert {
    heap_key_space: bool,
    all_equal_image: bool,
    any_null_keys: bool,
    next_key: bool,
    /// In PostgreSQL 17 and later `backward`. Neither is wanted.
    pivot_search: bool,
    scan_tid: pg_sys::ItemPointer,
    key_size: i32,
    scan_keys: [pg_sys::ScanKeyData; pg_sys::INDEX_MAX_KEYS as usize],
}

/// `BTPageOpaqueData`.
#[repr(C)]
struct PageOpaque {
    previous: pg_sys::BlockNumber,
    next: pg_sys::BlockNumber,
    level: u32,
    flags: u16,
    cycle: u16,
}

/// No block: there is no page on that side.
const P_NONE: pg_sys::BlockNumber = 0;
/// `P_HIKEY`.
const HIGH_KEY: u16 = 1;
/// `BTP_LEAF`, and of the other flags those of pages that are on their way out.
const LEAF: u16 = 1 << 0;
const IGNORED: u16 = 1 << 2 | 1 << 4;
/// `BT_READ`, which is `BUFFER_LOCK_SHARE`.
const READ: i32 = pg_sys::BUFFER_LOCK_SHARE.cast_signed();
const UNLOCK: i32 = pg_sys::BUFFER_LOCK_UNLOCK.cast_signed();

// Called inside one guard, which turns an ERROR of any of them into a panic.
unsafe extern "C-unwind" {
    fn _bt_mkscankey(index: pg_sys::Relation, tuple: pg_sys::IndexTuple) -> *mut ScanInsert;
    #[cfg(feature = "pg15")]
    fn _bt_search(
        index: pg_sys::Relation,
        key: *mut ScanInsert,
        buffer: *mut pg_sys::Buffer,
        access: i32,
        snapshot: pg_sys::Snapshot,
    ) -> *mut std::ffi::c_void;
    #[cfg(feature = "pg16")]
    fn _bt_search(
        index: pg_sys::Relation,
        heap: pg_sys::Relation,
        key: *mut ScanInsert,
        buffer: *mut pg_sys::Buffer,
        access: i32,
        snapshot: pg_sys::Snapshot,
    ) -> *mut std::ffi::c_void;
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    fn _bt_search(
        index: pg_sys::Relation,
        heap: pg_sys::Relation,
        key: *mut ScanInsert,
        buffer: *mut pg_sys::Buffer,
        access: i32,
    ) -> *mut std::ffi::c_void;
    fn _bt_freestack(stack: *mut std::ffi::c_void);
    fn _bt_compare(index: pg_sys::Relation, key: *mut ScanInsert, page: pg_sys::Page, offset: u16) -> i32;
    fn LockBuffer(buffer: pg_sys::Buffer, mode: i32);
    fn ReleaseBuffer(buffer: pg_sys::Buffer);
}

/// Looks into one index.
#[derive(Debug)]
pub(crate) struct Probe {
    index: pg_sys::Relation,
    #[cfg_attr(feature = "pg15", expect(dead_code, reason = "later versions ask for it"))]
    heap: pg_sys::Relation,
    key: *mut ScanInsert,
    at: Cell<Place>,
}

/// Where the last key would have stood.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The leaf, which is pinned, or none.
    leaf: pg_sys::Buffer,
    /// The first entry that is not below the key, or the one past the last.
    offset: u16,
}

const NOWHERE: Place = Place { leaf: 0, offset: 0 };

/// What a leaf says of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// There is no entry.
    Absent(u16),
    /// There is one, or it cannot be said from here.
    Perhaps,
    /// It is another leaf's.
    Elsewhere,
}

impl Probe {
    /// For a register's index, which is a B-tree.
    ///
    /// # Safety
    /// Both are open, and the current memory context lives as long.
    pub(crate) unsafe fn new(heap: pg_sys::Relation, index: pg_sys::Relation) -> Self {
        // SAFETY: as the caller promises. Without a tuple the key has the functions of all columns and no values yet.
        unsafe {
            let key = guarded(|| _bt_mkscankey(index, ptr::null_mut()));
            (*key).key_size = (*(*index).rd_index).indnkeyatts.into();
            (*key).any_null_keys = false;
            Self { index, heap, key, at: Cell::new(NOWHERE) }
        }
    }

    /// Whether there is certainly no entry. Only of the latest moment: one whose transaction has not ended is an entry.
    ///
    /// # Safety
    /// Inside the (sub)transaction that made this; the values are of the index's types and none is NULL.
    pub(crate) unsafe fn is_absent(&self, values: &[pg_sys::Datum]) -> bool {
        // SAFETY: as the caller promises. Nothing inside the guard has a destructor; pins and locks that an ERROR leaves
        // are given back by the abort that it leads to.
        unsafe {
            for (key, value) in (*self.key).scan_keys.iter_mut().zip(values) {
                key.sk_argument = *value;
                key.sk_flags &= !pg_sys::SK_ISNULL.cast_signed();
            }
            let Place { leaf, offset } = self.at.get();
            let (found, at) = guarded(|| self.look(leaf, offset));
            self.at.set(at);
            matches!(found, Found::Absent(_))
        }
    }

    /// On the leaf that is pinned, if any, or else on the one that the tree leads to, which is pinned then.
    unsafe fn look(&self, mut leaf: pg_sys::Buffer, offset: u16) -> (Found, Place) {
        // SAFETY: as the caller promises.
        unsafe {
            let mut found = Found::Elsewhere;
            if leaf != 0 {
                LockBuffer(leaf, READ);
                found = self.look_beside(pg_sys::BufferGetPage(leaf), offset);
                LockBuffer(leaf, UNLOCK);
            }
            if found == Found::Elsewhere {
                if leaf != 0 {
                    ReleaseBuffer(leaf);
                }
                leaf = self.descend();
                if leaf == 0 {
                    // The tree has no root yet.
                    return (Found::Absent(0), NOWHERE);
                }
                found = self.look_through(pg_sys::BufferGetPage(leaf));
                LockBuffer(leaf, UNLOCK);
            }
            let offset = if let Found::Absent(offset) = found { offset } else { 0 };
            (found, Place { leaf, offset })
        }
    }

    /// The leaf that the key belongs to, pinned and locked.
    unsafe fn descend(&self) -> pg_sys::Buffer {
        let mut leaf = 0;
        // SAFETY: as the callers promise.
        unsafe {
            #[cfg(feature = "pg15")]
            let stack = _bt_search(self.index, self.key, &mut leaf, READ, ptr::null_mut());
            #[cfg(feature = "pg16")]
            let stack = _bt_search(self.index, self.heap, self.key, &mut leaf, READ, ptr::null_mut());
            #[cfg(any(feature = "pg17", feature = "pg18"))]
            let stack = _bt_search(self.index, self.heap, self.key, &mut leaf, READ);
            _bt_freestack(stack);
        }
        leaf
    }

    /// Whether the key is below, at or above an entry.
    unsafe fn compare(&self, page: pg_sys::Page, offset: u16) -> i32 {
        // SAFETY: as the callers promise: the page is locked and has the entry.
        unsafe { _bt_compare(self.index, self.key, page, offset) }
    }

    /// Whether the key stands on a leaf that it may not belong to. Looks beside the place where the last one was first.
    unsafe fn look_beside(&self, page: pg_sys::Page, offset: u16) -> Found {
        // SAFETY: as the callers promise: the page is pinned and locked.
        unsafe {
            let opaque = &*opaque(page);
            if opaque.flags & LEAF == 0 || opaque.flags & IGNORED != 0 {
                return Found::Elsewhere;
            }
            let (first, last) = entries(page, opaque);
            if offset > first && offset <= last + 1 && self.compare(page, offset - 1) > 0 {
                match offset <= last {
                    true if self.compare(page, offset) < 0 => return Found::Absent(offset),
                    true => {}
                    false if opaque.next == P_NONE => return Found::Absent(offset),
                    false => {}
                }
            }
            if first > last || self.compare(page, first) <= 0 {
                return Found::Elsewhere;
            }
            if opaque.next != P_NONE && self.compare(page, HIGH_KEY) > 0 {
                return Found::Elsewhere;
            }
            self.look_through(page)
        }
    }

    /// Whether the key stands on the leaf that it belongs to.
    unsafe fn look_through(&self, page: pg_sys::Page) -> Found {
        // SAFETY: as the callers promise: the page is pinned and locked.
        unsafe {
            let opaque = &*opaque(page);
            let (first, last) = entries(page, opaque);
            let (mut low, mut high) = (first, last + 1);
            while low < high {
                let middle = low + (high - low) / 2;
                if self.compare(page, middle) > 0 {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            // Where the last entry is below the key, and the key is not below the high key, it may stand further right.
            let is_absent = match low <= last {
                true => self.compare(page, low) < 0,
                false => opaque.next == P_NONE || self.compare(page, HIGH_KEY) < 0,
            };
            if is_absent { Found::Absent(low) } else { Found::Perhaps }
        }
    }

    /// Gives back what is pinned.
    ///
    /// # Safety
    /// Inside the (sub)transaction that made this.
    pub(crate) unsafe fn close(self) {
        // SAFETY: as the caller promises.
        unsafe {
            let leaf = self.at.get().leaf;
            if leaf != 0 {
                guarded(|| ReleaseBuffer(leaf));
            }
            pg_sys::pfree(self.key.cast());
        }
    }
}

unsafe fn opaque(page: pg_sys::Page) -> *const PageOpaque {
    // SAFETY: as the callers promise: a page of an index says where its special space begins.
    unsafe { page.add((*page.cast::<pg_sys::PageHeaderData>()).pd_special.into()).cast() }
}

/// The first and the last entry; the first is the greater one if there is none.
unsafe fn entries(page: pg_sys::Page, opaque: &PageOpaque) -> (u16, u16) {
    const HEADER: u16 = std::mem::offset_of!(pg_sys::PageHeaderData, pd_linp) as u16;
    const ITEM: u16 = size_of::<pg_sys::ItemIdData>() as u16;
    // SAFETY: as the callers promise.
    let lower = unsafe { (*page.cast::<pg_sys::PageHeaderData>()).pd_lower };
    let first = if opaque.next == P_NONE { HIGH_KEY } else { HIGH_KEY + 1 };
    (first, lower.saturating_sub(HEADER) / ITEM)
}
