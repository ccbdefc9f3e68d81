//! `INCREMENTAL.<name>` files, read as they come (`backup/basebackup_incremental.c`, `sendFile`).
//!
//! ```text
//! u32  0xd3ae1f0d          all numbers in the server's byte order, which is little-endian here
//! u32  count               of blocks in this file, at most a segment's
//! u32  truncation length   in blocks
//! u32  × count             the blocks' numbers in the segment, ascending
//!      zeros               up to a multiple of the block size; none if there are no blocks
//!      count blocks        in the same order
//! ```

use super::super::page::RelationFile;

/// The bytes of a block: only clusters with the usual size are known here.
pub const BLOCK_SIZE: usize = 8192;

/// What the file begins with.
const MAGIC: u32 = 0xd3ae_1f0d;

/// What precedes the original name.
const PREFIX: &str = "INCREMENTAL.";

/// The fixed part of the header.
const FIXED: usize = 12;

/// The path that the file at `path` stands for, relative to the data directory: `base/5/1259` for
/// `base/5/INCREMENTAL.1259`. `None` if it isn't one of these files. Only relations have them; a
/// file of such a name anywhere else is somebody's own.
pub fn original_path(path: &[u8]) -> Option<String> {
    let (folder, file) = std::str::from_utf8(path).ok()?.rsplit_once('/')?;
    let original = format!("{folder}/{}", file.strip_prefix(PREFIX)?);
    RelationFile::parse(&original).map(|_| original)
}

/// What an incremental file says of the segment that it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncrementalHeader {
    /// The least length of the segment, in blocks. Below it, what isn't in this file is as it was;
    /// from it on, only what is in this file exists. At most a segment's length; servers before
    /// 17.8 and 18.2 could say more, and meant that.
    pub truncation_length: u32,
    /// The numbers of the blocks in this file, relative to the segment; ascending, each below a
    /// segment's length.
    pub blocks: Vec<u32>,
}

/// What the parser found.
#[derive(Debug, PartialEq, Eq)]
pub enum IncrementalEvent<'a> {
    /// The header is complete. Its pages follow.
    Header(&'a IncrementalHeader),
    /// A page.
    Page {
        /// Its number in the segment.
        block: u32,
        /// [`BLOCK_SIZE`] bytes.
        page: &'a [u8],
    },
}

/// The bytes aren't an incremental file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotIncremental {
    /// It begins otherwise.
    #[error("it begins with {found:#010x}, not with {MAGIC:#010x}")]
    Magic {
        /// What it begins with.
        found: u32,
    },
    /// More blocks than a segment has.
    #[error("it says that it has {count} blocks; a segment has {most}")]
    Count {
        /// What it says.
        count: u32,
        /// A segment's.
        most: u32,
    },
    /// A block's number isn't above the one before it, or is beyond the segment.
    #[error("its {index}th block has the impossible number {number}")]
    Number {
        /// Which one, from 0.
        index: usize,
        /// Its number.
        number: u32,
    },
    /// The file's length isn't that of its content.
    #[error("it is {size} bytes long; with {count} blocks it would be {expected}")]
    Size {
        /// In bytes.
        size: u64,
        /// How many blocks it says it has.
        count: u32,
        /// In bytes.
        expected: u64,
    },
    /// Something stands between the header and the first block.
    #[error("its padding isn't zero")]
    Padding,
    /// It ends within the header.
    #[error("it is {size} bytes long, which is too short for its header")]
    Short {
        /// In bytes.
        size: u64,
    },
}

/// Reads one file.
///
/// Holds the header's numbers, four bytes for each block of a segment at most, and one page.
#[derive(Debug)]
pub struct IncrementalParser {
    /// The file's length, in bytes.
    size: u64,
    segment_blocks: u32,
    stage: Stage,
    header: IncrementalHeader,
    /// What came in pieces: the fixed part, a number, a page.
    held: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The first twelve bytes.
    Fixed,
    /// `count` block numbers.
    Numbers { count: u32 },
    /// That many zeros.
    Padding { left: usize },
    /// The page of this index is next.
    Pages { next: usize },
}

impl IncrementalParser {
    /// A parser for a file of `size` bytes, in a cluster whose segments have `segment_blocks`
    /// blocks ([`ControlFile::segment_blocks`](super::super::control::ControlFile)).
    pub fn new(size: u64, segment_blocks: u32) -> Result<Self, NotIncremental> {
        if size < FIXED as u64 {
            return Err(NotIncremental::Short { size });
        }
        let header = IncrementalHeader { truncation_length: 0, blocks: Vec::new() };
        Ok(IncrementalParser {
            size,
            segment_blocks,
            stage: Stage::Fixed,
            header,
            held: Vec::new(),
        })
    }

    /// The next event in `input`, which is moved past what was consumed. `None` when more bytes are
    /// needed, or when the file is complete: then nothing more is consumed.
    ///
    /// After an error the parser is of no further use.
    pub fn next<'s, 'i: 's>(
        &'s mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<IncrementalEvent<'s>>, NotIncremental> {
        loop {
            match self.stage {
                Stage::Fixed => {
                    let Some(fixed) = take_array::<FIXED>(&mut self.held, input) else {
                        return Ok(None);
                    };
                    self.stage = Stage::Numbers { count: self.fixed(fixed)? };
                }
                Stage::Numbers { count } if self.header.blocks.len() == count as usize => {
                    self.stage = Stage::Padding { left: padding(count) };
                }
                Stage::Numbers { .. } => {
                    let Some(number) = take_array::<4>(&mut self.held, input) else {
                        return Ok(None);
                    };
                    self.number(u32::from_le_bytes(number))?;
                }
                Stage::Padding { left: 0 } => {
                    self.stage = Stage::Pages { next: 0 };
                    return Ok(Some(IncrementalEvent::Header(&self.header)));
                }
                Stage::Padding { left } => {
                    let zeros = input.split_off(..left.min(input.len())).unwrap_or_default();
                    if zeros.is_empty() {
                        return Ok(None);
                    }
                    if zeros.iter().any(|&b| b != 0) {
                        return Err(NotIncremental::Padding);
                    }
                    self.stage = Stage::Padding { left: left - zeros.len() };
                }
                Stage::Pages { next } => {
                    let Some(&block) = self.header.blocks.get(next) else { return Ok(None) };
                    let Some(page) = take_page(&mut self.held, input) else { return Ok(None) };
                    self.stage = Stage::Pages { next: next + 1 };
                    return Ok(Some(IncrementalEvent::Page { block, page }));
                }
            }
        }
    }

    /// Whether the file was read to its end.
    pub fn is_complete(&self) -> bool {
        matches!(self.stage, Stage::Pages { next } if next == self.header.blocks.len())
    }

    /// Reads the fixed part and returns the number of blocks.
    fn fixed(&mut self, bytes: [u8; FIXED]) -> Result<u32, NotIncremental> {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        let found = u32::from_le_bytes([a, b, c, d]);
        if found != MAGIC {
            return Err(NotIncremental::Magic { found });
        }
        let (count, most) = (u32::from_le_bytes([e, f, g, h]), self.segment_blocks);
        if count > most {
            return Err(NotIncremental::Count { count, most });
        }
        let header = FIXED + 4 * count as usize + padding(count);
        let expected = header as u64 + u64::from(count) * BLOCK_SIZE as u64;
        if self.size != expected {
            return Err(NotIncremental::Size { size: self.size, count, expected });
        }
        self.header.truncation_length = u32::from_le_bytes([i, j, k, l]).min(most);
        Ok(count)
    }

    fn number(&mut self, number: u32) -> Result<(), NotIncremental> {
        let above = self.header.blocks.last().is_none_or(|&last| last < number);
        if !above || number >= self.segment_blocks {
            return Err(NotIncremental::Number { index: self.header.blocks.len(), number });
        }
        self.header.blocks.push(number);
        Ok(())
    }
}

/// How many zeros stand between the numbers and the pages of a file with `count` of them.
fn padding(count: u32) -> usize {
    match (FIXED + 4 * count as usize) % BLOCK_SIZE {
        beyond if count > 0 && beyond > 0 => BLOCK_SIZE - beyond,
        _ => 0,
    }
}

/// `N` bytes, once they are there; `held` has those that came before.
fn take_array<const N: usize>(held: &mut Vec<u8>, input: &mut &[u8]) -> Option<[u8; N]> {
    if held.is_empty()
        && let Some((array, rest)) = input.split_first_chunk::<N>()
    {
        *input = rest;
        return Some(*array);
    }
    let missing = N.saturating_sub(held.len()).min(input.len());
    held.extend_from_slice(input.split_off(..missing)?);
    let array = held.as_slice().try_into().ok()?;
    held.clear();
    Some(array)
}

/// A page, once it is there: where it lies in `input`, or from the pieces in `held`, which are
/// dropped when the next page is asked for.
fn take_page<'s, 'i: 's>(held: &'s mut Vec<u8>, input: &mut &'i [u8]) -> Option<&'s [u8]> {
    if held.len() == BLOCK_SIZE {
        held.clear();
    }
    if held.is_empty() && input.len() >= BLOCK_SIZE {
        return input.split_off(..BLOCK_SIZE);
    }
    let missing = (BLOCK_SIZE - held.len()).min(input.len());
    held.extend_from_slice(input.split_off(..missing)?);
    (held.len() == BLOCK_SIZE).then_some(held)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEGMENT: u32 = 131_072;

    /// An incremental file as the server writes it; the page of block `n` is full of `n`'s low byte.
    fn written(truncation: u32, blocks: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in [MAGIC, blocks.len() as u32, truncation].iter().chain(blocks) {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        if !blocks.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(BLOCK_SIZE), 0);
        }
        for &block in blocks {
            bytes.resize(bytes.len() + BLOCK_SIZE, block as u8);
        }
        bytes
    }

    type Read = (IncrementalHeader, Vec<(u32, Vec<u8>)>);

    /// What a parser makes of `bytes`, fed in pieces of `piece`.
    fn parse(bytes: &[u8], piece: usize) -> Result<Read, NotIncremental> {
        let mut parser = IncrementalParser::new(bytes.len() as u64, SEGMENT)?;
        let (mut header, mut pages) = (None, Vec::new());
        for mut input in bytes.chunks(piece) {
            while let Some(event) = parser.next(&mut input)? {
                match event {
                    IncrementalEvent::Header(found) => header = Some(found.clone()),
                    IncrementalEvent::Page { block, page } => pages.push((block, page.to_vec())),
                }
            }
            assert!(input.is_empty(), "everything is consumed");
        }
        assert!(parser.is_complete());
        Ok((header.unwrap(), pages))
    }

    #[test]
    fn names_are_told_apart() {
        let original = |path: &str| original_path(path.as_bytes());
        for (path, expected) in [
            ("base/5/INCREMENTAL.1259", "base/5/1259"),
            ("base/5/INCREMENTAL.1259.12", "base/5/1259.12"),
            ("base/5/INCREMENTAL.16384_vm", "base/5/16384_vm"),
            ("global/INCREMENTAL.1262", "global/1262"),
            (
                "pg_tblspc/16400/PG_17_202406281/5/INCREMENTAL.16401",
                "pg_tblspc/16400/PG_17_202406281/5/16401",
            ),
        ] {
            assert_eq!(original(path).as_deref(), Some(expected));
        }
        for other in [
            "base/5/1259",
            "INCREMENTAL.1259",
            "base/5/INCREMENTAL.",
            "base/5/INCREMENTAL.pg_filenode.map",
            "base/5/INCREMENTAL.INCREMENTAL.1259",
            "INCREMENTAL.base/5/1259",
            "pg_xact/INCREMENTAL.0000",
        ] {
            assert_eq!(original(other), None, "{other}");
        }
        assert_eq!(original_path(b"base/5/INCREMENTAL.\xff"), None);
    }

    #[test]
    fn a_file_without_blocks_is_twelve_bytes() {
        let bytes = written(77, &[]);
        assert_eq!(bytes.len(), 12);
        for piece in [1, 5, 12] {
            let (header, pages) = parse(&bytes, piece).unwrap();
            assert_eq!(header, IncrementalHeader { truncation_length: 77, blocks: vec![] });
            assert!(pages.is_empty());
        }
    }

    #[test]
    fn a_header_may_fill_blocks_exactly() {
        // 12 + 4 × 2045 = 8192: no padding; one number more, and nearly a block of it.
        for count in [2044, 2045, 2046] {
            let blocks: Vec<u32> = (0..count).map(|i| i * 3).collect();
            let (header, pages) = parse(&written(9, &blocks), 30_000).unwrap();
            assert_eq!(header.blocks, blocks);
            assert_eq!(pages.len(), count as usize);
            assert!(pages.iter().all(|(block, page)| page == &[*block as u8; BLOCK_SIZE]));
        }
    }

    #[test]
    fn a_length_beyond_the_segment_is_the_segment() {
        let (header, _) = parse(&written(SEGMENT + 5, &[1]), 9999).unwrap();
        assert_eq!(header.truncation_length, SEGMENT);
    }

    #[test]
    fn what_is_malformed_is_refused() {
        use NotIncremental as No;
        let error = |bytes: &[u8]| parse(bytes, 100).unwrap_err();
        let good = written(9, &[3, 5]);
        let changed = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        assert_eq!(error(&good[..11]), No::Short { size: 11 });
        assert_eq!(error(&changed(0, 0)), No::Magic { found: 0xd3ae_1f00 });
        assert_eq!(error(&changed(7, 1)), No::Count { count: 2 + (1 << 24), most: SEGMENT });
        assert_eq!(
            error(&good[..good.len() - 1]),
            No::Size { size: 3 * 8192 - 1, count: 2, expected: 3 * 8192 }
        );
        assert_eq!(error(&changed(16, 3)), No::Number { index: 1, number: 3 });
        assert_eq!(error(&changed(14, 2)), No::Number { index: 0, number: 3 + (2 << 16) });
        assert_eq!(error(&changed(20, 1)), No::Padding);
        assert_eq!(error(&changed(8191, 1)), No::Padding);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            truncation in 0..=SEGMENT,
            blocks in prop::collection::btree_set(0..SEGMENT, 0..12),
            piece in 1..20_000_usize,
        ) {
            let blocks: Vec<u32> = blocks.into_iter().collect();
            let (header, pages) = parse(&written(truncation, &blocks), piece).unwrap();
            prop_assert_eq!(header.truncation_length, truncation);
            prop_assert_eq!(&header.blocks, &blocks);
            let expected: Vec<_> = blocks.iter().map(|&b| (b, vec![b as u8; BLOCK_SIZE])).collect();
            prop_assert_eq!(pages, expected);
        }

        #[test]
        fn any_bytes_end_in_an_error_or_pages(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            magic: bool,
            size: u64,
            segment_blocks: u32,
        ) {
            let start: &[u8] = if magic { &MAGIC.to_le_bytes() } else { &[] };
            let bytes = [start, &bytes].concat();
            for (size, segment) in [(bytes.len() as u64, SEGMENT), (size, segment_blocks)] {
                let Ok(mut parser) = IncrementalParser::new(size, segment) else { continue };
                let mut input = bytes.as_slice();
                while let Ok(Some(_)) = parser.next(&mut input) {}
                // Nothing is held that didn't come.
                prop_assert!(parser.header.blocks.capacity() <= 2 * bytes.len());
                prop_assert!(parser.held.capacity() <= 2 * BLOCK_SIZE);
            }
        }

        #[test]
        fn near_files_are_taken_or_refused(
            blocks in prop::collection::btree_set(0..40_u32, 0..4),
            flips in prop::collection::vec((0..64_usize, any::<u8>()), 0..3),
            cut in 0..3_usize,
        ) {
            let blocks: Vec<u32> = blocks.into_iter().collect();
            let mut bytes = written(7, &blocks);
            for (at, byte) in flips {
                if let Some(at) = bytes.get_mut(at) {
                    *at = byte;
                }
            }
            bytes.truncate(bytes.len().saturating_sub(cut * 8191));
            if let Ok((header, pages)) = parse(&bytes, 777) {
                prop_assert_eq!(header.blocks.len(), pages.len());
            }
        }
    }
}
