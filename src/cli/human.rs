//! Numbers as people read them. JSON has the plain ones.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};

/// Bytes: `512 B`, `1.5 KiB`, `12.0 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be shown as 1024.0 is one of the next unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A duration by its two largest parts: `350 ms`, `12.3 s`, `4 min 5 s`, `3 h 20 min`, `2 d 1 h`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{seconds}.{} s", duration.subsec_millis() / 100),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// As [`duration`], of seconds. What can't be one, as a clock that differs gives it, is none.
pub fn seconds(seconds: f64) -> String {
    duration(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// A count with its thousands apart: `1,204,331`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() * 4 / 3 + 1);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in a number of objects.
pub fn objects(objects: u64, bytes: u64) -> String {
    let noun = if objects == 1 { "object" } else { "objects" };
    format!("{} in {} {noun}", self::bytes(bytes), count(objects))
}

/// A time to the second, in UTC: `2026-11-20 19:58:12Z`. It can be given back as a target.
pub fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true).replacen('T', " ", 1)
}

/// A time to the microsecond, for what a target is compared with: `2026-11-20 19:58:12.425498Z`.
pub fn exact_time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true).replacen('T', " ", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_decimal() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1 << 24, "16.0 MiB"),
            ((1 << 30) - 1, "1.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn durations_have_their_two_largest_parts() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (12_345, "12.3 s"),
            (245_000, "4 min 5 s"),
            (12_000_000, "3 h 20 min"),
            (176_400_000, "2 d 1 h"),
        ] {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn counts_and_times_read_well() {
        assert_eq!(count(7), "7");
        assert_eq!(count(1_204), "1,204");
        assert_eq!(count(123_456_789), "123,456,789");
        let at = DateTime::from_timestamp_micros(1_763_668_692_425_498).unwrap();
        assert_eq!(time(at), "2025-11-20 19:58:12Z");
        assert_eq!(crate::cli::time::parse(&exact_time(at)), Ok(at));
    }
}
