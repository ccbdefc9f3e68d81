//! RPO 0: what a client was told is committed is there after everything but the repository is lost.

use std::{
    fs,
    thread::sleep,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::process::Signal;

use super::Site;
use crate::support::{
    Cluster, Writes,
    objects::objects,
    on_each_version,
    places::skipped_on_s3,
    scratch::{own, write},
    wait_until,
};

on_each_version!(what_was_acknowledged_comes_back_from_the_repository_alone);

fn what_was_acknowledged_comes_back_from_the_repository_alone(version: u32) {
    let site = Site::archiving(Cluster::builder(version).wal_segsize(1).start());
    site.pgkeep.ok(["backup"]);
    let stream = site.stream();
    site.synchronous();
    let writes = Writes::start(&site.cluster, "rows");
    wait_until("there are some rows", 60, || writes.acknowledged() > 300);
    let Site { mut cluster, pgkeep } = site;
    cluster.kill9();
    let acknowledged = writes.stop();
    fs::remove_dir_all(cluster.pgdata()).expect("lose the server");
    stream.signal(Signal::KILL);
    let restored = pgkeep.restored(version, "restored", &[]);
    let rows: u64 = restored.sql("SELECT count(*) FROM rows").parse().expect("a number");
    assert!(rows >= acknowledged, "{rows} of {acknowledged} acknowledged");
    assert!(rows <= acknowledged + 1, "{rows}, {acknowledged} acknowledged");
}

/// A disk that is unmounted leaves the directory it was mounted on, which may belong to the same user.
#[test]
fn nothing_is_acknowledged_where_the_repository_was() {
    if skipped_on_s3("nothing is mounted there") {
        return;
    }
    let site = Site::archiving(Cluster::builder(17).wal_segsize(1).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    site.cluster.sql("ALTER SYSTEM SET archive_command = '/bin/false'");
    site.cluster.reload();
    let stream = site.stream();
    site.synchronous();
    let root = site.pgkeep.repository();
    let away = root.with_extension("away");
    fs::rename(&root, &away).expect("unmount it");
    fs::create_dir(&root).expect("make the mount point");
    own(&root);
    let mut client = site.cluster.psql();
    let mut client = client.args(["-c", "INSERT INTO t VALUES (4711, 'x')"]).spawn().expect("psql");
    // So that it has come, and was tried again.
    sleep(Duration::from_secs(3));
    assert!(client.try_wait().expect("ask").is_none(), "it was acknowledged");
    assert_eq!(objects(&root), [], "stored where no repository is");
    fs::remove_dir_all(&root).expect("remove the mount point");
    fs::rename(&away, &root).expect("mount it");
    assert!(client.wait().expect("wait").success());
    stream.signal(Signal::KILL);
    let output = stream.wait();
    let told = "repo.json isn't there any more, or is another one";
    assert!(output.stderr.contains(told), "{output}");
    let restored = site.pgkeep.restored(17, "restored", &[]);
    assert_eq!(restored.digest("t"), site.cluster.digest("t"));
}

/// What an open repository can't do any more, it may do for whoever opens it now.
#[test]
fn a_repository_that_was_mended_is_opened_anew() {
    if skipped_on_s3("nobody writes to its repo.json there") {
        return;
    }
    let site = Site::archiving(Cluster::builder(17).wal_segsize(1).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    let stream = site.stream();
    site.synchronous();
    let file = site.pgkeep.repository().join("repo.json");
    let mut content = fs::read_to_string(&file).expect("read");
    content.push('\n');
    write(&file, content);
    // Until then it is another repository's, as far as the stream can tell.
    site.cluster.insert("t", 1);
    site.wait_for_stream();
    stream.signal(Signal::TERM);
    let output = stream.wait();
    assert_eq!(output.code, 0, "{output}");
    let told = "repo.json isn't there any more, or is another one; trying again";
    assert!(output.stderr.contains(told), "{output}");
}

/// It wasn't reported, so nothing is lost by it; but whoever ends the stream to move the server has to know.
#[test]
fn an_end_that_leaves_wal_behind_is_no_success() {
    if skipped_on_s3("a bucket doesn't go away by renaming a folder") {
        return;
    }
    let site = Site::archiving(Cluster::builder(17).wal_segsize(1).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    let stream = site.stream();
    let root = site.pgkeep.repository();
    let away = root.with_extension("away");
    fs::rename(&root, &away).expect("take it away");
    site.cluster.insert("t", 1);
    // So that it has come and its time to be stored has, too.
    sleep(Duration::from_secs(3));
    stream.signal(Signal::TERM);
    let output = stream.wait();
    assert_eq!(output.code, 3, "{output}");
    assert!(output.stderr.contains("couldn't be stored within 30 s"), "{output}");
    fs::rename(&away, &root).expect("bring it back");
    let stream = site.stream();
    stream.signal(Signal::TERM);
    assert_eq!(stream.wait().code, 0);
}

/// Where no commit waits, what is lost with the server is younger than max-lag, and what came within it
/// is stored together.
#[test]
fn what_is_lost_without_waiting_is_younger_than_max_lag() {
    const MAX_LAG: f64 = 1.0;
    // For a debug build on a busy machine to notice that it is time, and to store a part.
    const SLACK: f64 = 2.0;
    let site = Site::archiving(Cluster::builder(17).start());
    site.pgkeep.ok(["backup"]);
    let stream = site.stream();
    let writes = Writes::start(&site.cluster, "rows");
    sleep(Duration::from_secs(7));
    let Site { mut cluster, pgkeep } = site;
    let killed = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs_f64();
    // The stream first: if only the server is lost, it stores what it has received.
    stream.signal(Signal::KILL);
    stream.wait();
    cluster.kill9();
    let acknowledged = writes.stop();
    fs::remove_dir_all(cluster.pgdata()).expect("lose the server");
    let site = Site { cluster, pgkeep };
    let parts = site.parts().len();
    assert!((3..=14).contains(&parts), "{parts} parts in 7 s");
    let restored = site.pgkeep.restored(17, "restored", &[]);
    let last = restored.sql("SELECT extract(epoch FROM max(at)) FROM rows");
    let lost = killed - last.parse::<f64>().expect("a number");
    let rows: u64 = restored.sql("SELECT count(*) FROM rows").parse().expect("a number");
    eprintln!("{rows} of {acknowledged} rows; {lost:.2} s are lost, max-lag is {MAX_LAG} s");
    assert!(lost > 0.0 && lost < MAX_LAG + SLACK, "{lost} s");
    assert!(rows > 100, "{rows} of {acknowledged} rows");
}
