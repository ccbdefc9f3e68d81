//! Backups taken from a standby.

use std::time::Duration;

use pgkeep::{postgres::backup_label::BackupLabel, repo::record::Source};

use super::tree::Opened;
use crate::support::{
    Cluster, Pgkeep, Stop, Writes,
    objects::{ObjectKind, delete, objects_of},
    on_each_version, wait_until,
};

/// A primary that archives, and a configuration that backs up its standby.
fn pair(version: u32) -> (Cluster, Cluster, Pgkeep) {
    let primary = Cluster::builder(version).start();
    let pgkeep = Pgkeep::archiving(&primary);
    primary.make_table("rows", 1000);
    let standby = Cluster::standby_of(&primary);
    standby.catch_up_with(&primary);
    pgkeep.edit(|text| {
        text.replace(&primary.conninfo(), &standby.conninfo())
            .replace(primary.pgdata().to_str().unwrap(), standby.pgdata().to_str().unwrap())
    });
    // Archiving goes on from the primary, whose directory isn't the configured one any more.
    (primary, standby, pgkeep)
}

on_each_version!(a_busy_standby_is_backed_up);

fn a_busy_standby_is_backed_up(version: u32) {
    let (primary, standby, pgkeep) = pair(version);
    let writes = Writes::start(&primary, "writes");
    let running = pgkeep.spawn(["backup"]);
    let pid = running.pid();
    wait_until("the backup is done", 120, || {
        primary.switch_wal();
        std::thread::sleep(Duration::from_millis(300));
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        state.contains(") Z ") || state.is_empty()
    });
    let output = running.wait();
    writes.stop();
    assert_eq!(output.code, 0, "{output}");

    let opened = Opened::new(&pgkeep);
    let record = &opened.backups()[0];
    assert_eq!(record.source, Source::Standby);
    assert_eq!(record.system.identifier, standby.system_identifier());
    let tree = opened.tree(record);
    let label = tree[&b"backup_label"[..]].1.as_ref().unwrap();
    assert!(BackupLabel::parse(label).unwrap().from_standby);
    assert!(tree.contains_key(&b"standby.signal"[..]));
}

/// The segment before the last is closed, and only the primary can archive it.
#[test]
fn a_primary_that_archives_nothing_and_the_error_says_what_to_do() {
    let (primary, standby, pgkeep) = pair(15);
    pgkeep.set("cluster.main", "archive-timeout = \"3s\"");
    primary.conf("archive_command = '/bin/false'");
    primary.reload();
    primary.sql("CHECKPOINT");
    primary.switch_wal();
    primary.insert("rows", 10);
    wait_until("all is replayed", 20, || standby.lsn() >= primary.lsn());
    let output = pgkeep.fails(["backup"]);
    assert_eq!(output.code, 7, "{output}");
    assert!(output.stderr.contains("SELECT pg_switch_wal()"), "{output}");
    assert!(Opened::new(&pgkeep).backups().is_empty());
    pgkeep.archive(&primary);
    pgkeep.ok(["backup"]);
}

#[test]
fn a_promotion_during_the_backup_fails_it() {
    let (mut primary, standby, pgkeep) = pair(15);
    let running = pgkeep.spawn(["backup", "--max-rate", "2M"]);
    std::thread::sleep(Duration::from_millis(1500));
    primary.stop(Stop::Fast);
    standby.promote();
    let output = running.wait();
    assert_eq!(output.code, 6, "{output}");
    assert!(output.stderr.contains("the standby was promoted during"), "{output}");
    assert!(Opened::new(&pgkeep).backups().is_empty());

    // As a primary it is backed up like any other, with the history of its timeline.
    standby.conf(&format!("archive_command = '{}'", pgkeep.archive_command()));
    standby.reload();
    pgkeep.ok(["backup"]);
    let opened = Opened::new(&pgkeep);
    let record = &opened.backups()[0];
    assert_eq!((record.timeline.0, record.source), (2, Source::Primary));
    let history = objects_of(&pgkeep.repository(), ObjectKind::History);
    assert_eq!(history.len(), 1);

    // It is stored by the backup itself when the archive has lost it.
    delete(&history[0].path);
    pgkeep.ok(["backup"]);
    assert_eq!(objects_of(&pgkeep.repository(), ObjectKind::History), history);
}
