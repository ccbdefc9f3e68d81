//! A tar stream of `BASE_BACKUP`: raw, and with the checksums of its headers put right.
//!
//! The first byte says whether checksums are repaired (odd) and how the stream is cut. Whatever the
//! cuts, the same events come, the data of a file is as long as its header says, and no name or link
//! leads out of the directory.

use pgkeep::postgres::tar::{TarError, TarEvent, TarParser};

use super::input::Input;

const BLOCK: usize = 512;

/// What a parser makes of `bytes` in pieces of `piece`; data of one file as one.
fn parse(bytes: &[u8], piece: usize) -> (Vec<String>, Option<TarError>, bool) {
    let (mut parser, mut events) = (TarParser::new(), Vec::new());
    let (mut data, mut left) = (Vec::new(), 0u64);
    for mut input in bytes.chunks(piece) {
        loop {
            let event = match parser.next(&mut input) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(e) => return (events, Some(e), false),
            };
            match event {
                TarEvent::Data(more) => {
                    assert!(!more.is_empty());
                    left = left.checked_sub(more.len() as u64).expect("no more than the size");
                    data.extend_from_slice(more);
                }
                TarEvent::FileEnd => {
                    assert_eq!(left, 0, "all of the file came");
                    events.push(format!("{:?}", std::mem::take(&mut data)));
                }
                TarEvent::File { entry, size } => {
                    inside(&entry.path);
                    assert!(entry.mode <= 0o7777);
                    left = size;
                    events.push(format!("{entry:?} {size}"));
                }
                TarEvent::Directory(entry) => {
                    inside(&entry.path);
                    events.push(format!("{entry:?}"));
                }
                TarEvent::Symlink { entry, target } => {
                    inside(&entry.path);
                    if !entry.path.starts_with(b"pg_tblspc/") {
                        assert!(!target.starts_with(b"/"), "{entry:?} leads out");
                    }
                    events.push(format!("{entry:?} {target:?}"));
                }
            }
        }
        assert!(input.is_empty(), "everything is consumed");
    }
    (events, None, parser.is_complete())
}

/// A directory's own member is the one that may be empty.
fn inside(path: &[u8]) {
    let part = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
    assert!(path.is_empty() || path.split(|b| *b == b'/').all(part), "{path:?}");
}

/// Puts right the checksum of everything that stands where a header could.
fn repair(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = bytes.get_mut(at..at + BLOCK) {
        at += BLOCK;
        if header.iter().all(|b| *b == 0) {
            continue;
        }
        let octal = header[124..135].iter().try_fold(0u64, |n, b| match b {
            b'0'..=b'7' => n.checked_mul(8)?.checked_add(u64::from(b - b'0')),
            _ => None,
        });
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let data = usize::try_from(octal.unwrap_or(0)).unwrap_or(0);
        at = at.saturating_add(data.div_ceil(BLOCK).saturating_mul(BLOCK));
    }
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let how = input.byte();
    let mut stream = input.rest().to_vec();
    if how & 1 == 1 {
        repair(&mut stream);
    }
    let whole = parse(&stream, stream.len().max(1));
    let piece = 1 + usize::from(how >> 1) * 5;
    assert_eq!(parse(&stream, piece), whole, "in pieces of {piece}");
}
