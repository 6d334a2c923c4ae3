//! The extension `pg_duplex`: captures the changes of enabled tables into a queue, hands the queue to the relay, and
//! applies what peers' relays bring.
//!
//! | module | subject |
//! |---|---|
//! | `capture` | row triggers → a buffer in this backend → the queue, once a transaction |
//! | `queue` | the queue tables: appending, draining by snapshots, rotating |
//! | `apply` | a peer's transactions, written at the executor's level |
//! | `conflict` | which of two writes of a row stays |
//! | `btree` | looking a key up in an index, mostly without a scan |
//! | `gucs`, `errors`, `node` | settings; errors as PostgreSQL reports them; who this node and its peers are |
//! | `backend_local` | variables of a backend |
//! | `hot` | what each short transaction runs through, kept together |
//! | `commits` | when and from where transactions were committed |
//! | `shared_memory` | what sessions of a server have in common |
//! | `slot` | reading the values of a slot |
//!
//! The SQL side is written by hand in `/sql`; a test compares its C declarations with the functions here.

#[cfg(not(panic = "unwind"))]
compile_error!("a panic must unwind into PostgreSQL's error handling: build with panic = \"unwind\"");
#[cfg(not(target_endian = "little"))]
compile_error!("the raw images of numeric and jsonb in the stream are little-endian");

mod apply;
mod backend_local;
mod btree;
mod capture;
mod commits;
mod conflict;
mod errors;
mod gucs;
mod hot;
mod node;
mod queue;
mod shared_memory;
mod slot;

pgrx::pg_module_magic!();

/// Called once, when the library is loaded: in a backend at its first captured row or the first function called, or in the
/// postmaster, whose backends begin with what is set up here, if `shared_preload_libraries` says so.
#[pgrx::pg_guard]
pub extern "C-unwind" fn _PG_init() {
    gucs::init();
    queue::init();
    capture::init();
}
