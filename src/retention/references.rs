//! Who refers to what: the reference lists of all backups that aren't deleted.
//!
//! Two looks, one after the other. The first notes which backups are deleted; the second reads the
//! lists of all others, also of those that were deleted in between. So a list is left out only when
//! its backup was marked before any list was read. A backup that is being taken, and whose list
//! isn't there yet, will therefore find the mark on its base and fail; and what it may refer to is
//! what its base's list names, and its own. If a list that was there at the first look is gone at the
//! second, its folder was removed in between, and it all begins again.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::{
    error::{Error, Kind, Result},
    repo::{
        BackupId, Repository, catalog::exists, layout::ClusterLayout, manifest::Manifest,
        tombstone::is_unmarked,
    },
};

/// How often it begins again. Each time a backup's folder has gone meanwhile, and there aren't many.
const ATTEMPTS: usize = 20;

/// What backups that aren't deleted refer to.
#[derive(Debug, Default)]
pub struct References {
    deleted: BTreeSet<BackupId>,
    packs: BTreeMap<BackupId, BTreeSet<u32>>,
    users: BTreeMap<BackupId, BTreeMap<BackupId, Usage>>,
}

/// What one backup uses of another's packs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Usage {
    /// How many of the packs.
    pub packs: u64,
    /// How many bytes of what is in them, before compression.
    pub live_bytes: u64,
}

/// What the second look finds of a backup.
enum List {
    /// Its list.
    Of(Manifest),
    /// It is being taken, or crashed, and hasn't written its list.
    NotYet,
    /// It was removed since the first look.
    Gone,
}

impl References {
    /// Reads the lists. Backups in `also_deleted` count as deleted, for asking what would be. A list
    /// that can't be read is an error: nobody knows then what is needed.
    pub async fn read(
        repository: &Repository,
        layout: &ClusterLayout,
        also_deleted: &[&BackupId],
    ) -> Result<Self> {
        for _ in 0..ATTEMPTS {
            if let Some(references) = Self::look_twice(repository, layout, also_deleted).await? {
                return Ok(references);
            }
        }
        let message = format!(
            "backups of cluster {} in {} are being removed by somebody else all the while",
            layout.cluster(),
            repository.storage().address()
        );
        Err(Error::new(Kind::Conflict, message).hint("wait until that is done, and run it again"))
    }

    async fn look_twice(
        repository: &Repository,
        layout: &ClusterLayout,
        also_deleted: &[&BackupId],
    ) -> Result<Option<Self>> {
        let mut references = References::default();
        let mut left_out = BTreeSet::new();
        let mut there = BTreeSet::new();
        for id in folders(repository, layout).await? {
            if exists(repository, &layout.of_backup(&id, "deleted")).await? {
                references.deleted.insert(id.clone());
                left_out.insert(id);
            } else if also_deleted.contains(&&id)
                // Removed before, and written to afterwards: it can't become a backup.
                || !exists(repository, &layout.of_backup(&id, "begin")).await?
            {
                left_out.insert(id);
            } else {
                there.insert(id);
            }
        }
        for id in folders(repository, layout).await? {
            if left_out.contains(&id) {
                continue;
            }
            match list(repository, layout, &id).await? {
                List::Of(manifest) => references.add(&id, manifest),
                List::NotYet => {}
                List::Gone => return Ok(None),
            }
            there.remove(&id);
        }
        Ok(there.is_empty().then_some(references))
    }

    fn add(&mut self, user: &BackupId, manifest: Manifest) {
        for reference in manifest.references {
            let usage = self.users.entry(reference.backup.clone()).or_default();
            let usage = usage.entry(user.clone()).or_default();
            usage.packs += 1;
            usage.live_bytes += reference.live;
            self.packs.entry(reference.backup).or_default().insert(reference.pack);
        }
    }

    /// The backups that were marked as deleted at the first look.
    pub fn deleted(&self) -> impl Iterator<Item = &BackupId> {
        self.deleted.iter()
    }

    /// Whether anybody refers to a pack.
    pub fn needs(&self, backup: &BackupId, pack: u32) -> bool {
        self.packs.get(backup).is_some_and(|packs| packs.contains(&pack))
    }

    /// Who else refers to packs of a backup, and to how much of them.
    pub fn users_of(&self, backup: &BackupId) -> impl Iterator<Item = (&BackupId, Usage)> {
        let users = self.users.get(backup).into_iter().flatten();
        users.filter(move |(user, _)| *user != backup).map(|(user, usage)| (user, *usage))
    }
}

async fn folders(repository: &Repository, layout: &ClusterLayout) -> Result<Vec<BackupId>> {
    let folders = repository.storage().folders(&layout.backups_folder()).await?;
    Ok(folders.iter().filter_map(|folder| folder.parse().ok()).collect())
}

/// The list of a backup that wasn't deleted at the first look.
async fn list(repository: &Repository, layout: &ClusterLayout, id: &BackupId) -> Result<List> {
    let name = layout.of_backup(id, "manifest");
    let mut committed = false;
    loop {
        if exists(repository, &name).await? {
            match Manifest::read(repository, layout, id).await {
                Ok(manifest) => return Ok(List::Of(manifest)),
                Err(e) if exists(repository, &name).await? => {
                    return Err(e
                        .while_doing(format!("read what backup {id} refers to"))
                        .hint("nothing is removed as long as that isn't known")
                        .hint(format!("if {id} can't be restored either, `pgkeep delete {id}`")));
                }
                Err(_) => {}
            }
        }
        if !is_unmarked(repository, layout, id).await? {
            return Ok(List::Gone);
        }
        if committed {
            let address = repository.storage().address();
            return Err(Error::new(Kind::Damaged, format!("{name} is missing in {address}"))
                .hint("nothing is removed as long as it isn't known what the backup refers to")
                .hint(format!("if {id} can't be restored either, `pgkeep delete {id}`")));
        }
        if !exists(repository, &layout.of_backup(id, "backup.json")).await? {
            return Ok(List::NotYet);
        }
        // The manifest was written before that: since it was looked for, or it is lost.
        committed = true;
    }
}
