//! Chains across promotions, and their end at another system.

use serde_json::Value;

use super::{Site, assert_over, compare::differences, id, start};
use crate::support::{
    Cluster, Stop, on_each_version,
    sound::{check_structures, verify_backup},
};

impl Site {
    /// Goes on with another cluster under the same name.
    fn move_to(&mut self, cluster: Cluster) -> Cluster {
        let old = std::mem::replace(&mut self.cluster, cluster);
        self.pgkeep.edit(|text| {
            text.replace(&old.conninfo(), &self.cluster.conninfo())
                .replace(old.pgdata().to_str().unwrap(), self.cluster.pgdata().to_str().unwrap())
        });
        old
    }
}

/// That pages were compared with the base, since the server has switched timelines.
fn assert_compared(record: &Value, base: &Value, version: u32) {
    assert_eq!((&record["base"], &record["way"]), (&base["id"], &"comparison".into()), "{record}");
    let why =
        if version < 17 { "older than PostgreSQL 17" } else { "went from timeline 1 to 2 since" };
    assert!(record["why-compared"].as_str().unwrap().contains(why), "{record}");
}

on_each_version!(a_chain_goes_on_over_a_promotion: 15 postgres_15, 17 postgres_17, 18 postgres_18);

fn a_chain_goes_on_over_a_promotion(version: u32) {
    let mut site = Site::new(Cluster::builder(version));
    for table in ["t", "shrunk", "later"] {
        site.cluster.make_table(table, 8000);
    }
    site.cluster.sql("VACUUM (FREEZE, ANALYZE)");
    let standby = Cluster::standby_of(&site.cluster);
    let full = site.take("full");
    site.cluster.sql("UPDATE t SET filler = 'on one' WHERE id % 997 = 1");
    site.cluster.sql("DELETE FROM shrunk WHERE id > 5000");
    site.cluster.sql("VACUUM shrunk");
    let before = site.take("incr");
    assert_over(&before, &full, version);
    // What comes between the last backup and the promotion is of the old timeline.
    site.cluster.sql("UPDATE t SET filler = 'on one, late' WHERE id % 1009 = 1");
    site.cluster.sql("DELETE FROM shrunk WHERE id > 3000");
    site.cluster.sql("VACUUM shrunk");
    standby.catch_up_with(&site.cluster);
    site.cluster.stop(Stop::Fast);
    standby.promote();
    site.move_to(standby);
    let cluster = &site.cluster;
    cluster.insert("shrunk", 500);
    cluster.sql("UPDATE t SET filler = 'on two' WHERE id % 1013 = 1");
    cluster.sql("TRUNCATE later");
    let rows = cluster.digests();
    let after = site.take("incr");
    let last = site.take("full");

    assert_compared(&after, &before, version);
    assert_eq!((&before["timeline"], &after["timeline"]), (&1.into(), &2.into()));
    let [after_at, last_at] =
        [(&after, "after"), (&last, "last")].map(|(record, name)| site.restore(record, name));
    assert_eq!(differences(&after_at, &last_at, version < 18), [""; 0]);
    verify_backup(&after_at);
    let restored = start(&after_at, version);
    assert_eq!(restored.digests(), rows);
    check_structures(&restored);
}

on_each_version!(a_base_from_a_lost_branch_is_compared_with: 15 postgres_15, 17 postgres_17, 18 postgres_18);

/// The old primary lives on after the promotion and is backed up. That backup has pages that the new
/// one never had, and doesn't know to have changed.
fn a_base_from_a_lost_branch_is_compared_with(version: u32) {
    let mut site = Site::new(Cluster::builder(version));
    site.cluster.make_table("t", 8000);
    site.cluster.sql("VACUUM (FREEZE, ANALYZE)");
    let standby = Cluster::standby_of(&site.cluster);
    standby.catch_up_with(&site.cluster);
    standby.promote();
    site.cluster.sql("UPDATE t SET filler = 'lost' WHERE id % 500 = 1");
    site.cluster.sql("DELETE FROM t WHERE id > 6000");
    site.cluster.sql("VACUUM t");
    let lost = site.take("full");
    let mut old = site.move_to(standby);
    old.stop(Stop::Fast);
    let rows = site.cluster.digests();
    let found = site.take("incr");
    let last = site.take("full");

    assert_compared(&found, &lost, version);
    let [found_at, last_at] =
        [(&found, "found"), (&last, "last")].map(|(record, name)| site.restore(record, name));
    assert_eq!(differences(&found_at, &last_at, version < 18), [""; 0]);
    verify_backup(&found_at);
    let restored = start(&found_at, version);
    assert_eq!(restored.digests(), rows);
    check_structures(&restored);
}

on_each_version!(a_new_system_begins_with_a_full_backup: 15 postgres_15, 17 postgres_17);

/// After `pg_upgrade` or `initdb`: same name, other system.
fn a_new_system_begins_with_a_full_backup(version: u32) {
    let mut site = Site::new(Cluster::builder(version));
    let of_old = site.take("full");
    let mut fresh = Cluster::builder(version).conf("autovacuum = off");
    if version >= 17 {
        fresh = fresh.conf("summarize_wal = on");
    }
    let mut old = site.move_to(fresh.start());
    old.stop(Stop::Fast);
    site.pgkeep.archive(&site.cluster);
    let unknown = site.pgkeep.fails(["backup"]);
    assert_eq!(unknown.code, 9, "{unknown}");
    assert!(unknown.stderr.contains("check --new-system"), "{unknown}");
    site.pgkeep.ok(["check", "--new-system"]);

    for kind in ["diff", "incr"] {
        let refused = site.pgkeep.fails(["backup", "--type", kind]);
        assert_eq!(refused.code, 9, "{refused}");
        assert!(refused.stderr.contains("take a full backup: --type full"), "{refused}");
    }
    let mut taken = site.pgkeep.json(["backup"]);
    let full = taken["backups"][0]["backup"].take();
    assert_eq!(full["kind"], "full");
    let why = full["why"].as_str().unwrap();
    assert!(why.contains(of_old["system"].as_str().unwrap()), "{why}");
    for kind in ["diff", "incr"] {
        let next = site.take(kind);
        let base = if kind == "diff" { id(&full) } else { next["base"].as_str().unwrap() };
        assert_eq!(next["base"], base);
        assert_eq!((&next["kind"], &next["why"]), (&kind.into(), &Value::Null));
    }
}
