//! Buckets that keep versions, and those that hold every object until a date.

use chrono::{TimeDelta, Utc};
use pgkeep::storage::{ErrorKind, Range, Storage, s3::S3};

use crate::support::{
    Cluster, Pgkeep,
    moto::Moto,
    on_each_version,
    s3::{
        Wire,
        policy::{DENIED, Documented, Policy, action},
    },
    wait_until,
};

fn name(text: &str) -> pgkeep::storage::ObjectName {
    pgkeep::storage::ObjectName::new(text).expect("a good name")
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().expect("a runtime").block_on(future)
}

#[test]
fn deleting_removes_every_version_and_hides_nothing() {
    let moto = Moto::start();
    moto.bucket("versions", None);
    let storage = S3::new(moto.settings("versions", "x"));
    run(async {
        for object in ["a/b", "a/bc", "a/c"] {
            storage.put(&name(object), "one".into()).await.expect("put");
        }
        for again in ["two", "three"] {
            storage.replace(&name("a/b"), again.into()).await.expect("replace");
        }
        storage.delete(&name("a/b")).await.expect("delete");
        storage.delete(&name("a/never")).await.expect("delete what never was");
    });
    let left = |prefix: &str| moto.versions("versions", &format!("x/{prefix}"));
    assert_eq!(left("a/b").len(), 1, "a/bc: {:?}", left("a/b"));
    assert_eq!(left("").len(), 2, "{:?}", left(""));
    // A storage that has read nothing yet doesn't know that there are versions.
    let fresh = S3::new(moto.settings("versions", "x"));
    run(async {
        fresh.delete(&name("a/c")).await.expect("delete");
        let error = fresh.read(&name("a/c"), Range::All).await.expect_err("it is gone");
        assert!(error.is_not_found(), "{error}");
    });
    assert_eq!(left("a/c"), []);
    // What somebody hid isn't listed, and its name can't be told from a free one.
    moto.hide("versions", "x/a/bc");
    run(async {
        assert_eq!(fresh.list("", None, 10).await.expect("list"), []);
        fresh.delete(&name("a/bc")).await.expect("delete");
    });
    assert_eq!(left(""), []);
}

#[test]
fn what_is_held_says_until_when() {
    let moto = Moto::start();
    moto.bucket("locked", Some(2));
    let storage = S3::new(moto.settings("locked", "x"));
    run(async {
        storage.put(&name("a"), "one".into()).await.expect("put");
        let until = storage.retained_until(&name("a")).await.expect("ask").expect("it is held");
        let days = (until - Utc::now()).num_hours();
        assert!((47..=48).contains(&days), "{until}");
        let error = storage.delete(&name("a")).await.expect_err("it is held");
        assert_eq!(error.kind, ErrorKind::Locked, "{error}");
        assert!(error.to_string().contains(&until.format("%Y-%m-%d").to_string()), "{error}");
        // It is there as before, and listed.
        assert_eq!(storage.read(&name("a"), Range::All).await.expect("read"), "one");
        assert_eq!(storage.list("", None, 10).await.expect("list").len(), 1);

        let later = Utc::now() + TimeDelta::days(9);
        assert!(storage.extend_retention(&name("a"), later).await.expect("extend"));
        let now = storage.retained_until(&name("a")).await.expect("ask").expect("it is held");
        assert!(now >= later && now - later < TimeDelta::seconds(1), "{now}, not {later}");
        // Never shortened.
        assert!(storage.extend_retention(&name("a"), until).await.expect("nothing to do"));
        let now = storage.retained_until(&name("a")).await.expect("ask").expect("it is held");
        assert!(now >= later && now - later < TimeDelta::seconds(1), "{now}, not {later}");
    });
    moto.bucket("free", None);
    let free = S3::new(moto.settings("free", "x"));
    run(async {
        free.put(&name("a"), "one".into()).await.expect("put");
        assert_eq!(free.retained_until(&name("a")).await.expect("ask"), None);
        let later = Utc::now() + TimeDelta::days(9);
        assert!(!free.extend_retention(&name("a"), later).await.expect("nothing"));
        assert_eq!(free.retained_until(&name("a")).await.expect("ask"), None);
    });
}

#[test]
fn uploads_left_behind_are_found_and_ended() {
    let moto = Moto::start();
    moto.bucket("uploads", None);
    let large: bytes::Bytes = vec![7; (8 << 20) + 1].into();
    run(async {
        let storage = S3::new(moto.settings("uploads", "x"));
        for object in ["clusters/main/a", "clusters/other/b"] {
            let mut writer = storage.create(&name(object)).await.expect("create");
            writer.write(large.clone()).await.expect("write");
            std::mem::forget(writer);
        }
        std::mem::forget(storage);
        let later = S3::new(moto.settings("uploads", "x"));
        let second = std::time::Duration::from_secs(1);
        let remove = async |age| later.remove_leftovers("clusters/main/", age).await;
        // This server says of every upload that it began in 2010.
        assert_eq!(remove(3600 * second).await.expect("look"), 1);
        assert_eq!(remove(3600 * second).await.expect("look"), 0);
    });
}

on_each_version!(push_backup_and_restore_work_where_everything_is_held: 15 postgres_15, 17 postgres_17);

fn push_backup_and_restore_work_where_everything_is_held(version: u32) {
    let moto = Moto::start();
    moto.bucket("locked", Some(3));
    let cluster = Cluster::builder(version).wal_segsize(1).start();
    let url = "url = \"s3://locked/some/prefix\"";
    let pgkeep = Pgkeep::with_repository(&cluster, url, &moto.table("main"));
    pgkeep.init();
    pgkeep.archive(&cluster);
    pgkeep.ok(["check"]);
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    pgkeep.ok(["backup"]);
    cluster.sql("INSERT INTO t VALUES (1001)");
    let segment = cluster.switch_wal();
    wait_until("it is archived", 60, || {
        cluster.sql("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") >= segment
    });
    // The same again is a success here too, and nothing was overwritten or hidden.
    let again = pgkeep.run_in(cluster.pgdata(), ["archive-push", &format!("pg_wal/{segment}")]);
    assert_eq!(again.code, 0, "{again}");
    let stored = moto.versions("locked", "some/prefix/clusters/main/wal/");
    let keys: std::collections::BTreeSet<_> = stored.iter().map(|v| v.key.clone()).collect();
    assert_eq!(keys.len(), stored.len(), "{stored:?}");
    assert!(stored.iter().all(|version| !version.is_marker), "{stored:?}");

    let target = pgkeep.scratch().path().join("restored");
    pgkeep.ok(["restore", "--archive-mode", "off", "--pgdata", &target.to_string_lossy()]);
    let mut restored = Cluster::at(&target, version);
    restored.start();
    restored.wait_for_primary(60);
    assert_eq!(restored.sql("SELECT count(*) FROM t"), "1001");
}

#[test]
fn an_incremental_backup_has_the_older_packs_that_it_uses_held_as_long_as_itself() {
    let moto = Moto::start();
    moto.bucket("locked", Some(3));
    let cluster = Cluster::builder(17).wal_segsize(1).start();
    let pgkeep = Pgkeep::with_repository(&cluster, "url = \"s3://locked/x\"", &moto.table("main"));
    pgkeep.init();
    pgkeep.archive(&cluster);
    let first = pgkeep.json(["backup"])["backups"][0]["backup"].clone();
    let packs = format!("clusters/main/backups/{}/packs/", first["id"].as_str().unwrap());
    let storage = S3::new(moto.settings("locked", "x"));
    let held = || {
        run(async {
            let mut held = Vec::new();
            for pack in storage.list(&packs, None, 100).await.expect("list") {
                held.push(storage.retained_until(&pack.name).await.expect("ask").expect("held"));
            }
            held
        })
    };
    let before = held();
    assert!(!before.is_empty());
    // Dates have whole seconds.
    std::thread::sleep(std::time::Duration::from_secs(2));
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    let second = pgkeep.json(["backup"])["backups"][0]["backup"].clone();
    assert_eq!((&second["kind"], &second["base"]), (&"incr".into(), &first["id"]), "{second:#}");
    let until: chrono::DateTime<Utc> = second["held-until"].as_str().unwrap().parse().unwrap();
    assert!(before.iter().all(|then| *then < until), "{before:?} {until}");
    let after = held();
    assert!(after.iter().all(|now| *now >= until), "{after:?} {until}");
    assert_eq!(second.get("warnings"), None, "{second:#}");
}

#[test]
fn a_backup_that_fails_where_everything_is_held_is_no_backup() {
    let moto = Moto::start();
    moto.bucket("locked", Some(3));
    let cluster = Cluster::builder(15).wal_segsize(1).start();
    let url = "url = \"s3://locked/x\"";
    let pgkeep = Pgkeep::with_repository(&cluster, url, &moto.table("main"));
    pgkeep.init();
    pgkeep.set("cluster.main", "archive-timeout = \"1s\"");
    // What archives says yes and stores nothing.
    cluster.conf("archive_command = 'true'");
    cluster.reload();
    let failed = pgkeep.fails(["backup"]);
    assert!(!failed.stderr.contains("panicked"), "{failed}");
    let info = pgkeep.json(["info"]);
    let unusable = &info["repositories"][0]["unusable"];
    assert_eq!(unusable[0]["state"], "deleted", "{info:#}");
}

/// A cluster whose repository lies in a bucket of moto, behind a wire that keeps to policies.
struct Guarded {
    cluster: Cluster,
    pgkeep: Pgkeep,
    wire: Wire,
    _moto: Moto,
}

impl Guarded {
    /// In a bucket with versions, which holds everything for so many days, if it does.
    fn new(days: Option<i32>) -> Self {
        let moto = Moto::start();
        moto.bucket("my-bucket", days);
        let wire = Wire::to(moto.address());
        let cluster = Cluster::builder(15).wal_segsize(1).start();
        let table = moto.table("main").replace(&moto.endpoint(), &wire.endpoint());
        let url = "url = \"s3://my-bucket/some/prefix\"";
        let pgkeep = Pgkeep::with_repository(&cluster, url, &table);
        pgkeep.init();
        pgkeep.archive(&cluster);
        Guarded { cluster, pgkeep, wire, _moto: moto }
    }

    /// Takes a backup with a policy, and returns its record, and what was refused.
    fn backup(&self, policy: &Policy) -> (serde_json::Value, Vec<String>) {
        self.cluster.sql("CHECKPOINT");
        self.wire.plan(policy.plan());
        let record = self.pgkeep.json(["backup"])["backups"][0]["backup"].clone();
        (record, self.refused())
    }

    fn refused(&self) -> Vec<String> {
        let seen = self.wire.seen().into_iter().filter(|seen| seen.fault == Some(DENIED));
        let mut refused: Vec<_> = seen.map(|seen| action(&seen.request)).collect();
        refused.sort();
        refused.dedup();
        refused
    }

    /// What `check` says of object lock: the step's state, and its text with the hints.
    fn check(&self, policy: &Policy) -> Option<(String, String)> {
        self.wire.plan(policy.plan());
        let checked = self.pgkeep.json(["check"]);
        let steps = checked["steps"].as_array().expect("steps");
        let step = steps.iter().find(|step| step["name"] == "object-lock")?;
        Some((step["state"].as_str()?.to_owned(), format!("{} {}", step["text"], step["hints"])))
    }
}

/// The one warning of a backup.
fn warning(record: &serde_json::Value) -> &str {
    let warnings = record["warnings"].as_array().unwrap_or_else(|| panic!("{record:#}"));
    assert_eq!(warnings.len(), 1, "{record:#}");
    warnings[0].as_str().expect("a warning")
}

#[test]
fn who_may_not_ask_about_the_lock_is_told_so() {
    let Documented { add, versions, .. } = Documented::read();
    let asks = add.and(&versions);
    let only_the_bucket = add.and(&Policy::allowing(&["GetBucketObjectLockConfiguration".into()]));
    let unknown = "the backup isn't known to be protected by object lock: ";

    let locked = Guarded::new(Some(3));
    let (record, refused) = locked.backup(&asks);
    assert!(record["held-until"].is_string(), "{record:#}");
    assert_eq!(record.get("warnings"), None, "{record:#}");
    assert!(refused.iter().all(|action| action.contains("List")), "for its lease: {refused:?}");
    let (state, text) = locked.check(&asks).expect("a step");
    assert_eq!(state, "ok", "{text}");

    for (policy, missing) in
        [(&add, "s3:GetBucketObjectLockConfiguration"), (&only_the_bucket, "s3:GetObjectRetention")]
    {
        let (record, _) = locked.backup(policy);
        assert_eq!(record.get("held-until"), None, "{record:#}");
        let said = warning(&record);
        assert!(said.starts_with(unknown) && said.contains(missing), "{said}");
        let (state, text) = locked.check(policy).expect("a step");
        assert_eq!(state, "warning", "{text}");
        assert!(text.contains("it isn't known whether object lock holds what is stored"), "{text}");
        assert!(text.contains(missing), "{text}");
    }

    // Where nothing is locked, who may ask knows it, and who may not can't.
    let free = Guarded::new(None);
    for policy in [&asks, &only_the_bucket] {
        let (record, _) = free.backup(policy);
        assert_eq!(record.get("warnings"), None, "{record:#}");
        assert_eq!(record.get("held-until"), None, "{record:#}");
        assert_eq!(free.check(policy), None);
    }
    let (record, _) = free.backup(&add);
    assert!(warning(&record).contains("s3:GetBucketObjectLockConfiguration"), "{record:#}");
    assert_eq!(free.check(&add).expect("a step").0, "warning");
}

#[test]
fn the_policies_for_buckets_with_versions_are_enough() {
    let Documented { add, conditional, remove, versions, remove_versions } = Documented::read();
    let adds = add.and(&conditional).and(&versions);
    let removes = adds.and(&remove).and(&remove_versions);

    // Everything is held: what may not go yet is said, and is no failure.
    for days in [Some(3), None] {
        let site = Guarded::new(days);
        site.backup(&adds);
        let (second, _) = site.backup(&adds);
        assert_eq!(second["kind"], "incr", "{second:#}");
        let id = second["id"].as_str().expect("an id");
        let denied = site.pgkeep.fails(["delete", id]);
        assert!(denied.stderr.contains("AccessDenied"), "{denied}");
        assert!(denied.stderr.contains("docs/s3.md says which permissions"), "{denied}");
        assert_eq!(
            site.pgkeep.json(["info"])["repositories"][0]["unusable"],
            serde_json::json!([])
        );

        site.wire.plan(removes.plan());
        let deleted = site.pgkeep.ok(["delete", id]);
        assert_eq!(deleted.stdout.contains("object lock holds it"), days.is_some(), "{deleted}");
        site.pgkeep.add("[repository.main.retention]\nminimum = 1");
        let expired = site.pgkeep.ok(["expire"]);
        let held = expired.stdout.contains("object lock holds it");
        assert_eq!(held, days.is_some(), "{expired}");
        let refused: Vec<_> =
            site.wire.seen().into_iter().filter(|seen| seen.fault == Some(DENIED)).collect();
        assert!(refused.is_empty(), "{refused:?}");
    }
}
