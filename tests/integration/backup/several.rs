//! Several repositories, of which one fails: before a backup, in the middle of it, and back again.

use std::fs;

use serde_json::Value;

use crate::support::{Cluster, Pgkeep, on_each_version, pgkeep::Output, wait_until};

/// A cluster that archives into two repositories.
fn two_repositories(version: u32) -> (Cluster, Pgkeep) {
    let cluster = Cluster::builder(version).wal_segsize(1).start();
    let pgkeep = Pgkeep::new(&cluster);
    pgkeep.add_repository("offsite");
    pgkeep.init();
    pgkeep.archive(&cluster);
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 10000) AS n");
    (cluster, pgkeep)
}

/// The ids of a repository's backups, the newest last.
fn backups(pgkeep: &Pgkeep, repository: &str) -> Vec<String> {
    let info = pgkeep.json(["--repo", repository, "info"]);
    let systems = info["repositories"][0]["systems"].as_array().unwrap();
    let all = systems.iter().flat_map(|system| system["backups"].as_array().unwrap());
    all.map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
}

/// The backups of a run, by repository.
fn taken(output: &Output) -> Vec<(String, Value)> {
    let document: Value = serde_json::from_str(&output.stdout).unwrap_or(Value::Null);
    let taken = document["backups"].as_array().cloned().unwrap_or_default();
    let one =
        |taken: Value| (taken["repository"].as_str().unwrap().to_owned(), taken["backup"].clone());
    taken.into_iter().map(one).collect()
}

/// Takes the repository's directory away, as a disk that isn't mounted any more. In S3 the server fails.
fn away(pgkeep: &Pgkeep, repository: &str) {
    if let Some(server) = pgkeep.server() {
        return server.front().fail(repository);
    }
    let path = pgkeep.repository_of(repository);
    fs::rename(&path, path.with_extension("away")).expect("take it away");
}

fn back(pgkeep: &Pgkeep, repository: &str) {
    if let Some(server) = pgkeep.server() {
        return server.front().mend(repository);
    }
    let path = pgkeep.repository_of(repository);
    fs::rename(path.with_extension("away"), &path).expect("bring it back");
}

/// Restores the newest backup to the end of its WAL, and counts the rows.
fn rows(pgkeep: &Pgkeep, version: u32, options: &[&str], name: &str) -> String {
    pgkeep.restored(version, name, options).sql("SELECT count(*) FROM t")
}

on_each_version!(one_that_is_gone_keeps_the_other_from_nothing: 15 postgres_15, 17 postgres_17);

fn one_that_is_gone_keeps_the_other_from_nothing(version: u32) {
    let (cluster, pgkeep) = two_repositories(version);
    let first = pgkeep.json(["backup"]);
    assert_eq!(first["backups"].as_array().unwrap().len(), 2);
    assert_eq!(backups(&pgkeep, "main"), backups(&pgkeep, "offsite"));

    away(&pgkeep, "offsite");
    for (round, rows_then) in [(1, 11_000), (2, 12_000)] {
        cluster.sql("INSERT INTO t SELECT generate_series(1, 1000)");
        // The server is told that archiving fails, so it keeps its WAL; here, all of it arrives.
        let output = pgkeep.run(["--output", "json", "backup"]);
        assert_eq!(output.code, 3, "{output}");
        assert!(output.stderr.contains("offsite"), "{output}");
        let taken = taken(&output);
        assert_eq!(taken.len(), 1, "{output}");
        assert_eq!(taken[0].0, "main");
        assert_eq!(backups(&pgkeep, "main").len(), 1 + round);
        let name = format!("restored-{round}");
        // To the end of the WAL: that there is no more of it, the other one can't say now.
        let main = ["--repo", "main"];
        assert_eq!(rows(&pgkeep, version, &main, &name), rows_then.to_string());
    }
    let failed = cluster.sql("SELECT failed_count > 0 FROM pg_stat_archiver");
    assert_eq!(failed, "t", "a push that not every repository has is none");

    back(&pgkeep, "offsite");
    cluster.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    let segment = cluster.switch_wal();
    wait_until("the archive has caught up", 120, || {
        cluster.sql("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") >= segment
    });
    let both = pgkeep.json(["backup"]);
    for taken in both["backups"].as_array().unwrap() {
        // What only one of them has is no base.
        assert_eq!(taken["backup"]["base"], first["backups"][0]["backup"]["id"], "{taken:#}");
    }
    assert_eq!(backups(&pgkeep, "offsite").len(), 2);
    assert_eq!(backups(&pgkeep, "main").len(), 4);
    for repository in ["main", "offsite"] {
        let name = format!("restored-{repository}");
        assert_eq!(rows(&pgkeep, version, &["--repo", repository], &name), "13000");
    }
}

/// `gone` goes away while a backup is read; `other` gets its backup, and `gone` gets one when it is back.
fn goes_in_the_middle(gone: &str, other: &str) {
    let (cluster, pgkeep) = two_repositories(15);
    let running = pgkeep.spawn(["--output", "json", "backup", "--max-rate", "6M"]);
    wait_until("the backup has begun in both", 60, || {
        let begun = |repository: &str| {
            let folder = pgkeep.repository_of(repository).join("clusters/main/backups");
            fs::read_dir(folder).map_or(0, Iterator::count)
        };
        begun("main") == 1 && begun("offsite") == 1
    });
    std::thread::sleep(std::time::Duration::from_millis(1500));
    away(&pgkeep, gone);
    let output = running.wait();
    assert!(output.code != 0 && output.stderr.contains(gone), "{output}");
    let one = taken(&output);
    assert_eq!((one.len(), one[0].0.as_str()), (1, other), "{output}");
    assert_eq!(rows(&pgkeep, 15, &["--repo", other], "restored"), "10000");

    back(&pgkeep, gone);
    assert!(backups(&pgkeep, gone).is_empty());
    let segment = cluster.switch_wal();
    wait_until("the archive has caught up", 120, || {
        cluster.sql("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") >= segment
    });
    pgkeep.ok(["backup"]);
    pgkeep.ok(["expire"]);
    let info = pgkeep.json(["--repo", gone, "info"]);
    assert_eq!(info["repositories"][0]["unusable"].as_array().map(Vec::len), Some(0), "{info:#}");
    assert_eq!(rows(&pgkeep, 15, &["--repo", gone], "restored-again"), "10000");
}

#[test]
fn the_second_goes_in_the_middle() {
    goes_in_the_middle("offsite", "main");
}

#[test]
fn the_first_goes_in_the_middle() {
    goes_in_the_middle("main", "offsite");
}

#[test]
fn when_all_fail_there_is_no_backup() {
    let (_cluster, pgkeep) = two_repositories(15);
    away(&pgkeep, "offsite");
    away(&pgkeep, "main");
    let output = pgkeep.run(["backup"]);
    assert_eq!(output.code, 3, "{output}");
    assert!(output.stderr.contains("main") && output.stderr.contains("offsite"), "{output}");
    for repository in ["main", "offsite"] {
        back(&pgkeep, repository);
        assert!(backups(&pgkeep, repository).is_empty());
    }
}

#[test]
fn a_restore_goes_on_past_one_that_cant_be_reached() {
    let (cluster, pgkeep) = two_repositories(15);
    pgkeep.ok(["backup"]);
    // The server stops at the first record after its target, so there has to be one.
    cluster.sql("DELETE FROM t");
    let segment = cluster.switch_wal();
    wait_until("it is archived", 60, || {
        cluster.sql("SELECT last_archived_wal FROM pg_stat_archiver") >= segment
    });
    away(&pgkeep, "main");
    let place = pgkeep.scratch().path().join("restored");
    let path = place.to_string_lossy().into_owned();
    let arguments = ["restore", "--archive-mode", "off", "--target-immediate", "--pgdata", &path];
    let output = pgkeep.ok(arguments);
    assert!(output.stderr.contains("trying the other repositories"), "{output}");
    assert!(output.stderr.contains("its recovery won't end before"), "{output}");
    // What this one doesn't have, the other one may.
    let nowhere = format!("{path}-nowhere");
    let output = pgkeep.run(["restore", "--target-lsn", "FF/0", "--pgdata", &nowhere]);
    assert_eq!(output.code, 3, "{output}");
    assert!(output.stderr.contains("also: "), "{output}");
    // It pauses at its target, and every segment up to there comes from the other one.
    let mut restored = Cluster::at(&place, 15);
    restored.start();
    wait_until("the target is reached", 60, || {
        restored.sql("SELECT pg_get_wal_replay_pause_state()") == "paused"
    });
    assert_eq!(restored.sql("SELECT count(*) FROM t"), "10000");
}
