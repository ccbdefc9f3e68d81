//! WAL: segments, pages and records.
//!
//! The first byte chooses the form (even: the bytes of a segment as they are; odd: records, from which a
//! segment is written as a server does, with headers, back links and checksums) and the cuts; the next two are
//! the timeline and the segment's number, one the version. A record is its resource manager, its info, a
//! transaction id of one byte and its content behind its length; a length of 65535 says that bytes are changed from here
//! on: position and value. Read at once, in pieces and on from the segment before, the result is the same.

use crc_fast::crc32_iscsi;
use pgkeep::postgres::{
    Lsn, SegmentName, SegmentSize, Timeline,
    wal::{Event, SegmentHeader, SegmentScanner, SegmentSummary, scan_file, trailing_head},
};

use super::input::Input;

const BLOCK: usize = 8192;
/// Of PostgreSQL 13 to 18.
const MAGICS: [u16; 6] = [0xD106, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118];

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).expect("the smallest")
}

struct Writer {
    bytes: Vec<u8>,
    start: Lsn,
    timeline: Timeline,
    magic: u16,
    previous: Lsn,
}

impl Writer {
    fn position(&self) -> u64 {
        self.start.0 + self.bytes.len() as u64
    }

    fn open_page(&mut self, left: u32) {
        if !self.bytes.len().is_multiple_of(BLOCK) {
            return;
        }
        let first = self.bytes.len().is_multiple_of(1 << 20);
        let position = self.position();
        self.bytes.extend(self.magic.to_le_bytes());
        self.bytes.extend((u16::from(left > 0) | u16::from(first) << 1).to_le_bytes());
        self.bytes.extend(self.timeline.0.to_le_bytes());
        self.bytes.extend(position.to_le_bytes());
        self.bytes.extend(u64::from(left).to_le_bytes());
        if first {
            self.bytes.extend(7_450_000_000_000_000_001u64.to_le_bytes());
            self.bytes.extend((1u32 << 20).to_le_bytes());
            self.bytes.extend((BLOCK as u32).to_le_bytes());
        }
    }

    fn record(&mut self, manager: u8, info: u8, xid: u8, content: &[u8]) {
        self.open_page(0);
        let start = Lsn(self.position());
        let mut record = (content.len() as u32 + 24).to_le_bytes().to_vec();
        record.extend(u32::from(xid).to_le_bytes());
        record.extend(self.previous.0.to_le_bytes());
        record.extend([info, manager, 0, 0]);
        let checksum = crc32_iscsi(&[content, &record].concat());
        record.extend(checksum.to_le_bytes());
        record.extend(content);
        let mut rest = record.as_slice();
        while !rest.is_empty() {
            self.open_page(rest.len() as u32);
            let room = BLOCK - self.bytes.len() % BLOCK;
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.bytes.extend(now);
            rest = later;
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.previous = start;
    }
}

fn written(input: &mut Input<'_>, name: SegmentName, magic: u16) -> Vec<u8> {
    let number = name.number(size()).unwrap_or(0);
    let start = size().start_of(number);
    let (bytes, previous) = (Vec::new(), Lsn(start.0.saturating_sub(8)));
    let mut writer = Writer { bytes, start, timeline: name.timeline, magic, previous };
    while !input.is_empty() {
        let (manager, info, xid, len) = (input.byte(), input.byte(), input.byte(), input.short());
        if len == u16::MAX {
            break;
        }
        writer.record(manager, info, xid, input.take(len.into()));
    }
    let mut bytes = writer.bytes;
    while !input.is_empty() {
        let (at, value) = (input.short() as usize, input.byte());
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
    }
    bytes
}

fn scan(name: SegmentName, bytes: &[u8], piece: usize) -> (Vec<Event>, SegmentSummary) {
    let mut scanner = SegmentScanner::new(name, size(), None).report_records();
    let mut events = Vec::new();
    for piece in bytes.chunks(piece) {
        scanner.feed(piece, &mut |event| events.push(event.clone()));
    }
    scanner.trailing();
    (events, scanner.finish())
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (form, timeline, number, version) =
        (input.byte(), Timeline(input.byte().into()), input.byte(), input.byte());
    // The last numbers are those of the last segments that there are.
    let number = match number {
        0xF8.. => (u64::MAX >> 20) - u64::from(u8::MAX - number),
        _ => u64::from(number),
    };
    let name = size().name(timeline, number);
    let segment = match form & 1 {
        0 => input.rest().to_vec(),
        _ => {
            let magic = MAGICS[usize::from(version) % MAGICS.len()];
            written(&mut input, name, magic)
        }
    };
    let _ = SegmentHeader::parse(&segment).map(|header| header.major());
    let (events, summary) = scan(name, &segment, segment.len().max(1));
    let piece = 1 + usize::from(form >> 1) * 61;
    assert!(scan(name, &segment, piece) == (events, summary.clone()), "in pieces of {piece}");
    let mut file = std::io::Cursor::new(&segment);
    assert_eq!(scan_file(&mut file, name, size()).ok().as_ref(), Some(&summary));
    let json = serde_json::to_vec(&summary).expect("it is written");
    assert_eq!(serde_json::from_slice(&json).ok(), Some(summary.clone()));
    // What follows: as the next segment, and as one that has a head.
    let next = size().name(timeline, number.saturating_add(1).min(u64::MAX >> 20));
    let mut scanner = SegmentScanner::new(name, size(), None);
    scanner.feed(&segment, &mut |_| {});
    let whole = scanner.clone().finish();
    assert_eq!(scanner.next_segment(next), whole);
    scanner.feed(&segment, &mut |_| {});
    scanner.finish();
    // A whole segment's end is read from its last pages. Seldom, since it takes a megabyte.
    if form >> 1 == 3 {
        let mut whole = segment;
        whole.resize(1 << 20, 0);
        let mut file = std::io::Cursor::new(&whole);
        let head = trailing_head(&mut file, size()).expect("nothing fails").into_head();
        let mut scanner = SegmentScanner::new(next, size(), head);
        scanner.feed(&whole, &mut |_| {});
        scanner.finish();
    }
}
