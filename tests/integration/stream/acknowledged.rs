//! RPO 0: what a client was told is committed is there after everything but the repository is lost.

use std::fs;

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
    stream.signal(rustix::process::Signal::KILL);
    let restored = pgkeep.restored(version, "restored", &[]);
    let rows: u64 = restored.sql("SELECT count(*) FROM rows").parse().expect("a number");
    assert!(rows >= acknowledged, "{rows} of {acknowledged} acknowledged");
    assert!(rows <= acknowledged + 1, "{rows}, {acknowledged} acknowledged");
}
