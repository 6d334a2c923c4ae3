//! Who commits captured changes while the drain rests rings for it.
//!
//! Looking at the queue each millisecond is the cheapest way to see what comes while much comes: a writer pays nothing for it. In
//! a database where little is written it is most of what replication costs. So a drain that has seen nothing for a while says
//! here that it rests, and the next one to commit sets its latch.
//!
//! A ring is a favour, not a promise: a session may lack the memory for it, and COMMIT PREPARED runs in a session that captured
//! nothing. So a drain that rests looks by itself now and then.

use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering, fence};

use pgrx::pg_sys;

use crate::backend_local::BackendLocal;
use crate::shared_memory::{self, Shared};

/// The doors of a server. Databases that share one take the bell from each other, and then look by themselves.
const DOORS: usize = 64;

#[derive(Debug)]
struct Doors([Door; DOORS]);

// SAFETY: null pointers.
unsafe impl Shared for Doors {}

/// The session that rests behind it, if one does.
type Door = AtomicPtr<pg_sys::PGPROC>;

/// What a session has that knows no doors: nobody rests there.
static NOBODY: Door = AtomicPtr::new(null_mut());

/// This database's.
#[unsafe(link_section = ".data.duplex_hot")]
static DOOR: BackendLocal<Cell<&'static Door>> = BackendLocal::new(Cell::new(&NOBODY));
#[unsafe(link_section = ".data.duplex_hot")]
static LOOKED_FOR: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(false));

/// Finds this database's door. Called where an ERROR would do no harm.
#[inline]
pub(crate) fn find() {
    if !LOOKED_FOR.get() {
        look_for();
    }
}

#[cold]
fn look_for() {
    LOOKED_FOR.set(true);
    if let Some(Doors(doors)) = shared_memory::find(c"pg_duplex doorbells") {
        // SAFETY: a plain read of what never changes in a session.
        let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
        DOOR.set(&doors[database as usize % DOORS]);
    }
}

/// This session has just committed what it had written to the queue. Must not fail.
#[inline]
pub(crate) fn ring() {
    let door = DOOR.get();
    // Either the drain, which says that it rests and then looks once more, sees the commit, or this sees that it rests.
    fence(Ordering::SeqCst);
    if !door.load(Ordering::Relaxed).is_null() {
        wake(door);
    }
}

#[cold]
fn wake(door: &Door) {
    let resting = door.swap(null_mut(), Ordering::Acquire);
    if !resting.is_null() {
        // SAFETY: one of the server's own array of sessions, which is there as long as the server. If the drain has ended since,
        // its place is free, or another session's, which looks why it was woken and rests again.
        unsafe { pg_sys::SetLatch(&raw mut (*resting).procLatch) };
    }
}

/// From now on the next commit sets this session's latch. Returns whether that is news: what came before has not rung. Nobody
/// has to take it back: a latch that is set for nothing costs one look.
pub(super) fn rest() -> bool {
    find();
    let door = DOOR.get();
    // SAFETY: a plain read of what never changes in a session.
    let this = unsafe { pg_sys::MyProc };
    if std::ptr::eq(door, &NOBODY) || door.load(Ordering::Relaxed) == this {
        return false;
    }
    door.store(this, Ordering::Release);
    fence(Ordering::SeqCst);
    true
}
