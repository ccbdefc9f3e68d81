//! What the records of the resource manager XACT say (`access/xact.h`): when which transaction
//! committed or aborted.
//!
//! The record of a large transaction can be of many megabytes (subtransactions, dropped files,
//! invalidations), so it is decoded as it streams by, and lists are skipped. A prepared
//! transaction's commit or abort has no transaction id in its record's header: it comes after all
//! the lists but the last.

use chrono::{DateTime, Utc};

use super::{record::fragment, time::from_timestamp};

const COMMIT: u8 = 0x00;
const ABORT: u8 = 0x20;
const COMMIT_PREPARED: u8 = 0x30;
const ABORT_PREPARED: u8 = 0x40;
/// A word of flags follows the time.
const HAS_INFO: u8 = 0x80;

/// Flags: database and tablespace, 8 bytes; the prepared transaction's id.
const HAS_DATABASE: u32 = 1 << 0;
const HAS_TWO_PHASE: u32 = 1 << 4;

/// The lists, in the order they come in: flag, and bytes an element. Dropped statistics, from 15
/// on, are of 16 bytes since 18.
fn list(number: usize, major: u32) -> Option<(u32, u64)> {
    match number {
        0 => Some((1 << 1, 4)),                                 // subtransactions
        1 => Some((1 << 2, 12)),                                // dropped files
        2 => Some((1 << 8, if major >= 18 { 16 } else { 12 })), // dropped statistics
        3 => Some((1 << 3, 16)),                                // invalidations
        _ => None,
    }
}

/// The end of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    pub time: DateTime<Utc>,
    /// The top-level transaction id.
    pub xid: u32,
    pub committed: bool,
    pub prepared: bool,
}

/// Where the decoder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Fragment,
    ShortLength,
    LongLength,
    Time,
    Flags,
    /// The length of a list, by its number.
    Length(usize),
    TwoPhase,
    Done,
    Broken,
}

impl Step {
    /// How many bytes it needs; none when nothing more is wanted.
    fn width(self) -> usize {
        match self {
            Step::Fragment | Step::ShortLength => 1,
            Step::LongLength | Step::Flags | Step::Length(_) | Step::TwoPhase => 4,
            Step::Time => 8,
            Step::Done | Step::Broken => 0,
        }
    }
}

/// Decodes one record's content, fed in pieces.
#[derive(Debug, Clone)]
pub(super) struct XactDecoder {
    info: u8,
    major: u32,
    step: Step,
    bytes: [u8; 8],
    have: usize,
    skip: u64,
    time: i64,
    flags: u32,
    prepared_xid: Option<u32>,
}

impl XactDecoder {
    /// A decoder for a record with this info byte, if it ends a transaction.
    pub fn new(info: u8, major: u32) -> Option<Self> {
        matches!(info & 0x70, COMMIT | ABORT | COMMIT_PREPARED | ABORT_PREPARED).then_some(
            XactDecoder {
                info,
                major,
                step: Step::Fragment,
                bytes: [0; 8],
                have: 0,
                skip: 0,
                time: 0,
                flags: 0,
                prepared_xid: None,
            },
        )
    }

    /// Takes the next bytes of the content.
    pub fn feed(&mut self, mut content: &[u8]) {
        while !content.is_empty() {
            if self.skip > 0 {
                let n = content.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
                self.skip -= n as u64;
                content = &content[n..];
                continue;
            }
            let width = self.step.width();
            if width == 0 {
                return;
            }
            let n = content.len().min(width - self.have);
            self.bytes[self.have..self.have + n].copy_from_slice(&content[..n]);
            self.have += n;
            content = &content[n..];
            if self.have == width {
                self.have = 0;
                self.step = self.advance();
            }
        }
    }

    /// What the record says, given the transaction id in its header. `None` when it ended before
    /// it said it.
    pub fn outcome(&self, header_xid: u32) -> Option<Outcome> {
        let prepared = self.is_prepared();
        let xid = if prepared { self.prepared_xid? } else { header_xid };
        (self.step == Step::Done).then(|| Outcome {
            time: from_timestamp(self.time),
            xid,
            committed: matches!(self.info & 0x70, COMMIT | COMMIT_PREPARED),
            prepared,
        })
    }

    fn is_prepared(&self) -> bool {
        matches!(self.info & 0x70, COMMIT_PREPARED | ABORT_PREPARED)
    }

    /// The step after the one whose bytes are all here.
    fn advance(&mut self) -> Step {
        let [a, b, c, d, ..] = self.bytes;
        let word = u32::from_le_bytes([a, b, c, d]);
        match self.step {
            Step::Fragment => match a {
                fragment::SHORT_DATA => Step::ShortLength,
                fragment::LONG_DATA => Step::LongLength,
                fragment::ORIGIN => self.skipping(2, Step::Fragment),
                fragment::TOP_LEVEL_XID => self.skipping(4, Step::Fragment),
                _ => Step::Broken,
            },
            // The main data is the last fragment, and the only one.
            Step::ShortLength | Step::LongLength => Step::Time,
            Step::Time => {
                self.time = i64::from_le_bytes(self.bytes);
                match (self.info & HAS_INFO != 0, self.is_prepared()) {
                    (true, true) => Step::Flags,
                    (false, true) => Step::Broken,
                    // The rest isn't needed.
                    (_, false) => Step::Done,
                }
            }
            Step::Flags => {
                self.flags = word;
                let database = if word & HAS_DATABASE != 0 { 8 } else { 0 };
                let next = self.list_from(0);
                self.skipping(database, next)
            }
            Step::Length(number) => match (i32::try_from(word), list(number, self.major)) {
                (Ok(_), Some((_, width))) => {
                    let next = self.list_from(number + 1);
                    self.skipping(u64::from(word) * width, next)
                }
                _ => Step::Broken,
            },
            Step::TwoPhase => {
                self.prepared_xid = Some(word);
                Step::Done
            }
            Step::Done | Step::Broken => self.step,
        }
    }

    fn skipping(&mut self, bytes: u64, next: Step) -> Step {
        self.skip = bytes;
        next
    }

    /// The first list that is there from `number` on, or what comes after the lists.
    fn list_from(&self, number: usize) -> Step {
        let mut number = number;
        while let Some((flag, _)) = list(number, self.major) {
            if self.flags & flag != 0 {
                return Step::Length(number);
            }
            number += 1;
        }
        if self.flags & HAS_TWO_PHASE != 0 { Step::TwoPhase } else { Step::Broken }
    }
}
