//! Backups of a standby, and standbys made of backups.

use super::{Site, archive_all};
use crate::support::{Cluster, on_each_version, wait_until};

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
    site.pgkeep.edit(|text| text.replace(&primary.conninfo(), &standby.conninfo()));
    let running = site.pgkeep.spawn(["backup"]);
    let pid = running.pid();
    wait_until("the backup is done", 120, || {
        primary.switch_wal();
        std::thread::sleep(std::time::Duration::from_millis(300));
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        state.contains(") Z ") || state.is_empty()
    });
    let output = running.wait();
    assert_eq!(output.code, 0, "{output}");
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
