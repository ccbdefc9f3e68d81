//! Target times: RFC 3339, or PostgreSQL's own form, always with a zone.
//!
//! Whoever restores to a time does it once, in a hurry, and the wrong hour loses data. So nothing is
//! guessed: what a reader could take for two times is refused, with an example of what is accepted.

use chrono::{DateTime, Datelike, FixedOffset, NaiveDate, NaiveTime, Utc};

/// What is accepted, for messages and help.
pub const EXAMPLES: &str = "2026-11-20 20:12:27.425498+00 or 2026-11-20T21:12:27+01:00";

/// The largest offset PostgreSQL takes, in minutes (`MAX_TZDISP_HOUR` in `utils/timestamp.h`).
const MAX_OFFSET: i32 = 15 * 60 + 59;

/// Reads a time: date, time and zone, as in [`EXAMPLES`].
///
/// The zone is `Z`, `UTC`, or an offset `+02`, `+0530`, `+05:30`. Other abbreviations mean
/// different things to different servers and are refused, as are `now` and its like, times of
/// twelve hours, `24:00`, leap seconds, and more than microseconds, which PostgreSQL would round.
pub fn parse(text: &str) -> Result<DateTime<Utc>, String> {
    read(text).map_err(|why| format!("{why}; write it as {EXAMPLES}"))
}

fn read(text: &str) -> Result<DateTime<Utc>, String> {
    if !text.is_ascii() {
        return Err("a time has no such characters".into());
    }
    if text.bytes().all(|b| b.is_ascii_alphabetic()) {
        return Err(format!("{text:?} isn't a point in time"));
    }
    let Some((date, rest)) = text.split_at_checked(10) else {
        return Err("date, time and zone are needed".into());
    };
    let date = date_of(date)?;
    let Some(rest) = rest.strip_prefix(['T', 't', ' ']) else {
        return Err(if rest.is_empty() {
            "the time of day is missing".into()
        } else {
            "the date is to be followed by T or one space, and the time".into()
        });
    };
    let end = rest.bytes().take_while(|b| b.is_ascii_digit() || b":.".contains(b)).count();
    let (time, zone) = rest.split_at(end);
    let time = time_of(time)?;
    let offset = zone_of(zone)?;
    let local = date.and_time(time);
    let shift = chrono::TimeDelta::seconds(i64::from(offset.local_minus_utc()));
    // The zone may lead out of the years that can be written.
    let utc = local.checked_sub_signed(shift).filter(|utc| (1..=9999).contains(&utc.year()));
    Ok(utc.ok_or("it is out of range")?.and_utc())
}

/// `YYYY-MM-DD`, the only order of day and month that everybody reads alike.
fn date_of(text: &str) -> Result<NaiveDate, String> {
    let shape = || format!("the date {text:?} isn't of the form YYYY-MM-DD");
    let [year, month, day] = numbers(text, '-', [4, 2, 2]).ok_or_else(shape)?;
    NaiveDate::from_ymd_opt(year as i32, month, day)
        .filter(|_| year > 0)
        .ok_or_else(|| format!("there is no day {text}"))
}

/// `HH:MM`, `HH:MM:SS` or `HH:MM:SS.ffffff`.
fn time_of(text: &str) -> Result<NaiveTime, String> {
    let shape = || format!("the time of day {text:?} isn't of the form HH:MM:SS");
    let (whole, fraction) = match text.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (text, None),
    };
    let [hour, minute, second] = match numbers(whole, ':', [2, 2, 2]) {
        Some(three) => three,
        None if fraction.is_none() => {
            let [hour, minute] = numbers(whole, ':', [2, 2]).ok_or_else(shape)?;
            [hour, minute, 0]
        }
        None => return Err(shape()),
    };
    let micros = match fraction {
        None => 0,
        Some(digits) if digits.len() > 6 => {
            return Err("PostgreSQL counts microseconds, six digits after the point".into());
        }
        Some(digits) if digits.is_empty() || digits.contains(['.', ':']) => return Err(shape()),
        Some(digits) => format!("{digits:0<6}").parse().map_err(|_| shape())?,
    };
    NaiveTime::from_hms_micro_opt(hour, minute, second, micros)
        .ok_or_else(|| format!("there is no time of day {text}"))
}

fn zone_of(text: &str) -> Result<FixedOffset, String> {
    let zone = text.strip_prefix(' ').unwrap_or(text);
    let utc = FixedOffset::east_opt(0).ok_or("it is out of range")?;
    if zone.is_empty() {
        return Err("the time zone is missing".into());
    }
    if zone.eq_ignore_ascii_case("z") || zone.eq_ignore_ascii_case("utc") {
        return Ok(utc);
    }
    if ["am", "pm"].iter().any(|half| zone.to_ascii_lowercase().starts_with(half)) {
        return Err("hours are counted to 24, without am and pm".into());
    }
    let (sign, digits) = match zone.split_at_checked(1) {
        Some(("+", digits)) => (1, digits),
        Some(("-", digits)) => (-1, digits),
        _ => {
            return Err(format!(
                "the time zone {zone:?} isn't Z, UTC or an offset; others differ between servers"
            ));
        }
    };
    let shape = || format!("the offset {zone:?} isn't of the form +02, +0530 or +05:30");
    let [hours, minutes] = numbers(digits, ':', [2, 2])
        .or_else(|| numbers(digits, ':', [2]).map(|[hours]| [hours, 0]))
        .or_else(|| {
            let (hours, minutes) = digits.split_at_checked(2)?;
            numbers(&format!("{hours}:{minutes}"), ':', [2, 2])
        })
        .ok_or_else(shape)?;
    let total = (hours * 60 + minutes) as i32;
    if minutes > 59 || total > MAX_OFFSET {
        return Err(format!("there is no offset {zone}"));
    }
    FixedOffset::east_opt(sign * total * 60).ok_or_else(shape)
}

/// Exactly `N` numbers of exactly so many digits, between separators.
fn numbers<const N: usize>(text: &str, separator: char, digits: [usize; N]) -> Option<[u32; N]> {
    let mut out = [0; N];
    let mut parts = text.split(separator);
    for (slot, digits) in out.iter_mut().zip(digits) {
        let part = parts.next()?;
        if part.len() != digits || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *slot = part.parse().ok()?;
    }
    parts.next().is_none().then_some(out)
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> String {
        parse(text).unwrap().to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
    }

    #[test]
    fn both_forms_are_read_with_every_kind_of_zone() {
        for (text, utc) in [
            ("2026-11-20 20:12:27.425498+00", "2026-11-20T20:12:27.425498Z"),
            ("2026-11-20 20:12:27.4+02", "2026-11-20T18:12:27.400000Z"),
            ("2026-11-20 20:12:27-0330", "2026-11-20T23:42:27.000000Z"),
            ("2026-11-20 01:12:27+05:30", "2026-11-19T19:42:27.000000Z"),
            ("2026-11-20 20:12:27 UTC", "2026-11-20T20:12:27.000000Z"),
            ("2026-11-20 20:12 Z", "2026-11-20T20:12:00.000000Z"),
            ("2026-11-20T20:12:27Z", "2026-11-20T20:12:27.000000Z"),
            ("2026-11-20t20:12:27.000001z", "2026-11-20T20:12:27.000001Z"),
            ("2024-02-29 23:59:59 -01", "2024-03-01T00:59:59.000000Z"),
        ] {
            assert_eq!(at(text), utc, "{text}");
        }
    }

    #[test]
    fn what_could_be_two_times_is_refused_with_an_example() {
        for (text, why) in [
            ("2026-11-20 20:12:27", "zone is missing"),
            ("2026-11-20", "time of day is missing"),
            ("2026-11-20 20:12:27 CET", "\"CET\""),
            ("2026-11-20 20:12:27 Europe/Berlin", "\"Europe/Berlin\""),
            ("2026-11-20 20:12:27 GMT+2", "\"GMT+2\""),
            ("2026-11-20 13am UTC", "isn't of the form HH:MM:SS"),
            ("2026-11-20 01:00 pm UTC", "am and pm"),
            ("13am", "isn't a point in time|needed"),
            ("2026-11-20 24:61:00 UTC", "no time of day"),
            ("2026-11-20 24:00:00 UTC", "no time of day"),
            ("2026-12-31 23:59:60 UTC", "no time of day"),
            ("01/02/2026 10:00:00 UTC", "YYYY-MM-DD"),
            ("20261120T201227Z", "YYYY-MM-DD"),
            ("2026-02-30 10:00:00 UTC", "no day"),
            ("2026-1-2 10:00:00 UTC", "YYYY-MM-DD"),
            ("0000-01-01 00:00:00Z", "no day"),
            ("0001-01-01 15:01:00+15:03", "out of range"),
            ("9999-12-31 23:59:59-01", "out of range"),
            ("2026-11-20 20:12:27.1234567Z", "microseconds"),
            ("2026-11-20 20:12:27.Z", "HH:MM:SS"),
            ("2026-11-20  20:12:27Z", "HH:MM:SS"),
            ("2026-11-20 20:12:27+2", "+02"),
            ("2026-11-20 20:12:27+16", "no offset"),
            ("2026-11-20 20:12:27+01:60", "no offset"),
            ("now", "isn't a point in time"),
            ("today", "isn't a point in time"),
            ("", "isn't a point in time|needed"),
            ("1795205547", "YYYY-MM-DD"),
            ("2026‐11‐20 20:12:27Z", "no such characters"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(why.split('|').any(|why| error.contains(why)), "{text}: {error}");
            assert!(error.contains(EXAMPLES), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in ".{0,40}", almost in "[0-9T:+. Zam-]{0,32}") {
            let _ = parse(&text);
            let _ = parse(&almost);
        }

        #[test]
        fn every_time_in_every_zone_is_the_same_instant(
            micros in 0i64..4_000_000_000_000_000,
            minutes in -MAX_OFFSET..=MAX_OFFSET,
            form in prop::sample::select(vec![
                "%Y-%m-%dT%H:%M:%S%.6f%:z", "%Y-%m-%d %H:%M:%S%.6f%z", "%Y-%m-%d %H:%M:%S%.6f %:z",
            ]),
        ) {
            let instant = Utc.timestamp_micros(micros).unwrap();
            let zone = FixedOffset::east_opt(minutes * 60).unwrap();
            let text = instant.with_timezone(&zone).format(form).to_string();
            prop_assert_eq!(parse(&text), Ok(instant));
            let cut = text.rfind(['+', '-']).unwrap();
            prop_assert!(parse(text[..cut].trim_end()).is_err(), "without its zone");
        }
    }
}
