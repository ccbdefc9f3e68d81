//! Timelines that come from one another, with WAL and backups, and what recovery makes of them.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};
use pgkeep::{
    postgres::{Lsn, SegmentName, Timeline},
    repo::{record::BackupRecord, replay::StopRule},
};

use crate::{
    restore_write::store::{self, Files},
    support::{
        random::Random,
        wal::{HEAP, SEGMENT, Writer, main_data, segment_size},
    },
};

/// What is in a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Other,
    Commit { xid: u32, time: DateTime<Utc> },
    Point { name: String },
}

/// A record of WAL: on which timeline, from where to where.
#[derive(Debug, Clone)]
pub struct Record {
    pub timeline: Timeline,
    pub start: Lsn,
    pub end: Lsn,
    pub what: What,
}

/// A record, told from all others.
pub type Key = (Timeline, Lsn);

/// A timeline.
pub struct Line {
    pub timeline: Timeline,
    /// The timelines it comes from, and where each was left, the first one first.
    pub ancestors: Vec<(usize, Lsn)>,
    /// Where it begins.
    pub begin: Lsn,
    /// When.
    pub begun: DateTime<Utc>,
    wal: Writer,
    /// Its own records.
    pub records: Vec<Record>,
    xid: u32,
    /// Its server is gone.
    pub is_over: bool,
}

/// Where recovery stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// The record that stops it.
    pub record: Key,
    /// How far it came.
    pub position: Lsn,
}

pub struct World {
    pub random: Random,
    pub now: DateTime<Utc>,
    pub lines: Vec<Line>,
    pub backups: Vec<BackupRecord>,
    /// The whole segments that are archived.
    pub whole: BTreeMap<SegmentName, Vec<u8>>,
    /// What there is of others, from their beginning.
    pub open: BTreeMap<SegmentName, Open>,
    /// The files of those that were damaged in the archive, after how many eighths of what is stored, and stored beside
    /// that once more.
    pub healed: Vec<(String, usize)>,
    points: u32,
}

/// The beginning of a segment.
pub struct Open {
    pub bytes: Vec<u8>,
    /// A stream has stored it; else the server that was promoted has archived it.
    pub is_streamed: bool,
}

impl World {
    /// One timeline with a backup.
    pub fn begun(seed: u64) -> Self {
        let now = "2026-11-20T00:00:00Z".parse().expect("a time");
        let begin = segment_size().start_of(1);
        let first = Line {
            timeline: Timeline(1),
            ancestors: Vec::new(),
            begin,
            begun: now,
            wal: Writer::new(1),
            records: Vec::new(),
            xid: 700,
            is_over: false,
        };
        let random = Random::of_seed(seed);
        let (lines, backups) = (vec![first], Vec::new());
        let (whole, open) = (BTreeMap::new(), BTreeMap::new());
        let healed = Vec::new();
        let mut world = World { random, now, lines, backups, whole, open, healed, points: 0 };
        world.commit(0);
        world.back_up(0);
        world
    }

    /// One timeline with a backup, and whatever happens then.
    pub fn new(seed: u64) -> Self {
        let mut world = World::begun(seed);
        for _ in 0..8 + world.random.below(30) {
            world.step();
        }
        for line in 0..world.lines.len() {
            if world.random.below(3) > 0 && !world.lines[line].is_over {
                world.switch(line);
            }
        }
        world.archive();
        world.lose();
        world
    }

    /// What is whole is archived. Of the rest a stream may have stored what there is.
    pub fn archive(&mut self) {
        for line in &self.lines {
            let first = segment_size().number_at(line.begin);
            for (number, bytes) in (first..).zip(line.wal.bytes.chunks(SEGMENT)) {
                let (name, bytes) = (segment_size().name(line.timeline, number), bytes.to_vec());
                if bytes.len() == SEGMENT {
                    self.whole.insert(name, bytes);
                } else if line.is_over || self.random.below(2) == 0 {
                    let is_streamed = !line.is_over || self.random.below(2) == 0;
                    self.open.insert(name, Open { bytes, is_streamed });
                }
            }
        }
    }

    /// What is archived may be lost all the same, or damaged.
    fn lose(&mut self) {
        if self.random.below(3) == 0 {
            let lost = self.random.below(self.whole.len() as u64) as usize;
            let name = *self.whole.keys().nth(lost).expect("a segment");
            self.whole.remove(&name);
        }
        let lost: BTreeSet<SegmentName> =
            self.open.keys().filter(|_| self.random.below(4) == 0).copied().collect();
        self.open.retain(|name, _| !lost.contains(name));
        let partial = self.open.iter().filter(|(_, open)| !open.is_streamed);
        let partial = partial.map(|(name, _)| format!("{name}.partial")).collect();
        let whole: Vec<String> = self.whole.keys().map(SegmentName::to_string).collect();
        for files in [whole, partial] {
            let eighths = 1 + self.random.below(7) as usize;
            let file = files.get(self.random.below(2 * files.len().max(1) as u64) as usize);
            self.healed.extend(file.map(|file| (file.clone(), eighths)));
        }
    }

    fn step(&mut self) {
        let line = self.random.below(self.lines.len() as u64) as usize;
        if self.lines[line].is_over {
            return;
        }
        match self.random.below(16) {
            0..6 => self.commit(line),
            6..8 => self.point(line),
            8..11 => self.switch(line),
            11..14 => self.back_up(line),
            _ if self.lines.len() < 5 => self.fork(line),
            _ => {}
        }
    }

    fn pass(&mut self) {
        self.now += TimeDelta::seconds(1 + self.random.below(20) as i64);
    }

    fn write(&mut self, line: usize, what: What, write: impl FnOnce(&mut Writer)) {
        let line = &mut self.lines[line];
        // A page's header comes before a record at its beginning.
        let start = after_header(line.wal.position());
        write(&mut line.wal);
        let end = line.wal.position();
        line.records.push(Record { timeline: line.timeline, start, end, what });
    }

    pub fn commit(&mut self, line: usize) {
        self.pass();
        let most = if self.random.below(4) == 0 { 600_000 } else { 20_000 };
        let filler = vec![7; self.random.below(most) as usize];
        self.write(line, What::Other, |wal| wal.record(HEAP, 0, 0, &main_data(&filler)));
        self.lines[line].xid += 1;
        let (xid, time) = (self.lines[line].xid, self.now);
        self.write(line, What::Commit { xid, time }, |wal| wal.commit(xid, time));
    }

    /// A commit that goes over into the next segment, or nearly so.
    fn cross(&mut self, line: usize) {
        let at = self.lines[line].wal.position().0;
        let room = SEGMENT as u64 - at % SEGMENT as u64;
        let filler = (room - room / 8192 * 24).saturating_sub(60 + self.random.below(60));
        let filler = vec![7; filler as usize];
        self.write(line, What::Other, |wal| wal.record(HEAP, 0, 0, &main_data(&filler)));
        self.lines[line].xid += 1;
        let (xid, time) = (self.lines[line].xid, self.now);
        self.write(line, What::Commit { xid, time }, |wal| wal.commit(xid, time));
    }

    fn point(&mut self, line: usize) {
        self.pass();
        self.points += 1;
        let (name, time) = (format!("point {}", self.points), self.now);
        self.write(line, What::Point { name: name.clone() }, |wal| wal.restore_point(&name, time));
    }

    pub fn switch(&mut self, line: usize) {
        if !self.lines[line].wal.position().0.is_multiple_of(SEGMENT as u64) {
            self.write(line, What::Other, Writer::switch);
        }
    }

    fn back_up(&mut self, line: usize) {
        self.pass();
        self.switch(line);
        let started_at = self.now;
        let start = after_header(self.lines[line].wal.position());
        self.write(line, What::Other, |wal| wal.record(HEAP, 0, 0, &main_data(&[1; 100])));
        for _ in 0..self.random.below(3) {
            self.commit(line);
        }
        self.pass();
        self.write(line, What::Other, |wal| wal.backup_end(start));
        let stop = self.lines[line].wal.position();
        let id = format!("{}-full", self.now.format("%Y%m%dT%H%M%SZ"));
        let record = store::record(&id.parse().expect("an id"), &Files::default(), 0, 0);
        self.backups.push(BackupRecord {
            timeline: self.lines[line].timeline,
            start_lsn: start,
            stop_lsn: stop,
            segment_size: segment_size(),
            started_at,
            stopped_at: self.now,
            ..record
        });
        // The server has the last segment archived before the backup counts.
        self.commit(line);
        self.switch(line);
    }

    /// A new timeline from the end of one, whose server goes on or not, or from somewhere on it.
    fn fork(&mut self, line: usize) {
        self.pass();
        let is_failover = self.random.below(2) == 0;
        if is_failover && self.random.below(2) == 0 {
            self.cross(line);
        }
        let parent = &self.lines[line];
        let Some(last) = parent.records.last() else { return };
        let at = match is_failover {
            true => last.clone(),
            false => {
                let some = self.random.below(parent.records.len() as u64) as usize;
                parent.records[some].clone()
            }
        };
        let is_over = is_failover && self.random.below(2) == 0;
        self.fork_at(line, &at, is_over);
    }

    /// A new timeline from behind that record of one, whose server goes on or not.
    pub fn fork_at(&mut self, line: usize, at: &Record, is_over: bool) {
        self.pass();
        let parent = &self.lines[line];
        let timeline = Timeline(self.lines.len() as u32 + 1);
        let xid =
            parent.records.iter().filter(|record| record.end <= at.end).filter_map(xid_of).max();
        let mut ancestors = parent.ancestors.clone();
        ancestors.push((line, at.end));
        let child = Line {
            timeline,
            ancestors,
            begin: at.end,
            begun: self.now,
            wal: parent.wal.fork(at.end, at.start, timeline.0),
            records: Vec::new(),
            xid: xid.unwrap_or(parent.xid),
            is_over: false,
        };
        let (previous, time) = (parent.timeline, self.now);
        self.lines[line].is_over = is_over;
        self.lines.push(child);
        let child = self.lines.len() - 1;
        self.write(child, What::Other, |wal| wal.promotion(time, previous.0));
    }

    /// The history file of a timeline that has one.
    pub fn history(&self, line: &Line) -> Option<String> {
        let of = |(ancestor, end): &(usize, Lsn)| {
            format!("{}\t{end}\tno recovery target specified\n", self.lines[*ancestor].timeline.0)
        };
        (!line.ancestors.is_empty()).then(|| line.ancestors.iter().map(of).collect())
    }

    pub fn line(&self, timeline: Timeline) -> &Line {
        &self.lines[timeline.0 as usize - 1]
    }

    /// The timelines of a path, each from where to where.
    pub fn path(&self, timeline: Timeline) -> Vec<(&Line, Lsn)> {
        let line = self.line(timeline);
        let ancestors = line.ancestors.iter().map(|(line, end)| (&self.lines[*line], *end));
        ancestors.chain([(line, Lsn(u64::MAX))]).collect()
    }

    /// The records along a path.
    pub fn records(&self, timeline: Timeline) -> Vec<&Record> {
        let path = self.path(timeline).into_iter();
        path.flat_map(|(line, end)| line.records.iter().filter(move |record| record.start < end))
            .collect()
    }

    /// The backups that recovery along a path can begin with, the oldest first.
    pub fn backups_on(&self, timeline: Timeline) -> Vec<&BackupRecord> {
        let path = self.path(timeline);
        let lies_on = |backup: &&BackupRecord| {
            path.iter()
                .any(|(line, end)| line.timeline == backup.timeline && backup.stop_lsn <= *end)
        };
        self.backups.iter().filter(lies_on).collect()
    }

    /// The timelines of a path that have begun in a segment or before, the newest first, and where each is left.
    fn begun_by(&self, timeline: Timeline, number: u64) -> impl Iterator<Item = (Timeline, Lsn)> {
        let path = self.path(timeline).into_iter().rev();
        let has_begun =
            move |(line, _): &(&Line, Lsn)| segment_size().number_at(line.begin) <= number;
        let begun: Vec<_> =
            path.filter(has_begun).map(|(line, end)| (line.timeline, end)).collect();
        begun.into_iter()
    }

    /// How far there is anything of a timeline's own copy of a segment, and whether it is whole.
    fn copy(&self, timeline: Timeline, number: u64) -> Option<(Lsn, bool)> {
        let name = segment_size().name(timeline, number);
        let start = segment_size().start_of(number);
        match (self.whole.contains_key(&name), self.open.get(&name)) {
            (true, _) => Some((segment_size().start_of(number + 1), true)),
            (false, Some(open)) => Some((Lsn(start.0 + open.bytes.len() as u64), false)),
            (false, None) => None,
        }
    }

    /// How far a path has a segment, and whether it is whole: that of the newest timeline that has begun; or of it or
    /// an older one what there is, unless that goes on where the path has left it.
    fn segment(&self, timeline: Timeline, number: u64) -> Option<(Lsn, bool)> {
        let newest = self.begun_by(timeline, number).next()?;
        match self.copy(newest.0, number) {
            Some((end, true)) => return Some((end, true)),
            Some(open) => return Some(open).filter(|(end, _)| *end <= newest.1),
            None => {}
        }
        let mut older = self.begun_by(timeline, number).filter_map(|(timeline, end)| {
            let (to, is_whole) = self.copy(timeline, number)?;
            Some((to, end, is_whole))
        });
        let (to, end, is_whole) = older.next()?;
        (!is_whole && to <= end).then_some((to, false))
    }

    /// The records that recovery from a backup along a path comes by, in order; how far it comes; and the first segment
    /// that isn't there.
    fn replayed(&self, backup: &BackupRecord, timeline: Timeline) -> (Vec<&Record>, u64) {
        let size = segment_size();
        let mut number = size.number_at(backup.start_lsn);
        let mut until = backup.start_lsn;
        while let Some((end, is_whole)) = self.segment(timeline, number) {
            until = end;
            if !is_whole {
                number += u64::from(!self.goes_on(timeline, number));
                break;
            }
            number += 1;
        }
        let mut records = self.records(timeline);
        records.retain(|record| record.start >= backup.start_lsn && record.end <= until);
        (records, number)
    }

    /// Where recovery from a backup along a path is stopped by a rule.
    pub fn replay(
        &self,
        backup: &BackupRecord,
        timeline: Timeline,
        rule: &StopRule,
    ) -> Option<Stopped> {
        self.replayed(backup, timeline).0.into_iter().find_map(|record| {
            let position = stops(rule, record)?;
            Some(Stopped { record: (record.timeline, record.start), position })
        })
    }

    /// How far recovery from a backup along a path comes, and which segment isn't there then.
    pub fn reach(&self, backup: &BackupRecord, timeline: Timeline) -> (Lsn, u64) {
        let (records, missing) = self.replayed(backup, timeline);
        (records.last().map_or(backup.start_lsn, |last| last.end), missing)
    }

    /// Whether there is WAL of a path behind a segment.
    pub fn goes_on(&self, timeline: Timeline, number: u64) -> bool {
        self.path(timeline).into_iter().any(|(line, end)| {
            let from = segment_size().number_at(line.begin).max(number + 1);
            let to = segment_size().number_before(end);
            let names = self.whole.keys().chain(self.open.keys());
            let mut of_it = names.filter(|name| name.timeline == line.timeline);
            of_it.any(|name| {
                name.number(segment_size()).is_some_and(|number| (from..=to).contains(&number))
            })
        })
    }

    /// Where the server leaves a path that it is told to follow up to a position or to the end: it takes the newest file that
    /// there is of a segment, and none of a timeline that is older than that of the file before (`xlogrecovery.c`,
    /// `XLogFileReadAnyTLI`).
    pub fn leaves_path(&self, backup: &BackupRecord, timeline: Timeline, until: Lsn) -> bool {
        let mut last = Timeline(0);
        let first = segment_size().number_at(backup.start_lsn);
        for number in first..=segment_size().number_before(until) {
            let newest_first = self.begun_by(timeline, number).filter(|(of, _)| *of >= last);
            let mut copies = newest_first.filter_map(|(of, left)| {
                let (end, is_whole) = self.copy(of, number)?;
                Some((of, end.min(until) > left, is_whole))
            });
            match copies.next() {
                Some((_, true, _)) => return true,
                Some((of, false, true)) => last = of,
                _ => return false,
            }
        }
        false
    }
}

/// Where replay stops at this record, if it does (`xlogrecovery.c`, `recoveryStopsBefore` and `recoveryStopsAfter`).
fn stops(rule: &StopRule, record: &Record) -> Option<Lsn> {
    let at = |exclusive: &bool| if *exclusive { record.start } else { record.end };
    match (rule, &record.what) {
        (StopRule::Time { time, exclusive }, What::Commit { time: of, .. }) => {
            (of > time || *exclusive && of == time).then_some(record.start)
        }
        (StopRule::Xid { xid, exclusive }, What::Commit { xid: of, .. }) => {
            (xid == of).then(|| at(exclusive))
        }
        (StopRule::Name(name), What::Point { name: of }) => (name == of).then_some(record.end),
        (StopRule::Lsn { lsn, exclusive }, _) => (record.start >= *lsn).then(|| at(exclusive)),
        _ => None,
    }
}

fn xid_of(record: &Record) -> Option<u32> {
    match record.what {
        What::Commit { xid, .. } => Some(xid),
        _ => None,
    }
}

/// Where a record begins that is written at `position`.
fn after_header(position: Lsn) -> Lsn {
    match position.0 {
        at if at.is_multiple_of(SEGMENT as u64) => Lsn(at + 0x28),
        at if at.is_multiple_of(8192) => Lsn(at + 0x18),
        at => Lsn(at),
    }
}
