//! Which backup, along which timeline.
//!
//! A target is looked for along every timeline that the archive knows (or the one that was asked
//! for), from the newest backup from which it can be reached. When two timelines that don't come
//! from one another both contain it, only a person knows which is meant: both are listed and the
//! restore refused. A target that can't be reached is refused with what is possible instead.

mod named;
mod refuse;
mod search;

use chrono::{DateTime, Utc};

use super::{RestoreRequest, Target, TargetTimeline};
use crate::{
    error::{Error, Kind, Result},
    postgres::{Lsn, SegmentName, Timeline, history::TimelineHistory},
    repo::{
        BackupId, Repository, SystemId, catalog, catalog::BackupState, layout::ClusterLayout,
        record::BackupRecord, timelines::WalInventory, wal::WalStore,
    },
};

/// From which backup, along which timeline, up to where.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The backup.
    pub record: BackupRecord,
    /// The timeline that recovery follows.
    pub timeline: Timeline,
    /// How far replay will come, if the target says so.
    pub stop: Option<Lsn>,
    /// The time of the last transaction that will have been replayed, as far as it is known.
    pub last_transaction: Option<DateTime<Utc>>,
    /// Where replay to the end of the WAL stops, though the stream's parts have WAL behind that.
    pub hole: Option<Hole>,
}

/// Bytes that are missing between a stream's parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// The segment.
    pub segment: SegmentName,
    /// The position of the first byte that is missing.
    pub from: Lsn,
    /// The position of the next one that is there.
    pub to: Lsn,
}

/// What one system has in a repository, for choosing from.
pub(super) struct Holdings {
    /// The archive.
    pub store: WalStore,
    /// What it holds.
    pub inventory: WalInventory,
    /// The committed backups that may be taken, the newest last ([`catalog::in_order`]).
    pub records: Vec<BackupRecord>,
}

impl Holdings {
    /// The timelines of the backups.
    fn backup_timelines(&self) -> Vec<Timeline> {
        self.records.iter().map(|record| record.timeline).collect()
    }

    /// The backups that lie on `path`, the newest first.
    fn on_path<'a>(
        &'a self,
        path: &'a TimelineHistory,
    ) -> impl Iterator<Item = &'a BackupRecord> + 'a {
        self.records.iter().rev().filter(|record| record.lies_on(path))
    }
}

/// Chooses for `request`, or says why nothing can be chosen.
pub async fn choose(
    repository: &Repository,
    layout: &ClusterLayout,
    request: &RestoreRequest,
) -> Result<Choice> {
    let records = candidates(repository, layout, request).await?;
    let system = system_of(&records, &request.target);
    let (records, others): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|record| record.system == system);
    let choice = choose_in(repository, layout, request, system, records).await;
    choice.map_err(|e| refuse::in_one_system(e, &request.target, system, &others))
}

/// Chooses from what one system has.
async fn choose_in(
    repository: &Repository,
    layout: &ClusterLayout,
    request: &RestoreRequest,
    system: SystemId,
    records: Vec<BackupRecord>,
) -> Result<Choice> {
    let segment_size = records.last().map(|r| r.segment_size).unwrap_or_default();
    let store = WalStore::new(repository, layout, system);
    let inventory = WalInventory::read_what_can_be(&store, segment_size).await?;
    let holdings = Holdings { store, inventory, records };
    let paths = paths(&holdings, request)?;
    if let (Target::Name(name), None) = (&request.target, &request.backup) {
        named::refuse_several(&holdings, &paths, name).await?;
    }
    let mut choice = search::search(&holdings, &paths, request).await?;
    if request.target == Target::Latest {
        choice.hole = hole(&holdings.inventory, choice.timeline);
    }
    Ok(choice)
}

/// The hole behind the last whole segment of a timeline, where there is one. A stream that died leaves one, of what it
/// hadn't acknowledged; else it is a loss.
fn hole(inventory: &WalInventory, timeline: Timeline) -> Option<Hole> {
    let size = inventory.segment_size;
    let path = inventory.path(timeline)?;
    let last = inventory.last_there(path);
    let is_behind = |(of, number, _): &(Timeline, u64, _)| {
        path.timeline_of_segment(*number, size) == *of && last.is_none_or(|last| *number > last)
    };
    let (timeline, number, (from, to)) =
        inventory.holes().filter(is_behind).min_by_key(|(_, number, _)| *number)?;
    let at = |offset: u64| Lsn(size.start_of(number).0 + offset);
    Some(Hole { segment: size.name(timeline, number), from: at(from), to: at(to) })
}

/// The backups that may be taken: the one that was asked for, or all.
async fn candidates(
    repository: &Repository,
    layout: &ClusterLayout,
    request: &RestoreRequest,
) -> Result<Vec<BackupRecord>> {
    let address = repository.storage().address();
    let cluster = layout.cluster();
    let Some(id) = &request.backup else {
        let records = catalog::backups(repository, layout).await?;
        return if records.is_empty() {
            Err(Error::new(
                Kind::Target,
                format!("there is no backup of cluster {cluster} in {address}"),
            )
            .hint("`pgkeep backup` takes one")
            .hint("if there should be one: are --cluster and the repository's url right?"))
        } else {
            Ok(records)
        };
    };
    let entries = catalog::entries(repository, layout).await?;
    let known = |entry: &catalog::CatalogEntry| entry.id == *id;
    let no = |what: &str| {
        Error::new(Kind::Target, format!("backup {id} of cluster {cluster} {what} in {address}"))
            .hint("`pgkeep info` lists the backups that can be restored")
    };
    match entries.into_iter().find(known).map(|entry| entry.state) {
        Some(BackupState::Complete(record)) => Ok(vec![*record]),
        Some(BackupState::Damaged(e)) => Err(e.while_doing(format!("read backup {id}"))),
        Some(BackupState::Unfinished) => Err(no("was never finished")),
        Some(BackupState::Deleted) => Err(no("is deleted")),
        None => Err(no("doesn't exist")),
    }
}

/// After an upgrade a cluster has several systems: the newest one, or for a time the newest one
/// that had a backup by then.
fn system_of(records: &[BackupRecord], target: &Target) -> SystemId {
    let by_then = |record: &&BackupRecord| match target {
        Target::Time(time) => record.stopped_at <= *time,
        _ => true,
    };
    let newest = records.iter().rev().find(by_then).or(records.last());
    newest.map_or(SystemId { major: 0, identifier: 0 }, |record| record.system)
}

/// The paths along which the target is looked for.
fn paths(holdings: &Holdings, request: &RestoreRequest) -> Result<Vec<TimelineHistory>> {
    let inventory = &holdings.inventory;
    let usable = |path: &TimelineHistory| holdings.on_path(path).next().is_some();
    let of = |timeline: Timeline| -> Result<TimelineHistory> {
        let path = inventory.path(timeline).cloned();
        path.ok_or_else(|| refuse::unknown_timeline(holdings, timeline))
    };
    if matches!(request.timeline, TargetTimeline::Unspecified | TargetTimeline::Latest)
        && let Some(lost) = inventory.without_history(&holdings.backup_timelines()).last()
        && request.target != Target::Immediate
    {
        return Err(refuse::without_history(holdings, *lost));
    }
    let newest = holdings.records.last().map_or(Timeline(1), |record| record.timeline);
    match request.timeline {
        TargetTimeline::Id(timeline) => {
            let path = of(timeline)?;
            if usable(&path) {
                Ok(vec![path])
            } else {
                Err(refuse::no_backup_on(holdings, timeline))
            }
        }
        TargetTimeline::Current => Ok(vec![of(newest)?]),
        TargetTimeline::Latest => {
            let leaves = inventory.leaves(&holdings.backup_timelines());
            let paths = leaves.iter().filter_map(|t| inventory.path(*t));
            match paths.filter(|path| usable(path)).max_by_key(|path| path.timeline) {
                Some(latest) => Ok(vec![latest.clone()]),
                None => match leaves.last().filter(|_| request.backup.is_none()) {
                    Some(leaf) => Err(refuse::left_behind(holdings, *leaf)),
                    None => Ok(vec![of(newest)?]),
                },
            }
        }
        // A backup says nothing about what came after it on other timelines than its own.
        TargetTimeline::Unspecified if request.target == Target::Immediate => Ok(vec![of(newest)?]),
        TargetTimeline::Unspecified => {
            let mut timelines = holdings.backup_timelines();
            timelines.extend(inventory.timelines().map(|(timeline, _)| timeline));
            timelines.sort();
            timelines.dedup();
            let known = timelines.into_iter().filter_map(|t| inventory.path(t));
            let paths: Vec<_> = known.filter(|path| usable(path)).cloned().collect();
            if paths.is_empty() { Ok(vec![of(newest)?]) } else { Ok(paths) }
        }
    }
}

/// The backup's id and when it was complete, for people.
pub(super) fn described(record: &BackupRecord) -> String {
    let id: &BackupId = &record.id;
    format!("{id} (complete at {})", super::plan::server_time(record.stopped_at))
}
