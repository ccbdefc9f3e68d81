//! The backups: what each needs of its own folder and of others'.

use std::collections::{BTreeMap, BTreeSet};

use chrono::Utc;

use super::{
    findings::{Done, Finding, Loss, damage},
    report::ProblemKind,
    survey::{Folder, Survey},
};
use crate::{
    error::Result,
    repo::{
        BackupId, Repository, catalog, layout::ClusterLayout, lease::Lease, manifest::Manifest,
        named::Part, record::BackupRecord,
    },
    storage::ObjectName,
};

/// The backups that there are.
#[derive(Default)]
pub struct Backups {
    /// Those that exist and can be read so far.
    pub whole: Vec<(BackupRecord, Manifest)>,
    /// Records of backups whose manifest can't be read, and of deleted ones that others use.
    pub others: Vec<BackupRecord>,
    /// Who refers to each pack.
    pub users: BTreeMap<(BackupId, u32), BTreeSet<BackupId>>,
    /// The backups that exist, or should.
    pub all: BTreeSet<BackupId>,
}

/// Where a verification looks.
pub struct Place<'a> {
    /// The repository.
    pub repository: &'a Repository,
    /// The cluster's names.
    pub layout: &'a ClusterLayout,
    /// What is there.
    pub survey: &'a Survey,
    /// The only backup that matters.
    pub only: Option<&'a BackupId>,
}

impl Place<'_> {
    fn part(&self, id: &BackupId, part: Part) -> ObjectName {
        self.layout.of_backup(id, part.as_str())
    }

    /// Reads the commit objects and the manifests, and looks whether the packs are there.
    pub async fn backups(&self, leases: &[Lease], done: &mut Done) -> Result<Backups> {
        let mut backups = Backups::default();
        for (id, folder) in &self.survey.folders {
            if self.only.is_some_and(|only| only != id) {
                continue;
            }
            if folder.has(Part::Deleted) {
                continue;
            }
            match (folder.has(Part::Record), folder.has(Part::Begin)) {
                (true, true) => self.committed(id, folder, &mut backups, done).await?,
                (true, false) => {
                    backups.all.insert(id.clone());
                    done.findings.push(self.without_begin(id));
                }
                (false, _) => self.unfinished(id, folder, leases, &mut backups, done),
            }
        }
        for (record, manifest) in &backups.whole {
            for reference in &manifest.references {
                let users = backups.users.entry((reference.backup.clone(), reference.pack));
                users.or_default().insert(record.id.clone());
            }
        }
        self.packs(&backups, done);
        self.rest_of_deleted(&mut backups).await?;
        Ok(backups)
    }

    async fn committed(
        &self,
        id: &BackupId,
        folder: &Folder,
        backups: &mut Backups,
        done: &mut Done,
    ) -> Result<()> {
        backups.all.insert(id.clone());
        let lost = || Loss::of_backups([id.clone()]);
        let delete =
            format!("it can't be restored; `pgkeep delete {id}` removes what is left of it");
        let record = match catalog::read_record(self.repository, self.layout, id).await {
            Ok(record) => record,
            Err(e) => {
                let name = self.part(id, Part::Record);
                done.findings.push(
                    Finding::of(ProblemKind::Damaged, &name, damage(e)?)
                        .costs(lost())
                        .in_folder(id)
                        .hint(delete),
                );
                return Ok(());
            }
        };
        self.bad_pages(&record, done);
        let name = self.part(id, Part::Manifest);
        if !folder.has(Part::Manifest) {
            let finding =
                Finding::missing(&name, format!("the manifest of backup {id} is missing"));
            done.findings.push(finding.costs(lost()).in_folder(id).hint(delete));
            backups.others.push(record);
            return Ok(());
        }
        match Manifest::read(self.repository, self.layout, id).await {
            Ok(manifest) => backups.whole.push((record, manifest)),
            Err(e) => {
                done.findings.push(
                    Finding::of(ProblemKind::Damaged, &name, damage(e)?)
                        .costs(lost())
                        .in_folder(id)
                        .hint(delete),
                );
                backups.others.push(record);
            }
        }
        Ok(())
    }

    /// Pages that were known to be wrong when the backup was taken.
    fn bad_pages(&self, record: &BackupRecord, done: &mut Done) {
        let bad = &record.bad_pages;
        if bad.count == 0 {
            return;
        }
        let first = bad
            .pages
            .first()
            .map(|page| format!(", the first is page {} of {}", page.page, page.path));
        let pages = if bad.count == 1 { "page" } else { "pages" };
        let text = format!(
            "{} {pages} had a wrong checksum in the cluster when the backup was taken{}",
            bad.count,
            first.unwrap_or_default()
        );
        done.notice(&self.part(&record.id, Part::Record), text);
    }

    fn without_begin(&self, id: &BackupId) -> Finding {
        let name = self.part(id, Part::Begin);
        let text =
            format!("backup {id} has a commit object and no begin: it doesn't count as a backup");
        Finding::missing(&name, text)
            .costs(Loss::of_backups([id.clone()]))
            .in_folder(id)
            .hint(format!("`pgkeep delete {id}` removes what is left of it"))
    }

    /// A folder without a commit object: a backup that runs, has crashed, or has lost it.
    fn unfinished(
        &self,
        id: &BackupId,
        folder: &Folder,
        leases: &[Lease],
        backups: &mut Backups,
        done: &mut Done,
    ) {
        let lease = leases.iter().find(|lease| lease.backup.as_ref() == Some(id));
        let runs = |lease: &&Lease| !lease.is_abandoned() && !lease.is_expired(Utc::now());
        if lease.filter(runs).is_some() {
            return;
        }
        let name = self.part(id, Part::Record);
        if !folder.has(Part::Manifest) || folder.has(Part::Abandoned) {
            let text = format!(
                "backup {id} was never finished; the next backup, or `pgkeep delete {id}`, removes \
                 what it has left"
            );
            done.notice(&name, text);
            return;
        }
        backups.all.insert(id.clone());
        let text = format!(
            "backup {id} has a manifest and no commit object: it was killed in its last step, or the \
             commit object is lost"
        );
        let finding = Finding { kind: ProblemKind::Unfinished, ..Finding::missing(&name, text) };
        done.findings.push(finding.costs(Loss::of_backups([id.clone()])).in_folder(id).hint(
            format!("it can't be restored; `pgkeep delete {id}` removes what is left of it"),
        ));
    }

    /// Whether the packs that backups refer to are there, and whether there are others.
    fn packs(&self, backups: &Backups, done: &mut Done) {
        for ((backup, pack), users) in &backups.users {
            let there = self.survey.folders.get(backup).is_some_and(|f| f.packs.contains_key(pack));
            if there {
                continue;
            }
            let name = self.layout.pack(backup, *pack);
            let finding = Finding::missing(&name, "this pack is missing")
                .costs(Loss::of_backups(users.iter().cloned()))
                .hint("what these backups share with others may be damaged too: run `pgkeep verify --level full`")
                .hint("take a full backup, so that new ones don't build on these");
            done.findings.push(finding);
        }
        for (record, _) in &backups.whole {
            let Some(folder) = self.survey.folders.get(&record.id) else { continue };
            for pack in folder.packs.keys() {
                if !backups.users.contains_key(&(record.id.clone(), *pack)) {
                    let name = self.layout.pack(&record.id, *pack);
                    done.notice(&name, "nobody refers to this pack");
                }
            }
        }
    }

    /// The records of deleted backups whose packs others use: they tell how pages are checked.
    async fn rest_of_deleted(&self, backups: &mut Backups) -> Result<()> {
        let known: BTreeSet<&BackupId> =
            backups.whole.iter().map(|(record, _)| &record.id).collect();
        let used: BTreeSet<BackupId> = backups.users.keys().map(|(id, _)| id.clone()).collect();
        for id in used.iter().filter(|id| !known.contains(id)) {
            if backups.others.iter().any(|record| record.id == *id) {
                continue;
            }
            match catalog::read_record(self.repository, self.layout, id).await {
                Ok(record) => backups.others.push(record),
                // It is told where the object is looked at, or has gone.
                Err(e) => drop(damage(e)?),
            }
        }
        Ok(())
    }
}
