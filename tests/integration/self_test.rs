//! The test house itself: when one of these fails, the machine or `support` is what is broken.

use crate::support::{Cluster, Stop, Writes, on_each_version};

on_each_version!(a_cluster_lives_and_dies);

fn a_cluster_lives_and_dies(version: u32) {
    let mut cluster = Cluster::builder(version).start();
    assert!(cluster.sql("SHOW server_version").starts_with(&version.to_string()));
    cluster.make_table("t", 1000);
    let before = cluster.digest("t");
    assert_eq!(before.rows, 1000);
    cluster.sql("CHECKPOINT");
    cluster.kill9();
    cluster.start();
    assert_eq!(cluster.digest("t"), before);
    cluster.restart();
    assert_eq!(cluster.digest("t"), before);
    let segment = cluster.switch_wal();
    assert_eq!(segment.len(), 24);
    cluster.stop(Stop::Immediate);
    assert!(cluster.try_sql("SELECT 1").is_err());

    let other = Cluster::builder(version).start();
    cluster.start();
    assert_ne!(other.system_identifier(), cluster.system_identifier());
}

on_each_version!(a_standby_takes_over);

fn a_standby_takes_over(version: u32) {
    let mut primary = Cluster::builder(version).checksums(true).wal_segsize(1).start();
    assert_eq!(primary.sql("SHOW wal_segment_size"), "1MB");
    let writes = Writes::start(&primary, "w");
    let standby = Cluster::standby_of(&primary);
    assert_eq!(standby.sql("SELECT pg_is_in_recovery()"), "t");
    let acknowledged = writes.stop();
    standby.catch_up_with(&primary);
    assert_eq!(standby.digest("w"), primary.digest("w"));
    assert_eq!(standby.digest("w").rows, acknowledged);
    primary.kill9();
    standby.promote();
    assert_eq!(standby.timeline(), 2);
    standby.insert_nothing_is_lost(acknowledged);
}

impl Cluster {
    fn insert_nothing_is_lost(&self, rows: u64) {
        assert_eq!(self.sql("SELECT count(*), max(id) FROM w"), format!("{rows}|{rows}"));
    }
}
