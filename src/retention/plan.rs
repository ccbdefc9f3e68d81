//! What expires: a pure function of a repository's facts and its rules.
//!
//! A backup stays when a rule keeps it. The rules `full`, `days` and `minimum` keep stretches of time:
//! from each backup that they keep, all WAL stays that can follow it. `daily` to `yearly` and pins
//! keep points: of those only the WAL from start to stop stays, as far as they don't lie in a stretch.
//!
//! "Newer" is what [`crate::repo::catalog::in_order`] says, never what a timeline or a name says. A
//! backup that can't be restored for want of its own WAL doesn't count for any rule, so that it can't
//! take the place of one that can.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use chrono::{DateTime, Datelike, Days, NaiveDate, Utc};
use serde::Serialize;

use super::facts::{BackupFacts, Facts, LastTime, SystemFacts};
use crate::{
    config::RetentionSettings,
    postgres::{Lsn, Timeline, history::TimelineHistory},
    repo::{BackupId, BackupType, SystemId},
};

/// What stays and what goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Plan {
    /// Every backup that exists, the newest last.
    pub backups: Vec<Verdict>,
    /// The timelines of which WAL goes.
    pub cuts: Vec<Cut>,
    /// From where on all WAL is left, once it is done.
    pub windows: Vec<RemainingWindow>,
}

/// What becomes of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Verdict {
    /// The backup.
    pub backup: BackupId,
    /// When it was complete.
    pub stopped_at: DateTime<Utc>,
    /// Why it stays; it goes when there is no reason.
    pub kept_by: BTreeSet<Reason>,
    /// Which of the WAL behind its start stays with it.
    pub wal: Follows,
}

impl Verdict {
    /// Whether it stays.
    pub fn stays(&self) -> bool {
        !self.kept_by.is_empty()
    }

    /// Keeps it for a reason that there wasn't when it was planned.
    pub(super) fn keep(&mut self, reason: Reason) {
        self.kept_by.insert(reason);
        self.wal = Follows::of(&self.kept_by);
    }
}

/// Why a backup stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// It is one of the newest full ones, or not older than the oldest of these.
    Full,
    /// A moment of the last days needs it.
    Days,
    /// It is the newest of its day.
    Daily,
    /// It is the newest of its week.
    Weekly,
    /// It is the newest of its month.
    Monthly,
    /// It is the newest of its year.
    Yearly,
    /// It is one of the newest that can be restored.
    Minimum,
    /// It is the newest that can be restored, of all or on the way to a timeline that goes on.
    Newest,
    /// WAL of its own is missing, so that it can't be restored as it is, and it isn't older than what
    /// the rules keep for everything since.
    Incomplete,
    /// It is being restored, as far as the restoring process's lease tells.
    Restoring,
    /// It is pinned.
    Pinned,
    /// There is no rule by which anything expires.
    NoRule,
    /// No backup can be restored: then nothing is removed.
    NoneUsable,
}

impl Reason {
    /// Whether all WAL stays that can follow the backup.
    fn keeps_wal(self) -> bool {
        match self {
            Reason::Daily
            | Reason::Weekly
            | Reason::Monthly
            | Reason::Yearly
            | Reason::Pinned
            | Reason::Incomplete => false,
            Reason::Full
            | Reason::Days
            | Reason::Minimum
            | Reason::Newest
            | Reason::Restoring
            | Reason::NoRule
            | Reason::NoneUsable => true,
        }
    }
}

impl fmt::Display for Reason {
    /// The key that keeps it, or a few words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Full => "full",
            Reason::Days => "days",
            Reason::Daily => "daily",
            Reason::Weekly => "weekly",
            Reason::Monthly => "monthly",
            Reason::Yearly => "yearly",
            Reason::Minimum => "minimum",
            Reason::Newest => "the newest",
            Reason::Incomplete => "WAL missing",
            Reason::Restoring => "being restored",
            Reason::Pinned => "pinned",
            Reason::NoRule => "no rule",
            Reason::NoneUsable => "none is usable",
        })
    }
}

/// Which WAL behind a backup's start stays with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Follows {
    /// All that there is, on every timeline that comes from it.
    All,
    /// From its start to its stop.
    Own,
    /// None: the backup goes.
    None,
}

impl Follows {
    fn of(kept_by: &BTreeSet<Reason>) -> Self {
        if kept_by.iter().any(|reason| reason.keeps_wal()) {
            Follows::All
        } else if kept_by.is_empty() {
            Follows::None
        } else {
            Follows::Own
        }
    }
}

/// The WAL of a timeline that goes: all before the floor but what backups need for themselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cut {
    /// The system.
    pub system: SystemId,
    /// The timeline.
    pub timeline: Timeline,
    /// WAL before here goes. It is where a segment begins.
    pub floor: Lsn,
    /// The number of the segment that begins there.
    #[serde(skip)]
    pub first_kept: u64,
    /// Numbers of segments that stay all the same, first and last.
    #[serde(skip)]
    pub spared: Vec<(u64, u64)>,
}

impl Cut {
    /// Whether the segment of this number goes.
    pub fn takes(&self, number: u64) -> bool {
        number < self.first_kept
            && !self.spared.iter().any(|(first, last)| (*first..=*last).contains(&number))
    }
}

/// A timeline, and the backup from which on all WAL along it stays. Gaps that there are aren't told: see
/// `info`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RemainingWindow {
    /// The system.
    pub system: SystemId,
    /// The timeline.
    pub timeline: Timeline,
    /// The backup.
    pub backup: BackupId,
    /// When that was complete.
    pub from: DateTime<Utc>,
}

/// Plans what stays and goes.
pub fn plan(rules: &RetentionSettings, facts: &Facts) -> Plan {
    let verdicts = verdicts(rules, facts);
    let lasting = with(facts, &verdicts, &[Follows::All]);
    let points = with(facts, &verdicts, &[Follows::Own]);
    let cuts = cuts(rules, facts, &lasting, &points);
    Plan { windows: windows(facts, &lasting), backups: verdicts, cuts }
}

/// The WAL that goes without harm to any backup that exists, also to those that no rule keeps: they
/// have to be marked as deleted before their WAL goes.
pub fn harmless_cuts(rules: &RetentionSettings, facts: &Facts) -> Vec<Cut> {
    let verdicts = verdicts(rules, facts);
    let lasting = with(facts, &verdicts, &[Follows::All]);
    let points = with(facts, &verdicts, &[Follows::Own, Follows::None]);
    cuts(rules, facts, &lasting, &points)
}

fn with<'f>(facts: &'f Facts, verdicts: &[Verdict], wal: &[Follows]) -> Vec<&'f BackupFacts> {
    let all = facts.backups.iter().zip(verdicts);
    all.filter(|(_, verdict)| wal.contains(&verdict.wal)).map(|(backup, _)| backup).collect()
}

fn verdicts(rules: &RetentionSettings, facts: &Facts) -> Vec<Verdict> {
    let reasons = reasons(rules, facts);
    let verdict = |(backup, kept_by): (&BackupFacts, BTreeSet<Reason>)| Verdict {
        backup: backup.record.id.clone(),
        stopped_at: backup.record.stopped_at,
        wal: Follows::of(&kept_by),
        kept_by,
    };
    facts.backups.iter().zip(reasons).map(verdict).collect()
}

/// Of each backup, why it stays.
fn reasons(rules: &RetentionSettings, facts: &Facts) -> Vec<BTreeSet<Reason>> {
    let backups = &facts.backups;
    let mut reasons: Vec<BTreeSet<Reason>> = vec![BTreeSet::new(); backups.len()];
    let mut keep = |at: usize, reason| {
        reasons[at].insert(reason);
    };
    let all = 0..backups.len();
    // The newest first.
    let usable: Vec<usize> = all.clone().rev().filter(|at| backups[*at].usable).collect();
    match (rules.has_rules(), usable.first()) {
        (false, _) => all.clone().for_each(|at| keep(at, Reason::NoRule)),
        (true, None) => all.clone().for_each(|at| keep(at, Reason::NoneUsable)),
        (true, Some(newest)) => {
            keep(*newest, Reason::Newest);
            last_before_live_ends(facts, *newest)
                .into_iter()
                .for_each(|at| keep(at, Reason::Newest));
        }
    }
    if let Some(full) = rules.full {
        let mut fulls =
            usable.iter().copied().filter(|at| backups[*at].record.kind == BackupType::Full);
        // With fewer than that, everything.
        let oldest = fulls.nth(full as usize - 1).unwrap_or(0);
        all.clone().skip(oldest).for_each(|at| keep(at, Reason::Full));
    }
    if let Some(days) = rules.days {
        needed_since(facts, begin_of_window(facts.now, days))
            .into_iter()
            .for_each(|at| keep(at, Reason::Days));
    }
    if let Some(minimum) = rules.minimum {
        usable.iter().take(minimum as usize).for_each(|at| keep(*at, Reason::Minimum));
    }
    type Period = fn(NaiveDate) -> (i32, u32);
    let periods: [(Option<u32>, Reason, Period); 4] = [
        (rules.daily, Reason::Daily, |day| (day.year(), day.ordinal())),
        (rules.weekly, Reason::Weekly, |day| {
            let week = day.iso_week();
            (week.year(), week.week())
        }),
        (rules.monthly, Reason::Monthly, |day| (day.year(), day.month())),
        (rules.yearly, Reason::Yearly, |day| (day.year(), 0)),
    ];
    for (count, reason, period) in periods {
        let mut seen = BTreeSet::new();
        for at in &usable {
            let period = period(backups[*at].record.stopped_at.date_naive());
            if seen.len() < count.unwrap_or(0) as usize && seen.insert(period) {
                keep(*at, reason);
            }
        }
    }
    for at in all.clone().filter(|at| facts.pinned.contains(&backups[*at].record.id)) {
        keep(at, Reason::Pinned);
    }
    for at in all.clone().filter(|at| facts.restoring.contains(&backups[*at].record.id)) {
        keep(at, Reason::Restoring);
    }
    // What is missing may come yet: from another push, or from another repository.
    let lasting = |at: &usize| reasons[*at].iter().any(|reason| reason.keeps_wal());
    let oldest = all.clone().find(lasting).unwrap_or(0);
    for at in all.skip(oldest).filter(|at| !backups[*at].usable) {
        reasons[at].insert(Reason::Incomplete);
    }
    reasons
}

/// Of each timeline on which the cluster may be at work now, the last backup that leads there: after
/// a recovery to an earlier moment that is an older one than the newest of all.
fn last_before_live_ends(facts: &Facts, newest: usize) -> BTreeSet<usize> {
    let since = facts.backups[newest].record.stopped_at;
    let mut last = BTreeSet::new();
    for (system, timeline, path) in paths(facts) {
        let of_system = &facts.systems[&system];
        let of_timeline = &of_system.timelines[&timeline];
        let lives = match of_timeline.last {
            LastTime::At(time) => time > since,
            // Nothing was written since it began: it may have begun just now. Its history is archived at
            // once, and its first segment only when that is full.
            LastTime::None => {
                !of_timeline.given_up && of_system.timelines.keys().next_back() == Some(&timeline)
            }
            LastTime::Unknown => true,
        };
        if lives && !of_system.was_left(timeline) {
            last.extend((0..facts.backups.len()).rev().find(|at| {
                let BackupFacts { record, usable } = &facts.backups[*at];
                *usable && record.system == system && record.lies_on(path)
            }));
        }
    }
    last
}

/// When a window of so many days begins.
fn begin_of_window(now: DateTime<Utc>, days: u32) -> DateTime<Utc> {
    now.checked_sub_days(Days::new(days.into())).unwrap_or(DateTime::<Utc>::MIN_UTC)
}

/// The backups that are needed to restore to every moment since `since`: those that are newer, and
/// for each timeline on which something happened since then, the last one before.
fn needed_since(facts: &Facts, since: DateTime<Utc>) -> BTreeSet<usize> {
    let backups = &facts.backups;
    let is_newer = |backup: &BackupFacts| backup.record.stopped_at > since;
    let all = 0..backups.len();
    let mut needed: BTreeSet<usize> = all.clone().filter(|at| is_newer(&backups[*at])).collect();
    for (system, timeline, path) in paths(facts) {
        let last = facts.systems[&system].timelines[&timeline].last;
        let of_timeline = |backup: &BackupFacts| {
            backup.record.system == system && backup.record.timeline == timeline
        };
        let lived = match last {
            LastTime::At(time) => time >= since,
            LastTime::None => false,
            LastTime::Unknown => true,
        };
        if lived || backups.iter().any(|backup| of_timeline(backup) && is_newer(backup)) {
            let before = all.clone().rev().find(|at| {
                let BackupFacts { record, usable } = &backups[*at];
                *usable
                    && !is_newer(&backups[*at])
                    && record.system == system
                    && record.lies_on(path)
            });
            needed.extend(before);
        }
    }
    needed
}

/// The timelines whose history is known.
fn paths(facts: &Facts) -> impl Iterator<Item = (SystemId, Timeline, &TimelineHistory)> {
    facts.systems.iter().flat_map(|(system, of_system)| {
        let timelines = of_system.timelines.iter();
        timelines.filter_map(|(timeline, facts)| Some((*system, *timeline, facts.path.as_ref()?)))
    })
}

fn cuts(
    rules: &RetentionSettings,
    facts: &Facts,
    lasting: &[&BackupFacts],
    points: &[&BackupFacts],
) -> Vec<Cut> {
    let mut cuts = Vec::new();
    // Of a backup that can't be read nobody knows which WAL it needs.
    if !rules.has_rules() || !facts.damaged.is_empty() {
        return cuts;
    }
    let oldest = lasting.iter().map(|backup| backup.record.started_at).min();
    for (system, of_system) in &facts.systems {
        let followed = followed(*system, of_system, lasting);
        let size = of_system.segment_size;
        // Names of segments say where they lie only with their size.
        let resized = |backup: &BackupFacts| {
            backup.record.system == *system && backup.record.segment_size != size
        };
        if facts.backups.iter().any(resized) {
            continue;
        }
        for (timeline, of_timeline) in &of_system.timelines {
            let Some((first, last)) = of_timeline.segments else { continue };
            // Nobody knows where a timeline without its history belongs.
            if of_timeline.path.is_none() {
                continue;
            }
            let first_kept = match followed.get(timeline) {
                Some(number) => *number,
                // No backup leads there. What is older than all that one can restore to goes; what
                // is newer may be a system's that waits for its first backup.
                None => match of_timeline.last {
                    LastTime::At(time) if oldest.is_some_and(|oldest| time < oldest) => last + 1,
                    LastTime::None if of_system.was_left(*timeline) => last + 1,
                    LastTime::At(_) | LastTime::None | LastTime::Unknown => continue,
                },
            };
            let running = facts.running_from.map_or(u64::MAX, |lsn| size.number_at(lsn));
            let first_kept = first_kept.min(running);
            if first_kept <= first {
                continue;
            }
            let spared = points
                .iter()
                .filter(|backup| backup.record.system == *system)
                .filter(|backup| reads(of_system, backup, *timeline));
            cuts.push(Cut {
                system: *system,
                timeline: *timeline,
                floor: size.start_of(first_kept),
                first_kept,
                spared: spared.map(|backup| own_segments(backup)).collect(),
            });
        }
    }
    cuts
}

/// Of each timeline that recovery may follow from a lasting backup, the number of the first segment
/// that may be read.
fn followed(
    system: SystemId,
    facts: &SystemFacts,
    lasting: &[&BackupFacts],
) -> BTreeMap<Timeline, u64> {
    let mut followed = BTreeMap::<Timeline, u64>::new();
    let mut follow = |timeline: Timeline, number: u64| {
        let from = followed.entry(timeline).or_insert(number);
        *from = number.min(*from);
    };
    for backup in lasting.iter().filter(|backup| backup.record.system == system) {
        let (first, _) = own_segments(backup);
        // Also where its history isn't known.
        follow(backup.record.timeline, first);
        for path in facts.timelines.values().filter_map(|timeline| timeline.path.as_ref()) {
            if backup.record.lies_on(path) {
                for (timeline, _, end) in path.path() {
                    if end.is_none_or(|end| facts.segment_size.number_at(end) >= first) {
                        follow(timeline, first);
                    }
                }
            }
        }
    }
    followed
}

/// The numbers of the segments from a backup's start to its stop, and to the byte behind it: recovery
/// to its own end stops only before a record (`restore::choose`). A standby's backup stops where replay
/// is, which behind a switch of segments is where the next one begins.
fn own_segments(backup: &BackupFacts) -> (u64, u64) {
    let record = &backup.record;
    let size = record.segment_size;
    (size.number_at(record.start_lsn), size.number_at(record.stop_lsn))
}

/// Whether a backup's own recovery may read from a timeline.
fn reads(facts: &SystemFacts, backup: &BackupFacts, timeline: Timeline) -> bool {
    let own = backup.record.timeline;
    let path = facts.timelines.get(&own).and_then(|facts| facts.path.as_ref());
    own == timeline || path.is_some_and(|path| path.contains(timeline))
}

/// Where a cluster went on: from when on.
fn windows(facts: &Facts, lasting: &[&BackupFacts]) -> Vec<RemainingWindow> {
    let window = |(system, timeline, path): (SystemId, Timeline, &TimelineHistory)| {
        let of_system = &facts.systems[&system];
        let has_wal = of_system.timelines[&timeline].segments.is_some();
        if !has_wal || of_system.was_left(timeline) {
            return None;
        }
        let first = lasting.iter().find(|backup| {
            backup.usable && backup.record.system == system && backup.record.lies_on(path)
        })?;
        Some(RemainingWindow {
            system,
            timeline,
            backup: first.record.id.clone(),
            from: first.record.stopped_at,
        })
    };
    paths(facts).filter_map(window).collect()
}
