//! What a loss costs: which moments can't be restored to.
//!
//! A moment is a position on a timeline. It can be restored to if some backup stopped before it and
//! all segments from that backup's start up to it are there. So what is lost is the difference
//! between what all backups and all segments reach, and what those reach that a finding leaves. A
//! backup that is lost costs no moment if an older one reaches its moments.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use super::{archive::Archive, findings::Loss, report::Moments};
use crate::{
    error::{Error, Kind, Result},
    postgres::{Lsn, Timeline, history::TimelineHistory},
    repo::{
        record::BackupRecord,
        replay::{Replay, Search, StopRule},
    },
};

/// How far back the last transaction before a position is looked for, in segments.
const LOOK_BACK: u64 = 64;

/// Positions of one timeline: stretches from the first up to the second, sorted and apart.
type Stretches = Vec<(Lsn, Lsn)>;

impl Archive {
    /// The moments that a loss costs.
    pub async fn moments(&self, loss: &Loss) -> Result<Vec<Moments>> {
        if loss.timeline.is_some_and(|(system, _)| system == self.system) {
            return self.whole_timeline(loss).await;
        }
        let ideal = self.reached(&Loss::default());
        let left = self.reached(loss);
        let mut moments = Vec::new();
        for (timeline, stretches) in ideal {
            let left = left.get(&timeline).map_or(&[][..], Vec::as_slice);
            for (from, until) in without(stretches, left) {
                moments.push(Moments {
                    system: self.system,
                    timeline,
                    from_lsn: from,
                    until_lsn: until,
                    from: self.time_at(timeline, from).await?,
                    until: self.stopped_at(timeline, until),
                });
            }
        }
        Ok(moments)
    }

    /// All of a timeline's own WAL: nobody knows where it belongs.
    async fn whole_timeline(&self, loss: &Loss) -> Result<Vec<Moments>> {
        let Some((system, timeline)) = loss.timeline else { return Ok(Vec::new()) };
        let wal = self.inventory.timelines().find(|(t, _)| *t == timeline).map(|(_, wal)| wal);
        let ranges = wal.map(|wal| wal.ranges.as_slice()).unwrap_or_default();
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else {
            return Ok(Vec::new());
        };
        let size = self.inventory.segment_size;
        Ok(vec![Moments {
            system,
            timeline,
            from_lsn: size.start_of(first.first),
            until_lsn: size.start_of(last.last + 1),
            from: None,
            until: None,
        }])
    }

    /// Which positions can be restored to, by timeline.
    fn reached(&self, loss: &Loss) -> BTreeMap<Timeline, Stretches> {
        let mut reached: BTreeMap<Timeline, Stretches> = BTreeMap::new();
        for path in self.inventory.known() {
            for record in self.backups.iter().filter(|record| record.lies_on(path)) {
                if loss.backups.contains(&record.id) {
                    continue;
                }
                let end = self.end_of(path, record, loss);
                for (timeline, begin, left) in path.path() {
                    let from = begin.max(record.stop_lsn);
                    let until = left.map_or(end, |left| left.min(end));
                    if from < until {
                        reached.entry(timeline).or_default().push((from, until));
                    }
                }
            }
        }
        reached.values_mut().for_each(|stretches| *stretches = joined(std::mem::take(stretches)));
        reached
    }

    /// How far recovery comes from a backup along a path when this is lost; 0/0 if the backup doesn't
    /// become consistent.
    fn end_of(&self, path: &TimelineHistory, record: &BackupRecord, loss: &Loss) -> Lsn {
        let size = self.inventory.segment_size;
        let first = size.number_at(record.start_lsn);
        let stop = size.number_before(record.stop_lsn);
        let mut end = self.end_of_path(path, record).max(stop + 1);
        if let Some((system, timeline, from, to)) = loss.wal
            && system == self.system
        {
            let on_path = |n: &u64| {
                path.timeline_of_segment(*n, size) == timeline
                    || self.inventory.partial(path, *n) == Some(size.name(timeline, *n))
            };
            let lost = (from.max(first)..=to.min(end)).find(on_path);
            end = lost.map_or(end, |lost| lost.min(end));
        }
        if end <= stop { Lsn::INVALID } else { size.start_of(end) }
    }

    /// The last moment before a position: the end of a transaction, or of a backup.
    async fn time_at(&self, timeline: Timeline, lsn: Lsn) -> Result<Option<DateTime<Utc>>> {
        let before = |record: &&BackupRecord| record.timeline == timeline && record.stop_lsn <= lsn;
        let backup = self.backups.iter().filter(before).map(|record| record.stopped_at).max();
        Ok(backup.max(self.last_transaction(timeline, lsn).await?))
    }

    /// The time of the last transaction before a position, if it isn't too far back.
    async fn last_transaction(
        &self,
        timeline: Timeline,
        lsn: Lsn,
    ) -> Result<Option<DateTime<Utc>>> {
        let size = self.inventory.segment_size;
        let Some(path) = self.inventory.path(timeline) else { return Ok(None) };
        let replay = Replay { store: &self.store, inventory: &self.inventory, path };
        let last = size.number_before(lsn);
        // In its own segment only what ends before it counts.
        let rule = StopRule::Lsn { lsn, exclusive: true };
        let in_last =
            match replay.find_stop(size.start_of(last), &rule, Some(size.start_of(last + 1))).await
            {
                Ok(Search::Found { before, .. }) => before,
                Ok(Search::NotFound(reach)) => reach.last_transaction.map(|last| last.time),
                Err(e) if is_outage(&e) => return Err(e),
                Err(_) => return Ok(None),
            };
        if in_last.is_some() {
            return Ok(in_last);
        }
        for number in (last.saturating_sub(LOOK_BACK)..last).rev() {
            let segment = match replay.segment(number).await {
                Ok(Some(segment)) => segment,
                Err(e) if is_outage(&e) => return Err(e),
                Ok(None) | Err(_) => return Ok(None),
            };
            if let Some(range) = segment.summary.transactions {
                return Ok(Some(range.last_time));
            }
        }
        Ok(None)
    }

    /// When the backup was complete that stops at this position.
    fn stopped_at(&self, timeline: Timeline, lsn: Lsn) -> Option<DateTime<Utc>> {
        let here = |record: &&BackupRecord| (record.timeline, record.stop_lsn) == (timeline, lsn);
        self.backups.iter().find(here).map(|record| record.stopped_at)
    }
}

/// Whether the WAL couldn't be asked, and says nothing by that.
fn is_outage(e: &Error) -> bool {
    !matches!(e.kind(), Kind::Damaged | Kind::Wal | Kind::Conflict)
}

/// Stretches sorted, and those that touch made one.
fn joined(mut stretches: Stretches) -> Stretches {
    stretches.sort_unstable();
    let mut joined: Stretches = Vec::new();
    for (from, until) in stretches {
        match joined.last_mut() {
            Some((_, end)) if *end >= from => *end = until.max(*end),
            _ => joined.push((from, until)),
        }
    }
    joined
}

/// What of `all` isn't in `some`.
fn without(all: Stretches, some: &[(Lsn, Lsn)]) -> Stretches {
    let mut rest = Vec::new();
    for (mut from, until) in all {
        for (begin, end) in some {
            if *begin > from && *begin < until {
                rest.push((from, *begin));
            }
            if *begin < until {
                from = from.max(*end);
            }
        }
        if from < until {
            rest.push((from, until));
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretches(list: &[(u64, u64)]) -> Stretches {
        list.iter().map(|(from, until)| (Lsn(*from), Lsn(*until))).collect()
    }

    #[test]
    fn stretches_are_joined_and_taken_from_each_other() {
        assert_eq!(
            joined(stretches(&[(5, 7), (1, 3), (2, 4), (7, 9)])),
            stretches(&[(1, 4), (5, 9)])
        );
        let all = || stretches(&[(1, 10), (20, 30)]);
        for (some, rest) in [
            (&[][..], &[(1, 10), (20, 30)][..]),
            (&[(1, 30)], &[]),
            (&[(0, 2), (4, 5), (9, 21)], &[(2, 4), (5, 9), (21, 30)]),
            (&[(10, 20)], &[(1, 10), (20, 30)]),
            (&[(5, 6)], &[(1, 5), (6, 10), (20, 30)]),
        ] {
            assert_eq!(without(all(), &stretches(some)), stretches(rest), "{some:?}");
        }
    }
}
