//! Histories of timelines as they come about, each with what has to be chosen.

use chrono::{DateTime, TimeDelta, Utc};
use pgkeep::{
    error::Kind,
    postgres::{Lsn, Timeline},
    repo::{SystemId, record::BackupRecord},
    restore::{Target, TargetTimeline},
};

use super::{
    Asked, commit, layout, request,
    world::{Record, World},
};
use crate::support::wal::SYSTEM;

/// The lines of a world, as they are counted there.
const FIRST: usize = 0;
const SECOND: usize = 1;
const THIRD: usize = 2;

/// The last record of a line.
fn last(world: &World, line: usize) -> Record {
    world.lines[line].records.last().expect("a record").clone()
}

/// A commit, and a moment between it and whatever comes next.
fn commit_and_wait(world: &mut World, line: usize) -> (DateTime<Utc>, Target) {
    world.commit(line);
    (world.now, Target::Time(world.now + TimeDelta::milliseconds(500)))
}

/// The repository of a world in which every server that is left has archived all it wrote.
async fn archived(mut world: World) -> Asked {
    for line in 0..world.lines.len() {
        if !world.lines[line].is_over {
            world.switch(line);
        }
    }
    world.archive();
    Asked::of(world, 0).await
}

/// Timeline 1 runs on while a copy of it does on timeline 2, and crashes; its standby is promoted to timeline 3.
#[tokio::test]
async fn a_copy_that_lives_on_is_no_answer_for_an_original_that_had_nothing_after_the_target() {
    let mut world = World::begun(1);
    world.commit(FIRST);
    world.fork_at(FIRST, &last(&world, FIRST), false);
    world.commit(SECOND);
    world.commit(FIRST);
    let (of_copy, _) = commit_and_wait(&mut world, SECOND);
    let (of_original, target) = commit_and_wait(&mut world, FIRST);
    world.fork_at(FIRST, &last(&world, FIRST), true);
    world.commit(THIRD);
    world.commit(SECOND);
    let asked = archived(world).await;
    let refused = asked.chosen(&target, TargetTimeline::Unspecified).await;
    let refused = refused.expect_err("two servers were at work then");
    assert_eq!(refused.kind(), Kind::Usage, "{refused}");
    for (hint, timeline, last) in [(0, 2, of_copy), (1, 3, of_original)] {
        let said = &refused.hints()[hint];
        assert!(said.starts_with(&format!("--target-timeline {timeline}: ")), "{said}");
        let one = asked.chosen(&target, TargetTimeline::Id(Timeline(timeline))).await;
        let one = one.expect("one was named");
        assert_eq!((one.timeline, one.last_transaction), (Timeline(timeline), Some(last)));
    }
}

/// Timeline 1 ends in a failover to 2. Later somebody goes back on 1 to before that, and on from there on 3.
#[tokio::test]
async fn a_later_return_to_before_a_failover_is_no_answer_for_a_time_after_it() {
    let mut world = World::begun(2);
    world.commit(FIRST);
    let early = last(&world, FIRST);
    world.commit(FIRST);
    world.fork_at(FIRST, &last(&world, FIRST), true);
    let (then, target) = commit_and_wait(&mut world, SECOND);
    world.commit(SECOND);
    world.fork_at(FIRST, &early, true);
    world.commit(THIRD);
    let asked = archived(world).await;
    let chosen = asked.chosen(&target, TargetTimeline::Unspecified).await.expect("chosen");
    assert_eq!((chosen.timeline, chosen.last_transaction), (Timeline(2), Some(then)));
}

/// Timeline 1 ends before the target. A standby that had lost its last commits goes on on 2, one that had all on 3.
#[tokio::test]
async fn of_what_came_from_a_timeline_after_the_target_the_one_counts_that_has_most_of_it() {
    let mut world = World::begun(3);
    world.commit(FIRST);
    let early = last(&world, FIRST);
    let (then, target) = commit_and_wait(&mut world, FIRST);
    world.fork_at(FIRST, &early, true);
    world.commit(SECOND);
    world.fork_at(FIRST, &last(&world, FIRST), true);
    world.commit(THIRD);
    let asked = archived(world).await;
    let chosen = asked.chosen(&target, TargetTimeline::Unspecified).await.expect("chosen");
    assert_eq!((chosen.timeline, chosen.last_transaction), (Timeline(3), Some(then)));
}

/// After `pg_upgrade` a cluster has another system, in which nothing of the one before is found.
#[tokio::test]
async fn a_refusal_names_the_system_that_was_looked_at_and_a_backup_of_each_other_one() {
    let mut world = World::begun(4);
    world.commit(FIRST);
    let first = world.backups[0].clone();
    let beyond = Lsn(last(&world, FIRST).end.0 + (1 << 30));
    let asked = archived(world).await;
    let old = SystemId { major: 14, ..SYSTEM };
    for (days, system) in [(3, old), (2, old), (4, SystemId { major: 13, ..SYSTEM })] {
        let stopped_at = first.stopped_at - TimeDelta::days(days);
        let id = format!("{}-full", stopped_at.format("%Y%m%dT%H%M%SZ"));
        let id = id.parse().expect("an id");
        let record = BackupRecord { id, system, stopped_at, ..first.clone() };
        commit(&asked.repository, &record).await;
    }
    let hint = |system: SystemId, day: u32| {
        let id = first.id.to_string().replace("20261120", &format!("202611{day}"));
        format!(
            "only system {SYSTEM} was looked at; for what system {system} wrote: --backup {id}, its \
             newest, or an older one"
        )
    };
    let expected = [hint(old, 18), hint(SystemId { major: 13, ..SYSTEM }, 16)];
    for target in [Target::Name("nope".to_owned()), Target::Xid(9), Target::Lsn(beyond)] {
        let refused = asked.chosen(&target, TargetTimeline::Unspecified).await;
        let refused = refused.expect_err("it isn't there");
        assert!(refused.hints().ends_with(&expected), "{target}: {:?}", refused.hints());
        // Who names a backup has said which system is meant.
        let mut named = request(&target, TargetTimeline::Unspecified);
        named.backup = Some(first.id.clone());
        let refused = super::choose(&asked.repository, &layout(), &named).await;
        let refused = refused.expect_err("it isn't there");
        assert!(!refused.hints().concat().contains("system"), "{:?}", refused.hints());
    }
}
