//! The parts of a segment that a stream has stored, put together.
//!
//! The input is parts: how, the offset of the first byte and how many there are, two bytes each. How is: 1 a byte of
//! it differs from what the others have, at the next two bytes; 2 its name says an end that is so many bytes (one
//! byte) further; 4 a byte of the object is changed; 8 its summary says another size; 240 its content is followed by
//! so many MiB (one byte) of zeros, which its name says nothing of. What comes out is what the sound parts have, from the
//! first byte on, and a part that differs or is damaged is only passed over where nobody needs it.

use bytes::Bytes;
use pgkeep::{
    error::Kind,
    postgres::{SegmentName, SegmentSize, WalFile},
    repo::{
        Repository, SystemId,
        wal::{StoredSummary, WalStore},
        wal_parts::{PartRange, covered},
    },
    storage::ObjectName,
};
use sha2::{Digest, Sha256};

use super::{
    input::Input,
    place::{Place, layout, plain, seal, wait},
};

const SEGMENT: &str = "000000010000000000000003";

const MIB: usize = 1 << 20;

static NOTHING: [u8; 16 * MIB] = [0; 16 * MIB];

/// What the segment has at an offset.
fn byte_at(offset: usize) -> u8 {
    (offset as u32).wrapping_mul(0x9E37_79B1).to_be_bytes()[0]
}

/// A part as it was stored.
struct Stored {
    range: PartRange,
    name: ObjectName,
    content: Vec<u8>,
    sound: bool,
}

fn store(input: &mut Input<'_>, place: &Place, repository: &Repository) -> Stored {
    let (how, from, len) = (input.byte(), input.short(), input.short().max(1));
    let (from, len) = (usize::from(from), usize::from(len));
    let mut content: Vec<u8> = (from..from + len).map(byte_at).collect();
    if how & 1 == 1 {
        content[usize::from(input.short()) % len] ^= 0x55;
    }
    let more = if how & 2 == 2 { u32::from(input.byte()) } else { 0 };
    let range = PartRange { from: from as u32, to: (from + len) as u32 + more };
    // Which takes its time.
    let zeros = if how & 0xF0 == 0xF0 { usize::from(input.byte() % 160) } else { 0 };
    let digest = Sha256::new().chain_update(&content);
    let mut frames: Vec<&[u8]> = vec![&content];
    for begin in (0..zeros).step_by(16) {
        frames.push(&NOTHING[..(zeros - begin).min(16) * MIB]);
    }
    let size = (content.len() + zeros * MIB) as u64 + u64::from(how & 8 == 8);
    let summary = StoredSummary { size, sha256: hex::encode(digest.finalize()), segment: None };
    let layout = layout();
    let suffix = format!("part.{range}.{}", summary.short_checksum());
    let file = WalFile::Segment(SEGMENT.parse().expect("a segment"));
    let name = layout.wal_variant(system(), file, &suffix);
    let mut object = seal(repository, &name, &frames, &summary.to_bytes().expect("it is written"));
    if how & 4 == 4 {
        let at = usize::from(input.short()) % object.len();
        object[at] ^= 1;
    }
    place.put(&name, object);
    let sound = how & 0b1100 == 0 && more == 0 && zeros == 0;
    Stored { range, name, content, sound }
}

fn system() -> SystemId {
    "15-7450000000000000001".parse().expect("a system")
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (place, repository) = plain();
    let mut stored: Vec<Stored> = Vec::new();
    while !input.is_empty() && stored.len() < 24 {
        let part = store(&mut input, &place, &repository);
        // The same name again is another object in its place.
        stored.retain(|other| part.name != other.name);
        stored.push(part);
    }
    stored.sort_by(|a, b| (a.range, &a.name).cmp(&(b.range, &b.name)));
    let segment: SegmentName = SEGMENT.parse().expect("a segment");
    let store = WalStore::new(&repository, &layout(), system());
    let parts = wait(store.parts(segment)).expect("they are listed");
    let ranges: Vec<PartRange> = stored.iter().map(|part| part.range).collect();
    assert_eq!(parts.iter().map(|part| part.range).collect::<Vec<_>>(), ranges);

    let mut joined = Vec::new();
    let read = wait(store.copy_parts(segment, &mut joined));
    let sound: Vec<PartRange> =
        stored.iter().filter(|part| part.sound).map(|part| part.range).collect();
    // The first to have a byte decides it.
    let mut expected: Vec<u8> = Vec::new();
    let mut differ = false;
    for part in stored.iter().filter(|part| part.sound) {
        let from = part.range.from as usize;
        if from > expected.len() {
            break;
        }
        let (old, new) = part.content.split_at((expected.len() - from).min(part.content.len()));
        differ |= expected[from..from + old.len()] != *old;
        expected.extend_from_slice(new);
    }
    match read {
        Ok(len) => {
            assert!(!differ, "parts differ and are put together");
            assert_eq!((len, joined.len() as u64), (covered(&sound), len));
            assert!(joined == expected, "not what the parts have");
            let summary = wait(store.parts_summary(segment, SegmentSize::default()));
            summary.expect("as they were read");
        }
        Err(e) => match e.kind() {
            Kind::Conflict => assert!(differ, "{e}, and they don't differ"),
            Kind::Damaged => {
                let reached = covered(&sound);
                let further = |part: &Stored| !part.sound && u64::from(part.range.to) > reached;
                assert!(stored.iter().any(further), "{e}, and all is there");
            }
            _ => panic!("{e}"),
        },
    }
    // What is stored here is read back as it was.
    let pieces = [Bytes::from(expected)];
    let length = pieces[0].len() as u64;
    if length > 0 {
        let (_, repository) = plain();
        let store = WalStore::new(&repository, &layout(), system());
        let part = wait(store.put_part(segment, 0, &pieces)).expect("it is stored");
        assert_eq!(part.range.bytes(), length);
        let mut back = Vec::new();
        assert_eq!(wait(store.copy_parts(segment, &mut back)).expect("it is read"), length);
        assert!(back == pieces[0]);
    }
}
