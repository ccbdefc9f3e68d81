//! `pgkeep backup`.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{Global, human, runtime, table};
use crate::{
    backup::{self, BackupOptions, Outcome},
    config::{ClusterSettings, Settings},
    error::Result,
    repo::{
        self, BackupType,
        layout::ClusterLayout,
        record::{BackupRecord, Source, Way},
    },
    retention::{self, Expiry},
};

/// Take a backup
///
/// The server sends its files over a replication connection, so pgkeep may run on another host. A
/// backup is there when everything it needs is in the repository, its WAL included; one that can't
/// be finished is removed again. Archiving has to work: a backup that would fail at its end for want
/// of WAL fails at its beginning.
///
/// Incremental and differential backups store the pages that changed and refer to older backups for
/// the rest. They restore as full ones do, in one pass, and any of them can be deleted without
/// breaking another. PostgreSQL 17 and later sends only what changed, where summarize_wal is on;
/// otherwise everything is sent, and compared here.
///
/// The cluster is read once and backed up into every repository, or into the one that --repo names.
/// One that fails doesn't keep the others from theirs; the exit code tells.
///
/// Where a repository has retention rules, `pgkeep expire` follows in it, unless its after-backup is
/// false. The backup is complete before that; if expiring fails, the exit code says why.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  pgkeep backup
  pgkeep backup --type full
  pgkeep backup --checkpoint spread --max-rate 50M
  pgkeep --repo offsite --cluster billing --quiet backup --label nightly")]
pub(super) struct Backup {
    /// What to store: all, what changed since the last full backup, or since the last of any type;
    /// incr unless said otherwise, and full when there is none to compare with
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<Type>,
    /// Do the checkpoint it begins with at once, or spread over the checkpoint interval
    #[arg(long, value_name = "HOW", default_value = "fast")]
    checkpoint: Checkpoint,
    /// The most that the server shall send a second: a number in kB, or with k or M (32k to 1024M)
    #[arg(long, value_name = "RATE", value_parser = rate)]
    max_rate: Option<u32>,
    /// A label for PostgreSQL's backup_label
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Type {
    Full,
    Diff,
    Incr,
}

impl From<Type> for BackupType {
    fn from(kind: Type) -> Self {
        match kind {
            Type::Full => BackupType::Full,
            Type::Diff => BackupType::Diff,
            Type::Incr => BackupType::Incr,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Checkpoint {
    Fast,
    Spread,
}

/// In kB a second, within what `BASE_BACKUP` takes.
fn rate(text: &str) -> Result<u32, String> {
    let (digits, factor) = match text.strip_suffix('M') {
        Some(digits) => (digits, 1024),
        None => (text.strip_suffix('k').unwrap_or(text), 1),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain
        .then(|| digits.parse::<u32>().ok()?.checked_mul(factor))
        .flatten()
        .filter(|rate| (32..=1_048_576).contains(rate))
        .ok_or_else(|| "expected a number of kB from 32 to 1048576, or as in 512k or 50M".into())
}

impl Backup {
    pub fn run(&self, global: &Global) -> Result<u8> {
        let settings = global.settings()?;
        let selected = settings.selected_repositories(global.repo.as_deref())?;
        let several = selected.len() > 1;
        let cluster = settings.cluster(global.cluster.as_deref())?;
        let options = BackupOptions {
            kind: self.kind.map(BackupType::from),
            fast_checkpoint: self.checkpoint == Checkpoint::Fast,
            max_rate: self.max_rate,
            threads: settings.threads,
            label: self.label.clone(),
        };
        let outcomes = runtime::together(settings.threads, async {
            let (mut open, mut outcomes) = (Vec::new(), Vec::new());
            for settings in selected {
                match runtime::until_signal(repo::open::open(settings)).await {
                    Ok(repository) => open.push(repository),
                    Err(e) => {
                        outcomes
                            .push(Outcome { repository: settings.name.clone(), result: Err(e) });
                    }
                }
            }
            if !open.is_empty() {
                let progress = global.progress();
                for outcome in &outcomes {
                    if let Err(e) = &outcome.result {
                        let name = &outcome.repository;
                        progress
                            .warn(&format!("the backup goes on without repository {name}: {e}"));
                    }
                }
                // It watches for signals itself, to undo what it has stored.
                outcomes.extend(backup::backup(&open, cluster, &options, progress).await?);
            }
            Ok(outcomes)
        })?;
        let (mut taken, mut failure) = (Vec::new(), None);
        for Outcome { repository, result } in outcomes {
            match result {
                Ok(backup) => taken.push(Taken { repository, backup, expired: None }),
                Err(e) if several => {
                    let e = e.while_doing(format!("repository {repository}"));
                    match &failure {
                        None => failure = Some(e),
                        Some(_) => tracing::error!("{e}"),
                    }
                }
                Err(e) => failure = Some(e),
            }
        }
        let expired = expire(global, &settings, cluster, &mut taken);
        if let Some(first) = taken.first() {
            let done = format!("backup {} is complete", first.backup.id);
            let taken = Document { backups: taken };
            global.output.done(done, &taken, || taken.backups.iter().map(text).collect());
        }
        match (failure, expired) {
            (Some(failure), Err(e)) => {
                tracing::error!("{e}");
                Err(failure)
            }
            (Some(failure), Ok(())) => Err(failure),
            (None, expired) => expired.map(|()| 0),
        }
    }
}

/// Applies the rules of the repositories that have the backup now. One that fails doesn't keep the
/// others from it; the first failure is returned.
fn expire(
    global: &Global,
    settings: &Settings,
    cluster: &ClusterSettings,
    taken: &mut [Taken],
) -> Result<()> {
    let layout = ClusterLayout::new(&cluster.name)?;
    let mut failure = None;
    for taken in taken {
        let repository = settings.repository(Some(&taken.repository))?;
        if !(repository.retention.has_rules() && repository.retention.after_backup) {
            continue;
        }
        let progress = global.progress();
        if taken.backup.bad_pages.count > 0 {
            progress.warn(&format!(
                "nothing expires in repository {} after a backup with damaged pages: an older one may \
                 be needed to mend them; `pgkeep expire` does it all the same",
                taken.repository
            ));
            continue;
        }
        let one = runtime::alone(runtime::until_signal(async {
            let (rules, progress) = (&repository.retention, progress.as_ref());
            let repository = repo::open::open(repository).await?;
            retention::may_remove(&repository, &layout).await?;
            retention::expire(&repository, &layout, rules, false, progress).await
        }));
        match one {
            Ok(expiry) => taken.expired = Some(expiry),
            Err(e) => {
                let what = format!(
                    "expire in repository {} after backup {}, which is complete",
                    taken.repository, taken.backup.id
                );
                let e = e.while_doing(what);
                match &failure {
                    None => failure = Some(e),
                    Some(_) => tracing::error!("{e}"),
                }
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

#[derive(Serialize)]
struct Document {
    backups: Vec<Taken>,
}

#[derive(Serialize)]
struct Taken {
    repository: String,
    backup: BackupRecord,
    #[serde(skip_serializing_if = "Option::is_none")]
    expired: Option<Expiry>,
}

fn text(Taken { repository, backup: record, expired }: &Taken) -> String {
    let source = match record.source {
        Source::Primary => "primary",
        Source::Standby => "standby",
    };
    let took = (record.stopped_at - record.started_at).to_std().unwrap_or_default();
    let sizes = &record.sizes;
    let mut rows = vec![
        (
            "source",
            format!("{source}, PostgreSQL {}, system {}", record.server_version, record.system),
        ),
        ("time", format!("{}, took {}", human::time(record.stopped_at), human::duration(took))),
        (
            "WAL",
            format!("{} to {} on timeline {}", record.start_lsn, record.stop_lsn, record.timeline),
        ),
        (
            "size",
            format!(
                "{} in {} files, stored as {}",
                human::bytes(sizes.cluster),
                human::count(sizes.files),
                human::bytes(sizes.stored)
            ),
        ),
    ];
    if let Some(base) = &record.base {
        let way = match record.way {
            Some(Way::Summaries) => "the server sent what changed",
            _ => "the server sent everything, and it was compared",
        };
        rows.push(("base", format!("{base}; {way}")));
        rows.push((
            "changed",
            format!("{} of {} sent", human::bytes(sizes.changed), human::bytes(sizes.sent)),
        ));
    }
    if let Some(why) = record.why.as_ref().or(record.why_compared.as_ref()) {
        rows.push(("because", why.clone()));
    }
    let mut out =
        format!("backup {} of cluster {} in repository {repository}\n", record.id, record.cluster);
    out += &table::pairs(2, &rows);
    for warning in &record.warnings {
        out += &format!("warning: {warning}\n");
    }
    if record.bad_pages.count > 0 {
        let first = record.bad_pages.pages.first();
        let first = first.map(|p| format!(", the first is page {} of {}", p.page, p.path));
        out += &format!(
            "{} pages have a wrong checksum{}\n",
            human::count(record.bad_pages.count),
            first.unwrap_or_default()
        );
    }
    if let Some(expiry) = expired {
        out += &super::expire::text(expiry);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_within_what_the_server_takes() {
        for (text, kb) in [("32", 32), ("512k", 512), ("50M", 51_200), ("1024M", 1_048_576)] {
            assert_eq!(rate(text), Ok(kb), "{text}");
        }
        for bad in ["", "31", "1025M", "1G", "-40", "+40", "4294967297", "M", "50 M"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }
}
