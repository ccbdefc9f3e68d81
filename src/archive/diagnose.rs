//! Why a segment didn't arrive: what the server knows about its archiver, in plain words.

use std::path::Path;

use super::server::Server;
use crate::{
    config::ClusterSettings,
    postgres::{
        SegmentName,
        archiving::{Archiver, Waiting},
    },
};

/// What is wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// A sentence without full stop.
    pub text: String,
    /// What to do, in order.
    pub hints: Vec<String>,
}

/// Finds out why `segment` didn't arrive. `before` is what the server said before it was closed.
pub async fn diagnose(
    server: &mut Server,
    cluster: &ClusterSettings,
    segment: SegmentName,
    before: Option<Archiver>,
) -> Diagnosis {
    let now = match server.archiver().await {
        Ok(now) => now,
        Err(e) => return Diagnosis { text: e.to_string(), hints: e.hints().to_vec() },
    };
    explain(segment, &before.unwrap_or_default(), &now, &Marks::read(cluster, segment))
}

/// What `pg_wal/archive_status` says, where it can be read.
#[derive(Debug, Default)]
struct Marks {
    /// How many files wait.
    waiting: Option<u64>,
    /// Whether the segment is one of them.
    segment_waits: Option<bool>,
}

impl Marks {
    fn read(cluster: &ClusterSettings, segment: SegmentName) -> Self {
        let read = |pgdata: &Path| {
            let waiting = Waiting::read(pgdata).ok()?;
            let ready = pgdata.join(format!("pg_wal/archive_status/{segment}.ready"));
            Some((waiting.files, ready.exists()))
        };
        let (waiting, segment_waits) = cluster.pgdata.as_deref().and_then(read).unzip();
        Marks { waiting, segment_waits }
    }

    fn backlog(&self) -> String {
        match self.waiting {
            Some(0) | None => String::new(),
            Some(1) => "; 1 file waits to be archived".to_owned(),
            Some(n) => format!("; {n} files wait to be archived"),
        }
    }
}

fn explain(segment: SegmentName, before: &Archiver, now: &Archiver, marks: &Marks) -> Diagnosis {
    let log = "the reason is in the server's log, in a line that begins with pgkeep:";
    let failures = now.failed_count.saturating_sub(before.failed_count);
    let archived = now.archived_count.saturating_sub(before.archived_count);
    let backlog = marks.backlog();
    let name = segment.to_string();

    let claims = now.last_archived.as_deref() == Some(&name) || marks.segment_waits == Some(false);
    if archived > 0 && failures == 0 && claims {
        return Diagnosis {
            text: "the server says that it has archived it, so its archive_command stores \
                   somewhere else"
                .into(),
            hints: vec![
                "archive_command must use this configuration file: name it with --config, or in \
                 PGKEEP_CONFIG in the server's environment"
                    .into(),
                "and it must be for this cluster: --cluster, or pgdata, decide".into(),
            ],
        };
    }
    if failures > 0 {
        let (file, time) = last_failed(now);
        let which = if file == name { "it".to_owned() } else { format!("the older file {file}") };
        return Diagnosis {
            text: format!(
                "archive_command failed {failures} times meanwhile, the last time for {which} at \
                 {time}{backlog}"
            ),
            hints: vec![
                log.into(),
                "archive_command runs as the server's user: it must be able to run pgkeep, to read \
                 its configuration and key, and own the repository"
                    .into(),
            ],
        };
    }
    if archived > 0 {
        let last = now.last_archived.as_deref().unwrap_or("nothing");
        return Diagnosis {
            text: format!("the archiver is still at older files, {last} was the last{backlog}"),
            hints: vec!["wait until it has caught up, or raise archive-timeout".into()],
        };
    }
    let mut hints = vec![
        "archive_command may still be running: look for it among the server's processes".into(),
        format!("or it was killed, or exited above 125, which ends the archiver: {log}"),
    ];
    if before.failed_count > 0 {
        let (file, time) = last_failed(before);
        hints.insert(0, format!("it failed before, the last time for {file} at {time}"));
    }
    Diagnosis { text: format!("the archiver did nothing{backlog}"), hints }
}

/// The file of the last failed attempt, and when that was.
fn last_failed(archiver: &Archiver) -> (&str, String) {
    archiver.last_failed.as_ref().map_or(("", String::new()), |(file, time)| {
        (file, time.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string())
    })
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn archiver(archived: u64, last: &str, failed: u64, last_failed: &str) -> Archiver {
        Archiver {
            archived_count: archived,
            last_archived: Some(last.into()),
            failed_count: failed,
            last_failed: Some((last_failed.into(), DateTime::UNIX_EPOCH)),
            ..Archiver::default()
        }
    }

    #[test]
    fn each_way_to_fail_is_told_apart() {
        let segment: SegmentName = "000000010000000000000005".parse().unwrap();
        let old = "000000010000000000000003";
        let before = archiver(3, "000000010000000000000002", 1, old);
        let ready = |n, waits| Marks { waiting: Some(n), segment_waits: Some(waits) };
        let text = |now: Archiver, marks: Marks| explain(segment, &before, &now, &marks).text;

        let elsewhere = text(archiver(6, &segment.to_string(), 1, old), ready(0, false));
        assert!(elsewhere.contains("somewhere else"), "{elsewhere}");
        let fails = text(archiver(3, old, 4, &segment.to_string()), ready(1, true));
        assert!(fails.contains("failed 3 times") && fails.contains("for it at"), "{fails}");
        let stuck = text(archiver(3, old, 4, old), ready(3, true));
        assert!(stuck.contains(&format!("older file {old}")), "{stuck}");
        assert!(stuck.contains("3 files wait"), "{stuck}");
        let slow = text(archiver(4, old, 1, old), ready(2, true));
        assert!(slow.contains("older files") && slow.contains("2 files wait"), "{slow}");
        let dead = explain(segment, &before, &before, &Marks::default());
        assert!(dead.text.contains("did nothing"), "{}", dead.text);
        assert!(dead.hints[0].contains("it failed before"), "{:?}", dead.hints);
    }
}
