//! The result of a drill, as it grows.

use chrono::{DateTime, Utc};

use super::choose::ArchiveEnd;
use crate::{
    config::ClusterSettings,
    error::{Error, Kind, Result},
    postgres::{Lsn, Timeline},
    repo::{
        BackupId, Repository,
        drill::{Check, CheckOutcome, DrillRecord, Restored, Rpo, Rto, Versions},
        lease::this_host,
        record::BackupRecord,
    },
    restore::{RestoreReport, Target},
};

/// How much of a query, and of what came of it, is told.
const LONGEST: usize = 300;

/// A text that is short enough to be told, with the rest left out.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}

/// What is known so far.
pub struct Growing {
    repository: String,
    cluster: String,
    began: DateTime<Utc>,
    backup: Option<BackupId>,
    record: Option<BackupRecord>,
    target: String,
    timeline: Option<Timeline>,
    restored: Option<Restored>,
    rto: Rto,
    rpo: Option<Rpo>,
    server: Option<String>,
    archive: Option<ArchiveEnd>,
    checks: Vec<Check>,
}

impl Growing {
    /// Nothing yet.
    pub fn new(
        repository: &Repository,
        cluster: &ClusterSettings,
        target: &Target,
        began: DateTime<Utc>,
    ) -> Self {
        Growing {
            repository: repository.name().to_owned(),
            cluster: cluster.name.clone(),
            began,
            backup: None,
            record: None,
            target: target.to_string(),
            timeline: None,
            restored: None,
            rto: Rto::default(),
            rpo: None,
            server: None,
            archive: None,
            checks: Vec::new(),
        }
    }

    /// Which backup it is.
    pub fn backup(&mut self, id: &BackupId, record: Option<&BackupRecord>) {
        self.backup = Some(id.clone());
        self.record = record.cloned();
    }

    /// The backup, if it is known.
    pub fn chosen(&self) -> Option<&BackupId> {
        self.backup.as_ref()
    }

    /// Which timeline recovery follows.
    pub fn timeline(&mut self, timeline: Timeline) {
        self.timeline = Some(timeline);
    }

    /// Where the WAL of the repository ends.
    pub fn archive(&mut self, end: Option<ArchiveEnd>) {
        self.archive = end;
    }

    /// All files are there.
    pub fn restored(&mut self, report: &RestoreReport, seconds: f64) {
        self.restored = Some(Restored { files: report.files, bytes: report.bytes });
        self.target.clone_from(&report.target);
        self.rto.fetch = Some(seconds);
        let text = format!("{} files, each as the backup has it", report.files);
        self.passed("restore", text, seconds);
    }

    /// The server answers.
    pub fn opened(&mut self, version: String, replay: f64, open: f64) {
        self.server = Some(version);
        (self.rto.replay, self.rto.open) = (Some(replay), Some(open));
        self.rto.total = self.rto.fetch.map(|fetch| fetch + replay + open);
    }

    /// How far was replayed, and the last transaction on the way.
    pub fn came_back(&mut self, lsn: Lsn, time: Option<DateTime<Utc>>) {
        // None later than the backup's start was replayed, if the server says none.
        let age = time.map(|time| seconds_between(time, self.began).max(0.0));
        let archive_transaction = self.archive.as_ref().and_then(|end| end.transaction);
        let behind = match (time, archive_transaction) {
            (Some(time), Some(last)) => Some(seconds_between(time, last).max(0.0)),
            _ => None,
        };
        self.rpo = Some(Rpo {
            last_transaction: time,
            age,
            replayed_lsn: lsn,
            archive_lsn: self.archive.as_ref().map(|end| end.lsn),
            archive_transaction,
            behind,
        });
    }

    /// What is wrong when the server went to the end of the WAL, and that came before the end that the
    /// repository promises.
    pub fn short_of_archive(&self, target: &Target) -> Option<String> {
        let (rpo, end) = (self.rpo?, self.archive.as_ref()?);
        if *target != Target::Latest || rpo.replayed_lsn >= end.lsn {
            return None;
        }
        Some(format!(
            "recovery ended at LSN {}, and the WAL in the repository goes to {}",
            rpo.replayed_lsn, end.lsn
        ))
    }

    /// A check that passed.
    pub fn passed(&mut self, name: &str, text: String, seconds: f64) {
        self.check(name, CheckOutcome::Passed, text, seconds);
    }

    /// A check that couldn't be done.
    pub fn skipped(&mut self, name: &str, why: String) {
        self.check(name, CheckOutcome::Skipped, why, 0.0);
    }

    /// A check that failed.
    pub fn failed(
        &mut self,
        name: &str,
        text: String,
        seconds: f64,
        details: Vec<String>,
        hints: Vec<String>,
    ) {
        self.check(name, CheckOutcome::Failed, text, seconds);
        if let Some(check) = self.checks.last_mut() {
            check.details = details.iter().map(|line| shortened(line)).collect();
            check.hints = hints;
        }
    }

    fn check(&mut self, name: &str, outcome: CheckOutcome, text: String, seconds: f64) {
        let (details, hints) = (Vec::new(), Vec::new());
        self.checks.push(Check { name: name.to_owned(), outcome, text, seconds, details, hints });
    }

    /// The result.
    pub fn finish(self) -> Result<DrillRecord> {
        let backup = self.backup.ok_or_else(|| {
            Error::new(Kind::Internal, "a drill came to its end without a backup")
        })?;
        let record = self.record.as_ref();
        Ok(DrillRecord {
            format: 1,
            repository: self.repository,
            cluster: self.cluster,
            backup,
            system: record.map(|record| record.system),
            host: this_host(),
            began: self.began,
            passed: self.checks.iter().all(|check| check.outcome != CheckOutcome::Failed),
            target: self.target,
            timeline: self.timeline,
            restored: self.restored,
            rto: self.rto,
            rpo: self.rpo,
            versions: Versions {
                pgkeep: env!("CARGO_PKG_VERSION").to_owned(),
                taken_by: record.map(|record| record.pgkeep.clone()),
                backed_up: record.map(|record| record.server_version.clone()),
                server: self.server,
            },
            checks: self.checks,
        })
    }
}

/// Seconds from one time to a later one.
fn seconds_between(from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
    (to - from).num_milliseconds() as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_is_shortened_between_characters() {
        assert_eq!(shortened("short"), "short");
        let long = "ä".repeat(LONGEST + 5);
        assert_eq!(shortened(&long).chars().count(), LONGEST + 1);
        assert!(shortened(&long).ends_with("ä…"));
    }
}
