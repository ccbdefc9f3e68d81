//! Writes WAL as a server does, to read it again.

use crc_fast::crc32_iscsi;

use super::super::header::{PAGE_HEADER, SegmentHeader};
use crate::postgres::{Lsn, SegmentName, SegmentSize, Timeline};

pub const BLOCK: u64 = 8192;
pub const MAGIC_15: u16 = 0xD110;
pub const SYSTEM: u64 = 0x0123_4567_89AB_CDEF;

/// A record as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub start: Lsn,
    pub end: Lsn,
    pub resource_manager: u8,
    pub xid: u32,
    pub length: u32,
}

pub struct Writer {
    pub size: SegmentSize,
    pub magic: u16,
    pub timeline: Timeline,
    /// The first segment's number.
    pub first: u64,
    pub bytes: Vec<u8>,
    pub previous: Lsn,
    pub records: Vec<Written>,
    gives_up: bool,
}

impl Writer {
    /// Begins at the start of segment `first`.
    pub fn new(size: SegmentSize, first: u64) -> Self {
        Writer {
            size,
            magic: MAGIC_15,
            timeline: Timeline(0x1F),
            first,
            bytes: Vec::new(),
            previous: Lsn(8),
            records: Vec::new(),
            gives_up: false,
        }
    }

    pub fn position(&self) -> Lsn {
        Lsn(self.size.start_of(self.first).0 + self.bytes.len() as u64)
    }

    /// Writes content of a record of which `left` bytes, these included, are missing.
    fn put(&mut self, mut content: &[u8], mut left: u32) {
        while !content.is_empty() {
            self.open_page(left);
            let room = BLOCK - self.position().0 % BLOCK;
            let n = content.len().min(room as usize);
            self.bytes.extend_from_slice(&content[..n]);
            left -= n as u32;
            content = &content[n..];
        }
    }

    /// Writes a page header if one is due.
    fn open_page(&mut self, left: u32) {
        let position = self.position();
        if !position.0.is_multiple_of(BLOCK) {
            return;
        }
        let long = position.0.is_multiple_of(self.size.bytes());
        let gives_up = std::mem::take(&mut self.gives_up);
        let flags =
            u16::from(left > 0 && !gives_up) | u16::from(long) << 1 | u16::from(gives_up) << 3;
        let mut header = Vec::new();
        header.extend(self.magic.to_le_bytes());
        header.extend(flags.to_le_bytes());
        header.extend(self.timeline.0.to_le_bytes());
        header.extend(position.0.to_le_bytes());
        header.extend(if gives_up { 0 } else { left }.to_le_bytes());
        header.resize(PAGE_HEADER, 0);
        if long {
            header.extend(SYSTEM.to_le_bytes());
            header.extend((self.size.bytes() as u32).to_le_bytes());
            header.extend((BLOCK as u32).to_le_bytes());
            assert_eq!(header.len(), SegmentHeader::LEN);
        }
        self.bytes.extend(header);
    }

    /// The bytes of a record.
    fn encode(&self, resource_manager: u8, info: u8, xid: u32, content: &[u8]) -> Vec<u8> {
        let mut header = Vec::new();
        header.extend((content.len() as u32 + 24).to_le_bytes());
        header.extend(xid.to_le_bytes());
        header.extend(self.previous.0.to_le_bytes());
        header.extend([info, resource_manager, 0, 0]);
        let crc = crc32_iscsi(&[content, &header].concat());
        header.extend(crc.to_le_bytes());
        header.extend(content);
        header
    }

    pub fn record(&mut self, resource_manager: u8, info: u8, xid: u32, content: &[u8]) -> Written {
        self.open_page(0);
        let start = self.position();
        let record = self.encode(resource_manager, info, xid, content);
        let length = record.len() as u32;
        self.put(&record, length);
        while !self.bytes.len().is_multiple_of(8) {
            self.bytes.push(0);
        }
        self.previous = start;
        let end = self.position();
        let written = Written { start, end, resource_manager, xid, length };
        self.records.push(written);
        written
    }

    /// A switch record, and zeros to the segment's end.
    pub fn switch(&mut self) -> Written {
        self.record(0, 0x40, 0, &[]);
        self.fill();
        let end = self.position();
        let last = self.records.last_mut().expect("just written");
        last.end = end;
        *last
    }

    /// Zeros to the segment's end.
    pub fn fill(&mut self) {
        let size = self.size.bytes() as usize;
        self.bytes.resize(self.bytes.len().next_multiple_of(size), 0);
    }

    /// A record of which only so many bytes reach the disk, and what a server writes after that: it
    /// goes on at the next page, saying so.
    pub fn torn(&mut self, content: &[u8], written: usize) {
        self.open_page(0);
        let record = self.encode(10, 0, 9, content);
        self.put(&record[..written], record.len() as u32);
        let page = self.bytes.len().next_multiple_of(BLOCK as usize);
        self.bytes.resize(page, 0);
        self.gives_up = true;
    }

    /// The segments, the last filled up with zeros.
    pub fn segments(&mut self) -> Vec<(SegmentName, Vec<u8>)> {
        self.fill();
        let chunks = self.bytes.chunks(self.size.bytes() as usize);
        let name = |i: usize| self.size.name(self.timeline, self.first + i as u64);
        chunks.enumerate().map(|(i, bytes)| (name(i), bytes.to_vec())).collect()
    }
}

/// Main data as a record has it.
pub fn main_data(data: &[u8]) -> Vec<u8> {
    match u8::try_from(data.len()) {
        Ok(length) => [&[255, length], data].concat(),
        Err(_) => [&[254], &(data.len() as u32).to_le_bytes()[..], data].concat(),
    }
}
