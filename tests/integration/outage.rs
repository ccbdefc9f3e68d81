//! What PostgreSQL does when pgkeep can't reach its repository, or is killed: exit codes are only
//! as good as what the server makes of them.

use std::{ffi::OsString, fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use crate::support::{Cluster, Pgkeep, Scratch, scratch::write, wait_until};

/// A cluster with small segments, a backup, and ten segments of WAL after it in the repository.
fn archived(version: u32) -> (Cluster, Pgkeep) {
    let cluster = Cluster::builder(version).wal_segsize(1).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    pgkeep.set("cluster.main", "outage-timeout = \"0s\"");
    cluster.make_table("t", 100);
    pgkeep.ok(["backup"]);
    for _ in 0..10 {
        cluster.insert("t", 100);
        archive(&cluster);
    }
    (cluster, pgkeep)
}

/// Closes a segment and waits until it is archived.
fn archive(cluster: &Cluster) -> String {
    let closed = cluster.switch_wal();
    let archived = format!("SELECT last_archived_wal >= '{closed}' FROM pg_stat_archiver");
    wait_until("the segment is archived", 60, || cluster.sql(&archived) == "t");
    closed
}

/// A `restore_command` that takes the repository away the third time it is called, before it asks
/// pgkeep. It can be taken for a disk that fails in the middle of a recovery.
fn losing_the_repository(scratch: &Scratch, pgkeep: &Pgkeep) -> String {
    let script = format!(
        "#!/bin/sh\n\
         echo \"$1\" >>{calls}\n\
         [ $(wc -l <{calls}) -lt 3 ] || mv {repository} {repository}.away 2>/dev/null\n\
         exec {command}\n",
        calls = scratch.path().join("calls").display(),
        repository = pgkeep.repository().display(),
        command = pgkeep.restore_command().replace("%f", "\"$1\"").replace("%p", "\"$2\""),
    );
    let path = scratch.file("restore.sh", script);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("chmod");
    format!("restore_command={} %f %p", path.display())
}

fn bring_back(pgkeep: &Pgkeep) {
    let mut away = pgkeep.repository().into_os_string();
    away.push(".away");
    fs::rename(away, pgkeep.repository()).expect("bring the repository back");
}

#[test]
fn an_outage_in_the_middle_of_a_recovery_stops_it() {
    let version = 18;
    let (cluster, pgkeep) = archived(version);
    let expected = cluster.digest("t");
    let place = pgkeep.scratch().path().join("restored");
    let arguments = ["restore", "--archive-mode", "off", "--pgdata"];
    pgkeep.ok(arguments.iter().map(AsRef::as_ref).chain([place.as_os_str()]));

    let scratch = Scratch::new("outage");
    let mut restored = Cluster::at(&place, version);
    restored.option(&losing_the_repository(&scratch, &pgkeep));
    restored.spawn();
    restored.wait_for_end(120);
    let log = restored.log();
    assert!(log.contains("FATAL"), "{log}");
    assert!(!log.contains("archive recovery complete"), "{log}");
    assert!(place.join("recovery.signal").exists(), "it would still recover");
    assert!(!place.join("pg_wal/00000002.history").exists(), "it has not promoted");
    drop(restored);

    // When the repository is back, the same directory recovers to the end.
    bring_back(&pgkeep);
    let mut restored = Cluster::at(&place, version);
    restored.start();
    restored.wait_for_primary(120);
    assert_eq!(restored.digest("t"), expected);
}

#[test]
fn a_standby_sits_an_outage_out_unless_it_is_told_to_stop() {
    let (primary, pgkeep) = archived(15);
    let restore = |name: &str| {
        let place = pgkeep.scratch().path().join(name);
        let conninfo = format!("primary_conninfo={}", primary.conninfo());
        pgkeep.ok([
            "restore",
            "--standby",
            "--archive-mode",
            "off",
            "--set",
            &conninfo,
            "--pgdata",
            &place.display().to_string(),
        ]);
        place
    };
    let (sits, stops) = (restore("sits"), restore("stops"));
    // What the archive lacks from here on comes from the primary.
    primary.sql("SELECT pg_create_physical_replication_slot('kept', true)");
    primary.insert("t", 5);

    let scratch = Scratch::new("outage");
    let mut standby = Cluster::at(&sits, 15);
    standby.option(&losing_the_repository(&scratch, &pgkeep));
    standby.start();
    primary.insert("t", 5);
    standby.catch_up_with(&primary);
    assert_eq!(standby.digest("t"), primary.digest("t"));
    assert!(standby.log().contains("standby-outage"), "{}", standby.log());
    assert_eq!(standby.sql("SELECT pg_is_in_recovery()"), "t");
    drop(standby);

    bring_back(&pgkeep);
    pgkeep.set("cluster.main", "standby-outage = \"stop\"");
    let scratch = Scratch::new("outage");
    let mut standby = Cluster::at(&stops, 15);
    standby.option(&losing_the_repository(&scratch, &pgkeep));
    standby.spawn();
    standby.wait_for_end(120);
    assert!(stops.join("standby.signal").exists());
    assert!(!stops.join("pg_wal/00000002.history").exists());
}

/// What a directory holds of these files, by checksum, and the names of all else that isn't a
/// segment: the server goes on writing segments of its own.
fn held(folder: &Path, files: &[String]) -> (Vec<blake3::Hash>, Vec<OsString>) {
    let content = |name: &String| blake3::hash(&fs::read(folder.join(name)).expect("read a file"));
    let names = fs::read_dir(folder).expect("read a folder").flatten().map(|e| e.file_name());
    let mut foreign: Vec<_> = names.filter(|name| name.len() != 24).collect();
    foreign.sort();
    (files.iter().map(content).collect(), foreign)
}

#[test]
fn a_push_killed_anywhere_can_be_made_again() {
    let cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    pgkeep.ok(["check"]);
    // From here on the test is the archiver.
    cluster.conf("archive_command = ''");
    cluster.reload();
    let segments: Vec<String> = (0..8)
        .map(|_| {
            cluster.sql("CREATE TABLE IF NOT EXISTS t (x text)");
            cluster.sql("INSERT INTO t SELECT md5(n::text) FROM generate_series(1, 20000) n");
            cluster.switch_wal()
        })
        .collect();
    let pg_wal = cluster.pgdata().join("pg_wal");
    let before = held(&pg_wal, &segments);

    let push = |segment: &str| vec!["archive-push".to_owned(), format!("pg_wal/{segment}")];
    let mut killed = 0;
    for (round, segment) in segments.iter().enumerate() {
        // At a moment that differs: while it starts, stores, syncs, or has stored.
        let time = Duration::from_millis(4 * round as u64 * round as u64);
        let mut running = pgkeep.command(push(segment));
        running.current_dir(cluster.pgdata());
        killed += usize::from(crate::support::pgkeep::start(running).kill_after(time).code < 0);
        for _ in 0..2 {
            let again = pgkeep.run_in(cluster.pgdata(), push(segment));
            assert_eq!(again.code, 0, "{again}");
        }
    }
    assert!(killed > 0, "none was killed: this tests nothing");
    assert_eq!(held(&pg_wal, &segments), before, "changed, moved or added in pg_wal");

    let destination = pgkeep.scratch().folder("got");
    for segment in &segments {
        let place = destination.join("RECOVERYXLOG");
        let arguments = ["archive-get".as_ref(), segment.as_ref(), place.as_os_str()];
        // A get that was killed leaves nothing that the next one stumbles over.
        drop(pgkeep.spawn(arguments).kill_after(Duration::from_millis(30)));
        let got = pgkeep.run(arguments);
        assert_eq!(got.code, 0, "{got}");
        let content = blake3::hash(&fs::read(&place).expect("read"));
        assert_eq!(content, blake3::hash(&fs::read(pg_wal.join(segment)).expect("read")));
        fs::remove_file(&place).expect("remove");
        assert!(held(&destination, &[]).1.is_empty(), "{:?}", held(&destination, &[]).1);
    }
}

#[test]
fn a_backup_and_its_archiving_leave_the_data_directory_alone() {
    let cluster = Cluster::builder(18).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    cluster.make_table("t", 1000);
    cluster.sql("CHECKPOINT");
    write(&cluster.pgdata().join("pg_wal/foreign"), "not ours");
    let names = || {
        let all = crate::support::install::run(
            std::process::Command::new("find").arg(cluster.pgdata()).args(["-printf", "%P %i\n"]),
        );
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
    archive(&cluster);
    pgkeep.ok(["backup"]);
    pgkeep.ok(["info"]);
    assert_eq!(names(), before, "names and inodes");
}
