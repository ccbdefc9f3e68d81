//! What is sound passes, and what it cost is told.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{Site, outcome};
use crate::support::{
    Cluster, Scratch, Stop,
    objects::{ObjectKind, objects_of},
    on_each_version,
};

on_each_version!(
    each_kind_of_backup_passes: 15 postgres_15, 17 postgres_17, 18 postgres_18
);

fn each_kind_of_backup_passes(version: u32) {
    let site = Site::new(version);
    let space = Scratch::new("space");
    let sql = |sql: &str| site.cluster.sql(sql);
    sql(&format!("CREATE TABLESPACE there LOCATION '{}'", space.path().display()));
    sql("CREATE TABLE far TABLESPACE there AS SELECT generate_series(1, 3000) AS n");
    sql("CREATE TABLE near (n int PRIMARY KEY, t text)");
    let mut backups = Vec::new();
    for (i, kind) in ["full", "diff", "incr"].into_iter().enumerate() {
        backups.push(site.backup(kind));
        sql(&format!("INSERT INTO near VALUES ({i}, NULL)"));
        sql(&format!("DELETE FROM far WHERE n = {i}"));
    }
    site.archive_all();
    let before = Utc::now();
    site.queries(&[
        ("postgres", "SELECT count(*) FROM far", "2998"),
        ("postgres", "SELECT n, t, n = 1 FROM public.near ORDER BY n", "0||f\n1||t\n2||f"),
        // Where it is, and what it doesn't do.
        (
            "postgres",
            "SELECT pg_tablespace_location(oid) LIKE '%/drills/pgkeep-drill-%/tablespaces/%' \
             FROM pg_tablespace WHERE spcname = 'there'",
            "t",
        ),
        (
            "postgres",
            "SELECT string_agg(setting, '|' ORDER BY name) FROM pg_settings WHERE name IN \
             ('archive_mode', 'listen_addresses', 'max_logical_replication_workers')",
            "off||0",
        ),
        ("template1", "SELECT pg_is_in_recovery()", "f"),
    ]);

    for id in &backups {
        let document = site.drill(&["--backup", id]).passed();
        assert_eq!(document["backup"], id.as_str());
        let last =
            DateTime::parse_from_rfc3339(document["rpo"]["last-transaction"].as_str().unwrap())
                .unwrap_or_else(|e| panic!("{e}: {document:#}"));
        assert!(last < before && (before - last.to_utc()).num_seconds() < 60, "{document:#}");
        assert_eq!(document["rpo"]["replayed-lsn"], document["rpo"]["archive-lsn"]);
        assert_eq!(document["rpo"]["behind"], 0.0);
        let rto = &document["rto"];
        let seconds = |phase: &str| rto[phase].as_f64().unwrap_or_else(|| panic!("{rto}"));
        let sum = seconds("fetch") + seconds("replay") + seconds("open");
        assert!((sum - seconds("total")).abs() < 0.001 && seconds("fetch") > 0.0, "{rto}");
        let amcheck = if version == 15 { "passed" } else { "skipped" };
        assert_eq!(outcome(&document, "amcheck"), amcheck);
        for name in ["restore", "recovery", "query 5", "page-checksums"] {
            assert_eq!(outcome(&document, name), "passed");
        }
        let server = document["versions"]["server"].as_str().unwrap();
        assert!(server.starts_with(&version.to_string()), "{server}");
    }

    // What was found is kept, and is no stranger there.
    assert_eq!(objects_of(&site.pgkeep.repository(), ObjectKind::Drill).len(), 3);
    assert!(objects_of(&site.pgkeep.repository(), ObjectKind::Lease).is_empty());
    let info = site.pgkeep.json(["info"]);
    let drills = info["repositories"][0]["drills"].as_array().expect("drills");
    // Two may have begun within one second, which has no order.
    let mut drilled: Vec<&str> = drills.iter().map(|d| d["backup"].as_str().unwrap()).collect();
    drilled.sort_unstable();
    let mut backups = backups.clone();
    backups.sort_unstable();
    assert_eq!(drilled, backups);
    assert!(drills.iter().all(|drill| drill["passed"] == true), "{drills:?}");
    let text = site.pgkeep.ok(["info"]).stdout;
    assert!(text.contains("last drills\n") && text.contains("  passed  "), "{text}");
    site.pgkeep.ok(["verify", "--level", "full"]);
}

/// Which backup and up to where can be said; what a target leaves out is told.
#[test]
fn a_backup_and_a_target_can_be_named() {
    let site = Site::new(17);
    let first = site.backup("full");
    site.cluster.sql("CREATE TABLE t AS SELECT 1 AS n");
    site.cluster.sql("SELECT pg_create_restore_point('here')");
    site.cluster.sql("INSERT INTO t VALUES (2)");
    let second = site.backup("incr");
    site.cluster.sql("INSERT INTO t VALUES (3)");
    site.archive_all();
    let newest = |rows: &str| site.queries(&[("postgres", "SELECT count(*) FROM t", rows)]);
    newest("3");
    assert_eq!(site.drill(&[]).passed()["backup"], second.as_str());
    let random = site.drill(&["--random"]).passed();
    assert!([&first, &second].iter().any(|id| random["backup"] == id.as_str()));

    site.pgkeep.edit(|text| text.replace("expect = \"3\"", "expect = \"1\""));
    let document = site.drill(&["--target-name", "here"]).passed();
    assert_eq!(document["backup"], first.as_str(), "the one that a restore begins with");
    assert!(document["rpo"]["behind"].as_f64() > Some(0.0), "{document:#}");
    assert_ne!(document["rpo"]["replayed-lsn"], document["rpo"]["archive-lsn"]);

    site.pgkeep.edit(|text| text.replace("expect = \"1\"", "expect = \"2\""));
    site.drill(&["--backup", &second, "--target-immediate"]).passed();
}

/// Behind a backup that is kept as a point WAL has expired: it is tried up to its own end.
#[test]
fn a_backup_that_is_kept_as_a_point_passes() {
    let site = Site::new(17);
    site.cluster.sql("CREATE TABLE t AS SELECT 1 AS n");
    let point = site.backup("full");
    site.pgkeep.ok(["pin", &point]);
    for n in 2..5 {
        site.cluster.sql(&format!("INSERT INTO t VALUES ({n})"));
        site.archive_all();
    }
    site.backup("full");
    site.cluster.sql("INSERT INTO t VALUES (5)");
    site.archive_all();
    site.pgkeep.add("[repository.main.retention]\nfull = 1");
    site.pgkeep.ok(["expire"]);
    site.queries(&[("postgres", "SELECT max(n) FROM t", "1")]);
    let document = site.drill(&["--backup", &point]).passed();
    assert_eq!(document["target"], "the end of the backup on timeline 1");
    site.pgkeep.edit(|text| text.replace("expect = \"1\"", "expect = \"5\""));
    site.drill(&[]).passed();
}

/// The original's limits were raised in the midst of the WAL, and a prepared transaction needs that.
#[test]
fn limits_that_are_raised_in_the_wal_are_no_hindrance() {
    let mut site = Site::of(Cluster::builder(15).wal_segsize(1).checksums(true).start());
    site.backup("full");
    site.cluster.conf("max_connections = 90\nmax_prepared_transactions = 30\nmax_wal_senders = 30");
    site.cluster.restart();
    let mut session = site.cluster.session();
    session.sql("CREATE TABLE t (n int)");
    session.sql("BEGIN");
    session.sql("INSERT INTO t VALUES (1)");
    session.sql("PREPARE TRANSACTION 'p'");
    site.archive_all();
    site.queries(&[("postgres", "SELECT gid FROM pg_prepared_xacts", "p")]);
    site.drill(&[]).passed();
    site.cluster.stop(Stop::Fast);
}

/// Where a host may only look, as one of CI, a drill is done all the same.
#[test]
fn a_result_that_cant_be_kept_is_a_warning() {
    if crate::support::places::skipped_on_s3("the permissions of a directory are changed") {
        return;
    }
    let site = Site::new(17);
    site.backup("full");
    let folder = site.pgkeep.repository().join("clusters/main");
    let mode = |mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o500);
    let output = site.pgkeep.run(["drill"]);
    mode(0o700);
    assert_eq!(output.code, 0, "{output}");
    assert!(output.stderr.contains("warning: the result isn't kept in the repository"), "{output}");
    site.nothing_is_left();
}

#[test]
fn what_is_kept_can_be_started_and_ci_reads_the_result() {
    let site = Site::new(17);
    let id = site.backup("full");
    site.cluster.sql("CREATE TABLE t AS SELECT 7 AS n");
    site.archive_all();
    site.queries(&[("postgres", "SELECT n FROM t", "8")]);
    let file = site.pgkeep.scratch().folder("ci").join("drill.xml");
    let output = site.pgkeep.run(["drill", "--keep", "--junit", file.to_str().unwrap()]);
    assert_eq!(output.code, 1, "{output}");
    assert!(output.stdout.contains("expected \"8\", came \"7\""), "{output}");
    assert!(output.stdout.ends_with("its server stopped.\n"), "{output}");
    let xml = std::fs::read_to_string(&file).unwrap();
    assert!(xml.contains("<testsuites name=\"pgkeep drill\">"), "{xml}");
    assert!(xml.contains("failures=\"1\" errors=\"0\" skipped=\"1\""), "{xml}");
    assert!(xml.contains("<failure type=\"query 1\""), "{xml}");

    let kept = super::names(&site.place);
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(super::processes_in(&site.place).is_empty());
    let mut left = Cluster::at(&site.place.join(&kept[0]).join("data"), 17);
    left.start();
    assert_eq!(left.sql("SELECT n FROM t"), "7");
    drop(left);

    let info: Value = site.pgkeep.json(["info"]);
    let drill = &info["repositories"][0]["drills"][0];
    assert_eq!((&drill["backup"], &drill["passed"]), (&id.into(), &false.into()), "{info:#}");
    assert_eq!(drill["failed"][0], "query 1");
}
