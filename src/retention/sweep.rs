//! Removing what belongs to deleted backups and nobody refers to.
//!
//! Every deletion and every clean-up looks at all backups that are marked as deleted, not only at
//! its own: a pack that stayed because another backup used it goes when that one does, and what a
//! killed run has left is finished by the next one.

use serde::Serialize;

use super::references::{References, Usage};
use crate::{
    error::Result,
    progress::Progress,
    repo::{BackupId, Repository, catalog::PAGE, layout::ClusterLayout, tombstone::remove_folder},
    storage::{Listed, ObjectName},
};

/// What a deleted backup's folder comes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Swept {
    /// The backup.
    pub backup: BackupId,
    /// What goes.
    pub freed: Amount,
    /// What stays, because other backups refer to it.
    pub kept: Amount,
    /// The backups that refer to it.
    pub used_by: Vec<User>,
}

/// A number of objects and their stored bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Amount {
    /// How many objects.
    pub objects: u64,
    /// Their bytes in the repository.
    pub bytes: u64,
}

/// A backup that refers to packs of another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct User {
    /// The backup.
    pub backup: BackupId,
    /// What it uses.
    #[serde(flatten)]
    pub usage: Usage,
}

/// Removes what nobody refers to of all backups that are marked as deleted, and their folders where
/// nothing of them is referred to. Folders of which nothing could go aren't told.
pub async fn sweep(
    repository: &Repository,
    layout: &ClusterLayout,
    progress: &dyn Progress,
) -> Result<Vec<Swept>> {
    progress.step("reading what the backups refer to");
    let references = References::read(repository, layout, &[]).await?;
    let mut swept = Vec::new();
    for id in references.deleted() {
        progress.step(&format!("removing what nobody needs of backup {id}"));
        swept.push(sweep_folder(repository, layout, &references, id).await?);
    }
    Ok(swept)
}

/// Says what stays and goes of a backup by these references. Changes nothing.
pub async fn preview(
    repository: &Repository,
    layout: &ClusterLayout,
    references: &References,
    id: &BackupId,
) -> Result<Swept> {
    let mut pages = Pages::of(layout.backup_folder(id));
    let mut swept = Swept::nothing(references, id);
    let tombstone = layout.of_backup(id, "deleted");
    let mut others = Amount::default();
    while let Some(page) = pages.next(repository).await? {
        for object in page {
            match pack_number(layout, id, &object.name) {
                Some(pack) if references.needs(id, pack) => swept.kept.add(&object),
                Some(_) => swept.freed.add(&object),
                None if object.name == tombstone => {}
                None => others.add(&object),
            }
        }
    }
    swept.settle(others);
    Ok(swept)
}

async fn sweep_folder(
    repository: &Repository,
    layout: &ClusterLayout,
    references: &References,
    id: &BackupId,
) -> Result<Swept> {
    let swept = preview(repository, layout, references, id).await?;
    if swept.kept.objects == 0 {
        remove_folder(repository, layout, id).await?;
        return Ok(swept);
    }
    let mut pages = Pages::of(layout.packs_folder(id));
    while let Some(page) = pages.next(repository).await? {
        for object in page {
            let pack = pack_number(layout, id, &object.name);
            if pack.is_some_and(|pack| !references.needs(id, pack)) {
                repository.storage().delete(&object.name).await?;
            }
        }
    }
    Ok(swept)
}

/// The number in a pack's name; `None` for what isn't a pack of this backup.
fn pack_number(layout: &ClusterLayout, id: &BackupId, name: &ObjectName) -> Option<u32> {
    let pack = name.file_name().parse().ok()?;
    (layout.pack(id, pack) == *name).then_some(pack)
}

impl Swept {
    /// Of a backup whose folder is gone.
    pub(super) fn none(id: &BackupId) -> Self {
        Swept::nothing(&References::default(), id)
    }

    fn nothing(references: &References, id: &BackupId) -> Self {
        let users = references.users_of(id);
        Swept {
            backup: id.clone(),
            freed: Amount::default(),
            kept: Amount::default(),
            used_by: users.map(|(backup, usage)| User { backup: backup.clone(), usage }).collect(),
        }
    }

    /// The manifest and the like go with the last pack.
    fn settle(&mut self, others: Amount) {
        let to = if self.kept.objects == 0 { &mut self.freed } else { &mut self.kept };
        to.objects += others.objects;
        to.bytes += others.bytes;
    }
}

impl Amount {
    fn add(&mut self, object: &Listed) {
        self.objects += 1;
        self.bytes += object.size;
    }
}

/// A listing in pages.
struct Pages {
    prefix: String,
    after: Option<ObjectName>,
}

impl Pages {
    fn of(prefix: String) -> Self {
        Pages { prefix, after: None }
    }

    /// The next page; `None` behind the last one.
    async fn next(&mut self, repository: &Repository) -> Result<Option<Vec<Listed>>> {
        let after = self.after.as_ref().map(ObjectName::as_str);
        let listed = repository.storage().list(&self.prefix, after, PAGE).await?;
        let Some(last) = listed.last() else { return Ok(None) };
        self.after = Some(last.name.clone());
        Ok(Some(listed))
    }
}
