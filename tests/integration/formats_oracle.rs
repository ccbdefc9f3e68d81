//! The file formats of PostgreSQL, compared with what servers and their own tools say and accept.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use chrono::Utc;
use crc_fast::crc32_iscsi;
use pgkeep::postgres::{
    Lsn,
    backup_label::{BackupLabel, parse_tablespace_map},
    backup_manifest::{ManifestVersion, ManifestWriter, WalRange},
    control::{ClusterState, ControlFile, read_major},
    page::{self, RelationFile},
    tar::{TarEvent, TarParser},
};

use crate::support::{
    Cluster, Scratch, Stop,
    install::{command, program, run},
    on_each_version,
};

/// Every file below `root`, by its path relative to it.
fn files_below(root: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                let name = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, entry.path());
            }
        }
    }
    found
}

on_each_version!(the_control_file_says_what_the_server_says);

fn the_control_file_says_what_the_server_says(version: u32) {
    let mut cluster = Cluster::builder(version).wal_segsize(4).checksums(true).start();
    cluster.sql("CHECKPOINT");
    let said = cluster.sql(
        "SELECT system_identifier, pg_control_version, catalog_version_no, checkpoint_lsn, \
         redo_lsn, timeline_id, database_block_size, blocks_per_segment, wal_block_size, \
         bytes_per_wal_segment, data_page_checksum_version \
         FROM pg_control_system(), pg_control_checkpoint(), pg_control_init()",
    );
    let control = ControlFile::read(cluster.pgdata()).unwrap();
    let ours = [
        control.system_identifier.to_string(),
        control.version.to_string(),
        control.catalog_version.to_string(),
        control.checkpoint.to_string(),
        control.redo.to_string(),
        control.timeline.to_string(),
        control.block_size.to_string(),
        control.segment_blocks.to_string(),
        control.wal_block_size.to_string(),
        control.segment_size.bytes().to_string(),
        u32::from(control.data_checksums).to_string(),
    ];
    assert_eq!(ours.join("|"), said);
    let limits = [
        ("max_connections", control.limits.max_connections),
        ("max_worker_processes", control.limits.max_worker_processes),
        ("max_wal_senders", control.limits.max_wal_senders),
        ("max_prepared_transactions", control.limits.max_prepared_transactions),
        ("max_locks_per_transaction", control.limits.max_locks_per_transaction),
    ];
    for (name, limit) in limits {
        assert_eq!(cluster.sql(&format!("SHOW {name}")), limit.to_string(), "{name}");
    }
    assert_eq!(control.state, ClusterState::InProduction);
    assert_eq!(control.major(), Some(version));
    assert_eq!(read_major(cluster.pgdata()).unwrap(), version);
    cluster.stop(Stop::Fast);
    let control = ControlFile::read(cluster.pgdata()).unwrap();
    assert_eq!(control.state, ClusterState::ShutDown);
    assert_eq!((control.min_recovery, control.min_recovery_timeline), (Lsn::INVALID, None));
    assert_eq!(control.backup_start, None);
}

on_each_version!(a_standbys_control_file_says_how_far_it_must_come);

fn a_standbys_control_file_says_how_far_it_must_come(version: u32) {
    let primary = Cluster::builder(version).start();
    primary.make_table("t", 2000);
    let mut standby = Cluster::standby_of(&primary);
    standby.catch_up_with(&primary);
    let control = ControlFile::read(standby.pgdata()).unwrap();
    assert_eq!(control.state, ClusterState::InArchiveRecovery);
    standby.stop(Stop::Fast);
    let control = ControlFile::read(standby.pgdata()).unwrap();
    assert_eq!(control.state, ClusterState::ShutDownInRecovery);
    assert!(control.min_recovery >= control.redo, "{control:?}");
    assert_eq!(control.min_recovery_timeline, Some(control.timeline));
}

on_each_version!(every_page_has_the_checksum_we_compute);

fn every_page_has_the_checksum_we_compute(version: u32) {
    let mut cluster = Cluster::builder(version).checksums(true).start();
    cluster.make_table("t", 5000);
    cluster.sql("VACUUM t");
    cluster.stop(Stop::Fast);
    let control = ControlFile::read(cluster.pgdata()).unwrap();
    let (mut files, mut pages) = (0, 0);
    for (name, path) in files_below(cluster.pgdata()) {
        let Some(file) = RelationFile::parse(&name) else { continue };
        files += 1;
        let bytes = fs::read(path).unwrap();
        for (index, page) in bytes.chunks_exact(control.block_size as usize).enumerate() {
            pages += 1;
            if !page::is_new(page) {
                let block = file.first_block(control.segment_blocks) + index as u32;
                assert_eq!(page::checksum(page, block), page::stored_checksum(page), "{name}");
                assert_ne!(page::checksum(page, block + 1), page::stored_checksum(page), "{name}");
                assert!(page::lsn(page) <= control.checkpoint, "{name}");
            }
        }
    }
    if version == 15 {
        // Only 15 has its tools here.
        let pg_checksums = program(15, "pg_checksums");
        let said = run(command(pg_checksums).arg("--check").arg(cluster.pgdata()));
        let counted = |line: &str| {
            let found = said.lines().find_map(|l| l.strip_prefix(line)).unwrap();
            found.trim().parse::<u64>().unwrap()
        };
        assert_eq!((files, pages), (counted("Files scanned:"), counted("Blocks scanned:")));
    }
}

#[test]
fn the_servers_tar_label_and_manifest_are_understood_and_ours_accepted() {
    let cluster = Cluster::builder(15).conf("archive_mode = off").start();
    let scratch = Scratch::new("tar");
    let space = scratch.folder("a space");
    cluster.sql(&format!("CREATE TABLESPACE t LOCATION '{}'", space.display()));
    cluster.sql("CREATE TABLE x TABLESPACE t AS SELECT generate_series(1, 50000) AS n");
    run(command(program(15, "pg_basebackup"))
        .args(["-d", &cluster.conninfo(), "-Ft", "-X", "none", "-c", "fast", "-l", "a label", "-D"])
        .arg(scratch.join("backup")));

    let mut files: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for entry in fs::read_dir(scratch.join("backup")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(stem) = name.strip_suffix(".tar") else { continue };
        let below = match stem {
            "base" => String::new(),
            oid => format!("pg_tblspc/{oid}/"),
        };
        read_tar(&fs::read(&path).unwrap(), &below, &mut files);
    }
    let label = BackupLabel::parse(&files[&b"backup_label"[..]]).unwrap();
    assert_eq!((label.label.as_str(), label.method.as_str()), ("a label", "streamed"));
    assert!(!label.from_standby);
    let links = parse_tablespace_map(&files[&b"tablespace_map"[..]]).unwrap();
    assert_eq!(links.len(), 1);
    assert_eq!(links[0].path, space.to_str().unwrap().as_bytes());
    let control = ControlFile::parse(&files[&b"global/pg_control"[..]]).unwrap();
    assert_eq!(control.redo, label.start_lsn);
    assert_eq!(control.state, ClusterState::InProduction);

    // Ours of the same files says the same as the server's.
    let theirs = fs::read(scratch.join("backup/backup_manifest")).unwrap();
    let ours = manifest(&files, &label);
    assert_eq!(listed(&ours), listed(&theirs));

    // And pg_verifybackup accepts it, and notices a changed byte.
    let restored = scratch.join("restored");
    for (name, bytes) in &files {
        let path = restored.join(std::str::from_utf8(name).unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    fs::write(restored.join("backup_manifest"), &ours).unwrap();
    let verify = || {
        let mut verify = Command::new(program(15, "pg_verifybackup"));
        verify.arg("-n").arg(&restored);
        verify
    };
    run(&mut verify());
    fs::write(restored.join("PG_VERSION"), "16\n").unwrap();
    let refused = verify().output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("PG_VERSION"));
}

fn read_tar(tar: &[u8], below: &str, files: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
    let mut parser = TarParser::new();
    let mut current = Vec::new();
    // Pieces of an odd size, as the network makes them.
    for mut piece in tar.chunks(33_333) {
        while let Some(event) = parser.next(&mut piece).unwrap() {
            match event {
                TarEvent::File { entry, .. } => {
                    current = [below.as_bytes(), &entry.path].concat();
                    files.insert(current.clone(), Vec::new());
                }
                TarEvent::Data(bytes) => files.get_mut(&current).unwrap().extend(bytes),
                TarEvent::FileEnd | TarEvent::Directory(_) | TarEvent::Symlink { .. } => {}
            }
        }
    }
    assert!(parser.is_complete());
}

fn manifest(files: &BTreeMap<Vec<u8>, Vec<u8>>, label: &BackupLabel) -> Vec<u8> {
    let mut writer = ManifestWriter::new(Vec::new(), ManifestVersion::of_major(15), 0).unwrap();
    for (path, bytes) in files {
        writer.file(path, bytes.len() as u64, Utc::now(), crc32_iscsi(bytes)).unwrap();
    }
    let end = Lsn(label.start_lsn.0 + 1000);
    writer.finish(&[WalRange { timeline: label.timeline, start: label.start_lsn, end }]).unwrap()
}

/// Path, size and checksum of every file in a manifest.
fn listed(manifest: &[u8]) -> BTreeMap<String, (u64, String)> {
    let json: serde_json::Value = serde_json::from_slice(manifest).unwrap();
    assert_eq!(json["PostgreSQL-Backup-Manifest-Version"], 1);
    let entries = json["Files"].as_array().unwrap();
    let entry = |e: &serde_json::Value| {
        assert_eq!(e["Checksum-Algorithm"], "CRC32C");
        let text = |key: &str| e[key].as_str().unwrap().to_owned();
        (text("Path"), (e["Size"].as_u64().unwrap(), text("Checksum")))
    };
    entries.iter().map(entry).collect()
}
