//! The segment that is being received.
//!
//! Its bytes stay in memory until they are stored in their last form: for parts to be cut out of,
//! to be merged from, and to be compared with. A segment of the usual size is kept whole; of a larger
//! one a *chunk*, a part of its own as large as parts may be.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};

use crate::{
    error::{Error, Kind, Result},
    postgres::{Lsn, SegmentName, SegmentSize, Timeline, wal::SegmentScanner},
    repo::{
        wal::StoredSummary,
        wal_parts::{LONGEST_PART, PartRange},
    },
};

/// How many bytes are kept together in memory.
const BLOCK: usize = 1 << 20;

/// Blocks that are used again when nobody holds bytes of them any more: what was freed instead would lie between
/// other things, and come to a third more than is in use.
#[derive(Default)]
struct Blocks {
    /// Of each block that is full, some bytes.
    lent: VecDeque<Bytes>,
}

impl Blocks {
    /// Room for [`BLOCK`] bytes.
    fn take(&mut self) -> BytesMut {
        let free = self.lent.iter().position(Bytes::is_unique);
        let free = free.and_then(|at| self.lent.remove(at));
        let mut block = free.and_then(|some| some.try_into_mut().ok()).unwrap_or_default();
        block.clear();
        block.reserve(BLOCK);
        block
    }

    /// Takes note of a block by its last bytes.
    fn lend(&mut self, last: Option<&Bytes>) {
        self.lent.extend(last.cloned());
    }
}

/// Bytes of a segment, one after the other.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// The segment.
    pub segment: SegmentName,
    /// Which of its bytes.
    pub range: PartRange,
    pieces: Vec<Bytes>,
}

impl Chunk {
    /// All bytes.
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// The beginning of the SHA-256 of the bytes `range`, as names carry it; `None` if not all of
    /// them are here.
    pub fn checksum(&self, range: PartRange) -> Option<String> {
        let is_inside = self.range.from <= range.from && range.to <= self.range.to;
        is_inside.then(|| {
            let mut digest = Sha256::new();
            let from = u64::from(range.from - self.range.from);
            for piece in cut(&self.pieces, from, from + range.bytes()) {
                digest.update(&piece);
            }
            hex::encode(digest.finalize()).chars().take(16).collect()
        })
    }
}

/// The bytes `from` to `to` of some pieces.
fn cut(pieces: &[Bytes], from: u64, to: u64) -> Vec<Bytes> {
    let mut at = 0;
    let mut wanted = Vec::new();
    for piece in pieces {
        let len = piece.len() as u64;
        let begin = from.clamp(at, at + len) - at;
        let end = to.clamp(at, at + len) - at;
        if begin < end {
            wanted.push(piece.slice(begin as usize..end as usize));
        }
        at += len;
    }
    wanted
}

/// A segment of which bytes come in, from its first one on.
pub struct Incoming {
    size: SegmentSize,
    name: SegmentName,
    start: Lsn,
    /// Where the chunk begins in the segment.
    chunk_from: u64,
    pieces: Vec<Bytes>,
    /// What came last, and room for what comes next.
    tail: BytesMut,
    blocks: Blocks,
    received: u64,
    scanner: SegmentScanner,
    digest: Sha256,
}

impl Incoming {
    /// Begins segment `number` of a timeline.
    pub fn new(timeline: Timeline, number: u64, size: SegmentSize) -> Self {
        let name = size.name(timeline, number);
        Incoming {
            size,
            name,
            start: size.start_of(number),
            chunk_from: 0,
            pieces: Vec::new(),
            tail: BytesMut::new(),
            blocks: Blocks::default(),
            received: 0,
            scanner: SegmentScanner::new(name, size, None),
            digest: Sha256::new(),
        }
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.size.number_at(self.start)
    }

    /// The position of its first byte.
    pub fn start(&self) -> Lsn {
        self.start
    }

    /// The position behind the last byte that came.
    pub fn end(&self) -> Lsn {
        Lsn(self.start.0 + self.received)
    }

    /// How long a chunk is.
    fn chunk_len(&self) -> u64 {
        LONGEST_PART.min(self.size.bytes())
    }

    /// Where the chunk begins in the segment.
    pub fn chunk_from(&self) -> u64 {
        self.chunk_from
    }

    /// How many bytes are missing in the chunk.
    pub fn room(&self) -> usize {
        usize::try_from(self.chunk_from + self.chunk_len() - self.received).unwrap_or(0)
    }

    /// Adds bytes: not more than there is room.
    pub fn push(&mut self, bytes: &[u8]) {
        let mut left = bytes;
        while !left.is_empty() {
            if self.tail.capacity() == self.tail.len() {
                self.keep_tail();
                self.blocks.lend(self.pieces.last());
                self.tail = self.blocks.take();
            }
            let some = left.len().min(self.tail.capacity() - self.tail.len());
            self.tail.extend_from_slice(&left[..some]);
            left = &left[some..];
        }
        self.received += bytes.len() as u64;
        self.scanner.feed(bytes, &mut |_| {});
        self.digest.update(bytes);
    }

    /// What came last goes to the pieces; the room behind it stays.
    fn keep_tail(&mut self) {
        let piece = self.tail.split().freeze();
        self.pieces.extend((!piece.is_empty()).then_some(piece));
    }

    /// Bytes of the chunk as a chunk of their own.
    pub fn part(&mut self, from: Lsn, to: Lsn) -> Result<Chunk> {
        self.keep_tail();
        let offset = |lsn: Lsn| lsn.0.checked_sub(self.start.0);
        let range = offset(from)
            .zip(offset(to))
            .filter(|(from, to)| self.chunk_from <= *from && from < to && *to <= self.received);
        let wrong = || {
            let what = format!("no WAL from {from} to {to} is held of {}", self.name);
            Error::new(Kind::Internal, what)
        };
        let (from, to) = range.ok_or_else(wrong)?;
        let pieces = cut(&self.pieces, from - self.chunk_from, to - self.chunk_from);
        let range = PartRange {
            from: u32::try_from(from).map_err(|_| wrong())?,
            to: u32::try_from(to).map_err(|_| wrong())?,
        };
        Ok(Chunk { segment: self.name, range, pieces })
    }

    /// Takes the chunk, which is complete, and goes on behind it. If the segment is complete with it,
    /// its summary comes too.
    pub fn take_chunk(&mut self) -> Result<(Chunk, Option<StoredSummary>)> {
        let (from, to) = (self.chunk_from, self.received);
        let chunk = self.part(Lsn(self.start.0 + from), Lsn(self.start.0 + to))?;
        self.blocks.lend(self.pieces.last());
        self.pieces.clear();
        self.tail = BytesMut::new();
        self.chunk_from = to;
        if to < self.size.bytes() {
            return Ok((chunk, None));
        }
        let number = self.size.number_at(self.start) + 1;
        let next = self.size.name(self.name.timeline, number);
        let summary = StoredSummary {
            size: to,
            sha256: hex::encode(std::mem::take(&mut self.digest).finalize()),
            segment: Some(self.scanner.next_segment(next)),
        };
        (self.name, self.start) = (next, self.size.start_of(number));
        (self.chunk_from, self.received) = (0, 0);
        Ok((chunk, Some(summary)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_cut_out_of_what_came() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let mut incoming = Incoming::new(Timeline(1), 3, size);
        let bytes: Vec<u8> = (0..1u32 << 20).map(|n| (n % 251) as u8).collect();
        let start = incoming.start();
        incoming.push(&bytes[..1000]);
        let at = |offset: u64| Lsn(start.0 + offset);
        let joined = |chunk: &Chunk| chunk.pieces().concat();
        let first = incoming.part(at(0), at(1000)).unwrap();
        assert_eq!(joined(&first), &bytes[..1000]);
        incoming.push(&bytes[1000..3000]);
        let second = incoming.part(at(900), at(2500)).unwrap();
        assert_eq!(joined(&second), &bytes[900..2500]);
        assert_eq!(second.range, PartRange { from: 900, to: 2500 });
        assert!(incoming.part(at(0), at(3001)).is_err());
        assert!(incoming.part(at(5), at(5)).is_err());
        incoming.push(&bytes[3000..]);
        assert_eq!(incoming.room(), 0);
        let (whole, summary) = incoming.take_chunk().unwrap();
        let summary = summary.unwrap();
        assert_eq!(joined(&whole), bytes);
        assert_eq!(summary.sha256, hex::encode(Sha256::digest(&bytes)));
        assert_eq!(whole.checksum(whole.range).as_deref(), Some(summary.short_checksum()));
        assert_eq!(
            whole.checksum(second.range).unwrap(),
            hex::encode(Sha256::digest(&bytes[900..2500]))[..16]
        );
        assert_eq!(incoming.number(), 4);
        assert_eq!((incoming.end(), incoming.room()), (at(1 << 20), 1 << 20));
    }

    #[test]
    fn a_block_that_nobody_holds_is_used_again() {
        let mut blocks = Blocks::default();
        let mut block = blocks.take();
        let address = block.as_ptr();
        block.extend_from_slice(&[1; BLOCK]);
        let (first, last) = (block.split_to(1000).freeze(), block.freeze());
        blocks.lend(Some(&last));
        drop(last);
        assert_ne!(blocks.take().as_ptr(), address, "its beginning is held");
        drop(first);
        let again = blocks.take();
        assert_eq!((again.as_ptr(), again.len(), again.capacity()), (address, 0, BLOCK));
    }

    #[test]
    fn no_more_blocks_are_held_than_two_chunks_have() {
        let size = SegmentSize::new(4 << 20).unwrap();
        let mut incoming = Incoming::new(Timeline(1), 1, size);
        let mut on_its_way = None;
        for number in 0..20u8 {
            for _ in 0..8 {
                incoming.push(&[number; BLOCK / 2]);
                let from = Lsn(incoming.end().0 - 1000);
                let part = incoming.part(from, incoming.end()).unwrap();
                assert!(part.pieces().concat().iter().all(|byte| *byte == number));
            }
            let (chunk, _) = incoming.take_chunk().unwrap();
            assert!(chunk.pieces().concat().iter().all(|byte| *byte == number));
            on_its_way = Some(chunk);
            assert!(incoming.blocks.lent.len() <= 2 * 4, "{}", incoming.blocks.lent.len());
        }
        assert!(on_its_way.is_some());
    }

    #[test]
    fn a_large_segment_comes_in_chunks() {
        let size = SegmentSize::new(32 << 20).unwrap();
        let mut incoming = Incoming::new(Timeline(1), 1, size);
        let bytes = vec![7; 16 << 20];
        incoming.push(&bytes);
        let (first, none) = incoming.take_chunk().unwrap();
        assert!(none.is_none());
        assert_eq!(first.range, PartRange { from: 0, to: 16 << 20 });
        assert_eq!(incoming.chunk_from(), 16 << 20);
        incoming.push(&bytes);
        let (second, summary) = incoming.take_chunk().unwrap();
        assert_eq!(second.range, PartRange { from: 16 << 20, to: 32 << 20 });
        assert_eq!(summary.unwrap().size, 32 << 20);
    }
}
