//! Marking a session as replication from one peer, and what such a session remembers.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_void};

use duplex_protocol::record::Position;
use pgrx::iter::TableIterator;
use pgrx::{PgSqlErrorCode, Spi, name, pg_extern, pg_guard, pg_sys};

use crate::apply::batch;
use crate::apply::heard::Heard;
use crate::apply::origin;
use crate::apply::own::with_own_tables;
use crate::apply::park;
use crate::apply::relation::Targets;
use crate::apply::waits::Known;
use crate::backend_local::BackendLocal;
use crate::commits;
use crate::conflict::version::Versions;
use crate::errors::{Failure, OrRaise, Result};
use crate::gucs;
use crate::node::{self, Node};

/// A session that applies one peer's stream.
#[derive(Debug)]
pub(crate) struct Session {
    /// The peer whose stream it is.
    pub(crate) peer: String,
    /// This node's name.
    pub(crate) own: String,
    /// Whether `duplex.peer_registry` knows which take-over of the stream is being applied.
    pub(crate) knows_generation: bool,
    /// How far other streams are known to be applied.
    pub(crate) known: Known,
    /// Reads versions of rows.
    pub(crate) versions: Versions,
    /// The tables that descriptors mean here.
    pub(crate) targets: Targets,
    /// The newest transaction applied.
    pub(crate) position: Position,
    /// What it says of itself.
    pub(crate) heard: Heard,
    /// So many transactions more are applied with care: each change in a subtransaction.
    pub(crate) careful: u32,
}

static SESSION: BackendLocal<RefCell<Option<Session>>> = BackendLocal::new(RefCell::new(None));
static CALLBACKS: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(false));

/// What text in the stream is written under, and what must not disturb applying. Set below permission checks.
const SETTINGS: [(&CStr, &CStr); 15] = [
    (c"session_replication_role", c"replica"),
    (c"synchronous_commit", c"off"),
    // All queries here are small; compiling one takes longer than any takes to run.
    (c"jit", c"off"),
    (c"default_transaction_isolation", c"read committed"),
    (c"default_transaction_read_only", c"off"),
    (c"search_path", c""),
    (c"DateStyle", c"ISO, YMD"),
    (c"IntervalStyle", c"postgres"),
    (c"TimeZone", c"UTC"),
    (c"lc_monetary", c"C"),
    (c"xmloption", c"content"),
    (c"array_nulls", c"on"),
    (c"statement_timeout", c"0"),
    (c"idle_in_transaction_session_timeout", c"0"),
    (c"idle_session_timeout", c"0"),
];

/// Runs `f` on the session's state.
///
/// # Errors
/// 55000 if `duplex.apply_open` was not called, or if this is called from code that apply itself runs.
pub(crate) fn with<R>(f: impl FnOnce(&mut Session) -> Result<R>) -> Result<R> {
    let mut session = SESSION.try_borrow_mut().map_err(|_| {
        Failure::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "this session is in the middle of applying a transaction",
        )
    })?;
    // The setting goes with an aborted transaction, the state here does not.
    match session.as_mut() {
        Some(session) if gucs::origin().is_some_and(|peer| peer == session.peer) => f(session),
        _ => Err(Failure::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "this session does not apply any peer's stream",
        )
        .hint("Call duplex.apply_open('peer') first, in a transaction that commits.")),
    }
}

/// `duplex.apply_open(peer)`: marks this session as replication from that peer.
#[pg_extern(sql = "")]
fn apply_open(
    peer: &str,
) -> TableIterator<
    'static,
    (
        name!(next_offset, i64),
        name!(generation, i64),
        name!(hello_offset, Option<i64>),
        name!(node_id, Option<pgrx::Uuid>),
    ),
> {
    let known = open(peer).or_raise();
    TableIterator::once((origin::next_offset().cast_signed(), known.generation, known.hello_offset, known.node_id))
}

/// What `duplex.peer_registry` knows of a peer.
#[derive(Debug, Default)]
struct Peer {
    generation: i64,
    lsn: i64,
    xid: i64,
    node_id: Option<pgrx::Uuid>,
    hello_offset: Option<i64>,
    /// Where an operator said that the stream goes on.
    start_offset: Option<i64>,
}

fn open(peer: &str) -> Result<Peer> {
    node::refuse_standby()?;
    // SAFETY: a global that the server sets at its start.
    unsafe {
        if !pg_sys::track_commit_timestamp {
            return Err(Failure::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "pg_duplex needs commit timestamps, and track_commit_timestamp is off",
            )
            .hint("Run \"alter system set track_commit_timestamp = on\" and restart the server."));
        }
    }
    let (own, known) = with_own_tables(|| -> Result<_> {
        let own = Node::load()?.name;
        // Its own stream: what a database that was promoted had lost is brought back from there.
        let known = if own == peer { Peer::default() } else { read_peer(peer)? };
        Ok((own, known))
    })?;
    let mut session = SESSION.try_borrow_mut().map_err(|_| already_marked(peer))?;
    if let Some(other) = session.as_ref().filter(|session| session.peer != peer)
        && gucs::is_replication()
    {
        return Err(already_marked(&other.peer));
    }
    *session = None;
    mark(peer, known.start_offset)?;
    commits::join();
    *session = Some(Session {
        peer: peer.to_owned(),
        knows_generation: known.generation > 0 || own == peer,
        known: Known::new(),
        versions: Versions::new(own.clone()),
        own,
        targets: Targets::default(),
        position: Position { lsn: known.lsn.cast_unsigned(), xid: known.xid.cast_unsigned() },
        heard: Heard::default(),
        careful: 0,
    });
    Ok(known)
}

fn already_marked(peer: &str) -> Failure {
    Failure::new(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("this session applies the stream of node \"{peer}\""),
    )
    .hint("A session is marked for good; open another connection.")
}

/// Sets up the replication origin and the settings.
fn mark(peer: &str, start_offset: Option<i64>) -> Result<()> {
    let unknown = || unknown_peer(peer);
    let origin_name = CString::new(node::origin_name(peer)).map_err(|_| unknown())?;
    let peer_name = CString::new(peer).map_err(|_| unknown())?;
    register_callbacks();
    // SAFETY: inside a transaction; names are NUL-terminated; an origin of an earlier call that was rolled back is
    // given up before another is taken.
    unsafe {
        if pg_sys::replorigin_session_origin != 0 {
            pg_sys::replorigin_session_origin = 0;
            pg_sys::replorigin_session_reset();
        }
        let mut id = pg_sys::replorigin_by_name(origin_name.as_ptr(), true);
        if id == 0 {
            id = pg_sys::replorigin_create(origin_name.as_ptr());
        }
        if let Some(offset) = start_offset {
            // Forwards or backwards, and at once: should this transaction not commit, the next one does it again.
            pg_sys::replorigin_advance(id, offset.cast_unsigned(), 0, true, true);
            started(peer);
        }
        #[cfg(feature = "pg15")]
        pg_sys::replorigin_session_setup(id);
        #[cfg(not(feature = "pg15"))]
        pg_sys::replorigin_session_setup(id, 0);
        pg_sys::replorigin_session_origin = id;
    }
    origin::forget();
    for (name, value) in SETTINGS {
        set(name, value);
    }
    // Versions before 17 know no such setting to be left on.
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    set(c"transaction_timeout", c"0");
    set(c"duplex.origin", &peer_name);
    Ok(())
}

/// The stream goes on where an operator said.
fn started(peer: &str) {
    let cleared = with_own_tables(|| {
        Spi::run_with_args("update duplex.peer_registry set start_offset = null where name = $1", &[peer.into()])
    });
    if let Err(err) = cleared {
        Failure::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, err.to_string()).raise();
    }
}

fn set(name: &CStr, value: &CStr) {
    // SAFETY: both are NUL-terminated and copied by the callee.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
        );
    }
}

fn unknown_peer(peer: &str) -> Failure {
    Failure::new(PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT, format!("node \"{peer}\" is not a peer"))
        .hint("Add it with duplex.add_peer; the view duplex.peers lists them.")
}

fn read_peer(peer: &str) -> Result<Peer> {
    Spi::connect(|client| {
        let rows = client.select(
            "select generation, last_lsn, last_xid, node_id, hello_offset, start_offset \
               from duplex.peer_registry where name = $1",
            None,
            &[peer.into()],
        )?;
        if rows.is_empty() {
            return Ok(None);
        }
        let row = rows.first();
        Ok(Some(Peer {
            generation: row.get(1)?.unwrap_or(0),
            lsn: row.get(2)?.unwrap_or(0),
            xid: row.get(3)?.unwrap_or(0),
            node_id: row.get(4)?,
            hello_offset: row.get(5)?,
            start_offset: row.get(6)?,
        }))
    })
    .map_err(|err: pgrx::spi::Error| Failure::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, err.to_string()))?
    .ok_or_else(|| unknown_peer(peer))
}

/// `duplex.apply_position()`: the next offset to fetch in this marked session.
#[pg_extern(sql = "")]
fn apply_position() -> i64 {
    with(|_| Ok(origin::next_offset())).or_raise().cast_signed()
}

/// Once a backend: what must be done and undone at a transaction's end.
fn register_callbacks() {
    if CALLBACKS.replace(true) {
        return;
    }
    park::init();
    // SAFETY: the callbacks live as long as the library, which is never unloaded.
    unsafe {
        pg_sys::RegisterXactCallback(Some(at_transaction_event), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(at_subtransaction_end), std::ptr::null_mut());
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_transaction_event(event: pg_sys::XactEvent::Type, _arg: *mut c_void) {
    use pg_sys::XactEvent::*;
    match event {
        // An ERROR is allowed here: it turns the commit into an abort.
        XACT_EVENT_PRE_COMMIT => origin::before_commit(),
        XACT_EVENT_PRE_PREPARE => origin::before_prepare().or_raise(),
        XACT_EVENT_COMMIT => {
            // Before the next line: it forgets what the server has just written down.
            commits::note();
            origin::committed();
            batch::forget_chunks();
        }
        XACT_EVENT_ABORT | XACT_EVENT_PREPARE => {
            origin::forget();
            batch::forget_chunks();
        }
        _ => {}
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_subtransaction_end(
    event: pg_sys::SubXactEvent::Type,
    _id: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _arg: *mut c_void,
) {
    // Chunks that were applied inside are gone, so the rest must not be applied, nor counted as applied.
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        origin::forget();
        batch::forget_chunks();
    }
}
