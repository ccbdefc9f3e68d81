//! From findings to a report: looked at once more, each object once, with what it costs.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Run,
    archive::Archive,
    findings::{Finding, Sought, is_there, still_holds},
    report::{CheckedBackup, CheckedTimeline, Problem, ProblemKind, Report},
};
use crate::{
    error::Result,
    repo::{
        BackupId,
        named::{Named, named},
        record::BackupRecord,
    },
    storage::ObjectName,
};

/// How long a part of the stream may be on its way behind the ones after it.
const ON_THE_WAY: Duration = Duration::from_secs(2);

impl Run<'_> {
    /// Ends the verification.
    pub(super) async fn settle(mut self) -> Result<Report> {
        self.progress.step("looking once more at what was found");
        self.look_for_wal_again().await?;
        let findings = merged(std::mem::take(&mut self.done.findings));
        let mut problems = Vec::new();
        for finding in findings {
            if still_holds(self.repository, self.layout, &finding).await? {
                problems.push(self.problem(finding).await?);
            }
        }
        let backups = self.backups.all.iter().map(|id| CheckedBackup {
            id: id.clone(),
            sound: !problems.iter().any(|problem: &Problem| problem.backups.contains(id)),
        });
        let timelines = self.archives.iter().flat_map(|archive| {
            archive.inventory.timelines().map(|(timeline, _)| (archive.system, timeline))
        });
        let timelines = timelines.map(|(system, timeline)| CheckedTimeline {
            system,
            timeline,
            sound: !problems.iter().any(|problem| problem.of == Some((system, timeline))),
        });
        Ok(Report {
            repository: self.repository.name().to_owned(),
            address: self.repository.storage().address().to_owned(),
            cluster: self.layout.cluster().to_owned(),
            level: self.request.level,
            only: self.request.backup.clone(),
            sound: problems.is_empty(),
            checked: self.done.checked,
            backups: backups.collect(),
            timelines: timelines.collect(),
            problems,
            notices: self.done.notices,
        })
    }

    /// Where WAL seems to be missing, or has gone meanwhile, it is looked for once more, with the
    /// backups that there are by now: expiry marks those that go before it cuts their WAL.
    async fn look_for_wal_again(&mut self) -> Result<()> {
        let vanished = self.done.vanished;
        for at in 0..self.archives.len() {
            let archive = &self.archives[at];
            let system = archive.system;
            let of_archive = |finding: &Finding| matches!(&finding.sought, Sought::Segments(of, ..) | Sought::File(of, _) if *of == system);
            if !vanished && !self.done.findings.iter().any(of_archive) {
                continue;
            }
            self.done.findings.retain(|finding| !of_archive(finding));
            // Parts become durable in any order; what is on its way isn't missing.
            let only = self.request.backup.as_ref();
            let of = |hole: &Finding| (hole.object.clone(), hole.text.clone());
            let holes: Vec<_> = archive.holes(only).iter().map(of).collect();
            if !holes.is_empty() {
                tokio::time::sleep(ON_THE_WAY).await;
            }
            let mut backups = self.still_there(&archive.backups).await?;
            loop {
                let again =
                    Archive::open(self.repository, self.layout, system, backups.clone()).await?;
                // Who is there now wasn't marked when the WAL was listed, so that nobody had cut it.
                let now = self.still_there(&backups).await?;
                if now.len() == backups.len() {
                    let missing = again.missing(self.request.backup.as_ref()).into_iter();
                    let now: Vec<_> = again.holes(only).iter().map(of).collect();
                    let on_the_way = |finding: &Finding| {
                        now.contains(&of(finding)) && !holes.contains(&of(finding))
                    };
                    self.done.findings.extend(missing.filter(|finding| !on_the_way(finding)));
                    self.archives[at] = again;
                    break;
                }
                backups = now;
            }
        }
        Ok(())
    }

    async fn still_there(&self, backups: &[BackupRecord]) -> Result<Vec<BackupRecord>> {
        let mut there = Vec::new();
        for record in backups {
            if is_there(self.repository, self.layout, &record.id).await? {
                there.push(record.clone());
            }
        }
        Ok(there)
    }

    /// What a finding costs, said for people.
    async fn problem(&self, finding: Finding) -> Result<Problem> {
        let mut backups: Vec<BackupId> = finding.loss.backups.iter().cloned().collect();
        backups.extend(finding.touches.iter().cloned());
        let mut moments = Vec::new();
        for archive in &self.archives {
            backups.extend(archive.backups_lost(&finding.loss));
            moments.extend(archive.moments(&finding.loss).await?);
        }
        backups.sort();
        backups.dedup();
        // A deleted backup is nobody's loss.
        backups.retain(|id| self.backups.all.contains(id));
        let of = ObjectName::new(finding.object.as_str()).ok().and_then(|name| {
            match named(self.layout, self.repository.names(), &name) {
                Some(Named::Wal(system, timeline, _)) => Some((system, timeline)),
                _ => None,
            }
        });
        let of = of.or(finding.loss.timeline).or(finding.loss.wal.map(|(s, t, ..)| (s, t)));
        let mut hints = finding.hints;
        if finding.kind == ProblemKind::Missing && finding.loss.wal.is_some() {
            let them = if finding.to.is_some() { "them" } else { "it" };
            hints.push(format!(
                "if a server still has {them} in its pg_wal, push {them} from there with `pgkeep \
                 archive-push`"
            ));
            if !moments.is_empty() {
                hints.push(
                    "`pgkeep backup` takes a backup from which later moments can be restored to"
                        .to_owned(),
                );
            }
        }
        Ok(Problem {
            kind: finding.kind,
            object: finding.object,
            to: finding.to,
            text: finding.text,
            backups,
            moments,
            hints,
            of,
        })
    }
}

/// Findings about the same object made one: what was found first, with all that it costs.
fn merged(findings: Vec<Finding>) -> Vec<Finding> {
    let mut merged: Vec<Finding> = Vec::new();
    let mut at: BTreeMap<String, usize> = BTreeMap::new();
    for finding in findings {
        let own = matches!(finding.kind, ProblemKind::PageChecksum | ProblemKind::Stranger);
        match at.get(&finding.object) {
            Some(first) if !own => {
                if let Some(first) = merged.get_mut(*first) {
                    first.loss.backups.extend(finding.loss.backups);
                    first.loss.wal = first.loss.wal.or(finding.loss.wal);
                    first.loss.timeline = first.loss.timeline.or(finding.loss.timeline);
                    for hint in finding.hints {
                        if !first.hints.contains(&hint) {
                            first.hints.push(hint);
                        }
                    }
                }
            }
            _ => {
                if !own {
                    at.insert(finding.object.clone(), merged.len());
                }
                merged.push(finding);
            }
        }
    }
    merged
}
