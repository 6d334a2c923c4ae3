//! Changes that wait until they can be applied: those that failed, and later ones of the same keys.
//!
//! A change is parked in the transaction of the others, so that it is parked exactly once, with the offset. It leaves in
//! a transaction of its own that carries the version of the one it came from and does not touch the offset. Of those
//! of one key only the first is tried; what comes behind it, from whichever peer, waits.
//!
//! Sessions that apply keep in memory of which tables something is parked. A trigger on `duplex.parked` announces
//! changes by PostgreSQL's own invalidation, which every transaction takes in when it begins.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use duplex_protocol::entry::{Entry, Relation};
use duplex_protocol::record::Position;
use duplex_protocol::stream::EntryReader;
use duplex_protocol::version::Version;
use pgrx::datum::{DatumWithOid, TimestampWithTimeZone};
use pgrx::{PgSqlErrorCode, Spi, pg_extern, pg_guard, pg_sys};

use crate::apply::careful::{self, Change, internal};
use crate::apply::origin;
use crate::apply::own::with_own_tables;
use crate::apply::session::{self, Session};
use crate::apply::subtransaction;
use crate::apply::transaction::{Progress, Source, Writer};
use crate::backend_local::BackendLocal;
use crate::errors::{Failure, OrRaise as _, Result};

/// Counts what was heard of changes to `duplex.parked`.
static HEARD: BackendLocal<Cell<u64>> = BackendLocal::new(Cell::new(1));
/// The count when it was last read.
static READ: BackendLocal<Cell<u64>> = BackendLocal::new(Cell::new(0));
static EMPTY: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(true));
static TABLES: BackendLocal<RefCell<BTreeSet<String>>> = BackendLocal::new(RefCell::new(BTreeSet::new()));
static RELID: BackendLocal<Cell<pg_sys::Oid>> = BackendLocal::new(Cell::new(pg_sys::InvalidOid));

/// Listens; called once in a backend that applies.
pub(crate) fn init() {
    // SAFETY: the callback lives as long as the library, which is never unloaded.
    unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(at_invalidation), pg_sys::Datum::from(0)) };
}

#[pg_guard]
unsafe extern "C-unwind" fn at_invalidation(_arg: pg_sys::Datum, relid: pg_sys::Oid) {
    if relid == pg_sys::InvalidOid || relid == RELID.get() {
        HEARD.set(HEARD.get() + 1);
    }
}

/// Says that the function below follows PostgreSQL's version-1 calling convention.
static VERSION_1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };

/// The calling convention of [`duplex_parked_has_changed`].
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_duplex_parked_has_changed() -> &'static pg_sys::Pg_finfo_record {
    &VERSION_1
}

/// `duplex.parked_has_changed()`: the trigger on `duplex.parked`.
///
/// # Safety
/// PostgreSQL's function manager calls it.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn duplex_parked_has_changed(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the call is valid, so its context is null or a node, and a TriggerData node is what it says. The message
    // goes out with the commit.
    unsafe {
        let context = (*call).context;
        if !context.is_null() && (*context).type_ == pg_sys::NodeTag::T_TriggerData {
            pg_sys::CacheInvalidateRelcache((*context.cast::<pg_sys::TriggerData>()).tg_relation);
        }
    }
    pg_sys::Datum::from(0)
}

/// Whether anything is parked at all. Costs two loads as long as nothing changes.
#[inline]
pub(crate) fn any() -> bool {
    if READ.get() != HEARD.get() {
        read();
    }
    !EMPTY.get()
}

/// Whether something of that table is parked.
pub(crate) fn holds(table: &str) -> bool {
    any() && TABLES.with_borrow(|tables| tables.contains(table))
}

#[cold]
fn read() {
    let heard = HEARD.get();
    // SAFETY: catalogue look-ups inside a transaction, with strings that live forever.
    RELID.set(unsafe {
        let schema = pg_sys::get_namespace_oid(c"duplex".as_ptr(), false);
        pg_sys::get_relname_relid(c"parked".as_ptr(), schema)
    });
    let tables = with_own_tables(|| {
        // As a writer, with a snapshot of its own: the transaction's may be older than what was heard.
        Spi::connect_mut(|client| {
            let rows = client.update("select distinct table_name from duplex.parked", None, &[])?;
            rows.map(|row| Ok(row.get::<String>(1)?.unwrap_or_default()))
                .collect::<std::result::Result<BTreeSet<_>, pgrx::spi::Error>>()
        })
    });
    let tables = tables.map_err(internal).or_raise();
    EMPTY.set(tables.is_empty());
    TABLES.set(tables);
    READ.set(heard);
}

/// Whether an earlier change of the same key is parked.
pub(crate) fn is_behind(change: &Change) -> Result<bool> {
    if !holds(&change.table) {
        return Ok(false);
    }
    let sql = "select exists (select from duplex.parked where table_name = $1 and key = $2::jsonb)";
    let arguments = [change.table.as_str().into(), change.key.as_deref().into()];
    let found =
        with_own_tables(|| Spi::connect_mut(|client| client.update(sql, None, &arguments)?.first().get_one::<bool>()));
    Ok(found.map_err(internal)? == Some(true))
}

/// Whether changes of that table are parked when they fail.
pub(crate) fn is_policy_of(table: &str) -> Result<bool> {
    let sql = "select coalesce((select t.error_policy from duplex.table_registry t where t.relid = to_regclass($1)), \
                               n.error_policy) = 'park' from duplex.node n";
    let found = with_own_tables(|| Spi::get_one_with_args::<bool>(sql, &[table.into()]));
    Ok(found.map_err(internal)? == Some(true))
}

/// Adds a frame to a body of frames.
pub(crate) fn keep_frame(frame: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(frame.len() as u32).to_le_bytes());
    out.extend_from_slice(frame);
}

/// Parks a change: one that failed, or one that has to wait behind another.
pub(crate) fn keep(writer: &mut Writer<'_>, frame: &[u8], change: &Change, failure: Option<&Failure>) -> Result<()> {
    let waits = Failure::new(PgSqlErrorCode::ERRCODE_OBJECT_IN_USE, "an earlier change of the same key is parked");
    let error = failure.unwrap_or(&waits);
    let source = writer.progress.source;
    let ordinal = writer.progress.changes;
    let id = careful::record(&writer.session.peer, source, ordinal, change, error, Some("parked"))?;
    let mut body = Vec::new();
    keep_frame(writer.progress.descriptor(Relation::id_in_frame(frame)?)?, &mut body);
    body.extend_from_slice(&writer.progress.origin_frames);
    keep_frame(frame, &mut body);
    let commit_ts = TimestampWithTimeZone::try_from(writer.version.commit_ts).map_err(|_| {
        Failure::new(PgSqlErrorCode::ERRCODE_DATA_CORRUPTED, "commit time of a transaction is out of range")
    })?;
    let sql = "insert into duplex.parked (error_id, peer, topic_offset, xid, ordinal, commit_ts, operation, table_name, \
                                          key, change, waits, due_at, sqlstate, message, detail, hint) \
               values ($1, $2, $3, $4, $5, $6, $7, $8, $9::jsonb, $10, $11, \
                       clock_timestamp() + case when $11 then interval '0' else interval '1 second' end, \
                       $12, $13, $14, $15)";
    let arguments: [DatumWithOid<'_>; 15] = [
        id.into(),
        writer.session.peer.as_str().into(),
        source.offset.cast_signed().into(),
        source.position.xid.cast_signed().into(),
        ordinal.cast_signed().into(),
        commit_ts.into(),
        change.operation.as_str().into(),
        change.table.as_str().into(),
        change.key.as_deref().into(),
        body.into(),
        failure.is_none().into(),
        error.sqlstate().into(),
        error.message.as_str().into(),
        error.detail.as_deref().into(),
        error.hint.as_deref().into(),
    ];
    with_own_tables(|| Spi::run_with_args(sql, &arguments)).map_err(internal)
}

/// A truncate hides every row older than itself, and so every parked change.
pub(crate) fn forget_truncated(tables: &[String], writer: &Writer<'_>) -> Result<()> {
    let sql = "with gone as (delete from duplex.parked \
                              where table_name = any ($1) \
                                and (commit_ts, peer collate \"C\") <= ($2, $3 collate \"C\") returning error_id) \
               update duplex.apply_errors e set resolution = 'truncated', resolved_at = now() \
                 from gone where e.id = gone.error_id";
    let commit_ts = TimestampWithTimeZone::try_from(writer.version.commit_ts).ok();
    let arguments = [tables.to_vec().into(), commit_ts.into(), writer.version.origin.as_str().into()];
    with_own_tables(|| Spi::run_with_args(sql, &arguments)).map_err(internal)
}

/// A parked change whose turn it is.
#[derive(Debug)]
struct Due {
    id: i64,
    error_id: i64,
    source: Source,
    commit_ts: i64,
    body: Vec<u8>,
}

/// `duplex.apply_parked()`: tries one parked change of this session's peer. None if none is due.
#[pg_extern(sql = "")]
fn apply_parked() -> Option<bool> {
    session::with(|session| {
        if !any() {
            return Ok(None);
        }
        let Some(due) = take_due(&session.peer)? else { return Ok(None) };
        // SAFETY: inside a transaction.
        match unsafe { subtransaction::run(|| retry(session, &due)) } {
            Ok(()) => {
                leave(&due)?;
                origin::stamp_version(due.commit_ts);
                Ok(Some(true))
            }
            Err(failure) => {
                put_off(&due, &failure)?;
                Ok(Some(false))
            }
        }
    })
    .or_raise()
}

fn take_due(peer: &str) -> Result<Option<Due>> {
    let sql = "select p.id, p.error_id, p.topic_offset, p.xid, p.change, \
                      (extract(epoch from p.commit_ts - '2000-01-01 00:00:00+00') * 1000000)::int8 \
                 from duplex.parked p \
                where p.peer = $1 and p.due_at <= clock_timestamp() \
                  and not exists (select from duplex.parked q \
                                   where q.table_name = p.table_name and q.key = p.key and q.id < p.id) \
                order by p.id limit 1 for update of p skip locked";
    with_own_tables(|| {
        Spi::connect_mut(|client| {
            let rows = client.update(sql, None, &[peer.into()])?;
            if rows.is_empty() {
                return Ok(None);
            }
            let row = rows.first();
            let number = |column| Ok::<_, pgrx::spi::Error>(row.get::<i64>(column)?.unwrap_or(0));
            Ok(Some(Due {
                id: number(1)?,
                error_id: number(2)?,
                source: Source {
                    offset: number(3)?.cast_unsigned(),
                    position: Position { lsn: 0, xid: number(4)?.cast_unsigned() },
                },
                body: row.get::<Vec<u8>>(5)?.unwrap_or_default(),
                commit_ts: number(6)?,
            }))
        })
    })
    .map_err(internal)
}

fn retry(session: &mut Session, due: &Due) -> Result<()> {
    let version = Version { commit_ts: due.commit_ts, origin: session.peer.clone() };
    let mut progress = Progress::of(due.source);
    let mut reader = EntryReader::default();
    reader.feed_kept(&due.body);
    // SAFETY: inside a transaction; after an error the writer is only dropped.
    let mut writer = unsafe { Writer::begin(session, &mut progress, version) };
    while let Some(frame) = reader.next_frame() {
        if Entry::is_change(frame) {
            writer.progress.changes += 1;
        }
        writer.entry(frame)?;
    }
    reader.finish()?;
    writer.finish(true)
}

fn leave(due: &Due) -> Result<()> {
    let sql = "with gone as (delete from duplex.parked where id = $1) \
               update duplex.apply_errors set resolution = 'applied', resolved_at = now() where id = $2";
    with_own_tables(|| Spi::run_with_args(sql, &[due.id.into(), due.error_id.into()])).map_err(internal)
}

/// Tried again in twice the time, up to five minutes.
fn put_off(due: &Due, failure: &Failure) -> Result<()> {
    let sql = "update duplex.parked \
                  set attempts = attempts + 1, waits = false, \
                      due_at = clock_timestamp() + least(interval '1 second' * 2 ^ least(attempts, 10), interval '5 minutes'), \
                      sqlstate = $2, message = $3, detail = $4, hint = $5 \
                where id = $1";
    let arguments = [
        due.id.into(),
        failure.sqlstate().into(),
        failure.message.as_str().into(),
        failure.detail.as_deref().into(),
        failure.hint.as_deref().into(),
    ];
    with_own_tables(|| Spi::run_with_args(sql, &arguments)).map_err(internal)
}
