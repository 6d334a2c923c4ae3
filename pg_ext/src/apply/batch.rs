//! Records as the relay hands them over: whole transactions, each committed for itself, or the chunks of one inside a
//! transaction that the relay began.

use std::cell::RefCell;

use duplex_protocol::record::{Header, Hello, Kind, Position, Record};
use duplex_protocol::stream::EntryReader;
use duplex_protocol::version::Version;
use pgrx::{Array, PgSqlErrorCode, Spi, check_for_interrupts, pg_extern, pg_sys};

use crate::apply::heard;
use crate::apply::origin;
use crate::apply::own::with_own_tables;
use crate::apply::session::{self, Session};
use crate::apply::transaction::{Progress, Source, Writer};
use crate::apply::waits;
use crate::backend_local::BackendLocal;
use crate::errors::{Failure, OrRaise, Result};

/// A transaction of several chunks that is being applied.
#[derive(Debug)]
struct Chunks {
    position: Position,
    next_chunk: u32,
    reader: EntryReader,
    progress: Progress,
}

// Taken out while a chunk is applied: an error leaves nothing behind, so the rest is refused.
static CHUNKS: BackendLocal<RefCell<Option<Chunks>>> = BackendLocal::new(RefCell::new(None));

/// Forgets a transaction that was being applied chunk by chunk; called at the end of each transaction.
pub(crate) fn forget_chunks() {
    drop(CHUNKS.take());
}

/// `call duplex.apply_batch(records, offsets)`: applies whole transactions, hellos and heartbeats, each of them committed
/// together with its offset (of heartbeats not all: see [`heard`]). An error ends the batch; what came before stays.
#[pg_extern(sql = "")]
fn apply_batch(records: Option<Array<'_, &[u8]>>, offsets: Option<Array<'_, i64>>, fcinfo: pg_sys::FunctionCallInfo) {
    // SAFETY: the server passes a valid structure.
    if !unsafe { may_commit(fcinfo) } {
        Failure::new(
            PgSqlErrorCode::ERRCODE_INVALID_TRANSACTION_TERMINATION,
            "duplex.apply_batch commits, and cannot be called inside a transaction block",
        )
        .raise();
    }
    // A procedure cannot be strict.
    let (Some(records), Some(offsets)) = (records, offsets) else {
        Failure::new(PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED, "neither records nor offsets may be null").raise()
    };
    if records.len() != offsets.len() {
        Failure::new(PgSqlErrorCode::ERRCODE_ARRAY_ELEMENT_ERROR, "there must be one offset for each record").raise();
    }
    session::with(|session| {
        // SAFETY: paired with the finish below; after an error the server cleans up.
        unsafe { pg_sys::SPI_connect_ext(pg_sys::SPI_OPT_NONATOMIC.cast_signed()) };
        let mut reader = EntryReader::default();
        for (record, offset) in records.iter().zip(offsets.iter()) {
            let (Some(record), Some(offset)) = (record, offset.and_then(|offset| u64::try_from(offset).ok())) else {
                return Err(Failure::new(PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED, "record without an offset"));
            };
            check_for_interrupts!();
            apply_record(session, &mut reader, record, offset)?;
        }
        // SAFETY: connected above.
        unsafe { pg_sys::SPI_finish() };
        Ok(())
    })
    .or_raise();
}

/// Whether this is a CALL that may commit inside.
unsafe fn may_commit(fcinfo: pg_sys::FunctionCallInfo) -> bool {
    // SAFETY: the context is null or a node, and of the type that its tag says.
    unsafe {
        let context = (*fcinfo).context;
        !context.is_null()
            && (*context).type_ == pg_sys::NodeTag::T_CallContext
            && !(*context.cast::<pg_sys::CallContext>()).atomic
    }
}

fn apply_record(session: &mut Session, reader: &mut EntryReader, bytes: &[u8], offset: u64) -> Result<()> {
    let record = Record::decode(bytes)?;
    check_sender(session, &record.header)?;
    if offset < origin::next_offset() {
        return Ok(());
    }
    match record.header.kind {
        Kind::Hello => greet(session, &record.header, &Hello::decode(record.body)?, offset)?,
        Kind::Heartbeat => {
            if !heard::take(session, &record.header, offset)? {
                return Ok(());
            }
        }
        Kind::Transaction => {
            if record.header.chunk != 0 || !record.header.last {
                return Err(Failure::new(
                    PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                    "a transaction of several chunks is applied with duplex.apply_chunk",
                ));
            }
            wait(session, &record.header)?;
            reader.feed(&record)?;
            let mut progress = Progress::of(Source { offset, position: record.header.position });
            // SAFETY: inside the transaction that the server or the last commit began.
            let mut writer = unsafe { Writer::begin(session, &mut progress, version(&record.header)) };
            writer.apply(reader)?;
            reader.finish()?;
            writer.finish(true)?;
            applied(session, &record.header)?;
        }
    }
    commit(offset, record.header.commit_ts);
    Ok(())
}

/// Takes note of a transaction that is about to be committed.
///
/// Where an operator has said that a stream goes on, no hello has told of the take-over to which its records belong. The
/// first transaction does, so that a topic which is made anew later is known for another one. It does so last: the peer's
/// row, which it locks, is wanted by whoever reports or pauses the stream.
fn applied(session: &mut Session, header: &Header) -> Result<()> {
    session.position = header.position;
    if session.knows_generation {
        return Ok(());
    }
    let sql = "update duplex.peer_registry set generation = $2 where name = $1 and generation = 0";
    let arguments = [session.peer.as_str().into(), header.generation.cast_signed().into()];
    with_own_tables(|| Spi::run_with_args(sql, &arguments))
        .map_err(|err| Failure::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, err.to_string()))?;
    // Should this transaction not commit, the next session begins without it again.
    session.knows_generation = true;
    Ok(())
}

/// Commits what was written together with the offset; a transaction that wrote nothing too, or its offset would be lost.
fn commit(offset: u64, commit_ts: i64) {
    origin::stamp(offset, commit_ts);
    // SAFETY: in a connection that may commit, with no snapshot of ours left.
    unsafe {
        pg_sys::GetCurrentTransactionId();
        pg_sys::SPI_commit();
    }
}

/// `duplex.apply_chunk(record, offset)`: applies one chunk of a transaction inside the caller's. The last one makes the
/// caller's commit advance the stream's offset.
#[pg_extern(sql = "")]
fn apply_chunk(record: &[u8], offset: i64) {
    session::with(|session| {
        // SAFETY: a plain call.
        if !unsafe { pg_sys::IsTransactionBlock() } {
            return Err(Failure::new(
                PgSqlErrorCode::ERRCODE_NO_ACTIVE_SQL_TRANSACTION,
                "duplex.apply_chunk must be called inside a transaction block",
            ));
        }
        let offset = u64::try_from(offset)
            .map_err(|_| Failure::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, "offset is negative"))?;
        chunk(session, &Record::decode(record)?, offset)
    })
    .or_raise();
}

fn chunk(session: &mut Session, record: &Record<'_>, offset: u64) -> Result<()> {
    let header = &record.header;
    check_sender(session, header)?;
    if offset < origin::next_offset() {
        return Ok(());
    }
    let mut chunks = match CHUNKS.take() {
        None if header.chunk == 0 && header.kind == Kind::Transaction => {
            wait(session, header)?;
            Chunks {
                position: header.position,
                next_chunk: 0,
                reader: EntryReader::default(),
                progress: Progress::of(Source { offset, position: header.position }),
            }
        }
        Some(chunks) if chunks.position == header.position && chunks.next_chunk == header.chunk => chunks,
        _ => {
            return Err(Failure::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("chunk {} of a transaction does not follow what was applied before", header.chunk),
            )
            .hint("Roll back and begin with the transaction's first chunk."));
        }
    };
    chunks.reader.feed(record)?;
    // SAFETY: inside the caller's transaction.
    let mut writer = unsafe { Writer::begin(session, &mut chunks.progress, version(header)) };
    writer.apply(&mut chunks.reader)?;
    if header.last {
        chunks.reader.finish()?;
    }
    writer.finish(header.last)?;
    if header.last {
        applied(session, header)?;
        origin::stamp(offset, header.commit_ts);
        // SAFETY: inside a transaction. The offset is recorded with an id only.
        unsafe { pg_sys::GetCurrentTransactionId() };
    } else {
        chunks.next_chunk += 1;
        CHUNKS.set(Some(chunks));
    }
    Ok(())
}

fn version(header: &Header) -> Version {
    Version { commit_ts: header.commit_ts, origin: header.node.clone() }
}

fn wait(session: &mut Session, header: &Header) -> Result<()> {
    waits::clock(header, &mut session.heard)?;
    if session.peer == session.own {
        // What this node once had and lost again: the others' changes that it had seen come back beside it, and it is
        // the versions that decide. It must not wait for a stream that stands still.
        return Ok(());
    }
    waits::causes(header, &session.own, &mut session.known)
}

fn check_sender(session: &Session, header: &Header) -> Result<()> {
    if header.node == session.peer {
        return Ok(());
    }
    Err(Failure::new(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("record is of node \"{}\", and this session applies the stream of \"{}\"", header.node, session.peer),
    ))
}

/// A relay has taken the peer's stream over: keeps who it speaks for.
fn greet(session: &Session, header: &Header, hello: &Hello, offset: u64) -> Result<()> {
    let id = pgrx::Uuid::from_bytes(hello.node_id);
    let updated = with_own_tables(|| {
        Spi::connect_mut(|client| {
            client
                .update(
                    "update duplex.peer_registry
                        set node_id = $2, generation = greatest(generation, $3), last_lsn = $4, last_xid = $5,
                            hello_offset = $6
                      where name = $1 and coalesce(node_id, $2) = $2",
                    None,
                    &[
                        session.peer.as_str().into(),
                        id.into(),
                        header.generation.cast_signed().into(),
                        session.position.lsn.cast_signed().into(),
                        session.position.xid.cast_signed().into(),
                        offset.cast_signed().into(),
                    ],
                )
                .map(|rows| rows.len())
        })
    });
    match updated {
        Ok(0) => Err(Failure::new(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!(
                "node \"{}\" is another database than the one known under this name, or no peer any more",
                session.peer
            ),
        )
        .hint("If it was made anew, remove the peer, copy the data, and add it again.")),
        Ok(_) => Ok(()),
        Err(err) => Err(Failure::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, err.to_string())),
    }
}
