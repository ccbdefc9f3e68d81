//! What WAL there is of a system: its timelines, their histories, and rows of segments without a
//! gap.
//!
//! A *path* is a timeline's history: which timeline WAL is read from at each position on the way to
//! it. Everything that asks "what can be reached" (restore, info, the proof at a backup's end) asks
//! it of an inventory and a path. An inventory holds ranges, not segments, so that its size depends
//! on gaps and timelines and not on the length of the archive.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    wal::{WalObject, WalStore},
    wal_parts::{PartRange, covered},
};
use crate::{
    error::{Error, Kind, Result},
    postgres::{Lsn, SegmentName, SegmentSize, Timeline, WalFile, history::TimelineHistory},
};

/// Segments in a row, by number, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentRange {
    /// The first one's number.
    pub first: u64,
    /// The last one's number.
    pub last: u64,
    /// Stored bytes of their objects, repaired copies included.
    pub stored: u64,
}

/// What there is of one timeline.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TimelineWal {
    /// Its whole segments, in rows without a gap, ascending.
    pub ranges: Vec<SegmentRange>,
    /// Segments of which there is a partial copy, or the first of the stream's parts: an end that
    /// recovery may be served.
    pub partials: BTreeSet<u64>,
    /// Those of them that a switch record closes: nothing is behind it in the segment, so they are as
    /// good as whole ones. Known of those only that later segments follow.
    pub closed: BTreeSet<u64>,
    /// Which bytes the stream's parts have of segments that aren't whole, sorted.
    pub parts: BTreeMap<u64, Vec<PartRange>>,
    /// Stored bytes of all its objects.
    pub stored: u64,
}

impl TimelineWal {
    /// The row that holds segment `number`.
    fn range_of(&self, number: u64) -> Option<SegmentRange> {
        let after = self.ranges.partition_point(|range| range.first <= number);
        let range = *self.ranges.get(after.checked_sub(1)?)?;
        (number <= range.last).then_some(range)
    }

    /// Adds a part of a segment. Parts of a whole one, which comes before them in a listing, are left
    /// from before it was.
    fn add_part(&mut self, number: u64, range: PartRange) {
        if self.range_of(number).is_some() {
            return;
        }
        if range.from == 0 {
            self.partials.insert(number);
        }
        let parts = self.parts.entry(number).or_default();
        parts.insert(parts.partition_point(|other| *other <= range), range);
    }

    /// The first gap between the parts of a segment that isn't whole: its first and last byte's
    /// offsets, the latter excluded.
    pub fn hole(&self, number: u64) -> Option<(u64, u64)> {
        let parts = self.parts.get(&number)?;
        let at = covered(parts);
        let behind = parts.iter().map(|part| u64::from(part.from)).find(|from| *from > at)?;
        Some((at, behind))
    }

    /// Adds an object of a segment, the last one so far or the next.
    fn add(&mut self, number: u64, stored: u64) {
        match self.ranges.last_mut() {
            Some(range) if (range.first..=range.last + 1).contains(&number) => {
                range.last = range.last.max(number);
                range.stored += stored;
            }
            _ => self.ranges.push(SegmentRange { first: number, last: number, stored }),
        }
    }
}

/// All WAL of one system in one repository, by timeline.
#[derive(Debug, Clone)]
pub struct WalInventory {
    /// The size of the system's segments.
    pub segment_size: SegmentSize,
    timelines: BTreeMap<Timeline, TimelineWal>,
    histories: BTreeMap<Timeline, TimelineHistory>,
}

impl WalInventory {
    /// Lists the archive of a system whose segments have this size.
    pub async fn read(store: &WalStore, segment_size: SegmentSize) -> Result<Self> {
        Self::read_with(store, segment_size, &mut |_, e| Err(e)).await
    }

    /// As [`WalInventory::read`]; a timeline whose history is damaged is without one, which is warned about.
    pub async fn read_what_can_be(store: &WalStore, segment_size: SegmentSize) -> Result<Self> {
        let warn = &mut |_, e: Error| {
            tracing::warn!("{e}");
            Ok(())
        };
        Self::read_with(store, segment_size, warn).await
    }

    /// As [`WalInventory::read`]; `on_damage` decides what becomes of a timeline whose history can't
    /// be read: the error ends it, or the timeline is without history.
    pub async fn read_with(
        store: &WalStore,
        segment_size: SegmentSize,
        on_damage: &mut (dyn FnMut(Timeline, Error) -> Result<()> + Send),
    ) -> Result<Self> {
        let mut timelines = BTreeMap::new();
        let mut histories = BTreeMap::from([(Timeline(1), TimelineHistory::first())]);
        for timeline in store.timelines().await? {
            let mut wal = TimelineWal::default();
            let mut after = None;
            loop {
                let page = store.page(timeline, after.as_ref()).await?;
                let Some((_, last, _)) = page.last() else { break };
                after = Some(last.clone());
                for (object, name, size) in page {
                    wal.stored += size;
                    match object {
                        WalObject::Plain(WalFile::Segment(segment))
                        | WalObject::Content(WalFile::Segment(segment), _)
                        | WalObject::Repair(WalFile::Segment(segment), _) => {
                            match segment.number(segment_size) {
                                Some(number) => wal.add(number, size),
                                None => {
                                    tracing::warn!("{name} can't be a segment of {segment_size}")
                                }
                            }
                        }
                        WalObject::Partial(segment, _) => {
                            wal.partials.extend(segment.number(segment_size));
                        }
                        WalObject::Part(segment, range, _) => {
                            if let Some(number) = segment.number(segment_size) {
                                wal.add_part(number, range);
                            }
                        }
                        WalObject::Plain(_) | WalObject::Content(..) | WalObject::Repair(..) => {}
                    }
                }
            }
            timelines.insert(timeline, wal);
            if timeline == Timeline(1) {
                continue;
            }
            match read_history(store, timeline).await {
                Ok(history) => histories.extend(history.map(|history| (timeline, history))),
                Err(e) if matches!(e.kind(), Kind::Damaged | Kind::Conflict) => {
                    on_damage(timeline, e)?;
                }
                Err(e) => return Err(e),
            }
        }
        let mut inventory = WalInventory { segment_size, timelines, histories };
        inventory.find_closed(store).await?;
        Ok(inventory)
    }

    async fn find_closed(&mut self, store: &WalStore) -> Result<()> {
        let last = |wal: &TimelineWal| {
            wal.ranges.last().map(|range| range.last).max(wal.partials.last().copied())
        };
        let last = self.timelines.values().filter_map(last).max();
        for (timeline, wal) in &mut self.timelines {
            for number in wal.partials.clone() {
                if Some(number) >= last || wal.range_of(number).is_some() {
                    continue;
                }
                let name = self.segment_size.name(*timeline, number);
                match is_closed(store, name, self.segment_size).await {
                    Ok(true) => drop(wal.closed.insert(number)),
                    Ok(false) => {}
                    Err(e) if matches!(e.kind(), Kind::Damaged | Kind::Conflict) => {
                        tracing::warn!("{e}");
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    /// The timelines that have WAL or a history, ascending.
    pub fn timelines(&self) -> impl Iterator<Item = (Timeline, &TimelineWal)> {
        self.timelines.iter().map(|(timeline, wal)| (*timeline, wal))
    }

    /// The first gap among the stream's parts of each segment that isn't whole and has one
    /// ([`TimelineWal::hole`]), by timeline and number.
    pub fn holes(&self) -> impl Iterator<Item = (Timeline, u64, (u64, u64))> {
        self.timelines().flat_map(|(timeline, wal)| {
            let hole = move |number: &u64| Some((timeline, *number, wal.hole(*number)?));
            wal.parts.keys().filter_map(hole)
        })
    }

    /// The path to a timeline; `None` when its history file isn't there. Timeline 1 has no file and
    /// is always known.
    pub fn path(&self, timeline: Timeline) -> Option<&TimelineHistory> {
        self.histories.get(&timeline)
    }

    /// The timelines whose history is known, ascending.
    pub fn known(&self) -> impl Iterator<Item = &TimelineHistory> {
        self.histories.values()
    }

    fn has_wal(&self, timeline: Timeline) -> bool {
        let wal = self.timelines.get(&timeline);
        wal.is_some_and(|w| !w.ranges.is_empty() || !w.partials.is_empty())
    }

    /// The timelines that have WAL of their own, and those of `others`, that no other such timeline
    /// comes from: where a cluster went on.
    pub fn leaves(&self, others: &[Timeline]) -> Vec<Timeline> {
        let counts = |t: Timeline| self.has_wal(t) || others.contains(&t);
        let known: Vec<_> = self.known().filter(|path| counts(path.timeline)).collect();
        known
            .iter()
            .map(|path| path.timeline)
            .filter(|t| !known.iter().any(|other| other.timeline != *t && other.contains(*t)))
            .collect()
    }

    /// The timelines that have WAL, or are among `others`, and whose history isn't there: nobody can
    /// say where they belong.
    pub fn without_history(&self, others: &[Timeline]) -> Vec<Timeline> {
        let with_wal = self.timelines.keys().copied().filter(|t| self.has_wal(*t));
        let all: BTreeSet<Timeline> = with_wal.chain(others.iter().copied()).collect();
        all.into_iter().filter(|t| self.path(*t).is_none()).collect()
    }

    /// The file from which recovery along `path` reads segment `number`, if it is there whole.
    pub fn segment(&self, path: &TimelineHistory, number: u64) -> Option<SegmentName> {
        let timeline = path.timeline_of_segment(number, self.segment_size);
        self.timelines.get(&timeline)?.range_of(number)?;
        Some(self.segment_size.name(timeline, number))
    }

    /// Whether anything of a timeline's segment is there: the whole, a partial copy, or parts.
    pub fn has_any_of(&self, timeline: Timeline, number: u64) -> bool {
        self.timelines
            .get(&timeline)
            .is_some_and(|wal| wal.range_of(number).is_some() || wal.partials.contains(&number))
    }

    /// The first segment from `first` on that isn't there along `path`.
    pub fn first_missing(&self, path: &TimelineHistory, first: u64) -> SegmentName {
        let mut number = first;
        loop {
            let timeline = path.timeline_of_segment(number, self.segment_size);
            let wal = self.timelines.get(&timeline);
            let Some(range) = wal.and_then(|wal| wal.range_of(number)) else {
                if wal.is_some_and(|wal| wal.closed.contains(&number)) {
                    number += 1;
                    continue;
                }
                return self.segment_size.name(timeline, number);
            };
            // A row goes on past the segment in which the path leaves its timeline.
            number = match path.end_of(timeline).flatten() {
                Some(end) => (range.last + 1).min(self.segment_size.number_at(end)).max(number + 1),
                None => range.last + 1,
            };
        }
    }

    /// The first segment of `path` from `first` on that is there whole.
    pub fn next_there(&self, path: &TimelineHistory, first: u64) -> Option<u64> {
        let size = self.segment_size;
        let of_timeline = |(timeline, begin, end): (Timeline, Lsn, Option<Lsn>)| {
            let from = size.number_at(begin).max(first);
            // The segment in which the path leaves a timeline is the next one's.
            let until = end.map_or(u64::MAX, |end| size.number_at(end));
            let ranges = &self.timelines.get(&timeline)?.ranges;
            let range = ranges.get(ranges.partition_point(|range| range.last < from))?;
            Some(range.first.max(from)).filter(|number| *number < until)
        };
        path.path().filter_map(of_timeline).min()
    }

    /// The last segment of `path` that is there whole.
    pub fn last_there(&self, path: &TimelineHistory) -> Option<u64> {
        let size = self.segment_size;
        let of_timeline = |(timeline, begin, end): (Timeline, Lsn, Option<Lsn>)| {
            let from = size.number_at(begin);
            let until = end.map_or(u64::MAX, |end| size.number_at(end));
            let ranges = &self.timelines.get(&timeline)?.ranges;
            let before = ranges.partition_point(|range| range.first < until);
            let range = ranges.get(before.checked_sub(1)?)?;
            Some(range.last.min(until - 1)).filter(|number| *number >= from)
        };
        path.path().filter_map(of_timeline).max()
    }

    /// The last segment of `path` of which the stream's parts have the beginning.
    pub fn last_streamed(&self, path: &TimelineHistory) -> Option<u64> {
        let size = self.segment_size;
        let of_timeline = |(timeline, begin, end): (Timeline, Lsn, Option<Lsn>)| {
            let on_path = size.number_at(begin)..end.map_or(u64::MAX, |end| size.number_at(end));
            let parts = self.timelines.get(&timeline)?.parts.range(on_path);
            parts.rev().find(|(_, parts)| covered(*parts) > 0).map(|(number, _)| *number)
        };
        path.path().filter_map(of_timeline).max()
    }

    /// Whether anything of `path` is there behind segment `number`: whether its absence is a gap
    /// and not the end.
    pub fn goes_on_after(&self, path: &TimelineHistory, number: u64) -> bool {
        let size = self.segment_size;
        self.timelines.iter().any(|(timeline, wal)| {
            if !path.contains(*timeline) {
                return false;
            }
            let first = path.begin_of(*timeline).map_or(0, |begin| size.number_at(begin));
            let last =
                path.end_of(*timeline).flatten().map_or(u64::MAX, |end| size.number_before(end));
            let is_behind = |range: &SegmentRange| {
                range.first.max(first).max(number + 1) <= range.last.min(last)
            };
            wal.ranges.iter().any(is_behind)
                || wal.partials.iter().any(|n| *n > number && (first..=last).contains(n))
        })
    }

    /// Whether there is enough of the segment before `lsn` to come so far along `path`: it is there whole,
    /// or the stream's parts reach that far. What a partial copy has isn't known here.
    pub fn reaches(&self, path: &TimelineHistory, lsn: Lsn) -> bool {
        let number = self.segment_size.number_before(lsn);
        let timeline = path.timeline_of_segment(number, self.segment_size);
        let parts = self.timelines.get(&timeline).and_then(|wal| wal.parts.get(&number));
        let received = parts.map_or(0, covered);
        self.segment(path, number).is_some()
            || self.segment_size.start_of(number).0 + received >= lsn.0 && received > 0
    }

    /// Whether recovery along `path` ends in segment `number`, of which not all is there.
    pub fn ends_in(&self, path: &TimelineHistory, number: u64) -> bool {
        self.segment(path, number).is_none()
            && self.partial(path, number).is_none_or(|name| {
                let wal = self.timelines.get(&name.timeline);
                wal.is_none_or(|wal| !wal.closed.contains(&number))
            })
    }

    /// The timeline whose partial copy recovery along `path` would be served for segment `number`: of a
    /// timeline's last segment only. What the stream has stored was acknowledged, so that counts
    /// wherever it is.
    pub fn partial(&self, path: &TimelineHistory, number: u64) -> Option<SegmentName> {
        let size = self.segment_size;
        let begun_by =
            |t: Timeline| path.begin_of(t).is_none_or(|begin| size.number_at(begin) <= number);
        // What it has behind the segment in which the path leaves it isn't the path's.
        let left_before = |t: Timeline| {
            path.end_of(t).flatten().is_some_and(|end| size.number_before(end) < number)
        };
        let counts = |wal: &TimelineWal| {
            let is_streamed = wal.parts.get(&number).is_some_and(|parts| covered(parts) > 0);
            is_streamed || wal.ranges.last().is_none_or(|r| r.last < number)
        };
        self.timelines
            .iter()
            .rev()
            .filter(|(t, wal)| {
                path.contains(**t) && begun_by(**t) && !left_before(**t) && counts(wal)
            })
            .find(|(_, wal)| wal.partials.contains(&number))
            .map(|(timeline, _)| self.segment_size.name(*timeline, number))
    }
}

/// Whether a copy of a segment that isn't whole ends with a switch record.
async fn is_closed(store: &WalStore, segment: SegmentName, size: SegmentSize) -> Result<bool> {
    for name in store.partials(segment).await? {
        let stored = store.summary(&name).await?.and_then(|stored| stored.segment);
        if stored.is_some_and(|summary| summary.parsed && summary.whole) {
            return Ok(true);
        }
    }
    let streamed = store.parts_summary(segment, size).await?;
    Ok(streamed.is_some_and(|summary| summary.parsed && summary.whole))
}

/// The history of a timeline, from its file; `None` when that isn't there, as for timeline 1.
pub async fn read_history(store: &WalStore, timeline: Timeline) -> Result<Option<TimelineHistory>> {
    let Some(bytes) = store.history(timeline).await? else { return Ok(None) };
    TimelineHistory::parse(timeline, &bytes).map(Some).map_err(|e| {
        let address = store.repository().storage().address();
        Error::new(
            Kind::Damaged,
            format!("{} in {address} is no history file", timeline.history_file()),
        )
        .because(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    impl WalInventory {
        /// One that has these segments, by timeline, and these histories.
        pub fn of(size: SegmentSize, wal: &[(u32, &[u64])], histories: &[(u32, &str)]) -> Self {
            let timelines = wal
                .iter()
                .map(|(timeline, numbers)| {
                    let mut wal = TimelineWal::default();
                    numbers.iter().for_each(|n| wal.add(*n, 1));
                    (Timeline(*timeline), wal)
                })
                .collect();
            let mut known = BTreeMap::from([(Timeline(1), TimelineHistory::first())]);
            for (timeline, text) in histories {
                let timeline = Timeline(*timeline);
                known.insert(timeline, TimelineHistory::parse(timeline, text.as_bytes()).unwrap());
            }
            WalInventory { segment_size: size, timelines, histories: known }
        }

        /// Adds these parts of a segment.
        pub fn stream(&mut self, timeline: Timeline, number: u64, ranges: &[PartRange]) {
            let wal = self.timelines.entry(timeline).or_default();
            ranges.iter().for_each(|range| wal.add_part(number, *range));
        }
    }

    fn inventory(wal: &[(u32, &[u64])], histories: &[(u32, &str)]) -> WalInventory {
        WalInventory::of(SIZE, wal, histories)
    }

    #[test]
    fn a_row_is_followed_over_a_switch_and_ends_at_a_gap() {
        // Timeline 2 leaves timeline 1 in the middle of segment 5; 1 lived on to segment 8.
        let there = inventory(
            &[(1, &[2, 3, 4, 5, 6, 7, 8]), (2, &[5, 6, 9])],
            &[(2, "1\t0/5800000\tpromoted\n")],
        );
        let path = there.path(Timeline(2)).unwrap();
        assert_eq!(there.first_missing(path, 3), SIZE.name(Timeline(2), 7));
        assert!(there.goes_on_after(path, 7));
        assert!(!there.goes_on_after(path, 9));
        let next: Vec<_> = [0, 3, 5, 7, 9, 10].map(|n| there.next_there(path, n)).into();
        assert_eq!(next, [Some(2), Some(3), Some(5), Some(9), Some(9), None]);
        assert_eq!(there.last_there(path), Some(9));
        assert_eq!(there.segment(path, 4), Some(SIZE.name(Timeline(1), 4)));
        assert_eq!(there.segment(path, 5), Some(SIZE.name(Timeline(2), 5)));
        assert_eq!(there.segment(path, 8), None, "timeline 1's isn't on the path");
        let old = there.path(Timeline(1)).unwrap();
        assert_eq!(there.first_missing(old, 2), SIZE.name(Timeline(1), 9));
        assert!(!there.goes_on_after(old, 9));
        assert_eq!((there.next_there(old, 5), there.last_there(old)), (Some(5), Some(8)));
        assert_eq!(there.next_there(old, 9), None);
    }

    #[test]
    fn leaves_are_what_no_other_timeline_with_wal_comes_from() {
        let there = inventory(
            &[(1, &[1, 2]), (2, &[2, 3]), (3, &[2]), (4, &[])],
            &[
                (2, "1\t0/2800000\tx\n"),
                (3, "1\t0/2900000\tx\n"),
                (4, "1\t0/2800000\tx\n2\t0/3100000\tx\n"),
            ],
        );
        assert_eq!(there.leaves(&[]), [Timeline(2), Timeline(3)]);
        assert_eq!(there.leaves(&[Timeline(4)]), [Timeline(3), Timeline(4)]);
    }

    #[test]
    fn wal_whose_history_is_missing_is_told() {
        let there = inventory(&[(1, &[1, 2]), (2, &[2, 3]), (3, &[])], &[]);
        assert_eq!(there.without_history(&[]), [Timeline(2)]);
        assert_eq!(there.without_history(&[Timeline(1), Timeline(5)]), [Timeline(2), Timeline(5)]);
    }

    #[test]
    fn a_partial_counts_only_for_the_last_segment_of_its_timeline() {
        let mut there = inventory(&[(1, &[1, 2]), (2, &[])], &[(2, "1\t0/3800000\tx\n")]);
        there.timelines.get_mut(&Timeline(1)).unwrap().partials.extend([1, 3]);
        there.timelines.get_mut(&Timeline(2)).unwrap().add(9, 1);
        // What the stream has was acknowledged.
        let streamed = there.timelines.get_mut(&Timeline(2)).unwrap();
        streamed.add_part(7, PartRange { from: 0, to: 100 });
        streamed.add_part(7, PartRange { from: 50, to: 200 });
        streamed.add_part(7, PartRange { from: 300, to: 400 });
        streamed.add_part(9, PartRange { from: 0, to: 100 });
        assert_eq!(streamed.hole(7), Some((200, 300)));
        assert_eq!(streamed.hole(9), None, "it is whole");
        let path = there.path(Timeline(2)).unwrap();
        assert_eq!(there.partial(path, 3), Some(SIZE.name(Timeline(1), 3)));
        assert_eq!(there.partial(path, 1), None);
        assert_eq!(there.partial(path, 7), Some(SIZE.name(Timeline(2), 7)));
        let reaches =
            |number: u64, offset: u64| there.reaches(path, Lsn(SIZE.start_of(number).0 + offset));
        assert!(reaches(7, 200) && !reaches(7, 201), "there is a hole");
        assert!(reaches(9, 201), "it is whole");
        assert!(!reaches(6, 1) && !reaches(3, 1), "what a partial copy has isn't known");
    }
}
