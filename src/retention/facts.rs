//! What the planning of retention knows of a repository: backups, pins, timelines and their WAL.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use crate::{
    error::{Error, Kind, Result},
    postgres::{
        Lsn, SegmentName, SegmentSize, Timeline, history::TimelineHistory, wal::SegmentSummary,
    },
    repo::{
        BackupId, Repository, SystemId,
        catalog::{self, BackupState},
        layout::ClusterLayout,
        lease::Lease,
        pin::pins,
        record::BackupRecord,
        timelines::{TimelineWal, WalInventory},
        wal::WalStore,
        wal_floor::Floors,
    },
};

/// How many segments without a transaction are looked at, from the end, before it counts as unknown
/// when a timeline's last one was.
const LOOK_BACK: usize = 256;

/// A cluster in a repository, as far as it decides what expires.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The moment that the rules count from.
    pub now: DateTime<Utc>,
    /// The backups that exist, the newest last ([`catalog::in_order`]).
    pub backups: Vec<BackupFacts>,
    /// Backups whose commit object can't be read. As long as there is one, no WAL goes.
    pub damaged: BTreeSet<BackupId>,
    /// The backups that are pinned now.
    pub pinned: BTreeSet<BackupId>,
    /// The backups that are being restored.
    pub restoring: BTreeSet<BackupId>,
    /// Systems and their WAL.
    pub systems: BTreeMap<SystemId, SystemFacts>,
    /// The lowest position from which a backup that is being taken needs WAL.
    pub running_from: Option<Lsn>,
}

/// A backup.
#[derive(Debug, Clone)]
pub struct BackupFacts {
    /// What its commit object says.
    pub record: BackupRecord,
    /// Whether the WAL from its start to its stop is there, without which it can't be restored.
    pub usable: bool,
}

/// The WAL of a system.
#[derive(Debug, Clone)]
pub struct SystemFacts {
    /// The size of its segments.
    pub segment_size: SegmentSize,
    /// Its timelines that have WAL or a history.
    pub timelines: BTreeMap<Timeline, TimelineFacts>,
}

/// The WAL of a timeline.
#[derive(Debug, Clone)]
pub struct TimelineFacts {
    /// How it came to be; `None` when its history file isn't there.
    pub path: Option<TimelineHistory>,
    /// The numbers of its first and last segment, partial ones included; `None` if it has none.
    pub segments: Option<(u64, u64)>,
    /// When its last transaction ended.
    pub last: LastTime,
    /// Whether all of it has expired but what backups need for themselves: no backup led there, and
    /// what is left, if anything is, says nothing of its last transaction.
    pub given_up: bool,
}

/// When the last transaction of a timeline ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastTime {
    /// At this time, by the server's clock.
    At(DateTime<Utc>),
    /// Its WAL has no transaction.
    None,
    /// Its last segments have none, or can't be read.
    Unknown,
}

impl Facts {
    /// Looks at a repository. `leases` are those there are.
    pub async fn read(
        repository: &Repository,
        layout: &ClusterLayout,
        leases: &[Lease],
        now: DateTime<Utc>,
    ) -> Result<Self> {
        let (mut records, mut damaged) = (Vec::new(), BTreeSet::new());
        for entry in catalog::entries(repository, layout).await? {
            match entry.state {
                BackupState::Complete(record) => records.push(*record),
                BackupState::Damaged(_) => {
                    damaged.insert(entry.id);
                }
                BackupState::Unfinished | BackupState::Deleted => {}
            }
        }
        let records = catalog::in_order(repository, layout, records).await?;
        let mut systems = catalog::systems(repository, layout).await?;
        systems.extend(records.iter().map(|record| record.system));
        let (mut wal, mut usable) = (BTreeMap::new(), BTreeSet::new());
        for system in BTreeSet::from_iter(systems) {
            let store = WalStore::new(repository, layout, system);
            let of_system: Vec<_> = records.iter().filter(|r| r.system == system).collect();
            let segment_size = store.segment_size_of(of_system.last().copied()).await?;
            let inventory = WalInventory::read(&store, segment_size).await?;
            let there = of_system.iter().filter(|record| is_usable(record, &inventory));
            usable.extend(there.map(|record| record.id.clone()));
            let floors = Floors::read(repository, layout, system).await.map_err(|e| match e.kind() {
                Kind::Damaged => e.hint(
                    "it says which WAL has expired, and nothing else: where `pgkeep verify` finds nothing else \
                     damaged, remove this object and run expire again, which writes another one",
                ),
                _ => e,
            })?;
            wal.insert(system, SystemFacts::of(&store, &inventory, &floors).await?);
        }
        let backups = records
            .into_iter()
            .map(|record| BackupFacts { usable: usable.contains(&record.id), record });
        let pins = pins(repository, layout).await?.into_iter().filter(|pin| pin.holds(now));
        let running: Vec<_> = leases.iter().filter(|lease| lease.is_alive(now)).collect();
        let restoring = running.iter().filter(|lease| lease.restores());
        Ok(Facts {
            now,
            backups: backups.collect(),
            damaged,
            pinned: pins.map(|pin| pin.backup).collect(),
            restoring: restoring.filter_map(|lease| lease.backup.clone()).collect(),
            systems: wal,
            running_from: running.iter().filter_map(|lease| lease.start_lsn).min(),
        })
    }
}

/// Whether a backup's own WAL is there.
fn is_usable(record: &BackupRecord, inventory: &WalInventory) -> bool {
    // Segments of another size than the newest backup's (`pg_resetwal --wal-segsize`) aren't listed by
    // their numbers: nobody says that they are missing.
    if record.segment_size != inventory.segment_size {
        return true;
    }
    let Some(path) = inventory.path(record.timeline) else { return false };
    let first = record.segment_size.number_at(record.start_lsn);
    let last = record.segment_size.number_before(record.stop_lsn);
    // A standby's backup may end in a segment that was received as far as it needs it.
    (first..last).all(|number| inventory.segment(path, number).is_some())
        && inventory.reaches(path, record.stop_lsn)
}

impl SystemFacts {
    async fn of(store: &WalStore, inventory: &WalInventory, floors: &Floors) -> Result<Self> {
        let mut timelines = BTreeMap::new();
        for (timeline, wal) in inventory.timelines() {
            let segments = span(wal);
            let floor = inventory.segment_size.number_at(floors.of(timeline));
            let path = inventory.path(timeline).cloned();
            let begin = path.as_ref().and_then(|path| path.begin_of(timeline));
            let own =
                Own { size: inventory.segment_size, timeline, begin: begin.unwrap_or_default() };
            let facts = TimelineFacts {
                path,
                segments,
                last: own.last_time(store, wal).await?,
                given_up: floor > segments.map_or(0, |(_, last)| last),
            };
            timelines.insert(timeline, facts);
        }
        Ok(SystemFacts { segment_size: inventory.segment_size, timelines })
    }

    /// Whether another timeline that has WAL comes from this one.
    pub fn was_left(&self, timeline: Timeline) -> bool {
        self.timelines.iter().any(|(other, facts)| {
            *other != timeline
                && facts.segments.is_some()
                && facts.path.as_ref().is_some_and(|path| path.contains(timeline))
        })
    }
}

/// The first and the last segment's number.
fn span(wal: &TimelineWal) -> Option<(u64, u64)> {
    let whole = wal.ranges.first().zip(wal.ranges.last()).map(|(a, b)| (a.first, b.last));
    let partial = wal.partials.first().copied().zip(wal.partials.last().copied());
    match (whole, partial) {
        (Some(whole), Some(partial)) => Some((whole.0.min(partial.0), whole.1.max(partial.1))),
        (whole, partial) => whole.or(partial),
    }
}

/// A timeline's own WAL: its first segment begins with a copy of what its parent had written in it.
struct Own {
    size: SegmentSize,
    timeline: Timeline,
    begin: Lsn,
}

impl Own {
    /// The last transaction's end, from the segment that isn't whole yet and then from the summaries of the
    /// whole ones, the last one first.
    async fn last_time(&self, store: &WalStore, wal: &TimelineWal) -> Result<LastTime> {
        let last_whole = wal.ranges.last().map(|range| range.last);
        if let Some(tail) = wal.partials.last().filter(|tail| Some(**tail) > last_whole) {
            match self.last_time_of_tail(store, self.size.name(self.timeline, *tail)).await {
                Ok(Some(time)) => return Ok(LastTime::At(time)),
                Ok(None) => {}
                Err(e) if matches!(e.kind(), Kind::Damaged | Kind::Conflict) => {
                    return Ok(LastTime::Unknown);
                }
                Err(e) => return Err(e),
            }
        }
        let numbers = wal.ranges.iter().rev().flat_map(|range| (range.first..=range.last).rev());
        for (looked_at, number) in numbers.enumerate() {
            if looked_at == LOOK_BACK {
                return Ok(LastTime::Unknown);
            }
            let segment = self.size.name(self.timeline, number);
            let stored = match store.segment_summary(segment).await {
                Ok(stored) => stored.and_then(|stored| stored.segment).filter(|s| s.parsed),
                // Whether it can be read decides nothing but how old it may be.
                Err(e) if e.kind() == Kind::Damaged => None,
                Err(e) => return Err(e),
            };
            match stored {
                None => return Ok(LastTime::Unknown),
                Some(summary) => {
                    if let Some(time) = self.last_in(&summary) {
                        return Ok(LastTime::At(time));
                    }
                }
            }
        }
        Ok(LastTime::None)
    }

    /// The last transaction's end in a segment that isn't whole.
    async fn last_time_of_tail(
        &self,
        store: &WalStore,
        segment: SegmentName,
    ) -> Result<Option<DateTime<Utc>>> {
        let mut summaries = Vec::new();
        for name in store.partials(segment).await? {
            summaries.extend(store.summary(&name).await?.and_then(|stored| stored.segment));
        }
        summaries.extend(store.parts_summary(segment, self.size).await?);
        if summaries.iter().any(|summary| !summary.parsed) {
            return Err(Error::new(Kind::Damaged, format!("{segment} can't be read")));
        }
        Ok(summaries.iter().filter_map(|summary| self.last_in(summary)).max())
    }

    /// The end of the last transaction in a segment, unless that is the parent's.
    fn last_in(&self, summary: &SegmentSummary) -> Option<DateTime<Utc>> {
        let transactions = summary.transactions.as_ref()?;
        (transactions.last_commit > self.begin).then_some(transactions.last_time)
    }
}
