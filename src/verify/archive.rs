//! A system's WAL: is each segment there that a backup or a promised moment needs?
//!
//! From its start to its stop a backup needs all of it. Behind that, what is there may be used to
//! restore to any later moment, so from the oldest backup on the archive has no gap on the way to the
//! end of each timeline, but for what expiry has cut: below a WAL floor only what kept backups need
//! from start to stop is kept.
//!
//! What can't be seen: whether segments behind the last one of a timeline are gone.

use std::collections::BTreeSet;

use super::findings::{Done, Finding, Loss, Sought};
use crate::{
    error::Result,
    postgres::{Timeline, WalFile, history::TimelineHistory},
    repo::{
        BackupId, Repository, SystemId, layout::ClusterLayout, record::BackupRecord,
        timelines::WalInventory, wal::WalStore, wal_floor::Floors, wal_gaps::Needs,
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
        // One that is damaged is told as an object. Without it more is asked of the archive, not less.
        let (floors, _) = Floors::read_sound(repository, layout, system).await?;
        Ok(Archive { system, store, inventory, backups, unreadable, floors })
    }

    /// What is missing for all backups or for one.
    pub fn missing(&self, only: Option<&BackupId>) -> Vec<Finding> {
        let mut findings = self.histories(only);
        findings.extend(self.holes(only));
        let size = self.inventory.segment_size;
        for (timeline, gaps) in self.needs().rows(self.wanted(only)) {
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
        for (timeline, number, (from, to)) in self.inventory.holes() {
            let of_use = |record: &BackupRecord| self.is_of_use(record, timeline, number);
            if only.is_some() && !self.wanted(only).any(of_use) {
                continue;
            }
            let object = self.store.plain(WalFile::Segment(size.name(timeline, number)));
            let text = format!(
                "of this WAL segment there are parts, and its bytes {from} to {to} are missing"
            );
            findings.push(Finding {
                sought: Sought::Segments(self.system, size, timeline, number, number),
                loss: Loss::of_segments(self.system, timeline, number, number),
                ..Finding::missing(&object, text)
            });
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

    /// The segment before which a backup's recovery along a path has to find all
    /// ([`Needs::end_of_path`]).
    pub fn end_of_path(&self, path: &TimelineHistory, record: &BackupRecord) -> u64 {
        self.needs().end_of_path(path, record)
    }

    fn needs(&self) -> Needs<'_> {
        Needs { inventory: &self.inventory, floors: &self.floors }
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
        self.needs().is_of_use(record, timeline, number)
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
