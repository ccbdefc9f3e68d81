//! Full backups of real clusters.

mod archiving;
mod interrupted;
mod several;
mod standby;
mod tablespaces;
pub mod tree;

use std::{fs, os::unix::fs::PermissionsExt, time::Instant};

use pgkeep::{postgres::backup_label::BackupLabel, repo::record::Source};

use crate::support::{
    Cluster, Pgkeep, Stop, Writes,
    objects::{ObjectKind, flip_bit, objects},
    on_each_version,
    scratch::write,
};
use tree::{Opened, differences, on_disk};

on_each_version!(a_backup_has_every_byte_of_a_quiet_cluster);

fn a_backup_has_every_byte_of_a_quiet_cluster(version: u32) {
    let cluster = Cluster::builder(version).conf("autovacuum = off").start();
    cluster.make_table("rows", 100_000);
    cluster.sql("CREATE TABLE nothing (n int)");
    cluster.sql("CREATE UNLOGGED TABLE unlogged (n int)");
    cluster.sql("INSERT INTO unlogged VALUES (1)");
    cluster.sql("CREATE DATABASE other");
    let odd = cluster.pgdata().join("a file with spaces and ü");
    write(&odd, [0; 20_000]);
    let longest = cluster.pgdata().join("x".repeat(99));
    write(&longest, "x");
    write(&cluster.pgdata().join("log"), "");
    fs::set_permissions(&odd, fs::Permissions::from_mode(0o640)).unwrap();
    let pgkeep = Pgkeep::archiving(&cluster);
    cluster.sql("CHECKPOINT");
    pgkeep.ok(["backup"]);

    let opened = Opened::new(&pgkeep);
    let [record] = &opened.backups()[..] else { panic!("one backup") };
    let tree = opened.tree(record);
    let mut disk = on_disk(cluster.pgdata());
    // What the server leaves out (backup/basebackup.c).
    let unlogged = cluster.sql("SELECT pg_relation_filepath('unlogged')").into_bytes();
    disk.retain(|path, _| {
        let below = |folder: &str| path.starts_with(format!("{folder}/").as_bytes());
        let emptied = ["pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial"]
            .iter()
            .chain(&["pg_snapshots", "pg_subtrans"])
            .any(|folder| below(folder));
        let wal =
            below("pg_wal") && *path != b"pg_wal/archive_status" && *path != b"pg_wal/summaries";
        let left_out = [&b"postmaster.pid"[..], b"postmaster.opts", b"base/pgsql_tmp", &unlogged]
            .contains(&path.as_slice())
            || path.ends_with(b"pg_internal.init");
        !emptied && !wal && !left_out
    });
    let different = differences(&tree, &disk);
    // The control file changed at the end of the backup.
    let expected = ["backup_label", "global/pg_control", "tablespace_map"];
    assert!(different.iter().all(|path| expected.contains(&path.as_str())), "{different:?}");
    assert!(tree.contains_key(&b"pg_twophase"[..]), "empty directories are kept");
    let init = [unlogged.as_slice(), b"_init"].concat();
    assert!(tree.contains_key(&init), "unlogged tables can be made empty again");

    let label = tree[&b"backup_label"[..]].1.as_ref().unwrap();
    let label = BackupLabel::parse(label).unwrap();
    assert_eq!((label.start_lsn, label.timeline), (record.start_lsn, record.timeline));
    assert_eq!(label.label, record.label);
    assert_eq!(record.source, Source::Primary);
    assert_eq!(record.system.identifier, cluster.system_identifier());
    assert_eq!(record.system.major, version);
    assert_eq!(record.data_checksums, version >= 18);
    assert!(record.started_at < record.stopped_at);
    assert!(record.start_lsn < record.stop_lsn);
    assert!(record.warnings.is_empty(), "{:?}", record.warnings);
    assert!(record.sizes.stored < record.sizes.raw);
    let kinds = objects(&pgkeep.repository());
    assert!(
        !kinds.iter().any(|object| object.kind == ObjectKind::Lease),
        "the lease is given back"
    );
}

on_each_version!(a_backup_under_load_has_all_its_wal);

fn a_backup_under_load_has_all_its_wal(version: u32) {
    let cluster = Cluster::builder(version).checksums(true).wal_segsize(1).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    let writes = Writes::start(&cluster, "writes");
    cluster.make_table("rows", 50_000);
    for _ in 0..2 {
        pgkeep.ok(["backup"]);
    }
    writes.stop();
    let opened = Opened::new(&pgkeep);
    let backups = opened.backups();
    assert_eq!(backups.len(), 2);
    for record in backups {
        opened.tree(&record);
        assert_eq!(record.bad_pages.count, 0, "torn pages are no bad pages");
        let folder =
            pgkeep.repository().join(opened.layout.timeline_folder(record.system, record.timeline));
        let size = record.segment_size;
        for number in size.number_at(record.start_lsn)..=size.number_before(record.stop_lsn) {
            let name = size.name(record.timeline, number).to_string();
            assert!(folder.join(&name).exists(), "{name}");
        }
    }
}

on_each_version!(a_page_with_a_wrong_checksum_is_recorded_and_does_not_fail_the_backup);

fn a_page_with_a_wrong_checksum_is_recorded_and_does_not_fail_the_backup(version: u32) {
    let mut cluster = Cluster::builder(version).checksums(true).conf("autovacuum = off").start();
    cluster.make_table("rows", 10_000);
    cluster.sql("CHECKPOINT");
    let path = cluster.sql("SELECT pg_relation_filepath('rows')");
    cluster.stop(Stop::Fast);
    for page in [3, 17] {
        flip_bit(&cluster.pgdata().join(&path), page * 8192 + 4000);
    }
    cluster.start();
    let pgkeep = Pgkeep::archiving(&cluster);
    let output = pgkeep.ok(["backup"]);
    assert!(output.stderr.contains(&format!("{path} page 3")), "{output}");

    let opened = Opened::new(&pgkeep);
    let record = &opened.backups()[0];
    let pages: Vec<_> =
        record.bad_pages.pages.iter().map(|bad| (bad.path.as_str(), bad.page)).collect();
    assert_eq!(pages, [(path.as_str(), 3), (path.as_str(), 17)]);
    assert_eq!(record.bad_pages.count, 2);
    assert!(record.warnings.iter().any(|w| w.contains(&path)), "{:?}", record.warnings);
    // They are in the backup as they are.
    let stored = opened.tree(record)[path.as_bytes()].1.clone();
    assert!(stored == Some(fs::read(cluster.pgdata().join(&path)).unwrap()));
}

#[test]
fn a_row_of_the_cluster_is_in_no_stored_byte() {
    let cluster = Cluster::builder(15).start();
    let marker = "the quick brown marker 8c2f";
    cluster.sql(&format!(
        "CREATE TABLE secrets AS SELECT '{marker}' AS secret FROM generate_series(1, 1000)"
    ));
    let pgkeep = Pgkeep::archiving(&cluster);
    // A file that doesn't compress would show as it is.
    write(&cluster.pgdata().join("plain"), marker);
    pgkeep.ok(["backup", "--label", marker]);
    let contains = |bytes: &[u8]| bytes.windows(marker.len()).any(|w| w == marker.as_bytes());
    for object in objects(&pgkeep.repository()) {
        assert!(!contains(&fs::read(&object.path).unwrap()), "{}", object.name);
    }
    assert!(contains(&fs::read(cluster.pgdata().join("plain")).unwrap()));
}

#[test]
fn the_rate_that_was_asked_for_is_kept() {
    let cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    let begin = Instant::now();
    pgkeep.ok(["backup", "--max-rate", "8M"]);
    let record = &Opened::new(&pgkeep).backups()[0];
    let least = record.sizes.cluster as f64 / f64::from(8 << 20) * 0.8;
    assert!(begin.elapsed().as_secs_f64() > least, "{:?}, at least {least} s", begin.elapsed());
}

#[test]
fn backups_side_by_side_get_ids_of_their_own() {
    let cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    let running: Vec<_> = (0..3).map(|_| pgkeep.spawn(["backup"])).collect();
    for backup in running {
        let output = backup.wait();
        assert_eq!(output.code, 0, "{output}");
    }
    let opened = Opened::new(&pgkeep);
    let backups = opened.backups();
    assert_eq!(backups.len(), 3);
    for record in &backups {
        opened.tree(record);
    }
}

#[test]
fn another_cluster_under_the_same_name_is_refused() {
    let cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    pgkeep.ok(["backup"]);
    let other = Cluster::builder(15).start();
    pgkeep.edit(|text| {
        text.replace(&cluster.conninfo(), &other.conninfo())
            .replace(cluster.pgdata().to_str().unwrap(), other.pgdata().to_str().unwrap())
    });
    let output = pgkeep.fails(["backup"]);
    assert_eq!(output.code, 9, "{output}");
    assert!(output.stderr.contains(&other.system_identifier().to_string()), "{output}");
    assert_eq!(Opened::new(&pgkeep).backups().len(), 1);
}

#[test]
fn configuration_outside_the_data_directory_is_warned_about() {
    let mut cluster = Cluster::builder(15).make();
    let elsewhere = crate::support::Scratch::new("etc");
    let hba = elsewhere.file("pg_hba.conf", "local all all trust\nlocal replication all trust\n");
    cluster.option(&format!("hba_file={}", hba.display()));
    cluster.start();
    let pgkeep = Pgkeep::archiving(&cluster);
    let output = pgkeep.ok(["backup"]);
    assert!(output.stderr.contains(hba.to_str().unwrap()), "{output}");
    assert!(!output.stderr.contains("postgresql.conf"), "{output}");
}

#[test]
fn a_role_that_may_replicate_is_enough() {
    for version in [15, 18].into_iter().filter(|v| crate::support::versions().contains(v)) {
        let cluster = Cluster::builder(version).start();
        cluster.sql("CREATE ROLE backup LOGIN REPLICATION");
        let pgkeep = Pgkeep::archiving(&cluster);
        pgkeep.edit(|text| text.replace("user=postgres", "user=backup dbname=postgres"));
        pgkeep.ok(["backup"]);
        cluster.sql("ALTER ROLE backup NOREPLICATION");
        let output = pgkeep.fails(["backup"]);
        assert_eq!(output.code, 6, "{output}");
        assert!(output.stderr.contains("REPLICATION"), "{output}");
    }
}

#[test]
fn a_label_of_several_lines_is_refused() {
    let cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    let output = pgkeep.fails(["backup", "--label", "one\nSTART TIMELINE: 7"]);
    assert_eq!(output.code, 2, "{output}");
    // Quotes are none of the user's business.
    pgkeep.ok(["backup", "--label", "it's 5\\"]);
    assert_eq!(Opened::new(&pgkeep).backups()[0].label, "it's 5\\");
}
