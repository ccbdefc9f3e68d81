//! What can't be restored is refused with the reason, and with what can.

use std::fs;

use super::Site;
use crate::support::objects::{ObjectKind, objects_of};

#[test]
fn a_target_that_cannot_be_reached_is_refused_with_what_can() {
    let site = Site::new(15);
    let original = &site.cluster;
    original.make_table("t", 100);
    let early = original.moment("t");
    site.archive_all();
    site.pgkeep.ok(["backup"]);
    let good = original.moment("t");
    original.restore_point("known");
    let last = original.moment("t");
    site.archive_all();

    let refuse = |name: &str, arguments: &[&str], code: i32, said: &[&str]| {
        let output = site.refuse(name, arguments);
        assert_eq!(output.code, code, "{arguments:?}: {output}");
        for words in said {
            assert!(output.stderr.contains(words), "{arguments:?}: {words:?} isn't in {output}");
        }
        assert!(!site.place(name).exists(), "{arguments:?}: nothing may be touched");
    };
    refuse(
        "early",
        &["--target-time", &early.time],
        8,
        &["before the first backup", "earliest possible"],
    );
    refuse("early-lsn", &["--target-lsn", &early.lsn], 8, &["earliest possible target is LSN"]);
    let future = "2100-01-01 00:00:00+00";
    refuse(
        "late",
        &["--target-time", future],
        8,
        &["the end of the WAL", "last transaction", "leave the target out"],
    );
    refuse("late-lsn", &["--target-lsn", "FF/0"], 8, &["the WAL ends at LSN"]);
    refuse("name", &["--target-name", "unknown"], 8, &["\"unknown\"", "\"known\" ("]);
    refuse("xid", &["--target-xid", "4000000000"], 8, &["transaction 4000000000"]);
    refuse(
        "timeline",
        &["--target-timeline", "7"],
        8,
        &["timeline 7 is not known", "00000007.history"],
    );
    refuse(
        "backup",
        &["--backup", "20200101T000000Z-full"],
        8,
        &["20200101T000000Z-full", "doesn't exist"],
    );
    refuse("two", &["--target-xid", "5", "--target-lsn", "0/1"], 2, &["cannot be used with"]);
    refuse("zone", &["--target-time", "2026-01-01 00:00:00"], 2, &["zone"]);
    refuse("13am", &["--target-time", "13am"], 2, &["write it as 2026-11-20"]);

    // A segment between backup and target goes missing.
    let segments = objects_of(&site.pgkeep.repository(), ObjectKind::Segment);
    let gone = &segments[segments.len() - 1];
    original.moment("t");
    site.archive_all();
    fs::remove_file(&gone.path).unwrap();
    let name = gone.name.rsplit('/').next().unwrap();
    refuse("gap", &["--target-time", &last.time], 7, &[name, "is missing", "pgkeep archive-push"]);
    refuse("gap-end", &[], 7, &[name, "gap"]);
    let info = site.pgkeep.ok(["info"]).stdout;
    assert!(info.contains(name), "the gap is shown: {info}");
    drop(good);
}

#[test]
fn a_directory_that_is_in_use_or_not_empty_is_refused() {
    let mut site = Site::new(15);
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    let pgdata = site.cluster.pgdata().display().to_string();
    let inside = format!("{pgdata}/base/new");
    let refused = site.pgkeep.fails(["restore", "--pgdata", &inside]);
    assert_eq!(refused.code, 2, "{refused}");
    assert!(refused.stderr.contains("is inside the data directory"), "{refused}");
    let running = site.pgkeep.fails(["restore", "--pgdata", &pgdata]);
    assert_eq!(running.code, 9, "{running}");
    assert!(running.stderr.contains("running"), "{running}");
    site.cluster.stop(crate::support::Stop::Fast);
    let stopped = site.pgkeep.fails(["restore", "--pgdata", &pgdata]);
    assert!(stopped.stderr.contains("empty"), "{stopped}");
    assert!(site.cluster.pgdata().join("global/pg_control").exists(), "untouched");
    site.cluster.start();
    assert_eq!(site.cluster.digest("t").rows, 10);
}
