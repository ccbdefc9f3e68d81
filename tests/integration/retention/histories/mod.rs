//! Years of random histories: what the rules promise is there after each expiry, and nothing else.
//!
//! A world has systems, timelines, WAL and backups; servers fail over, are taken back in time and are
//! upgraded, clocks go back, WAL gets lost, backups are pinned. Every now and then something expires,
//! by random rules, and the world is compared with what it was before, by means that know nothing of
//! how the planning works: each moment is looked for by walking along segments.

mod quiet;
mod world;

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use chrono::Duration;
use pgkeep::{
    config::RetentionSettings,
    postgres::{Timeline, history::TimelineHistory},
    repo::{BackupId, BackupType, record::BackupRecord},
    retention::{
        facts::Facts,
        plan::{Plan, Reason, plan},
    },
};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};

use world::{Moment, SIZE, World, system};

/// How many worlds, unless the environment says another number, and how much happens in each.
const WORLDS: u32 = 2000;
const WORLDS_VARIABLE: &str = "PGKEEP_TEST_WORLDS";
const EVENTS: usize = 200;

/// The newest usable backup of each of the last periods.
fn newest_of_periods(world: &World, count: Option<u32>, format: &str) -> BTreeSet<BackupId> {
    let mut newest = BTreeMap::new();
    let mut order = Vec::new();
    for record in world.usable().into_iter().rev() {
        let period = record.stopped_at.format(format).to_string();
        if let Entry::Vacant(vacant) = newest.entry(period) {
            order.push(vacant.key().clone());
            vacant.insert(record.id.clone());
        }
    }
    order.truncate(count.unwrap_or(0) as usize);
    order.iter().map(|period| newest[period].clone()).collect()
}

type Planner = fn(&RetentionSettings, &mut Facts) -> Plan;

fn sound(rules: &RetentionSettings, facts: &mut Facts) -> Plan {
    plan(rules, facts)
}

/// Reasons for which a backup keeps no WAL but its own.
const POINTS: [&str; 6] = ["daily", "weekly", "monthly", "yearly", "pinned", "WAL missing"];

/// Expires as `planner` plans it, and compares.
fn expire(
    world: &mut World,
    rules: &RetentionSettings,
    planner: Planner,
) -> Result<(), TestCaseError> {
    let before = world.clone();
    let planned = planner(rules, &mut world.facts());
    world.carry_out(&planned);
    let left: BTreeSet<&BackupId> = world.backups.iter().map(|record| &record.id).collect();

    // What could be restored and is listed can be restored.
    for record in &world.backups {
        prop_assert_eq!(before.is_usable(record), world.is_usable(record), "{}", record.id);
        let ends = (before.has_its_end(record), world.has_its_end(record));
        prop_assert_eq!(ends.0, ends.1, "the end of {}", record.id);
    }
    // The rules that count.
    let usable = before.usable();
    let newest_first = usable.iter().rev();
    let mut demanded: BTreeSet<BackupId> =
        newest_first.clone().take(1).map(|record| record.id.clone()).collect();
    let minimum = rules.minimum.unwrap_or(0) as usize;
    demanded.extend(newest_first.clone().take(minimum).map(|record| record.id.clone()));
    for (count, format) in [
        (rules.daily, "%F"),
        (rules.weekly, "%G-%V"),
        (rules.monthly, "%Y-%m"),
        (rules.yearly, "%Y"),
    ] {
        demanded.extend(newest_of_periods(&before, count, format));
    }
    demanded.extend(
        world.pinned.iter().filter(|id| before.backups.iter().any(|r| r.id == **id)).cloned(),
    );
    for id in &demanded {
        prop_assert!(left.contains(id), "{} was demanded", id);
    }
    for record in newest_first.clone().take(minimum.max(1)) {
        prop_assert!(
            before.reach(record).is_subset(&world.reach(record)),
            "moments after {} are gone",
            record.id
        );
    }
    // The newest fulls, and everything since the oldest of them.
    let mut since_full = None;
    if let Some(full) = rules.full {
        let fulls: Vec<_> = newest_first.clone().filter(|r| r.kind == BackupType::Full).collect();
        let oldest = fulls.get(full as usize - 1).map(|record| &record.id);
        let from = oldest.map_or(0, |id| before.backups.iter().position(|r| r.id == *id).unwrap());
        since_full = Some(from);
        for record in &before.backups[from..] {
            prop_assert!(left.contains(&record.id), "{} is since the oldest full", record.id);
            prop_assert!(
                before.reach(record).is_subset(&world.reach(record)),
                "moments after {} are gone",
                record.id
            );
        }
    }
    // Every moment of the window.
    let since = rules.days.map(|days| before.now - Duration::days(days.into()));
    if let (Some(since), false) = (since, before.clock_went_back) {
        let (had, has) = (before.moments(since), world.moments(since));
        let lost: Vec<_> = had.difference(&has).collect();
        prop_assert!(lost.is_empty(), "since {since}: {lost:?}");
    }
    // Where the server is at work, what could be restored can be.
    let server = &before.systems[&before.current];
    let here = (before.current, server.timeline);
    let newest = usable.last().map(|record| record.stopped_at);
    if let (Some(newest), false) = (newest, before.clock_went_back) {
        let of_server = |world: &World| -> BTreeSet<Moment> {
            let moments = world.moments(newest + Duration::seconds(1)).into_iter();
            moments.filter(|(system, timeline, _)| (*system, *timeline) == here).collect()
        };
        let (had, has) = (of_server(&before), of_server(world));
        let lost: Vec<_> = had.difference(&has).collect();
        prop_assert!(lost.is_empty(), "where the server is at work: {lost:?}");
    }
    // What it writes next on a timeline that has had no transaction yet can be, too.
    let begins = &server.timelines[&server.timeline];
    if begins.floor == 0 && begins.segments.values().all(|time| time.is_none()) {
        let next = |world: &World| -> BTreeSet<Moment> {
            let mut world = world.clone();
            world.write(1, true);
            let moments = world.moments(world.now).into_iter();
            moments.filter(|(system, timeline, _)| (*system, *timeline) == here).collect()
        };
        let (can, could) = (next(world), next(&before));
        prop_assert!(could.is_subset(&can), "what the server writes next: {could:?}, {can:?}");
    }
    // Nothing stays without a reason.
    let none_usable = usable.is_empty();
    for (at, record) in before.backups.iter().enumerate() {
        let by_days = since.is_some_and(|since| {
            let paths = before.systems[&record.system].timelines.values();
            record.stopped_at > since
                || paths.map(|timeline| &timeline.path).any(|path| {
                    let on_path = |r: &&&BackupRecord| {
                        r.system == record.system && r.stopped_at <= since && r.lies_on(path)
                    };
                    newest_first.clone().find(on_path).is_some_and(|r| r.id == record.id)
                })
        });
        // What lacks WAL stays as long as what is older stays for everything since.
        let incomplete = !before.is_usable(record)
            && planned.backups[..at].iter().chain(&planned.backups[at..=at]).any(|verdict| {
                verdict.kept_by.iter().any(|reason| !POINTS.contains(&reason.to_string().as_str()))
            });
        let leads_on = before.systems[&record.system].timelines.values().any(|timeline| {
            let on_path =
                |r: &&&BackupRecord| r.system == record.system && r.lies_on(&timeline.path);
            newest_first.clone().find(on_path).is_some_and(|r| r.id == record.id)
        });
        let reason = none_usable
            || incomplete
            || leads_on
            || !rules.has_rules()
            || by_days
            || demanded.contains(&record.id)
            || since_full.is_some_and(|from| at >= from);
        prop_assert!(reason || !left.contains(&record.id), "{} stays for no reason", record.id);
    }
    // Nor does WAL, where there is only one timeline for it to belong to.
    let simple = world.systems.len() == 1 && world.systems[&system(1)].timelines.len() == 1;
    if simple && rules.has_rules() && !none_usable {
        let lasting = planned.backups.iter().filter(|v| {
            v.kept_by.iter().any(|reason| {
                !["daily", "weekly", "monthly", "yearly", "pinned"]
                    .contains(&reason.to_string().as_str())
            })
        });
        let lasting: BTreeSet<_> = lasting.map(|verdict| &verdict.backup).collect();
        let first = |record: &BackupRecord| SIZE.number_at(record.start_lsn);
        let from = world.backups.iter().filter(|r| lasting.contains(&r.id)).map(first).min();
        for number in world.systems[&system(1)].timelines[&Timeline(1)].segments.keys() {
            let own = world
                .backups
                .iter()
                .any(|record| (first(record)..=SIZE.number_at(record.stop_lsn)).contains(number));
            prop_assert!(own || from.is_some_and(|from| *number >= from), "segment {number} stays");
        }
    }
    // Again: nothing more. (Which timeline is at work is told by times, as far as they can be.)
    if before.clock_went_back {
        return Ok(());
    }
    let again = planner(rules, &mut world.facts());
    prop_assert!(again.backups.iter().all(|verdict| verdict.stays()), "{:?}", again.backups);
    let mut twice = world.clone();
    twice.carry_out(&again);
    for (id, system) in &world.systems {
        for (timeline, of_timeline) in &system.timelines {
            let now = &twice.systems[id].timelines[timeline].segments;
            prop_assert_eq!(&of_timeline.segments, now, "{} {}", id, timeline);
        }
    }
    Ok(())
}

#[derive(Debug, Clone)]
enum Event {
    Days(u32),
    Write(u64, bool),
    Backup(BackupType),
    Failover(u64),
    Upgrade,
    Lose(usize),
    ClockBack(u32),
    Pin(usize),
    Unpin,
    Expire(RetentionSettings),
}

fn rules() -> impl Strategy<Value = RetentionSettings> {
    let some = |most: u32| prop_oneof![2 => Just(None), 1 => (1..=most).prop_map(Some)];
    (some(4), some(40), some(10), some(8), some(8), some(4), some(5)).prop_map(
        |(full, days, daily, weekly, monthly, yearly, minimum)| RetentionSettings {
            full,
            days,
            daily,
            weekly,
            monthly,
            yearly,
            minimum,
            after_backup: true,
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        30 => (0u32..12).prop_map(Event::Days),
        40 => (1u64..5, any::<bool>()).prop_map(|(n, busy)| Event::Write(n, busy)),
        10 => Just(Event::Backup(BackupType::Full)),
        20 => Just(Event::Backup(BackupType::Incr)),
        5 => Just(Event::Backup(BackupType::Diff)),
        4 => (0u64..12).prop_map(Event::Failover),
        1 => Just(Event::Upgrade),
        2 => (0usize..40).prop_map(Event::Lose),
        1 => (1u32..5).prop_map(Event::ClockBack),
        3 => (0usize..20).prop_map(Event::Pin),
        1 => Just(Event::Unpin),
        12 => rules().prop_map(Event::Expire),
    ]
}

fn live(world: &mut World, event: Event) -> Result<(), TestCaseError> {
    match event {
        Event::Days(days) => world.now += Duration::days(days.into()) + Duration::minutes(7),
        Event::Write(segments, busy) => world.write(segments, busy),
        Event::Backup(kind) => world.back_up(kind),
        Event::Failover(back) => world.branch(back),
        Event::Upgrade => world.upgrade(),
        Event::Lose(nth) => world.lose(nth),
        Event::ClockBack(days) => {
            world.now -= Duration::days(days.into());
            world.clock_went_back = true;
        }
        Event::Pin(nth) => {
            let id = world.backups.get(nth).map(|record| record.id.clone());
            world.pinned.extend(id);
        }
        Event::Unpin => drop(world.pinned.pop_first()),
        Event::Expire(rules) => expire(world, &rules, sound)?,
    }
    Ok(())
}

#[test]
fn what_the_rules_promise_is_there_after_years_of_anything() {
    let events = prop::collection::vec(event(), 20..EVENTS);
    let worlds = std::env::var(WORLDS_VARIABLE).map_or(WORLDS, |n| n.parse().expect("a number"));
    let config = Config { cases: worlds, failure_persistence: None, ..Config::default() };
    proptest!(config, |(events in events)| {
        let mut world = World::new();
        for event in events {
            live(&mut world, event)?;
        }
    });
}

/// Faults that other tools had, or that this one might have.
const MUTANTS: &[(&str, Planner)] = &[
    ("orders by timeline", |rules, facts| {
        facts.backups.sort_by_key(|backup| backup.record.timeline);
        plan(rules, facts)
    }),
    ("orders by name", |rules, facts| {
        facts.backups.sort_by_key(|backup| std::cmp::Reverse(backup.record.id.clone()));
        plan(rules, facts)
    }),
    ("counts backups that can't be restored", |rules, facts| {
        facts.backups.iter_mut().for_each(|backup| backup.usable = true);
        plan(rules, facts)
    }),
    ("doesn't know pins", |rules, facts| {
        facts.pinned.clear();
        plan(rules, facts)
    }),
    ("counts one full backup less", |rules, facts| {
        let full = rules.full.map(|full| full.saturating_sub(1).max(1));
        plan(&RetentionSettings { full, ..*rules }, facts)
    }),
    ("has a window of a day less", |rules, facts| {
        facts.now += Duration::days(1);
        plan(rules, facts)
    }),
    ("cuts a segment too many", |rules, facts| {
        let mut planned = plan(rules, facts);
        planned.cuts.iter_mut().for_each(|cut| cut.first_kept += 1);
        planned
    }),
    ("forgets the WAL of backups that are points", |rules, facts| {
        let mut planned = plan(rules, facts);
        planned.cuts.iter_mut().for_each(|cut| cut.spared.clear());
        planned
    }),
    ("lets go what is behind a stop at a segment's end", |rules, facts| {
        facts.backups.iter_mut().for_each(|backup| backup.record.stop_lsn.0 -= 1);
        plan(rules, facts)
    }),
    ("looks only at the timeline of a backup", |rules, facts| {
        for system in facts.systems.values_mut() {
            for (timeline, of_timeline) in &mut system.timelines {
                let text = of_timeline.path.as_ref().map(|_| TimelineHistory::first());
                of_timeline.path = text.map(|path| TimelineHistory { timeline: *timeline, ..path });
            }
        }
        plan(rules, facts)
    }),
    ("looks for no way to where the server is", |rules, facts| {
        let mut planned = plan(rules, facts);
        let newest = planned.backups.iter().rposition(|v| v.kept_by.contains(&Reason::Newest));
        for (at, verdict) in planned.backups.iter_mut().enumerate() {
            if newest != Some(at) {
                verdict.kept_by.remove(&Reason::Newest);
            }
        }
        planned
    }),
    ("doesn't know where the server is before a segment tells", |rules, facts| {
        for of_timeline in facts.systems.values_mut().flat_map(|s| s.timelines.values_mut()) {
            of_timeline.given_up |= of_timeline.segments.is_none();
        }
        plan(rules, facts)
    }),
    ("cuts no WAL", |rules, facts| {
        let mut planned = plan(rules, facts);
        planned.cuts.clear();
        planned
    }),
    ("removes no backup", |rules, facts| {
        let mut planned = plan(rules, facts);
        for verdict in &mut planned.backups {
            verdict.kept_by.insert(Reason::NoRule);
        }
        planned
    }),
];

#[test]
fn planning_with_a_fault_is_seen_in_the_same_worlds() {
    let mut runner = TestRunner::deterministic();
    let events = prop::collection::vec(event(), EVENTS);
    let mut seen = BTreeMap::<&str, u32>::new();
    let mut expiries = 0;
    while expiries < 4000 && MUTANTS.iter().any(|(name, _)| !seen.contains_key(name)) {
        let mut world = World::new();
        for event in events.new_tree(&mut runner).unwrap().current() {
            if let Event::Expire(rules) = &event {
                expiries += 1;
                for (name, planner) in MUTANTS {
                    if !seen.contains_key(name)
                        && let Err(e) = expire(&mut world.clone(), rules, *planner)
                    {
                        println!("expiry {expiries}: {name}: {e}");
                        seen.insert(name, expiries);
                    }
                }
            }
            live(&mut world, event).unwrap();
        }
    }
    for (name, _) in MUTANTS {
        assert!(seen.contains_key(name), "in {expiries} expiries nobody saw what {name}");
    }
}
