//! What a verification has found, for people and programs.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::{
    postgres::{Lsn, Timeline},
    repo::{BackupId, SystemId},
};

/// How closely one looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Whether all is there, and each object whole by what its end says.
    Quick,
    /// Every byte.
    Full,
}

/// What came of verifying a cluster in one repository.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// The repository's name in the configuration.
    pub repository: String,
    /// Where it lies.
    pub address: String,
    /// The cluster.
    pub cluster: String,
    /// How closely was looked.
    pub level: Level,
    /// The only backup that was verified; all were, if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only: Option<BackupId>,
    /// Whether nothing is wrong.
    pub sound: bool,
    /// What was looked at.
    pub checked: Checked,
    /// The backups.
    pub backups: Vec<CheckedBackup>,
    /// The WAL.
    pub timelines: Vec<CheckedTimeline>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// What is worth knowing and not wrong.
    pub notices: Vec<Notice>,
}

impl Report {
    /// Of a repository that can't be opened because an object at its root is damaged or missing.
    pub fn unopened(
        (repository, address): (&str, &str),
        cluster: &str,
        level: Level,
        (kind, object, text): (ProblemKind, &str, String),
        hints: Vec<String>,
    ) -> Self {
        let problem = Problem {
            kind,
            object: object.to_owned(),
            to: None,
            text,
            backups: Vec::new(),
            moments: Vec::new(),
            hints,
            of: None,
        };
        Report {
            repository: repository.to_owned(),
            address: address.to_owned(),
            cluster: cluster.to_owned(),
            level,
            only: None,
            sound: false,
            checked: Checked::default(),
            backups: Vec::new(),
            timelines: Vec::new(),
            problems: vec![problem],
            notices: Vec::new(),
        }
    }
}

/// How much was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Checked {
    /// Objects.
    pub objects: u64,
    /// Stored bytes that were read: all of the objects, or what is at their ends.
    pub bytes: u64,
    /// Packs among the objects.
    pub packs: u64,
    /// WAL segments among the objects, partial ones and copies included.
    pub segments: u64,
    /// Blocks of files whose hash was compared.
    pub blocks: u64,
    /// Pages among the blocks whose own checksum was compared.
    pub pages: u64,
    /// WAL records whose checksum was compared.
    pub records: u64,
}

impl Checked {
    /// Adds what was looked at elsewhere.
    pub fn add(&mut self, other: Checked) {
        self.objects += other.objects;
        self.bytes += other.bytes;
        self.packs += other.packs;
        self.segments += other.segments;
        self.blocks += other.blocks;
        self.pages += other.pages;
        self.records += other.records;
    }
}

/// A backup that was verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckedBackup {
    /// The backup.
    pub id: BackupId,
    /// Whether no problem costs it.
    pub sound: bool,
}

/// A timeline that was verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckedTimeline {
    /// The system.
    pub system: SystemId,
    /// The timeline.
    pub timeline: Timeline,
    /// Whether no problem is about its WAL.
    pub sound: bool,
}

/// What kind of thing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// Something that is needed isn't there.
    Missing,
    /// An object isn't what was stored: flipped, cut, exchanged or forged.
    Damaged,
    /// Objects are genuine and don't fit together.
    Inconsistent,
    /// A backup is neither whole nor gone.
    Unfinished,
    /// A page's own checksum is wrong, and was when it was backed up.
    PageChecksum,
    /// An object that has no business here.
    Stranger,
}

impl ProblemKind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            ProblemKind::Missing => "missing",
            ProblemKind::Damaged => "damaged",
            ProblemKind::Inconsistent => "inconsistent",
            ProblemKind::Unfinished => "unfinished",
            ProblemKind::PageChecksum => "page-checksum",
            ProblemKind::Stranger => "stranger",
        }
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Problem {
    /// What kind of thing.
    pub kind: ProblemKind,
    /// The object, relative to the repository; of several in a row the first.
    pub object: String,
    /// The last of several in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// What is wrong with it.
    pub text: String,
    /// The backups that can't be restored because of it.
    pub backups: Vec<BackupId>,
    /// The moments that can't be restored to because of it.
    pub moments: Vec<Moments>,
    /// What to do.
    pub hints: Vec<String>,
    /// The timeline whose WAL it is about.
    #[serde(skip)]
    pub of: Option<(SystemId, Timeline)>,
}

/// A stretch of moments on one timeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Moments {
    /// The system.
    pub system: SystemId,
    /// The timeline.
    pub timeline: Timeline,
    /// Where it begins in the WAL.
    pub from_lsn: Lsn,
    /// Where it ends.
    pub until_lsn: Lsn,
    /// The end of the last transaction, or of the backup, before it.
    pub from: Option<DateTime<Utc>>,
    /// From when on one can restore again; to the archive's end, if there is none.
    pub until: Option<DateTime<Utc>>,
}

/// Something worth knowing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Notice {
    /// The object that it is about.
    pub object: String,
    /// What there is to say.
    pub text: String,
}
