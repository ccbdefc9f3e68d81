//! A server that overwrites what is there, whatever it is asked: names hold checksums then.

use std::fs;

use crate::support::{
    Cluster, Pgkeep, Stop,
    objects::{ObjectKind, flip_bit, objects_of},
    on_each_version,
    s3::{Server, Traits},
};

fn overwriting() -> Server {
    Server::with(Traits { conditional: false, checksums: false })
}

/// The object names of one kind.
fn names(pgkeep: &Pgkeep, kind: ObjectKind) -> Vec<String> {
    objects_of(&pgkeep.repository(), kind).into_iter().map(|object| object.name).collect()
}

fn is_named_by_content(name: &str) -> bool {
    let checksum = name.rsplit_once('.').map(|(_, checksum)| checksum);
    checksum.is_some_and(|c| c.len() == 16 && c.bytes().all(|b| b.is_ascii_hexdigit()))
}

on_each_version!(the_whole_way_works_where_the_server_overwrites);

fn the_whole_way_works_where_the_server_overwrites(version: u32) {
    let cluster = Cluster::builder(version).wal_segsize(1).start();
    let pgkeep = Pgkeep::on_server(&cluster, overwriting());
    let init = pgkeep.ok(["init"]);
    assert!(init.stdout.contains("this server overwrites what is there"), "{init}");
    let repo = fs::read_to_string(pgkeep.repository().join("repo.json")).expect("repo.json");
    assert!(repo.contains("\"names\": \"content\""), "{repo}");
    pgkeep.archive(&cluster);
    let check = pgkeep.ok(["check"]);
    assert!(check.stdout.contains("names hold the content's checksum"), "{check}");

    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    pgkeep.ok(["backup"]);
    cluster.sql("INSERT INTO t VALUES (1001)");
    cluster.switch_wal();
    cluster.sql("INSERT INTO t VALUES (1002)");
    let last = cluster.switch_wal();
    crate::support::wait_until("the last segment arrives", 60, || {
        names(&pgkeep, ObjectKind::Segment).iter().any(|name| name.contains(&last))
    });
    for name in names(&pgkeep, ObjectKind::Segment) {
        assert!(is_named_by_content(&name), "{name}");
    }
    let info = pgkeep.json(["info"]);
    assert_eq!(info["repositories"][0]["names"], "content", "{info:#}");
    let system = &info["repositories"][0]["systems"][0];
    let id = system["backups"][0]["id"].as_str().expect("an id");
    assert!(id.contains("-full-") && is_named_by_content(&id.replacen("-full-", ".", 1)), "{id}");
    assert_eq!(system["windows"][0]["missing"], serde_json::Value::Null, "{system:#}");

    let target = pgkeep.scratch().folder("restored");
    pgkeep.ok(["restore", "--archive-mode", "off", "--pgdata", &target.to_string_lossy()]);
    let mut restored = Cluster::at(&target, version);
    restored.start();
    restored.wait_for_primary(60);
    assert_eq!(restored.sql("SELECT count(*) FROM t"), "1002");
    restored.stop(Stop::Fast);
}

#[test]
fn other_content_under_the_same_name_is_a_conflict_here_too() {
    let cluster = Cluster::builder(15).wal_segsize(1).start();
    let pgkeep = Pgkeep::on_server(&cluster, overwriting());
    pgkeep.init();
    pgkeep.set("cluster.main", "archive-timeout = \"1s\"");
    pgkeep.set("cluster.main", "outage-timeout = \"0s\"");
    pgkeep.run(["check"]);
    let segment = cluster.switch_wal();
    let push = || pgkeep.run_in(cluster.pgdata(), ["archive-push", &format!("pg_wal/{segment}")]);
    let get = || pgkeep.run_in(cluster.pgdata(), ["archive-get", &segment, "pg_wal/RECOVERYXLOG"]);
    assert_eq!(push().code, 0);
    assert_eq!(push().code, 0, "the same again");
    let stored = names(&pgkeep, ObjectKind::Segment);
    assert_eq!(stored.len(), 1, "{stored:?}");
    assert_eq!(get().code, 0);

    // Another server's: refused, and not stored.
    let file = cluster.pgdata().join("pg_wal").join(&segment);
    flip_bit(&file, 9000);
    let refused = push();
    assert!((1..=125).contains(&refused.code), "{refused}");
    assert!(refused.stderr.contains("has other content"), "{refused}");
    assert_eq!(names(&pgkeep, ObjectKind::Segment), stored);

    // Two that were stored at the same time: each sees the other, and nobody guesses.
    let object = pgkeep.repository().join(&stored[0]);
    let aside = pgkeep.scratch().path().join("aside");
    fs::rename(&object, &aside).expect("move");
    assert_eq!(push().code, 0, "the other one came first");
    fs::rename(&aside, &object).expect("move back");
    let both = names(&pgkeep, ObjectKind::Segment);
    assert_eq!(both.len(), 2, "{both:?}");
    for failed in [push(), get()] {
        assert!(failed.code > 0, "{failed}");
        assert!(failed.stderr.contains("two contents of"), "{failed}");
        for name in &both {
            let checksum = name.rsplit_once('.').expect("a checksum").1;
            assert!(failed.stderr.contains(checksum), "{failed}");
        }
    }
    assert_eq!(get().code, 126);
    // What isn't there is absent all the same.
    let absent = pgkeep.run_in(
        cluster.pgdata(),
        ["archive-get", "000000010000000000000099", "pg_wal/RECOVERYXLOG"],
    );
    assert_eq!(absent.code, 1, "{absent}");
}

#[test]
fn a_damaged_object_is_healed_here_too() {
    let cluster = Cluster::builder(15).wal_segsize(1).start();
    let pgkeep = Pgkeep::on_server(&cluster, overwriting());
    pgkeep.init();
    pgkeep.set("cluster.main", "archive-timeout = \"1s\"");
    pgkeep.run(["check"]);
    let segment = cluster.switch_wal();
    let push = || pgkeep.run_in(cluster.pgdata(), ["archive-push", &format!("pg_wal/{segment}")]);
    assert_eq!(push().code, 0);
    flip_bit(&objects_of(&pgkeep.repository(), ObjectKind::Segment)[0].path, 500);
    let get = || pgkeep.run_in(cluster.pgdata(), ["archive-get", &segment, "pg_wal/RECOVERYXLOG"]);
    assert_eq!(get().code, 126);
    assert_eq!(push().code, 0);
    assert_eq!(get().code, 0);
    assert_eq!(objects_of(&pgkeep.repository(), ObjectKind::Repair).len(), 1);
}

#[test]
fn a_repository_with_plain_names_on_a_server_that_overwrites_is_a_problem() {
    let cluster = Cluster::builder(15).wal_segsize(1).start();
    let pgkeep = Pgkeep::on_server(&cluster, overwriting());
    pgkeep.init();
    // As if it had been made while the server honoured conditions.
    let path = pgkeep.repository().join("repo.json");
    let repo = fs::read_to_string(&path).expect("repo.json");
    let plain = repo.replace(",\n  \"names\": \"content\"", "");
    assert_ne!(plain, repo);
    fs::write(&path, plain).expect("write");
    pgkeep.archive(&cluster);
    let check = pgkeep.run(["check"]);
    assert_eq!(check.code, 1, "{check}");
    assert!(check.stdout.contains("PROBLEM  repository main: the server overwrites"), "{check}");
}
