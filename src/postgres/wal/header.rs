//! The headers of WAL pages and segments (`access/xlog_internal.h`).
//!
//! Every page begins with 24 bytes: magic u16, flags u16, timeline u32, address u64, bytes left of
//! the record that began before u32, 4 unused. The first page of a segment adds 16: system
//! identifier u64, segment size u32, page size u32. All little-endian on the machines we support;
//! on others the magic doesn't fit.

use crate::postgres::{Lsn, SegmentSize, Timeline};

/// The page begins inside a record.
const CONTINUES_A_RECORD: u16 = 0x1;
/// The page has the long header.
const LONG_HEADER: u16 = 0x2;
/// The record that was to go on here was given up after a crash; another begins (13 to 18).
const GIVES_A_RECORD_UP: u16 = 0x8;

/// The length of a page's header, in bytes.
pub(super) const PAGE_HEADER: usize = 24;

/// A segment's first page can't be read as such.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// There aren't even enough bytes for a header.
    #[error("a WAL segment begins with a header of 40 bytes, here are only {0}")]
    TooShort(usize),
    /// The bytes aren't the first page of a segment.
    #[error("this is not the beginning of a WAL segment: its first page has no long header")]
    NoHeader,
    /// The header names no timeline.
    #[error("the WAL segment's header has timeline 0")]
    NoTimeline,
    /// The segment size isn't possible.
    #[error("the WAL segment's header says segments are of {0} bytes")]
    SegmentSize(u32),
    /// The page size isn't possible.
    #[error("the WAL segment's header says pages are of {0} bytes")]
    BlockSize(u32),
    /// The address isn't where a segment can begin.
    #[error("the WAL segment's header says it begins at {0}, where no segment can begin")]
    Address(Lsn),
}

/// What the first page of a segment says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The version of the WAL format; see [`SegmentHeader::major`].
    pub magic: u16,
    /// The timeline of the first page. After a promotion the first pages of the new timeline's
    /// first segment are a copy, and carry the parent's.
    pub timeline: Timeline,
    /// The position of the segment's first byte.
    pub address: Lsn,
    /// Which cluster wrote it; the same number as in its pg_control.
    pub system_identifier: u64,
    /// The segment size of that cluster.
    pub segment_size: SegmentSize,
    /// The page size of its WAL, in bytes; 8192 unless the server was built otherwise.
    pub wal_block_size: u32,
}

impl SegmentHeader {
    /// The length of the header, in bytes.
    pub const LEN: usize = 40;

    /// Reads the header from a segment's first bytes, at least [`SegmentHeader::LEN`] of them.
    ///
    /// An unknown magic is no error, the fields are where they have been since 8.2; whether the
    /// values belong to this file and cluster is for the caller to compare.
    pub fn parse(first_page: &[u8]) -> Result<Self, WalError> {
        let short = || WalError::TooShort(first_page.len());
        let page = PageHeader::parse(first_page).ok_or_else(short)?;
        let system_identifier = u64_at(first_page, 24).ok_or_else(short)?;
        let segment_size = u32_at(first_page, 32).ok_or_else(short)?;
        let wal_block_size = u32_at(first_page, 36).ok_or_else(short)?;
        if page.magic == 0 || page.flags & LONG_HEADER == 0 {
            return Err(WalError::NoHeader);
        }
        if page.timeline.0 == 0 {
            return Err(WalError::NoTimeline);
        }
        let size =
            SegmentSize::new(u64::from(segment_size)).ok_or(WalError::SegmentSize(segment_size))?;
        if !wal_block_size.is_power_of_two() || !(1 << 10..=1 << 16).contains(&wal_block_size) {
            return Err(WalError::BlockSize(wal_block_size));
        }
        if page.address.0 % size.bytes() != 0 {
            return Err(WalError::Address(page.address));
        }
        Ok(SegmentHeader {
            magic: page.magic,
            timeline: page.timeline,
            address: page.address,
            system_identifier,
            segment_size: size,
            wal_block_size,
        })
    }

    /// The major version whose servers write this magic (`XLOG_PAGE_MAGIC`; minor releases never
    /// change it). `None` for one that isn't known here.
    pub fn major(&self) -> Option<u32> {
        major(self.magic)
    }
}

/// The major version of a page magic.
pub(super) fn major(magic: u16) -> Option<u32> {
    match magic {
        0xD106 => Some(13),
        0xD10D => Some(14),
        0xD110 => Some(15),
        0xD113 => Some(16),
        0xD116 => Some(17),
        0xD118 => Some(18),
        _ => None,
    }
}

/// The part of the header that every page has.
#[derive(Debug, Clone, Copy)]
pub(super) struct PageHeader {
    pub magic: u16,
    flags: u16,
    pub timeline: Timeline,
    pub address: Lsn,
    /// How many bytes of the record that began before are still to come, on this page and after.
    remaining: u32,
}

/// How a page goes on from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// A record begins, or nothing.
    Fresh,
    /// So many more bytes of a record that began before.
    Continues(u32),
    /// The record that began before ends unfinished; a record begins.
    GivesUp,
}

impl PageHeader {
    /// Reads the header; `None` when there are too few bytes.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Some(PageHeader {
            magic: u16_at(bytes, 0)?,
            flags: u16_at(bytes, 2)?,
            timeline: Timeline(u32_at(bytes, 4)?),
            address: Lsn(u64_at(bytes, 8)?),
            remaining: u32_at(bytes, 16)?,
        })
    }

    /// Whether it says that it is the long one.
    pub fn is_long(&self) -> bool {
        self.flags & LONG_HEADER != 0
    }

    /// How the page goes on from the one before.
    pub fn opening(&self) -> Opening {
        if self.flags & GIVES_A_RECORD_UP != 0 {
            Opening::GivesUp
        } else if self.flags & CONTINUES_A_RECORD != 0 {
            Opening::Continues(self.remaining)
        } else {
            Opening::Fresh
        }
    }
}

/// The bytes at `at`, if they are there.
pub(super) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The little-endian number at `at`, if it is there.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

/// The little-endian number at `at`, if it is there.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

/// The little-endian number at `at`, if it is there.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

/// The signed little-endian number at `at`, if it is there.
pub(super) fn i64_at(bytes: &[u8], at: usize) -> Option<i64> {
    array_at(bytes, at).map(i64::from_le_bytes)
}
