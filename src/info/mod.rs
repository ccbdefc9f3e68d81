//! What the repositories hold of a cluster: backups, WAL, and from when until when one can restore;
//! and how far its server is ahead of them.

mod behind;
mod server;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::{
    config::ClusterSettings,
    error::Result,
    postgres::{Lsn, Timeline, history::TimelineHistory},
    repo::{
        BackupId, Repository, SystemId,
        catalog::{self, BackupState},
        drill::{CheckOutcome, Rpo, Rto, drills},
        layout::ClusterLayout,
        lease::{self, Lease},
        pin::pins,
        record::BackupRecord,
        replay::Replay,
        repository::Names,
        timelines::{SegmentRange, TimelineWal, WalInventory},
        wal::WalStore,
        wal_gaps::{self, gaps},
    },
};

pub use behind::Behind;
pub use server::{ArchiverInfo, Archiving, ServerInfo, StreamInfo, WaitingInfo};

/// A cluster in one repository.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ClusterInfo {
    /// The repository's name in the configuration.
    pub repository: String,
    /// Where it lies.
    pub address: String,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// What names hold: `plain`, or `content` where the storage would overwrite what is there.
    pub names: Names,
    /// The cluster's name.
    pub cluster: String,
    /// Its systems; more than one after a major upgrade.
    pub systems: Vec<SystemInfo>,
    /// Backups that aren't usable.
    pub unusable: Vec<UnusableBackup>,
    /// Backups that are pinned.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pinned: Vec<PinnedBackup>,
    /// Of each backup that was restored in a drill, the last one; the newest last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drills: Vec<DrillInfo>,
}

/// One system's backups and WAL.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SystemInfo {
    /// Major version and system identifier.
    pub system: SystemId,
    /// Its backups, the newest last ([`catalog::in_order`]).
    pub backups: Vec<BackupRecord>,
    /// From when until when one can restore.
    pub windows: Vec<Window>,
    /// Its WAL by timeline.
    pub timelines: Vec<TimelineInfo>,
    /// WAL that backups need to be restored to every moment after them, and that isn't there.
    pub gaps: Vec<Gap>,
    /// How far the server is ahead, where it is of this system and could be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behind: Option<Behind>,
}

/// Segments in a row that are missing, or bytes of one.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Gap {
    /// The timeline.
    pub timeline: Timeline,
    /// The first missing segment's name.
    pub first: String,
    /// The last one's.
    pub last: String,
    /// How many.
    pub segments: u64,
    /// Of a segment of which the stream's parts have some: the bytes that are missing among them, the
    /// first and last one's offsets, the latter excluded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<(u64, u64)>,
    /// Whether it is behind the newest backup, which can't be restored to what comes after it.
    pub after_newest_backup: bool,
}

/// A stretch of time to any point of which one can restore along one timeline.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Window {
    /// The timeline.
    pub timeline: Timeline,
    /// The backup it begins with.
    pub backup: BackupId,
    /// When that backup was complete: the earliest target time.
    pub from: DateTime<Utc>,
    /// The end of the last transaction that can be restored; `None` when there is none after the
    /// backup.
    pub until: Option<DateTime<Utc>>,
    /// How far the WAL goes.
    pub end_lsn: Lsn,
    /// The segment whose absence ends the window although there is more WAL behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// What there is of one timeline.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct TimelineInfo {
    /// The timeline.
    pub timeline: Timeline,
    /// The timeline it comes from, and where it left that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// Whether its history file isn't there: then nothing can be restored along it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub history_missing: bool,
    /// Rows of segments without a gap.
    pub ranges: Vec<WalRange>,
    /// Segments of which there is only a partial copy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub partials: Vec<String>,
    /// Whole segments, of all ranges.
    pub segments: u64,
    /// Stored bytes, of everything that the timeline has.
    pub stored: u64,
}

/// Segments in a row.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct WalRange {
    /// The first one's name.
    pub first: String,
    /// The last one's name.
    pub last: String,
    /// How many.
    pub segments: u64,
    /// Stored bytes.
    pub stored: u64,
}

/// Where a timeline comes from.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Parent {
    /// The timeline.
    pub timeline: Timeline,
    /// The switch point.
    pub switch_lsn: Lsn,
}

/// A backup that can't be restored.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct UnusableBackup {
    /// The backup.
    pub id: BackupId,
    /// `running`, `crashed`, `deleted` or `damaged`.
    pub state: &'static str,
    /// What more there is to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A backup that is kept from being deleted and from expiring.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PinnedBackup {
    /// The backup.
    pub id: BackupId,
    /// Until when; for ever if there is none.
    pub until: Option<DateTime<Utc>>,
}

/// What came of the last drill of a backup.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct DrillInfo {
    /// The backup.
    pub backup: BackupId,
    /// When the drill began.
    pub began: DateTime<Utc>,
    /// Whether the backup passed.
    pub passed: bool,
    /// What failed, by the checks' names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<String>,
    /// How long the restore took until the server answered.
    pub rto: Rto,
    /// What came back.
    pub rpo: Option<Rpo>,
}

/// Looks at what a repository holds of a cluster. `server` is what its server says, if it does.
pub async fn info(
    repository: &Repository,
    cluster: &ClusterSettings,
    server: Option<&ServerInfo>,
) -> Result<ClusterInfo> {
    let layout = ClusterLayout::new(&cluster.name)?;
    let (records, unusable) = backups(repository, &layout).await?;
    let mut ids = catalog::systems(repository, &layout).await?;
    ids.extend(records.iter().map(|record| record.system));
    ids.sort();
    ids.dedup();
    let mut systems = Vec::new();
    for system in ids {
        let backups = records.iter().filter(|r| r.system == system).cloned().collect();
        systems.push(system_info(repository, &layout, system, backups, server).await?);
    }
    Ok(ClusterInfo {
        repository: repository.name().to_owned(),
        address: repository.storage().address().to_owned(),
        encrypted: repository.keyring().is_encrypted(),
        names: repository.names(),
        cluster: cluster.name.clone(),
        systems,
        unusable,
        pinned: pinned(repository, &layout).await?,
        drills: last_drills(repository, &layout).await?,
    })
}

/// The last drill of each backup.
async fn last_drills(repository: &Repository, layout: &ClusterLayout) -> Result<Vec<DrillInfo>> {
    let mut last: Vec<DrillInfo> = Vec::new();
    for drill in drills(repository, layout).await? {
        last.retain(|older| older.backup != drill.backup);
        let failed = drill.checks.into_iter().filter(|c| c.outcome == CheckOutcome::Failed);
        last.push(DrillInfo {
            backup: drill.backup,
            began: drill.began,
            passed: drill.passed,
            failed: failed.map(|check| check.name).collect(),
            rto: drill.rto,
            rpo: drill.rpo,
        });
    }
    Ok(last)
}

/// The backups that are pinned now, each with the pin that holds it longest.
async fn pinned(repository: &Repository, layout: &ClusterLayout) -> Result<Vec<PinnedBackup>> {
    let now = Utc::now();
    let mut pinned: Vec<PinnedBackup> = Vec::new();
    for pin in pins(repository, layout).await?.into_iter().filter(|pin| pin.holds(now)) {
        match pinned.iter_mut().find(|pinned| pinned.id == pin.backup) {
            Some(known) => known.until = known.until.zip(pin.until).map(|(a, b)| a.max(b)),
            None => pinned.push(PinnedBackup { id: pin.backup, until: pin.until }),
        }
    }
    Ok(pinned)
}

async fn backups(
    repository: &Repository,
    layout: &ClusterLayout,
) -> Result<(Vec<BackupRecord>, Vec<UnusableBackup>)> {
    let leases = lease::leases(repository, layout).await?;
    let (mut records, mut unusable) = (Vec::new(), Vec::new());
    for entry in catalog::entries(repository, layout).await? {
        let (state, why) = match entry.state {
            BackupState::Complete(record) => {
                records.push(*record);
                continue;
            }
            BackupState::Unfinished => {
                unfinished(leases.iter().find(|l| l.backup.as_ref() == Some(&entry.id)))
            }
            BackupState::Deleted => ("deleted", None),
            BackupState::Damaged(e) => ("damaged", Some(e.to_string())),
        };
        unusable.push(UnusableBackup { id: entry.id, state, why });
    }
    Ok((catalog::in_order(repository, layout, records).await?, unusable))
}

/// Whether a backup that isn't finished is still being taken, by its lease.
fn unfinished(lease: Option<&Lease>) -> (&'static str, Option<String>) {
    match lease {
        Some(lease) if lease.is_abandoned() => {
            ("crashed", Some(format!("the process that took it, {}, is gone", lease.process)))
        }
        Some(lease) if !lease.is_expired(Utc::now()) => ("running", None),
        _ => ("crashed", Some("it was never finished".to_owned())),
    }
}

async fn system_info(
    repository: &Repository,
    layout: &ClusterLayout,
    system: SystemId,
    backups: Vec<BackupRecord>,
    server: Option<&ServerInfo>,
) -> Result<SystemInfo> {
    let store = WalStore::new(repository, layout, system);
    let segment_size = store.segment_size_of(backups.last()).await?;
    let inventory = WalInventory::read_what_can_be(&store, segment_size).await?;
    let mut windows = Vec::new();
    for path in inventory.known() {
        windows.extend(windows_of(&store, &inventory, path, &backups).await?);
    }
    let timelines = inventory.timelines().map(|(t, wal)| timeline_info(&inventory, t, wal));
    let timelines = timelines.collect();
    let gaps = gaps(&store, &inventory, &backups, Duration::ZERO).await?;
    let gaps = gaps.iter().map(|gap| gap_info(&inventory, gap)).collect();
    let server = server.filter(|server| server.system == system);
    let behind = server.map(|server| Behind::of(server, &inventory, &windows));
    Ok(SystemInfo { system, backups, windows, timelines, gaps, behind })
}

fn gap_info(inventory: &WalInventory, gap: &wal_gaps::Gap) -> Gap {
    let name = |number: u64| inventory.segment_size.name(gap.timeline, number).to_string();
    Gap {
        timeline: gap.timeline,
        first: name(gap.first),
        last: name(gap.last),
        segments: gap.segments(),
        bytes: gap.hole,
        after_newest_backup: gap.newest,
    }
}

/// The windows along one path. Backups whose WAL ends at the same segment share one.
async fn windows_of(
    store: &WalStore,
    inventory: &WalInventory,
    path: &TimelineHistory,
    backups: &[BackupRecord],
) -> Result<Vec<Window>> {
    let replay = Replay { store, inventory, path };
    let mut windows: Vec<Window> = Vec::new();
    // Where the whole segments of the last window end.
    let mut shared = None;
    for record in backups.iter().filter(|record| record.lies_on(path)) {
        let first = record.segment_size.number_at(record.start_lsn);
        let missing = inventory.first_missing(path, first);
        if shared == Some(missing) {
            continue;
        }
        let reach = replay.end_from(first).await?;
        if reach.end < record.stop_lsn {
            continue;
        }
        let until = reach.last_transaction.filter(|t| t.end > record.stop_lsn).map(|t| t.time);
        let window = Window {
            timeline: path.timeline,
            backup: record.id.clone(),
            from: record.stopped_at,
            until,
            end_lsn: reach.end,
            missing: reach.gap.then(|| reach.missing.to_string()),
        };
        windows.push(window);
        shared = Some(missing);
    }
    Ok(windows)
}

fn timeline_info(inventory: &WalInventory, timeline: Timeline, wal: &TimelineWal) -> TimelineInfo {
    let name = |number: u64| inventory.segment_size.name(timeline, number).to_string();
    let parent = inventory.path(timeline).and_then(|path| {
        let parent = path.ancestors.last()?;
        Some(Parent { timeline: parent.timeline, switch_lsn: parent.end })
    });
    let range = |range: &SegmentRange| WalRange {
        first: name(range.first),
        last: name(range.last),
        segments: range.last - range.first + 1,
        stored: range.stored,
    };
    let ranges: Vec<_> = wal.ranges.iter().map(range).collect();
    TimelineInfo {
        timeline,
        parent,
        history_missing: inventory.path(timeline).is_none(),
        partials: wal.partials.iter().map(|n| name(*n)).collect(),
        segments: ranges.iter().map(|range| range.segments).sum(),
        ranges,
        stored: wal.stored,
    }
}
