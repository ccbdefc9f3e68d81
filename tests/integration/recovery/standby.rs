//! Backups of a standby, and standbys made of backups.

use super::{Site, archive_all};
use crate::support::{Cluster, Stop, on_each_version, wait_until};

on_each_version!(a_backup_of_a_standby_restores_to_a_time_and_is_no_standby);

fn a_backup_of_a_standby_restores_to_a_time_and_is_no_standby(version: u32) {
    let site = Site::new(version);
    let primary = &site.cluster;
    primary.make_table("t", 500);
    let standby = Cluster::standby_of(primary);
    standby.catch_up_with(primary);
    // A standby's backup ends in the segment that the primary still writes.
    site.archive_all();
    standby.catch_up_with(primary);
    back_up(&site, &standby);
    let moment = primary.moment("t");
    site.archive_all();
    primary.moment("t");
    site.archive_all();

    let time = ["--target-time", &moment.time, "--target-action", "promote"];
    let mut restored = site.restore("time", &time);
    assert!(!restored.pgdata().join("standby.signal").exists());
    restored.start();
    restored.wait_for_primary(60);
    assert_eq!(restored.digest("t"), moment.digest);
    let immediate = site.restore_and_pause("immediate", &["--target-immediate"]);
    assert!(immediate.digest("t").rows >= 500);
}

/// Takes a backup from the standby, while the primary goes on to close segments.
fn back_up(site: &Site, standby: &Cluster) {
    site.pgkeep.edit(|text| text.replace(&site.cluster.conninfo(), &standby.conninfo()));
    let running = site.pgkeep.spawn(["backup"]);
    let pid = running.pid();
    wait_until("the backup is done", 120, || {
        site.cluster.switch_wal();
        std::thread::sleep(std::time::Duration::from_millis(300));
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        state.contains(") Z ") || state.is_empty()
    });
    let output = running.wait();
    assert_eq!(output.code, 0, "{output}");
}

#[test]
fn a_target_in_the_segment_where_a_backup_starts_but_before_it_needs_an_older_one() {
    for version in [15, 18].into_iter().filter(|v| crate::support::versions().contains(v)) {
        let site = Site::new(version);
        let primary = &site.cluster;
        primary.make_table("t", 500);
        let older = site.pgkeep.json(["backup"])["backups"][0]["backup"].take();
        let standby = Cluster::standby_of(primary);
        // A backup of a standby starts where the primary's last checkpoint was, in the middle of a
        // segment; one of a primary begins a new segment.
        let target = primary.moment("t");
        let point = primary.restore_point("before the checkpoint");
        primary.insert("t", 10);
        primary.sql("CHECKPOINT");
        primary.insert("t", 10);
        standby.catch_up_with(primary);
        back_up(&site, &standby);
        let later = primary.moment("t");
        site.archive_all();

        let info = site.pgkeep.json(["info"]).to_string();
        let newer = site.pgkeep.json(site.restore_arguments("newer", &["--target-immediate"]));
        assert_ne!(newer["backup"], older["id"], "{info}");
        let label = site.place("newer").join("backup_label");
        let label = std::fs::read_to_string(label).expect("read backup_label");
        let start = label.split_whitespace().nth(3).expect("START WAL LOCATION: LSN").to_owned();
        let file = |lsn: &str| primary.sql(&format!("SELECT pg_walfile_name('{lsn}')"));
        let is_before = |lsn: &str| {
            primary.sql(&format!("SELECT '{lsn}'::pg_lsn < '{start}'::pg_lsn")) == "t"
                && file(lsn) == file(&start)
        };
        assert!(is_before(&target.lsn) && is_before(&point), "{label}");

        let xid = target.xid.to_string();
        for (name, arguments) in [
            ("name", ["--target-name", "before the checkpoint"]),
            ("xid", ["--target-xid", &xid]),
            ("time", ["--target-time", &target.time]),
            ("lsn", ["--target-lsn", &target.lsn]),
        ] {
            let report = site.pgkeep.json(site.restore_arguments(name, &arguments));
            assert_eq!(report["backup"], older["id"], "{name} on {version}: {report}");
            let mut restored = Cluster::at(&site.place(name), version);
            restored.start();
            restored.wait_for_pause(60);
            assert_eq!(restored.digest("t"), target.digest, "{name} on {version}");
        }
        let xid = later.xid.to_string();
        let report = site.pgkeep.json(site.restore_arguments("later", &["--target-xid", &xid]));
        assert_eq!(report["backup"], newer["backup"], "what it reaches begins with the newest");
    }
}

#[test]
fn a_restored_standby_follows_its_primary() {
    let site = Site::new(15);
    let primary = &site.cluster;
    primary.make_table("t", 500);
    site.pgkeep.ok(["backup"]);
    primary.insert("t", 100);
    site.archive_all();
    let set = format!("primary_conninfo={} application_name=restored", primary.conninfo());
    let mut standby = site.restore("standby", &["--standby", "--set", &set]);
    standby.start();
    primary.insert("t", 11);
    standby.catch_up_with(primary);
    assert_eq!(standby.sql("SELECT pg_is_in_recovery()"), "t");
    assert_eq!(standby.digest("t"), primary.digest("t"));
    let streams = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'restored'";
    assert_eq!(primary.sql(streams), "1");
    standby.promote();
    archive_all(primary);
}

/// The server itself would say so, and not start.
#[test]
fn a_standby_that_would_follow_another_servers_timeline_is_refused() {
    let site = Site::new(15);
    let primary = &site.cluster;
    primary.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    site.archive_all();
    let mut copy = Cluster::standby_of(primary);
    copy.catch_up_with(primary);
    copy.promote();
    archive_all(&copy);
    copy.stop(Stop::Fast);
    primary.insert("t", 10);
    site.archive_all();
    site.pgkeep.ok(["backup"]);
    let backup = site.pgkeep.json(["info"])["repositories"][0]["systems"][0]["backups"][1]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let refused = site.refuse("refused", &["--standby", "--backup", &backup]);
    assert_eq!(refused.code, 8, "{refused}");
    assert!(refused.stderr.contains("--target-timeline current"), "{refused}");
    let mut standby = site
        .restore("current", &["--standby", "--backup", &backup, "--target-timeline", "current"]);
    standby.start();
    assert_eq!(standby.sql("SELECT pg_is_in_recovery()"), "t");
    assert_eq!(standby.digest("t"), primary.digest("t"));
}

/// An idle primary closes no segment: the standby's backup ends in an open one.
#[test]
fn a_backup_of_a_standby_of_an_idle_primary_ends_and_restores() {
    for version in [15, 18].into_iter().filter(|v| crate::support::versions().contains(v)) {
        let site = Site::new(version);
        let primary = &site.cluster;
        primary.make_table("t", 500);
        let standby = Cluster::standby_of(primary);
        site.archive_all();
        primary.insert("t", 10);
        standby.catch_up_with(primary);
        let last = primary.digest("t");
        site.pgkeep.edit(|text| text.replace(&primary.conninfo(), &standby.conninfo()));
        let output = site.pgkeep.ok(["backup"]);
        assert!(output.stderr.contains("receiving it"), "{output}");
        site.pgkeep.ok(["verify", "--level", "full"]);
        assert_eq!(site.pgkeep.restored(version, "latest", &[]).digest("t"), last);
        // Where the WAL ends with the backup, the server wouldn't know that it has come to its target.
        let refused =
            site.pgkeep.fails(site.restore_arguments("immediate", &["--target-immediate"]));
        assert_eq!(refused.code, 8, "{refused}");
        assert!(refused.stderr.contains("without a target"), "{refused}");
        let plan = site.pgkeep.json(["expire", "--dry-run"]).to_string();
        assert!(!plan.contains("incomplete"), "{plan}");
    }
}
