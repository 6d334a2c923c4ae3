//! Dates and times: PostgreSQL's ranges, and ISO text.

use std::fmt::Write as _;

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

/// Julian day of 2000-01-01, from which PostgreSQL counts.
const EPOCH_JULIAN: i32 = 2_451_545;
/// 4714-11-24 BC, the first date of all types.
const FIRST_DATE: i32 = -EPOCH_JULIAN;
/// First date that `date` no longer has: 5874898-01-01.
const END_DATE: i32 = 2_147_483_494 - EPOCH_JULIAN;
const FIRST_TIMESTAMP: i64 = FIRST_DATE as i64 * MICROS_PER_DAY;
/// First moment that `timestamp` no longer has: 294277-01-01.
const END_TIMESTAMP: i64 = 9_223_371_331_200_000_000;
/// Seconds; a zone is less than 16 hours away from UTC.
const ZONE_LIMIT: i32 = 16 * 3600;

pub(super) fn check_date(days: i32) -> Result<(), &'static str> {
    let infinite = days == i32::MIN || days == i32::MAX;
    if infinite || (FIRST_DATE..END_DATE).contains(&days) { Ok(()) } else { Err("date out of range") }
}

pub(super) fn check_timestamp(micros: i64) -> Result<(), &'static str> {
    let infinite = micros == i64::MIN || micros == i64::MAX;
    if infinite || (FIRST_TIMESTAMP..END_TIMESTAMP).contains(&micros) { Ok(()) } else { Err("timestamp out of range") }
}

pub(super) fn check_time(micros: i64) -> Result<(), &'static str> {
    // 24:00:00 is a time, too.
    if (0..=MICROS_PER_DAY).contains(&micros) { Ok(()) } else { Err("time out of range") }
}

pub(super) fn check_zone(seconds_west: i32) -> Result<(), &'static str> {
    if (1 - ZONE_LIMIT..ZONE_LIMIT).contains(&seconds_west) { Ok(()) } else { Err("time zone out of range") }
}

/// Year (0 is 1 BC), month and day of a count of days since 2000-01-01, in the proleptic Gregorian calendar.
fn civil(days: i32) -> (i64, u8, u8) {
    // Days since 0000-03-01, in eras of 400 years; a year that begins in March has its leap day at its end.
    let days = i64::from(days) + 730_425;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month as u8, day as u8)
}

/// `YYYY-MM-DD`, and the era to be put at the very end.
fn date_parts(days: i32) -> (String, &'static str) {
    let (year, month, day) = civil(days);
    let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    (format!("{year:04}-{month:02}-{day:02}"), era)
}

pub(super) fn date_text(days: i32) -> String {
    match days {
        i32::MIN => "-infinity".to_owned(),
        i32::MAX => "infinity".to_owned(),
        _ => {
            let (date, era) = date_parts(days);
            date + era
        }
    }
}

/// Appends a fraction of a second, if there is one, without zeros at its end.
fn push_fraction(text: &mut String, micros: i64) {
    if micros != 0 {
        write!(text, ".{micros:06}").expect("writing to a string does not fail");
        text.truncate(text.trim_end_matches('0').len());
    }
}

pub(super) fn time_text(micros: i64) -> String {
    let seconds = micros / MICROS_PER_SECOND;
    let mut text = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    push_fraction(&mut text, micros % MICROS_PER_SECOND);
    text
}

pub(super) fn timetz_text(micros: i64, seconds_west: i32) -> String {
    let mut text = time_text(micros);
    let sign = if seconds_west <= 0 { '+' } else { '-' };
    let zone = seconds_west.unsigned_abs();
    let (hours, minutes, seconds) = (zone / 3600, zone / 60 % 60, zone % 60);
    write!(text, "{sign}{hours:02}").expect("writing to a string does not fail");
    if minutes != 0 || seconds != 0 {
        write!(text, ":{minutes:02}").expect("writing to a string does not fail");
    }
    if seconds != 0 {
        write!(text, ":{seconds:02}").expect("writing to a string does not fail");
    }
    text
}

/// Text of a valid timestamp; `zone` follows the time.
pub(super) fn timestamp_text(micros: i64, zone: &str) -> String {
    match micros {
        i64::MIN => return "-infinity".to_owned(),
        i64::MAX => return "infinity".to_owned(),
        _ => {}
    }
    // A valid timestamp is within about ±108 million days.
    let (date, era) = date_parts(micros.div_euclid(MICROS_PER_DAY) as i32);
    format!("{date} {}{zone}{era}", time_text(micros.rem_euclid(MICROS_PER_DAY)))
}

/// A moment in UTC in the form that JSON readers expect, for headers; any `i64` is taken.
pub(crate) fn iso_utc(micros: i64) -> String {
    match check_timestamp(micros) {
        Err(reason) => format!("{reason}: {micros}"),
        Ok(()) if micros == i64::MIN || micros == i64::MAX => timestamp_text(micros, ""),
        Ok(()) => timestamp_text(micros, "Z").replacen(' ', "T", 1),
    }
}

/// PostgreSQL's own style: `1 year 2 mons -3 days +04:05:06`.
///
/// The sign is written wherever it differs from the one before, so that it reads back whatever `IntervalStyle` is.
pub(super) fn interval_text(micros: i64, days: i32, months: i32) -> String {
    match (micros, days, months) {
        // PostgreSQL 17 gave these a name. Before it they were numbers that nobody writes.
        (i64::MIN, i32::MIN, i32::MIN) => return "-infinity".to_owned(),
        (i64::MAX, i32::MAX, i32::MAX) => return "infinity".to_owned(),
        _ => {}
    }
    let mut text = String::new();
    let mut after_negative = false;
    for (count, unit, plural) in [(months / 12, "year", "years"), (months % 12, "mon", "mons"), (days, "day", "days")] {
        if count != 0 {
            let space = if text.is_empty() { "" } else { " " };
            let sign = if after_negative && count > 0 { "+" } else { "" };
            let unit = if count == 1 { unit } else { plural };
            write!(text, "{space}{sign}{count} {unit}").expect("writing to a string does not fail");
            after_negative = count < 0;
        }
    }
    if micros == i64::MIN {
        // PostgreSQL writes hours here that it refuses to read.
        let space = if text.is_empty() { "" } else { " " };
        write!(text, "{space}{micros} us").expect("writing to a string does not fail");
    } else if micros != 0 || text.is_empty() {
        let space = if text.is_empty() { "" } else { " " };
        let sign = match micros < 0 {
            true => "-",
            false if after_negative => "+",
            false => "",
        };
        let micros = micros.unsigned_abs();
        let seconds = micros / MICROS_PER_SECOND as u64;
        write!(text, "{space}{sign}{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
            .expect("writing to a string does not fail");
        push_fraction(&mut text, (micros % MICROS_PER_SECOND as u64) as i64);
    }
    text
}
