//! Restores of what the backup pipeline stored, by the program, killed on the way.

use std::{fs, path::Path, process::Command, time::Duration};

use crate::support::{
    Cluster, Pgkeep,
    install::{program, run},
    on_each_version,
};

on_each_version!(a_restore_killed_at_any_time_does_not_start_and_can_be_run_again);

fn a_restore_killed_at_any_time_does_not_start_and_can_be_run_again(version: u32) {
    let cluster = Cluster::builder(version).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    let space = pgkeep.scratch().folder("space");
    cluster.sql(&format!("CREATE TABLESPACE s LOCATION '{}'", space.display()));
    cluster.make_table("t", 20_000);
    cluster.sql("CREATE TABLE u TABLESPACE s AS SELECT * FROM t");
    if version >= 16 {
        // 15 leaves tablespaces that lie in place out of its backups, and pgkeep says so.
        cluster.sql("CREATE TABLESPACE here LOCATION ''");
        cluster.sql("CREATE TABLE v TABLESPACE here AS SELECT * FROM t LIMIT 10");
    }
    pgkeep.ok(["backup", "--type", "full"]);
    let tables = cluster.digests();
    let oid = cluster.sql("SELECT oid FROM pg_tablespace WHERE spcname = 's'");

    let data = pgkeep.scratch().join("restored");
    let moved = pgkeep.scratch().join("moved");
    let map = format!("{oid}={}", moved.display());
    let arguments = ["restore", "--pgdata", data.to_str().unwrap(), "--target-immediate"];
    let arguments = [&arguments[..], &["--target-action", "promote", "--tablespace-map", &map]];
    let arguments = arguments.concat();

    let marker = data.join("pgkeep-restore.json");
    let mut interrupted = 0;
    for attempt in 0..12u64 {
        let output = pgkeep.spawn(&arguments).kill_after(Duration::from_millis(10 + attempt * 40));
        if output.code == 0 {
            break;
        }
        assert!(output.code < 0, "{output}");
        interrupted += u32::from(data.exists());
        if data.join("global/pg_control").exists() {
            // All was durable by then; only the marker may be left.
            let marker = fs::read_to_string(&marker).unwrap_or_default();
            assert!(marker.is_empty() || marker.contains("\"finishing\""), "it could start");
            break;
        }
    }
    if !data.join("global/pg_control").exists() || marker.exists() {
        pgkeep.ok(&arguments);
    }
    eprintln!("{interrupted} restores were interrupted while they wrote");
    if version <= 16 {
        // 15's tool reads the manifests of its own version's format.
        run(Command::new(program(15, "pg_verifybackup")).arg("-n").arg(&data));
    }
    let mut restored = Cluster::at(&data, version);
    restored.start();
    restored.wait_for_primary(60);
    assert_eq!(restored.digests(), tables);
    assert_eq!(real_path(&data.join("pg_tblspc").join(&oid)), moved);
    let in_use = pgkeep.fails(&arguments);
    assert!(in_use.stderr.contains("a server may be running there"), "{in_use}");
    assert_eq!(restored.digests(), tables);
}

fn real_path(path: &Path) -> std::path::PathBuf {
    fs::read_link(path).unwrap()
}
