//! The oracle: a full backup taken right after an incremental one is the same when restored.

use std::path::Path;

use serde_json::Value;

use super::{Site, compare::differences, workloads};
use crate::support::{
    Cluster,
    install::{command, program, run},
    on_each_version,
};

on_each_version!(what_was_done_between_backups_comes_back: 15 postgres_15, 17 postgres_17, 18 postgres_18);

fn what_was_done_between_backups_comes_back(version: u32) {
    // 15 and 17 without checksums, as they come; 18 with.
    let builder = Cluster::builder(version).conf("max_prepared_transactions = 2");
    let builder = if version < 17 { builder } else { builder.conf("summarize_wal = on") };
    let site = Site::new(builder);
    let cluster = &site.cluster;
    workloads::prepare(cluster, &site.tablespace());
    let full = site.take("full");
    workloads::change(cluster);
    let first = site.take("incr");
    workloads::change_again(cluster);
    let digests = workloads::digests(cluster);
    cluster.sql("CHECKPOINT");
    let second = site.take("incr");
    let differential = site.take("diff");
    let last = site.take("full");

    for (backup, base) in [(&first, &full), (&second, &first), (&differential, &full)] {
        assert_eq!(backup["base"], base["id"], "{backup}");
        assert_eq!(backup["kind"], backup["asked"], "{backup}");
    }
    let id = |record: &Value| record["id"].as_str().unwrap().to_owned();
    let expected = site.restore(&id(&last), "full");
    let hints = version < 18;
    for (record, name) in [(&second, "incr"), (&differential, "diff")] {
        let found = site.restore(&id(record), name);
        assert_eq!(differences(&found, &expected, hints), [""; 0], "{name}");
    }
    for name in ["incr", "diff"] {
        assert_sound(&site.place(name), version, &digests);
    }
    // What lies in between is as it was then.
    site.restore(&id(&first), "first");
}

/// That a restored directory starts, has these rows, and no corruption that can be found.
fn assert_sound(pgdata: &Path, version: u32, digests: &[(String, crate::support::tables::Digest)]) {
    if version == 15 {
        // Only 15 has its tools here.
        run(command(program(15, "pg_verifybackup")).arg("-n").arg(pgdata));
    }
    let mut restored = Cluster::at(pgdata, version);
    restored.start();
    restored.wait_for_primary(120);
    assert_eq!(workloads::digests(&restored), digests);
    let socket = restored.socket_dir().to_str().unwrap();
    run(command(program(15, "pg_amcheck"))
        .args(["-h", socket, "-p", &restored.port().to_string(), "-U", "postgres"])
        .args(["--all", "--install-missing", "--heapallindexed", "--parent-check"]));
}
