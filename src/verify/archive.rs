//! A system's WAL: is each segment there that a backup or a promised moment needs?
//!
//! From its start to its stop a backup needs all of it. Behind that, what is there may be used to
//! restore to any later moment, so from the oldest backup on the archive has no gap on the way to the
//! end of each timeline, but for what expiry has cut: below a WAL floor only what kept backups need
//! from start to stop is kept.
//!
//! What can't be seen: whether segments behind the last one of a timeline are gone.

use std::collections::{BTreeMap, BTreeSet};

use super::findings::{Done, Finding, Loss, Sought};
use crate::{
    error::{Kind, Result},
    postgres::{Lsn, Timeline, WalFile, history::TimelineHistory},
    repo::{
        BackupId, Repository, SystemId, layout::ClusterLayout, record::BackupRecord,
        timelines::WalInventory, wal::WalStore, wal_floor::Floors,
    },
};

/// The WAL of one system and the backups that need it.
#[derive(Debug, Clone)]
pub struct Archive {
    /// The system.
    pub system: SystemId,
    /// Where it lies.
    pub store: WalStore,
    /// What there is of it.
    pub inventory: WalInventory,
    /// The system's backups.
    pub backups: Vec<BackupRecord>,
    /// The timelines whose history is there and can't be read.
    unreadable: BTreeSet<Timeline>,
    floors: Floors,
}

impl Archive {
    /// Lists a system's WAL. `backups` are those of the system.
    pub async fn open(
        repository: &Repository,
        layout: &ClusterLayout,
        system: SystemId,
        backups: Vec<BackupRecord>,
    ) -> Result<Self> {
        let store = WalStore::new(repository, layout, system);
        let segment_size = store.segment_size_of(backups.last()).await?;
        let mut unreadable = BTreeSet::new();
        let inventory = WalInventory::read_with(&store, segment_size, &mut |timeline, _| {
            unreadable.insert(timeline);
            Ok(())
        })
        .await?;
        // After the WAL: a floor is written before WAL is cut, so it tells of all that wasn't listed.
        let floors = read_floors(repository, layout, system).await?;
        Ok(Archive { system, store, inventory, backups, unreadable, floors })
    }

    /// The first segment of a timeline below which WAL may be gone.
    fn floor_of(&self, timeline: Timeline) -> u64 {
        self.inventory.segment_size.number_at(self.floors.of(timeline))
    }

    /// What is missing for all backups or for one.
    pub fn missing(&self, only: Option<&BackupId>) -> Vec<Finding> {
        let mut findings = self.histories(only);
        findings.extend(self.holes(only));
        let size = self.inventory.segment_size;
        for (timeline, gaps) in self.gaps(only) {
            for (first, last) in gaps {
                let names = (size.name(timeline, first), size.name(timeline, last));
                let text = match last - first + 1 {
                    1 => "this WAL segment is missing".to_owned(),
                    n => format!("{n} WAL segments are missing, from this one to {}", names.1),
                };
                let object = self.store.plain(WalFile::Segment(names.0));
                findings.push(Finding {
                    to: (first != last)
                        .then(|| self.store.plain(WalFile::Segment(names.1)).to_string()),
                    sought: Sought::Segments(self.system, size, timeline, first, last),
                    loss: Loss::of_segments(self.system, timeline, first, last),
                    ..Finding::missing(&object, text)
                });
            }
        }
        findings
    }

    /// What is missing among the stream's parts of a segment that isn't whole.
    pub fn holes(&self, only: Option<&BackupId>) -> Vec<Finding> {
        let size = self.inventory.segment_size;
        let mut findings = Vec::new();
        for (timeline, wal) in self.inventory.timelines() {
            for number in wal.parts.keys() {
                let Some((from, to)) = wal.hole(*number) else { continue };
                let of_use = |record: &BackupRecord| self.is_of_use(record, timeline, *number);
                if only.is_some() && !self.wanted(only).any(of_use) {
                    continue;
                }
                let object = self.store.plain(WalFile::Segment(size.name(timeline, *number)));
                let text = format!(
                    "of this WAL segment there are parts, and its bytes {from} to {to} are missing"
                );
                findings.push(Finding {
                    sought: Sought::Segments(self.system, size, timeline, *number, *number),
                    loss: Loss::of_segments(self.system, timeline, *number, *number),
                    ..Finding::missing(&object, text)
                });
            }
        }
        findings
    }

    /// Timelines without a history: nobody can say where their WAL belongs.
    fn histories(&self, only: Option<&BackupId>) -> Vec<Finding> {
        let of_backups: Vec<_> = self.wanted(only).map(|record| record.timeline).collect();
        let lost = self.inventory.without_history(&of_backups).into_iter();
        let lost = lost.filter(|timeline| only.is_none() || of_backups.contains(timeline));
        lost.filter(|timeline| !self.unreadable.contains(timeline))
            .map(|timeline| {
                let file = WalFile::History(timeline);
                let text = format!(
                    "the history of timeline {timeline} is missing: nobody can recover along it"
                );
                let object = self.store.plain(file);
                Finding {
                    sought: Sought::File(self.system, file),
                    loss: Loss { timeline: Some((self.system, timeline)), ..Loss::default() },
                    ..Finding::missing(&object, text)
                }
                .hint(format!(
                    "a server that was on timeline {timeline} or a later one has {file} in its \
                     pg_wal: push it from there with `pgkeep archive-push`"
                ))
            })
            .collect()
    }

    fn wanted<'a>(
        &'a self,
        only: Option<&'a BackupId>,
    ) -> impl Iterator<Item = &'a BackupRecord> + 'a {
        self.backups.iter().filter(move |record| only.is_none_or(|id| *id == record.id))
    }

    /// Rows of segments that are needed and not there, by number, both ends included.
    fn gaps(&self, only: Option<&BackupId>) -> BTreeMap<Timeline, Vec<(u64, u64)>> {
        let mut gaps: BTreeMap<Timeline, Vec<(u64, u64)>> = BTreeMap::new();
        for record in self.wanted(only) {
            let mut paths = self.paths_of(record);
            if paths.is_empty() {
                // Where its timeline comes from isn't known; what it needs itself is.
                paths.push(TimelineHistory { timeline: record.timeline, ancestors: Vec::new() });
            }
            for path in &paths {
                for (first, end) in self.gaps_of(path, record) {
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

    /// What is missing for one backup along one path: from a segment up to before another.
    fn gaps_of(&self, path: &TimelineHistory, record: &BackupRecord) -> Vec<(u64, u64)> {
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
        // What it needs itself is looked for elsewhere.
        let behind = size.number_at(record.start_lsn).max(stop + 1);
        if let Some(cut) = self.inventory.first_missing(path, behind).number(size)
            && cut < self.floor_of(path.timeline_of_segment(cut, size))
        {
            end = cut;
        }
        end.max(stop + 1)
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

    /// The backups that a loss leaves without what they need to become consistent.
    pub fn backups_lost(&self, loss: &Loss) -> Vec<BackupId> {
        let size = self.inventory.segment_size;
        let lost = |record: &&BackupRecord| {
            let on_timeline = Some((self.system, record.timeline)) == loss.timeline;
            let (first, stop) =
                (size.number_at(record.start_lsn), size.number_before(record.stop_lsn));
            let without_wal = loss.wal.is_some_and(|(system, timeline, from, to)| {
                (system, timeline) == (self.system, record.timeline) && from <= stop && to >= first
            });
            on_timeline || without_wal || loss.backups.contains(&record.id)
        };
        self.backups.iter().filter(lost).map(|record| record.id.clone()).collect()
    }

    /// Whether a segment of a timeline is of use to a backup.
    pub fn is_of_use(&self, record: &BackupRecord, timeline: Timeline, number: u64) -> bool {
        let first = self.inventory.segment_size.number_at(record.start_lsn);
        number >= first
            && (timeline == record.timeline
                || self.paths_of(record).iter().any(|path| path.contains(timeline)))
    }

    /// Adds a notice for WAL that nobody can begin with.
    pub fn notices(&self, done: &mut Done) {
        if self.backups.is_empty() && self.inventory.timelines().next().is_some() {
            let object = self.store.layout().system(self.system);
            done.notice(
                &object,
                format!("system {} has WAL and no backup to begin a recovery with", self.system),
            );
        }
    }
}

async fn read_floors(
    repository: &Repository,
    layout: &ClusterLayout,
    system: SystemId,
) -> Result<Floors> {
    match Floors::read(repository, layout, system).await {
        // It is told as a damaged object. Without it more is asked of the archive, not less.
        Err(e) if e.kind() == Kind::Damaged => Ok(Floors::default()),
        result => result,
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
