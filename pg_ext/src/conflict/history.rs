//! The record of conflicts: one row each in `duplex.conflict_history`, written in the transaction that met it.
//!
//! It must never stop a stream: a row whose image cannot be made (its output function fails) is recorded without it.

use duplex_protocol::rules::conflict::ConflictKind;
use duplex_protocol::version::Version;
use pgrx::datum::{DatumWithOid, TimestampWithTimeZone};
use pgrx::{PgSqlErrorCode, Spi, pg_sys};

use crate::apply::own::with_own_tables;
use crate::apply::subtransaction;
use crate::errors::{Failure, Result};

/// Rows beyond this many bytes of JSON are recorded without their long values.
const LONGEST_IMAGE: i32 = 1024 * 1024;

/// What became of a change that met a conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// The incoming change is what stands now.
    Applied,
    /// What was here stays.
    Skipped,
    /// The incoming row is not shown: another row has a later claim of a unique value.
    Hidden,
}

impl Resolution {
    fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Skipped => "skipped",
            Self::Hidden => "hidden",
        }
    }
}

/// A conflict, ready to be recorded.
#[derive(Debug)]
pub(crate) struct Conflict<'t> {
    pub(crate) kind: ConflictKind,
    pub(crate) resolution: Resolution,
    /// The table's name.
    pub(crate) table: &'t str,
    /// Names of the key's columns.
    pub(crate) key: &'t [String],
    /// The row that was here, or the rows.
    pub(crate) local: Vec<Image>,
    /// Version of what was here.
    pub(crate) local_version: Option<Version>,
    /// What came; of a DELETE only the key.
    pub(crate) incoming: Image,
    pub(crate) is_delete: bool,
    pub(crate) version: &'t Version,
}

/// A row as JSON, if it could be made.
pub(crate) type Image = Option<String>;

/// The image of the row in a slot.
///
/// # Safety
/// Inside a transaction with an active snapshot; the slot holds a row of the relation, and is left as it was.
pub(crate) unsafe fn image(relation: pg_sys::Relation, slot: *mut pg_sys::TupleTableSlot) -> Image {
    let sql = "with image as materialized (select pg_catalog.to_jsonb($1) as row)
               select case when pg_catalog.length(row::text) <= $2 then row::text
                      else (select pg_catalog.jsonb_object_agg(e.key,
                                   case when pg_catalog.length(e.value::text) <= 1000 then e.value
                                        else pg_catalog.to_jsonb(pg_catalog.left(e.value::text, 1000) || '…') end)::text
                              from pg_catalog.jsonb_each(row) e) end
                 from image";
    // SAFETY: as the caller promises. An output function may fail, and takes back what it did.
    let made = unsafe {
        subtransaction::run(|| {
            let row_type = (*(*relation).rd_rel).reltype;
            let row = DatumWithOid::new(pg_sys::ExecFetchSlotHeapTupleDatum(slot), row_type);
            Spi::get_one_with_args::<String>(sql, &[row, LONGEST_IMAGE.into()])
                .map_err(|err| Failure::new(PgSqlErrorCode::ERRCODE_DATA_EXCEPTION, err.to_string()))
        })
    };
    made.ok().flatten()
}

impl Conflict<'_> {
    /// Writes it down.
    ///
    /// # Errors
    /// If the record's table cannot be written, which is no matter of the data.
    pub(crate) fn record(self) -> Result<()> {
        let local = match self.local.as_slice() {
            [] => None,
            [one] => one.clone(),
            many => {
                let rows: Vec<&str> = many.iter().map(|image| image.as_deref().unwrap_or("null")).collect();
                Some(format!("[{}]", rows.join(", ")))
            }
        };
        let time = |version: &Version| TimestampWithTimeZone::try_from(version.commit_ts).ok();
        let arguments: [DatumWithOid<'_>; 11] = [
            self.table.into(),
            self.kind.name().into(),
            self.resolution.as_str().into(),
            self.key.to_vec().into(),
            local.into(),
            self.local_version.as_ref().and_then(time).into(),
            self.local_version.map(|version| version.origin).into(),
            self.incoming.into(),
            self.is_delete.into(),
            time(self.version).into(),
            self.version.origin.as_str().into(),
        ];
        with_own_tables(|| {
            Spi::run_with_args(
                "insert into duplex.conflict_history
                     (\"table\", kind, resolution, key, local_row, local_commit_time, local_origin,
                      incoming_row, incoming_commit_time, incoming_origin)
                 select $1, $2, $3,
                        (select jsonb_object_agg(e.key, e.value) from jsonb_each($8::jsonb) e where e.key = any($4)),
                        $5::jsonb, $6, $7,
                        case when not $9 then $8::jsonb end, $10, $11",
                &arguments,
            )
        })
        .map_err(|err| {
            Failure::new(
                PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
                format!("duplex.conflict_history cannot be written: {err}"),
            )
        })
    }
}
