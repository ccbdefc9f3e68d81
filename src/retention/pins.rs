//! Pinning backups, and letting them go.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::{
    error::{Error, Kind, Result},
    repo::{
        BackupId, Repository,
        catalog::{self, BackupState},
        layout::ClusterLayout,
        pin::{pins, put_pin},
        tombstone::is_unmarked,
    },
};

/// A backup that was pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Pinned {
    /// The repository.
    pub repository: String,
    /// The backup.
    pub backup: BackupId,
    /// Until when this pin holds; for ever if there is none.
    pub until: Option<DateTime<Utc>>,
}

/// A backup whose pins were removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Unpinned {
    /// The repository.
    pub repository: String,
    /// The backup.
    pub backup: BackupId,
    /// How many pins it had, those that didn't hold any more included.
    pub removed: u64,
}

/// Pins a backup, beside the pins it has. `None` when the repository has no such backup.
pub async fn pin(
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
    until: Option<DateTime<Utc>>,
) -> Result<Option<Pinned>> {
    let now = Utc::now();
    if until.is_some_and(|until| until <= now) {
        return Err(Error::new(Kind::Usage, "a pin can't end in the past"));
    }
    let entries = catalog::entries(repository, layout).await?;
    let Some(entry) = entries.into_iter().find(|entry| entry.id == *id) else { return Ok(None) };
    let refuse = |what: &str| {
        let address = repository.storage().address();
        Error::new(Kind::Conflict, format!("backup {id} {what} in {address}: it can't be pinned"))
    };
    match entry.state {
        BackupState::Complete(_) => {}
        BackupState::Unfinished => return Err(refuse("isn't finished")),
        BackupState::Deleted => return Err(refuse("is deleted")),
        BackupState::Damaged(e) => return Err(e.while_doing(format!("read backup {id}"))),
    }
    let name = put_pin(repository, layout, id, until, now).await?;
    if !is_unmarked(repository, layout, id).await? {
        repository.storage().delete(&name).await?;
        return Err(refuse("was deleted just now"));
    }
    let repository = repository.name().to_owned();
    Ok(Some(Pinned { repository, backup: id.clone(), until }))
}

/// Removes all pins of a backup. `None` when the repository has no such backup, and no pin of it.
pub async fn unpin(
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
) -> Result<Option<Unpinned>> {
    let folders = repository.storage().folders(&layout.backups_folder()).await?;
    let is_there = folders.iter().any(|folder| folder == id.as_str());
    let mut removed = 0;
    for pin in pins(repository, layout).await? {
        if pin.backup == *id {
            repository.storage().delete(&pin.name).await?;
            removed += 1;
        }
    }
    let repository = repository.name().to_owned();
    let unpinned = Unpinned { repository, backup: id.clone(), removed };
    Ok((is_there || removed > 0).then_some(unpinned))
}
