//! The oracle: a full backup taken right after an incremental one is the same when restored.

use std::path::Path;

use serde_json::Value;

use super::{Site, assert_over, compare::differences, cost::Cost, start, workloads};
use crate::support::{
    Cluster, on_each_version,
    sound::{check_structures, verify_backup},
    tables::Digest,
};

on_each_version!(what_was_done_between_backups_comes_back: 15 postgres_15, 17 postgres_17, 18 postgres_18);

fn what_was_done_between_backups_comes_back(version: u32) {
    // 15 and 17 without checksums, as they come; 18 with.
    let site = Site::new(Cluster::builder(version).conf("max_prepared_transactions = 2"));
    let cluster = &site.cluster;
    workloads::prepare(cluster, &site.tablespace());
    let full = site.take("full");
    workloads::change(cluster);
    let at_first = workloads::digests(cluster);
    let first = site.take("incr");
    workloads::change_again(cluster);
    let at_end = workloads::digests(cluster);
    for strategy in ["file_copy", "wal_log"] {
        let rows = |digests: &[(String, Digest)], database: &str| {
            let table = format!("{database}_{strategy}.public.t");
            digests.iter().find(|(name, _)| *name == table).map(|(_, digest)| digest.rows)
        };
        assert_eq!((rows(&at_first, "by"), rows(&at_end, "again_by")), (Some(7000), Some(5000)));
    }
    cluster.sql("CHECKPOINT");
    let second = site.take("incr");
    let differential = site.take("diff");
    let last = site.take("full");

    if version >= 17 {
        let sent = |record: &Value| record["sizes"]["sent"].as_u64().unwrap();
        // Databases that are new come whole.
        let new = "SELECT sum(pg_database_size(oid)) FROM pg_database WHERE datname LIKE 'again%'";
        let new: u64 = cluster.sql(new).parse().expect("a number");
        assert!(sent(&second) < sent(&last) / 4 + new, "{second}");
    }
    let all = [(&full, "full"), (&first, "first"), (&second, "second")];
    let [full_at, first_at, second_at] = all.map(|(record, name)| site.restore(record, name));
    let all = [(&differential, "differential"), (&last, "last")];
    let [differential_at, last_at] = all.map(|(record, name)| site.restore(record, name));
    for (record, now, base, before) in [
        (&first, &first_at, &full, &full_at),
        (&second, &second_at, &first, &first_at),
        (&differential, &differential_at, &full, &full_at),
    ] {
        assert_over(record, base, version);
        Cost::between(before, now).assert_paid(record);
    }
    for found in [&second_at, &differential_at] {
        assert_eq!(differences(found, &last_at, version < 18), [""; 0], "{}", found.display());
    }
    assert_sound(&first_at, version, &at_first);
    assert_sound(&second_at, version, &at_end);
    assert_sound(&differential_at, version, &at_end);
}

/// That a restored directory has no fault that can be found, starts, and has these rows.
fn assert_sound(pgdata: &Path, version: u32, digests: &[(String, Digest)]) {
    verify_backup(pgdata);
    let restored = start(pgdata, version);
    assert_eq!(workloads::digests(&restored), digests);
    workloads::release_locks(&restored);
    check_structures(&restored);
}

on_each_version!(what_was_cut_off_and_filled_again_comes_back: 15 postgres_15, 17 postgres_17, 18 postgres_18);

/// The server notes what changed in one summary of its WAL for each checkpoint. What was cut off in
/// one may have been filled again in the next.
fn what_was_cut_off_and_filled_again_comes_back(version: u32) {
    let site = Site::new(Cluster::builder(version));
    let cluster = &site.cluster;
    cluster.make_table("t", 8000);
    cluster.sql("VACUUM (FREEZE, ANALYZE)");
    let full = site.take("full");
    cluster.sql("DELETE FROM t WHERE id > 3000");
    cluster.sql("VACUUM t");
    cluster.sql("CHECKPOINT");
    cluster.insert("t", 500);
    cluster.sql("CHECKPOINT");
    let found = site.take("incr");
    assert_over(&found, &full, version);
    assert_little_sent(&found);
    is_what_a_full_one_is(&site, &found, "found");

    // What is cut off just before the backup is in no summary before the backup's own checkpoint.
    cluster.sql("DELETE FROM t WHERE id > 1000");
    cluster.sql("VACUUM t");
    cluster.insert("t", 700);
    let mut command = site.pgkeep.command(["--output", "json", "backup", "--type", "incr"]);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let begun_again = said.matches("beginning again").count();
    assert_eq!(begun_again, usize::from(version >= 17), "{said}");
    let taken: Value = serde_json::from_slice(&output.stdout).unwrap();
    let last = &taken["backups"][0]["backup"];
    assert_over(last, &found, version);
    assert_little_sent(last);
    is_what_a_full_one_is(&site, last, "last");
}

/// That a server that knows what changed sent little of a small cluster, be it one file whole.
fn assert_little_sent(record: &Value) {
    let size = |what: &str| record["sizes"][what].as_u64().unwrap();
    assert!(record["way"] != "summaries" || size("sent") < size("cluster") / 4, "{record}");
}

/// That a backup and a full one taken now, before anybody has written anything, restore to the same,
/// with the rows that there are.
pub(super) fn is_what_a_full_one_is(site: &Site, record: &Value, name: &str) {
    let version = site.cluster.version();
    let full = site.take("full");
    // Reading tidies pages up, so nobody does before.
    let rows = site.cluster.digests();
    let [one, other] = [(record, name.to_owned()), (&full, format!("{name}-full"))]
        .map(|(record, name)| site.restore(record, &name));
    assert_eq!(differences(&one, &other, version < 18), [""; 0]);
    verify_backup(&one);
    let restored = start(&one, version);
    assert_eq!(restored.digests(), rows);
    check_structures(&restored);
    // The next is taken over the one that was looked at.
    site.pgkeep.ok(["delete", super::id(&full)]);
}
