//! Several repositories: one that goes away doesn't keep another from its WAL, and nothing is reported
//! that it hasn't.

use std::{fs, os::unix::fs::symlink, path::PathBuf, time::Duration};

use rustix::process::Signal;

use super::{CAUGHT_UP, Site};
use crate::support::{
    Cluster, Pgkeep,
    objects::{ObjectKind, objects, objects_of},
    places::skipped_on_s3,
    wait_until,
};

/// A cluster with a backup in two repositories, whose WAL only the stream brings.
fn in_two() -> Site {
    let cluster = Cluster::builder(17).wal_segsize(1).start();
    let pgkeep = Pgkeep::new(&cluster);
    pgkeep.add_repository("second");
    pgkeep.init();
    pgkeep.archive(&cluster);
    let site = Site { cluster, pgkeep };
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    site.cluster.sql("ALTER SYSTEM SET archive_command = '/bin/false'");
    site.cluster.reload();
    site
}

/// It is opened well, and then can't be looked into.
#[test]
fn one_that_can_not_be_listed_does_not_keep_another_from_its_wal() {
    if skipped_on_s3("a folder that can't be listed is one of a disk") {
        return;
    }
    let site = in_two();
    let root = site.pgkeep.repository_of("second");
    let segment = objects_of(&root, ObjectKind::Segment).remove(0).path;
    let folder = segment.parent().expect("a folder");
    let away = folder.with_extension("away");
    fs::rename(folder, &away).expect("take it away");
    symlink(folder, folder).expect("a link to itself");
    let stream = site.pgkeep.spawn(["stream"]);
    site.cluster.insert("t", 1000);
    let closed = site.cluster.switch_wal();
    wait_until("the first one has it", 60, || site.archived().contains(&closed));
    assert_eq!(site.cluster.sql(CAUGHT_UP), "0", "the second one doesn't have it");

    fs::remove_file(folder).expect("remove the link");
    fs::rename(&away, folder).expect("bring it back");
    wait_until("both have all", 90, || site.cluster.sql(CAUGHT_UP) == "1");
    let last = site.cluster.digest("t");
    stream.signal(Signal::TERM);
    let output = stream.wait();
    assert_eq!(output.code, 0, "{output}");
    assert_eq!(site.pgkeep.restored(17, "back", &["--repo", "second"]).digest("t"), last);
}

/// Its key is on a disk that isn't there.
#[test]
fn one_whose_key_is_away_does_not_keep_another_from_its_wal() {
    let site = in_two();
    let key = site.pgkeep.key_file("second");
    let away = key.with_extension("away");
    fs::rename(&key, &away).expect("take it away");
    let stream = site.pgkeep.spawn(["stream"]);
    site.cluster.insert("t", 1000);
    let closed = site.cluster.switch_wal();
    wait_until("the first one has it", 60, || site.archived().contains(&closed));
    assert_eq!(site.cluster.sql(CAUGHT_UP), "0", "the second one doesn't have it");

    fs::rename(&away, &key).expect("bring it back");
    wait_until("both have all", 90, || site.cluster.sql(CAUGHT_UP) == "1");
    stream.signal(Signal::TERM);
    let output = stream.wait();
    assert_eq!(output.code, 0, "{output}");
    assert!(output.stderr.contains("the others go on without it"), "{output}");
}

/// The one that was left behind is back when the other one goes.
#[test]
fn one_that_is_back_does_not_wait_for_another_that_is_away() {
    if skipped_on_s3("a bucket doesn't go away by renaming a folder") {
        return;
    }
    let site = in_two();
    let stream = site.stream();
    let [main, second] = ["main", "second"].map(|name| site.pgkeep.repository_of(name));
    let away = |root: &PathBuf| root.with_extension("away");
    fs::rename(&second, away(&second)).expect("take it away");
    site.cluster.insert("t", 1000);
    let closed = site.cluster.switch_wal();
    wait_until("the first one has it", 60, || site.archived().contains(&closed));

    // It is left behind ten seconds after what it couldn't take.
    std::thread::sleep(Duration::from_secs(15));
    fs::rename(&main, away(&main)).expect("take it away");
    site.cluster.insert("t", 1000);
    let closed = site.cluster.switch_wal();
    fs::rename(away(&second), &second).expect("bring it back");
    wait_until("the second one has it", 60, || {
        objects(&second).iter().any(|object| object.name.ends_with(&closed))
    });
    assert_eq!(site.cluster.sql(CAUGHT_UP), "0", "the first one doesn't have it");

    fs::rename(away(&main), &main).expect("bring it back");
    site.wait_for_stream();
    stream.signal(Signal::TERM);
    let output = stream.wait();
    assert_eq!(output.code, 0, "{output}");
}

#[test]
fn one_that_is_away_gets_what_it_lacks_when_it_is_back() {
    if skipped_on_s3("a bucket doesn't go away by renaming a folder") {
        return;
    }
    let site = in_two();
    let stream = site.stream();

    let root = site.pgkeep.repository_of("second");
    let away = root.with_extension("away");
    fs::rename(&root, &away).expect("take it away");
    site.cluster.insert("t", 20_000);
    let segment = site.cluster.switch_wal();
    let last = site.cluster.digest("t");
    wait_until("the first one has it all the same", 60, || site.archived().contains(&segment));
    assert_eq!(site.cluster.sql(CAUGHT_UP), "0", "the second one doesn't have it");
    let restored = site.pgkeep.restored(17, "away", &["--repo", "main"]);
    assert_eq!(restored.digest("t"), last);

    // Begun again it doesn't know what the second one has, and reports nothing at all.
    stream.signal(Signal::KILL);
    stream.wait();
    let stream = site.pgkeep.spawn(["stream"]);
    site.cluster.insert("t", 1);
    let before = site.parts();
    wait_until("it streams", 60, || site.parts() != before);
    let flush =
        "SELECT flush_lsn IS NULL FROM pg_stat_replication WHERE application_name = 'pgkeep'";
    assert_eq!(site.cluster.sql(flush), "t");

    fs::rename(&away, &root).expect("bring it back");
    site.wait_for_stream();
    let last = site.cluster.digest("t");
    stream.signal(Signal::TERM);
    let output = stream.wait();
    assert_eq!(output.code, 0, "{output}");
    let restored = site.pgkeep.restored(17, "back", &["--repo", "second"]);
    assert_eq!(restored.digest("t"), last);
    site.pgkeep.ok(["verify", "--level", "full"]);
}
