//! Counters (delta columns): exact numbers whose changes add up.
//!
//! What a write adds is decided by `duplex_protocol::rules::counters`; here it is read from columns of several types and
//! put back into them. A value that was NULL before its table had a policy stays so until somebody gives it a number,
//! which then counts from 0; NULL is never written over a number, since that would be no addition.

use duplex_protocol::entry::Contribution;
use pgrx::{AnyNumeric, FromDatum as _, IntoDatum as _, PgSqlErrorCode, direct_function_call, pg_sys};

use crate::errors::{Failure, Result};

/// An amount, or NULL.
pub(crate) type Amount = Option<AnyNumeric>;

/// The type below a counter's column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Int2,
    Int4,
    Int8,
    Numeric,
}

/// A column that is a counter.
#[derive(Debug, Clone)]
pub(crate) struct Counter {
    pub(crate) name: String,
    kind: Kind,
    modifier: i32,
    domain: Option<pg_sys::Oid>,
}

impl Counter {
    /// A column as a counter.
    ///
    /// # Errors
    /// 55000 if its type cannot be added exactly: it was altered since the policy was set.
    pub(crate) fn new(name: &str, type_oid: pg_sys::Oid, modifier: i32) -> Result<Self> {
        let mut base_modifier = modifier;
        // SAFETY: a catalogue look-up inside a transaction.
        let base = unsafe { pg_sys::getBaseTypeAndTypmod(type_oid, &mut base_modifier) };
        let kind = match base {
            pg_sys::INT2OID => Kind::Int2,
            pg_sys::INT4OID => Kind::Int4,
            pg_sys::INT8OID => Kind::Int8,
            pg_sys::NUMERICOID => Kind::Numeric,
            _ => {
                return Err(Failure::new(
                    PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!("delta column \"{name}\" has a type that cannot be added exactly"),
                )
                .hint("Delta columns are smallint, integer, bigint or numeric."));
            }
        };
        let domain = (base != type_oid).then_some(type_oid);
        Ok(Self { name: name.to_owned(), kind, modifier: base_modifier, domain })
    }

    /// The amount in a column.
    ///
    /// # Safety
    /// The value is one of the column's, if it is not NULL.
    pub(crate) unsafe fn amount(&self, value: pg_sys::Datum, is_null: bool) -> Amount {
        if is_null {
            return None;
        }
        Some(match self.kind {
            Kind::Int2 => (value.value() as i16).into(),
            Kind::Int4 => (value.value() as i32).into(),
            Kind::Int8 => (value.value() as i64).into(),
            // SAFETY: as the caller promises.
            Kind::Numeric => unsafe { AnyNumeric::from_datum(value, false)? },
        })
    }

    /// The amount as a value of the column.
    ///
    /// # Errors
    /// 22003 if it is beyond the type; what the column's domain raises.
    ///
    /// # Safety
    /// In a memory context that lives as long as the row.
    pub(crate) unsafe fn value(&self, amount: &Amount) -> Result<(pg_sys::Datum, bool)> {
        let none = pg_sys::Datum::from(0);
        let datum = match amount {
            None => (none, true),
            Some(amount) => (self.stored(amount)?, false),
        };
        if let Some(domain) = self.domain {
            // SAFETY: the datum is of the domain's base type; without a cache it is looked up anew.
            unsafe { pg_sys::domain_check(datum.0, datum.1, domain, std::ptr::null_mut(), std::ptr::null_mut()) };
        }
        Ok(datum)
    }

    fn stored(&self, amount: &AnyNumeric) -> Result<pg_sys::Datum> {
        let copy = || amount.clone();
        let (stored, datum) = match self.kind {
            Kind::Int2 => integer::<i16>(copy(), |n| (AnyNumeric::from(n), pg_sys::Datum::from(n))),
            Kind::Int4 => integer::<i32>(copy(), |n| (AnyNumeric::from(n), pg_sys::Datum::from(n))),
            Kind::Int8 => integer::<i64>(copy(), |n| (AnyNumeric::from(n), pg_sys::Datum::from(n))),
            Kind::Numeric if self.modifier == -1 => return copy().into_datum().ok_or_else(|| self.beyond(amount)),
            Kind::Numeric => {
                // SAFETY: both arguments are of the function's types; a number beyond the precision is an ERROR.
                let fitted = unsafe {
                    direct_function_call::<AnyNumeric>(
                        pg_sys::numeric,
                        &[copy().into_datum(), Some(pg_sys::Datum::from(self.modifier))],
                    )
                };
                fitted.and_then(|fitted| Some((fitted.clone(), fitted.into_datum()?)))
            }
        }
        .ok_or_else(|| self.beyond(amount))?;
        // Rounded, it would be another number than on the other nodes.
        if stored == *amount { Ok(datum) } else { Err(self.beyond(amount)) }
    }

    fn beyond(&self, amount: &AnyNumeric) -> Failure {
        Failure::new(
            PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
            format!("delta column \"{}\" cannot hold the sum of what was added on all nodes", self.name),
        )
        .detail(format!("The sum is {amount}."))
        .hint("Give the column a wider type on every node, then the stream goes on.")
    }
}

/// The number as an integer, and what that stands for.
fn integer<N: TryFrom<AnyNumeric>>(
    amount: AnyNumeric,
    both: impl FnOnce(N) -> (AnyNumeric, pg_sys::Datum),
) -> Option<(AnyNumeric, pg_sys::Datum)> {
    N::try_from(amount).ok().map(both)
}

/// What a write added, counter by counter.
#[derive(Debug, Clone, Default)]
pub(crate) struct Added(pub(crate) Vec<Amount>);

impl Added {
    /// As a change of the stream says it; `place` finds the counter that a column of the descriptor is.
    ///
    /// # Errors
    /// XX001 for what is no number, or of a column that is no counter.
    pub(crate) fn read(
        contributions: &[Contribution<'_>],
        counters: usize,
        place: impl Fn(u16) -> Option<usize>,
    ) -> Result<Self> {
        let mut added = vec![None; counters];
        for contribution in contributions {
            let amount = is_plain(contribution.amount).then(|| AnyNumeric::try_from(contribution.amount).ok());
            match (place(contribution.column).and_then(|place| added.get_mut(place)), amount.flatten()) {
                (Some(place), Some(amount)) => *place = Some(amount),
                _ => {
                    return Err(Failure::new(
                        PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
                        "a change adds what is no number to what is no counter",
                    ));
                }
            }
        }
        Ok(Self(added))
    }

    /// Whether a counter has to be written because of it.
    pub(crate) fn is_something(&self) -> bool {
        self.0.iter().any(Option::is_some)
    }

    /// As texts, with the counter's place.
    ///
    /// # Errors
    /// 22003 for NaN and infinities, which cannot be taken away again.
    pub(crate) fn texts(&self, counters: &[Counter]) -> Result<Vec<(usize, String)>> {
        let mut texts = Vec::new();
        for (place, amount) in self.0.iter().enumerate() {
            let Some(text) = amount.as_ref().map(ToString::to_string) else { continue };
            if !is_plain(&text) {
                return Err(Failure::new(
                    PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
                    format!("delta column \"{}\" cannot be NaN or infinite", counters[place].name),
                )
                .hint("What is added to a delta column has to be a number that can be taken away again."));
            }
            texts.push((place, text));
        }
        Ok(texts)
    }
}

/// Whether it is a decimal number and no special value.
fn is_plain(amount: &str) -> bool {
    amount.bytes().any(|byte| byte.is_ascii_digit())
        && amount.bytes().all(|byte| byte.is_ascii_digit() || b"+-.".contains(&byte))
}

/// A counter after an addition. Where nothing was ever added it is what it was: NULL perhaps.
pub(crate) fn after(found: Amount, added: &Amount) -> Amount {
    match added {
        None => found,
        Some(added) => Some(duplex_protocol::rules::counters::after(found, added.clone())),
    }
}

/// Whether nothing is left of counters: a tombstone needs no residual then.
pub(crate) fn is_nothing(residual: &[Amount]) -> bool {
    let zero = AnyNumeric::from(0);
    residual.iter().all(|amount| amount.as_ref() == Some(&zero))
}
