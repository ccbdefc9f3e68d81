//! PostgreSQL's clock: microseconds since 2000-01-01 UTC (`datatype/timestamp.h`).
//!
//! Whatever number a record has becomes a time: outside the years 1 to 9999 it becomes the nearest
//! end of them, which keeps the order and every reader of JSON content.

use chrono::{DateTime, Utc};

/// 2000-01-01 in seconds since 1970-01-01.
const EPOCH: i64 = 946_684_800;
/// 0001-01-01 and 9999-12-31 23:59:59 in seconds since 1970-01-01.
const FIRST: i64 = -62_135_596_800;
const LAST: i64 = 253_402_300_799;

/// The time of a `TimestampTz`.
pub(super) fn from_timestamp(micros: i64) -> DateTime<Utc> {
    let low = (FIRST - EPOCH) * 1_000_000;
    let high = (LAST - EPOCH) * 1_000_000;
    let micros = micros.clamp(low, high) + EPOCH * 1_000_000;
    DateTime::from_timestamp_micros(micros).unwrap_or_default()
}

/// The time of a `pg_time_t`, seconds since 1970-01-01.
pub(super) fn from_unix(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds.clamp(FIRST, LAST), 0).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_microseconds() {
        let text = |t: DateTime<Utc>| serde_json::to_string(&t).unwrap();
        assert_eq!(text(from_timestamp(0)), "\"2000-01-01T00:00:00Z\"");
        assert_eq!(text(from_timestamp(-1)), "\"1999-12-31T23:59:59.999999Z\"");
        assert_eq!(text(from_timestamp(848_520_747_425_498)), "\"2026-11-20T20:12:27.425498Z\"");
        assert_eq!(text(from_unix(EPOCH)), "\"2000-01-01T00:00:00Z\"");
    }

    #[test]
    fn nonsense_becomes_the_nearest_time_there_is() {
        for (micros, year) in [(i64::MIN, "0001"), (i64::MAX, "9999")] {
            let time = from_timestamp(micros);
            let json = serde_json::to_string(&time).unwrap();
            assert!(json.starts_with(&format!("\"{year}-")), "{json}");
            assert_eq!(serde_json::from_str::<DateTime<Utc>>(&json).unwrap(), time);
        }
        assert!(from_unix(i64::MIN) < from_unix(0) && from_unix(0) < from_unix(i64::MAX));
    }
}
