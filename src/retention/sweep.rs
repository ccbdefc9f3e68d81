//! Removing what belongs to deleted backups and nobody refers to.
//!
//! Every deletion and every clean-up looks at all backups that are marked as deleted, not only at
//! its own: a pack that stayed because another backup used it goes when that one does, and what a
//! killed run has left is finished by the next one. What object lock holds stays, and goes once that is
//! over.

use serde::Serialize;

use super::{
    amount::{Amount, Removed, remove_all},
    references::{References, Usage},
};
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
    /// What should go, and is held by object lock.
    pub held: Amount,
    /// The backups that refer to it.
    pub used_by: Vec<User>,
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

/// Says what stays and goes of a backup by these references, the marks of its removal left out. Changes
/// nothing.
pub async fn preview(
    repository: &Repository,
    layout: &ClusterLayout,
    references: &References,
    id: &BackupId,
) -> Result<Swept> {
    let mut pages = Pages::of(layout.backup_folder(id));
    let mut swept = Swept::nothing(references, id);
    let marks = ["abandoned", "deleted"].map(|mark| layout.of_backup(id, mark));
    let mut others = Amount::default();
    while let Some(page) = pages.next(repository).await? {
        for object in page {
            match pack_number(layout, id, &object.name) {
                Some(pack) if references.needs(id, pack) => swept.kept.add(&object),
                Some(_) => swept.freed.add(&object),
                None if marks.contains(&object.name) => {}
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
    let mut swept = preview(repository, layout, references, id).await?;
    if swept.freed.objects == 0 && swept.kept.objects > 0 {
        return Ok(swept);
    }
    // Who has marked it may have died before the mark was durable. What goes while it isn't would be missing from
    // a backup after a power loss.
    match repository.storage().ensure_durable(&layout.of_backup(id, "deleted")).await {
        // Somebody else has removed all of it.
        Err(e) if e.is_not_found() => return Ok(Swept::none(id)),
        result => result?,
    }
    if swept.kept.objects == 0 {
        let marks = ["abandoned", "deleted"].map(|mark| layout.of_backup(id, mark));
        let stayed = remove_folder(repository, layout, id).await?;
        for object in stayed.iter().filter(|object| !marks.contains(&object.name)) {
            swept.hold(object);
        }
        return Ok(swept);
    }
    let mut pages = Pages::of(layout.packs_folder(id));
    let mut removed = Removed::default();
    while let Some(page) = pages.next(repository).await? {
        let goes = |object: &Listed| {
            pack_number(layout, id, &object.name).is_some_and(|pack| !references.needs(id, pack))
        };
        let page: Vec<_> = page.into_iter().filter(goes).collect();
        removed.add(remove_all(repository, &page).await?);
    }
    (swept.freed, swept.held) = (removed.freed, removed.held);
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
            held: Amount::default(),
            used_by: users.map(|(backup, usage)| User { backup: backup.clone(), usage }).collect(),
        }
    }

    /// An object that was to go can't.
    fn hold(&mut self, object: &Listed) {
        self.held.add(object);
        self.freed.objects = self.freed.objects.saturating_sub(1);
        self.freed.bytes = self.freed.bytes.saturating_sub(object.size);
    }

    /// The manifest and the like go with the last pack.
    fn settle(&mut self, others: Amount) {
        let to = if self.kept.objects == 0 { &mut self.freed } else { &mut self.kept };
        *to += others;
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
