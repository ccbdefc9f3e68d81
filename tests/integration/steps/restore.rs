//! A restore that dies at each step: nothing starts before it is whole, and it is run again into what it left.

use std::{fs, path::Path};

use crate::support::{
    Cluster, Pgkeep, on_each_version,
    pgkeep::{Output, run_to_end},
    steps::Death,
};

pub const STEPS: &[&str] = &[
    "restore: directories marked",
    "restore: directories emptied",
    "restore: files written",
    "restore: synced",
    "restore: all but pg_control is durable",
    "restore: tablespaces handed over",
    "restore: pg_control in place",
];

on_each_version!(a_restore_that_dies_at_any_step_is_run_again: 15 postgres_15, 18 postgres_18);

fn a_restore_that_dies_at_any_step_is_run_again(version: u32) {
    let cluster = Cluster::builder(version).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    let space = pgkeep.scratch().folder("space");
    cluster.sql(&format!("CREATE TABLESPACE s LOCATION '{}'", space.display()));
    cluster.make_table("t", 2000);
    cluster.sql("CREATE TABLE u TABLESPACE s AS SELECT * FROM t");
    pgkeep.ok(["backup"]);
    let tables = cluster.digests();
    let oid = cluster.sql("SELECT oid FROM pg_tablespace WHERE spcname = 's'");
    let map = format!("{oid}={}", pgkeep.scratch().join("moved").display());
    let death = Death::in_folder(pgkeep.scratch());
    let restore = |data: &Path| -> Output {
        let mut command = pgkeep.command(["restore", "--target-immediate"]);
        command
            .args(["--target-action", "promote", "--tablespace-map", &map, "--pgdata"])
            .arg(data);
        let (name, value) = death.variable();
        run_to_end(command.env(name, value))
    };
    let data = pgkeep.scratch().join("restored");
    for step in STEPS {
        death.at(step);
        let output = restore(&data);
        assert_eq!(output.code, -9, "{step}: {output}");
        assert!(death.has_come());
        let could_start = data.join("global/pg_control").exists();
        assert_eq!(could_start, *step == "restore: pg_control in place", "{step}");
        let marker = fs::read_to_string(data.join("pgkeep-restore.json")).expect("a marker");
        assert!(marker.contains(if could_start { "\"finishing\"" } else { "phase" }), "{marker}");
    }
    // What is there is whole; the marker says that it may be done again, and nothing else.
    let output = restore(&data);
    assert_eq!(output.code, 0, "{output}");
    let mut restored = Cluster::at(&data, version);
    restored.start();
    restored.wait_for_primary(60);
    assert_eq!(restored.digests(), tables);
}
