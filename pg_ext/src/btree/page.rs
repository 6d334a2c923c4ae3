//! How a page of a B-tree is laid out (access/nbtree.h), the same in PostgreSQL 15 to 18.

use pgrx::pg_sys;

/// `BTPageOpaqueData`.
#[repr(C)]
struct Opaque {
    previous: pg_sys::BlockNumber,
    next: pg_sys::BlockNumber,
    level: u32,
    flags: u16,
    cycle: u16,
}

/// No block: there is no page on that side.
const P_NONE: pg_sys::BlockNumber = 0;
/// `P_HIKEY`.
pub(super) const HIGH_KEY: pg_sys::OffsetNumber = 1;
/// `BTP_LEAF`, and of the other flags those of pages that are on their way out.
const LEAF: u16 = 1 << 0;
const IGNORED: u16 = 1 << 2 | 1 << 4;
/// `INDEX_ALT_TID_MASK`: on a leaf, the entry has a list of rows.
const ALTERNATIVE: u16 = 0x2000;
/// `BT_OFFSET_MASK`: how many.
const COUNT: u16 = 0x0fff;
/// `LP_DEAD`: nobody sees the row any more.
const DEAD: u32 = 3;

/// A page that is pinned and locked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Page(pub(super) pg_sys::Page);

impl Page {
    fn header(self) -> *const pg_sys::PageHeaderData {
        self.0.cast()
    }

    fn opaque(self) -> *const Opaque {
        // SAFETY: a page of an index says where its special space begins.
        unsafe { self.0.add((*self.header()).pd_special.into()).cast() }
    }

    /// Whether keys may be looked for here.
    ///
    /// # Safety
    /// It is a page of a B-tree, as for all below.
    pub(super) unsafe fn is_leaf(self) -> bool {
        // SAFETY: as the caller promises.
        let flags = unsafe { (*self.opaque()).flags };
        flags & LEAF != 0 && flags & IGNORED == 0
    }

    /// Whether there is none to the right, and so no high key.
    pub(super) unsafe fn is_rightmost(self) -> bool {
        // SAFETY: as the caller promises.
        unsafe { (*self.opaque()).next == P_NONE }
    }

    /// The first and the last entry; the first is the greater one if there is none.
    pub(super) unsafe fn entries(self) -> (pg_sys::OffsetNumber, pg_sys::OffsetNumber) {
        const HEADER: u16 = std::mem::offset_of!(pg_sys::PageHeaderData, pd_linp) as u16;
        const ITEM: u16 = size_of::<pg_sys::ItemIdData>() as u16;
        // SAFETY: as the caller promises.
        let (lower, is_rightmost) = unsafe { ((*self.header()).pd_lower, self.is_rightmost()) };
        let first = if is_rightmost { HIGH_KEY } else { HIGH_KEY + 1 };
        (first, lower.saturating_sub(HEADER) / ITEM)
    }

    /// The rows that an entry of a leaf points to; none if they are known to be gone.
    ///
    /// # Safety
    /// The page has the entry; what is returned is used while it is locked.
    pub(super) unsafe fn rows<'p>(self, offset: pg_sys::OffsetNumber) -> &'p [pg_sys::ItemPointerData] {
        // SAFETY: as the caller promises: an item lies within its page, and so does the list that its head tells of.
        unsafe {
            let items = (&raw const (*self.header()).pd_linp).cast::<pg_sys::ItemIdData>();
            let item = &*items.add(usize::from(offset) - 1);
            if item.lp_flags() == DEAD {
                return &[];
            }
            let entry = self.0.add(item.lp_off() as usize);
            let head = &*entry.cast::<pg_sys::IndexTupleData>();
            if head.t_info & ALTERNATIVE == 0 {
                return std::slice::from_ref(&head.t_tid);
            }
            let start = (u32::from(head.t_tid.ip_blkid.bi_hi) << 16) | u32::from(head.t_tid.ip_blkid.bi_lo);
            std::slice::from_raw_parts(entry.add(start as usize).cast(), usize::from(head.t_tid.ip_posid & COUNT))
        }
    }
}
