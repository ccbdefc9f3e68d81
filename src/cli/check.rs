//! `pgkeep check`.

use clap::Args;
use serde::Serialize;

use super::{Global, runtime};
use crate::{
    archive::{self, CheckOptions, CheckReport, CheckStep, StepState},
    error::Result,
};

/// Prove that archiving works, from end to end, and say what is wrong if it doesn't
///
/// Closes a WAL segment and waits until the server has archived it into every repository and it can
/// be read back: archive-timeout at most. Whether a backup could connect is tried too. The first
/// check also registers the server's system in the repositories: from then on they take its WAL, and
/// no other's.
///
/// The exit code is 1 if a problem was found.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  pgkeep check
  pgkeep --cluster billing --output json check
  pgkeep check --new-system      after pg_upgrade")]
pub(super) struct Check {
    /// Take the server as the same cluster although its system is another one: after pg_upgrade, or
    /// when the cluster was made anew
    #[arg(long)]
    new_system: bool,
}

#[derive(Serialize)]
struct Checked<'a> {
    sound: bool,
    system: Option<String>,
    /// The segment that was closed.
    segment: Option<String>,
    steps: Vec<Step<'a>>,
}

#[derive(Serialize)]
struct Step<'a> {
    name: &'a str,
    repository: Option<&'a str>,
    state: &'a str,
    text: &'a str,
    hints: &'a [String],
}

impl Check {
    pub fn run(&self, global: &Global) -> Result<u8> {
        let settings = global.settings()?;
        let repositories = settings.selected_repositories(global.repo.as_deref())?;
        let cluster = settings.cluster(global.cluster.as_deref())?;
        let options = CheckOptions { new_system: self.new_system };
        let work = archive::check(&repositories, cluster, options, global.progress());
        let report = runtime::alone(runtime::until_signal(work))?;
        let checked = Checked {
            sound: report.is_sound(),
            system: report.system.map(|system| system.to_string()),
            segment: report.segment.map(|segment| segment.to_string()),
            steps: report.steps.iter().map(step).collect(),
        };
        global.output.result(&checked, || text(&report, &cluster.name))?;
        Ok(if checked.sound { 0 } else { 1 })
    }
}

fn step(step: &CheckStep) -> Step<'_> {
    Step {
        name: step.name,
        repository: step.repository.as_deref(),
        state: step.state.name(),
        text: &step.text,
        hints: &step.hints,
    }
}

fn text(report: &CheckReport, cluster: &str) -> String {
    let mut out = String::new();
    for step in &report.steps {
        let repository = step.repository.as_ref().map(|name| format!("repository {name}: "));
        let mark = match step.state {
            StepState::Ok => "ok",
            StepState::Warning => "warning",
            StepState::Problem => "PROBLEM",
            StepState::Skipped => "skipped",
        };
        out += &format!("{mark:<7}  {}{}\n", repository.unwrap_or_default(), step.text);
        for hint in &step.hints {
            out += &format!("         hint: {hint}\n");
        }
    }
    let problems = report.steps.iter().filter(|s| s.state == StepState::Problem).count();
    out += &match problems {
        _ if report.segment.is_some() && report.is_sound() => {
            format!("Archiving of cluster {cluster} works.\n")
        }
        0 => format!("No problem was found; archiving of cluster {cluster} wasn't proven.\n"),
        1 => "1 problem was found.\n".to_owned(),
        n => format!("{n} problems were found.\n"),
    };
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_stand_out_with_what_to_do() {
        let step = |name, repository: Option<&str>, state, text: &str, hints: &[&str]| CheckStep {
            name,
            repository: repository.map(str::to_owned),
            state,
            text: text.to_owned(),
            hints: hints.iter().map(|hint| (*hint).to_owned()).collect(),
        };
        let mut report = CheckReport {
            steps: vec![
                step("wal-level", None, StepState::Ok, "wal_level is replica", &[]),
                step("arrival", Some("main"), StepState::Problem, "it didn't arrive", &["wait"]),
            ],
            ..CheckReport::default()
        };
        insta::assert_snapshot!(text(&report, "main"), @r"
        ok       wal_level is replica
        PROBLEM  repository main: it didn't arrive
                 hint: wait
        1 problem was found.
        ");
        report.steps.pop();
        assert!(text(&report, "main").contains("wasn't proven"));
        report.segment = "000000010000000000000002".parse().ok();
        assert!(text(&report, "main").ends_with("Archiving of cluster main works.\n"));
    }
}
