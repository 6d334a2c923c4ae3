//! Errors as PostgreSQL reports them: SQLSTATE, message, detail, hint.

use std::fmt;

use pgrx::pg_sys::panic::{ErrorReport, ErrorReportWithLevel};
use pgrx::{PgLogLevel, PgSqlErrorCode};

/// What the functions of this extension return.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// An error that is on its way to the client.
///
/// Messages follow PostgreSQL's style: the message starts in lower case and has no period, detail and hint are
/// sentences.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    code: PgSqlErrorCode,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: PgSqlErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), detail: None, hint: None }
    }

    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An ERROR that was caught, as it was reported.
    pub(crate) fn caught(error: &ErrorReportWithLevel) -> Self {
        Self {
            code: error.sql_error_code(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
        }
    }

    /// The five characters of its SQLSTATE.
    pub(crate) fn sqlstate(&self) -> String {
        // Six bits a character, the first in the lowest.
        (0..5).map(|i| char::from((((self.code as i32) >> (6 * i)) & 0x3F) as u8 + b'0')).collect()
    }

    /// Raises this as a PostgreSQL ERROR.
    pub(crate) fn raise(self) -> ! {
        let mut report = ErrorReport::new(self.code, self.message, "pg_duplex");
        if let Some(detail) = self.detail {
            report = report.set_detail(detail);
        }
        if let Some(hint) = self.hint {
            report = report.set_hint(hint);
        }
        report.report(PgLogLevel::ERROR);
        unreachable!("reporting an ERROR does not return")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The value, or the error raised: the last step of every function that SQL calls.
pub(crate) trait OrRaise<T> {
    fn or_raise(self) -> T;
}

impl<T> OrRaise<T> for Result<T> {
    fn or_raise(self) -> T {
        self.unwrap_or_else(|failure| failure.raise())
    }
}

impl From<duplex_protocol::codec::DecodeError> for Failure {
    fn from(err: duplex_protocol::codec::DecodeError) -> Self {
        Self::new(PgSqlErrorCode::ERRCODE_DATA_CORRUPTED, format!("record of a peer cannot be read: {err}"))
            .hint("The topic holds something that no pg_duplex relay wrote, or a newer format: update this node.")
    }
}
