//! What is missing: WAL that a backup needs, or a moment after it, and that isn't there.
//!
//! From its start to its stop a backup needs all of it. Behind that, what is there may be used to
//! restore to any later moment, so from the oldest backup on the archive has no gap on the way to the
//! end of each timeline, but for what expiry has cut: below a WAL floor only what kept backups need
//! from start to stop is kept.
//!
//! `info`, `check` and `verify` ask here. What can't be seen: whether segments behind the last one of
//! a timeline are gone.

use std::{collections::BTreeMap, time::Duration};

use super::{
    catalog::{self, BackupState, CatalogEntry},
    record::BackupRecord,
    timelines::WalInventory,
    wal::WalStore,
    wal_floor::Floors,
};
use crate::{
    error::Result,
    postgres::{Lsn, Timeline, history::TimelineHistory},
};

/// How long [`gaps`] waits before it looks again at what was missing.
const PAUSE: Duration = Duration::from_millis(500);

/// What to do about a gap.
pub const HINT: &str = "on a node that still has it in its pg_wal, `pgkeep stream` fetches what is missing since the newest \
                        backup, and archive-push stores what is missing before a segment; behind a gap that stays, take a new backup";

/// A row of segments of one timeline that is missing, or bytes of one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gap {
    /// The timeline whose files recovery reads them from.
    pub timeline: Timeline,
    /// The number of the first segment.
    pub first: u64,
    /// The number of the last one.
    pub last: u64,
    /// The segment's bytes that are missing where the stream's parts have some from behind them: their
    /// first and last one's offsets, the latter excluded.
    pub hole: Option<(u64, u64)>,
    /// Whether the newest backup needs it to come further than it does.
    pub newest: bool,
}

impl Gap {
    /// How many segments it is.
    pub fn segments(&self) -> u64 {
        self.last - self.first + 1
    }
}

/// What is missing for the backups of a system, the newest one last: sorted, each row once.
/// `inventory` is what there is, as it was listed.
///
/// Segments and parts are stored several at a time, so one may be there before the one in front of it.
/// What seems missing is looked for again, until `patience` is over; then it is missing.
pub async fn gaps(
    store: &WalStore,
    inventory: &WalInventory,
    backups: &[BackupRecord],
    patience: Duration,
) -> Result<Vec<Gap>> {
    let mut found = gaps_of(inventory, &Floors::default(), backups);
    if found.is_empty() {
        return Ok(found);
    }
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        tokio::time::sleep(PAUSE).await;
        let now = WalInventory::read_what_can_be(store, inventory.segment_size).await?;
        // After the WAL: a floor is written before WAL is cut, so it tells of all that wasn't listed.
        // More is asked of the archive without a damaged one, not less.
        let (floors, _) =
            Floors::read_sound(store.repository(), store.layout(), store.system()).await?;
        // Who is there by now wasn't marked when the WAL was listed, so that nobody had cut it.
        let there = catalog::entries(store.repository(), store.layout()).await?;
        let is_there = |record: &&BackupRecord| {
            let of = |entry: &CatalogEntry| entry.id == record.id;
            there.iter().any(|e| of(e) && matches!(e.state, BackupState::Complete(_)))
        };
        let backups: Vec<_> = backups.iter().filter(is_there).cloned().collect();
        let before = std::mem::replace(&mut found, gaps_of(&now, &floors, &backups));
        // What came meanwhile isn't counted, nor what was listed for the first time.
        found.retain(|gap| before.iter().any(|b| b.timeline == gap.timeline && b.meets(gap)));
        if found.is_empty() || tokio::time::Instant::now() >= deadline {
            return Ok(found);
        }
    }
}

impl Gap {
    fn meets(&self, other: &Gap) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// What is missing by an inventory.
fn gaps_of(inventory: &WalInventory, floors: &Floors, backups: &[BackupRecord]) -> Vec<Gap> {
    let needs = Needs { inventory, floors };
    let newest = backups.last();
    let of_newest = needs.rows(newest);
    let mut gaps = Vec::new();
    let holes: Vec<_> = inventory.holes().collect();
    for (timeline, rows) in needs.rows(backups) {
        for (first, last) in rows {
            let newest = of_newest.get(&timeline).into_iter().flatten();
            let newest = newest.clone().any(|(from, to)| *from <= last && first <= *to);
            gaps.push(Gap { timeline, first, last, hole: None, newest });
        }
    }
    for (timeline, number, hole) in holes {
        let of_use = |record: &BackupRecord| needs.is_of_use(record, timeline, number);
        if !backups.iter().any(of_use) {
            continue;
        }
        let row = |gap: &Gap| gap.timeline == timeline && (gap.first..=gap.last).contains(&number);
        match gaps.iter_mut().find(|gap| row(gap)) {
            // It is told as what is missing of it, where it is all.
            Some(gap) if gap.first == gap.last => gap.hole = Some(hole),
            Some(_) => {}
            None => gaps.push(Gap {
                timeline,
                first: number,
                last: number,
                hole: Some(hole),
                newest: newest.is_some_and(of_use),
            }),
        }
    }
    gaps.sort_unstable();
    gaps
}

/// The question itself: what backups need of what is there.
#[derive(Debug, Clone, Copy)]
pub struct Needs<'a> {
    /// What is there.
    pub inventory: &'a WalInventory,
    /// What expiry has cut.
    pub floors: &'a Floors,
}

impl Needs<'_> {
    /// Rows of segments that these backups need and that aren't there, by number, both ends included;
    /// sorted, and those that touch made one.
    pub fn rows<'r>(
        &self,
        records: impl IntoIterator<Item = &'r BackupRecord>,
    ) -> BTreeMap<Timeline, Vec<(u64, u64)>> {
        let mut gaps: BTreeMap<Timeline, Vec<(u64, u64)>> = BTreeMap::new();
        for record in records {
            let mut paths = self.paths_of(record);
            if paths.is_empty() {
                // Where its timeline comes from isn't known; what it needs itself is.
                paths.push(TimelineHistory { timeline: record.timeline, ancestors: Vec::new() });
            }
            for path in &paths {
                for (first, end) in self.on_path(path, record) {
                    for (timeline, first, end) in self.by_timeline(path, first, end) {
                        gaps.entry(timeline).or_default().push((first, end - 1));
                    }
                }
            }
        }
        gaps.values_mut().for_each(join);
        gaps
    }

    /// The known paths along which a backup can be restored.
    pub fn paths_of(&self, record: &BackupRecord) -> Vec<TimelineHistory> {
        self.inventory.known().filter(|path| record.lies_on(path)).cloned().collect()
    }

    /// Whether a segment of a timeline is of use to a backup.
    pub fn is_of_use(&self, record: &BackupRecord, timeline: Timeline, number: u64) -> bool {
        let first = self.inventory.segment_size.number_at(record.start_lsn);
        number >= first
            && (timeline == record.timeline
                || self.paths_of(record).iter().any(|path| path.contains(timeline)))
    }

    /// What is missing for one backup along one path: from a segment up to before another.
    fn on_path(&self, path: &TimelineHistory, record: &BackupRecord) -> Vec<(u64, u64)> {
        let size = self.inventory.segment_size;
        let stop = size.number_before(record.stop_lsn);
        let end = match self.inventory.path(path.timeline) {
            Some(_) => self.end_of_path(path, record),
            None => stop + 1,
        };
        let mut gaps = Vec::new();
        let mut number = size.number_at(record.start_lsn);
        while number < end {
            let missing = self.inventory.first_missing(path, number).number(size);
            let Some(missing) = missing.filter(|missing| *missing < end) else { break };
            if self.is_the_end(path, missing, record) {
                number = missing + 1;
                continue;
            }
            let next = self.inventory.next_there(path, missing).unwrap_or(end).min(end);
            gaps.push((missing, next));
            number = next;
        }
        gaps
    }

    /// Whether a path ends in a segment of which there is enough, though it isn't whole.
    fn is_the_end(&self, path: &TimelineHistory, number: u64, record: &BackupRecord) -> bool {
        let Some(partial) = self.inventory.partial(path, number) else { return false };
        let wal = self.inventory.timelines().find(|(timeline, _)| *timeline == partial.timeline);
        let is_streamed = wal.is_some_and(|(_, wal)| wal.parts.contains_key(&number));
        let is_stop = number == self.inventory.segment_size.number_before(record.stop_lsn);
        let is_short = is_stop && is_streamed && !self.inventory.reaches(path, record.stop_lsn);
        !is_short && !self.inventory.goes_on_after(path, number)
    }

    /// The segment before which a backup's recovery along a path has to find all: the end of what
    /// there is, and of what it needs itself, or where expiry has cut.
    pub fn end_of_path(&self, path: &TimelineHistory, record: &BackupRecord) -> u64 {
        let size = self.inventory.segment_size;
        let stop = size.number_before(record.stop_lsn);
        let mut end = self.inventory.last_there(path).map_or(0, |last| last + 1);
        if self.inventory.partial(path, end).is_some() {
            end += 1;
        }
        end = end.max(self.inventory.last_streamed(path).map_or(0, |last| last + 1));
        // What it needs itself is looked for elsewhere. Of its own timeline expiry leaves the segment of
        // the byte behind its stop, too.
        let at_stop = size.number_at(record.stop_lsn);
        let is_own = path.timeline_of_segment(at_stop, size) == record.timeline;
        let last = if is_own { at_stop } else { stop };
        let behind = size.number_at(record.start_lsn).max(last + 1);
        if let Some(cut) = self.inventory.first_missing(path, behind).number(size)
            && cut < self.floor_of(path.timeline_of_segment(cut, size))
        {
            end = cut;
        }
        end.max(stop + 1)
    }

    /// The first segment of a timeline below which WAL may be gone.
    fn floor_of(&self, timeline: Timeline) -> u64 {
        self.inventory.segment_size.number_at(self.floors.of(timeline))
    }

    /// A row of a path's segments cut where the path leaves a timeline; the second number is the one
    /// behind the last.
    fn by_timeline(
        &self,
        path: &TimelineHistory,
        first: u64,
        end: u64,
    ) -> Vec<(Timeline, u64, u64)> {
        let size = self.inventory.segment_size;
        let cut = |(timeline, begin, left): (Timeline, Lsn, Option<Lsn>)| {
            let from = size.number_at(begin).max(first);
            let until = left.map_or(end, |left| size.number_at(left).min(end));
            (from < until).then_some((timeline, from, until))
        };
        path.path().filter_map(cut).collect()
    }
}

/// Rows sorted, and those that touch made one.
fn join(rows: &mut Vec<(u64, u64)>) {
    rows.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (first, last) in rows.drain(..) {
        match joined.last_mut() {
            Some((_, end)) if *end + 1 >= first => *end = last.max(*end),
            _ => joined.push((first, last)),
        }
    }
    *rows = joined;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{postgres::SegmentSize, repo::wal_parts::PartRange};

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn gap(timeline: u32, first: u64, last: u64, newest: bool) -> Gap {
        Gap { timeline: Timeline(timeline), first, last, hole: None, newest }
    }

    /// A backup of timeline 1 that began in segment `start` and stopped in the next one.
    fn backup(start: u64) -> BackupRecord {
        let stop = Lsn(SIZE.start_of(start + 1).0 + 0x100);
        serde_json::from_value(serde_json::json!({
            "format": 1, "id": format!("20261120T12{start:02}00Z-full"), "cluster": "main",
            "kind": "full", "asked": "full", "label": "", "system": "15-1",
            "server-version": "15.18", "source": "primary", "timeline": 1,
            "start-lsn": Lsn(SIZE.start_of(start).0 + 0x28), "stop-lsn": stop,
            "segment-size": SIZE.bytes(), "started-at": "2026-11-20T12:00:00Z",
            "stopped-at": "2026-11-20T12:30:00Z", "data-checksums": true,
            "sizes": { "files": 0, "cluster": 0, "raw": 0, "stored": 0 }, "pgkeep": "0.1.0"
        }))
        .unwrap()
    }

    fn gaps(inventory: &WalInventory, backups: &[BackupRecord]) -> Vec<Gap> {
        gaps_of(inventory, &Floors::default(), backups)
    }

    #[test]
    fn what_is_missing_behind_a_backup_is_told_once_and_whose_it_is() {
        let backups = [backup(1), backup(5)];
        let there = WalInventory::of(SIZE, &[(1, &[1, 2, 4, 5, 6, 7, 10])], &[]);
        assert_eq!(gaps(&there, &backups), [gap(1, 3, 3, false), gap(1, 8, 9, true)]);
        assert_eq!(gaps(&there, &backups[1..]), [gap(1, 8, 9, true)]);
        assert_eq!(gaps(&there, &[]), [], "nobody can begin a recovery");
        let whole = WalInventory::of(SIZE, &[(1, &[1, 2, 3, 4, 5, 6, 7])], &[]);
        assert_eq!(gaps(&whole, &backups), [], "what comes behind the last one isn't known");
    }

    #[test]
    fn a_failover_leaves_what_only_the_lost_primary_had() {
        let backups = [backup(1)];
        let histories: &[(u32, &str)] = &[(2, "1\t0/5800000\tpromoted\n")];
        let there = WalInventory::of(SIZE, &[(1, &[1, 2, 3]), (2, &[5, 6])], histories);
        assert_eq!(gaps(&there, &backups), [gap(1, 4, 4, true)]);
    }

    #[test]
    fn a_hole_among_the_parts_is_a_gap_of_bytes() {
        let backups = [backup(1)];
        let mut there = WalInventory::of(SIZE, &[(1, &[1, 2, 3])], &[]);
        let ranges = [(0, 100), (300, 400)].map(|(from, to)| PartRange { from, to });
        there.stream(Timeline(1), 4, &ranges);
        let hole = Gap { hole: Some((100, 300)), ..gap(1, 4, 4, true) };
        assert_eq!(gaps(&there, &backups), [hole]);
        let mut there = WalInventory::of(SIZE, &[(1, &[1, 2, 3])], &[]);
        there.stream(Timeline(1), 4, &ranges[..1]);
        assert_eq!(gaps(&there, &backups), [], "it is the end");
    }
}
