//! WAL segments and the names of the files that a server archives.
//!
//! A segment's name is timeline, high part and low part of its number, 8 hexadecimal digits each
//! (`access/xlog_internal.h`, `XLogFileName`). How many low parts there are before the high part
//! moves on depends on the segment size: 256 with 16 MiB, 4096 with 1 MiB, 4 with 1 GiB.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Lsn, Timeline};

/// The size of a cluster's WAL segments: a power of two from 1 MiB to 1 GiB, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SegmentSize(u64);

impl SegmentSize {
    /// The size initdb chooses, 16 MiB.
    pub const DEFAULT: SegmentSize = SegmentSize(16 << 20);

    /// `bytes` as a segment size, if it is one.
    pub fn new(bytes: u64) -> Option<Self> {
        (bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes))
            .then_some(SegmentSize(bytes))
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// How many segments share one high part of a name.
    fn per_high_part(self) -> u64 {
        (1 << 32) / self.0
    }

    /// The number of the segment that holds the byte at `lsn`.
    pub fn number_at(self, lsn: Lsn) -> u64 {
        lsn.0 / self.0
    }

    /// The number of the segment that holds the byte before `lsn`: the last one needed to replay up
    /// to `lsn` (`XLByteToPrevSeg`).
    pub fn number_before(self, lsn: Lsn) -> u64 {
        lsn.0.saturating_sub(1) / self.0
    }

    /// Where segment `number` begins; the last position behind the last one that names can be of.
    pub fn start_of(self, number: u64) -> Lsn {
        Lsn(number.saturating_mul(self.0))
    }

    /// The name of segment `number` on `timeline`.
    pub fn name(self, timeline: Timeline, number: u64) -> SegmentName {
        SegmentName {
            timeline,
            high: (number / self.per_high_part()) as u32,
            low: (number % self.per_high_part()) as u32,
        }
    }
}

impl Default for SegmentSize {
    fn default() -> Self {
        SegmentSize::DEFAULT
    }
}

impl TryFrom<u64> for SegmentSize {
    type Error = String;

    fn try_from(bytes: u64) -> Result<Self, String> {
        SegmentSize::new(bytes).ok_or_else(|| {
            format!("{bytes} is not a WAL segment size: a power of two from 1 MiB to 1 GiB")
        })
    }
}

impl From<SegmentSize> for u64 {
    fn from(size: SegmentSize) -> u64 {
        size.0
    }
}

impl fmt::Display for SegmentSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0 >> 20)
    }
}

/// The name of a WAL segment, 24 hexadecimal digits.
///
/// Sorts by timeline and then by position, as the names do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline.
    pub timeline: Timeline,
    /// The high 32 bits of the positions in it.
    high: u32,
    low: u32,
}

impl SegmentName {
    /// The segment's number, counted from position 0 in segments of `size`; `None` when the name
    /// can't be one of that size (its low part is too large).
    pub fn number(self, size: SegmentSize) -> Option<u64> {
        let per = size.per_high_part();
        (u64::from(self.low) < per).then(|| u64::from(self.high) * per + u64::from(self.low))
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.0, self.high, self.low)
    }
}

/// A text isn't the name of a WAL segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a WAL segment: expected 24 upper-case hexadecimal digits")]
pub struct NotASegment(pub String);

impl FromStr for SegmentName {
    type Err = NotASegment;

    fn from_str(s: &str) -> Result<Self, NotASegment> {
        let parse = || {
            if s.len() != 24 || !s.is_ascii() {
                return None;
            }
            let timeline = Timeline::from_hex(&s[..8])?;
            Some(SegmentName { timeline, high: hex8(&s[8..16])?, low: hex8(&s[16..])? })
        };
        parse().ok_or_else(|| NotASegment(s.to_owned()))
    }
}

fn hex8(s: &str) -> Option<u32> {
    let ok = s.len() == 8 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    ok.then(|| u32::from_str_radix(s, 16).ok()).flatten()
}

/// A file that `archive_command` may be called with, by its name (`pgarch.h`: digits, `A` to `F`,
/// and the suffixes below; at most 40 characters).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WalFile {
    /// A whole segment.
    Segment(SegmentName),
    /// The last, unfinished segment of a timeline that ended in a promotion.
    Partial(SegmentName),
    /// What a base backup left beside the WAL: the segment it began in and the offset there.
    BackupHistory(SegmentName, u32),
    /// A timeline's history.
    History(Timeline),
}

impl WalFile {
    /// The timeline the file belongs to.
    pub fn timeline(self) -> Timeline {
        match self {
            WalFile::Segment(s) | WalFile::Partial(s) | WalFile::BackupHistory(s, _) => s.timeline,
            WalFile::History(t) => t,
        }
    }
}

impl fmt::Display for WalFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalFile::Segment(s) => write!(f, "{s}"),
            WalFile::Partial(s) => write!(f, "{s}.partial"),
            WalFile::BackupHistory(s, offset) => write!(f, "{s}.{offset:08X}.backup"),
            WalFile::History(t) => f.write_str(&t.history_file()),
        }
    }
}

/// A name that no PostgreSQL server archives.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a file that PostgreSQL archives: expected a WAL segment (24 hexadecimal digits), \
     a .partial, a .backup or a .history file"
)]
pub struct NotAWalFile(pub String);

impl FromStr for WalFile {
    type Err = NotAWalFile;

    fn from_str(s: &str) -> Result<Self, NotAWalFile> {
        let parse = || {
            if let Ok(segment) = s.parse() {
                return Some(WalFile::Segment(segment));
            }
            let (stem, suffix) = s.split_once('.')?;
            match suffix {
                "history" => Timeline::from_hex(stem).map(WalFile::History),
                "partial" => stem.parse().ok().map(WalFile::Partial),
                _ => {
                    let offset = hex8(suffix.strip_suffix(".backup")?)?;
                    Some(WalFile::BackupHistory(stem.parse().ok()?, offset))
                }
            }
        };
        parse().ok_or_else(|| NotAWalFile(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_segment_size() {
        for (mib, last_low) in [(1, 0xFFF), (16, 0xFF), (64, 0x3F), (1024, 3)] {
            let size = SegmentSize::new(mib << 20).unwrap();
            let last = size.name(Timeline(0x1F), last_low);
            assert_eq!(last.to_string(), format!("0000001F00000000{last_low:08X}"));
            assert_eq!(last.number(size), Some(last_low));
            let next = size.name(Timeline(0x1F), last_low + 1);
            assert_eq!(next.to_string(), "0000001F0000000100000000");
            let beyond: SegmentName =
                format!("0000001F00000000{:08X}", last_low + 1).parse().unwrap();
            assert_eq!(beyond.number(size), None, "no such low part with {size}");
        }
    }

    #[test]
    fn a_position_on_a_boundary_needs_only_the_segment_before() {
        let size = SegmentSize::DEFAULT;
        assert_eq!(size.number_at(Lsn(2 << 24)), 2);
        assert_eq!(size.number_before(Lsn(2 << 24)), 1);
        assert_eq!(size.number_before(Lsn((2 << 24) + 1)), 2);
    }

    #[test]
    fn archived_names_are_told_apart() {
        for name in [
            "00000001000000000000001A",
            "00000001000000000000001A.partial",
            "00000001000000000000001A.00000028.backup",
            "0000001A.history",
        ] {
            assert_eq!(name.parse::<WalFile>().map(|f| f.to_string()), Ok(name.to_owned()));
        }
        for bad in [
            "",
            "00000001000000000000001a",
            "00000000000000000000001A",
            "00000001000000000000001A.28.backup",
            "00000001000000000000001A.backup",
            "00000001000000000000001A.partial.partial",
            "../0000000100000000000000",
            "1.history",
            "RECOVERYXLOG",
        ] {
            assert!(bad.parse::<WalFile>().is_err(), "{bad}");
        }
    }
}
