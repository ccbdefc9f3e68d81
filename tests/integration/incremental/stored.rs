//! What a little change costs in the repository.

use std::fs;

use super::{Site, assert_over, compare::BLOCK};
use crate::support::{Cluster, on_each_version};

/// Of so many pages one is changed: half a percent.
const EVERY: usize = 200;

on_each_version!(scattered_changes_cost_what_changed: 15 postgres_15, 17 postgres_17, 18 postgres_18);

fn scattered_changes_cost_what_changed(version: u32) {
    let site = Site::new(Cluster::builder(version));
    let cluster = &site.cluster;
    // Pages with room for a row's new version beside the old one, and no index that would change.
    cluster.sql("CREATE TABLE t (id int, filler text) WITH (fillfactor = 60)");
    cluster.sql(
        "INSERT INTO t SELECT n, (SELECT string_agg(md5(n::text || m), '') FROM \
         generate_series(1, 20) m) FROM generate_series(1, 42000) n",
    );
    cluster.sql("VACUUM (FREEZE, ANALYZE)");
    let base = site.take("full");
    // What a backup costs in any case: the control file, the label, free space maps.
    let idle = site.take("incr");
    assert_over(&idle, &base, version);
    let places = format!(
        "SELECT array_agg(format('(%s,1)', page)::tid) FROM generate_series(0, \
         pg_relation_size('t') / {BLOCK} - 1, {EVERY}) page"
    );
    cluster.sql(&format!(
        "UPDATE t SET filler = reverse(filler) WHERE ctid = ANY (({places})::tid[])"
    ));
    let record = site.take("incr");
    assert_over(&record, &idle, version);

    let path = cluster.pgdata().join(cluster.sql("SELECT pg_relation_filepath('t')"));
    cluster.sql("CHECKPOINT");
    let table = fs::read(path).unwrap();
    let pages = table.len() / BLOCK;
    let changed: Vec<u8> = table.chunks(BLOCK).step_by(EVERY).flatten().copied().collect();
    let count = changed.len() / BLOCK;
    assert!(count >= 30 && count <= pages / EVERY + 1, "{count} of {pages} pages");
    // In frames and at the level that packs have.
    let compressed = |frame: &[u8]| zstd::bulk::compress(frame, 1).unwrap().len() as u64;
    let compressed: u64 = changed.chunks(256 << 10).map(compressed).sum();

    let size = |of: &serde_json::Value, what: &str| of["sizes"][what].as_u64().unwrap();
    let stored = size(&record, "stored");
    assert!(stored < compressed * 13 / 10 + (1 << 20), "{stored} for {compressed}");
    // And beside what nothing costs, nearly nothing.
    let more = stored.saturating_sub(size(&idle, "stored"));
    eprintln!(
        "{count} of {pages} pages changed, {compressed} bytes compressed; stored {stored}, {more} more than for no change"
    );
    assert!(more < compressed * 13 / 10 + (16 << 10), "{more} for {compressed}");
    let changed = size(&record, "changed") - size(&idle, "changed");
    assert!(changed <= ((count + 4) * BLOCK) as u64, "{changed} for {count} pages");
}
