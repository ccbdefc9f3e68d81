//! Whether a repository holds what it promises.
//!
//! *Quick* asks whether everything is there that backups and promised moments need, each object in
//! the size and of the kind it has to be: by listings, by the manifests, and by each object's end,
//! which is authenticated and says how long the object is. *Full* reads every byte, opens every
//! frame, compares every block with the trees and every page with its own checksum, and reads the WAL
//! as recovery would.
//!
//! - [`survey`] walks through all names;
//! - [`backups`] reads commit objects and manifests, and [`archive`] looks for gaps in the WAL;
//! - [`objects`], [`segments`] and [`packs`] look at the objects themselves, several at a time
//!   ([`pool`]); [`records`] reads WAL, [`tree`] walks the trees;
//! - [`findings`] are looked at once more before they are told, and [`cost`] says what they cost.
//!
//! An outage is an error and never a finding: what couldn't be read may be sound.
//!
//! What none of this shows is that a server starts from it: that is what a [`drill`] is for.

mod archive;
mod backups;
mod content;
mod cost;
pub mod drill;
mod findings;
mod objects;
mod packs;
mod pool;
mod records;
pub mod report;
mod segments;
mod settle;
mod survey;
mod tree;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use archive::Archive;
use backups::{Backups, Place};
use findings::{Done, Finding, Loss};
use objects::{Look, SMALL};
use pool::Pool;
use report::{Checked, ProblemKind};
pub use report::{Level, Report};
use segments::Objects;
use survey::Survey;
pub use tree::MOST as BLOCKS_AT_ONCE;

use crate::{
    config::RepositorySettings,
    error::{Context, Error, Kind, Result},
    progress::Progress,
    repo::{
        BackupId, Repository, SystemId,
        layout::ClusterLayout,
        lease::leases,
        named::{Named, Part},
        open,
        record::BackupRecord,
    },
    storage::{Listed, ObjectName},
};

/// What is to be verified, and how.
#[derive(Debug, Clone)]
pub struct VerifyRequest {
    /// Only what this backup needs.
    pub backup: Option<BackupId>,
    /// How closely.
    pub level: Level,
    /// How many threads there are.
    pub threads: usize,
    /// Of how many blocks it may be known at a time where they have to be: what bounds memory.
    pub blocks_at_once: usize,
}

/// Opens a configured repository and verifies a cluster in it. `None` when it has no such backup.
pub async fn verify_configured(
    settings: &RepositorySettings,
    layout: &ClusterLayout,
    request: &VerifyRequest,
    progress: Arc<dyn Progress>,
) -> Result<Option<Report>> {
    match open::open(settings).await {
        Ok(repository) => verify(&repository, layout, request, progress).await,
        Err(e) => unopened(settings, layout.cluster(), request.level, e).await.map(Some),
    }
}

/// Verifies a cluster in one repository. `None` when it has no such backup.
pub async fn verify(
    repository: &Repository,
    layout: &ClusterLayout,
    request: &VerifyRequest,
    progress: Arc<dyn Progress>,
) -> Result<Option<Report>> {
    progress.step(&format!("looking at what is in repository {}", repository.name()));
    let survey = Survey::walk(repository, layout).await?;
    if let Some(id) = &request.backup
        && survey.folders.get(id).is_none_or(|folder| folder.has(Part::Deleted))
    {
        return Ok(None);
    }
    let mut run = Run {
        repository,
        layout,
        request,
        survey,
        progress,
        backups: Backups::default(),
        archives: Vec::new(),
        done: Done::default(),
    };
    run.look_for_what_is_missing().await?;
    run.look_at_objects().await?;
    run.settle().await.map(Some)
}

/// What there is to say of a repository that couldn't be opened, if that is because an object at its
/// root is damaged or missing; else the error.
async fn unopened(
    settings: &RepositorySettings,
    cluster: &str,
    level: Level,
    e: Error,
) -> Result<Report> {
    let lost = e.kind() == Kind::Repository
        && open::has_lost_its_file(settings).await.is_ok_and(|lost| lost);
    let (kind, text) = match e.kind() {
        Kind::Repository if lost => {
            (ProblemKind::Missing, "the file that says what this repository is, is missing".into())
        }
        Kind::Damaged => (ProblemKind::Damaged, e.to_string()),
        _ => return Err(e),
    };
    // What is damaged at the root is either of two, and the text says which.
    let object = match text.strip_prefix("keys/").and_then(|text| text.split(' ').next()) {
        Some(keys) => format!("keys/{keys}"),
        None => "repo.json".to_owned(),
    };
    let hints = match e.kind() {
        Kind::Damaged => e.hints().to_vec(),
        _ => vec!["restore it from a copy; without it nothing can be opened".to_owned()],
    };
    let address = settings.location.to_string();
    let place = (settings.name.as_str(), address.as_str());
    Ok(Report::unopened(place, cluster, level, (kind, &object, text), hints))
}

/// A verification of one repository.
struct Run<'a> {
    repository: &'a Repository,
    layout: &'a ClusterLayout,
    request: &'a VerifyRequest,
    survey: Survey,
    progress: Arc<dyn Progress>,
    backups: Backups,
    archives: Vec<Archive>,
    done: Done,
}

impl Run<'_> {
    fn only(&self) -> Option<&BackupId> {
        self.request.backup.as_ref()
    }

    /// How many objects' ends are looked at, at a time.
    fn questions_at_once(&self) -> usize {
        let at_once = self.repository.storage().capabilities().questions_at_once;
        self.request.threads.max(at_once)
    }

    /// How many objects are read, at a time: where reading is a request, some more than there are
    /// threads.
    fn reads_at_once(&self) -> usize {
        let waits = self.repository.storage().capabilities().questions_at_once > 1;
        if waits { self.request.threads + 2 } else { self.request.threads }
    }

    /// What can be told from names, commit objects and manifests.
    async fn look_for_what_is_missing(&mut self) -> Result<()> {
        self.progress.step("reading what the backups need");
        let leases = leases(self.repository, self.layout).await?;
        let place = Place {
            repository: self.repository,
            layout: self.layout,
            survey: &self.survey,
            only: self.request.backup.as_ref(),
        };
        self.backups = place.backups(&leases, &mut self.done).await?;
        let mut by_system: BTreeMap<SystemId, Vec<BackupRecord>> = BTreeMap::new();
        let whole = self.backups.whole.iter().map(|(record, _)| record);
        let others = self.backups.others.iter().filter(|r| self.backups.all.contains(&r.id));
        for record in whole.chain(others) {
            by_system.entry(record.system).or_default().push(record.clone());
        }
        if self.only().is_none() {
            let known = self.survey.systems.iter().chain(self.survey.wal.keys());
            for system in known {
                by_system.entry(*system).or_default();
            }
            self.strangers();
            self.unknown_cluster()?;
        }
        for (system, backups) in by_system {
            if !self.survey.systems.contains(&system) {
                self.unregistered(system);
            }
            let archive = Archive::open(self.repository, self.layout, system, backups).await?;
            self.done.findings.extend(archive.missing(self.request.backup.as_ref()));
            archive.notices(&mut self.done);
            self.archives.push(archive);
        }
        Ok(())
    }

    fn strangers(&mut self) {
        self.done.findings.extend(self.survey.strangers.iter().map(stranger));
    }

    /// A name that is misspelt finds nothing wrong, for ever.
    fn unknown_cluster(&mut self) -> Result<()> {
        let others: Vec<&str> = self.survey.other_clusters.iter().map(String::as_str).collect();
        if self.survey.is_empty() && !others.is_empty() {
            let cluster = self.layout.cluster();
            let name = ObjectName::new(format!("clusters/{cluster}"))
                .context(Kind::Internal, || "name a cluster's objects")?;
            let text = format!("there is nothing of cluster {cluster} in this repository");
            let hint =
                format!("is the cluster's name right? There is something of {}", others.join(", "));
            self.done.findings.push(Finding::missing(&name, text).hint(hint));
        }
        Ok(())
    }

    fn unregistered(&mut self, system: SystemId) {
        let name = self.layout.system(system);
        let text = format!(
            "system {system} has backups or WAL here and isn't registered: its server can't archive"
        );
        let finding = Finding::missing(&name, text).hint(
            "`pgkeep check --new-system` on its server registers it, if it is this cluster's",
        );
        self.done.findings.push(finding);
    }

    /// Looks at the objects themselves.
    async fn look_at_objects(&mut self) -> Result<()> {
        let packs = self.packs();
        let full = self.request.level == Level::Full;
        let wal = self.archives.iter().flat_map(|archive| archive.inventory.timelines());
        let wal: u64 = wal.map(|(_, wal)| wal.stored).sum();
        let stored = wal + packs.iter().map(|(_, _, size)| size).sum::<u64>();
        self.progress.step(match full {
            true => "reading every byte",
            false => "looking at the end of each object",
        });
        self.progress.total(Some(stored));
        self.small_objects().await?;
        if full {
            self.read_packs(packs).await?;
        } else {
            self.ends_of_packs(packs).await?;
        }
        for archive in &self.archives {
            let objects = Objects {
                archive,
                level: self.request.level,
                only: self.request.backup.as_ref(),
                at_once: if full { self.reads_at_once() } else { self.questions_at_once() },
                progress: self.progress.clone(),
            };
            objects.check(&mut self.done).await?;
        }
        Ok(())
    }

    /// The packs that are there and matter.
    fn packs(&self) -> Vec<(BackupId, u32, u64)> {
        let all = self.survey.folders.iter().flat_map(|(id, folder)| {
            folder.packs.iter().map(move |(pack, size)| (id.clone(), *pack, *size))
        });
        let matters = |(id, pack, _): &(BackupId, u32, u64)| match self.only() {
            None => true,
            Some(only) => id == only || self.backups.users.contains_key(&(id.clone(), *pack)),
        };
        all.filter(matters).collect()
    }

    /// Everything but packs and the archive.
    async fn small_objects(&mut self) -> Result<()> {
        let matters = |kind: &Named| match (&self.request.backup, kind) {
            (None, _) => true,
            (Some(only), Named::Part(id, _)) => id == only,
            (Some(_), Named::Keys(_)) => true,
            (Some(_), _) => false,
        };
        let plain = self.survey.plain.iter().filter(|(kind, _)| matters(kind));
        for (kind, object) in plain {
            self.done.checked.objects += 1;
            self.done.checked.bytes += object.size;
            if let Some(finding) = content::plain(self.repository, kind, object).await? {
                self.done.findings.push(finding);
            }
        }
        let mut pool = Pool::new(self.questions_at_once());
        let sealed = self.survey.sealed.iter().filter(|(kind, _)| matters(kind)).cloned();
        for (kind, object) in sealed.collect::<Vec<_>>() {
            let repository = self.repository.clone();
            let full = self.request.level == Level::Full;
            let work = async move { sealed_object(&repository, kind, object, full).await };
            if let Some(done) = pool.add(work).await? {
                self.done.add(done);
            }
        }
        while let Some(done) = pool.next().await? {
            self.done.add(done);
        }
        Ok(())
    }

    async fn ends_of_packs(&mut self, packs: Vec<(BackupId, u32, u64)>) -> Result<()> {
        let mut pool = Pool::new(self.questions_at_once());
        let mut found = Vec::new();
        for (id, pack, size) in packs {
            let (repository, name) = (self.repository.clone(), self.layout.pack(&id, pack));
            let progress = self.progress.clone();
            let work = async move {
                let look = objects::end(&repository, &name).await?;
                progress.advance(size);
                Ok((id, pack, look))
            };
            found.extend(pool.add(work).await?);
        }
        while let Some(done) = pool.next().await? {
            found.push(done);
        }
        for (id, pack, look) in found {
            let name = self.layout.pack(&id, pack);
            let checked = Checked { objects: 1, packs: 1, bytes: SMALL, ..Checked::default() };
            self.done.checked.add(checked);
            let users = self.backups.users.get(&(id.clone(), pack)).cloned().unwrap_or_default();
            let finding = match look {
                Look::Sound(_) => continue,
                Look::Gone if users.is_empty() => continue,
                Look::Gone => Finding::missing(&name, "this pack is missing"),
                Look::Damaged(what) => Finding::of(ProblemKind::Damaged, &name, what),
            };
            self.done.findings.push(lost_pack(finding, &id, users));
        }
        Ok(())
    }
}

/// An object that has no business here.
fn stranger(object: &Listed) -> Finding {
    let text = "a stranger: nothing of pgkeep has this name";
    Finding::of(ProblemKind::Stranger, &object.name, text).hint(
        "if a newer pgkeep wrote it, verify with that one; else see who put it here, and remove it",
    )
}

/// A pack that can't be used, and what that costs.
fn lost_pack(finding: Finding, folder: &BackupId, users: BTreeSet<BackupId>) -> Finding {
    let finding = finding.in_folder(folder);
    match users.is_empty() {
        true => finding.hint("no backup needs what is wrong in it"),
        false => finding.costs(Loss::of_backups(users)).hint(
            "take a full backup (`pgkeep backup --type full`), so that new ones don't build on it, and \
             delete those that it costs",
        ),
    }
}

/// Looks at a small sealed object.
async fn sealed_object(
    repository: &Repository,
    kind: Named,
    object: Listed,
    full: bool,
) -> Result<Done> {
    let mut done = Done::default();
    done.checked.objects = 1;
    let whole = full || object.size <= SMALL;
    done.checked.bytes = if whole { object.size } else { SMALL };
    let look = match whole {
        true => objects::whole(repository, &object.name).await?,
        false => objects::end(repository, &object.name).await?,
    };
    let Look::Damaged(what) = look else { return Ok(done) };
    let mut finding = Finding::of(ProblemKind::Damaged, &object.name, what);
    if let Named::Part(id, part) = &kind {
        finding = finding.in_folder(id);
        finding = match part {
            Part::Record | Part::Manifest => finding.costs(Loss::of_backups([id.clone()])),
            Part::Deleted => finding.hint(format!(
                "backup {id} counts as deleted because of it; if nobody has deleted that, somebody put \
                 this object here: without it the backup is there again"
            )),
            Part::Begin | Part::Abandoned => {
                finding.hint("nobody reads it: that it is there is what counts")
            }
        };
    }
    finding = match kind {
        Named::Pin(id) => finding.hint(format!(
            "it holds backup {id} for ever; `pgkeep unpin {id}` and `pgkeep pin {id}` make it anew"
        )),
        Named::WalFloor(_) => finding.hint(
            "backups and expiry fail as long as it can't be read; restore it from a copy of the \
             repository",
        ),
        Named::Drill(_) => finding.hint("nothing rests on it: remove it, and run another drill"),
        Named::System(_) => finding.hint(
            "remove it, and register the system again with `pgkeep check --new-system` on its server",
        ),
        _ => finding,
    };
    done.findings.push(finding);
    Ok(done)
}
