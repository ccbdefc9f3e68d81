//! A world whose backups expire: systems, timelines, WAL, and what can be reached in it by walking
//! along segments.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Duration, Utc};
use pgkeep::{
    postgres::{Lsn, SegmentSize, Timeline, history::TimelineHistory},
    repo::{BackupId, BackupType, SystemId, record::BackupRecord},
    retention::{
        facts::{BackupFacts, Facts, LastTime, SystemFacts, TimelineFacts},
        plan::Plan,
    },
};

/// The size of all segments.
pub const SIZE: SegmentSize = SegmentSize::DEFAULT;

/// A segment's place, and when its last transaction ended.
pub type Segments = BTreeMap<u64, Option<DateTime<Utc>>>;

#[derive(Debug, Clone)]
pub struct OneTimeline {
    pub path: TimelineHistory,
    pub segments: Segments,
    /// The segment before which it was cut.
    pub floor: u64,
}

#[derive(Debug, Clone)]
pub struct OneSystem {
    pub timelines: BTreeMap<Timeline, OneTimeline>,
    /// Where the server is: its timeline, and the segment it writes next.
    pub timeline: Timeline,
    pub next: u64,
}

/// Whom a segment can be reached by: system, timeline whose path it lies on, number.
pub type Moment = (SystemId, Timeline, u64);

#[derive(Debug, Clone)]
pub struct World {
    pub now: DateTime<Utc>,
    /// Whether the server's clock was ever set back: then what a moment is isn't clear.
    pub clock_went_back: bool,
    pub systems: BTreeMap<SystemId, OneSystem>,
    pub current: SystemId,
    /// The newest last, as they were taken.
    pub backups: Vec<BackupRecord>,
    pub pinned: BTreeSet<BackupId>,
    pub count: u32,
}

pub fn system(identifier: u64) -> SystemId {
    SystemId { major: 17, identifier }
}

pub fn new_system() -> OneSystem {
    let path = TimelineHistory::first();
    let timeline = OneTimeline { path, segments: Segments::new(), floor: 0 };
    OneSystem {
        timelines: BTreeMap::from([(Timeline(1), timeline)]),
        timeline: Timeline(1),
        next: 1,
    }
}

impl World {
    pub fn new() -> Self {
        World {
            now: "2020-01-01T03:00:00Z".parse().unwrap(),
            clock_went_back: false,
            systems: BTreeMap::from([(system(1), new_system())]),
            current: system(1),
            backups: Vec::new(),
            pinned: BTreeSet::new(),
            count: 0,
        }
    }

    pub fn server(&mut self) -> &mut OneSystem {
        self.systems.get_mut(&self.current).unwrap()
    }

    /// The server writes and archives segments, with a transaction in each or in none.
    pub fn write(&mut self, segments: u64, busy: bool) {
        let now = self.now;
        let server = self.server();
        let timeline = server.timelines.get_mut(&server.timeline).unwrap();
        for number in server.next..server.next + segments {
            timeline.segments.insert(number, busy.then_some(now));
        }
        server.next += segments;
    }

    pub fn back_up(&mut self, kind: BackupType) {
        self.write(1, false);
        self.count += 1;
        let (now, count, current) = (self.now, self.count, self.current);
        let server = self.server();
        let (start, timeline) = (server.next - 1, server.timeline);
        // Replay on a standby may have come to where a segment ends.
        let (source, stop) = if count % 3 == 0 { ("standby", 0) } else { ("primary", 0x100) };
        let record = serde_json::from_value(serde_json::json!({
            "format": 1, "id": format!("20200101T000000Z-{}-{count:08}", match kind {
                BackupType::Full => "full", BackupType::Diff => "diff", BackupType::Incr => "incr",
            }),
            "cluster": "main", "kind": kind, "asked": kind, "label": "", "system": current,
            "server-version": "17.10", "source": source, "timeline": timeline,
            "start-lsn": Lsn(SIZE.start_of(start).0 + 0x28),
            "stop-lsn": Lsn(SIZE.start_of(start + 1).0 + stop), "segment-size": SIZE.bytes(),
            "started-at": now - Duration::minutes(5), "stopped-at": now, "data-checksums": true,
            "sizes": { "files": 0, "cluster": 0, "raw": 0, "stored": 0 }, "pgkeep": "0.1.0"
        }));
        self.write(1, false);
        self.backups.push(record.expect("a record"));
    }

    /// A new timeline leaves the present one `back` segments before its end; what was written behind
    /// that stays in the archive.
    pub fn branch(&mut self, back: u64) {
        let server = self.server();
        let highest = server.timelines.keys().next_back().unwrap().0;
        let from = &server.timelines[&server.timeline].path;
        let begin = from.path().last().unwrap().1;
        let at = server.next.saturating_sub(back).max(SIZE.number_at(begin) + 1);
        let mut text = String::new();
        for (timeline, _, end) in from.path() {
            let end = end.unwrap_or(Lsn(SIZE.start_of(at).0 + 0x800));
            text += &format!("{}\t{end}\tx\n", timeline.0);
        }
        let timeline = Timeline(highest + 1);
        let path = TimelineHistory::parse(timeline, text.as_bytes()).unwrap();
        server
            .timelines
            .insert(timeline, OneTimeline { path, segments: Segments::new(), floor: 0 });
        (server.timeline, server.next) = (timeline, at);
    }

    pub fn upgrade(&mut self) {
        self.current = system(self.current.identifier + 1);
        self.systems.insert(self.current, new_system());
    }

    /// A segment of the present timeline is lost.
    pub fn lose(&mut self, nth: usize) {
        let server = self.server();
        let timeline = server.timelines.get_mut(&server.timeline).unwrap();
        let number = timeline.segments.keys().copied().nth(nth % timeline.segments.len().max(1));
        if let Some(number) = number {
            timeline.segments.remove(&number);
        }
    }

    /// Whether recovery along a path finds a segment.
    pub fn is_there(&self, system: SystemId, path: &TimelineHistory, number: u64) -> bool {
        let timeline = path.timeline_of_segment(number, SIZE);
        let timeline = self.systems[&system].timelines.get(&timeline);
        timeline.is_some_and(|timeline| timeline.segments.contains_key(&number))
    }

    pub fn path(&self, system: SystemId, timeline: Timeline) -> &TimelineHistory {
        &self.systems[&system].timelines[&timeline].path
    }

    /// Whether a backup's own WAL is there.
    pub fn is_usable(&self, record: &BackupRecord) -> bool {
        let path = self.path(record.system, record.timeline);
        let first = SIZE.number_at(record.start_lsn);
        let last = SIZE.number_before(record.stop_lsn);
        (first..=last).all(|number| self.is_there(record.system, path, number))
    }

    /// Whether recovery from a backup can stop at its end: whether its own WAL is there, and what is
    /// behind it.
    pub fn has_its_end(&self, record: &BackupRecord) -> bool {
        let path = self.path(record.system, record.timeline);
        let behind = SIZE.number_at(record.stop_lsn);
        self.is_usable(record) && self.is_there(record.system, path, behind)
    }

    pub fn usable(&self) -> Vec<&BackupRecord> {
        self.backups.iter().filter(|record| self.is_usable(record)).collect()
    }

    /// Every segment that one can replay up to from this backup, along any path.
    pub fn reach(&self, record: &BackupRecord) -> BTreeSet<Moment> {
        let mut reached = BTreeSet::new();
        for (timeline, of_timeline) in &self.systems[&record.system].timelines {
            let path = &of_timeline.path;
            if !record.lies_on(path) {
                continue;
            }
            let mut number = SIZE.number_at(record.start_lsn);
            while self.is_there(record.system, path, number) {
                if number >= SIZE.number_before(record.stop_lsn) {
                    reached.insert((record.system, *timeline, number));
                }
                number += 1;
            }
        }
        reached
    }

    /// The moments since then that can be restored: segments of a timeline's own with a transaction.
    pub fn moments(&self, since: DateTime<Utc>) -> BTreeSet<Moment> {
        let all: BTreeSet<Moment> =
            self.usable().into_iter().flat_map(|record| self.reach(record)).collect();
        let happened = |(system, timeline, number): &Moment| {
            let own = &self.systems[system].timelines[timeline].segments;
            own.get(number).is_some_and(|time| time.is_some_and(|time| time >= since))
        };
        all.into_iter().filter(happened).collect()
    }

    pub fn facts(&self) -> Facts {
        let of_timeline = |timeline: &OneTimeline| {
            let segments = &timeline.segments;
            TimelineFacts {
                path: Some(timeline.path.clone()),
                segments: segments
                    .first_key_value()
                    .zip(segments.last_key_value())
                    .map(|((first, _), (last, _))| (*first, *last)),
                last: match segments.values().rev().find_map(|time| *time) {
                    Some(time) => LastTime::At(time),
                    None => LastTime::None,
                },
                given_up: timeline.floor > segments.keys().next_back().copied().unwrap_or(0),
            }
        };
        let of_system = |system: &OneSystem| SystemFacts {
            segment_size: SIZE,
            timelines: system.timelines.iter().map(|(t, of)| (*t, of_timeline(of))).collect(),
        };
        Facts {
            now: self.now,
            backups: self
                .backups
                .iter()
                .map(|record| BackupFacts {
                    record: record.clone(),
                    usable: self.is_usable(record),
                })
                .collect(),
            damaged: BTreeSet::new(),
            pinned: self.pinned.clone(),
            restoring: BTreeSet::new(),
            systems: self.systems.iter().map(|(id, system)| (*id, of_system(system))).collect(),
            running_from: None,
        }
    }

    pub fn carry_out(&mut self, plan: &Plan) {
        let stays: BTreeSet<_> =
            plan.backups.iter().filter(|v| v.stays()).map(|v| v.backup.clone()).collect();
        self.backups.retain(|record| stays.contains(&record.id));
        for cut in &plan.cuts {
            let system = self.systems.get_mut(&cut.system).unwrap();
            let timeline = system.timelines.get_mut(&cut.timeline).unwrap();
            let before = timeline.segments.len();
            timeline.segments.retain(|number, _| !cut.takes(*number));
            if timeline.segments.len() < before {
                timeline.floor = cut.first_kept.max(timeline.floor);
            }
        }
    }
}
