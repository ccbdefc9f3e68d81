//! A verification or a drill as JUnit XML, which CI systems read. Of a verification it has a suite for each
//! repository, with a test case for each backup, each timeline, and the repository itself; a problem
//! fails the cases that it is about. Of a drill it has a case for each check.

use std::{fmt::Write, path::Path};

use chrono::Utc;

use super::verify::{Outcome, costs};
use crate::{
    error::{Context, Error, Kind, Result},
    repo::drill::{Check, CheckOutcome, DrillRecord},
    verify::report::{Problem, Report},
};

/// Writes what came of verifying to a file.
pub fn write(path: &Path, cluster: &str, outcomes: &[Outcome<'_>]) -> Result<()> {
    let now = Utc::now().format("%FT%T").to_string();
    write_text(path, &document(cluster, outcomes, &now))
}

/// Writes what came of a drill to a file: a suite with a case for each check.
pub fn write_drill(
    path: &Path,
    (repository, cluster): (&str, &str),
    result: Result<&DrillRecord, &Error>,
    seconds: f64,
) -> Result<()> {
    let now = match result {
        Ok(record) => record.began,
        Err(_) => Utc::now(),
    };
    let class = format!("pgkeep.drill.{repository}.{cluster}");
    let cases = match result {
        Ok(record) => record.checks.iter().map(of_check).collect(),
        Err(e) => vec![of_error("drill", e)],
    };
    let now = now.format("%FT%T").to_string();
    let suite = Suite { class, seconds, cases, aside: None };
    write_text(path, &xml("pgkeep drill", &[suite], &now))
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text)
        .context(Kind::Local, || format!("write {}", path.display()))
        .map_err(|e| e.if_denied(path))
}

/// A test suite.
struct Suite {
    class: String,
    seconds: f64,
    cases: Vec<TestCase>,
    /// What is worth telling and no case.
    aside: Option<String>,
}

/// A test case: its name, how long it took if that is known, and what came of it.
struct TestCase {
    name: String,
    seconds: Option<f64>,
    outcome: TestOutcome,
}

enum TestOutcome {
    Passed,
    Skipped(String),
    Failure { kind: String, message: String, text: String },
    Error { kind: String, message: String, text: String },
}

fn xml(title: &str, suites: &[Suite], now: &str) -> String {
    let suites: String = suites.iter().map(|suite| suite.xml(now)).collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"{title}\">\n{suites}</testsuites>\n"
    )
}

impl Suite {
    fn xml(&self, now: &str) -> String {
        let count = |is: fn(&TestOutcome) -> bool| {
            self.cases.iter().filter(|case| is(&case.outcome)).count()
        };
        let failures = count(|outcome| matches!(outcome, TestOutcome::Failure { .. }));
        let errors = count(|outcome| matches!(outcome, TestOutcome::Error { .. }));
        let skipped = count(|outcome| matches!(outcome, TestOutcome::Skipped(_)));
        let (class, tests) = (escaped(&self.class), self.cases.len());
        let mut out = format!(
            "  <testsuite name=\"{class}\" tests=\"{tests}\" failures=\"{failures}\" \
             errors=\"{errors}\" skipped=\"{skipped}\" time=\"{:.3}\" timestamp=\"{now}\">\n",
            self.seconds
        );
        for case in &self.cases {
            let name = escaped(&case.name);
            let time = case.seconds.map(|time| format!(" time=\"{time:.3}\"")).unwrap_or_default();
            let inside = case.outcome.xml();
            let _ = match inside.as_str() {
                "" => writeln!(out, "    <testcase classname=\"{class}\" name=\"{name}\"{time}/>"),
                _ => writeln!(
                    out,
                    "    <testcase classname=\"{class}\" name=\"{name}\"{time}>\n{inside}    </testcase>"
                ),
            };
        }
        if let Some(aside) = &self.aside {
            let _ = writeln!(out, "    <system-out>{}</system-out>", escaped(aside));
        }
        out + "  </testsuite>\n"
    }
}

impl TestOutcome {
    fn xml(&self) -> String {
        let element = |name: &str, kind: &str, message: &str, text: &str| {
            let (message, text) = (escaped(message), escaped(text));
            format!("      <{name} type=\"{kind}\" message=\"{message}\">{text}</{name}>\n")
        };
        match self {
            TestOutcome::Passed => String::new(),
            TestOutcome::Skipped(why) => format!("      <skipped message=\"{}\"/>\n", escaped(why)),
            TestOutcome::Failure { kind, message, text } => element("failure", kind, message, text),
            TestOutcome::Error { kind, message, text } => element("error", kind, message, text),
        }
    }
}

fn of_error(name: &str, e: &Error) -> TestCase {
    let hints: String = e.hints().iter().map(|hint| format!("\nhint: {hint}")).collect();
    let (kind, message) = (e.kind().name().to_owned(), e.to_string());
    let text = format!("{message}{hints}");
    let outcome = TestOutcome::Error { kind, message, text };
    TestCase { name: name.to_owned(), seconds: None, outcome }
}

fn of_check(check: &Check) -> TestCase {
    let outcome = match check.outcome {
        CheckOutcome::Passed => TestOutcome::Passed,
        CheckOutcome::Skipped => TestOutcome::Skipped(check.text.clone()),
        CheckOutcome::Failed => {
            let mut text = format!("{}\n", check.text);
            check.details.iter().for_each(|line| text += &format!("  {line}\n"));
            check.hints.iter().for_each(|hint| text += &format!("  hint: {hint}\n"));
            let (kind, message) = (check.name.clone(), check.text.clone());
            TestOutcome::Failure { kind, message, text }
        }
    };
    TestCase { name: check.name.clone(), seconds: Some(check.seconds), outcome }
}

/// What one object or another is about: its name, and what is wrong.
struct Case<'a> {
    name: String,
    problems: Vec<&'a Problem>,
}

fn document(cluster: &str, outcomes: &[Outcome<'_>], now: &str) -> String {
    let suites: Vec<Suite> = outcomes.iter().map(|outcome| suite(cluster, outcome)).collect();
    xml("pgkeep verify", &suites, now)
}

fn suite(cluster: &str, outcome: &Outcome<'_>) -> Suite {
    let class = format!("pgkeep.verify.{}.{cluster}", outcome.repository);
    let (cases, aside) = match &outcome.result {
        Err(e) => (vec![of_error("repository", e)], None),
        Ok(report) => {
            let cases = cases(report).into_iter().map(|case| TestCase {
                outcome: failure(&case.problems),
                name: case.name,
                seconds: None,
            });
            let lines = report.notices.iter().map(|n| format!("{}: {}\n", n.object, n.text));
            let notices: String = lines.collect();
            (cases.collect(), (!notices.is_empty()).then_some(notices))
        }
    };
    Suite { class, seconds: outcome.seconds, cases, aside }
}

fn cases(report: &Report) -> Vec<Case<'_>> {
    let mut cases = Vec::new();
    let about = |is: &dyn Fn(&Problem) -> bool| report.problems.iter().filter(|p| is(p)).collect();
    for backup in &report.backups {
        cases.push(Case {
            name: format!("backup {}", backup.id),
            problems: about(&|problem| problem.backups.contains(&backup.id)),
        });
    }
    for timeline in &report.timelines {
        cases.push(Case {
            name: format!("WAL of system {}, timeline {}", timeline.system, timeline.timeline),
            problems: about(&|p| p.of == Some((timeline.system, timeline.timeline))),
        });
    }
    // Whatever none of these is about.
    let of_timeline = |problem: &Problem| {
        let of = |(system, timeline)| {
            report.timelines.iter().any(|t| (t.system, t.timeline) == (system, timeline))
        };
        problem.of.is_some_and(of)
    };
    let known = |id: &crate::repo::BackupId| report.backups.iter().any(|backup| backup.id == *id);
    let rest = about(&|p| !of_timeline(p) && !p.backups.iter().any(known));
    cases.push(Case { name: "repository".to_owned(), problems: rest });
    cases
}

/// One failure for all problems of a case: some readers take the first one only.
fn failure(problems: &[&Problem]) -> TestOutcome {
    let Some(first) = problems.first() else { return TestOutcome::Passed };
    let mut text = String::new();
    for problem in problems {
        let _ = writeln!(text, "{}: {}", problem.object, problem.text);
        for cost in costs(problem) {
            let _ = writeln!(text, "  costs {cost}");
        }
        for hint in &problem.hints {
            let _ = writeln!(text, "  hint: {hint}");
        }
    }
    let message = match problems.len() {
        1 => format!("{}: {}", first.object, first.text),
        n => format!("{n} problems, the first is {}: {}", first.object, first.text),
    };
    TestOutcome::Failure { kind: first.kind.as_str().to_owned(), message, text }
}

/// Text as XML has it, in an attribute too. What XML can't have at all is replaced.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() || matches!(c, '\u{FFFE}' | '\u{FFFF}') => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::verify::tests::report;

    #[test]
    fn problems_fail_the_cases_they_are_about_and_an_outage_is_an_error() {
        let mut found = report();
        let mut stranger = found.problems[0].clone();
        stranger.object = "clusters/main/\u{1}\"readme\"".into();
        (stranger.backups, stranger.moments, stranger.of) = (Vec::new(), Vec::new(), None);
        stranger.hints.clear();
        found.problems.push(stranger);
        let outage = Error::new(Kind::Repository, "can't be reached").hint("wait");
        let outcomes = [
            Outcome { repository: "main", result: Ok(found), seconds: 1.5 },
            Outcome { repository: "other", result: Err(outage), seconds: 0.25 },
        ];
        insta::assert_snapshot!(document("main", &outcomes, "2026-11-20T20:00:00"), @r#"
        <?xml version="1.0" encoding="UTF-8"?>
        <testsuites name="pgkeep verify">
          <testsuite name="pgkeep.verify.main.main" tests="4" failures="3" errors="0" skipped="0" time="1.500" timestamp="2026-11-20T20:00:00">
            <testcase classname="pgkeep.verify.main.main" name="backup 20261120T195812Z-full"/>
            <testcase classname="pgkeep.verify.main.main" name="backup 20261121T195812Z-incr">
              <failure type="missing" message="clusters/main/wal/15-7/00000001/000000010000000000000005: 2 WAL segments are missing">clusters/main/wal/15-7/00000001/000000010000000000000005: 2 WAL segments are missing
          costs backup 20261121T195812Z-incr
          costs the moments on timeline 1 after 2026-11-20 20:00:00.000000Z (LSN 0/5000000) to the end of the WAL, LSN 0/7000000
          hint: take a &lt;backup&gt;
        </failure>
            </testcase>
            <testcase classname="pgkeep.verify.main.main" name="WAL of system 15-7, timeline 1">
              <failure type="missing" message="clusters/main/wal/15-7/00000001/000000010000000000000005: 2 WAL segments are missing">clusters/main/wal/15-7/00000001/000000010000000000000005: 2 WAL segments are missing
          costs backup 20261121T195812Z-incr
          costs the moments on timeline 1 after 2026-11-20 20:00:00.000000Z (LSN 0/5000000) to the end of the WAL, LSN 0/7000000
          hint: take a &lt;backup&gt;
        </failure>
            </testcase>
            <testcase classname="pgkeep.verify.main.main" name="repository">
              <failure type="missing" message="clusters/main/�&quot;readme&quot;: 2 WAL segments are missing">clusters/main/�&quot;readme&quot;: 2 WAL segments are missing
          costs no backup and no moment
        </failure>
            </testcase>
            <system-out>clusters/main/x: is odd
        </system-out>
          </testsuite>
          <testsuite name="pgkeep.verify.other.main" tests="1" failures="0" errors="1" skipped="0" time="0.250" timestamp="2026-11-20T20:00:00">
            <testcase classname="pgkeep.verify.other.main" name="repository">
              <error type="repository" message="can't be reached">can't be reached
        hint: wait</error>
            </testcase>
          </testsuite>
        </testsuites>
        "#);
    }
}
