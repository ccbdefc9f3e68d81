//! Deleting one backup, because somebody asked for it.

use chrono::Utc;
use serde::Serialize;

use super::{
    references::References,
    sweep::{Swept, preview, sweep},
};
use crate::{
    error::{Error, Kind, Result},
    progress::Progress,
    repo::{
        BackupId, Repository,
        catalog::{self, BackupState, CatalogEntry},
        layout::ClusterLayout,
        lease::{Lease, leases},
        pin::{StoredPin, pins},
        tombstone::{abandon, mark_deleted},
    },
    storage::ErrorKind,
};

/// What deleting a backup did, or would do.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Deletion {
    /// The repository.
    pub repository: String,
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Whether it was marked as deleted before.
    pub already_deleted: bool,
    /// Whether no other backup of the cluster can be restored.
    pub last: bool,
    /// What it comes to.
    #[serde(flatten)]
    pub swept: Swept,
    /// What went of other backups that were deleted before.
    pub others: Vec<Swept>,
}

/// Deletes a backup: marks it, then removes what nobody else refers to. `None` when the repository
/// has no such backup.
///
/// A backup that is pinned, or that is being taken or restored, is refused. It may be asked for again: what a
/// killed run has left is then removed, and also what stayed because a backup used it that is deleted
/// now.
pub async fn delete(
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
    dry_run: bool,
    progress: &dyn Progress,
) -> Result<Option<Deletion>> {
    let entries = catalog::entries(repository, layout).await?;
    let Some(entry) = entries.iter().find(|entry| entry.id == *id) else { return Ok(None) };
    let already_deleted = matches!(entry.state, BackupState::Deleted);
    if !already_deleted {
        refuse_pinned(repository, layout, id).await?;
        refuse_in_use(repository, layout, entry).await?;
    }
    let is_other = |e: &&CatalogEntry| e.id != *id && matches!(e.state, BackupState::Complete(_));
    let last = !entries.iter().any(|e| is_other(&e));
    let (swept, others) = if dry_run {
        let references = References::read(repository, layout, &[id]).await?;
        (preview(repository, layout, &references, id).await?, Vec::new())
    } else {
        if matches!(entry.state, BackupState::Unfinished)
            && !abandon(repository, layout, id).await?
        {
            let message = format!("backup {id} wasn't crashed: it has just been finished");
            return Err(
                Error::new(Kind::Conflict, message).hint("if it shall be deleted, run it again")
            );
        }
        mark_deleted(repository, layout, id).await?;
        remove_pins(repository, layout, id).await?;
        let mut swept = sweep(repository, layout, progress).await?;
        // It isn't there when somebody else has removed the rest meanwhile.
        let own = swept.iter().position(|swept| swept.backup == *id).map(|at| swept.remove(at));
        swept.retain(|swept| swept.freed.objects > 0);
        (own.unwrap_or_else(|| Swept::none(id)), swept)
    };
    let repository = repository.name().to_owned();
    Ok(Some(Deletion { repository, dry_run, already_deleted, last, swept, others }))
}

async fn pins_of(
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
) -> Result<Vec<StoredPin>> {
    let pins = pins(repository, layout).await?;
    Ok(pins.into_iter().filter(|pin| pin.backup == *id).collect())
}

async fn refuse_pinned(
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
) -> Result<()> {
    let now = Utc::now();
    let pins = pins_of(repository, layout, id).await?;
    let Some(pin) = pins.iter().find(|pin| pin.holds(now)) else { return Ok(()) };
    let until = pin.until.map(|until| format!(" until {}", until.format("%F %TZ")));
    let message = format!(
        "backup {id} is pinned{} in {}",
        until.unwrap_or_default(),
        repository.storage().address()
    );
    Err(Error::new(Kind::Conflict, message).hint(format!("`pgkeep unpin {id}` lets it go")))
}

/// Refuses a backup that is being taken or restored.
async fn refuse_in_use(
    repository: &Repository,
    layout: &ClusterLayout,
    entry: &CatalogEntry,
) -> Result<()> {
    let leases = leases(repository, layout).await?;
    let (lease, what, stop) = match entry.state {
        BackupState::Unfinished => (
            live_lease(&leases, &entry.id),
            "taken",
            "stop that process: it then removes what it has stored",
        ),
        _ => (restoring_lease(&leases, &entry.id), "restored", "wait for that process, or stop it"),
    };
    let Some(lease) = lease else { return Ok(()) };
    let message = format!(
        "backup {} is being {what} by process {} on {}, which gave a sign of life at {}",
        entry.id,
        lease.process,
        lease.host,
        lease.renewed.format("%F %TZ")
    );
    Err(Error::new(Kind::Conflict, message)
        .hint(stop)
        .hint("if it is dead, wait until its lease has expired, which takes five minutes"))
}

/// The lease of a process that is taking this backup and is alive, as far as can be told.
pub(super) fn live_lease<'l>(leases: &'l [Lease], id: &BackupId) -> Option<&'l Lease> {
    let now = Utc::now();
    leases.iter().find(|lease| lease.backup.as_ref() == Some(id) && lease.is_alive(now))
}

/// The lease of a process that is restoring this backup, or drilling it, and is alive.
pub(super) fn restoring_lease<'l>(leases: &'l [Lease], id: &BackupId) -> Option<&'l Lease> {
    leases.iter().find(|lease| {
        lease.restores() && lease.backup.as_ref() == Some(id) && lease.is_alive(Utc::now())
    })
}

/// Removes the pins of a deleted backup, which hold no more.
pub(super) async fn remove_pins(
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
) -> Result<()> {
    for pin in pins_of(repository, layout, id).await? {
        match repository.storage().delete(&pin.name).await {
            // Of a backup that isn't one any more it says nothing.
            Err(e) if e.kind == ErrorKind::Locked => {}
            result => result?,
        }
    }
    Ok(())
}
