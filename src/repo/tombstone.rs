//! The end of a backup: the marks that announce it, and looking for them at the right moment.
//!
//! Nothing here asks a clock. Each side writes its own object first and looks for the other's
//! afterwards, so whichever comes second sees the other:
//!
//! - `deleted`, the tombstone: from then on the backup isn't one, and what it alone refers to may
//!   go. It is the last object of the folder to go, after `begin`. So a folder that had no
//!   `deleted` a moment ago, and has its `begin` still, wasn't being removed at that moment; this
//!   order of looking is what [`is_unmarked`] is about.
//! - `abandoned`: somebody takes an unfinished backup for a crashed one's remains. Its process may
//!   only have been asleep. It looks for this mark after its commit object is written, and who wrote
//!   the mark looks for the commit object ([`abandon`]): a backup that has reported success is never
//!   taken away.
//!
//! `docs/repository-format.md` has the whole protocol.

use super::{BackupId, Repository, catalog::PAGE, catalog::exists, layout::ClusterLayout};
use crate::{
    error::{Error, Kind, Result},
    repo::sealed::put_sealed,
    steps::reached,
    storage::{ErrorKind, Listed, ObjectName},
};

const ABANDONED: &str = "abandoned";
const BEGIN: &str = "begin";
const DELETED: &str = "deleted";

/// Marks a backup as deleted, durably. It may be marked already.
pub async fn mark_deleted(
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
) -> Result<()> {
    mark(repository, layout, id, DELETED).await
}

async fn mark(
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
    mark: &str,
) -> Result<()> {
    let name = layout.of_backup(id, mark);
    loop {
        match put_sealed(repository, &name, b"").await {
            Err(e) if e.kind() == Kind::Conflict => {}
            result => return result.map(drop),
        }
        // Who made it may have died before it was durable.
        match repository.storage().ensure_durable(&name).await {
            // It went meanwhile, with the folder; the mark is needed all the same.
            Err(e) if e.is_not_found() => {}
            result => return Ok(result?),
        }
    }
}

/// Claims an unfinished backup's folder for removal, and says whether it may be removed: not when
/// its commit object was written before its process could see the claim.
pub async fn abandon(
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
) -> Result<bool> {
    mark(repository, layout, id, ABANDONED).await?;
    let committed = exists(repository, &layout.of_backup(id, "backup.json")).await?;
    // A folder that was removed under its process can't become a backup any more.
    Ok(!committed || !exists(repository, &layout.of_backup(id, BEGIN)).await?)
}

/// Whether nobody had marked the backup as deleted when this began to look. In this order: a folder
/// that was removed altogether has no `deleted` any more, but no `begin` either.
pub async fn is_unmarked(
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
) -> Result<bool> {
    Ok(!exists(repository, &layout.of_backup(id, DELETED)).await?
        && exists(repository, &layout.of_backup(id, BEGIN)).await?)
}

/// Makes sure, after a backup's manifest is written, that what it refers to will stay: its base
/// isn't deleted. Who deletes the base from now on reads the manifest before removing anything.
pub async fn check_base(
    repository: &Repository,
    layout: &ClusterLayout,
    base: &BackupId,
) -> Result<()> {
    if is_unmarked(repository, layout, base).await? {
        return Ok(());
    }
    let message = format!("backup {base}, which this one builds on, was deleted meanwhile");
    Err(Error::new(Kind::Conflict, message).hint("run the backup again"))
}

/// Makes sure, after a backup's commit object is written, that nobody has marked the backup.
pub async fn check_committed(
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
) -> Result<()> {
    let message = if exists(repository, &layout.of_backup(id, ABANDONED)).await? {
        format!("backup {id} was taken for a crashed one, and cleaned up, while it was taken")
    } else if !is_unmarked(repository, layout, id).await? {
        format!("backup {id} was deleted while it was taken")
    } else {
        return Ok(());
    };
    Err(Error::new(Kind::Conflict, message).hint("run the backup again"))
}

/// Removes all of a backup that is marked as deleted and that nothing refers to. `deleted` is the
/// last to go, after `begin`; on the way there the folder is known to be a deleted one's.
///
/// Objects that the place holds stay, and with them `begin` and `deleted`. All that stays is returned.
pub async fn remove_folder(
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
) -> Result<Vec<Listed>> {
    let storage = repository.storage();
    let folder = layout.backup_folder(id);
    let last = [layout.of_backup(id, BEGIN), layout.of_backup(id, DELETED)];
    let (mut held, mut waiting) = (Vec::new(), Vec::new());
    let mut after: Option<ObjectName> = None;
    reached("delete: the folder is being removed");
    loop {
        let begin = after.as_ref().map(ObjectName::as_str);
        let listed = storage.list(&folder, begin, PAGE).await?;
        let Some(end) = listed.last() else { break };
        after = Some(end.name.clone());
        let (marks, objects): (Vec<_>, Vec<_>) =
            listed.into_iter().partition(|object| last.contains(&object.name));
        waiting.extend(marks);
        let names: Vec<_> = objects.iter().map(|object| object.name.clone()).collect();
        let results = storage.delete_all(&names).await;
        for (object, result) in objects.into_iter().zip(results) {
            match result {
                Err(e) if e.kind == ErrorKind::Locked => held.push(object),
                result => result?,
            }
        }
    }
    reached("delete: only its marks are left");
    // `begin` sorts before `deleted`.
    for object in waiting {
        if !held.is_empty() {
            held.push(object);
            continue;
        }
        match storage.delete(&object.name).await {
            Err(e) if e.kind == ErrorKind::Locked => held.push(object),
            result => result?,
        }
    }
    Ok(held)
}
