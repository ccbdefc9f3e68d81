//! `pgkeep drill`.

use std::{future::pending, path::PathBuf, time::Instant};

use clap::Args;
use serde::Serialize;

use super::{Global, human, junit, restore::TargetArgs, restore_command, runtime, table};
use crate::{
    error::{Context, Error, Kind, Result},
    repo::{
        self, BackupId,
        drill::{Check, CheckOutcome, DrillRecord, Rpo, Rto},
    },
    restore::guard,
    verify::drill::{DrillRequest, Drilled, Which, drill},
};

/// Restore a backup to a scratch directory and try what comes back
///
/// Starts a server on it that nobody else can reach, replays the WAL up to the target, runs pg_amcheck
/// where it is installed, asks the queries of the configuration ([drill] queries), stops, checks the
/// checksum of each page, removes everything, and says what a restore costs: how long each phase
/// took (RTO), and how old the last transaction is that came back (RPO).
///
/// The original isn't touched, even on the same host: the server has none of its settings, doesn't archive,
/// runs no subscription, listens on no network, and its tablespaces lie in the scratch directory.
///
/// The exit code is 0 when the backup passed and 1 when it didn't. What isn't the backup's fault, as a
/// repository that can't be reached or a missing server program, is an error with a code of its own.
/// The result is kept in the repository, and `pgkeep info` shows it.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  pgkeep drill
  pgkeep drill --random --junit drill.xml
  pgkeep drill --backup 20261120T195812Z-full --target-immediate
  pgkeep --repo offsite drill --directory /srv/scratch")]
pub(super) struct Drill {
    /// The backup to try, instead of the newest
    #[arg(long, value_name = "ID", conflicts_with = "random")]
    backup: Option<BackupId>,
    /// Try any backup, so that in time all of them are tried
    #[arg(long)]
    random: bool,
    #[command(flatten)]
    target: TargetArgs,
    /// The directory in which the scratch directory is made, instead of that of the configuration
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Write the result to this file too, as JUnit XML, which CI systems show
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Leave the restored cluster in place, its server stopped
    #[arg(long)]
    keep: bool,
}

#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    record: &'a DrillRecord,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<String>,
}

impl Drill {
    pub fn run(&self, global: &Global) -> Result<u8> {
        // Before the repository, which is mostly another user's than root's.
        guard::refuse_root("drill")?;
        let target = self.target.target()?;
        let settings = global.settings()?;
        let cluster = settings.cluster(global.cluster.as_deref())?;
        let repository = settings.repository(global.repo.as_deref())?;
        let mut drill_settings = settings.drill.clone();
        if let Some(directory) = &self.directory {
            let absolute = std::path::absolute(directory)
                .context(Kind::Usage, || format!("find {}", directory.display()))?;
            drill_settings.directory = Some(absolute);
        }
        let request = DrillRequest {
            which: match &self.backup {
                Some(id) => Which::Backup(id.clone()),
                None if self.random => Which::Random,
                None => Which::Latest,
            },
            target,
            timeline: self.target.timeline(),
            exclusive: self.target.target_exclusive,
            settings: drill_settings,
            threads: settings.threads,
            restore_command: restore_command::for_copy(&settings, &cluster.name, &repository.name)?,
            keep: self.keep,
        };
        let begun = Instant::now();
        let progress = global.progress();
        // The drill itself ends what it has begun, and gives its lease back.
        let stopped = async {
            match runtime::until_signal(pending::<Result<()>>()).await {
                Err(e) => e,
                Ok(()) => Error::new(Kind::Internal, "a signal came that is none"),
            }
        };
        let done = runtime::together(settings.threads, async {
            let opened = runtime::until_signal(repo::open::open(repository)).await?;
            drill(&opened, cluster, &request, progress, stopped).await
        });
        // What came of it is told even where this can't be written.
        let written = match &self.junit {
            Some(path) => {
                let seconds = begun.elapsed().as_secs_f64();
                let result = done.as_ref().map(|drilled| &drilled.record);
                junit::write_drill(path, (&repository.name, &cluster.name), result, seconds)
            }
            None => Ok(()),
        };
        let Drilled { record, kept } = match (done, &written) {
            (Err(e), Err(unwritten)) => {
                tracing::error!("{unwritten}");
                return Err(e);
            }
            (done, _) => done?,
        };
        let kept = kept.map(|path| path.display().to_string());
        let document = Document { record: &record, kept: kept.clone() };
        global.output.result(&document, || text(&record, kept.as_deref()))?;
        written?;
        Ok(if record.passed { 0 } else { 1 })
    }
}

fn text(record: &DrillRecord, kept: Option<&str>) -> String {
    let mut out = format!(
        "drill of backup {} of cluster {} in repository {}\n",
        record.backup, record.cluster, record.repository
    );
    let mut rows = vec![
        ("began", format!("{} on {}", human::time(record.began), record.host)),
        ("target", record.target.clone()),
    ];
    if let Some(restored) = record.restored {
        let (bytes, files) = (human::bytes(restored.bytes), human::count(restored.files));
        rows.push(("size", format!("{bytes} in {files} files")));
    }
    if let Some(server) = &record.versions.server {
        let from = record.versions.backed_up.as_deref().unwrap_or("an unknown version");
        rows.push(("server", format!("PostgreSQL {server}, backed up from {from}")));
    }
    if record.rto.fetch.is_some() {
        rows.push(("RTO", rto(&record.rto)));
    }
    if let Some(of) = &record.rpo {
        rows.push(("RPO", rpo(of)));
        rows.push(("behind", behind(of)));
    }
    out += &table::pairs(2, &rows);
    let width = record.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    for check in &record.checks {
        out += &check_text(check, width);
    }
    let failed = record.checks.iter().filter(|c| c.outcome == CheckOutcome::Failed).count();
    out += &match failed {
        0 => format!("Backup {} passed.\n", record.backup),
        1 => format!("Backup {} didn't pass: 1 check failed.\n", record.backup),
        n => format!("Backup {} didn't pass: {n} checks failed.\n", record.backup),
    };
    if let Some(path) = kept {
        out += &format!("The restored cluster is left in {path}/data, its server stopped.\n");
    }
    out
}

/// How long it took, as far as it came.
fn rto(rto: &Rto) -> String {
    let phases = [("fetch", rto.fetch), ("replay", rto.replay), ("open", rto.open)];
    let phases: Vec<_> = phases
        .into_iter()
        .filter_map(|(name, took)| Some(format!("{name} {}", human::seconds(took?))))
        .collect();
    match rto.total {
        Some(total) => format!("{}: {}", human::seconds(total), phases.join(", ")),
        None => format!("unknown: {}, and then it failed", phases.join(", ")),
    }
}

fn rpo(rpo: &Rpo) -> String {
    match (rpo.age, rpo.last_transaction) {
        (Some(age), Some(time)) => format!(
            "{}: the last transaction that came back ended at {} (replayed to LSN {})",
            human::seconds(age),
            human::exact_time(time),
            rpo.replayed_lsn
        ),
        _ => {
            format!("no transaction since the backup began (replayed to LSN {})", rpo.replayed_lsn)
        }
    }
}

/// How far what came back is behind what the repository has.
fn behind(rpo: &Rpo) -> String {
    let Some(end) = rpo.archive_lsn else {
        return "unknown: the timeline's history isn't in the repository".to_owned();
    };
    if rpo.replayed_lsn >= end {
        return "nothing: the repository has no more WAL".to_owned();
    }
    let time = match rpo.behind {
        Some(seconds) => format!("{} of transactions, ", human::seconds(seconds)),
        None => String::new(),
    };
    format!(
        "{time}{} of WAL that the target leaves out, to LSN {end}",
        human::bytes(end.0 - rpo.replayed_lsn.0)
    )
}

fn check_text(check: &Check, width: usize) -> String {
    let word = match check.outcome {
        CheckOutcome::Passed => "passed ",
        CheckOutcome::Failed => "FAILED ",
        CheckOutcome::Skipped => "skipped",
    };
    // Lines of their own would be taken for checks.
    let text = check.text.replace('\n', "⏎");
    let mut out = format!("{word}  {:width$}  {text}", check.name);
    if check.seconds >= 0.1 {
        out += &format!(" ({})", human::seconds(check.seconds));
    }
    out.push('\n');
    check.details.iter().for_each(|line| out += &format!("         {line}\n"));
    check.hints.iter().for_each(|hint| out += &format!("         hint: {hint}\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        postgres::{Lsn, Timeline},
        repo::drill::{Restored, Versions},
    };

    fn record() -> DrillRecord {
        let check = |name: &str, outcome, text: &str| Check {
            name: name.to_owned(),
            outcome,
            text: text.to_owned(),
            seconds: 0.0,
            details: Vec::new(),
            hints: Vec::new(),
        };
        DrillRecord {
            format: 1,
            repository: "main".into(),
            cluster: "main".into(),
            backup: "20261120T195812Z-full".parse().expect("an id"),
            system: "15-7".parse().ok(),
            host: "db1".into(),
            began: "2026-11-21T04:00:00Z".parse().expect("a time"),
            passed: false,
            target: "the end of the WAL on timeline 1".into(),
            timeline: Some(Timeline(1)),
            restored: Some(Restored { files: 965, bytes: 22 << 20 }),
            rto: Rto { fetch: Some(5.0), replay: Some(61.5), open: Some(0.25), total: Some(66.75) },
            rpo: Some(Rpo {
                last_transaction: "2026-11-21T03:58:00Z".parse().ok(),
                age: Some(120.0),
                replayed_lsn: Lsn(0x500_0000),
                archive_lsn: Some(Lsn(0x500_0000)),
                archive_transaction: "2026-11-21T03:58:00Z".parse().ok(),
                behind: Some(0.0),
            }),
            versions: Versions {
                pgkeep: "0.1.0".into(),
                taken_by: Some("0.1.0".into()),
                backed_up: Some("15.17".into()),
                server: Some("15.18".into()),
            },
            checks: vec![
                Check { seconds: 5.0, ..check("restore", CheckOutcome::Passed, "all is there") },
                check("amcheck", CheckOutcome::Skipped, "pg_amcheck isn't installed"),
                Check {
                    details: vec!["a <line>".into()],
                    hints: vec!["look at it".into()],
                    ..check("query 1", CheckOutcome::Failed, "expected \"5\", came \"4\"")
                },
            ],
        }
    }

    #[test]
    fn a_result_says_what_a_restore_costs_and_what_failed() {
        insta::assert_snapshot!(text(&record(), Some("/tmp/pgkeep-drill-1")), @r#"
        drill of backup 20261120T195812Z-full of cluster main in repository main
          began   2026-11-21 04:00:00Z on db1
          target  the end of the WAL on timeline 1
          size    22.0 MiB in 965 files
          server  PostgreSQL 15.18, backed up from 15.17
          RTO     1 min 6 s: fetch 5.0 s, replay 1 min 1 s, open 250 ms
          RPO     2 min 0 s: the last transaction that came back ended at 2026-11-21 03:58:00.000000Z (replayed to LSN 0/5000000)
          behind  nothing: the repository has no more WAL
        passed   restore  all is there (5.0 s)
        skipped  amcheck  pg_amcheck isn't installed
        FAILED   query 1  expected "5", came "4"
                 a <line>
                 hint: look at it
        Backup 20261120T195812Z-full didn't pass: 1 check failed.
        The restored cluster is left in /tmp/pgkeep-drill-1/data, its server stopped.
        "#);
    }

    #[test]
    fn what_a_target_leaves_out_is_told() {
        let mut rpo = record().rpo.expect("it came back");
        (rpo.archive_lsn, rpo.behind) = (Some(Lsn(0x600_0000)), Some(3.0));
        insta::assert_snapshot!(behind(&rpo), @"3.0 s of transactions, 16.0 MiB of WAL that the target leaves out, to LSN 0/6000000");
    }

    #[test]
    fn ci_sees_each_check() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("drill.xml");
        junit::write_drill(&path, ("main", "main"), Ok(&record()), 70.0).expect("it is written");
        insta::assert_snapshot!(std::fs::read_to_string(&path).expect("it is there"), @r#"
        <?xml version="1.0" encoding="UTF-8"?>
        <testsuites name="pgkeep drill">
          <testsuite name="pgkeep.drill.main.main" tests="3" failures="1" errors="0" skipped="1" time="70.000" timestamp="2026-11-21T04:00:00">
            <testcase classname="pgkeep.drill.main.main" name="restore" time="5.000"/>
            <testcase classname="pgkeep.drill.main.main" name="amcheck" time="0.000">
              <skipped message="pg_amcheck isn't installed"/>
            </testcase>
            <testcase classname="pgkeep.drill.main.main" name="query 1" time="0.000">
              <failure type="query 1" message="expected &quot;5&quot;, came &quot;4&quot;">expected &quot;5&quot;, came &quot;4&quot;
          a &lt;line&gt;
          hint: look at it
        </failure>
            </testcase>
          </testsuite>
        </testsuites>
        "#);
    }
}
