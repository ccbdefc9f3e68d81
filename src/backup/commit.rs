//! The end of a backup: committing it, or undoing what was stored.

use crate::{
    error::{Error, Kind, Result},
    repo::{
        BackupId, Repository,
        catalog::{self, PAGE, exists},
        layout::ClusterLayout,
        record::BackupRecord,
        sealed::put_sealed,
        wal_floor::highest_floor,
    },
};

/// Writes the commit object of a backup whose packs, manifest and WAL are there, and checks that
/// nobody deleted its base, or the backup, or cut its WAL meanwhile: deletion and expiry write their
/// mark first and read the manifests and backups afterwards, so one of the two sees the other.
pub async fn commit(
    repository: &Repository,
    layout: &ClusterLayout,
    record: &BackupRecord,
) -> Result<()> {
    let id = &record.id;
    if let Some(base) = &record.base
        && exists(repository, &layout.of_backup(base, "deleted")).await?
    {
        let message = format!("backup {base}, which {id} is over, was deleted while it was taken");
        return Err(Error::new(Kind::Conflict, message).hint("run the backup again"));
    }
    if let Err(e) = catalog::commit(repository, layout, record).await {
        // It may be there all the same, durable or not: nobody must take it for a backup that was
        // acknowledged.
        mark_deleted(repository, layout, id).await;
        return Err(e);
    }
    match highest_floor(repository, layout, record.system).await {
        Ok(floor) if floor.is_none_or(|floor| record.start_lsn >= floor) => {}
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
    if exists(repository, &layout.of_backup(id, "deleted")).await? {
        let message = format!("backup {id} was deleted while it was taken");
        return Err(Error::new(Kind::Conflict, message).hint("run the backup again"));
    }
    Ok(())
}

async fn mark_deleted(repository: &Repository, layout: &ClusterLayout, id: &BackupId) {
    match put_sealed(repository, &layout.of_backup(id, "deleted"), b"").await {
        Err(e) if e.kind() != Kind::Conflict => tracing::warn!("mark backup {id} as deleted: {e}"),
        _ => {}
    }
}

/// Removes what a backup that was never committed has stored: nobody can refer to it. Nothing may
/// still be writing to it. The tombstone comes first and goes last, so that a crash in between leaves
/// something that is known to be deleted. Best effort: what stays is found by a later clean-up.
pub async fn undo(repository: &Repository, layout: &ClusterLayout, id: &BackupId) {
    let remove = async {
        let deleted = layout.of_backup(id, "deleted");
        put_sealed(repository, &deleted, b"").await?;
        let storage = repository.storage();
        let folder = layout.packs_folder(id);
        loop {
            let packs = storage.list(&folder, None, PAGE).await?;
            if packs.is_empty() {
                break;
            }
            for pack in packs {
                storage.delete(&pack.name).await?;
            }
        }
        storage.delete(&layout.of_backup(id, "manifest")).await?;
        storage.delete(&layout.of_backup(id, "begin")).await?;
        storage.delete(&deleted).await?;
        Ok::<_, Error>(())
    };
    if let Err(e) = remove.await {
        tracing::warn!("remove what the failed backup {id} has stored: {e}");
    }
}
