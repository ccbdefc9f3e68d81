//! What backups and systems a cluster has in a repository.

use chrono::{DateTime, Duration, Utc};

use super::{
    BackupId, BackupType, Repository, SystemId,
    layout::ClusterLayout,
    record::BackupRecord,
    sealed::{put_sealed, read_whole},
};
use crate::{
    error::{Context, Error, Kind, Result},
    storage::ObjectName,
};

/// How many objects a listing asks for at once.
pub const PAGE: usize = 5_000;

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
    let mut entries = Vec::new();
    for folder in repository.storage().folders(&layout.backups_folder()).await? {
        let Ok(id) = folder.parse::<BackupId>() else {
            tracing::warn!("{}/{folder} isn't a backup", layout.backups_folder());
            continue;
        };
        let state = state(repository, layout, &id).await?;
        entries.push(CatalogEntry { id, state });
    }
    Ok(entries)
}

async fn state(
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
) -> Result<BackupState> {
    if exists(repository, &layout.of_backup(id, "deleted")).await? {
        return Ok(BackupState::Deleted);
    }
    let name = layout.of_backup(id, "backup.json");
    if !exists(repository, &name).await? {
        return Ok(BackupState::Unfinished);
    }
    Ok(match read_record(repository, layout, id).await {
        Ok(record) => BackupState::Complete(Box::new(record)),
        Err(e) if e.kind() == Kind::Damaged => BackupState::Damaged(e),
        Err(e) => return Err(e),
    })
}

/// The committed backups, in the order in which they stopped. Damaged ones are warned about.
pub async fn backups(repository: &Repository, layout: &ClusterLayout) -> Result<Vec<BackupRecord>> {
    let mut records = Vec::new();
    for entry in entries(repository, layout).await? {
        match entry.state {
            BackupState::Complete(record) => records.push(*record),
            BackupState::Damaged(e) => tracing::warn!("backup {} can't be used: {e}", entry.id),
            BackupState::Unfinished | BackupState::Deleted => {}
        }
    }
    records.sort_by(|a, b| (a.stopped_at, &a.id).cmp(&(b.stopped_at, &b.id)));
    Ok(records)
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
/// that is free in all of them.
pub async fn reserve(
    repositories: &[Repository],
    layout: &ClusterLayout,
    kind: BackupType,
    now: DateTime<Utc>,
) -> Result<BackupId> {
    'second: for seconds in 0..600 {
        let id = BackupId::at(now + Duration::seconds(seconds), kind);
        for repository in repositories {
            match put_sealed(repository, &layout.of_backup(&id, "begin"), b"").await {
                Ok(_) => {}
                Err(e) if e.kind() == Kind::Conflict => continue 'second,
                Err(e) => return Err(e),
            }
        }
        return Ok(id);
    }
    Err(Error::new(Kind::Conflict, "no free backup id within ten minutes from now")
        .hint("is the clock of this host right?"))
}

/// The systems that belong to the cluster.
pub async fn systems(repository: &Repository, layout: &ClusterLayout) -> Result<Vec<SystemId>> {
    let folder = layout.systems_folder();
    let listed = repository.storage().list(&folder, None, PAGE).await?;
    Ok(listed.iter().filter_map(|object| object.name.file_name().parse().ok()).collect())
}

/// Registers a system as one of the cluster's; nothing happens when it is already.
pub async fn register_system(
    repository: &Repository,
    layout: &ClusterLayout,
    system: SystemId,
) -> Result<()> {
    let name = layout.system(system);
    match put_sealed(repository, &name, system.to_string().as_bytes()).await {
        Err(e) if e.kind() == Kind::Conflict => {
            read_whole(repository, &name).await?;
            Ok(repository.storage().ensure_durable(&name).await?)
        }
        result => result.map(drop),
    }
}
