//! The file formats of PostgreSQL, compared with what PostgreSQL 15's own tools say and accept.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, chown},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use chrono::{DateTime, Utc};
use crc_fast::crc32_iscsi;
use pgkeep::postgres::{
    backup_label::{BackupLabel, parse_tablespace_map},
    backup_manifest::{ManifestVersion, ManifestWriter, WalRange},
    control::{ClusterState, ControlFile, read_major},
    page::{self, RelationFile},
    tar::{TarEvent, TarParser},
};

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// A directory that the server's user can use, removed at the end; a server in it is stopped.
struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        assert!(Path::new(BIN).is_dir(), "these tests need PostgreSQL 15 in {BIN}");
        let dir = tempfile::Builder::new().prefix("pgkeep-oracle").tempdir_in("/tmp").unwrap();
        if rustix::process::geteuid().is_root() {
            let id = |flag| {
                let out = Command::new("id").args([flag, "postgres"]).output().unwrap();
                String::from_utf8(out.stdout).unwrap().trim().parse::<u32>().unwrap()
            };
            chown(dir.path(), Some(id("-u")), Some(id("-g"))).unwrap();
        }
        Scratch { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a tool of the server's as its user.
    fn try_run(&self, tool: &str, args: &[&str]) -> Output {
        let tool = format!("{BIN}/{tool}");
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups", &tool]);
            command
        } else {
            Command::new(tool)
        };
        command.args(args).current_dir(self.dir.path()).env("LC_ALL", "C").output().unwrap()
    }

    fn run(&self, tool: &str, args: &[&str]) -> String {
        let out = self.try_run(tool, args);
        let errors = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{tool} {args:?}: {errors}");
        String::from_utf8(out.stdout).unwrap()
    }

    fn initdb(&self) -> PathBuf {
        let pgdata = self.path("data");
        let data = pgdata.to_str().unwrap();
        self.run("initdb", &["-D", data, "-k", "-N", "-A", "trust", "--wal-segsize", "4"]);
        pgdata
    }

    fn start(&self) {
        let dir = self.dir.path().display();
        let options = format!("-c listen_addresses= -c unix_socket_directories={dir} -c fsync=off");
        self.run("pg_ctl", &["-D", "data", "-w", "-l", "log", "-o", &options, "start"]);
    }

    fn sql(&self, sql: &str) {
        let dir = self.dir.path().to_str().unwrap();
        self.run("psql", &["-X", "-h", dir, "-v", "ON_ERROR_STOP=1", "-c", sql, "postgres"]);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.path("data/postmaster.pid").exists() {
            self.try_run("pg_ctl", &["-D", "data", "-m", "immediate", "stop"]);
        }
    }
}

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

#[test]
fn the_control_file_is_read_as_pg_controldata_does() {
    let scratch = Scratch::new();
    let pgdata = scratch.initdb();
    let text = scratch.run("pg_controldata", &["data"]);
    let said: BTreeMap<&str, &str> =
        text.lines().filter_map(|l| l.split_once(':')).map(|(k, v)| (k, v.trim())).collect();
    let control = ControlFile::read(&pgdata).unwrap();
    assert_eq!(said["Database system identifier"], control.system_identifier.to_string());
    assert_eq!(said["pg_control version number"], control.version.to_string());
    assert_eq!(said["Catalog version number"], control.catalog_version.to_string());
    assert_eq!(said["Database cluster state"], "shut down");
    assert_eq!(control.state, ClusterState::ShutDown);
    assert_eq!(said["Latest checkpoint location"], control.checkpoint.to_string());
    assert_eq!(said["Latest checkpoint's REDO location"], control.redo.to_string());
    assert_eq!(said["Latest checkpoint's TimeLineID"], control.timeline.to_string());
    assert_eq!(said["Minimum recovery ending location"], control.min_recovery.to_string());
    assert_eq!(control.min_recovery_timeline, None);
    assert_eq!(said["Database block size"], control.block_size.to_string());
    assert_eq!(said["Blocks per segment of large relation"], control.segment_blocks.to_string());
    assert_eq!(said["WAL block size"], control.wal_block_size.to_string());
    assert_eq!(said["Bytes per WAL segment"], control.segment_size.bytes().to_string());
    assert_eq!(said["Data page checksum version"], "1");
    assert!(control.data_checksums);
    assert_eq!(control.major(), Some(15));
    assert_eq!(read_major(&pgdata).unwrap(), 15);
}

#[test]
fn every_page_of_a_new_cluster_has_the_checksum_we_compute() {
    let scratch = Scratch::new();
    let pgdata = scratch.initdb();
    let said = scratch.run("pg_checksums", &["--check", "-D", "data"]);
    let control = ControlFile::read(&pgdata).unwrap();
    let (mut files, mut pages) = (0u64, 0u64);
    for (name, path) in files_below(&pgdata) {
        let Some(file) = RelationFile::parse(&name) else { continue };
        files += 1;
        let bytes = fs::read(path).unwrap();
        for (index, page) in bytes.chunks_exact(control.block_size as usize).enumerate() {
            pages += 1;
            if !page::is_new(page) {
                let block = file.first_block(control.segment_blocks) + index as u32;
                assert_eq!(page::checksum(page, block), page::stored_checksum(page), "{name}");
                assert!(page::lsn(page) <= control.checkpoint, "{name}");
            }
        }
    }
    let counted = |line: &str| {
        let found = said.lines().find_map(|l| l.strip_prefix(line)).unwrap();
        found.trim().parse::<u64>().unwrap()
    };
    assert_eq!(files, counted("Files scanned:"));
    assert_eq!(pages, counted("Blocks scanned:"));
}

#[test]
fn the_servers_tar_label_and_manifest_are_understood_and_ours_accepted() {
    let scratch = Scratch::new();
    scratch.initdb();
    scratch.start();
    let space = scratch.path("a space");
    fs::create_dir(&space).unwrap();
    if rustix::process::geteuid().is_root() {
        let owner = fs::metadata(scratch.path("data")).unwrap();
        chown(&space, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    scratch.sql(&format!("CREATE TABLESPACE t LOCATION '{}'", space.display()));
    scratch.sql("CREATE TABLE x TABLESPACE t AS SELECT generate_series(1, 50000) AS n");
    let dir = scratch.dir.path().to_str().unwrap().to_owned();
    scratch.run(
        "pg_basebackup",
        &["-h", &dir, "-D", "backup", "-Ft", "-X", "none", "-c", "fast", "-l", "a label"],
    );

    let mut files: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for entry in fs::read_dir(scratch.path("backup")).unwrap() {
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
    let theirs = fs::read(scratch.path("backup/backup_manifest")).unwrap();
    let range = WalRange {
        timeline: label.timeline,
        start: label.start_lsn,
        end: pgkeep::postgres::Lsn(label.start_lsn.0 + 1000),
    };
    let ours = manifest(&files, &range);
    assert_eq!(listed(&ours), listed(&theirs));

    // And pg_verifybackup accepts it, and notices a changed byte.
    let restored = scratch.path("restored");
    for (name, bytes) in &files {
        let path = restored.join(std::str::from_utf8(name).unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    fs::write(restored.join("backup_manifest"), &ours).unwrap();
    scratch.run("pg_verifybackup", &["-n", "restored"]);
    let mut changed = fs::OpenOptions::new().write(true).open(restored.join("PG_VERSION")).unwrap();
    changed.write_all(b"6").unwrap();
    let refused = scratch.try_run("pg_verifybackup", &["-n", "restored"]);
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

fn manifest(files: &BTreeMap<Vec<u8>, Vec<u8>>, range: &WalRange) -> Vec<u8> {
    let mut writer = ManifestWriter::new(Vec::new(), ManifestVersion::of_major(15), 0).unwrap();
    for (path, bytes) in files {
        let now: DateTime<Utc> = Utc::now();
        writer.file(path, bytes.len() as u64, now, crc32_iscsi(bytes)).unwrap();
    }
    writer.finish(&[*range]).unwrap()
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
