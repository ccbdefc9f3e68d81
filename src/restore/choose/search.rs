//! Looking for the target along each path, and telling the answers apart.

use chrono::{DateTime, Utc};

use super::{Choice, Holdings, refuse};
use crate::{
    error::{Error, Kind, Result},
    postgres::{Lsn, Timeline, history::TimelineHistory},
    repo::{
        record::BackupRecord,
        replay::{KEPT_RESTORE_POINTS, Reach, Replay, Search, Stop, StopRule},
    },
    restore::{RestoreRequest, Target, TargetTimeline},
};

/// The target was found along a path.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// From this backup.
    pub record: BackupRecord,
    /// On this timeline.
    pub timeline: Timeline,
    /// Where recovery stops; `None` when it goes to the end of the WAL or stops at consistency.
    pub stop: Option<Stop>,
    /// The last transaction that will have been replayed.
    pub last_transaction: Option<DateTime<Utc>>,
}

/// The target wasn't found along a path.
pub(super) struct Missed {
    /// Why, and what is possible instead.
    pub error: Error,
    /// How far the path leads.
    pub until: Option<DateTime<Utc>>,
}

type Outcome = Result<Found, Missed>;

/// Looks along `paths` and decides.
pub(super) async fn search(
    holdings: &Holdings,
    paths: &[TimelineHistory],
    request: &RestoreRequest,
) -> Result<Choice> {
    let leaves = holdings.inventory.leaves(&holdings.backup_timelines());
    let to_the_end = request.target == Target::Latest
        && request.timeline == TargetTimeline::Unspecified
        && paths.iter().any(|path| leaves.contains(&path.timeline));
    let is_open = request.timeline == TargetTimeline::Unspecified && request.backup.is_none();
    if let (Target::Latest, true, false, Some(leaf)) =
        (&request.target, is_open, to_the_end, leaves.last())
    {
        return Err(refuse::left_behind(holdings, *leaf));
    }
    let (mut found, mut missed) = (Vec::<Found>::new(), Vec::new());
    for path in paths.iter().filter(|path| !to_the_end || leaves.contains(&path.timeline)) {
        match along(holdings, path, request).await? {
            Ok(this) if !found.iter().any(|other| same(other, &this)) => found.push(this),
            Ok(_) => {}
            Err(miss) => missed.push(miss),
        }
    }
    if let Target::Time(time) = &request.target {
        found = alive_at(holdings, found, *time).await?;
    }
    match found.len() {
        0 => Err(missed
            .into_iter()
            .max_by_key(|miss| miss.until)
            .map_or_else(|| refuse::nothing(holdings), |miss| miss.error)),
        1 => found.remove(0).into_choice(holdings, request.timeline).await,
        _ => Err(refuse::ambiguous(&request.target, &found)),
    }
}

impl Found {
    async fn into_choice(self, holdings: &Holdings, asked: TargetTimeline) -> Result<Choice> {
        // The timeline on which the record lies is enough, unless another was asked for, or the
        // archive has the parent's last records in the child's copy of that segment only.
        let timeline = match &self.stop {
            Some(stop)
                if asked == TargetTimeline::Unspecified && holdings.holds_itself(stop).await? =>
            {
                stop.timeline
            }
            _ => self.timeline,
        };
        Ok(Choice {
            record: self.record,
            timeline,
            stop: self.stop.map(|stop| stop.position),
            last_transaction: self.last_transaction,
            hole: None,
        })
    }
}

impl Holdings {
    /// Whether the record at a stop can be read along its own timeline, to its end.
    async fn holds_itself(&self, stop: &Stop) -> Result<bool> {
        let inventory = &self.inventory;
        let Some(path) = inventory.path(stop.timeline) else { return Ok(false) };
        let replay = Replay { store: &self.store, inventory, path };
        let mut number = inventory.segment_size.number_at(stop.record);
        while let Some(segment) = replay.segment(number).await? {
            if segment.summary.end > stop.record {
                return Ok(true);
            }
            // It goes on in the next one, if there is one.
            if !segment.summary.whole {
                break;
            }
            number += 1;
        }
        Ok(false)
    }
}

/// Whether two paths lead to the same record.
fn same(a: &Found, b: &Found) -> bool {
    match (&a.stop, &b.stop) {
        (Some(a), Some(b)) => (a.timeline, a.record) == (b.timeline, b.record),
        _ => a.timeline == b.timeline,
    }
}

/// Leaves out the answers that are no timeline's state at `time`.
///
/// A commit later than the target, on a timeline that began only after it, says that the end of another contains
/// the target: of the one that the path was on at that time. That one had to be asked for its own state, and this
/// answer has it only as far as the path follows it. Where another answer goes on along it from there, it was
/// further by then, and the other has that; for its own later commit that is so in any case. Where none does, this
/// is the only answer that has its state, whatever other timelines lived at that time.
async fn alive_at(
    holdings: &Holdings,
    found: Vec<Found>,
    time: DateTime<Utc>,
) -> Result<Vec<Found>> {
    if found.len() < 2 {
        return Ok(found);
    }
    let mut alive = Vec::new();
    for this in &found {
        let is_passed = match left_after(holdings, this, time).await? {
            Some((timeline, end)) => {
                found.iter().any(|other| goes_on(holdings, other, timeline, end))
            }
            None => false,
        };
        if !is_passed {
            alive.push(this.clone());
        }
    }
    Ok(alive)
}

/// The timeline that an answer's path was on at `time`, and where the path leaves it before it stops; `None` where
/// it stops on that timeline.
async fn left_after(
    holdings: &Holdings,
    found: &Found,
    time: DateTime<Utc>,
) -> Result<Option<(Timeline, Lsn)>> {
    let path = holdings.inventory.path(found.timeline);
    let (Some(stop), Some(path)) = (&found.stop, path) else { return Ok(None) };
    for (timeline, _, end) in path.path().rev().skip_while(|(t, ..)| *t != stop.timeline) {
        if begun_at(holdings, timeline).await?.is_none_or(|begun| begun <= time) {
            let end = end.filter(|_| timeline != stop.timeline);
            return Ok(end.map(|end| (timeline, end)));
        }
    }
    Ok(None)
}

/// Whether an answer's path follows `timeline` beyond `lsn`, before it stops.
fn goes_on(holdings: &Holdings, found: &Found, timeline: Timeline, lsn: Lsn) -> bool {
    let path = holdings.inventory.path(found.timeline);
    path.is_some_and(|path| path.timeline_at(lsn) == timeline)
        && found.stop.as_ref().is_some_and(|stop| stop.record >= lsn)
}

/// When a timeline was begun, by the record of the promotion, if that is in its first segment and can be read:
/// recovery may begin behind it.
async fn begun_at(holdings: &Holdings, timeline: Timeline) -> Result<Option<DateTime<Utc>>> {
    let inventory = &holdings.inventory;
    let Some(path) = inventory.path(timeline) else { return Ok(None) };
    let Some(begin) = path.begin_of(timeline).filter(|lsn| lsn.is_valid()) else { return Ok(None) };
    let replay = Replay { store: &holdings.store, inventory, path };
    let first = match replay.segment(inventory.segment_size.number_at(begin)).await {
        Err(e) if e.kind() == Kind::Damaged => {
            tracing::warn!("{e}");
            return Ok(None);
        }
        first => first?,
    };
    Ok(first.and_then(|segment| {
        let promotions = segment.summary.end_of_recovery;
        promotions.iter().find(|p| p.timeline == timeline).map(|p| p.time)
    }))
}

/// Looks for the target along one path.
async fn along(
    holdings: &Holdings,
    path: &TimelineHistory,
    request: &RestoreRequest,
) -> Result<Outcome> {
    let replay = Replay { store: &holdings.store, inventory: &holdings.inventory, path };
    let exclusive = request.exclusive;
    match &request.target {
        Target::Latest | Target::Immediate => to_the_end(holdings, &replay, &request.target).await,
        Target::Time(time) => {
            let rule = StopRule::Time { time: *time, exclusive };
            let usable = |record: &BackupRecord| record.stopped_at <= *time;
            forward(holdings, &replay, &request.target, &rule, usable).await
        }
        Target::Lsn(lsn) => {
            let rule = StopRule::Lsn { lsn: *lsn, exclusive };
            let usable = |record: &BackupRecord| record.stop_lsn <= *lsn;
            forward(holdings, &replay, &request.target, &rule, usable).await
        }
        Target::Xid(xid) => {
            let rule = StopRule::Xid { xid: *xid, exclusive };
            backward(holdings, &replay, &request.target, &rule).await
        }
        Target::Name(name) => {
            backward(holdings, &replay, &request.target, &StopRule::Name(name.clone())).await
        }
    }
}

/// The newest backup on the path, to its own end or to that of the WAL.
async fn to_the_end(holdings: &Holdings, replay: &Replay<'_>, target: &Target) -> Result<Outcome> {
    let Some(record) = holdings.on_path(replay.path).next() else {
        return Ok(Err(refuse::before_first(holdings, replay.path, target)));
    };
    let first = record.segment_size.number_at(record.start_lsn);
    let reach = replay.end_from(first).await?;
    if reach.end < record.stop_lsn {
        return Ok(Err(refuse::not_consistent(record, &reach)));
    }
    // The server looks for the end of the backup before it replays a record (`xlogrecovery.c`,
    // `recoveryStopsBefore`), so there has to be one behind it.
    if *target == Target::Immediate && reach.end <= record.stop_lsn {
        return Ok(Err(refuse::nothing_behind(record)));
    }
    if *target == Target::Latest && reach.gap {
        return Ok(Err(refuse::beyond(record, target, &reach)));
    }
    if let (Target::Latest, Some(instead)) = (target, reach.astray) {
        return Ok(Err(refuse::astray(replay.path, instead, &reach)));
    }
    let last_transaction = match target {
        Target::Latest => reach.last_transaction.map(|last| last.time),
        _ => None,
    };
    Ok(Ok(Found {
        record: record.clone(),
        timeline: replay.path.timeline,
        stop: None,
        last_transaction,
    }))
}

/// A target whose side of a backup is known beforehand: from the newest backup that is `usable`
/// for it.
async fn forward(
    holdings: &Holdings,
    replay: &Replay<'_>,
    target: &Target,
    rule: &StopRule,
    usable: impl Fn(&BackupRecord) -> bool,
) -> Result<Outcome> {
    for record in holdings.on_path(replay.path).filter(|record| usable(record)) {
        match replay.find_stop(record.start_lsn, rule, None).await? {
            Search::Found { stop, before } if stop.position >= record.stop_lsn => {
                return Ok(Ok(found(record, replay, stop, before)));
            }
            // A clock stepped back: this backup already has something later than the target.
            Search::Found { .. } => {}
            Search::NotFound(reach) => {
                return Ok(Err(if reach.end < record.stop_lsn {
                    refuse::not_consistent(record, &reach)
                } else {
                    refuse::beyond(record, target, &reach)
                }));
            }
        }
    }
    Ok(Err(refuse::before_first(holdings, replay.path, target)))
}

/// A target whose place is unknown: looked for from the newest backup to the oldest, each time up
/// to where the search before began.
async fn backward(
    holdings: &Holdings,
    replay: &Replay<'_>,
    target: &Target,
    rule: &StopRule,
) -> Result<Outcome> {
    let mut until: Option<Lsn> = None;
    let mut behind: Option<(Stop, Option<DateTime<Utc>>)> = None;
    let mut end: Option<(&BackupRecord, Reach)> = None;
    for record in holdings.on_path(replay.path) {
        match replay.find_stop(record.start_lsn, rule, until).await? {
            Search::Found { stop, before } => behind = Some((stop, before)),
            Search::NotFound(reach) => {
                // The WAL from here ends before the newer backup begins: nothing behind can be reached from
                // here, nor from an older one. What lies before can.
                let size = record.segment_size;
                let is_cut = reach.missing.number(size) < until.map(|lsn| size.number_at(lsn));
                let is_lost = is_cut && behind.take().is_some();
                match &mut end {
                    // What there is in all stretches is worth naming.
                    Some((_, end)) if !is_lost => {
                        let mut points = reach.restore_points;
                        points.append(&mut end.restore_points);
                        end.restore_points =
                            points.split_off(points.len().saturating_sub(KEPT_RESTORE_POINTS));
                        end.last_transaction = end.last_transaction.or(reach.last_transaction);
                    }
                    _ => end = Some((record, reach)),
                }
            }
        }
        if let Some((stop, before)) = &behind
            && stop.position >= record.stop_lsn
        {
            return Ok(Ok(found(record, replay, stop.clone(), *before)));
        }
        until = Some(record.start_lsn);
    }
    Ok(Err(match end {
        Some((record, reach)) if reach.end < record.stop_lsn => {
            refuse::not_consistent(record, &reach)
        }
        Some((record, reach)) if behind.is_none() => refuse::beyond(record, target, &reach),
        _ => refuse::before_first(holdings, replay.path, target),
    }))
}

fn found(
    record: &BackupRecord,
    replay: &Replay<'_>,
    stop: Stop,
    before: Option<DateTime<Utc>>,
) -> Found {
    Found {
        record: record.clone(),
        timeline: replay.path.timeline,
        stop: Some(stop),
        last_transaction: before,
    }
}
