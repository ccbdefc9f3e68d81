//! What random histories rarely have: servers on which nothing happens for long.

use chrono::Duration;
use pgkeep::{
    config::RetentionSettings,
    postgres::Timeline,
    repo::BackupType,
    retention::plan::{Reason, plan},
};

use super::world::World;

/// Of each backup, in order, whether a window of so many days needs it.
fn needed(world: &World, days: u32) -> Vec<bool> {
    let rules = RetentionSettings { days: Some(days), ..RetentionSettings::NONE };
    let planned = plan(&rules, &world.facts());
    planned.backups.iter().map(|verdict| verdict.kept_by.contains(&Reason::Days)).collect()
}

/// A backup at the first day, whose system has no transaction after it.
fn world() -> World {
    let mut world = World::new();
    world.write(2, true);
    world.back_up(BackupType::Full);
    world
}

#[test]
fn the_moments_between_two_backups_need_the_older_one_though_nothing_was_written() {
    let mut world = world();
    world.now += Duration::days(20);
    world.back_up(BackupType::Full);
    world.now += Duration::days(5);
    assert_eq!(needed(&world, 10), [true, true], "of ten days five have only the older one");
    assert_eq!(needed(&world, 6), [true, true]);
    assert!(!needed(&world, 4)[0], "the newer one is older than the window, too");
}

#[test]
fn a_backup_of_another_system_makes_none_of_this_one_needed() {
    let mut world = world();
    world.now += Duration::days(20);
    world.upgrade();
    world.write(1, true);
    world.back_up(BackupType::Full);
    world.now += Duration::days(5);
    assert_eq!(needed(&world, 10), [false, true], "the old system had ended long before");
}

#[test]
fn a_moment_at_which_the_window_begins_is_in_it() {
    let mut world = world();
    world.now += Duration::days(10);
    world.write(1, true);
    world.now += Duration::days(10);
    // The last transaction's own moment.
    assert_eq!(needed(&world, 10), [true]);
    assert_eq!(needed(&world, 9), [false]);
}

/// Which backups are kept since they are the newest on the way to where the server may be.
fn newest(world: &World) -> Vec<bool> {
    let rules = RetentionSettings { full: Some(1), ..RetentionSettings::NONE };
    let planned = plan(&rules, &world.facts());
    planned.backups.iter().map(|verdict| verdict.kept_by.contains(&Reason::Newest)).collect()
}

/// Two backups of the first timeline, and so many segments behind the first one's end.
fn two_backups() -> (World, u64) {
    let mut world = world();
    let first_end = world.server().next;
    world.now += Duration::days(1);
    world.write(6, true);
    world.back_up(BackupType::Full);
    let next = world.server().next;
    (world, next - first_end)
}

#[test]
fn the_way_to_a_timeline_that_has_just_begun_stays_though_nothing_was_written_there() {
    let (mut world, since_first) = two_backups();
    assert_eq!(newest(&world), [false, true]);
    world.now += Duration::days(1);
    world.branch(since_first - 2);
    // Its history is there before its first segment.
    for segments in [0, 1] {
        world.write(segments, false);
        let what = "the new timeline comes from before the second backup";
        assert_eq!(newest(&world), [true, true], "{what}; it has {segments} segments");
    }

    // It is left for another one in its turn, and is none where the server may be.
    world.now += Duration::days(1);
    world.write(4, true);
    world.back_up(BackupType::Full);
    assert_eq!(newest(&world), [false, false, true]);
}

#[test]
fn a_timeline_whose_wal_has_expired_is_none_that_has_just_begun() {
    let (mut world, since_first) = two_backups();
    world.branch(since_first - 2);
    assert_eq!(newest(&world), [true, true]);
    let timeline = world.server().timeline;
    world.server().timelines.get_mut(&timeline).unwrap().floor = 9;
    assert_eq!(newest(&world), [false, true]);
}

#[test]
fn of_two_timelines_beside_each_other_the_one_lives_that_was_written_to_last() {
    let (mut world, since_first) = two_backups();
    let end = world.server().next;
    // One from before the second backup, with the newest of all.
    world.now += Duration::days(1);
    world.branch(since_first - 2);
    world.write(1, true);
    world.back_up(BackupType::Full);
    // And one from behind it.
    let server = world.server();
    (server.timeline, server.next) = (Timeline(1), end);
    world.branch(0);
    for (days, lives) in [(-1, false), (0, false), (1, true)] {
        let mut world = world.clone();
        world.now += Duration::days(days);
        world.write(1, true);
        assert_eq!(newest(&world), [false, lives, true], "{days}");
    }
}
