//! Following recovery along a path before it happens: where would it stop, how far can it come?
//!
//! PostgreSQL replays records in the order of their positions and stops at the first one that fits
//! the target (`xlogrecovery.c`, `recoveryStopsBefore` and `recoveryStopsAfter`). Clocks step back
//! and transaction ids are committed out of order, so this looks at the records in the same order:
//! summaries tell which segment may hold the one, and that segment alone is read.

use std::{collections::VecDeque, io};

use chrono::{DateTime, Utc};

use super::{
    timelines::WalInventory,
    wal::{StoredSummary, WalStore},
};
use crate::{
    error::{Error, Kind, Result},
    postgres::{
        Lsn, SegmentName, Timeline, WalFile,
        history::TimelineHistory,
        wal::{Event, SegmentScanner, SegmentSummary, TransactionRange},
    },
    storage::ObjectName,
};

/// Which record ends recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopRule {
    /// Before the first commit or abort later than this (`exclusive`: not earlier).
    Time {
        /// The target.
        time: DateTime<Utc>,
        /// Whether a commit at exactly this time is left out.
        exclusive: bool,
    },
    /// After the first record that starts at this position or behind it (`exclusive`: before it).
    Lsn {
        /// The target.
        lsn: Lsn,
        /// Whether that record is left out.
        exclusive: bool,
    },
    /// After the commit or abort of this transaction (`exclusive`: before it).
    Xid {
        /// The target: the 32 bits that records carry.
        xid: u32,
        /// Whether that transaction is left out.
        exclusive: bool,
    },
    /// After the first restore point of this name.
    Name(String),
}

/// The record that ends recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// How far replay comes: the record's start when it stops before it, else its end.
    pub position: Lsn,
    /// The record's start, which tells it from any other.
    pub record: Lsn,
    /// The record's own time, if it has one.
    pub time: Option<DateTime<Utc>>,
    /// The timeline that the record lies on.
    pub timeline: Timeline,
}

/// How far recovery comes when nothing stops it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// The end of the last record.
    pub end: Lsn,
    /// The last commit or abort.
    pub last_transaction: Option<LastTransaction>,
    /// The first segment that isn't there.
    pub missing: SegmentName,
    /// Whether there is more WAL behind the missing segment, so that its absence is a gap.
    pub gap: bool,
    /// What the server reads instead, and goes on with, though the path has left its timeline: where
    /// a timeline begins in the missing segment, the file that an older one has for it.
    pub astray: Option<SegmentName>,
    /// The last restore points on the way, by name and time: at most [`KEPT_RESTORE_POINTS`].
    pub restore_points: Vec<(String, DateTime<Utc>)>,
}

/// The last commit or abort record of a stretch of WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastTransaction {
    /// Its time.
    pub time: DateTime<Utc>,
    /// The record's end.
    pub end: Lsn,
    /// The transaction.
    pub xid: u32,
}

impl LastTransaction {
    fn of(range: &TransactionRange) -> Self {
        LastTransaction { time: range.last_time, end: range.last_commit, xid: range.last_xid }
    }
}

/// How many restore points a [`Reach`] names.
pub const KEPT_RESTORE_POINTS: usize = 10;

/// The answer of [`Replay::find_stop`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Search {
    /// Recovery stops here. `before` is the last commit or abort that it has replayed.
    Found {
        /// Where.
        stop: Stop,
        /// The time of the last commit or abort before it in the WAL that was looked at.
        before: Option<DateTime<Utc>>,
    },
    /// It doesn't stop before the WAL ends.
    NotFound(Reach),
}

/// A restore point on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PointOnPath {
    /// When it was made.
    pub time: DateTime<Utc>,
    /// The end of its record, which is what `pg_create_restore_point()` returned.
    pub end: Lsn,
    /// The timeline that the record lies on.
    pub timeline: Timeline,
}

/// Recovery along one path of one system, looked at without doing it.
#[derive(Debug, Clone, Copy)]
pub struct Replay<'a> {
    /// The archive.
    pub store: &'a WalStore,
    /// What it holds.
    pub inventory: &'a WalInventory,
    /// The path.
    pub path: &'a TimelineHistory,
}

/// A segment on the path: what it is read from, and what that says of it.
#[derive(Debug, Clone)]
pub struct PathSegment {
    /// Whose name it has.
    pub name: SegmentName,
    /// What it is read from.
    copy: Copy,
    /// Its summary.
    pub summary: SegmentSummary,
}

#[derive(Debug, Clone)]
enum Copy {
    /// One object.
    Object(ObjectName),
    /// The stream's parts.
    Parts,
}

impl Replay<'_> {
    /// The segment of this number as recovery would be served it: whole, or a partial copy or the
    /// stream's parts, whichever have more, where that is all there is and can be. `None` when it
    /// isn't there.
    pub async fn segment(&self, number: u64) -> Result<Option<PathSegment>> {
        if let Some(name) = self.inventory.segment(self.path, number) {
            let file = WalFile::Segment(name);
            let stored = self.store.find(file).await?.ok_or_else(|| self.vanished(name))?;
            let whole = self.readable(stored).await?;
            let (object, stored) = whole.ok_or_else(|| self.vanished(name))?;
            return self.path_segment(name, Copy::Object(object), stored.segment).map(Some);
        }
        let Some(name) = self.inventory.partial(self.path, number) else { return Ok(None) };
        // The server takes a whole one of a timeline in between instead.
        let in_between = self.path.path().rev().map(|(timeline, begin, _)| (timeline, begin));
        let mut in_between = in_between.take_while(|(timeline, _)| *timeline != name.timeline);
        let size = self.inventory.segment_size;
        if in_between.any(|(timeline, begin)| {
            size.number_at(begin) <= number && self.inventory.has_any_of(timeline, number)
        }) {
            return Ok(None);
        }
        let mut best: Option<PathSegment> = None;
        for object in self.store.partials(name).await? {
            let Some((object, stored)) = self.readable(object).await? else { continue };
            let this = self.path_segment(name, Copy::Object(object), stored.segment)?;
            if best.as_ref().is_none_or(|b| this.summary.end > b.summary.end) {
                best = Some(this);
            }
        }
        if let Some(summary) = self.store.parts_summary(name, self.inventory.segment_size).await? {
            let this = self.path_segment(name, Copy::Parts, Some(summary))?;
            if best.as_ref().is_none_or(|b| this.summary.end > b.summary.end) {
                best = Some(this);
            }
        }
        // One that goes on where the path has left its timeline isn't the path's.
        let end = self.path.end_of(name.timeline).flatten();
        Ok(best.filter(|best| end.is_none_or(|end| best.summary.end <= end)))
    }

    /// What the server reads where `number` is the first segment of a timeline and isn't there: it takes the file
    /// of the next older timeline that has one, as long as that isn't older than the one whose file it has read before
    /// (`xlogrecovery.c`, `XLogFileReadAnyTLI`).
    fn astray(&self, number: u64) -> Option<SegmentName> {
        let (size, inventory) = (self.inventory.segment_size, self.inventory);
        let has_begun = |begin: Lsn| size.number_at(begin) <= number;
        let mut newest_first = self.path.path().rev().filter(|(_, begin, _)| has_begun(*begin));
        let (_, begin, _) = newest_first.next()?;
        if !begin.is_valid() || size.number_at(begin) != number {
            return None;
        }
        let before = self.path.timeline_of_segment(number.checked_sub(1)?, size);
        let mut older = newest_first.map(|(timeline, ..)| timeline).take_while(|t| *t >= before);
        older.find(|t| inventory.has_any_of(*t, number)).map(|t| size.name(t, number))
    }

    /// An object, or where that can't be read the first repaired copy that can. `None` when it isn't there.
    async fn readable(&self, name: ObjectName) -> Result<Option<(ObjectName, StoredSummary)>> {
        let stored = self.store.summary(&name).await;
        if let Ok(Some(summary)) = stored {
            return Ok(Some((name, summary)));
        }
        for repair in self.store.repairs_of(&name).await? {
            if let Ok(Some(summary)) = self.store.summary(&repair).await {
                return Ok(Some((repair, summary)));
            }
        }
        stored.map(|_| None)
    }

    fn vanished(&self, name: SegmentName) -> Error {
        let address = self.store.repository().storage().address();
        Error::new(Kind::Wal, format!("segment {name} has vanished from {address} just now"))
    }

    fn path_segment(
        &self,
        name: SegmentName,
        copy: Copy,
        summary: Option<SegmentSummary>,
    ) -> Result<PathSegment> {
        let summary = summary.filter(|s| s.parsed).ok_or_else(|| {
            Error::new(
                Kind::Wal,
                format!("the records of segment {name} are of a version that isn't understood"),
            )
            .hint("use a newer pgkeep")
        })?;
        Ok(PathSegment { name, copy, summary })
    }

    /// The segment that is missing when recovery ends in segment `number`, of which not all is there: the
    /// next one, or this one where there is more WAL behind it.
    fn behind_end(&self, number: u64) -> u64 {
        if self.inventory.goes_on_after(self.path, number) { number } else { number + 1 }
    }

    /// What there is to say when the segments from `first` on end before `number`.
    fn reach(
        &self,
        first: u64,
        number: u64,
        last: Option<&PathSegment>,
        last_transaction: Option<LastTransaction>,
    ) -> Reach {
        let size = self.inventory.segment_size;
        let timeline = self.path.timeline_of_segment(number, size);
        Reach {
            end: last.map_or(size.start_of(first), |s| s.summary.end),
            last_transaction,
            missing: size.name(timeline, number),
            gap: self.inventory.goes_on_after(self.path, number),
            astray: self.astray(number),
            restore_points: Vec::new(),
        }
    }

    /// Follows recovery from `from` (a record's start) until `rule` stops it, the WAL ends, or a
    /// record that starts at `until` or later is reached.
    pub async fn find_stop(
        &self,
        from: Lsn,
        rule: &StopRule,
        until: Option<Lsn>,
    ) -> Result<Search> {
        let size = self.inventory.segment_size;
        let first = size.number_at(from);
        // The segments in which a record that ends in the next one may begin: the one before, and
        // more where a record is longer than a segment.
        let mut before: Vec<PathSegment> = Vec::new();
        let mut last_transaction: Option<LastTransaction> = None;
        let mut restore_points = VecDeque::new();
        let mut number = first;
        while until.is_none_or(|until| size.start_of(number) < until)
            && let Some(mut segment) = self.segment(number).await?
        {
            if may_hold(rule, &segment.summary) {
                let records = matches!(rule, StopRule::Lsn { .. });
                let begin = || Scan::new(rule, from, until);
                let scan = self.scan(&mut before, &mut segment, records, begin, Scan::see).await?;
                if let Some((record, position, time)) = scan.found {
                    let timeline = self.path.timeline_at(record);
                    let stop = Stop { position, record, time, timeline };
                    let before = scan.last.or(last_transaction.map(|t| t.time));
                    return Ok(Search::Found { stop, before });
                }
            }
            if let Some(range) = &segment.summary.transactions
                && range.last_commit > from
            {
                last_transaction = Some(LastTransaction::of(range));
            }
            for point in &segment.summary.restore_points {
                if restore_points.len() >= KEPT_RESTORE_POINTS {
                    restore_points.pop_front();
                }
                restore_points.push_back((point.name.clone(), point.time));
            }
            if segment.summary.end > segment.summary.start {
                before.clear();
            }
            before.push(segment);
            if self.inventory.ends_in(self.path, number) {
                number = self.behind_end(number);
                break;
            }
            number += 1;
        }
        let mut reach = self.reach(first, number, before.last(), last_transaction);
        reach.restore_points = restore_points.into();
        Ok(Search::NotFound(reach))
    }

    /// The restore points called `name` on the way from `from` (a record's start) up to `until`, in
    /// order, and whether the way leads that far: without `until`, always. Reads summaries, and
    /// segments only where a summary doesn't know all.
    pub async fn points_named(
        &self,
        name: &str,
        from: Lsn,
        until: Option<Lsn>,
    ) -> Result<(Vec<PointOnPath>, bool)> {
        let size = self.inventory.segment_size;
        let mut number = size.number_at(from);
        let (mut points, mut before) = (Vec::new(), Vec::<PathSegment>::new());
        let mut add = |end: Lsn, time: DateTime<Utc>| {
            if end > from && until.is_none_or(|until| end <= until) {
                let timeline = self.path.timeline_at(Lsn(end.0 - 1));
                points.push(PointOnPath { time, end, timeline });
            }
        };
        while until.is_none_or(|until| size.start_of(number) < until)
            && let Some(mut segment) = self.segment(number).await?
        {
            let summary = &segment.summary;
            if summary.head_known && !summary.lists_cut {
                let named = summary.restore_points.iter().filter(|point| point.name == name);
                named.for_each(|point| add(point.lsn, point.time));
            } else {
                let see = |named: &mut Vec<_>, event: &Event| match event {
                    Event::RestorePoint { end, time, name: this, .. } if this == name => {
                        named.push((*end, *time));
                    }
                    _ => {}
                };
                let named = self.scan(&mut before, &mut segment, false, Vec::new, see).await?;
                named.into_iter().for_each(|(end, time)| add(end, time));
            }
            if segment.summary.end > segment.summary.start {
                before.clear();
            }
            before.push(segment);
            if self.inventory.ends_in(self.path, number) {
                number = self.behind_end(number);
                break;
            }
            number += 1;
        }
        Ok((points, until.is_none_or(|until| number >= size.number_at(until))))
    }

    /// How far recovery comes from segment `first` on. Reads the last summaries only.
    pub async fn end_from(&self, first: u64) -> Result<Reach> {
        let size = self.inventory.segment_size;
        let missing = self.inventory.first_missing(self.path, first);
        let mut number = missing.number(size).unwrap_or(first);
        let mut last = None;
        let mut until = number;
        if self.segment(number).await?.is_some() {
            until = number + 1;
            number = self.behind_end(number);
        }
        let mut transaction = None;
        for n in (first..until).rev() {
            let Some(segment) = self.segment(n).await? else { break };
            transaction = segment.summary.transactions.as_ref().map(LastTransaction::of);
            last = last.or(Some(segment));
            if transaction.is_some() {
                break;
            }
        }
        Ok(self.reach(first, number, last.as_ref(), transaction))
    }

    /// Tells `see`, and what `begin` makes, what is in a segment, read behind those before it, in which a record
    /// that ends in it may have begun; each single record only if `records`. Where one is damaged inside it is read
    /// from a repaired copy, as recovery would be served it.
    async fn scan<T: Send>(
        &self,
        before: &mut [PathSegment],
        segment: &mut PathSegment,
        records: bool,
        begin: impl Fn() -> T + Sync + Send,
        see: impl Fn(&mut T, &Event) + Sync + Send,
    ) -> Result<T> {
        loop {
            let mut seen = begin();
            let mut on_event = |event: &Event| see(&mut seen, event);
            match self.scan_once(before, segment, records, &mut on_event).await {
                Ok(()) => return Ok(seen),
                Err(e) if e.kind() == Kind::Damaged && self.mend(before, segment).await? => {
                    tracing::warn!("{e}: reading the repaired copy");
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Has the first that is damaged inside be read from a repaired copy; false where there is none that can
    /// be read.
    async fn mend(&self, before: &mut [PathSegment], segment: &mut PathSegment) -> Result<bool> {
        for this in before.iter_mut().chain([segment]) {
            let Copy::Object(name) = &this.copy else { continue };
            if self.is_readable(name).await? {
                continue;
            }
            for repair in self.store.repairs_of(name).await? {
                if repair != *name && self.is_readable(&repair).await? {
                    this.copy = Copy::Object(repair);
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    async fn is_readable(&self, name: &ObjectName) -> Result<bool> {
        match self.store.copy_to(name, &mut io::sink()).await {
            Ok(found) => Ok(found.is_some()),
            Err(e) if e.kind() == Kind::Damaged => Ok(false),
            Err(e) => Err(e),
        }
    }

    async fn scan_once(
        &self,
        before: &[PathSegment],
        segment: &PathSegment,
        records: bool,
        see: &mut (dyn FnMut(&Event) + Send),
    ) -> Result<()> {
        let size = self.inventory.segment_size;
        let begin = |segment: &PathSegment| {
            let scanner = SegmentScanner::new(segment.name, size, None);
            if records { scanner.report_records() } else { scanner }
        };
        let mut scanner = begin(before.first().unwrap_or(segment));
        let next = before.iter().skip(1).chain([segment]);
        for (before, next) in before.iter().zip(next) {
            self.read(before, &mut scanner, &mut |_| {}).await?;
            scanner.next_segment(next.name);
        }
        self.read(segment, &mut scanner, see).await
    }

    async fn read(
        &self,
        segment: &PathSegment,
        scanner: &mut SegmentScanner,
        on_event: &mut (dyn FnMut(&Event) + Send),
    ) -> Result<()> {
        let mut sink = ScannerSink { scanner, on_event };
        let read = match &segment.copy {
            Copy::Object(name) => self.store.copy_to(name, &mut sink).await?.is_some(),
            Copy::Parts => self.store.copy_parts(segment.name, &mut sink).await? > 0,
        };
        if read { Ok(()) } else { Err(self.vanished(segment.name)) }
    }
}

/// Whether the record that `rule` stops at may end in this segment.
fn may_hold(rule: &StopRule, summary: &SegmentSummary) -> bool {
    // The record whose head wasn't known when the segment was pushed is in no summary.
    if !summary.head_known {
        return true;
    }
    let transactions = summary.transactions.as_ref();
    match rule {
        StopRule::Time { time, exclusive: false } => {
            transactions.is_some_and(|t| t.max_time > *time)
        }
        StopRule::Time { time, exclusive: true } => {
            transactions.is_some_and(|t| t.max_time >= *time)
        }
        StopRule::Xid { xid, .. } => {
            transactions.is_some_and(|t| (t.min_xid..=t.max_xid).contains(xid))
        }
        StopRule::Lsn { lsn, .. } => summary.end > *lsn,
        StopRule::Name(name) => summary.lists_cut || summary.restore_point(name).is_some(),
    }
}

/// Looks at records in order until the rule stops.
struct Scan<'a> {
    rule: &'a StopRule,
    from: Lsn,
    until: Option<Lsn>,
    /// Record, position, time.
    found: Option<(Lsn, Lsn, Option<DateTime<Utc>>)>,
    /// The last commit or abort before it.
    last: Option<DateTime<Utc>>,
}

impl<'a> Scan<'a> {
    fn new(rule: &'a StopRule, from: Lsn, until: Option<Lsn>) -> Self {
        Scan { rule, from, until, found: None, last: None }
    }

    fn see(&mut self, event: &Event) {
        if self.found.is_some() {
            return;
        }
        let (start, end, time) = match event {
            Event::Transaction { start, end, time, .. } => (*start, *end, Some(*time)),
            Event::RestorePoint { start, end, time, .. } => (*start, *end, Some(*time)),
            Event::Record { start, end, .. } => (*start, *end, None),
            _ => return,
        };
        if start < self.from || self.until.is_some_and(|until| start >= until) {
            return;
        }
        let at = |exclusive: bool| (start, if exclusive { start } else { end }, time);
        self.found = match (self.rule, event) {
            (StopRule::Time { time: target, exclusive }, Event::Transaction { time, .. })
                if time > target || (*exclusive && time == target) =>
            {
                Some(at(true))
            }
            (StopRule::Xid { xid: target, exclusive }, Event::Transaction { xid, .. })
                if xid == target =>
            {
                Some(at(*exclusive))
            }
            (StopRule::Name(target), Event::RestorePoint { name, .. }) if name == target => {
                Some(at(false))
            }
            (StopRule::Lsn { lsn, exclusive }, Event::Record { .. }) if start >= *lsn => {
                Some(at(*exclusive))
            }
            _ => None,
        };
        let replayed = self.found.is_none_or(|(_, position, _)| position == end);
        if matches!(event, Event::Transaction { .. }) && replayed {
            self.last = time;
        }
    }
}

struct ScannerSink<'a> {
    scanner: &'a mut SegmentScanner,
    on_event: &'a mut (dyn FnMut(&Event) + Send),
}

impl io::Write for ScannerSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.scanner.feed(bytes, self.on_event);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
