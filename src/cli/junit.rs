//! A verification as JUnit XML, which CI systems read: a suite for each repository, a test case for
//! each backup, each timeline, and the repository itself. A problem fails the cases that it is about.

use std::{fmt::Write, path::Path};

use chrono::Utc;

use super::verify::{Outcome, costs};
use crate::{
    error::{Context, Kind, Result},
    verify::report::{Problem, Report},
};

/// Writes the outcomes to a file.
pub fn write(path: &Path, cluster: &str, outcomes: &[Outcome<'_>]) -> Result<()> {
    let now = Utc::now().format("%FT%T").to_string();
    std::fs::write(path, document(cluster, outcomes, &now))
        .context(Kind::Local, || format!("write {}", path.display()))
        .map_err(|e| e.if_denied(path))
}

/// A test case: its name, and what is wrong.
struct Case<'a> {
    name: String,
    problems: Vec<&'a Problem>,
}

fn document(cluster: &str, outcomes: &[Outcome<'_>], now: &str) -> String {
    let suites: Vec<String> = outcomes.iter().map(|outcome| suite(cluster, outcome, now)).collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"pgkeep verify\">\n{}</testsuites>\n",
        suites.concat()
    )
}

fn suite(cluster: &str, outcome: &Outcome<'_>, now: &str) -> String {
    let class = format!("pgkeep.verify.{}.{cluster}", outcome.repository);
    let cases = outcome.result.as_ref().map(cases);
    let (tests, failures, errors) = match &cases {
        Ok(cases) => {
            let failed = cases.iter().filter(|case| !case.problems.is_empty());
            (cases.len(), failed.count(), 0)
        }
        Err(_) => (1, 0, 1),
    };
    let mut out = format!(
        "  <testsuite name=\"{}\" tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\" \
         skipped=\"0\" time=\"{:.3}\" timestamp=\"{now}\">\n",
        escaped(&class),
        outcome.seconds
    );
    let mut case = |name: &str, inside: &str| {
        let (class, name) = (escaped(&class), escaped(name));
        let _ = match inside {
            "" => writeln!(out, "    <testcase classname=\"{class}\" name=\"{name}\"/>"),
            _ => writeln!(
                out,
                "    <testcase classname=\"{class}\" name=\"{name}\">\n{inside}    </testcase>"
            ),
        };
    };
    match (&cases, &outcome.result) {
        (Ok(cases), Ok(report)) => {
            cases.iter().for_each(|c| case(&c.name, &failure(&c.problems)));
            if !report.notices.is_empty() {
                let lines = report.notices.iter().map(|n| format!("{}: {}\n", n.object, n.text));
                let lines = escaped(&lines.collect::<String>());
                let _ = writeln!(out, "    <system-out>{lines}</system-out>");
            }
        }
        (_, Err(e)) => {
            let hints: String = e.hints().iter().map(|hint| format!("\nhint: {hint}")).collect();
            let (kind, message) = (e.kind().name(), escaped(&e.to_string()));
            let inside = format!(
                "      <error type=\"{kind}\" message=\"{message}\">{message}{}</error>\n",
                escaped(&hints)
            );
            case("repository", &inside);
        }
        _ => {}
    }
    out + "  </testsuite>\n"
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
fn failure(problems: &[&Problem]) -> String {
    let Some(first) = problems.first() else { return String::new() };
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
    format!(
        "      <failure type=\"{}\" message=\"{}\">{}</failure>\n",
        first.kind.as_str(),
        escaped(&message),
        escaped(&text)
    )
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
    use crate::{cli::verify::tests::report, error::Error};

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
