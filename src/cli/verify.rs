//! `pgkeep verify`.

use std::{path::PathBuf, time::Instant};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{Global, human, junit, runtime};
use crate::{
    config::RepositorySettings,
    error::{Error, Kind, Result},
    repo::{BackupId, layout::ClusterLayout},
    verify::{
        BLOCKS_AT_ONCE, VerifyRequest,
        report::{Level, Moments, Problem, Report},
        verify_configured,
    },
};

/// Verify that the repositories hold what they promise
///
/// Quick asks whether everything is there that the backups and the moments since them need, each
/// object whole by what its end says: WAL without a gap, histories, packs, manifests. Full reads every
/// byte: all is authenticated and decompressed, every block compared with the backups' trees, every
/// page with its own checksum, and the records of the WAL are read as recovery would.
///
/// Each problem says which object it is, what is wrong, which backups and which moments it costs, and
/// what to do. The exit code is 0 when all is sound, and 1 when a problem was found. When a repository
/// can't be reached or read, that is an error with a code of its own: what couldn't be read may be
/// sound.
///
/// All repositories are verified, or the one that --repo names.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  pgkeep verify
  pgkeep verify --level full
  pgkeep verify --backup 20261120T195812Z-full --level full
  pgkeep --repo offsite --output json verify
  pgkeep verify --level full --junit pgkeep.xml")]
pub(super) struct Verify {
    /// Only what this backup needs: its packs, and the WAL from its start on
    #[arg(long, value_name = "ID")]
    backup: Option<BackupId>,
    /// How closely to look: whether all is there, or at every byte
    #[arg(long, value_name = "quick|full", default_value = "quick", hide_possible_values = true)]
    level: LevelArg,
    /// Write the result to this file too, as JUnit XML, which CI systems show
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LevelArg {
    Quick,
    Full,
}

#[derive(Serialize)]
struct Document<'a> {
    sound: bool,
    repositories: &'a [Report],
}

/// What came of a repository: a report, or why there is none.
pub(super) struct Outcome<'a> {
    /// The repository's name.
    pub repository: &'a str,
    /// What was found.
    pub result: Result<Report>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl Verify {
    pub fn run(&self, global: &Global) -> Result<u8> {
        let settings = global.settings()?;
        let selected = settings.selected_repositories(global.repo.as_deref())?;
        let cluster = settings.cluster(global.cluster.as_deref())?;
        let layout = ClusterLayout::new(&cluster.name)?;
        let request = VerifyRequest {
            backup: self.backup.clone(),
            level: match self.level {
                LevelArg::Quick => Level::Quick,
                LevelArg::Full => Level::Full,
            },
            threads: settings.threads,
            blocks_at_once: BLOCKS_AT_ONCE,
        };
        let progress = global.progress();
        let work = async {
            let mut outcomes = Vec::new();
            for repository in &selected {
                let begun = Instant::now();
                let progress = progress.clone();
                let found = verify_configured(repository, &layout, &request, progress).await;
                let result = found.and_then(|report| {
                    report.ok_or_else(|| self.no_backup(repository, &cluster.name))
                });
                let seconds = begun.elapsed().as_secs_f64();
                outcomes.push(Outcome { repository: &repository.name, result, seconds });
            }
            Ok(outcomes)
        };
        let mut outcomes = runtime::together(settings.threads, runtime::until_signal(work))?;
        drop(progress);
        // A backup needn't be in every repository.
        let has_none =
            |outcome: &Outcome<'_>| outcome.result.as_ref().is_err_and(|e| e.kind() == Kind::No);
        if !outcomes.iter().all(has_none) {
            outcomes.retain(|outcome| !has_none(outcome));
        }
        // What was found is told even where this can't be written.
        let written = match &self.junit {
            Some(path) => junit::write(path, &cluster.name, &outcomes),
            None => Ok(()),
        };
        let (mut reports, mut failure) = (Vec::new(), None::<Error>);
        let mut text = String::new();
        for outcome in outcomes {
            match outcome.result {
                Ok(report) => {
                    text += &report_text(&report, outcome.seconds);
                    reports.push(report);
                }
                Err(e) if failure.is_none() => failure = Some(e),
                Err(e) => tracing::error!("{e}"),
            }
        }
        if reports.is_empty()
            && let Some(failure) = failure
        {
            if let Err(e) = written {
                tracing::error!("{e}");
            }
            return Err(failure);
        }
        // Of one that couldn't be looked at nobody knows.
        let sound = failure.is_none() && reports.iter().all(|report| report.sound);
        let document = Document { sound, repositories: &reports };
        global.output.result(&document, || text)?;
        match (failure, written) {
            (None, Ok(())) => Ok(if sound { 0 } else { 1 }),
            (None, Err(e)) => Err(e),
            (Some(failure), written) => {
                if let Err(e) = written {
                    tracing::error!("{e}");
                }
                Err(failure)
            }
        }
    }

    fn no_backup(&self, repository: &RepositorySettings, cluster: &str) -> Error {
        let id = self.backup.as_ref().map(BackupId::as_str).unwrap_or_default();
        let name = &repository.name;
        let message = format!("there is no backup {id} of cluster {cluster} in repository {name}");
        Error::new(Kind::No, message).hint("`pgkeep info` lists the backups; is --cluster right?")
    }
}

fn plural(count: u64, one: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{} {one}{s}", human::count(count))
}

fn report_text(report: &Report, seconds: f64) -> String {
    let level = match report.level {
        Level::Quick => "quick",
        Level::Full => "full",
    };
    let only = report.only.as_ref().map(|id| format!(", backup {id} only"));
    let mut out = format!(
        "cluster {} in repository {} ({}), {level}{}\n",
        report.cluster,
        report.repository,
        report.address,
        only.unwrap_or_default()
    );
    for problem in &report.problems {
        out += &problem_text(problem);
    }
    for notice in &report.notices {
        out += &format!("notice   {}: {}\n", notice.object, notice.text);
    }
    let checked = &report.checked;
    let mut parts = vec![
        plural(report.backups.len() as u64, "backup"),
        plural(checked.packs, "pack"),
        plural(checked.segments, "WAL segment"),
        plural(checked.objects, "object"),
    ];
    if report.level == Level::Full {
        parts.push(plural(checked.blocks, "block"));
        parts.push(plural(checked.pages, "page checksum"));
        parts.push(plural(checked.records, "WAL record"));
    }
    let took = human::duration(std::time::Duration::from_secs_f64(seconds));
    out += &format!(
        "looked at {}; {} read in {took}\n",
        parts.join(", "),
        human::bytes(checked.bytes)
    );
    out += &match report.problems.len() as u64 {
        0 => format!("Repository {} is sound.\n", report.repository),
        1 => format!("1 problem was found in repository {}.\n", report.repository),
        n => format!(
            "{} problems were found in repository {}.\n",
            human::count(n),
            report.repository
        ),
    };
    out
}

fn problem_text(problem: &Problem) -> String {
    let to = problem.to.as_ref().map(|to| format!(" to {}", to.rsplit('/').next().unwrap_or(to)));
    let mut out = format!("PROBLEM  {}{}\n", problem.object, to.unwrap_or_default());
    out += &format!("         {}: {}\n", problem.kind.as_str(), problem.text);
    for line in costs(problem) {
        out += &format!("         costs {line}\n");
    }
    for hint in &problem.hints {
        out += &format!("         hint: {hint}\n");
    }
    out
}

/// What a problem costs, a line each.
pub(super) fn costs(problem: &Problem) -> Vec<String> {
    let backups = problem.backups.iter().map(|id| format!("backup {id}"));
    let mut lines: Vec<String> = backups.chain(problem.moments.iter().map(moments_text)).collect();
    if lines.is_empty() {
        lines.push("no backup and no moment".to_owned());
    }
    lines
}

fn moments_text(moments: &Moments) -> String {
    let at = |time: Option<_>, lsn| match time {
        Some(time) => format!("{} (LSN {lsn})", human::exact_time(time)),
        None => format!("LSN {lsn}"),
    };
    let until = match moments.until {
        Some(_) => format!("until {}", at(moments.until, moments.until_lsn)),
        None => format!("to the end of the WAL, LSN {}", moments.until_lsn),
    };
    format!(
        "the moments on timeline {} after {} {until}",
        moments.timeline,
        at(moments.from, moments.from_lsn)
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        postgres::{Lsn, Timeline},
        verify::report::{Checked, CheckedBackup, CheckedTimeline, Notice, ProblemKind},
    };

    fn parsed<T: std::str::FromStr>(text: &str) -> T {
        text.parse().ok().expect("it is one")
    }

    /// One repository with a gap in its WAL and something to notice.
    pub(in crate::cli) fn report() -> Report {
        let backup = |id: &str, sound| CheckedBackup { id: parsed(id), sound };
        let system = parsed("15-7");
        Report {
            repository: "main".into(),
            address: "file:///var/lib/pgkeep".into(),
            cluster: "main".into(),
            level: Level::Full,
            only: None,
            sound: false,
            checked: Checked { objects: 31, bytes: 3 << 20, packs: 4, ..Checked::default() },
            backups: vec![
                backup("20261120T195812Z-full", true),
                backup("20261121T195812Z-incr", false),
            ],
            timelines: vec![CheckedTimeline { system, timeline: Timeline(1), sound: false }],
            problems: vec![Problem {
                kind: ProblemKind::Missing,
                object: "clusters/main/wal/15-7/00000001/000000010000000000000005".into(),
                to: Some("clusters/main/wal/15-7/00000001/000000010000000000000006".into()),
                text: "2 WAL segments are missing".into(),
                backups: vec![parsed("20261121T195812Z-incr")],
                moments: vec![Moments {
                    system,
                    timeline: Timeline(1),
                    from_lsn: Lsn(0x500_0000),
                    until_lsn: Lsn(0x700_0000),
                    from: Some(parsed("2026-11-20T20:00:00Z")),
                    until: None,
                }],
                hints: vec!["take a <backup>".into()],
                of: Some((system, Timeline(1))),
            }],
            notices: vec![Notice { object: "clusters/main/x".into(), text: "is odd".into() }],
        }
    }

    #[test]
    fn a_problem_says_what_it_costs_and_what_to_do() {
        insta::assert_snapshot!(report_text(&report(), 1.25), @r"
        cluster main in repository main (file:///var/lib/pgkeep), full
        PROBLEM  clusters/main/wal/15-7/00000001/000000010000000000000005 to 000000010000000000000006
                 missing: 2 WAL segments are missing
                 costs backup 20261121T195812Z-incr
                 costs the moments on timeline 1 after 2026-11-20 20:00:00.000000Z (LSN 0/5000000) to the end of the WAL, LSN 0/7000000
                 hint: take a <backup>
        notice   clusters/main/x: is odd
        looked at 2 backups, 4 packs, 0 WAL segments, 31 objects, 0 blocks, 0 page checksums, 0 WAL records; 3.0 MiB read in 1.2 s
        1 problem was found in repository main.
        ");
    }
}
