//! Backups that are stopped or killed are none, and the next one works.

use std::time::Duration;

use rustix::process::Signal;

use super::tree::Opened;
use crate::support::{
    Cluster, Pgkeep,
    objects::{ObjectKind, objects_of},
};

#[test]
fn a_killed_backup_is_none_and_the_next_one_works() {
    let cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    pgkeep.ok(["backup"]);
    let (mut killed, mut done) = (0, 1);
    for round in 0..12u64 {
        let mut random = [0; 1];
        getrandom::fill(&mut random).expect("random bytes");
        let after = Duration::from_millis(100 * round + u64::from(random[0]) / 3);
        // Every second one reads all of the cluster and takes seconds at this rate, so it is killed
        // on the fastest machine too; the others are in any of their steps, or done.
        let arguments: &[&str] = match round % 2 {
            0 => &["backup"],
            _ => &["backup", "--type", "full", "--max-rate", "4M"],
        };
        let output = pgkeep.spawn(arguments).kill_after(after);
        match output.code {
            0 => done += 1,
            -9 => killed += 1,
            _ => panic!("{output}"),
        }
    }
    pgkeep.ok(["backup"]);
    done += 1;
    assert!(killed > 5, "{killed} killed, {done} done");

    let opened = Opened::new(&pgkeep);
    let backups = opened.backups();
    // A kill after the commit object was written leaves a backup that nobody was told of.
    assert!((done..=done + killed).contains(&backups.len()), "{} for {done}", backups.len());
    for record in &backups {
        opened.tree(record);
    }
    // The others are listed for what they are.
    let info = pgkeep.ok(["info"]);
    for begin in objects_of(&pgkeep.repository(), ObjectKind::Begin) {
        let id = begin.name.split('/').nth_back(1).expect("the backup's folder");
        assert!(info.stdout.contains(id), "{id}: {info}");
    }
}

#[test]
fn a_backup_that_is_told_to_stop_removes_what_it_has_stored() {
    let cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    for signal in [Signal::TERM, Signal::INT] {
        let running = pgkeep.spawn(["backup", "--max-rate", "4M"]);
        std::thread::sleep(Duration::from_millis(1500));
        running.signal(signal);
        let output = running.wait();
        assert_eq!(output.code, 11, "{output}");
        for kind in [ObjectKind::Begin, ObjectKind::Pack, ObjectKind::Deleted, ObjectKind::Lease] {
            let left = objects_of(&pgkeep.repository(), kind);
            assert!(left.is_empty(), "{left:?}");
        }
    }
    // The server has noticed too.
    crate::support::wait_until("the server has ended the backup", 20, || {
        cluster.sql("SELECT count(*) FROM pg_stat_progress_basebackup") == "0"
    });
    pgkeep.ok(["backup"]);
}

#[test]
fn a_backup_that_was_killed_is_shown_as_crashed_at_once() {
    let cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    let running = pgkeep.spawn(["backup", "--max-rate", "1M"]);
    let unusable = || pgkeep.json(["info"])["repositories"][0]["unusable"][0].clone();
    crate::support::wait_until("the backup is running", 30, || unusable()["state"] == "running");
    let process = running.pid();
    assert_eq!(running.kill_after(Duration::ZERO).code, -9);
    let left = unusable();
    assert_eq!(left["state"], "crashed", "{left}");
    assert!(left["why"].as_str().unwrap().contains(&process.to_string()), "{left}");
}

#[test]
fn a_server_that_dies_under_a_backup_fails_it() {
    let mut cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    let running = pgkeep.spawn(["backup", "--max-rate", "4M"]);
    std::thread::sleep(Duration::from_millis(1500));
    cluster.kill9();
    let output = running.wait();
    assert_eq!(output.code, 6, "{output}");
    assert!(objects_of(&pgkeep.repository(), ObjectKind::Begin).is_empty());
    cluster.start();
    pgkeep.ok(["backup"]);
    assert_eq!(Opened::new(&pgkeep).backups().len(), 1);
}
