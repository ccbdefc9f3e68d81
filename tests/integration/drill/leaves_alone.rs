//! The original notices nothing of a drill on its own host.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::Site;
use crate::support::{Cluster, Scratch, objects::objects, wait_until};

/// What is below a directory: names, sizes and when they were changed.
fn state(root: &Path) -> BTreeMap<PathBuf, (u64, i64, i64)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                folders.push(entry.path());
            }
            found.insert(entry.path(), (meta.len(), meta.mtime(), meta.mtime_nsec()));
        }
    }
    found
}

#[test]
fn nothing_of_the_original_is_touched() {
    let publisher = Cluster::builder(17).conf("wal_level = logical").start();
    publisher.sql("CREATE TABLE t (n int PRIMARY KEY)");
    publisher.sql("CREATE PUBLICATION p FOR TABLE t");
    let mut builder = Cluster::builder(17).wal_segsize(1).checksums(true);
    for setting in ["autovacuum = off", "archive_timeout = 0", "bgwriter_delay = '10ms'"] {
        builder = builder.conf(setting);
    }
    let site = Site::of(builder.start());
    let sql = |sql: &str| site.cluster.sql(sql);
    let space = Scratch::new("space");
    sql(&format!("CREATE TABLESPACE there LOCATION '{}'", space.path().display()));
    sql("CREATE TABLE far TABLESPACE there AS SELECT generate_series(1, 3000) AS n");
    sql("CREATE TABLE t (n int PRIMARY KEY)");
    sql(&format!(
        "CREATE SUBSCRIPTION s CONNECTION '{} dbname=postgres' PUBLICATION p",
        publisher.conninfo()
    ));
    let active = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 's' AND active";
    wait_until("the subscription runs", 60, || !publisher.sql(active).is_empty());

    // What the original's ALTER SYSTEM has set would show.
    let scratch = site.pgkeep.scratch();
    let (ran, pid) = (scratch.path().join("ran"), scratch.path().join("pid"));
    let command = format!("pwd >> {}; {}", ran.display(), site.pgkeep.archive_command());
    sql(&format!("ALTER SYSTEM SET archive_command = '{}'", command.replace('\'', "''")));
    sql(&format!("ALTER SYSTEM SET external_pid_file = '{}'", pid.display()));
    sql("ALTER SYSTEM SET shared_preload_libraries = 'there_is_no_such_library'");
    sql("ALTER SYSTEM SET listen_addresses = '*'");
    sql("ALTER SYSTEM SET restore_command = 'false'");
    site.cluster.reload();
    site.backup("full");
    sql("INSERT INTO far VALUES (0)");
    site.archive_all();
    sql("CHECKPOINT");
    site.queries(&[
        ("postgres", "SELECT count(*) FROM far", "3001"),
        ("postgres", "SELECT subenabled FROM pg_subscription", "t"),
        // The launcher would have had time for it.
        (
            "postgres",
            "SELECT pg_sleep(3); SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE \
             'logical%'",
            "0",
        ),
        ("postgres", "INSERT INTO far SELECT 9 FROM generate_series(1, 9999)", ""),
        ("postgres", "SELECT pg_switch_wal() IS NOT NULL; CHECKPOINT", "t"),
    ]);
    let slot = publisher.sql(active);
    let wal = |names: &mut Vec<String>| names.retain(|name| name.contains("/wal/"));
    let archived = || {
        let all = objects(&site.pgkeep.repository()).into_iter();
        let mut names: Vec<String> = all.map(|object| object.name).collect();
        wal(&mut names);
        names
    };
    let pg_wal = || state(&site.cluster.pgdata().join("pg_wal"));
    // The background writer logs the running transactions once more, within 15 s of when it last
    // did (LOG_SNAPSHOT_INTERVAL_MS in bgwriter.c) and 50 of its delays. Then the original is quiet.
    let (checkpointed, since) = (pg_wal(), Instant::now());
    wait_until("the original is quiet", 60, || {
        pg_wal() != checkpointed || since.elapsed() > Duration::from_secs(20)
    });
    let before = (archived(), pg_wal(), state(space.path()));
    let base = state(&site.cluster.pgdata().join("base"));
    site.drill(&[]).passed();
    let after = (archived(), pg_wal(), state(space.path()));
    assert_eq!(before, after);
    assert_eq!(base, state(&site.cluster.pgdata().join("base")));
    assert_eq!(publisher.sql(active), slot, "the subscription is the original's");
    assert!(!pid.exists());
    let original = format!("{}\n", site.cluster.pgdata().display());
    let ran = fs::read_to_string(&ran).unwrap().replace(&original, "");
    assert_eq!(ran, "", "archive_command ran elsewhere");
    assert_eq!(sql("SELECT count(*) FROM far"), "3001");
}

/// Replay makes a new tablespace where the original has it, whatever was mapped elsewhere.
#[test]
fn wal_that_would_be_replayed_into_the_originals_tablespace_is_refused() {
    let site = Site::new(17);
    let (old, new) = (Scratch::new("space"), Scratch::new("space"));
    site.cluster.sql(&format!("CREATE TABLESPACE one LOCATION '{}'", old.path().display()));
    let first = site.backup("full");
    site.archive_all();
    site.drill(&[]).passed();
    site.cluster.sql(&format!("CREATE TABLESPACE two LOCATION '{}'", new.path().display()));
    site.cluster.sql("CREATE TABLE t TABLESPACE two AS SELECT generate_series(1, 3000) AS n");
    site.cluster.sql("CHECKPOINT");
    site.archive_all();
    site.cluster.sql("UPDATE t SET n = 0");
    site.archive_all();
    site.cluster.sql("CHECKPOINT");
    let before = state(new.path());
    let output = site.pgkeep.fails(["drill"]);
    assert_eq!(output.code, 9, "{output}");
    let place = new.path().display().to_string();
    assert!(output.stderr.contains(&place), "{output}");
    assert!(output.stderr.contains("hint: take a backup and drill that one"), "{output}");
    site.nothing_is_left();
    assert_eq!(before, state(new.path()));
    assert_eq!(site.cluster.sql("SELECT sum(n) FROM t"), "0");
    // Up to before that, and from a backup that has it.
    site.drill(&["--backup", &first, "--target-immediate"]).passed();
    site.backup("full");
    let before = state(new.path());
    site.drill(&[]).passed();
    assert_eq!(before, state(new.path()));
}
