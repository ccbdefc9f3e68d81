//! Backups whose WAL doesn't arrive fail at their beginning, say why, and leave nothing.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use super::tree::Opened;
use crate::support::{
    Cluster, Pgkeep, Stop, install,
    objects::{ObjectKind, objects},
    pgkeep::Output,
    scratch, wait_until,
};

/// Takes a backup that has to fail with this exit code and leave nothing of it.
fn fails(pgkeep: &Pgkeep, code: i32) -> Output {
    let output = pgkeep.fails(["backup"]);
    assert_eq!(output.code, code, "{output}");
    let backup = |kind| {
        use ObjectKind::{Begin, Deleted, Lease, Manifest, Pack, Record};
        [Begin, Deleted, Lease, Manifest, Pack, Record].contains(&kind)
    };
    let left: Vec<_> =
        objects(&pgkeep.repository()).into_iter().filter(|o| backup(o.kind)).collect();
    assert!(left.is_empty(), "{left:?}");
    output
}

#[test]
fn archiving_that_is_off_or_empty_is_refused_at_once() {
    let mut cluster = Cluster::builder(15).conf("archive_mode = off").start();
    let pgkeep = Pgkeep::new(&cluster);
    pgkeep.init();
    let output = fails(&pgkeep, 7);
    assert!(output.stderr.contains("archive_mode is off"), "{output}");
    assert!(output.stderr.contains("archive_mode = on"), "{output}");

    cluster.conf("archive_mode = on");
    cluster.restart();
    let output = fails(&pgkeep, 7);
    assert!(output.stderr.contains("archive_command is empty"), "{output}");

    cluster.conf("archive_mode = off\nwal_level = minimal\nmax_wal_senders = 0");
    cluster.restart();
    // Without WAL senders there isn't even a connection.
    fails(&pgkeep, 6);
}

#[test]
fn a_server_whose_timeline_is_anothers_in_the_archive_is_not_backed_up() {
    let mut cluster = Cluster::builder(15).wal_segsize(1).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    pgkeep.ok(["check"]);
    // Another server has promoted to timeline 2 before, at another place.
    let history = cluster.pgdata().join("pg_wal/00000002.history");
    scratch::write(&history, "1\t0/10000000\tanother went here\n");
    let pushed = pgkeep.run_in(cluster.pgdata(), ["archive-push", "pg_wal/00000002.history"]);
    assert_eq!(pushed.code, 0, "{pushed}");
    std::fs::remove_file(&history).expect("remove it");
    cluster.stop(Stop::Fast);
    cluster.conf("restore_command = 'false'\narchive_command = 'true'");
    scratch::write(&cluster.pgdata().join("recovery.signal"), "");
    cluster.start();
    cluster.wait_for_primary(60);
    let output = fails(&pgkeep, 9);
    assert!(output.stderr.contains("two servers went separate ways"), "{output}");
}

#[test]
fn archiving_that_fails_is_found_out_before_much_is_read() {
    let cluster = Cluster::builder(15).conf("archive_command = 'false'").start();
    let pgkeep = Pgkeep::new(&cluster);
    pgkeep.init();
    pgkeep.set("cluster.main", "archive-timeout = \"3s\"");
    let begin = Instant::now();
    let output = fails(&pgkeep, 7);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    let segment = "000000010000000000000001";
    assert!(output.stderr.contains(&format!("WAL segment {segment} didn't arrive")), "{output}");
    assert!(output.stderr.contains("the archiver failed last with"), "{output}");
    assert!(output.stderr.contains("archive_command is \"false\""), "{output}");
    assert!(!output.stderr.contains("reading the cluster"), "{output}");

    // Archiving into nowhere looks fine to PostgreSQL.
    cluster.conf("archive_command = 'true'");
    cluster.reload();
    let output = fails(&pgkeep, 7);
    assert!(output.stderr.contains("does it archive into this repository?"), "{output}");
}

#[test]
fn an_idle_primary_is_backed_up_again_and_again() {
    let cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    for _ in 0..3 {
        pgkeep.ok(["backup"]);
    }
    // Into a new repository the next one proves a segment of its own too, although nothing was
    // written since the last switch.
    let again = Pgkeep::archiving(&cluster);
    again.set("cluster.main", "archive-timeout = \"10s\"");
    again.ok(["backup"]);
    assert_eq!(Opened::new(&pgkeep).backups().len(), 3);
    assert_eq!(Opened::new(&again).backups().len(), 1);
}

#[test]
fn the_server_waits_while_archiving_is_being_proven() {
    // Longer than the server waits for an answer of a standby.
    let cluster = Cluster::builder(15).conf("wal_sender_timeout = 1s").start();
    cluster.make_table("rows", 200_000);
    let pgkeep = Pgkeep::archiving(&cluster);
    cluster.conf(&format!("archive_command = 'sleep 4; {}'", pgkeep.archive_command()));
    cluster.reload();
    pgkeep.ok(["backup"]);
    assert_eq!(Opened::new(&pgkeep).backups().len(), 1);
}

#[test]
fn an_archiver_that_is_behind_is_waited_for() {
    let mut cluster = Cluster::builder(15).wal_segsize(1).conf("archive_command = 'false'").start();
    let pgkeep = Pgkeep::new(&cluster);
    pgkeep.init();
    // One push would catch up at once.
    pgkeep.without_state();
    pgkeep.set("cluster.main", "archive-timeout = \"2s\"");
    for _ in 0..8 {
        cluster.switch_wal();
    }
    cluster.conf(&format!("archive_command = 'sleep 0.8; {}'", pgkeep.archive_command()));
    cluster.restart();
    let output = pgkeep.ok(["backup"]);
    assert!(output.stderr.contains("archiver is behind"), "{output}");
}

#[test]
fn archiving_that_breaks_in_the_middle_fails_the_backup() {
    let cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    pgkeep.set("cluster.main", "archive-timeout = \"3s\"");
    let running = pgkeep.spawn(["backup", "--max-rate", "8M"]);
    std::thread::sleep(Duration::from_millis(1500));
    cluster.conf("archive_command = 'false'");
    cluster.reload();
    let output = running.wait();
    assert_eq!(output.code, 7, "{output}");
    assert!(output.stderr.contains("didn't arrive"), "{output}");
    assert!(Opened::new(&pgkeep).backups().is_empty());
}

#[test]
fn a_backup_and_its_archiving_leave_the_data_directory_alone() {
    let cluster = Cluster::builder(18).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    cluster.make_table("t", 1000);
    cluster.sql("CHECKPOINT");
    scratch::write(&cluster.pgdata().join("pg_wal/foreign"), "not ours");
    let names = || {
        let all =
            install::run(Command::new("find").arg(cluster.pgdata()).args(["-printf", "%P %i\n"]));
        let mut all: Vec<String> = all
            .lines()
            // The server's own coming and going.
            .filter(|line| !line.starts_with("pg_wal/0") && !line.starts_with("pg_wal/archive_st"))
            .filter(|line| !line.contains("pg_internal.init") && !line.starts_with("pg_stat"))
            .filter(|line| !line.starts_with("pg_logical/") && !line.starts_with("pg_dynshmem/"))
            .map(str::to_owned)
            .collect();
        all.sort();
        all
    };
    let before = names();
    pgkeep.ok(["check"]);
    let closed = cluster.switch_wal();
    let archived = format!("SELECT last_archived_wal >= '{closed}' FROM pg_stat_archiver");
    wait_until("the segment is archived", 60, || cluster.sql(&archived) == "t");
    pgkeep.ok(["backup"]);
    pgkeep.ok(["info"]);
    assert_eq!(names(), before, "names and inodes");
}
