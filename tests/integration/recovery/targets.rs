//! Every kind of target brings exactly the rows that had committed by then.

use super::Site;
use crate::support::{Cluster, Stop, install, on_each_version, scratch};

on_each_version!(each_target_brings_what_had_committed_by_then);
on_each_version!(an_idle_cluster_restores_at_once);

fn each_target_brings_what_had_committed_by_then(version: u32) {
    let site = Site::new(version);
    let original = &site.cluster;
    // A target of the original's own, where nobody looks for it. A server takes one only.
    original.conf("include_if_exists = 'targets.conf'");
    let targets = "recovery_target_xid = '3'\nrecovery_target_inclusive = off\n";
    scratch::write(&original.pgdata().join("targets.conf"), targets);
    original.make_table("t", 2_000);
    original.sql("CREATE INDEX ON t (filler)");
    let at_backup = original.digest("t");
    site.pgkeep.ok(["backup"]);

    let first = original.moment("t");
    let named = original.digest("t");
    original.restore_point("before lunch");
    original.insert("t", 10);
    let second = original.moment("t");
    original.sql("BEGIN; DELETE FROM t; ROLLBACK");
    let third = original.moment("t");
    site.archive_all();
    let last = original.moment("t");
    site.archive_all();

    let paused = |name: &str, arguments: &[&str]| site.restore_and_pause(name, arguments);
    let rows = |cluster: &Cluster| cluster.digest("t");

    let immediate = paused("immediate", &["--target-immediate"]);
    assert_eq!(rows(&immediate), at_backup);
    assert_eq!(rows(&paused("time", &["--target-time", &first.time])), first.digest);
    assert_eq!(rows(&paused("lsn", &["--target-lsn", &second.lsn])), second.digest);
    let xid = second.xid.to_string();
    assert_eq!(rows(&paused("xid", &["--target-xid", &xid])), second.digest);
    assert_eq!(rows(&paused("name", &["--target-name", "before lunch"])), named);
    let before = paused("before", &["--target-xid", &xid, "--target-exclusive"]);
    assert_eq!(rows(&before).rows, second.digest.rows - 1);
    assert_eq!(rows(&paused("later", &["--target-time", &third.time])), third.digest);

    let mut latest = site.restore("latest", &[]);
    verify_backup(&latest);
    latest.start();
    latest.wait_for_primary(60);
    assert_eq!(rows(&latest), last.digest);
    assert_eq!(latest.timeline(), 2);
    check_structures(&mut latest);
}

/// What PostgreSQL's own tool says of a restored directory that wasn't started yet. The one of 15
/// is at hand, and doesn't read the manifests of later versions.
fn verify_backup(cluster: &Cluster) {
    if cluster.version() <= 16 {
        let verify = install::program(15, "pg_verifybackup");
        install::run(install::command(verify).arg("-n").arg(cluster.pgdata()));
    }
}

/// Pages, indexes and heaps are sound.
fn check_structures(cluster: &mut Cluster) {
    let available = "SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'";
    if cluster.sql(available) == "1" {
        let check = install::program(15, "pg_amcheck");
        install::run(install::command(check).args([
            "--install-missing",
            "--heapallindexed",
            "-U",
            "postgres",
            "-h",
            &cluster.socket_dir().display().to_string(),
            "-p",
            &cluster.port().to_string(),
            "--all",
        ]));
    }
    // Reading every table and index checks every page's checksum.
    cluster.digests();
    let failures = "SELECT coalesce(sum(checksum_failures), 0) FROM pg_stat_database";
    assert_eq!(cluster.sql(failures), "0");
    cluster.stop(Stop::Fast);
    if cluster.version() == 15 {
        let check = install::program(15, "pg_checksums");
        install::run(install::command(check).arg("--check").arg("-D").arg(cluster.pgdata()));
    }
}

/// Nobody writes, so nothing but the backup itself closes segments; and the original is gone the
/// moment the backup is done.
fn an_idle_cluster_restores_at_once(version: u32) {
    let mut site = Site::new(version);
    site.cluster.make_table("t", 100);
    let before = site.cluster.digest("t");
    site.archive_all();
    site.pgkeep.ok(["backup"]);
    site.cluster.kill9();
    for (name, arguments) in [("end", &[][..]), ("immediate", &["--target-immediate"][..])] {
        let mut restored = site.restore(name, arguments);
        restored.start();
        if name == "end" {
            restored.wait_for_primary(60)
        } else {
            restored.wait_for_pause(60)
        }
        assert_eq!(restored.digest("t"), before);
    }
}
