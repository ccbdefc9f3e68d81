//! The front: segments in, events and summaries out.

use std::io;

use chrono::{DateTime, Utc};

use super::{
    assembler::Assembler,
    head::{RecordHead, Trailing},
    record::Record,
    summary::SegmentSummary,
    tablespace::NewTablespace,
    xlog::Xlog,
};
use crate::postgres::{Lsn, SegmentName, SegmentSize, Timeline};

/// Something in the WAL that a recovery can end at, or that tells about timelines and backups.
///
/// `start` is the first byte of its record and `end` the position after it, where the next record
/// begins (unless a page's header comes first), as `pg_current_wal_insert_lsn()` counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Any record; only if asked for with [`SegmentScanner::report_records`], and before the event
    /// that tells what it says.
    Record {
        /// The record's first byte.
        start: Lsn,
        /// The position after it: for a switch record, the end of the segment.
        end: Lsn,
        /// The number of its resource manager (`access/rmgrlist.h`).
        resource_manager: u8,
        /// The transaction id in its header, 0 for none.
        xid: u32,
        /// Its length without page headers and padding, in bytes.
        length: u32,
    },
    /// A transaction ended: what targets by time and by transaction id look at. Preparing one
    /// doesn't end it.
    Transaction {
        /// The record's first byte.
        start: Lsn,
        /// The position after it.
        end: Lsn,
        /// When, by the clock of the server that wrote it.
        time: DateTime<Utc>,
        /// The top-level transaction id.
        xid: u32,
        /// Commit or abort.
        committed: bool,
        /// Whether it had been prepared (COMMIT PREPARED, ROLLBACK PREPARED).
        prepared: bool,
    },
    /// A restore point.
    RestorePoint {
        /// The record's first byte.
        start: Lsn,
        /// The position after it: what `pg_create_restore_point()` returned.
        end: Lsn,
        /// When it was made.
        time: DateTime<Utc>,
        /// Its name.
        name: String,
    },
    /// A base backup ended: from here on a restore of it is consistent.
    BackupEnd {
        /// The record's first byte.
        start: Lsn,
        /// The position after it.
        end: Lsn,
        /// Where that backup began.
        backup_start: Lsn,
    },
    /// A recovery ended and a timeline began.
    EndOfRecovery {
        /// The record's first byte.
        start: Lsn,
        /// The position after it.
        end: Lsn,
        /// When it was; to the second if a checkpoint says it.
        time: DateTime<Utc>,
        /// The timeline that began.
        timeline: Timeline,
        /// The timeline before it.
        previous: Timeline,
    },
    /// A tablespace is made, in a directory outside the data directory.
    NewTablespace {
        /// The record's first byte.
        start: Lsn,
        /// The position after it.
        end: Lsn,
        /// Its object id.
        oid: u32,
        /// The directory, on the host that wrote the record.
        path: String,
    },
}

/// Scans a segment, or several in a row. Fed in pieces of any size; holds none of them.
///
/// It never fails: what isn't valid WAL ends the scan, and the summary says how far it came.
#[derive(Debug, Clone)]
pub struct SegmentScanner {
    size: SegmentSize,
    assembler: Assembler,
    summary: SegmentSummary,
    records: bool,
}

impl SegmentScanner {
    /// A scanner for the segment `name` of a cluster with segments of `size`.
    ///
    /// `head` is what [`trailing_head`](super::trailing_head) found in the segment before. One
    /// that doesn't fit this segment is ignored; if then one is missing, the summary says so.
    pub fn new(name: SegmentName, size: SegmentSize, head: Option<RecordHead>) -> Self {
        let start = start_of(name, size);
        SegmentScanner {
            size,
            assembler: Assembler::new(name.timeline, start, size, head),
            summary: SegmentSummary::empty(start.unwrap_or_default()),
            records: false,
        }
    }

    /// Makes every record an [`Event::Record`], as a search for a position needs.
    #[must_use]
    pub fn report_records(mut self) -> Self {
        self.records = true;
        self
    }

    /// Takes the next bytes of the segment and calls `on_event` for what ends in them, in order.
    /// Bytes past the segment's end are ignored.
    pub fn feed(&mut self, bytes: &[u8], on_event: &mut dyn FnMut(&Event)) {
        let (summary, records) = (&mut self.summary, self.records);
        self.assembler.feed(bytes, &mut |record, end| {
            summary.end = end;
            if records {
                on_event(&Event::Record {
                    start: record.start(),
                    end,
                    resource_manager: record.resource_manager(),
                    xid: record.xid(),
                    length: record.length(),
                });
            }
            if let Some(event) = event_of(record, end) {
                summary.add(&event);
                on_event(&event);
            }
        });
    }

    /// What goes on after the segment, once it has been fed.
    pub fn trailing(&self) -> Trailing {
        self.assembler.trailing()
    }

    /// Ends this segment and goes on with `name`, which usually is the next one, of the same
    /// timeline or a descendant. A record that straddles the two is put together. If `name` isn't
    /// the next one, or this segment wasn't valid up to its end (which the summary says with
    /// `whole`), it is as if `name` were the first.
    pub fn next_segment(&mut self, name: SegmentName) -> SegmentSummary {
        let start = start_of(name, self.size);
        let summary =
            std::mem::replace(&mut self.summary, SegmentSummary::empty(start.unwrap_or_default()));
        let summary = conclude(summary, &self.assembler);
        self.assembler.next_segment(name.timeline, start);
        summary
    }

    /// Ends the scan.
    pub fn finish(self) -> SegmentSummary {
        conclude(self.summary, &self.assembler)
    }
}

/// Scans a file that holds a segment, or the beginning of one, from its start.
pub fn scan_file(
    file: &mut (impl io::Read + io::Seek),
    name: SegmentName,
    size: SegmentSize,
) -> io::Result<SegmentSummary> {
    let mut scanner = SegmentScanner::new(name, size, None);
    file.rewind()?;
    io::copy(file, &mut scanner)?;
    Ok(scanner.finish())
}

/// What is written is fed, for nobody to hear of but the summary.
impl io::Write for SegmentScanner {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.feed(bytes, &mut |_| {});
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where the segment begins; `None` for a name that no segment of this size has.
fn start_of(name: SegmentName, size: SegmentSize) -> Option<Lsn> {
    name.number(size).map(|number| size.start_of(number))
}

fn conclude(summary: SegmentSummary, assembler: &Assembler) -> SegmentSummary {
    SegmentSummary {
        whole: assembler.is_whole(),
        head_known: assembler.head_known(),
        timeline: assembler.timeline(),
        magic: assembler.magic(),
        parsed: assembler.is_parsed(),
        ..summary
    }
}

/// What a valid record says, if it matters.
fn event_of(record: &Record, end: Lsn) -> Option<Event> {
    let start = record.start();
    if let Some(outcome) = record.outcome() {
        return Some(Event::Transaction {
            start,
            end,
            time: outcome.time,
            xid: outcome.xid,
            committed: outcome.committed,
            prepared: outcome.prepared,
        });
    }
    if let Some(NewTablespace { oid, path }) = record.tablespace() {
        return Some(Event::NewTablespace { start, end, oid, path });
    }
    Some(match record.xlog()? {
        Xlog::RestorePoint { time, name } => Event::RestorePoint { start, end, time, name },
        Xlog::BackupEnd { backup_start } => Event::BackupEnd { start, end, backup_start },
        Xlog::TimelineChange { time, timeline, previous } => {
            Event::EndOfRecovery { start, end, time, timeline, previous }
        }
    })
}
