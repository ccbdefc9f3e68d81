//! What a little change costs in the repository.

use std::fs;

use serde_json::Value;

use super::{Site, assert_over, compare::BLOCK};
use crate::support::{Cluster, on_each_version, pgkeep::start};

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

fn size(of: &Value, what: &str) -> u64 {
    of["sizes"][what].as_u64().expect("a size")
}

/// How many small files a cluster has, and of how many a page is changed.
const FILES: u64 = 100_000;
const CHANGED: u64 = 10;

on_each_version!(few_changed_of_very_many_files_cost_little: 15 postgres_15, 17 postgres_17);

fn few_changed_of_very_many_files_cost_little(version: u32) {
    let site = Site::new(Cluster::builder(version));
    let cluster = &site.cluster;
    for table in 0..CHANGED {
        cluster.sql(&format!("CREATE TABLE t_{table} AS SELECT 1 AS n"));
    }
    cluster.sql("VACUUM (FREEZE, ANALYZE)");
    // The first to read a catalog tidies its pages up.
    let update = |n: u32| {
        for table in 0..CHANGED {
            cluster.sql(&format!("UPDATE t_{table} SET n = {n}"));
        }
    };
    update(2);
    // Files as tables of one page have them, but that no table knows of them: that is quicker. To the
    // server a page that is a hole is a new one.
    let table = cluster.pgdata().join(cluster.sql("SELECT pg_relation_filepath('t_0')"));
    for number in 0..FILES {
        let path = table.with_file_name((1_000_000_000 + number).to_string());
        fs::File::create(path).unwrap().set_len(BLOCK as u64).unwrap();
    }
    let measured = |kind: &str| {
        let command = site.pgkeep.command(["--output", "json", "backup", "--type", kind]);
        let (output, peak) = start(command).wait_and_measure();
        assert_eq!(output.code, 0, "{output}");
        let mut taken: Value = serde_json::from_str(&output.stdout).expect("JSON");
        (taken["backups"][0]["backup"].take(), peak.own)
    };
    let (full, of_full) = measured("full");
    assert!(size(&full, "files") > FILES);
    let (idle, _) = measured("incr");
    update(3);
    let (record, peak) = measured("incr");
    assert_over(&record, &idle, version);

    let more = |what: &str| size(&record, what).saturating_sub(size(&idle, what));
    eprintln!(
        "{CHANGED} of {FILES} files changed: {} bytes stored, {} more than for no change, \
         {} sent, {} MiB at the peak; by a full one {}, {}, {} MiB",
        size(&record, "stored"),
        more("stored"),
        size(&record, "sent"),
        peak >> 20,
        size(&full, "stored"),
        size(&full, "sent"),
        of_full >> 20,
    );
    let pages = CHANGED * BLOCK as u64;
    // Tables of one page have no map of free space; whatever else the updates touch is little. A page
    // with a row or two is compressed to next to nothing.
    assert!(more("changed") <= pages + 8 * BLOCK as u64, "{record}");
    assert!(more("stored") < 8 << 10, "{record}");
    // A file of which nothing changed has two headers on the wire.
    let unchanged = (FILES * 1024).max(size(&full, "sent") / 4);
    assert!(version < 17 || size(&record, "sent") < unchanged, "{record}");
    assert!(peak < 150 << 20, "{} MiB", peak >> 20);
}
