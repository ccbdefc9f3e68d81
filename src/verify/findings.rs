//! Findings before they are told: what was seen, and what it may cost.
//!
//! Others go on working while a repository is verified: backups are deleted, WAL expires, leases
//! come and go. So nothing is told before it was looked at once more ([`still_holds`]): an object that
//! is there by now isn't missing, and what only deleted backups needed costs nobody anything.

use std::collections::BTreeSet;

use super::report::{Checked, Notice, ProblemKind};
use crate::{
    error::{Error, Kind, Result},
    postgres::{SegmentSize, Timeline, WalFile},
    repo::{
        BackupId, Repository, SystemId,
        catalog::{PAGE, exists},
        layout::ClusterLayout,
        named::Part,
        wal::WalStore,
    },
    storage::ObjectName,
};

/// What can't be used because of a finding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loss {
    /// Backups.
    pub backups: BTreeSet<BackupId>,
    /// Segments of one timeline, by number, both ends included.
    pub wal: Option<(SystemId, Timeline, u64, u64)>,
    /// A timeline along which nobody can recover.
    pub timeline: Option<(SystemId, Timeline)>,
}

impl Loss {
    /// Of a segment.
    pub fn of_segments(system: SystemId, timeline: Timeline, first: u64, last: u64) -> Self {
        Loss { wal: Some((system, timeline, first, last)), ..Loss::default() }
    }

    /// Of backups.
    pub fn of_backups(backups: impl IntoIterator<Item = BackupId>) -> Self {
        Loss { backups: backups.into_iter().collect(), ..Loss::default() }
    }
}

/// What is missing, so that it can be looked for once more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sought {
    /// Nothing: something that is there is wrong.
    Nothing,
    /// An object.
    Object(ObjectName),
    /// A file of the archive.
    File(SystemId, WalFile),
    /// Segments of a timeline, both ends included.
    Segments(SystemId, SegmentSize, Timeline, u64, u64),
}

/// Something that seems to be wrong.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What kind of thing.
    pub kind: ProblemKind,
    /// The object.
    pub object: String,
    /// The last one, if it is about several in a row.
    pub to: Option<String>,
    /// What is wrong.
    pub text: String,
    /// What to do, before what follows from the kind.
    pub hints: Vec<String>,
    /// What it costs.
    pub loss: Loss,
    /// Backups that can be restored, and have in them what is wrong.
    pub touches: BTreeSet<BackupId>,
    /// The folder in which the object lies; whoever deletes that backup takes it away.
    pub folder: Option<BackupId>,
    /// What is missing.
    pub sought: Sought,
}

impl Finding {
    /// That an object which is there is wrong.
    pub fn of(kind: ProblemKind, object: &ObjectName, text: impl Into<String>) -> Self {
        Finding {
            kind,
            object: object.to_string(),
            to: None,
            text: text.into(),
            hints: Vec::new(),
            loss: Loss::default(),
            touches: BTreeSet::new(),
            folder: None,
            sought: Sought::Nothing,
        }
    }

    /// That an object isn't there.
    pub fn missing(object: &ObjectName, text: impl Into<String>) -> Self {
        let sought = Sought::Object(object.clone());
        Finding { sought, ..Finding::of(ProblemKind::Missing, object, text) }
    }

    /// What it costs.
    #[must_use]
    pub fn costs(self, loss: Loss) -> Self {
        Finding { loss, ..self }
    }

    /// In which backup's folder it is.
    #[must_use]
    pub fn in_folder(self, backup: &BackupId) -> Self {
        Finding { folder: Some(backup.clone()), ..self }
    }

    /// What to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

/// What a piece of the work has come to.
#[derive(Debug, Default)]
pub struct Done {
    /// What seems to be wrong.
    pub findings: Vec<Finding>,
    /// What is worth knowing.
    pub notices: Vec<Notice>,
    /// What was looked at.
    pub checked: Checked,
    /// Whether something of the archive was listed and isn't there any more.
    pub vanished: bool,
}

impl Done {
    /// Adds what else was done.
    pub fn add(&mut self, other: Done) {
        self.findings.extend(other.findings);
        self.notices.extend(other.notices);
        self.checked.add(other.checked);
        self.vanished |= other.vanished;
    }

    /// Adds something worth knowing.
    pub fn notice(&mut self, object: &ObjectName, text: impl Into<String>) {
        self.notices.push(Notice { object: object.to_string(), text: text.into() });
    }
}

/// What an error says of an object's damage, without the name and the place, which are told apart
/// from it. An error of another kind is one: it ends the verification.
pub fn damage(e: Error) -> Result<String> {
    if !matches!(e.kind(), Kind::Damaged | Kind::Conflict) {
        return Err(e);
    }
    let text = e.to_string();
    Ok(match text.split_once(" is damaged: ") {
        Some((_, what)) => what.to_owned(),
        None => text,
    })
}

/// Whether a finding holds now, at the end.
pub async fn still_holds(
    repository: &Repository,
    layout: &ClusterLayout,
    finding: &Finding,
) -> Result<bool> {
    // Of the folder of a backup that was deleted meanwhile things go, whatever state they are in.
    let mut ids: BTreeSet<&BackupId> =
        finding.loss.backups.iter().chain(&finding.touches).collect();
    if ids.is_empty() {
        ids.extend(&finding.folder);
    }
    let mut any = ids.is_empty();
    for id in ids {
        any = any || is_there(repository, layout, id).await?;
    }
    if !any {
        // What is damaged of a deleted backup's rest is told as long as it lies there.
        return Ok(finding.kind == ProblemKind::Damaged
            && finding.sought == Sought::Nothing
            && object_is_there(repository, finding).await?);
    }
    match &finding.sought {
        Sought::Nothing => object_is_there(repository, finding).await,
        Sought::Object(name) => Ok(!exists(repository, name).await?),
        Sought::File(system, file) => {
            Ok(!WalStore::new(repository, layout, *system).has(*file).await?)
        }
        Sought::Segments(system, size, timeline, first, last) => {
            let store = WalStore::new(repository, layout, *system);
            for number in *first..=*last {
                if !store.has(WalFile::Segment(size.name(*timeline, number))).await? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}

async fn object_is_there(repository: &Repository, finding: &Finding) -> Result<bool> {
    match ObjectName::new(finding.object.as_str()) {
        Ok(name) => exists(repository, &name).await,
        Err(_) => Ok(true),
    }
}

/// Whether a backup's folder is there and not a deleted one's.
pub async fn is_there(
    repository: &Repository,
    layout: &ClusterLayout,
    id: &BackupId,
) -> Result<bool> {
    let listed = repository.storage().list(&layout.backup_folder(id), None, PAGE).await?;
    let deleted = layout.of_backup(id, Part::Deleted.as_str());
    Ok(!listed.is_empty() && !listed.iter().any(|object| object.name == deleted))
}
