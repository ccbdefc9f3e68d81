//! Positions in the WAL and timelines.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A log sequence number: a byte position in the WAL of one timeline (`access/xlogdefs.h`).
///
/// Written as two hexadecimal halves, `16/B374D848`. Servers up to 18 don't pad the low half, 19
/// does; both are read. Compare numbers, never texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// `0/0`, which PostgreSQL uses for "none" (`InvalidXLogRecPtr`).
    pub const INVALID: Lsn = Lsn(0);

    /// Whether this isn't `0/0`.
    pub fn is_valid(self) -> bool {
        self.0 != 0
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

/// A text isn't an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an LSN: expected two hexadecimal numbers as in 16/B374D848")]
pub struct NotAnLsn(pub String);

impl FromStr for Lsn {
    type Err = NotAnLsn;

    fn from_str(s: &str) -> Result<Self, NotAnLsn> {
        let half = |t: &str| {
            let ok = (1..=8).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_hexdigit());
            ok.then(|| u64::from_str_radix(t, 16).ok()).flatten()
        };
        s.split_once('/')
            .and_then(|(hi, lo)| Some(Lsn(half(hi)? << 32 | half(lo)?)))
            .ok_or_else(|| NotAnLsn(s.to_owned()))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A timeline id, from 1. A promotion makes a new one (documentation, "Timelines").
///
/// Shown in decimal, as PostgreSQL's views do; file names carry it as 8 hexadecimal digits, which
/// [`Timeline::hex`] gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl Timeline {
    /// The 8 upper-case hexadecimal digits of file names.
    pub fn hex(self) -> String {
        format!("{:08X}", self.0)
    }

    /// Reads exactly 8 upper-case hexadecimal digits; 0 is no timeline.
    pub fn from_hex(s: &str) -> Option<Self> {
        let ok = s.len() == 8 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
        let id = ok.then(|| u32::from_str_radix(s, 16).ok()).flatten()?;
        (id != 0).then_some(Timeline(id))
    }

    /// `XXXXXXXX.history`, the name of this timeline's history file.
    pub fn history_file(self) -> String {
        format!("{:08X}.history", self.0)
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_reads_padded_and_unpadded_halves() {
        assert_eq!("0/3000028".parse(), Ok(Lsn(0x300_0028)));
        assert_eq!("0/03000028".parse(), Ok(Lsn(0x300_0028)));
        assert_eq!("FF/FFFFFFFF".parse::<Lsn>().map(|l| l.to_string()), Ok("FF/FFFFFFFF".into()));
        for bad in ["", "0", "/", "0/", "/0", "0/123456789", "0/+1", "0/ 1", "0/1/2", "x/1"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn timeline_names_are_hexadecimal() {
        assert_eq!(Timeline(0x1A).hex(), "0000001A");
        assert_eq!(Timeline::from_hex("0000001A"), Some(Timeline(26)));
        for bad in ["00000000", "0000001a", "1A", "00000001.", "+0000001"] {
            assert_eq!(Timeline::from_hex(bad), None, "{bad}");
        }
    }
}
