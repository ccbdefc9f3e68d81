//! Tablespaces come back where they are told to, and never into the original's.

use std::fs;

use super::Site;
use crate::support::{Scratch, Stop, install, on_each_version};

on_each_version!(tablespaces_are_remapped_and_the_original_is_left_alone);

fn tablespaces_are_remapped_and_the_original_is_left_alone(version: u32) {
    let mut site = Site::new(version);
    let (first, second, new) = (Scratch::new("space"), Scratch::new("space"), Scratch::new("new"));
    for (name, place) in [("one", &first), ("two", &second)] {
        site.cluster
            .sql(&format!("CREATE TABLESPACE {name} LOCATION '{}'", place.path().display()));
        site.cluster.sql(&format!(
            "CREATE TABLE in_{name} TABLESPACE {name} AS SELECT n AS id, repeat('x', 90) AS filler \
             FROM generate_series(1, 4000) n"
        ));
    }
    site.pgkeep.ok(["backup"]);
    let expected = site.cluster.digests();
    site.archive_all();

    // Not mapped, and the original is there: refused, and nothing written.
    let place = site.place("unmapped").display().to_string();
    let refused = site.pgkeep.fails(["restore", "--pgdata", &place]);
    assert!(refused.stderr.contains(&first.path().display().to_string()), "{refused}");
    let unknown = site.pgkeep.fails(["restore", "--pgdata", &place, "--tablespace-map", "1=/x"]);
    assert_eq!(unknown.code, 2, "{unknown}");

    // One by its id, the other by its path.
    let oid = site.cluster.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'one'");
    let one = format!("{oid}={}", new.path().join("one").display());
    let two = format!("{}={}", second.path().display(), new.path().join("two").display());
    let mut restored =
        site.restore("mapped", &["--tablespace-map", &one, "--tablespace-map", &two]);
    if version <= 16 {
        let verify = install::program(15, "pg_verifybackup");
        install::run(install::command(verify).arg("-n").arg(restored.pgdata()));
    }
    restored.start();
    restored.wait_for_primary(60);
    assert_eq!(restored.digests(), expected);
    restored.sql("INSERT INTO in_one VALUES (0, 'only in the copy')");
    let location = format!("SELECT pg_tablespace_location({oid})");
    assert_eq!(restored.sql(&location), new.path().join("one").display().to_string());
    assert_eq!(site.cluster.digests(), expected, "the original is as it was");
    restored.stop(Stop::Fast);

    // Where the original is gone, its place is taken again.
    site.cluster.stop(Stop::Fast);
    for place in [&first, &second] {
        for entry in fs::read_dir(place.path()).unwrap().flatten() {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    let mut again = site.restore("again", &[]);
    again.start();
    again.wait_for_primary(60);
    assert_eq!(again.digests(), expected);
}

on_each_version!(a_tablespace_that_replay_makes_is_not_made_in_the_midst_of_anothers: 15 postgres_15, 18 postgres_18);

/// One that was made after the backup, so that no mapping leads elsewhere.
fn a_tablespace_that_replay_makes_is_not_made_in_the_midst_of_anothers(version: u32) {
    let mut site = Site::new(version);
    let space = Scratch::new("space");
    let place = space.path().display().to_string();
    site.pgkeep.ok(["backup"]);
    // The first one is there still when the WAL is handed over in which the second one takes its place.
    site.cluster.sql(&format!("CREATE TABLESPACE one LOCATION '{place}'"));
    site.cluster.sql("CREATE TABLE t TABLESPACE one AS SELECT n FROM generate_series(1, 4000) n");
    site.archive_all();
    site.cluster.sql("DROP TABLE t");
    site.cluster.sql("DROP TABLESPACE one");
    site.cluster.sql(&format!("CREATE TABLESPACE two LOCATION '{place}'"));
    site.cluster.sql("CREATE TABLE t TABLESPACE two AS SELECT n FROM generate_series(1, 5000) n");
    site.archive_all();
    site.cluster.sql("UPDATE t SET n = -n");
    site.cluster.sql("CHECKPOINT");
    let expected = site.cluster.digests();
    let mut copy = site.restore("copy", &[]);
    let log = copy.try_start().expect_err("it would write to the original's files");
    assert!(log.contains(&format!("made, at {place}, which replay would make")), "{log}");
    assert!(log.contains(&format!("--tablespace-map {place}=")), "{log}");
    assert_eq!(site.cluster.digests(), expected);

    site.archive_all();
    site.cluster.stop(Stop::Fast);
    for entry in fs::read_dir(space.path()).unwrap().flatten() {
        fs::remove_dir_all(entry.path()).unwrap();
    }
    copy.start();
    copy.wait_for_primary(60);
    assert_eq!(copy.digests(), expected);
}

#[test]
fn a_tablespace_inside_the_data_directory_is_restored_outside_it() {
    let mut site = Site::new(15);
    let inside = site.cluster.pgdata().join("spaces");
    install::run(install::command("mkdir").args(["-m", "0700"]).arg(&inside));
    site.cluster.sql(&format!("CREATE TABLESPACE near LOCATION '{}'", inside.display()));
    site.cluster.sql("CREATE TABLE t TABLESPACE near AS SELECT n FROM generate_series(1, 4000) n");
    let oid = site.cluster.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'near'");
    site.pgkeep.ok(["backup"]);
    let expected = site.cluster.digests();
    site.archive_all();

    let refuse = |place: &str| {
        let refused = site.pgkeep.fails(["restore", "--pgdata", place]);
        assert_eq!(refused.code, 2, "{refused}");
        let what = format!("tablespace {oid} would lie at {}", inside.display());
        for words in [&*what, "only to a place outside", &format!("--tablespace-map {oid}=DIR")] {
            assert!(refused.stderr.contains(words), "{words}: {refused}");
        }
    };
    // Beside the original, whose it would be, and in its place.
    refuse(&site.place("beside").display().to_string());
    assert!(!site.place("beside").exists(), "nothing was touched");
    site.cluster.stop(Stop::Fast);
    let pgdata = site.cluster.pgdata().to_owned();
    fs::rename(&pgdata, pgdata.with_extension("aside")).unwrap();
    refuse(&pgdata.display().to_string());
    assert!(!pgdata.exists(), "nothing was touched");

    let map = format!("{oid}={}", site.place("near").display());
    let mut restored = site.restore("outside", &["--tablespace-map", &map]);
    restored.start();
    restored.wait_for_primary(60);
    assert_eq!(restored.digests(), expected);
}
