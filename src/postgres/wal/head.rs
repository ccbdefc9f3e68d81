//! The unfinished record at the end of a segment.
//!
//! A record that straddles two segments belongs to the one it ends in, so who scans that one needs
//! what the one before has of it. It is found from the end: the last page in which a record
//! begins, and what follows it.

use std::io::{self, Read, Seek, SeekFrom};

use super::{
    assembler::Assembler,
    header::{Opening, PAGE_HEADER, PageHeader, SegmentHeader},
    record::Record,
};
use crate::postgres::{Lsn, SegmentSize};

/// The beginning of a record that goes on in the next segment, as far as it was read. Small: the
/// state of a checksum and of a decoder, not the bytes.
#[derive(Debug, Clone)]
pub struct RecordHead {
    /// The end of the segment it was read from.
    pub(super) position: Lsn,
    pub(super) record: Record,
    pub(super) previous: Option<Lsn>,
}

impl RecordHead {
    /// Where the record begins.
    pub fn start(&self) -> Lsn {
        self.record.start()
    }

    /// Where the segment begins that it goes on in.
    pub fn continues_at(&self) -> Lsn {
        self.position
    }
}

/// What goes on after the end of a segment.
#[derive(Debug, Clone)]
pub enum Trailing {
    /// No record does: the last one ends where the segment ends, or was a switch.
    Nothing,
    /// This one.
    Head(Box<RecordHead>),
    /// It can't be said: the segment isn't valid up to its end, its version isn't known, or it
    /// lies within one large record.
    Unknown,
}

impl Trailing {
    /// The head to scan the next segment with. Without one the next segment says itself whether
    /// one is missing ([`super::SegmentSummary::head_known`]).
    pub fn into_head(self) -> Option<RecordHead> {
        match self {
            Trailing::Head(head) => Some(*head),
            Trailing::Nothing | Trailing::Unknown => None,
        }
    }
}

/// Finds the unfinished record at the end of a segment, reading its first header and its last
/// pages: usually one, as many as the record is long at most.
///
/// A file that ends too early or isn't a segment of `size` is [`Trailing::Unknown`], not an error.
pub fn trailing_head(segment: &mut (impl Read + Seek), size: SegmentSize) -> io::Result<Trailing> {
    let mut read = |at: u64, buffer: &mut [u8]| -> io::Result<bool> {
        segment.seek(SeekFrom::Start(at))?;
        match segment.read_exact(buffer) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(e),
        }
    };
    let mut first = [0; SegmentHeader::LEN];
    if !read(0, &mut first)? {
        return Ok(Trailing::Unknown);
    }
    let header = match SegmentHeader::parse(&first) {
        Ok(header) if header.segment_size == size && header.major().is_some() => header,
        _ => return Ok(Trailing::Unknown),
    };
    let block = u64::from(header.wal_block_size);
    let last = size.bytes() - block;
    let mut at = last;
    loop {
        let mut bytes = [0; PAGE_HEADER];
        if !read(at, &mut bytes)? {
            return Ok(Trailing::Unknown);
        }
        let page = match PageHeader::parse(&bytes) {
            Some(p) if p.magic == header.magic && p.address.0 == header.address.0 + at => p,
            // What a switch record leaves.
            _ if at == last && bytes == [0; PAGE_HEADER] => return Ok(Trailing::Nothing),
            _ => return Ok(Trailing::Unknown),
        };
        let length = if at == 0 { SegmentHeader::LEN } else { PAGE_HEADER };
        match page.opening() {
            // The page is full of one record that began before.
            Opening::Continues(left)
                if u64::from(left).next_multiple_of(8) > block - length as u64 =>
            {
                match at.checked_sub(block) {
                    Some(before) => at = before,
                    None => return Ok(Trailing::Unknown),
                }
            }
            _ => break,
        }
    }
    let mut assembler = Assembler::from_page(&header, Lsn(header.address.0 + at));
    let mut buffer = vec![0; block as usize];
    while at < size.bytes() {
        if !read(at, &mut buffer)? {
            return Ok(Trailing::Unknown);
        }
        assembler.feed(&buffer, &mut |_, _| {});
        at += block;
    }
    Ok(assembler.trailing())
}
