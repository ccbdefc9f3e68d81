//! The end of a backup: committing it, or undoing what was stored.

use crate::{
    error::{Error, Kind, Result},
    repo::{
        BackupId, Repository, catalog,
        layout::ClusterLayout,
        record::BackupRecord,
        tombstone::{self, check_base, check_committed},
        wal_floor::Floors,
    },
    steps::reached,
};

/// Writes the commit object of a backup whose packs, manifest and WAL are there, and checks that
/// nobody deleted the backup, deleted its base or cut its WAL meanwhile: deletion and expiry write
/// their mark first and read the backups afterwards, so one of the two sees the other.
pub async fn commit(
    repository: &Repository,
    layout: &ClusterLayout,
    record: &BackupRecord,
) -> Result<()> {
    let id = &record.id;
    if let Some(base) = &record.base
        && let Err(e) = check_base(repository, layout, base).await
    {
        mark_deleted(repository, layout, id).await;
        return Err(e);
    }
    if let Err(e) = catalog::commit(repository, layout, record).await {
        // It may be there all the same, durable or not: nobody must take it for a backup that was
        // acknowledged.
        mark_deleted(repository, layout, id).await;
        return Err(e);
    }
    reached("backup: committed");
    match Floors::read_sound(repository, layout, record.system).await {
        Ok((floors, damage)) if record.start_lsn >= floors.of(record.timeline) => {
            // It is from before: the one that an expiry has written beside this backup is sound.
            if let Some(damage) = damage {
                tracing::warn!("{damage}");
            }
        }
        Ok(_) => {
            mark_deleted(repository, layout, id).await;
            let message = format!("the WAL that backup {id} needs was removed while it was taken");
            return Err(Error::new(Kind::Conflict, message).hint("run the backup again"));
        }
        Err(e) => {
            mark_deleted(repository, layout, id).await;
            return Err(e.while_doing("look whether WAL was removed meanwhile"));
        }
    }
    if let Err(e) = check_committed(repository, layout, id).await {
        mark_deleted(repository, layout, id).await;
        return Err(e);
    }
    reached("backup: acknowledged");
    Ok(())
}

async fn mark_deleted(repository: &Repository, layout: &ClusterLayout, id: &BackupId) {
    if let Err(e) = tombstone::mark_deleted(repository, layout, id).await {
        tracing::warn!("mark backup {id} as deleted: {e}");
    }
}

/// Removes what a backup that was never committed has stored: nobody can refer to it. Nothing may
/// still be writing to it. The tombstone comes first and goes last, so that a crash in between leaves
/// something that is known to be deleted. Best effort: what stays is found by a later clean-up.
pub async fn undo(repository: &Repository, layout: &ClusterLayout, id: &BackupId) {
    let remove = async {
        tombstone::mark_deleted(repository, layout, id).await?;
        tombstone::remove_folder(repository, layout, id).await
    };
    match remove.await {
        Ok(held) if held.is_empty() => {}
        Ok(held) => tracing::info!("{} objects of the failed backup {id} are held", held.len()),
        Err(e) => tracing::warn!("remove what the failed backup {id} has stored: {e}"),
    }
}
