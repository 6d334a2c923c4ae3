//! Rows of a register that are written many at a time: one call for the heap and one record of WAL for a page of them.

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary as guarded;

/// So many rows are worth a call.
const FULL: usize = 256;

/// Rows that wait to be written.
///
/// They live in a memory context of their own below that of the current (sub)transaction, so an abort takes them along
/// without a call; then this must only be dropped.
#[derive(Debug)]
pub(crate) struct Batch {
    context: pg_sys::MemoryContext,
    descriptor: pg_sys::TupleDesc,
    /// Those in front hold rows; the others are there for later ones.
    slots: Vec<*mut pg_sys::TupleTableSlot>,
    rows: usize,
}

impl Batch {
    /// An empty one for rows of this layout.
    ///
    /// # Safety
    /// Inside a transaction.
    pub(crate) unsafe fn new(layout: pg_sys::TupleDesc) -> Self {
        // SAFETY: as the caller promises. The copy is not counted by its references, so no slot has to be closed.
        unsafe {
            let context = pg_sys::AllocSetContextCreateInternal(
                pg_sys::CurTransactionContext,
                c"pg_duplex register rows".as_ptr(),
                0,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            );
            let caller = pg_sys::MemoryContextSwitchTo(context);
            let descriptor = pg_sys::CreateTupleDescCopy(layout);
            pg_sys::MemoryContextSwitchTo(caller);
            Self { context, descriptor, slots: Vec::new(), rows: 0 }
        }
    }

    /// Whether it should be written now.
    pub(crate) fn is_full(&self) -> bool {
        self.rows >= FULL
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Adds a copy of a row.
    ///
    /// # Safety
    /// In the (sub)transaction that the batch was made in; the values are of the layout's types.
    pub(crate) unsafe fn add(&mut self, values: &mut [pg_sys::Datum], nulls: &mut [bool]) {
        // SAFETY: as the caller promises; a slot frees its row when it is cleared.
        unsafe {
            let caller = pg_sys::MemoryContextSwitchTo(self.context);
            if self.rows == self.slots.len() {
                self.slots.push(pg_sys::MakeSingleTupleTableSlot(self.descriptor, &raw const pg_sys::TTSOpsHeapTuple));
            }
            let tuple = pg_sys::heap_form_tuple(self.descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            pg_sys::ExecStoreHeapTuple(tuple, self.slots[self.rows], true);
            pg_sys::MemoryContextSwitchTo(caller);
        }
        self.rows += 1;
    }

    /// The rows' slots.
    pub(crate) fn rows(&mut self) -> &mut [*mut pg_sys::TupleTableSlot] {
        &mut self.slots[..self.rows]
    }

    /// Forgets the rows, which are written.
    ///
    /// # Safety
    /// As [`Self::add`].
    pub(crate) unsafe fn clear(&mut self) {
        for &slot in &self.slots[..self.rows] {
            // SAFETY: as the caller promises; the guard turns an ERROR into a panic.
            unsafe {
                let clear = (*(*slot).tts_ops).clear.expect("a slot can be cleared");
                guarded(|| clear(slot));
            }
        }
        self.rows = 0;
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// As [`Self::add`].
    pub(crate) unsafe fn free(self) {
        // SAFETY: the context is this batch's own.
        unsafe { pg_sys::MemoryContextDelete(self.context) };
    }
}
