//! What backups and systems a cluster has in a repository.
//!
//! Which of two backups is the newer one is decided here, in [`in_order`], for everybody: what is
//! restored by default, what an incremental is compared with, what is shown last.

use std::collections::BTreeMap;

use chrono::{DateTime, Duration, Utc};
use tokio::task::JoinSet;

use super::{
    BackupId, BackupType, Repository, SystemId,
    keys::random,
    layout::ClusterLayout,
    record::BackupRecord,
    repository::Names,
    sealed::{put_sealed, read_whole},
    timelines::read_history,
    wal::WalStore,
};
use crate::{
    error::{Context, Error, Kind, Result},
    postgres::{Timeline, history::TimelineHistory},
    storage::{Listed, ObjectName},
};

/// How many objects a listing asks for at once.
pub const PAGE: usize = 5_000;

/// At least as many objects as a backup has beside its packs: `abandoned`, `backup.json`, `begin`,
/// `deleted`, `manifest`; and room for some that don't belong there.
const BESIDE_PACKS: usize = 16;

/// A backup's folder and what it is.
#[derive(Debug)]
pub struct CatalogEntry {
    /// The id.
    pub id: BackupId,
    /// What state it is in.
    pub state: BackupState,
}

/// The state of a backup's folder.
#[derive(Debug)]
pub enum BackupState {
    /// Committed.
    Complete(Box<BackupRecord>),
    /// Begun and not committed: running, or crashed.
    Unfinished,
    /// It has a tombstone.
    Deleted,
    /// It has a commit object, which can't be read.
    Damaged(Error),
}

/// Whether an object is there; "can't tell" is an error.
pub async fn exists(repository: &Repository, name: &ObjectName) -> Result<bool> {
    match repository.storage().size(name).await {
        Ok(_) => Ok(true),
        Err(e) if e.is_not_found() => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Every backup folder of the cluster, sorted by id.
pub async fn entries(repository: &Repository, layout: &ClusterLayout) -> Result<Vec<CatalogEntry>> {
    let mut ids = Vec::new();
    for folder in repository.storage().folders(&layout.backups_folder()).await? {
        match folder.parse::<BackupId>() {
            Ok(id) => ids.push(id),
            Err(_) => tracing::warn!("{}/{folder} isn't a backup", layout.backups_folder()),
        }
    }
    let mut entries = Vec::with_capacity(ids.len());
    let at_once = repository.storage().capabilities().questions_at_once;
    if at_once <= 1 {
        for id in ids {
            let state = state(repository, layout, &id).await?;
            entries.push(CatalogEntry { id, state });
        }
        entries.sort_by(|a, b| a.id.cmp(&b.id));
        return Ok(entries);
    }
    for ids in ids.chunks(at_once) {
        let mut asked = JoinSet::new();
        for id in ids.iter().cloned() {
            let (repository, layout) = (repository.clone(), layout.clone());
            asked.spawn(async move {
                let state = state(&repository, &layout, &id).await?;
                Ok(CatalogEntry { id, state })
            });
        }
        while let Some(entry) = asked.join_next().await {
            entries.push(entry.unwrap_or_else(|e| {
                Err(Error::new(
                    Kind::Internal,
                    format!("the task that looks at a backup died: {e}"),
                ))
            })?);
        }
    }
    entries.sort_by(|a: &CatalogEntry, b| a.id.cmp(&b.id));
    Ok(entries)
}

async fn state(
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
) -> Result<BackupState> {
    // One listing tells what is there, since the names of packs come after those of the others.
    let folder = layout.backup_folder(id);
    let packs = layout.packs_folder(id);
    let mut listed: Vec<Listed> = Vec::new();
    // More than one only where much is in the folder that doesn't belong there.
    loop {
        let last = listed.last().map(|object| object.name.clone());
        let after = last.as_ref().map(ObjectName::as_str);
        let page = repository.storage().list(&folder, after, BESIDE_PACKS).await?;
        let is_last = page.len() < BESIDE_PACKS;
        listed.extend(page);
        if is_last || listed.last().is_none_or(|last| last.name.as_str() >= packs.as_str()) {
            break;
        }
    }
    let has = |part: &str| {
        let name = layout.of_backup(id, part);
        listed.iter().any(|object| object.name == name)
    };
    if has("deleted") {
        return Ok(BackupState::Deleted);
    }
    // Without `begin` the folder was removed, and a process that knew nothing of it wrote on.
    if !(has("backup.json") && has("begin")) {
        return Ok(BackupState::Unfinished);
    }
    // A listing may miss a `deleted` that goes while it is made. But `backup.json` goes before it, so
    // one that is still there was really listed without.
    Ok(match read_record(repository, layout, id).await {
        Ok(record) => BackupState::Complete(Box::new(record)),
        Err(e) if e.kind() == Kind::Damaged => {
            match exists(repository, &layout.of_backup(id, "backup.json")).await? {
                true => BackupState::Damaged(e),
                false => BackupState::Deleted,
            }
        }
        Err(e) => return Err(e),
    })
}

/// The committed backups, the newest last ([`in_order`]). Damaged ones are warned about.
pub async fn backups(repository: &Repository, layout: &ClusterLayout) -> Result<Vec<BackupRecord>> {
    let mut records = Vec::new();
    for entry in entries(repository, layout).await? {
        match entry.state {
            BackupState::Complete(record) => records.push(*record),
            BackupState::Damaged(e) => tracing::warn!("backup {} can't be used: {e}", entry.id),
            BackupState::Unfinished | BackupState::Deleted => {}
        }
    }
    in_order(repository, layout, records).await
}

/// Sorts backups of one cluster, the newest last.
///
/// A server's clock may have been set back between two backups, so where the WAL says which came
/// first, it decides: of one timeline the one that stopped at the higher position is the newer, and
/// one on the way to another's timeline is the older. Only between those that the WAL doesn't
/// compare, of different systems or of timelines that went separate ways, the clock decides. So the
/// newest backup is, of those behind which no other one lies, the last by the clock.
pub async fn in_order(
    repository: &Repository,
    layout: &ClusterLayout,
    records: Vec<BackupRecord>,
) -> Result<Vec<BackupRecord>> {
    let mut rows = BTreeMap::<(SystemId, Timeline), Vec<BackupRecord>>::new();
    for record in records {
        rows.entry((record.system, record.timeline)).or_default().push(record);
    }
    let mut paths = BTreeMap::new();
    for &(system, timeline) in rows.keys().filter(|(_, timeline)| *timeline != Timeline(1)) {
        let store = WalStore::new(repository, layout, system);
        match read_history(&store, timeline).await {
            Ok(history) => paths.extend(history.map(|path| ((system, timeline), path))),
            // Who needs it to restore fails with this. It is no reason not to list the backups.
            Err(e) if matches!(e.kind(), Kind::Damaged | Kind::Conflict) => tracing::warn!("{e}"),
            Err(e) => return Err(e),
        }
    }
    Ok(merged(rows, &paths))
}

/// Merges the backups of each timeline, which are compared by position, from the newest on. `paths`
/// are the histories that are known.
fn merged(
    mut rows: BTreeMap<(SystemId, Timeline), Vec<BackupRecord>>,
    paths: &BTreeMap<(SystemId, Timeline), TimelineHistory>,
) -> Vec<BackupRecord> {
    for row in rows.values_mut() {
        row.sort_by(|a, b| {
            (a.stop_lsn, a.stopped_at, &a.id).cmp(&(b.stop_lsn, b.stopped_at, &b.id))
        });
    }
    let mut newest_first = Vec::new();
    loop {
        let behind = |record: &BackupRecord, (system, timeline): &(SystemId, Timeline)| {
            *system == record.system
                && *timeline != record.timeline
                && paths.get(&(*system, *timeline)).is_some_and(|path| record.lies_on(path))
        };
        let newest = rows
            .values()
            .filter_map(|row| row.last())
            .filter(|record| !rows.iter().any(|(at, row)| !row.is_empty() && behind(record, at)))
            .max_by(|a, b| (a.stopped_at, &a.id).cmp(&(b.stopped_at, &b.id)));
        let Some(at) = newest.map(|record| (record.system, record.timeline)) else { break };
        newest_first.extend(rows.get_mut(&at).and_then(Vec::pop));
    }
    newest_first.reverse();
    newest_first
}

/// Reads a commit object.
pub async fn read_record(
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
) -> Result<BackupRecord> {
    let name = layout.of_backup(id, "backup.json");
    let bytes = read_whole(repository, &name).await?.into_bytes();
    let damaged = |what: String| {
        let address = repository.storage().address();
        Error::new(Kind::Damaged, format!("{name} in {address} is damaged: {what}"))
    };
    let record: BackupRecord =
        serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    if record.format != 1 || record.id != *id {
        return Err(damaged(format!("it says format {}, backup {}", record.format, record.id)));
    }
    Ok(record)
}

/// Writes the commit object: the last act of a backup.
pub async fn commit(
    repository: &Repository,
    layout: &ClusterLayout,
    record: &BackupRecord,
) -> Result<u64> {
    let json = serde_json::to_vec(record).context(Kind::Internal, || "write backup.json")?;
    put_sealed(repository, &layout.of_backup(&record.id, "backup.json"), &json).await
}

/// Reserves an id in every repository, by creating `begin` in each: the first second from `now` on
/// that is free in all of them. Where one of them would overwrite, the id has a random number. A
/// repository in which that fails for another reason has its error in the list, and doesn't keep the
/// others from theirs.
pub async fn reserve(
    repositories: &[Repository],
    layout: &ClusterLayout,
    kind: BackupType,
    now: DateTime<Utc>,
) -> Result<(BackupId, Vec<Result<()>>)> {
    // Where the storage overwrites, nobody is told that an id is taken.
    let random = match repositories.iter().any(|r| r.names() == Names::Content) {
        true => Some(hex::encode(random::<8>()?)),
        false => None,
    };
    'second: for seconds in 0..600 {
        let id = BackupId::at(now + Duration::seconds(seconds), kind, random.as_deref());
        let begin = layout.of_backup(&id, "begin");
        let mut reserved: Vec<Result<()>> = Vec::new();
        for repository in repositories {
            match put_sealed(repository, &begin, b"").await {
                Err(e) if e.kind() == Kind::Conflict => {
                    for (repository, _) in
                        repositories.iter().zip(&reserved).filter(|(_, done)| done.is_ok())
                    {
                        repository.storage().delete(&begin).await?;
                    }
                    continue 'second;
                }
                result => reserved.push(result.map(drop)),
            }
        }
        return Ok((id, reserved));
    }
    Err(Error::new(Kind::Conflict, "no free backup id within ten minutes from now")
        .hint("is the clock of this host right?"))
}

/// The systems that belong to the cluster.
pub async fn systems(repository: &Repository, layout: &ClusterLayout) -> Result<Vec<SystemId>> {
    let folder = layout.systems_folder();
    let listed = repository.storage().list(&folder, None, PAGE).await?;
    let registered = listed.into_iter().filter_map(|object| {
        let system = object.name.file_name().parse().ok()?;
        // Another way to write it is another object.
        (layout.system(system) == object.name).then_some(system)
    });
    Ok(registered.collect())
}

/// Registers a system as one of the cluster's; nothing happens when it is already.
pub async fn register_system(
    repository: &Repository,
    layout: &ClusterLayout,
    system: SystemId,
) -> Result<()> {
    let name = layout.system(system);
    // Where the storage overwrites, what is there is looked for first.
    let put = match repository.names() == Names::Content && exists(repository, &name).await? {
        true => Err(Error::new(Kind::Conflict, "it is registered already")),
        false => put_sealed(repository, &name, system.to_string().as_bytes()).await,
    };
    match put {
        Err(e) if e.kind() == Kind::Conflict => {
            read_whole(repository, &name).await?;
            Ok(repository.storage().ensure_durable(&name).await?)
        }
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A backup of one system: its timeline, where it stopped, and when, in minutes past noon.
    fn backup(system: u64, timeline: u32, stop: &str, minute: u32) -> BackupRecord {
        serde_json::from_value(serde_json::json!({
            "format": 1, "id": format!("20261120T12{minute:02}00Z-full"), "cluster": "main",
            "kind": "full", "asked": "full", "label": "", "system": format!("15-{system}"),
            "server-version": "15.18", "source": "primary", "timeline": timeline,
            "start-lsn": "0/28", "stop-lsn": stop, "segment-size": 16_777_216,
            "started-at": "2026-11-20T12:00:00Z",
            "stopped-at": format!("2026-11-20T12:{minute:02}:00Z"), "data-checksums": true,
            "sizes": { "files": 0, "cluster": 0, "raw": 0, "stored": 0 }, "pgkeep": "0.1.0"
        }))
        .unwrap()
    }

    /// The order of these, as the minutes of each; timelines have these history files.
    fn order(backups: &[BackupRecord], histories: &[(u32, &str)]) -> Vec<String> {
        let mut rows = BTreeMap::<_, Vec<_>>::new();
        for record in backups {
            rows.entry((record.system, record.timeline)).or_default().push(record.clone());
        }
        let paths = histories.iter().map(|(timeline, text)| {
            let timeline = Timeline(*timeline);
            let path = TimelineHistory::parse(timeline, text.as_bytes()).unwrap();
            ((SystemId { major: 15, identifier: 1 }, timeline), path)
        });
        let sorted = merged(rows, &paths.collect());
        sorted.iter().map(|record| record.stopped_at.format("%M").to_string()).collect()
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_backup_newer() {
        let backups = [
            backup(1, 1, "0/3000000", 50),
            backup(1, 1, "0/5000000", 20),
            backup(1, 1, "0/7000000", 30),
        ];
        assert_eq!(order(&backups, &[]), ["50", "20", "30"]);
        // Nor on the timeline that came from this one; 1 went on after it.
        let history = [(2, "1\t0/6000000\tpromoted\n")];
        let mut promoted = backups.to_vec();
        promoted.push(backup(1, 2, "0/6500000", 10));
        assert_eq!(order(&promoted, &history), ["50", "20", "10", "30"]);
        promoted.push(backup(1, 2, "0/8000000", 40));
        assert_eq!(order(&promoted, &history), ["50", "20", "10", "30", "40"]);
    }

    #[test]
    fn what_the_wal_does_not_compare_is_ordered_by_time() {
        // A new system after an upgrade, a fork, and a timeline whose history isn't there.
        let backups = [
            backup(1, 6, "0/9000000", 10),
            backup(2, 1, "0/2000000", 20),
            backup(1, 7, "0/8000000", 30),
            backup(2, 1, "0/3000000", 40),
            backup(1, 8, "0/7000000", 50),
        ];
        let history = [(7, "6\t0/8000000\tx\n")];
        assert_eq!(order(&backups, &history), ["10", "20", "30", "40", "50"]);
        let reversed: Vec<_> = backups.iter().rev().cloned().collect();
        assert_eq!(order(&reversed, &history), ["10", "20", "30", "40", "50"]);
    }
}
