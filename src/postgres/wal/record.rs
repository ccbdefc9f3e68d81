//! One record being put together from pieces (`access/xlogrecord.h`).
//!
//! A record's header is 24 bytes: length u32, transaction id u32, start of the record before u64,
//! info u8, resource manager u8, 2 unused, checksum u32. The checksum is CRC-32C over the content
//! first, and the header's first 20 bytes after it. The content is not kept: it goes through the
//! checksum, and through a decoder where it matters.

use crc_fast::{CrcAlgorithm, Digest};

use super::{
    header::{u32_at, u64_at},
    tablespace::{self, NewTablespace},
    xact::{Outcome, XactDecoder},
    xlog::{self, Xlog},
};
use crate::postgres::Lsn;

/// The length of a record's header, in bytes.
pub(super) const RECORD_HEADER: usize = 24;
/// The longest record a server makes is a little shorter than this (`XLogRecordMaxSize`, and in 13
/// to 15 what it can allocate).
const LONGEST: u32 = 1 << 30;

const RM_XLOG: u8 = 0;
const RM_XACT: u8 = 1;
const RM_TABLESPACE: u8 = 5;

/// What the fragments of a record begin with, beside the numbers of blocks (0 to 32).
pub(super) mod fragment {
    /// Main data, with a length of one byte.
    pub const SHORT_DATA: u8 = 255;
    /// Main data, with a length of four bytes.
    pub const LONG_DATA: u8 = 254;
    /// A replication origin, two bytes.
    pub const ORIGIN: u8 = 253;
    /// The top-level transaction id, four bytes (from 14 on).
    pub const TOP_LEVEL_XID: u8 = 252;
}

/// Who looks at the content.
#[derive(Debug, Clone)]
enum Content {
    Ignored,
    Xact(XactDecoder),
    /// The beginning is collected in [`Record::collected`].
    Xlog,
    /// So is this one's.
    Tablespace,
}

/// A record that has begun, and perhaps ended.
#[derive(Debug, Clone)]
pub(super) struct Record {
    start: Lsn,
    header: [u8; RECORD_HEADER],
    /// How many of its bytes were taken.
    have: u32,
    /// Its length; 0 as long as it isn't known.
    total: u32,
    checksum: Digest,
    content: Content,
    collected: Vec<u8>,
}

/// The bytes can't be a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotARecord;

impl Record {
    /// A record that begins at `start`, with no bytes yet.
    pub fn new(start: Lsn) -> Self {
        Record {
            start,
            header: [0; RECORD_HEADER],
            have: 0,
            total: 0,
            checksum: Digest::new(CrcAlgorithm::Crc32Iscsi),
            content: Content::Ignored,
            collected: Vec::new(),
        }
    }

    /// Forgets the record and begins another, without allocating anew.
    pub fn begin(&mut self, start: Lsn) {
        self.start = start;
        self.have = 0;
        self.total = 0;
        self.checksum.reset();
        self.content = Content::Ignored;
        self.collected.clear();
    }

    /// Where it begins.
    pub fn start(&self) -> Lsn {
        self.start
    }

    /// How many bytes are missing; meaningless before the length is known, which it is after the
    /// first four bytes, and those are always on the record's first page.
    pub fn missing(&self) -> u32 {
        self.total.saturating_sub(self.have)
    }

    /// Whether every byte is here.
    pub fn is_complete(&self) -> bool {
        self.have as usize >= RECORD_HEADER && self.have == self.total
    }

    /// Takes bytes of the record, of which `bytes` may have more than are missing, and says how
    /// many. `previous` is the start of the record before, if it is known.
    pub fn take(
        &mut self,
        bytes: &[u8],
        previous: Option<Lsn>,
        major: u32,
    ) -> Result<usize, NotARecord> {
        let have = self.have as usize;
        if have < RECORD_HEADER {
            let n = bytes.len().min(RECORD_HEADER - have);
            self.header[have..have + n].copy_from_slice(&bytes[..n]);
            self.have += n as u32;
            if have < 4 && have + n >= 4 {
                self.total = u32_at(&self.header, 0).unwrap_or(0);
                if !(RECORD_HEADER as u32..LONGEST).contains(&self.total) {
                    return Err(NotARecord);
                }
            }
            if have + n == RECORD_HEADER {
                self.check_header(previous)?;
                self.content = match self.resource_manager() {
                    RM_XACT => {
                        XactDecoder::new(self.info(), major).map_or(Content::Ignored, Content::Xact)
                    }
                    RM_XLOG if xlog::matters(self.info()) => Content::Xlog,
                    RM_TABLESPACE if tablespace::matters(self.info()) => Content::Tablespace,
                    _ => Content::Ignored,
                };
            }
            return Ok(n);
        }
        let n = bytes.len().min(self.missing() as usize);
        let content = &bytes[..n];
        self.checksum.update(content);
        match &mut self.content {
            Content::Ignored => {}
            Content::Xact(decoder) => decoder.feed(content),
            Content::Xlog => self.collect(content, xlog::LOOKED_AT),
            Content::Tablespace => self.collect(content, tablespace::LOOKED_AT),
        }
        self.have += n as u32;
        Ok(n)
    }

    fn collect(&mut self, content: &[u8], most: usize) {
        let room = most.saturating_sub(self.collected.len());
        self.collected.extend_from_slice(&content[..content.len().min(room)]);
    }

    /// Whether the header fits the record before it. When that one isn't known the link must at
    /// least lead back.
    fn check_header(&self, previous: Option<Lsn>) -> Result<(), NotARecord> {
        let link = Lsn(u64_at(&self.header, 8).unwrap_or(0));
        let fits = match previous {
            Some(previous) => link == previous,
            None => link < self.start,
        };
        if fits { Ok(()) } else { Err(NotARecord) }
    }

    /// Whether the checksum of a complete record is right.
    pub fn is_valid(&mut self) -> bool {
        let Some((covered, stored)) = self.header.split_at_checked(RECORD_HEADER - 4) else {
            return false;
        };
        self.checksum.update(covered);
        Some(self.checksum.finalize()) == u32_at(stored, 0).map(u64::from)
    }

    /// The transaction id in the header; 0 for none.
    pub fn xid(&self) -> u32 {
        u32_at(&self.header, 4).unwrap_or(0)
    }

    /// The length, header included.
    pub fn length(&self) -> u32 {
        self.total
    }

    fn info(&self) -> u8 {
        self.header[16]
    }

    /// The number of the resource manager.
    pub fn resource_manager(&self) -> u8 {
        self.header[17]
    }

    /// Whether it fills the rest of its segment.
    pub fn is_switch(&self) -> bool {
        self.resource_manager() == RM_XLOG && xlog::is_switch(self.info())
    }

    /// How a complete record ends a transaction, if it does.
    pub fn outcome(&self) -> Option<Outcome> {
        match &self.content {
            Content::Xact(decoder) => decoder.outcome(self.xid()),
            _ => None,
        }
    }

    /// What a complete record of XLOG says, if it matters.
    pub fn xlog(&self) -> Option<Xlog> {
        match &self.content {
            Content::Xlog => xlog::decode(self.info(), &self.collected),
            _ => None,
        }
    }

    /// The tablespace that a complete record makes, if it does and that lies outside the data
    /// directory.
    pub fn tablespace(&self) -> Option<NewTablespace> {
        match &self.content {
            Content::Tablespace => tablespace::decode(&self.collected),
            _ => None,
        }
    }
}
