//! Expiring beside real servers.

use std::{
    collections::BTreeSet,
    fs,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::support::{
    Cluster, Pgkeep, Stop,
    moto::Moto,
    objects::{ObjectKind, flip_bit, objects_of},
    on_each_version,
    scratch::write,
};

/// The ids of the backups in a repository, the newest last.
fn backups(pgkeep: &Pgkeep) -> Vec<String> {
    let info = pgkeep.json(["info"]);
    let systems = info["repositories"][0]["systems"].as_array().unwrap();
    let all = systems.iter().flat_map(|system| system["backups"].as_array().unwrap());
    all.map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
}

/// Restores a backup to its own end, and counts the rows of `t`.
fn rows_of(pgkeep: &Pgkeep, version: u32, backup: &str) -> String {
    let target = ["--target-immediate", "--target-action", "promote", "--backup", backup];
    let restored = pgkeep.restored(version, &format!("restored-{backup}"), &target);
    restored.sql("SELECT count(*) FROM t")
}

on_each_version!(each_backup_is_followed_by_an_expiry: 15 postgres_15, 17 postgres_17);

fn each_backup_is_followed_by_an_expiry(version: u32) {
    let cluster = Cluster::builder(version).wal_segsize(1).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    cluster.sql("CREATE TABLE t (n int)");
    pgkeep.add("[repository.main.retention]\nminimum = 2");
    let mut taken = Vec::new();
    for round in 1..=4 {
        cluster.sql("INSERT INTO t VALUES (1)");
        let kind = if round == 3 { "full" } else { "incr" };
        let done = pgkeep.json(["backup", "--type", kind]);
        let one = &done["backups"][0];
        taken.push((one["backup"]["id"].as_str().unwrap().to_owned(), round));
        let gone = one["expired"]["backups"].as_array().unwrap();
        let gone = gone.iter().filter(|v| v["kept-by"].as_array().unwrap().is_empty()).count();
        assert_eq!(gone, usize::from(round > 2), "{done:#}");
        assert_eq!(backups(&pgkeep).len(), 2.min(round));
    }
    for (backup, rows) in &taken[2..] {
        assert_eq!(rows_of(&pgkeep, version, backup), rows.to_string());
    }
    // Switched off, nothing goes by itself.
    pgkeep.set("repository.main.retention", "after-backup = false");
    let done = pgkeep.json(["backup"]);
    assert!(done["backups"][0].get("expired").is_none(), "{done:#}");
    assert_eq!(backups(&pgkeep).len(), 3);
    let told = pgkeep.ok(["expire", "--dry-run"]);
    assert!(told.stdout.contains("would go"), "{told}");
    assert_eq!(backups(&pgkeep).len(), 3);
    pgkeep.ok(["expire"]);
    assert_eq!(backups(&pgkeep).len(), 2);
}

#[test]
fn after_a_backup_with_damaged_pages_nothing_expires_by_itself() {
    let mut cluster = Cluster::builder(15).wal_segsize(1).checksums(true).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    pgkeep.add("[repository.main.retention]\nminimum = 1");
    cluster.make_table("t", 5000);
    pgkeep.ok(["backup"]);
    let path = cluster.sql("SELECT pg_relation_filepath('t')");
    cluster.stop(Stop::Fast);
    flip_bit(&cluster.pgdata().join(path), 3 * 8192 + 4000);
    cluster.start();
    let output = pgkeep.ok(["backup", "--type", "full"]);
    assert!(output.stderr.contains("nothing expires in repository main"), "{output}");
    assert_eq!(backups(&pgkeep).len(), 2);
    // Who asks for it gets it.
    pgkeep.ok(["expire"]);
    assert_eq!(backups(&pgkeep).len(), 1);
}

on_each_version!(a_point_restores_to_its_own_end: 15 postgres_15, 17 postgres_17);

fn a_point_restores_to_its_own_end(version: u32) {
    let cluster = Cluster::builder(version).wal_segsize(1).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 10) AS n");
    let point = pgkeep.json(["backup"]);
    let point = point["backups"][0]["backup"]["id"].as_str().unwrap().to_owned();
    pgkeep.ok(["pin", &point]);
    for _ in 0..4 {
        cluster.sql("INSERT INTO t VALUES (11)");
        cluster.switch_wal();
    }
    let after = cluster.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    pgkeep.ok(["backup", "--type", "full"]);
    pgkeep.add("[repository.main.retention]\nminimum = 1");
    let done = pgkeep.json(["expire"]);
    assert_eq!(done["repositories"][0]["backups"][0]["wal"], "own", "{done:#}");
    assert_eq!(rows_of(&pgkeep, version, &point), "10");

    // The WAL behind it has expired, and isn't said never to have been there: recovery would promote.
    let wanted = pgkeep.scratch().path().join("wanted");
    let wanted = wanted.to_string_lossy().into_owned();
    let ask = |segment: &str| pgkeep.run_in(cluster.pgdata(), ["archive-get", segment, &wanted]);
    let number = u32::from_str_radix(&after[16..], 16).unwrap();
    let expired = ask(&format!("{}{:08X}", &after[..16], number - 2));
    assert_eq!(expired.code, 126, "{expired}");
    assert!(expired.stderr.contains("has expired"), "{expired}");
    assert_eq!(ask("0000000100000000000000FE").code, 1);

    // Neither is what lies right behind the point, to a recovery that goes beyond it.
    let pgdata = pgkeep.scratch().path().join("beyond");
    let path = pgdata.to_string_lossy().into_owned();
    let restore = ["restore", "--archive-mode", "off", "--pgdata", &path, "--target-immediate"];
    pgkeep.ok([&restore[..], &["--backup", &point]].concat());
    let mut beyond = Cluster::at(&pgdata, version);
    beyond.option("recovery_target=");
    // What it reads ahead, before it has come through the backup, doesn't stop it.
    beyond.option("recovery_prefetch=try");
    beyond.spawn();
    beyond.wait_for_end(60);
    let log = beyond.log();
    assert!(log.contains("consistent recovery state reached"), "{log}");
    assert!(log.contains("has expired"), "{log}");
    assert!(!log.contains("selected new timeline"), "{log}");

    // One to its end may be stopped and started before it is promoted: what it reads ahead isn't missed.
    let pgdata = pgkeep.scratch().path().join("paused");
    let path = pgdata.to_string_lossy().into_owned();
    let restore = ["restore", "--archive-mode", "off", "--pgdata", &path, "--target-immediate"];
    pgkeep.ok([&restore[..], &["--backup", &point]].concat());
    let mut paused = Cluster::at(&pgdata, version);
    for _ in 0..2 {
        paused.start();
        paused.wait_for_pause(60);
        paused.stop(Stop::Fast);
    }
    paused.start();
    paused.wait_for_pause(60);
    paused.sql("SELECT pg_wal_replay_resume()");
    paused.wait_for_primary(60);
    assert_eq!(paused.sql("SELECT count(*) FROM t"), "10");
}

/// A damaged floor costs what it says, and nothing else.
#[test]
fn a_damaged_floor_stops_neither_recovery_nor_backups() {
    let cluster = Cluster::builder(17).wal_segsize(1).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 10) AS n");
    let first = cluster.switch_wal();
    pgkeep.ok(["backup"]);
    for _ in 0..2 {
        cluster.sql("INSERT INTO t VALUES (11)");
        cluster.switch_wal();
    }
    pgkeep.ok(["backup", "--type", "full"]);
    pgkeep.add("[repository.main.retention]\nminimum = 1\nafter-backup = false");
    pgkeep.ok(["expire"]);
    let floor = objects_of(&pgkeep.repository(), ObjectKind::WalFloor).remove(0);
    flip_bit(&floor.path, 60);
    assert_eq!(pgkeep.run(["verify"]).code, 1);

    let done = pgkeep.ok(["backup"]);
    assert!(done.stderr.contains(&floor.name), "{done}");
    let restored = pgkeep.restored(17, "restored", &[]);
    assert_eq!(restored.sql("SELECT count(*) FROM t"), "12");
    // Whether what lies before others has expired can't be told any more.
    let wanted = pgkeep.scratch().path().join("wanted");
    let wanted = wanted.to_string_lossy().into_owned();
    let asked = pgkeep.run_in(cluster.pgdata(), ["archive-get", &first, &wanted]);
    assert_eq!(asked.code, 126, "{asked}");
    assert!(asked.stderr.contains(&floor.name), "{asked}");

    let refused = pgkeep.fails(["expire"]);
    assert!(refused.stderr.contains(&floor.name), "{refused}");
    assert!(refused.stderr.contains("remove this object and run expire again"), "{refused}");
    fs::remove_file(&floor.path).unwrap();
    pgkeep.ok(["expire"]);
    pgkeep.ok(["verify"]);
    assert_eq!(objects_of(&pgkeep.repository(), ObjectKind::WalFloor).len(), 1);
}

#[test]
fn expiring_all_the_while_disturbs_no_backup() {
    let cluster = Cluster::builder(17).wal_segsize(1).start();
    cluster.conf("summarize_wal = on");
    cluster.reload();
    let pgkeep = Pgkeep::archiving(&cluster);
    pgkeep.add("[repository.main.retention]\nminimum = 1\nafter-backup = false");
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    pgkeep.ok(["backup"]);
    let (over, mut newest) = (AtomicBool::new(false), String::new());
    let expiries = std::thread::scope(|scope| {
        let expiring = scope.spawn(|| {
            let mut expiries = 0;
            while !over.load(Ordering::SeqCst) {
                pgkeep.ok(["expire"]);
                expiries += 1;
            }
            expiries
        });
        for _ in 0..5 {
            cluster.sql("INSERT INTO t SELECT generate_series(1, 100)");
            cluster.switch_wal();
            // Its base may have gone while it was taken: that is told, and it is taken again.
            let mut tried = pgkeep.run(["--output", "json", "backup"]);
            while tried.code == 9 {
                assert!(tried.stderr.contains("run the backup again"), "{tried}");
                tried = pgkeep.run(["--output", "json", "backup"]);
            }
            assert_eq!(tried.code, 0, "{tried}");
            let done: serde_json::Value = serde_json::from_str(&tried.stdout).unwrap();
            newest = done["backups"][0]["backup"]["id"].as_str().unwrap().to_owned();
        }
        over.store(true, Ordering::SeqCst);
        expiring.join().expect("expire")
    });
    assert!(expiries > 5, "{expiries}");
    pgkeep.ok(["expire"]);
    assert_eq!(backups(&pgkeep), [newest.clone()]);
    assert_eq!(rows_of(&pgkeep, 17, &newest), "1500");
}

#[test]
fn what_object_lock_holds_is_told_and_fails_nothing() {
    let moto = Moto::start();
    moto.bucket("locked", Some(3));
    let cluster = Cluster::builder(15).wal_segsize(1).start();
    let url = "url = \"s3://locked/x\"";
    let pgkeep = Pgkeep::with_repository(&cluster, url, &moto.table("main"));
    pgkeep.init();
    pgkeep.archive(&cluster);
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    pgkeep.ok(["backup"]);
    cluster.sql("INSERT INTO t VALUES (1001)");
    pgkeep.ok(["backup", "--type", "full"]);
    pgkeep.add("[repository.main.retention]\nminimum = 1");
    let names = || -> BTreeSet<String> {
        moto.versions("locked", "x/clusters/main/").into_iter().map(|version| version.key).collect()
    };
    let before = names();
    let done = pgkeep.ok(["expire"]);
    assert!(done.stdout.contains("can't go yet, since object lock holds it"), "{done}");
    let left = backups(&pgkeep);
    assert_eq!(left.len(), 1);
    // Everything is there still, with a mark and a floor; and it is said again.
    let now = names();
    let lost: Vec<_> = before.difference(&now).filter(|name| !name.contains("/leases/")).collect();
    assert!(lost.is_empty(), "{lost:?}");
    for new in ["/deleted", "/wal-floor/"] {
        assert_eq!(now.difference(&before).filter(|name| name.contains(new)).count(), 1, "{new}");
    }
    let again = pgkeep.json(["expire"]);
    let again = &again["repositories"][0];
    assert!(again["held"]["objects"].as_u64() > Some(5), "{again:#}");
    assert_eq!(again["freed"]["objects"], 0, "{again:#}");
    // The next backup and its expiry aren't disturbed either.
    pgkeep.ok(["backup"]);
    assert_eq!(backups(&pgkeep).len(), 1);
    assert_eq!(rows_of(&pgkeep, 15, &backups(&pgkeep)[0]), "1001");
}

/// Has the server go on with a new timeline, as after a failover.
fn switch_timeline(cluster: &mut Cluster) {
    cluster.stop(Stop::Fast);
    cluster.conf("restore_command = 'false'");
    write(&cluster.pgdata().join("recovery.signal"), "");
    cluster.start();
    cluster.wait_for_primary(60);
}

#[test]
fn the_newest_by_time_stay_after_failovers_and_a_new_system() {
    let mut cluster = Cluster::builder(15).wal_segsize(1).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    cluster.sql("CREATE TABLE t (n int)");
    for _ in 0..3 {
        pgkeep.ok(["backup", "--type", "full"]);
        switch_timeline(&mut cluster);
    }
    pgkeep.ok(["backup", "--type", "full"]);
    assert_eq!(cluster.sql("SELECT timeline_id FROM pg_control_checkpoint()"), "4");
    drop(cluster);
    // A new system begins at timeline 1 and at low positions.
    let new = Cluster::builder(15).wal_segsize(1).start();
    pgkeep.edit(|text| {
        let lines = text.lines().filter(|l| !l.starts_with("conninfo") && !l.starts_with("pgdata"));
        lines.map(|line| format!("{line}\n")).collect()
    });
    pgkeep.set("cluster.main", &format!("conninfo = \"{}\"", new.conninfo()));
    pgkeep.set("cluster.main", &format!("pgdata = \"{}\"", new.pgdata().display()));
    pgkeep.archive(&new);
    pgkeep.ok(["check", "--new-system"]);
    new.sql("CREATE TABLE t AS SELECT generate_series(1, 7) AS n");
    pgkeep.ok(["backup", "--type", "full"]);
    pgkeep.ok(["backup", "--type", "full"]);
    let all = backups(&pgkeep);
    assert_eq!(all.len(), 6);
    pgkeep.add("[repository.main.retention]\nfull = 3");
    pgkeep.ok(["expire"]);
    let mut left = backups(&pgkeep);
    left.sort();
    let mut newest = all.clone();
    newest.sort();
    assert_eq!(left, newest[3..], "by their ids, which are times");
    assert_eq!(rows_of(&pgkeep, 15, &newest[5]), "7");
}
