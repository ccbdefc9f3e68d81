//! Refusals: each says why the target can't be reached and what can.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};

use super::{
    Holdings, described,
    named::Named,
    search::{Found, Missed},
};
use crate::{
    error::{Error, Kind},
    postgres::{SegmentName, Timeline, history::TimelineHistory},
    repo::{SystemId, record::BackupRecord, replay::Reach},
    restore::{Target, plan::server_time},
};

/// The timeline that was asked for has no history here.
pub(super) fn unknown_timeline(holdings: &Holdings, timeline: Timeline) -> Error {
    let known: Vec<_> = holdings.inventory.known().map(|p| p.timeline.to_string()).collect();
    let address = holdings.store.repository().storage().address();
    Error::new(
        Kind::Target,
        format!(
            "timeline {timeline} is not known in {address}: there is no {}",
            timeline.history_file()
        ),
    )
    .hint(format!("known timelines: {}", known.join(", ")))
}

/// A timeline has WAL or a backup here, and nobody can say where it comes from: it may be the one
/// on which the cluster went on.
pub(super) fn without_history(holdings: &Holdings, timeline: Timeline) -> Error {
    let known: Vec<_> = holdings.inventory.known().map(|p| p.timeline.to_string()).collect();
    let file = timeline.history_file();
    Error::new(
        Kind::Target,
        format!(
            "timeline {timeline} has WAL or a backup in {}, but its history file {file} is missing, \
             so it can't be told whether the cluster went on there",
            holdings.store.repository().storage().address()
        ),
    )
    .hint(format!("on a server that has it: pgkeep archive-push pg_wal/{file}"))
    .hint(format!("to restore without that timeline: --target-timeline, one of {}", known.join(", ")))
}

/// The cluster went on along a timeline to which no backup leads: the ends of those that it left are no answer.
pub(super) fn left_behind(holdings: &Holdings, timeline: Timeline) -> Error {
    let error = no_backup_on(holdings, timeline);
    match holdings.records.last() {
        Some(record) => error.hint(format!(
            "to restore what was written on timeline {}, as far as it goes: --target-timeline {}",
            record.timeline, record.timeline
        )),
        None => error,
    }
}

/// No backup lies on the timeline that was asked for.
pub(super) fn no_backup_on(holdings: &Holdings, timeline: Timeline) -> Error {
    let error = Error::new(
        Kind::Target,
        format!("no backup that may be taken lies on the way to timeline {timeline}"),
    );
    match holdings.records.first() {
        Some(record) => error.hint(format!(
            "the oldest one is {}, of timeline {}; `pgkeep info` lists them all",
            described(record),
            record.timeline
        )),
        None => error.hint("take a backup first"),
    }
}

/// Nothing at all to go by.
pub(super) fn nothing(holdings: &Holdings) -> Error {
    no_backup_on(holdings, Timeline(1))
}

/// Adds to a refusal that only one of the cluster's systems was looked at. `others` are the backups of its others,
/// the newest last. Without a target it is the newest system that is meant.
pub(super) fn in_one_system(
    error: Error,
    target: &Target,
    system: SystemId,
    others: &[BackupRecord],
) -> Error {
    if !matches!(error.kind(), Kind::Target | Kind::Wal)
        || matches!(target, Target::Latest | Target::Immediate)
    {
        return error;
    }
    let mut named = BTreeSet::new();
    let newest = others.iter().rev().filter(|record| named.insert(record.system));
    newest.fold(error, |error, record| {
        error.hint(format!(
            "only system {system} was looked at; for what system {} wrote: --backup {}, its newest, or an \
             older one",
            record.system, record.id
        ))
    })
}

/// The target lies before the first backup on the path was complete.
pub(super) fn before_first(holdings: &Holdings, path: &TimelineHistory, target: &Target) -> Missed {
    let first = holdings.on_path(path).last();
    let error = match first {
        None => no_backup_on(holdings, path.timeline),
        Some(record) => {
            let possible = match target {
                Target::Lsn(_) => {
                    format!("the earliest possible target is LSN {}", record.stop_lsn)
                }
                _ => format!("the earliest possible target is {}", server_time(record.stopped_at)),
            };
            Error::new(
                Kind::Target,
                format!(
                    "{target} comes before the first backup was complete: {}",
                    described(record)
                ),
            )
            .hint(possible)
            .hint(format!(
                "--target-immediate --backup {} brings the state at that backup's end",
                record.id
            ))
        }
    };
    Missed { error, until: None }
}

/// The WAL that the backup itself needs isn't all there.
pub(super) fn not_consistent(record: &BackupRecord, reach: &Reach) -> Missed {
    let error = Error::new(
        Kind::Wal,
        format!(
            "segment {} is missing, which backup {} needs: its WAL goes from {} to {}",
            reach.missing,
            record.id,
            record.start_segment(),
            record.stop_segment()
        ),
    )
    .hint(format!(
        "if it is still in a server's pg_wal: pgkeep archive-push pg_wal/{}",
        reach.missing
    ))
    .hint("another backup may be whole: `pgkeep info` lists them; choose it with --backup");
    Missed { error, until: None }
}

/// Nothing was written behind the end of the backup that recovery could stop before.
pub(super) fn nothing_behind(record: &BackupRecord) -> Missed {
    let error = Error::new(
        Kind::Target,
        format!(
            "there is no WAL behind the end of backup {} at {}, and without any the server doesn't know \
             that it has come to its end",
            record.id, record.stop_lsn
        ),
    )
    .hint("restore without a target: that ends at the same place")
    .hint("or wait until something was written and has arrived in the repository");
    Missed { error, until: Some(record.stopped_at) }
}

/// The first segment of a timeline isn't there, and its parent has one that the server would take for it.
pub(super) fn astray(path: &TimelineHistory, instead: SegmentName, reach: &Reach) -> Missed {
    let missing = reach.missing;
    let parent = instead.timeline;
    let left = path.end_of(parent).flatten().unwrap_or(reach.end);
    let error = Error::new(
        Kind::Wal,
        format!(
            "segment {missing} isn't there, with which timeline {} begins; the server would go on with {instead} \
             and what timeline {parent} has after {left}, where it was left",
            missing.timeline
        ),
    )
    .hint(format!("if it is still in a server's pg_wal: pgkeep archive-push pg_wal/{missing}"))
    .hint(format!(
        "to restore what timeline {} begins with: --target-timeline {parent} --target-lsn {left} \
         --target-exclusive",
        missing.timeline
    ));
    Missed { error, until: reach.last_transaction.map(|last| last.time) }
}

/// The WAL ends, or has a gap, before the target.
pub(super) fn beyond(record: &BackupRecord, target: &Target, reach: &Reach) -> Missed {
    let timeline = reach.missing.timeline;
    let last = reach.last_transaction.map(|last| last.time);
    let until = last.unwrap_or(record.stopped_at);
    let known = match last {
        Some(last) => {
            format!("the last transaction that can be restored ended at {}", server_time(last))
        }
        None => format!("there is no transaction after backup {}", described(record)),
    };
    let what = match target {
        Target::Latest => "the WAL has a gap".to_owned(),
        Target::Name(_) | Target::Xid(_) => {
            format!("{target} is not in the WAL on timeline {timeline}")
        }
        _ => format!("{target} comes after the end of the WAL on timeline {timeline}"),
    };
    let place = if reach.gap {
        format!("segment {} is missing and there is more WAL behind it", reach.missing)
    } else {
        format!("the WAL ends at LSN {}, before segment {}", reach.end, reach.missing)
    };
    let kind = if reach.gap { Kind::Wal } else { Kind::Target };
    let mut error = Error::new(kind, format!("{what}: {place}; {known}"));
    if matches!(target, Target::Name(_)) && !reach.restore_points.is_empty() {
        let named: Vec<_> = reach
            .restore_points
            .iter()
            .map(|(name, time)| format!("{name:?} ({})", server_time(*time)))
            .collect();
        error = error.hint(format!("restore points there are: {}", named.join(", ")));
    }
    if reach.gap {
        error = error.hint(format!(
            "if it is still in a server's pg_wal: pgkeep archive-push pg_wal/{}",
            reach.missing
        ));
        if let Some(last) = reach.last_transaction {
            error = error.hint(format!(
                "to restore up to the gap: --target-xid {}, its last transaction, or an earlier target",
                last.xid
            ));
        }
    } else {
        error = error.hint("leave the target out to restore to the end of the WAL");
        if let (Target::Time(_), Some(last)) = (target, reach.last_transaction) {
            error = error.hint(format!(
                "to stop right after that transaction: --target-xid {}; a target time needs a later \
                 one in the WAL",
                last.xid
            ));
        }
        if !matches!(target, Target::Name(_) | Target::Xid(_)) {
            error = error.hint(
                "if the server still runs, `SELECT pg_switch_wal()` brings its newest WAL into the \
                 archive",
            );
        }
    }
    Missed { error, until: Some(until) }
}

/// Several timelines contain the target. That is a question of what was asked for: another
/// repository, which may hold one of them only, doesn't answer it.
pub(super) fn ambiguous(target: &Target, found: &[Found]) -> Error {
    let mut error = Error::new(
        Kind::Usage,
        format!("{} timelines that don't come from one another contain {target}", found.len()),
    );
    for this in found {
        let timeline = this.stop.as_ref().map_or(this.timeline, |stop| stop.timeline);
        let until =
            |time: DateTime<Utc>| format!(", last transaction then at {}", server_time(time));
        error = error.hint(format!(
            "--target-timeline {timeline}: from backup {}{}",
            this.record.id,
            this.last_transaction.map(until).unwrap_or_default()
        ));
    }
    error
}

/// How many restore points of one name are listed: the last ones.
const LISTED_POINTS: usize = 20;

/// Several restore points have the name: a question too.
pub(super) fn named_several(name: &str, points: &[Named]) -> Error {
    let mut error = Error::new(
        Kind::Usage,
        format!("{} restore points that can be reached are called {name:?}", points.len()),
    );
    let timelines: BTreeSet<_> = points.iter().map(|named| named.point.timeline).collect();
    let earlier = points.len().saturating_sub(LISTED_POINTS);
    if earlier > 0 {
        error = error.hint(format!("{earlier} earlier ones aren't listed here"));
    }
    for Named { point, from } in points.iter().skip(earlier) {
        let along = match timelines.len() {
            1 => String::new(),
            _ => format!(" --target-timeline {}", point.timeline),
        };
        let from = from.as_ref().map(|id| format!("; or by this name with --backup {id}{along}"));
        error = error.hint(format!(
            "of {}, LSN {}, timeline {}: --target-lsn {} --target-exclusive{along}{}",
            server_time(point.time),
            point.end,
            point.timeline,
            point.end,
            from.unwrap_or_default()
        ));
    }
    error.hint("with --backup the first one behind that backup is taken")
}
