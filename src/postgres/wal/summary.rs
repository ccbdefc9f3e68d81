//! What is kept of a segment: enough to choose the segment a recovery target lies in without
//! reading any.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::scanner::Event;
use crate::postgres::{Lsn, Timeline};

/// How many elements the lists of a summary hold at most. A segment of usual size has none or one.
const LONGEST_LIST: usize = 4096;

/// What a segment holds, as far as it matters for planning a recovery.
///
/// A record that straddles two segments belongs to the one it ends in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SegmentSummary {
    /// The position of the segment's first byte.
    pub start: Lsn,
    /// The end of the last valid record that ends in here; `start` if none does.
    pub end: Lsn,
    /// Whether the WAL is valid up to the segment's end (a record that goes on in the next one
    /// included, as far as can be seen from here), or to a switch record.
    pub whole: bool,
    /// Whether the record that began in the segment before was read too, or there was none. If
    /// not, that record isn't in this summary, and who searches must feed both segments, in order,
    /// to one scanner.
    pub head_known: bool,
    /// The timeline of the last valid page; 0 if there is none.
    pub timeline: Timeline,
    /// The magic of the first page: the version of the WAL format.
    pub magic: u16,
    /// False: not a segment, or one of a version that isn't known; nothing below is known either,
    /// and `end` and `whole` say nothing.
    pub parsed: bool,
    /// The commits and aborts, prepared ones included; none if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transactions: Option<TransactionRange>,
    /// The restore points, in order. Names may repeat.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restore_points: Vec<RestorePoint>,
    /// The start positions of the base backups that end in here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backup_ends: Vec<Lsn>,
    /// Where a recovery ended and a timeline began.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub end_of_recovery: Vec<EndOfRecovery>,
    /// Whether a tablespace is made outside the data directory. None: it wasn't told when this was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub makes_tablespace: Option<bool>,
    /// Whether one of the lists was too long and ends early: the segment itself knows the rest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lists_cut: bool,
}

/// The commits and aborts of a segment.
///
/// Times are the server's clock: mostly ascending, but not always, and a clock may be set back.
/// Transaction ids are compared as plain numbers, as a recovery target is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TransactionRange {
    /// The earliest time.
    pub min_time: DateTime<Utc>,
    /// The latest time: a recovery to an earlier one ends in this segment, if not before.
    pub max_time: DateTime<Utc>,
    /// The time of the last one.
    pub last_time: DateTime<Utc>,
    /// The end of the last commit or abort record.
    pub last_commit: Lsn,
    /// The smallest transaction id.
    pub min_xid: u32,
    /// The largest transaction id.
    pub max_xid: u32,
    /// The last one's transaction id.
    pub last_xid: u32,
    /// How many there are.
    pub count: u64,
}

/// A restore point, made by `pg_create_restore_point()`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RestorePoint {
    /// Its name. Bytes that aren't UTF-8 (of a database in another encoding) were replaced.
    pub name: String,
    /// When it was made.
    pub time: DateTime<Utc>,
    /// The end of its record, which is what `pg_create_restore_point()` returned.
    pub lsn: Lsn,
}

/// The end of a recovery, where a timeline begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EndOfRecovery {
    /// When it was; to the second if a checkpoint says it.
    pub time: DateTime<Utc>,
    /// The timeline that began.
    pub timeline: Timeline,
    /// The timeline before it.
    pub previous: Timeline,
}

impl SegmentSummary {
    /// The summary of a segment that begins at `start`, with nothing in it yet.
    pub(super) fn empty(start: Lsn) -> Self {
        SegmentSummary {
            start,
            end: start,
            whole: false,
            head_known: true,
            timeline: Timeline(0),
            magic: 0,
            parsed: false,
            transactions: None,
            restore_points: Vec::new(),
            backup_ends: Vec::new(),
            end_of_recovery: Vec::new(),
            makes_tablespace: Some(false),
            lists_cut: false,
        }
    }

    /// Whether this, which was stored, says what was `found` in the segment, as far as it was told then.
    pub fn fits(&self, found: &SegmentSummary) -> bool {
        let makes_tablespace = self.makes_tablespace.or(found.makes_tablespace);
        SegmentSummary { makes_tablespace, ..self.clone() } == *found
    }

    /// Whether it is certain that no record that ends in here makes a tablespace.
    pub fn makes_no_tablespace(&self) -> bool {
        self.parsed && self.head_known && self.makes_tablespace == Some(false)
    }

    /// Whether a recovery to `time` would end in this segment, if it didn't in one before: whether
    /// there is a commit or abort after it, or, if the target is exclusive, at it. With
    /// `head_known` false the segment may hold one more.
    pub fn passes_time(&self, time: DateTime<Utc>, exclusive: bool) -> bool {
        let latest = self.transactions.as_ref().map(|t| t.max_time);
        latest.is_some_and(|latest| latest > time || (exclusive && latest == time))
    }

    /// Whether the transaction may have ended in here; the segment itself knows.
    pub fn may_hold_xid(&self, xid: u32) -> bool {
        self.transactions.as_ref().is_some_and(|t| (t.min_xid..=t.max_xid).contains(&xid))
    }

    /// The first restore point of this name. If there is none and `lists_cut`, the segment itself
    /// knows.
    pub fn restore_point(&self, name: &str) -> Option<&RestorePoint> {
        self.restore_points.iter().find(|point| point.name == name)
    }

    /// Adds what an event says.
    pub(super) fn add(&mut self, event: &Event) {
        match event {
            Event::Record { .. } => {}
            Event::NewTablespace { .. } => self.makes_tablespace = Some(true),
            Event::Transaction { end, time, xid, .. } => match &mut self.transactions {
                Some(range) => range.add(*end, *time, *xid),
                none => *none = Some(TransactionRange::of(*end, *time, *xid)),
            },
            Event::RestorePoint { end, time, name, .. } => {
                let point = RestorePoint { name: name.clone(), time: *time, lsn: *end };
                self.lists_cut |= !push(&mut self.restore_points, point);
            }
            Event::BackupEnd { backup_start, .. } => {
                self.lists_cut |= !push(&mut self.backup_ends, *backup_start);
            }
            Event::EndOfRecovery { time, timeline, previous, .. } => {
                let (time, timeline, previous) = (*time, *timeline, *previous);
                let end = EndOfRecovery { time, timeline, previous };
                self.lists_cut |= !push(&mut self.end_of_recovery, end);
            }
        }
    }
}

/// Adds to a list that isn't too long; says whether.
fn push<T>(list: &mut Vec<T>, element: T) -> bool {
    let room = list.len() < LONGEST_LIST;
    if room {
        list.push(element);
    }
    room
}

impl TransactionRange {
    fn of(end: Lsn, time: DateTime<Utc>, xid: u32) -> Self {
        TransactionRange {
            min_time: time,
            max_time: time,
            last_time: time,
            last_commit: end,
            min_xid: xid,
            max_xid: xid,
            last_xid: xid,
            count: 1,
        }
    }

    fn add(&mut self, end: Lsn, time: DateTime<Utc>, xid: u32) {
        self.min_time = self.min_time.min(time);
        self.max_time = self.max_time.max(time);
        self.last_time = time;
        self.last_commit = end;
        self.min_xid = self.min_xid.min(xid);
        self.max_xid = self.max_xid.max(xid);
        self.last_xid = xid;
        self.count += 1;
    }
}
