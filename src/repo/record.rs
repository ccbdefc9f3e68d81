//! `backup.json`, the commit object: with it, and without `deleted`, a backup exists.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::id::{BackupId, BackupType, SystemId};
use crate::postgres::{Lsn, SegmentName, SegmentSize, Timeline, history::TimelineHistory};

/// What is known of a committed backup without reading its tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BackupRecord {
    /// The record's format, 1.
    pub format: u32,
    /// The backup's id.
    pub id: BackupId,
    /// The cluster it is of, as the configuration names it.
    pub cluster: String,
    /// What was taken.
    pub kind: BackupType,
    /// What was asked for; when it differs from `kind`, `why` says why.
    pub asked: BackupType,
    /// Why `kind` isn't what was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The backup it was compared with; none for a full one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BackupId>,
    /// How it was told what had changed since the base; none for a full one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way: Option<Way>,
    /// Why the server wasn't asked for the changes only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_compared: Option<String>,
    /// Older backups whose packs it uses, and how many raw bytes of each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub uses: BTreeMap<BackupId, u64>,
    /// The label given to PostgreSQL.
    pub label: String,
    /// Major version and system identifier.
    pub system: SystemId,
    /// `server_version` as the server says it.
    pub server_version: String,
    /// Primary or standby.
    pub source: Source,
    /// The timeline at its start and stop.
    pub timeline: Timeline,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// Where the backup becomes consistent: replay has to come at least this far.
    pub stop_lsn: Lsn,
    /// The cluster's WAL segment size.
    pub segment_size: SegmentSize,
    /// By the server's clock.
    pub started_at: DateTime<Utc>,
    /// By the server's clock, after the stop.
    pub stopped_at: DateTime<Utc>,
    /// Whether pages carry checksums.
    pub data_checksums: bool,
    /// Pages whose checksum was wrong in the stream.
    #[serde(default)]
    pub bad_pages: BadPages,
    /// Until when object lock holds it, and all that it uses of older backups; none where nothing is
    /// held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_until: Option<DateTime<Utc>>,
    /// What was warned of while it was taken; of the server's warnings the first hundred.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// What it weighs.
    pub sizes: Sizes,
    /// Tablespaces but the default ones.
    #[serde(default)]
    pub tablespaces: Vec<Tablespace>,
    /// The pgkeep that took it.
    pub pgkeep: String,
}

impl BackupRecord {
    /// The first segment that its recovery needs.
    pub fn start_segment(&self) -> SegmentName {
        self.segment_size.name(self.timeline, self.segment_size.number_at(self.start_lsn))
    }

    /// The last segment without which it isn't consistent.
    pub fn stop_segment(&self) -> SegmentName {
        self.segment_size.name(self.timeline, self.segment_size.number_before(self.stop_lsn))
    }

    /// Whether recovery along `path` can begin with this backup: its timeline is on the path and
    /// the path doesn't leave it before the backup stopped.
    pub fn lies_on(&self, path: &TimelineHistory) -> bool {
        path.includes(self.timeline, self.stop_lsn)
    }
}

/// How an incremental or differential backup is told what has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// The server's WAL summaries: it sends the pages that changed (PostgreSQL 17 and later).
    Summaries,
    /// The server sends everything, and each page is compared with the base.
    Comparison,
}

/// What a backup was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A primary.
    Primary,
    /// A standby.
    Standby,
}

/// How many bad pages are named.
const NAMED_PAGES: usize = 100;

/// Pages with a wrong checksum: how many, and the first of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadPages {
    /// How many.
    pub count: u64,
    /// The first hundred.
    pub pages: Vec<BadPage>,
}

impl BadPages {
    /// Adds others.
    pub fn add(&mut self, others: BadPages) {
        self.count += others.count;
        let room = NAMED_PAGES.saturating_sub(self.pages.len());
        self.pages.extend(others.pages.into_iter().take(room));
    }
}

/// A page with a wrong checksum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadPage {
    /// The file, relative to the data directory.
    pub path: String,
    /// The page's number in the file.
    pub page: u64,
}

/// Sizes of a backup, in bytes, and its number of files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Sizes {
    /// Regular files.
    pub files: u64,
    /// All files together, as they lie in the cluster.
    pub cluster: u64,
    /// What the server sent.
    #[serde(default)]
    pub sent: u64,
    /// Blocks that the base doesn't have where they are now; zeros don't count.
    #[serde(default)]
    pub changed: u64,
    /// What this backup stores itself, before compression: changed blocks, and its part of the tree.
    pub raw: u64,
    /// What this backup stores itself, in the repository.
    pub stored: u64,
}

/// A tablespace of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Tablespace {
    /// Its object id: its name in `pg_tblspc`.
    pub oid: u32,
    /// The directory on the host that was backed up.
    pub location: String,
    /// Whether it lies in `pg_tblspc` itself (`allow_in_place_tablespaces`).
    #[serde(default)]
    pub in_place: bool,
}
