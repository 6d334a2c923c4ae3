//! Applying with care: each change in a subtransaction of its own, to find the very one that fails.
//!
//! The fast way knows no subtransactions, so an error takes the whole transaction back and does not say whose it was.
//! The relay then has the transaction applied once more, with care. What fails is left out if an operator said so,
//! parked if that is the table's policy, and otherwise takes the transaction back as before, but with its name known.

use std::cell::RefCell;
use std::rc::Rc;

use duplex_protocol::entry::{Entry, Relation};
use duplex_protocol::json;
use pgrx::iter::TableIterator;
use pgrx::{PgSqlErrorCode, Spi, name, pg_extern, pg_sys};

use crate::apply::own::with_own_tables;
use crate::apply::transaction::{Progress, Source, Writer};
use crate::apply::{heard, park, session, subtransaction};
use crate::backend_local::BackendLocal;
use crate::errors::{Failure, OrRaise as _, Result};

/// How many transactions more are applied with care after one that needed it: troubles come in flocks.
const CAREFUL_FOR: u32 = 200;

/// Longer rows are not shown: a value of jsonb has its limits.
const SHOWN_BYTES: usize = 64 << 20;

/// A change as people read it.
#[derive(Debug)]
pub(crate) struct Change {
    /// The table under its name in the stream, quoted where needed.
    pub(crate) table: String,
    pub(crate) operation: String,
    /// JSON.
    pub(crate) key: Option<String>,
    /// JSON.
    pub(crate) row: Option<String>,
}

/// The change that failed last, until it is asked for: the transaction that could have recorded it is gone.
#[derive(Debug)]
struct Failed {
    source: Source,
    ordinal: u32,
    change: Change,
    failure: Failure,
}

static FAILED: BackendLocal<RefCell<Option<Failed>>> = BackendLocal::new(RefCell::new(None));

/// `duplex.apply_careful()`: from now on with care.
#[pg_extern(sql = "")]
fn apply_careful() {
    session::with(|session| {
        session.careful = CAREFUL_FOR;
        Ok(())
    })
    .or_raise();
}

/// `duplex.apply_failure()`: records the change that failed last, or how far ahead the clock was that it failed for.
#[pg_extern(sql = "")]
fn apply_failure() -> TableIterator<
    'static,
    (
        name!(error_id, i64),
        name!(offset, i64),
        name!(ordinal, i32),
        name!(operation, String),
        name!(table_name, String),
    ),
> {
    let row = session::with(|session| {
        heard::record_skew(session)?;
        let Some(Failed { source, ordinal, change, failure }) = FAILED.take() else { return Ok(None) };
        let id = record(&session.peer, source, ordinal, &change, &failure, None)?;
        Ok(Some((id, source.offset.cast_signed(), ordinal.cast_signed(), change.operation, change.table)))
    });
    TableIterator::new(row.or_raise())
}

/// Writes a failure into `duplex.apply_errors` and returns its number.
pub(crate) fn record(
    peer: &str,
    source: Source,
    ordinal: u32,
    change: &Change,
    failure: &Failure,
    resolution: Option<&str>,
) -> Result<i64> {
    // Met again by another relay, or after a restart, it is the same one.
    let sql = "with again as (update duplex.apply_errors set happened_at = now() \
                               where peer = $1 and topic_offset = $2 and ordinal = $4 and sqlstate = $9 \
                                 and message = $10 and resolution is null and $13 is null returning id), \
               made as (insert into duplex.apply_errors (peer, topic_offset, xid, ordinal, operation, table_name, key, new_row, \
                                                sqlstate, message, detail, hint, resolution, resolved_at) \
               select $1, $2, $3, $4, $5, $6, $7::jsonb, $8::jsonb, $9, $10, $11, $12, $13, \
                      case when $13 is not null then now() end \
                where not exists (select from again) returning id) \
               select id from again union all select id from made";
    let arguments = [
        peer.into(),
        source.offset.cast_signed().into(),
        source.position.xid.cast_signed().into(),
        ordinal.cast_signed().into(),
        change.operation.as_str().into(),
        change.table.as_str().into(),
        change.key.as_deref().into(),
        change.row.as_deref().into(),
        failure.sqlstate().into(),
        failure.message.as_str().into(),
        failure.detail.as_deref().into(),
        failure.hint.as_deref().into(),
        resolution.into(),
    ];
    with_own_tables(|| Spi::get_one_with_args::<i64>(sql, &arguments)).map_err(internal)?.ok_or_else(|| {
        Failure::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, "an error could not be recorded in duplex.apply_errors")
    })
}

pub(crate) fn internal(err: pgrx::spi::Error) -> Failure {
    Failure::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, err.to_string())
}

/// Whether the change in `frame` takes the careful way: all do for a while after a failure, and those of a table of
/// which something is parked always do.
#[inline]
pub(crate) fn is_due(writer: &Writer<'_>, frame: &[u8]) -> Result<bool> {
    if writer.session.careful > 0 {
        return Ok(true);
    }
    if !park::any() || !parks(writer) {
        return Ok(false);
    }
    let table = writer.progress.descriptor(Relation::id_in_frame(frame)?)?;
    Ok(park::holds(&label(&relation(table)?)))
}

/// Whether changes may be parked. What comes back of the node's own has no stream here that would try one again: it stands
/// still instead, and of a key that has a parked change versions decide.
fn parks(writer: &Writer<'_>) -> bool {
    writer.session.peer != writer.session.own
}

/// Applies one change with care.
pub(crate) fn apply(writer: &mut Writer<'_>, frame: &[u8]) -> Result<()> {
    let ordinal = writer.progress.changes;
    if is_skipped(writer, ordinal)? {
        return Ok(());
    }
    if Entry::is_truncate(frame) {
        // Its turn comes together with the others of its statement.
        return writer.entry(frame);
    }
    truncate_pending(writer)?;
    writer.close_tables()?;
    let change = Change::read(writer.progress, frame)?;
    if parks(writer) && park::is_behind(&change)? {
        return park::keep(writer, frame, &change, None);
    }
    let Err(failure) = attempt(writer, |writer| writer.entry(frame)).map_err(advised) else { return Ok(()) };
    if parks(writer) && park::is_policy_of(&change.table)? {
        writer.session.careful = CAREFUL_FOR;
        return park::keep(writer, frame, &change, Some(&failure));
    }
    Err(failed(writer, ordinal, change, failure))
}

/// Empties the tables whose truncates have piled up; with care if that is due.
pub(crate) fn truncate(writer: &mut Writer<'_>) -> Result<()> {
    let mut tables = Vec::new();
    for truncate in writer.progress.truncates() {
        tables.push(label(&relation(writer.progress.descriptor(truncate.relation)?)?));
    }
    if writer.session.careful == 0 {
        writer.empty_tables()?;
    } else {
        writer.close_tables()?;
        let ordinal = writer.progress.first_truncate;
        if let Err(failure) = attempt(writer, |writer| writer.empty_tables()) {
            let change = Change { table: tables.join(", "), operation: "truncate".to_owned(), key: None, row: None };
            return Err(failed(writer, ordinal, change, failure));
        }
    }
    if park::any() { park::forget_truncated(&tables, writer) } else { Ok(()) }
}

fn truncate_pending(writer: &mut Writer<'_>) -> Result<()> {
    if writer.progress.truncates().is_empty() { Ok(()) } else { truncate(writer) }
}

/// A transaction that was applied with care is complete.
pub(crate) fn finish(writer: &mut Writer<'_>) -> Result<()> {
    if writer.session.careful == 0 {
        return Ok(());
    }
    writer.session.careful -= 1;
    let sql = "update duplex.apply_errors set resolution = 'passed', resolved_at = now() \
                where peer = $1 and topic_offset = $2 and resolution is null";
    let arguments = [writer.session.peer.as_str().into(), writer.progress.source.offset.cast_signed().into()];
    with_own_tables(|| Spi::run_with_args(sql, &arguments)).map_err(internal)
}

/// Runs `work` on a writer of its own, in a subtransaction. What it made of the transaction's state goes with it.
fn attempt(writer: &mut Writer<'_>, work: impl FnOnce(&mut Writer<'_>) -> Result<()>) -> Result<()> {
    let before = writer.progress.clone();
    let version = writer.version.clone();
    // SAFETY: inside a transaction; after an error the inner writer is only dropped.
    let outcome = unsafe {
        subtransaction::run(|| {
            let mut inner = Writer::begin(writer.session, writer.progress, version);
            work(&mut inner)?;
            inner.finish(false)
        })
    };
    if outcome.is_err() {
        *writer.progress = before;
    }
    // SAFETY: the outer writer's snapshot is the active one again; what was written inside is visible to what follows.
    unsafe { pg_sys::UpdateActiveSnapshotCommandId() };
    outcome
}

/// Other errors say what to do, or the constraint's name does; of this one PostgreSQL cannot know what it means here.
fn advised(failure: Failure) -> Failure {
    const EXCLUSION_VIOLATION: &str = "23P01";
    if failure.hint.is_some() || failure.sqlstate() != EXCLUSION_VIOLATION {
        return failure;
    }
    failure.hint(
        "No version says which of two rows that exclude each other is to go. Change or delete one of them, then call \
         duplex.retry_peer here, or duplex.skip_change if it was the incoming one.",
    )
}

fn failed(writer: &Writer<'_>, ordinal: u32, change: Change, failure: Failure) -> Failure {
    let source = writer.progress.source;
    FAILED.set(Some(Failed { source, ordinal, change, failure: failure.clone() }));
    failure
}

/// Whether an operator said to leave this change out.
fn is_skipped(writer: &mut Writer<'_>, ordinal: u32) -> Result<bool> {
    // The relay opens a stream with care where that is so.
    if writer.session.careful == 0 {
        return Ok(false);
    }
    if let Some(skipped) = &writer.progress.skipped {
        return Ok(skipped.contains(&ordinal));
    }
    let sql = "select ordinal from duplex.apply_errors \
                where peer = $1 and topic_offset = $2 and resolution = 'change skipped' and ordinal is not null";
    let arguments = [writer.session.peer.as_str().into(), writer.progress.source.offset.cast_signed().into()];
    let skipped: Rc<[u32]> = with_own_tables(|| {
        Spi::connect(|client| {
            let rows = client.select(sql, None, &arguments)?;
            rows.map(|row| Ok(row.get::<i32>(1)?.unwrap_or(0).cast_unsigned()))
                .collect::<std::result::Result<_, pgrx::spi::Error>>()
        })
    })
    .map_err(internal)?;
    let result = skipped.contains(&ordinal);
    writer.progress.skipped = Some(skipped);
    Ok(result)
}

impl Change {
    fn read(progress: &Progress, frame: &[u8]) -> Result<Self> {
        let relation = relation(progress.descriptor(Relation::id_in_frame(frame)?)?)?;
        let shown = json::change_of(&relation, Entry::decode(frame)?)?.unwrap_or_default();
        let text = |name: &str| shown.get(name).map(ToString::to_string);
        Ok(Self {
            table: label(&relation),
            operation: shown.get("op").and_then(|op| op.as_str()).unwrap_or_default().to_owned(),
            key: text("key"),
            row: text("row").filter(|row| row.len() <= SHOWN_BYTES),
        })
    }
}

fn relation(descriptor: &[u8]) -> Result<Relation> {
    match Entry::decode(descriptor)? {
        Entry::Relation(relation) => Ok(relation),
        _ => Err(Failure::new(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, "not a relation")),
    }
}

fn label(relation: &Relation) -> String {
    format!("{}.{}", pgrx::spi::quote_identifier(&relation.schema), pgrx::spi::quote_identifier(&relation.name))
}
