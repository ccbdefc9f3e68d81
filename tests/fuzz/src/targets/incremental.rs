//! An `INCREMENTAL.` file, and what is to be made of it over a file of some length.
//!
//! The input begins with one byte for how it is cut, two for a segment's length in blocks and two for that of the
//! earlier file. A length that doesn't fit its content would stop everything at the header, so an odd
//! first byte has the parser told the length that the header asks for.

use pgkeep::postgres::incremental::{
    BLOCK_SIZE, IncrementalEvent, IncrementalHeader, IncrementalParser, NotIncremental, Origin,
};

use super::input::Input;

type Read = (Option<IncrementalHeader>, Vec<(u32, Vec<u8>)>, bool);

fn parse(bytes: &[u8], size: u64, segment: u32, piece: usize) -> Result<Read, NotIncremental> {
    let mut parser = IncrementalParser::new(size, segment)?;
    let (mut header, mut pages) = (None, Vec::new());
    for mut input in bytes.chunks(piece) {
        while let Some(event) = parser.next(&mut input)? {
            match event {
                IncrementalEvent::Header(found) => header = Some(found.clone()),
                IncrementalEvent::Page { block, page } => {
                    assert_eq!(page.len(), BLOCK_SIZE);
                    pages.push((block, page.to_vec()));
                }
            }
        }
        if parser.is_complete() {
            break;
        }
    }
    Ok((header, pages, parser.is_complete()))
}

/// The length that a file has whose header says so many blocks.
fn length_of(bytes: &[u8]) -> Option<u64> {
    let count = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
    let header = 12 + 4 * u64::from(count);
    let block = BLOCK_SIZE as u64;
    let header = if count == 0 { header } else { header.next_multiple_of(block) };
    Some(header + u64::from(count) * block)
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (how, segment, base) = (input.byte(), input.short().into(), input.short().into());
    let file = input.rest();
    let size = match length_of(file) {
        Some(length) if how & 1 == 1 => length,
        _ => file.len() as u64,
    };
    let whole = parse(file, size, segment, file.len().max(1));
    let piece = 1 + usize::from(how >> 1) * 77;
    assert_eq!(parse(file, size, segment, piece), whole, "in pieces of {piece}");
    let Ok((Some(header), pages, _)) = whole else { return };
    assert!(header.blocks.is_sorted_by(|a, b| a < b));
    assert!(header.blocks.iter().all(|block| *block < segment));
    assert!(header.length() <= segment);
    assert!(pages.iter().map(|(block, _)| block).eq(header.blocks.iter().take(pages.len())));
    let mut at = 0;
    for run in header.runs(base) {
        assert!(run.first == at && run.count > 0, "{run:?} after {at}");
        at += run.count;
        assert!(run.origin != Origin::Base || at <= base, "{run:?} beyond {base}");
    }
    assert_eq!(at, header.length());
}
