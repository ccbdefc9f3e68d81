//! Which backup is taken when nobody says which, and which restore point when several have the name.

use std::fs;

use chrono::{Duration, Utc};
use pgkeep::repo::catalog;

use super::Site;
use crate::{
    backup::tree::Opened,
    support::{
        Cluster, Stop,
        objects::{ObjectKind, objects, objects_of},
        pgkeep::run_to_end,
        places::skipped_on_s3,
        scratch, wait_until,
    },
};

/// Makes the first backup one that ended an hour from now by the server's clock, as if that had
/// been set back since.
fn set_the_clock_back(site: &Site) {
    let opened = Opened::new(&site.pgkeep);
    let mut record = opened.backups().remove(0);
    record.stopped_at = Utc::now() + Duration::hours(1);
    let name = opened.layout.of_backup(&record.id, "backup.json");
    let new = opened.runtime.block_on(async {
        let storage = opened.repository.storage();
        storage.delete(&name).await.expect("delete");
        catalog::commit(&opened.repository, &opened.layout, &record).await.expect("commit");
        storage.read(&name, pgkeep::storage::Range::All).await.expect("read")
    });
    let stored = objects_of(&site.pgkeep.repository(), ObjectKind::Record);
    let stored = stored.iter().find(|object| object.name == name.as_str()).expect("it is there");
    fs::remove_file(&stored.path).expect("remove");
    scratch::write(&stored.path, new);
}

#[test]
fn a_backup_taken_before_the_clock_was_set_back_is_not_the_newest() {
    let site = Site::new(15);
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    site.cluster.insert("t", 5);
    let then = site.cluster.digest("t");
    site.pgkeep.ok(["backup"]);
    site.archive_all();
    set_the_clock_back(&site);

    let info = site.pgkeep.json(["info"]);
    let backups = info["repositories"][0]["systems"][0]["backups"].as_array().unwrap().clone();
    let stop = |i: usize| backups[i]["stop-lsn"].as_str().unwrap().to_owned();
    assert_eq!(backups.len(), 2);
    assert!(stop(0) < stop(1), "{info:#}");
    for (name, arguments) in
        [("immediate", &["--target-immediate"][..]), ("current", &["--target-timeline", "current"])]
    {
        let said = site.pgkeep.ok(site.restore_arguments(name, arguments)).stdout;
        assert!(said.contains(backups[1]["id"].as_str().unwrap()), "{said}");
    }
    let mut restored = Cluster::at(&site.place("immediate"), 15);
    restored.start();
    restored.wait_for_pause(60);
    assert_eq!(restored.digest("t"), then);
}

#[test]
fn a_restore_point_whose_name_was_used_again_is_asked_for() {
    let site = Site::new(15);
    let original = &site.cluster;
    original.make_table("t", 10);
    original.restore_point("once");
    // A restore point called `twice` and what the table held there.
    let point = || {
        let lsn = original.restore_point("twice");
        let then = original.digest("t");
        original.insert("t", 1);
        (lsn, then)
    };
    let unreachable = point();
    site.pgkeep.ok(["backup"]);
    let first = point();
    original.restore_point("once");
    let once = original.digest("t");
    let second = point();
    site.pgkeep.ok(["backup"]);
    let third = point();
    site.archive_all();
    let info = site.pgkeep.json(["info"]);
    let id = |i: usize| {
        let backup = &info["repositories"][0]["systems"][0]["backups"][i];
        backup["id"].as_str().unwrap().to_owned()
    };

    let refused = site.refuse("twice", &["--target-name", "twice"]);
    assert_eq!(refused.code, 2, "{refused}");
    assert!(refused.stderr.contains("3 restore points that can be reached"), "{refused}");
    assert!(!refused.stderr.contains(&unreachable.0), "{refused}");
    let line = |lsn: &str| {
        let line = refused.stderr.lines().find(|line| line.contains(&format!("LSN {lsn}, ")));
        line.unwrap_or_else(|| panic!("{lsn}: {refused}")).to_owned()
    };
    assert!(line(&first.0).contains(&format!("--backup {}", id(0))), "{refused}");
    assert!(!line(&second.0).contains("--backup"), "{refused}");
    assert!(line(&third.0).contains(&format!("--backup {}", id(1))), "{refused}");

    let rows = |name: &str, arguments: &[&str]| site.restore_and_pause(name, arguments).digest("t");
    for (name, backup, then) in [("first", id(0), &first.1), ("third", id(1), &third.1)] {
        assert_eq!(rows(name, &["--target-name", "twice", "--backup", &backup]), *then);
    }
    let at_second = ["--target-lsn", &second.0, "--target-exclusive"];
    assert_eq!(rows("second", &at_second), second.1);
    assert_eq!(rows("once", &["--target-name", "once"]), once, "one can't be reached");
}

/// As a disk has it that was unmounted before a failover and is there again.
#[test]
fn what_ends_in_one_repository_goes_on_in_another() {
    if skipped_on_s3("a folder is moved") {
        return;
    }
    let mut site = Site::new(15);
    site.pgkeep.add_repository("second");
    site.pgkeep.ok(["--repo", "second", "init"]);
    site.pgkeep.ok(["check"]);
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    site.archive_all();
    let (main, away) = (site.pgkeep.repository(), site.place("away"));
    fs::rename(&main, &away).unwrap();
    let mut second = Cluster::standby_of(&site.cluster);
    second.catch_up_with(&site.cluster);
    site.cluster.stop(Stop::Fast);
    second.promote();
    second.insert("t", 100);
    let (last, closed) = (second.digest("t"), second.switch_wal());
    wait_until("the second one has it", 60, || {
        let there = objects(&site.pgkeep.repository_of("second"));
        there.iter().any(|object| object.name.ends_with(&closed))
    });
    second.stop(Stop::Immediate);
    fs::rename(&away, &main).unwrap();

    let output = site.pgkeep.ok(site.restore_arguments("latest", &[]));
    assert!(output.stderr.contains("going on with that"), "{output}");
    let mut latest = Cluster::at(&site.place("latest"), 15);
    latest.start();
    latest.wait_for_primary(60);
    assert_eq!((latest.timeline(), latest.digest("t")), (3, last));
}

/// As Debian has it below /etc.
#[test]
fn a_configuration_that_is_in_no_backup_is_missed_before_the_server_does() {
    let site = Site::new(15);
    let hba = site.cluster.pgdata().join("pg_hba.conf");
    let elsewhere = site.place("pg_hba.conf");
    // The server goes on with what it has read.
    fs::rename(&hba, &elsewhere).unwrap();
    site.pgkeep.ok(["backup"]);
    fs::rename(&elsewhere, &hba).unwrap();
    let output = site.pgkeep.ok(site.restore_arguments("restored", &[]));
    assert!(output.stderr.contains("the backup has no pg_hba.conf"), "{output}");
    assert!(!output.stderr.contains("the backup has no postgresql.conf"), "{output}");
}

/// It can be opened, so nobody would look for a reason there.
#[test]
fn a_repository_without_wal_is_named_before_recovery_stops_at_it() {
    let site = Site::new(15);
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    site.archive_all();
    site.pgkeep.add_repository("second");
    site.pgkeep.ok(["--repo", "second", "init"]);
    let output = site.pgkeep.ok(site.restore_arguments("both", &[]));
    assert!(output.stderr.contains("its recovery won't end, as second has none"), "{output}");
    let output = site.pgkeep.ok(site.restore_arguments("one", &["--repo", "main"]));
    assert!(!output.stderr.contains("second"), "{output}");
    assert!(!output.stderr.contains("environment"), "{output}");

    // The server wouldn't have what the environment says here.
    let variable = "PGKEEP_CLUSTER__MAIN__OUTAGE_TIMEOUT";
    let mut command = site.pgkeep.command(site.restore_arguments("env", &["--repo", "main"]));
    let output = run_to_end(command.env(variable, "5s"));
    assert!(output.code == 0 && output.stderr.contains(variable), "{output}");
}

#[test]
fn what_is_unclear_in_one_repository_is_not_taken_from_another() {
    let site = Site::new(15);
    let original = &site.cluster;
    original.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    original.restore_point("twice");
    site.archive_all();
    // The new repository has one of the two only.
    site.pgkeep.add_repository("second");
    site.pgkeep.ok(["--repo", "second", "init"]);
    site.pgkeep.ok(["check"]);
    site.pgkeep.ok(["--repo", "second", "backup"]);
    original.restore_point("twice");
    let then = original.digest("t");
    site.archive_all();
    let refused = site.refuse("twice", &["--target-name", "twice"]);
    assert!(refused.stderr.contains("2 restore points that can be reached"), "{refused}");
    let second = ["--repo", "second", "--target-name", "twice"];
    assert_eq!(site.restore_and_pause("second", &second).digest("t"), then);
}
