//! What there is: one walk through all names of the repository.
//!
//! The archive's files are left to [`super::archive`], which goes through them timeline by timeline,
//! so that what is kept here grows with the number of backups and packs and not with the archive.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    error::Result,
    postgres::Timeline,
    repo::{
        BackupId, Repository, SystemId,
        catalog::PAGE,
        layout::ClusterLayout,
        named::{Named, Part, named},
    },
    storage::{Listed, ObjectName},
};

/// A backup's folder.
#[derive(Debug, Default)]
pub struct Folder {
    /// What is there beside packs.
    pub parts: BTreeSet<Part>,
    /// The packs, with their sizes.
    pub packs: BTreeMap<u32, u64>,
}

impl Folder {
    /// Whether a part is there.
    pub fn has(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }
}

/// What a walk has found.
#[derive(Debug, Default)]
pub struct Survey {
    /// The backups' folders.
    pub folders: BTreeMap<BackupId, Folder>,
    /// The timelines that have a folder in the archive.
    pub wal: BTreeMap<SystemId, BTreeSet<Timeline>>,
    /// The systems that are registered.
    pub systems: BTreeSet<SystemId>,
    /// Sealed objects, but for packs and the archive.
    pub sealed: Vec<(Named, Listed)>,
    /// Objects that aren't sealed, but for `repo.json`.
    pub plain: Vec<(Named, Listed)>,
    /// The names of other clusters that have something here.
    pub other_clusters: BTreeSet<String>,
    /// Objects whose names say nothing.
    pub strangers: Vec<Listed>,
}

impl Survey {
    /// Walks through the repository.
    pub async fn walk(repository: &Repository, layout: &ClusterLayout) -> Result<Self> {
        let mut survey = Survey::default();
        let mut after: Option<String> = None;
        loop {
            let listed = repository.storage().list("", after.as_deref(), PAGE).await?;
            let Some(last) = listed.last() else { return Ok(survey) };
            after = Some(last.name.to_string());
            for object in listed {
                if let Some(behind) = survey.add(repository, layout, object) {
                    after = Some(behind);
                    break;
                }
            }
        }
    }

    /// Whether there is nothing of the cluster.
    pub fn is_empty(&self) -> bool {
        self.folders.is_empty() && self.wal.is_empty() && self.systems.is_empty()
    }

    /// Takes an object. The name after which to go on, where all of a folder is left out.
    fn add(
        &mut self,
        repository: &Repository,
        layout: &ClusterLayout,
        object: Listed,
    ) -> Option<String> {
        if let Some((system, timeline)) = archived(layout, &object.name) {
            self.wal.entry(system).or_default().insert(timeline);
            return Some(behind(&layout.timeline_folder(system, timeline)));
        }
        match named(layout, repository.names(), &object.name) {
            None => self.strangers.push(object),
            Some(Named::OtherCluster) => {
                let name = object.name.as_str();
                let cluster = name.split('/').nth(1).unwrap_or_default();
                self.other_clusters.insert(cluster.to_owned());
                return Some(behind(&format!("clusters/{cluster}/")));
            }
            Some(Named::Pack(id, pack)) => {
                self.folders.entry(id).or_default().packs.insert(pack, object.size);
            }
            Some(
                kind @ (Named::RepositoryFile | Named::Probe | Named::Keys(_) | Named::Lease(_)),
            ) => self.plain.push((kind, object)),
            Some(kind) => {
                match &kind {
                    Named::Part(id, part) => {
                        self.folders.entry(id.clone()).or_default().parts.insert(*part);
                    }
                    Named::System(system) => {
                        self.systems.insert(*system);
                    }
                    _ => {}
                }
                self.sealed.push((kind, object));
            }
        }
        None
    }
}

/// The timeline in whose folder an object lies, whatever it is.
fn archived(layout: &ClusterLayout, name: &ObjectName) -> Option<(SystemId, Timeline)> {
    let mut parts = name.as_str().split('/');
    if (parts.next(), parts.next(), parts.next())
        != (Some("clusters"), Some(layout.cluster()), Some("wal"))
    {
        return None;
    }
    let (system, timeline) = (parts.next()?.parse().ok()?, Timeline::from_hex(parts.next()?)?);
    parts.next().map(|_| (system, timeline))
}

/// A text that comes after all names in a folder and before all others: no name has a `~`.
fn behind(folder: &str) -> String {
    format!("{folder}~")
}
