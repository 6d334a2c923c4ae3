//! The functions of PostgreSQL that a look-up calls, without a guard around each: whoever calls them has one around all.
//! Those of the access method (access/nbtree.h) are exported, and used by nobody else outside the server.

use pgrx::pg_sys;

/// `BTScanInsertData`, the same in PostgreSQL 15 to 18.
#[repr(C)]
pub(super) struct ScanInsert {
    pub(super) heap_key_space: bool,
    pub(super) all_equal_image: bool,
    pub(super) any_null_keys: bool,
    next_key: bool,
    /// In PostgreSQL 17 and later `backward`. Neither is wanted.
    pivot_search: bool,
    scan_tid: pg_sys::ItemPointer,
    pub(super) key_size: i32,
    pub(super) scan_keys: [pg_sys::ScanKeyData; pg_sys::INDEX_MAX_KEYS as usize],
}

/// `BT_READ`, which is `BUFFER_LOCK_SHARE`.
pub(super) const READ: i32 = pg_sys::BUFFER_LOCK_SHARE.cast_signed();
pub(super) const UNLOCK: i32 = pg_sys::BUFFER_LOCK_UNLOCK.cast_signed();

unsafe extern "C-unwind" {
    pub(super) fn _bt_mkscankey(index: pg_sys::Relation, tuple: pg_sys::IndexTuple) -> *mut ScanInsert;
    pub(super) fn _bt_metaversion(index: pg_sys::Relation, heap_key_space: *mut bool, all_equal_image: *mut bool);
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
    pub(super) fn _bt_compare(
        index: pg_sys::Relation,
        key: *mut ScanInsert,
        page: pg_sys::Page,
        offset: pg_sys::OffsetNumber,
    ) -> i32;
    pub(super) fn LockBuffer(buffer: pg_sys::Buffer, mode: i32);
    pub(super) fn ReleaseBuffer(buffer: pg_sys::Buffer);
    pub(super) fn BufferGetBlockNumber(buffer: pg_sys::Buffer) -> pg_sys::BlockNumber;
    #[cfg(feature = "pg15")]
    fn ReadRecentBuffer(
        file: pg_sys::RelFileNode,
        fork: pg_sys::ForkNumber::Type,
        block: pg_sys::BlockNumber,
        buffer: pg_sys::Buffer,
    ) -> bool;
    #[cfg(not(feature = "pg15"))]
    fn ReadRecentBuffer(
        file: pg_sys::RelFileLocator,
        fork: pg_sys::ForkNumber::Type,
        block: pg_sys::BlockNumber,
        buffer: pg_sys::Buffer,
    ) -> bool;
}

/// The leaf that the key belongs to, pinned and locked; 0 if the tree has no root yet.
///
/// # Safety
/// Inside a guard; the relations are open.
pub(super) unsafe fn descend(heap: pg_sys::Relation, index: pg_sys::Relation, key: *mut ScanInsert) -> pg_sys::Buffer {
    let mut leaf = 0;
    // SAFETY: as the caller promises.
    unsafe {
        #[cfg(feature = "pg15")]
        let (stack, _) = (_bt_search(index, key, &mut leaf, READ, std::ptr::null_mut()), heap);
        #[cfg(feature = "pg16")]
        let stack = _bt_search(index, heap, key, &mut leaf, READ, std::ptr::null_mut());
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        let stack = _bt_search(index, heap, key, &mut leaf, READ);
        _bt_freestack(stack);
    }
    leaf
}

/// Pins a block where it was last seen. `false` if another is there now.
///
/// # Safety
/// Inside a guard; the index is open, and the buffer had this block once.
pub(super) unsafe fn pin(index: pg_sys::Relation, block: pg_sys::BlockNumber, buffer: pg_sys::Buffer) -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        #[cfg(feature = "pg15")]
        let file = (*index).rd_node;
        #[cfg(not(feature = "pg15"))]
        let file = (*index).rd_locator;
        ReadRecentBuffer(file, pg_sys::ForkNumber::MAIN_FORKNUM, block, buffer)
    }
}
