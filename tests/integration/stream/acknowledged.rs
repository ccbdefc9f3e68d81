//! RPO 0: what a client was told is committed is there after everything but the repository is lost.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::process::Signal;

use super::Site;
use crate::support::{Cluster, Writes, on_each_version, wait_until};

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
    std::thread::sleep(Duration::from_secs(7));
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
