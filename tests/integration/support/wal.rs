//! WAL as PostgreSQL 15 writes it, in segments of 1 MiB, and the control file of the cluster that it is of.

use std::{
    fs,
    path::{Path, PathBuf},
};

use chrono::{DateTime, Utc};
use crc_fast::crc32_iscsi;
use pgkeep::{
    postgres::{Lsn, SegmentSize},
    repo::SystemId,
};

/// The system of everything that is written here.
pub const SYSTEM: SystemId = SystemId { major: 15, identifier: 7_450_000_000_000_000_001 };

const PAGE: u64 = 8192;
/// The segments' size, in bytes.
pub const SEGMENT: usize = 1 << 20;
/// The first record of a segment follows its long header.
pub const LONG_HEADER: u64 = 0x28;

/// Resource managers, and what their records say (`access/rmgrlist.h`, `catalog/pg_control.h`).
pub const XLOG: u8 = 0;
const XACT: u8 = 1;
pub const HEAP: u8 = 10;
const SWITCH: u8 = 0x40;
const BACKUP_END: u8 = 0x50;
const RESTORE_POINT: u8 = 0x70;
const END_OF_RECOVERY: u8 = 0x90;

/// The segments' size.
pub fn segment_size() -> SegmentSize {
    SegmentSize::new(SEGMENT as u64).expect("a size that there is")
}

/// `global/pg_control` of PostgreSQL 15, with the fields that say whose it is. `start` is where its last
/// checkpoint is.
pub fn control_file(start: Lsn) -> Vec<u8> {
    let mut bytes = vec![0; PAGE as usize];
    let mut put = |at: usize, word: u64, width: usize| {
        bytes[at..at + width].copy_from_slice(&word.to_le_bytes()[..width]);
    };
    put(0, SYSTEM.identifier, 8);
    put(8, 1300, 4);
    put(12, 202_209_061, 4);
    put(16, 6, 4);
    put(32, start.0, 8);
    put(40, start.0, 8);
    put(48, 1, 4);
    put(216, PAGE, 4);
    put(220, 131_072, 4);
    put(224, PAGE, 4);
    put(228, SEGMENT as u64, 4);
    let crc = crc32_iscsi(&bytes[..288]);
    bytes[288..292].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// A data directory as far as archiving looks at it.
pub fn data_directory(path: &Path) -> PathBuf {
    for folder in ["global", "pg_wal"] {
        fs::create_dir_all(path.join(folder)).expect("make a folder");
    }
    fs::write(path.join("PG_VERSION"), "15\n").expect("write");
    let control = control_file(segment_size().start_of(1));
    fs::write(path.join("global/pg_control"), control).expect("write");
    path.to_owned()
}

/// Since 2000, as PostgreSQL counts.
pub fn micros(time: DateTime<Utc>) -> i64 {
    let epoch: DateTime<Utc> = "2000-01-01T00:00:00Z".parse().expect("a time");
    (time - epoch).num_microseconds().expect("it isn't that long ago")
}

/// A record's data behind its short or long header.
pub fn main_data(data: &[u8]) -> Vec<u8> {
    match u8::try_from(data.len()) {
        Ok(length) => [&[255, length], data].concat(),
        Err(_) => [&[254], &(data.len() as u32).to_le_bytes()[..], data].concat(),
    }
}

/// Records put one after the other, and cut into pages.
pub struct Writer {
    pub timeline: u32,
    /// All since the first segment's first byte.
    pub bytes: Vec<u8>,
    first: u64,
    previous: Lsn,
}

impl Writer {
    /// Begins with the segment of this number.
    pub fn new(first: u64) -> Self {
        Writer { timeline: 1, bytes: Vec::new(), first, previous: Lsn(0) }
    }

    /// Where the next record comes.
    pub fn position(&self) -> Lsn {
        Lsn(self.first * SEGMENT as u64 + self.bytes.len() as u64)
    }

    /// A transaction's commit.
    pub fn commit(&mut self, xid: u32, time: DateTime<Utc>) {
        self.record(XACT, 0, xid, &main_data(&micros(time).to_le_bytes()));
    }

    /// The end of the backup that began there.
    pub fn backup_end(&mut self, start: Lsn) {
        self.record(XLOG, BACKUP_END, 0, &main_data(&start.0.to_le_bytes()));
    }

    /// A restore point.
    pub fn restore_point(&mut self, name: &str, time: DateTime<Utc>) {
        let mut data = micros(time).to_le_bytes().to_vec();
        data.extend(name.as_bytes());
        data.resize(72, 0);
        self.record(XLOG, RESTORE_POINT, 0, &main_data(&data));
    }

    /// Another timeline that begins at `end`, behind the record at `last`: its first segment has what there was in
    /// it before.
    pub fn fork(&self, end: Lsn, last: Lsn, timeline: u32) -> Self {
        let first = end.0 / SEGMENT as u64;
        let at = |lsn: u64| (lsn - self.first * SEGMENT as u64) as usize;
        let bytes = self.bytes[at(first * SEGMENT as u64)..at(end.0)].to_vec();
        Writer { timeline, bytes, first, previous: last }
    }

    /// The first record of a timeline that comes from `previous`.
    pub fn promotion(&mut self, time: DateTime<Utc>, previous: u32) {
        let timelines = [self.timeline.to_le_bytes(), previous.to_le_bytes()].concat();
        let data = [&micros(time).to_le_bytes()[..], &timelines].concat();
        self.record(XLOG, END_OF_RECOVERY, 0, &main_data(&data));
    }

    /// Closes the segment: nothing but zeros follows in it.
    pub fn switch(&mut self) {
        self.record(XLOG, SWITCH, 0, &[]);
        self.fill();
    }

    pub fn record(&mut self, resource_manager: u8, info: u8, xid: u32, content: &[u8]) {
        self.open_page(0);
        let start = self.position();
        let mut record = (24 + content.len() as u32).to_le_bytes().to_vec();
        record.extend(xid.to_le_bytes());
        record.extend(self.previous.0.to_le_bytes());
        record.extend([info, resource_manager, 0, 0]);
        let crc = crc32_iscsi(&[content, &record].concat());
        record.extend(crc.to_le_bytes());
        record.extend(content);
        let mut rest = record.as_slice();
        while !rest.is_empty() {
            self.open_page(rest.len() as u32);
            let room = PAGE - self.position().0 % PAGE;
            let (now, later) = rest.split_at(rest.len().min(room as usize));
            self.bytes.extend(now);
            rest = later;
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.previous = start;
    }

    /// Writes a page's header if one is due; `left` bytes of a record go on after it.
    fn open_page(&mut self, left: u32) {
        let position = self.position().0;
        if !position.is_multiple_of(PAGE) {
            return;
        }
        let long = position.is_multiple_of(SEGMENT as u64);
        self.bytes.extend(0xD110_u16.to_le_bytes());
        self.bytes.extend((u16::from(left > 0) | u16::from(long) << 1).to_le_bytes());
        self.bytes.extend(self.timeline.to_le_bytes());
        self.bytes.extend(position.to_le_bytes());
        self.bytes.extend(u64::from(left).to_le_bytes());
        if long {
            self.bytes.extend(SYSTEM.identifier.to_le_bytes());
            self.bytes.extend((SEGMENT as u32).to_le_bytes());
            self.bytes.extend((PAGE as u32).to_le_bytes());
        }
    }

    /// Zeros to the segment's end.
    pub fn fill(&mut self) {
        let left = self.bytes.len().next_multiple_of(SEGMENT) - self.bytes.len();
        self.bytes.extend_from_slice(&vec![0; left]);
    }

    /// The segments so far, the last filled up with zeros.
    pub fn segments(&self) -> Vec<Vec<u8>> {
        let mut bytes = self.bytes.clone();
        bytes.resize(bytes.len().next_multiple_of(SEGMENT), 0);
        bytes.chunks(SEGMENT).map(<[u8]>::to_vec).collect()
    }
}
