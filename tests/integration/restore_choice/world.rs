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
    is_over: bool,
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
    /// Segments that are lost.
    pub lost: BTreeSet<SegmentName>,
    points: u32,
}

impl World {
    /// One timeline with a backup, and what happens then.
    pub fn new(seed: u64) -> Self {
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
        let (backups, lost) = (Vec::new(), BTreeSet::new());
        let mut world = World { random, now, lines: vec![first], backups, lost, points: 0 };
        world.commit(0);
        world.back_up(0);
        for _ in 0..8 + world.random.below(30) {
            world.step();
        }
        // What isn't switched isn't archived.
        for line in 0..world.lines.len() {
            if world.random.below(3) > 0 && !world.lines[line].is_over {
                world.switch(line);
            }
        }
        if world.random.below(3) == 0 {
            let archived: Vec<SegmentName> = world.segments().into_keys().collect();
            let at = world.random.below(archived.len() as u64) as usize;
            world.lost.insert(archived[at]);
        }
        world
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

    fn commit(&mut self, line: usize) {
        self.pass();
        let most = if self.random.below(4) == 0 { 600_000 } else { 20_000 };
        let filler = vec![7; self.random.below(most) as usize];
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

    fn switch(&mut self, line: usize) {
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
        let parent = &self.lines[line];
        let is_failover = self.random.below(2) == 0;
        let Some(last) = parent.records.last() else { return };
        let at = match is_failover {
            true => last.clone(),
            false => {
                let some = self.random.below(parent.records.len() as u64) as usize;
                parent.records[some].clone()
            }
        };
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
        self.lines[line].is_over = is_failover && self.random.below(2) == 0;
        self.lines.push(child);
        let child = self.lines.len() - 1;
        self.write(child, What::Other, |wal| wal.promotion(time, previous.0));
    }

    /// The segments that are archived, by name.
    pub fn segments(&self) -> BTreeMap<SegmentName, Vec<u8>> {
        let mut segments = BTreeMap::new();
        for line in &self.lines {
            let first = segment_size().number_at(line.begin);
            for (number, bytes) in (first..).zip(line.wal.bytes.chunks_exact(SEGMENT)) {
                segments.insert(segment_size().name(line.timeline, number), bytes.to_vec());
            }
        }
        segments.retain(|name, _| !self.lost.contains(name));
        segments
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

    /// Whether recovery along a path has a segment: of the newest timeline that begins in it or before.
    pub fn has(&self, timeline: Timeline, number: u64, segments: &BTreeSet<SegmentName>) -> bool {
        let path = self.path(timeline);
        let begun =
            path.iter().rev().find(|(line, _)| segment_size().number_at(line.begin) <= number);
        begun
            .is_some_and(|(line, _)| segments.contains(&segment_size().name(line.timeline, number)))
    }

    /// Replays from a backup along a path until a rule stops it or a segment isn't there.
    pub fn replay(
        &self,
        backup: &BackupRecord,
        timeline: Timeline,
        rule: &StopRule,
        segments: &BTreeSet<SegmentName>,
    ) -> Option<Stopped> {
        let size = segment_size();
        for record in self.records(timeline) {
            if record.start < backup.start_lsn {
                continue;
            }
            let mut numbers = size.number_at(record.start)..=size.number_at(Lsn(record.end.0 - 1));
            if !numbers.all(|number| self.has(timeline, number, segments)) {
                return None;
            }
            if let Some(position) = stops(rule, record) {
                let record = (record.timeline, record.start);
                return Some(Stopped { record, position });
            }
        }
        None
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
