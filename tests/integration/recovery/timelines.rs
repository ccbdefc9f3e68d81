//! Failovers and forks: targets on each timeline, numbers beyond ten, and two timelines of which only
//! a person knows which is meant.

use std::fs;

use super::{Site, archive_all};
use crate::support::{
    Cluster, Stop,
    objects::{ObjectKind, objects_of},
    scratch,
};

#[test]
fn after_two_failovers_targets_on_each_timeline_restore() {
    for version in [15, 18].into_iter().filter(|v| crate::support::versions().contains(v)) {
        let mut site = Site::new(version);
        site.cluster.make_table("t", 100);
        site.pgkeep.ok(["backup"]);
        let one = site.cluster.moment("t");
        site.archive_all();
        let mut second = Cluster::standby_of(&site.cluster);
        second.catch_up_with(&site.cluster);
        site.cluster.stop(Stop::Fast);
        second.promote();
        assert_eq!(second.timeline(), 2);
        let two = second.moment("t");
        archive_all(&second);
        let mut third = Cluster::standby_of(&second);
        third.catch_up_with(&second);
        second.stop(Stop::Fast);
        third.promote();
        let three = third.moment("t");
        archive_all(&third);
        let last = third.moment("t");
        archive_all(&third);

        for (number, moment) in [(1, &one), (2, &two), (3, &three)] {
            for (kind, value) in [("time", moment.time.clone()), ("lsn", moment.lsn.clone())] {
                let option = format!("--target-{kind}");
                let name = format!("{kind}-{number}");
                let restored = site.restore_and_pause(&name, &[&option, &value]);
                assert_eq!(restored.digest("t"), moment.digest, "{name} on {version}");
            }
        }
        let mut latest = site.restore("latest", &[]);
        latest.start();
        latest.wait_for_primary(60);
        assert_eq!(latest.digest("t"), last.digest);
        assert_eq!(latest.timeline(), 4);
        third.stop(Stop::Fast);
    }
}

/// Recovers a stopped cluster in place as a standby and promotes it: a new timeline.
fn next_timeline(cluster: &mut Cluster) {
    cluster.stop(Stop::Fast);
    scratch::write(&cluster.pgdata().join("standby.signal"), "");
    cluster.start();
    cluster.promote();
}

#[test]
fn timelines_are_hexadecimal_and_histories_long() {
    let mut site = Site::new(15);
    site.cluster.make_table("t", 100);
    site.pgkeep.ok(["backup"]);
    let mut old = None;
    while site.cluster.timeline() < 0x12 {
        next_timeline(&mut site.cluster);
        if site.cluster.timeline() == 0x10 {
            old = Some(site.cluster.moment("t"));
        }
    }
    let old = old.expect("timeline 16 was passed");
    let new = site.cluster.moment("t");
    site.archive_all();
    let info = site.pgkeep.ok(["info"]).stdout;
    assert!(info.contains("18"), "{info}");
    assert_eq!(
        site.restore_and_pause("old", &["--target-time", &old.time]).digest("t"),
        old.digest
    );
    let lsn = ["--target-lsn", &new.lsn, "--target-timeline", "18"];
    assert_eq!(site.restore_and_pause("new", &lsn).digest("t"), new.digest);
    // A backup on such a timeline, restored for itself.
    site.pgkeep.ok(["backup"]);
    let restored = site.restore_and_pause("itself", &["--target-immediate"]);
    assert_eq!(restored.digest("t"), new.digest);
}

#[test]
fn two_unrelated_timelines_with_the_target_are_listed_and_refused() {
    let site = Site::new(15);
    site.cluster.make_table("t", 100);
    site.pgkeep.ok(["backup"]);
    let common = site.cluster.moment("t");
    site.archive_all();
    // A standby is promoted while the old primary lives on: both archive.
    let second = Cluster::standby_of(&site.cluster);
    second.catch_up_with(&site.cluster);
    second.promote();
    let on_two = second.moment("t");
    site.cluster.insert("t", 7);
    let on_one = site.cluster.moment("t");
    archive_all(&second);
    let last = second.moment("t");
    archive_all(&second);
    site.archive_all();
    site.cluster.moment("t");
    site.archive_all();

    let before = site.restore_and_pause("common", &["--target-time", &common.time]);
    assert_eq!(before.digest("t"), common.digest, "what lies before the fork is no question");
    let refused = site.refuse("unclear", &["--target-time", &on_one.time]);
    assert_eq!(refused.code, 2, "{refused}");
    for timeline in ["--target-timeline 1", "--target-timeline 2"] {
        assert!(refused.stderr.contains(timeline), "{refused}");
    }
    let one = ["--target-time", &on_one.time, "--target-timeline", "1"];
    assert_eq!(site.restore_and_pause("one", &one).digest("t"), on_one.digest);
    let two = ["--target-time", &on_two.time, "--target-timeline", "2"];
    assert_eq!(site.restore_and_pause("two", &two).digest("t"), on_two.digest);
    // Without a target the promotion decides: the newest timeline is where the cluster went on.
    let mut end = site.restore("end", &[]);
    end.start();
    end.wait_for_primary(60);
    assert_eq!(end.digest("t"), last.digest);
}

#[test]
fn what_committed_before_a_failover_is_found_in_the_partial_segment() {
    let mut site = Site::new(15);
    site.cluster.make_table("t", 100);
    site.pgkeep.ok(["backup"]);
    let mut second = Cluster::standby_of(&site.cluster);
    let moment = site.cluster.moment("t");
    let later = site.cluster.moment("t");
    second.catch_up_with(&site.cluster);
    site.cluster.kill9();
    second.promote();
    archive_all(&second);
    second.stop(Stop::Fast);
    // Timeline 1 ends in a segment of which only the partial copy was archived.
    let one = ["--target-timeline", "1", "--target-lsn", &moment.lsn];
    assert_eq!(site.restore_and_pause("lsn", &one).digest("t"), moment.digest);
    let mut end = site.restore("end", &["--target-timeline", "1"]);
    end.start();
    end.wait_for_primary(60);
    assert_eq!(end.digest("t"), later.digest);
}

#[test]
fn the_end_of_a_timeline_that_only_its_child_has_is_reached_along_the_child() {
    for version in [15, 18].into_iter().filter(|v| crate::support::versions().contains(v)) {
        let mut site = Site::new(version);
        site.cluster.make_table("t", 100);
        site.pgkeep.ok(["backup"]);
        let whole = site.cluster.moment("t");
        // The first commit later than a time ends recovery: that is in the same segment, too.
        site.cluster.moment("t");
        site.archive_all();
        // Without archiving it leaves no partial segment behind when it is promoted.
        let mut second = Cluster::standby_with(&site.cluster, "archive_mode = off");
        let end = site.cluster.moment("t");
        site.cluster.moment("t");
        second.catch_up_with(&site.cluster);
        site.cluster.kill9();
        second.promote();
        second.conf("archive_mode = on");
        second.restart();
        second.moment("t");
        archive_all(&second);
        let names = |kind| objects_of(&site.pgkeep.repository(), kind).into_iter().map(|o| o.name);
        assert_eq!(names(ObjectKind::Partial).count(), 0);
        let segment = second.sql(&format!("SELECT pg_walfile_name('{}')", end.lsn));
        assert!(names(ObjectKind::Segment).any(|name| name.ends_with(&segment)), "{segment}");
        let of_parent = segment.replacen("00000002", "00000001", 1);
        assert!(!names(ObjectKind::Segment).any(|name| name.ends_with(&of_parent)), "{of_parent}");

        for (what, moment, timeline) in [("whole", &whole, 1), ("end", &end, 2)] {
            let xid = moment.xid.to_string();
            for (kind, value) in [("time", &moment.time), ("lsn", &moment.lsn), ("xid", &xid)] {
                let name = format!("{what}-{kind}");
                let mut restored = site.restore(&name, &[&format!("--target-{kind}"), value]);
                let settings = restored.pgdata().join("postgresql.auto.conf");
                let settings = fs::read_to_string(settings).expect("read the settings");
                let expected = format!("recovery_target_timeline = '{timeline}'");
                assert!(settings.contains(&expected), "{name} on {version}: {settings}");
                restored.start();
                restored.wait_for_pause(60);
                assert_eq!(restored.digest("t"), moment.digest, "{name} on {version}");
            }
        }
    }
}

#[test]
fn wal_whose_history_is_missing_is_no_reason_to_restore_another_timeline() {
    let mut site = Site::new(15);
    site.cluster.make_table("t", 100);
    site.pgkeep.ok(["backup"]);
    // The server never offers the history of a timeline that began while archiving was off.
    site.cluster.conf("archive_mode = off");
    next_timeline(&mut site.cluster);
    site.cluster.conf("archive_mode = on");
    site.cluster.restart();
    let moment = site.cluster.moment("t");
    site.archive_all();
    site.cluster.moment("t");
    site.archive_all();
    let history = objects_of(&site.pgkeep.repository(), ObjectKind::History);
    assert_eq!(history.len(), 1, "it is stored with the first segment");
    let restored = site.restore_and_pause("there", &["--target-time", &moment.time]);
    assert_eq!(restored.digest("t"), moment.digest);

    fs::remove_file(&history[0].path).unwrap();
    for (name, arguments) in [("end", &[][..]), ("time", &["--target-time", &moment.time][..])] {
        let refused = site.refuse(name, arguments);
        assert_eq!(refused.code, 8, "{refused}");
        assert!(refused.stderr.contains("00000002.history is missing"), "{refused}");
    }
    let info = site.pgkeep.ok(["info"]).stdout;
    assert!(info.contains("00000002.history is missing"), "{info}");
}

#[test]
fn the_wal_of_another_server_proves_nothing_for_a_copy() {
    let mut site = Site::new(15);
    site.cluster.make_table("t", 100);
    site.archive_all();
    site.cluster.stop(Stop::Fast);
    let mut copy = site.cluster.copy_offline();
    site.cluster.start();
    for _ in 0..8 {
        site.archive_all();
    }
    copy.start();
    let (original, pgdata) = (site.cluster.conninfo(), site.cluster.pgdata().display().to_string());
    site.pgkeep.edit(|text| {
        text.replace(&original, &copy.conninfo())
            .replace(&pgdata, &copy.pgdata().display().to_string())
    });
    let check = site.pgkeep.fails(["check"]);
    assert_eq!(check.code, 1, "{check}");
    assert!(check.stdout.contains("isn't the one that this server has closed"), "{check}");
    let backup = site.pgkeep.fails(["backup"]);
    assert_eq!(backup.code, 9, "{backup}");
    assert!(objects_of(&site.pgkeep.repository(), ObjectKind::Record).is_empty());
}
