//! Writing a data directory: everything comes back, nothing half restored can start, and nothing
//! outside the directories that were given is touched.

mod crashes;
mod real;
mod refusals;
pub mod store;
mod windows;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use pgkeep::{
    error::{Error, Kind},
    postgres::backup_label::parse_tablespace_map,
    progress::{Progress, Silent},
    repo::{
        Repository,
        layout::ClusterLayout,
        record::{BackupRecord, Tablespace},
        tree::{BLOCK, BackupTable},
    },
    restore::{
        settings::{RecoverySettings, Signal},
        write::{WriteReport, WriteRequest, write},
    },
};
use tokio::runtime::Runtime;

use self::store::{Content, Files, Stored, new_repository, pages, store};
use crate::support::{
    Cluster, Scratch,
    install::{command, program, run},
    objects::{cut, delete, flip_bit, swap},
};

const FULL: &str = "20261120T195812Z-full";
const INCR: &str = "20261121T195812Z-incr";

/// A data directory that no server ever saw, with all kinds of files.
fn made_up() -> Files {
    let mut files = Files::default();
    files.put("PG_VERSION", "15\n");
    files.put("backup_label", "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n");
    files.put("global/pg_control", pages(1, 1));
    files.put_with_mode("pg_hba.conf", 0o640, "local all all trust\n");
    files.put_with_mode("server.key", 0o400, "secret\n");
    files.put("postgresql.conf", "port = 5432\nrecovery_target_xid = '7'\n");
    files.put(
        "postgresql.auto.conf",
        "work_mem = '4MB'\nprimary_conninfo = 'host=old'\nrestore_command = 'old'\n",
    );
    files.put("standby.signal", "");
    files.put("recovery.signal", "");
    files.put("base/1/empty", "");
    files.put("base/1/one", "x");
    files.put("base/1/page", pages(2, 1));
    files.put("base/1/inline", pages(3, 4));
    files.put("base/1/leaf", pages(4, 5));
    files.put("base/1/odd", &pages(5, 8)[..7 * BLOCK + 17]);
    files.put("base/1/zeros", vec![0; 64 * BLOCK]);
    files.put("base/1/zero_tail", [pages(6, 2), vec![0; BLOCK + 100]].concat());
    // Over three map leaves, with few pages.
    let mut sparse = vec![0; (2 * 1024 + 5) * BLOCK];
    for (seed, at, count) in [(70, 0, 10), (71, 900, 200), (72, 1500, 3), (73, 2001, 52)] {
        let pages = pages(seed, count);
        sparse[at * BLOCK..][..pages.len()].copy_from_slice(&pages);
    }
    files.put("base/1/sparse", sparse);
    for i in 0..200 {
        files.put(&format!("base/5/{}", 1000 + i), pages(100 + i, 1 + i as usize % 7));
    }
    files.put("pg_tblspc/16400/PG_15_202209061/5/16401", pages(8, 40));
    files.put("pg_tblspc/16402/PG_15_202209061/5/16403", pages(9, 3));
    for empty in ["pg_wal", "pg_wal/archive_status", "pg_replslot", "pg_notify"] {
        files.directories.insert(empty.into(), 0o700);
    }
    files.directories.insert("pg_stat".into(), 0o750);
    files.tablespaces = vec![
        Tablespace { oid: 16400, location: "/old/space".into(), in_place: false },
        Tablespace { oid: 16402, location: "pg_tblspc/16402".into(), in_place: true },
    ];
    files.put("tablespace_map", "16400 /old/space\n");
    files
}

/// A repository with a backup, and room to restore it to.
struct House {
    runtime: Runtime,
    scratch: Scratch,
    repository: Repository,
    layout: ClusterLayout,
    table: BackupTable,
}

impl House {
    fn new(encrypted: bool) -> Self {
        let scratch = Scratch::new("restore");
        let runtime = Runtime::new().unwrap();
        let (repository, layout) =
            runtime.block_on(new_repository(&scratch.path().join("repository"), encrypted));
        House { runtime, scratch, repository, layout, table: BackupTable::default() }
    }

    fn with(files: &Files) -> (Self, Stored) {
        let mut house = House::new(true);
        let stored = house.store(FULL, files, None);
        (house, stored)
    }

    fn store(&mut self, id: &str, files: &Files, base: Option<&Stored>) -> Stored {
        // The order of a stream: by directory, in no order within one.
        let mut order: Vec<&String> = files.files.keys().collect();
        order.sort_by_key(|path| {
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
            (folder, name.bytes().fold(7u32, |h, b| h.wrapping_mul(31) ^ u32::from(b)))
        });
        let at = (&self.repository, &self.layout);
        self.runtime.block_on(store(at, id, files, &order, base, &mut self.table))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn pgdata(&self) -> PathBuf {
        self.path("data")
    }

    fn space(&self) -> PathBuf {
        self.path("space")
    }

    fn restore_to(
        &self,
        record: &BackupRecord,
        pgdata: &Path,
        tablespaces: &BTreeMap<u32, PathBuf>,
        progress: Arc<dyn Progress>,
    ) -> Result<WriteReport, Error> {
        let request = WriteRequest {
            repository: &self.repository,
            layout: &self.layout,
            record,
            pgdata,
            tablespaces,
            settings: RecoverySettings {
                alone: false,
                signal: Signal::Recovery,
                lines: vec![("restore_command".into(), "it's 'new' %f %p".into())],
            },
            threads: 3,
        };
        self.runtime.block_on(write(request, progress))
    }

    fn restore(&self, stored: &Stored) -> Result<WriteReport, Error> {
        let tablespaces = match stored.record.tablespaces.is_empty() {
            true => BTreeMap::new(),
            false => BTreeMap::from([(16400, self.space())]),
        };
        self.restore_to(&stored.record, &self.pgdata(), &tablespaces, Arc::new(Silent))
    }

    fn object(&self, name: &str) -> PathBuf {
        self.path(&format!("repository/clusters/main/backups/{name}"))
    }

    /// Nothing here can start.
    fn assert_not_startable(&self) {
        assert!(!self.pgdata().join("global/pg_control").exists());
    }

    /// All of `files` are there as they should be after a restore.
    fn assert_restored(&self, files: &Files) {
        let found = Files::read(&self.pgdata());
        for (path, expected) in &files.files {
            let found = found.files.get(path);
            match path.as_str() {
                "standby.signal" => assert!(found.is_none(), "{path}"),
                "recovery.signal" => assert_eq!(found.unwrap().bytes, b""),
                "postgresql.auto.conf" => {
                    let text = String::from_utf8(found.unwrap().bytes.clone()).unwrap();
                    assert!(!text.contains("old"), "{text}");
                    assert!(text.contains("work_mem = '4MB'\n"), "{text}");
                    assert!(text.contains("restore_command = 'it''s ''new'' %f %p'\n"), "{text}");
                }
                "tablespace_map" => {
                    let links = parse_tablespace_map(&found.unwrap().bytes).unwrap();
                    assert_eq!(links.len(), 1);
                    assert_eq!(links[0].path, self.space().to_str().unwrap().as_bytes());
                }
                _ => {
                    let Content { mode, bytes } =
                        found.unwrap_or_else(|| panic!("{path} is missing"));
                    assert_eq!(*mode, expected.mode, "{path}");
                    assert!(*bytes == expected.bytes, "{path} differs");
                }
            }
        }
        for (path, mode) in &files.directories {
            assert_eq!(found.directories.get(path), Some(mode), "{path}");
        }
        let ours = ["backup_manifest", "recovery.signal"];
        for path in found.files.keys() {
            assert!(files.files.contains_key(path) || ours.contains(&path.as_str()), "{path}");
        }
        if self.space().exists() {
            assert_eq!(names(&self.space()), ["PG_15_202209061"]);
        }
        let verify = program(15, "pg_verifybackup");
        run(Command::new(verify).arg("-n").arg(self.pgdata()));
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn everything_comes_back_and_pg_verifybackup_agrees() {
    let files = made_up();
    let (house, stored) = House::with(&files);
    let report = house.restore(&stored).unwrap();
    house.assert_restored(&files);
    let bytes = files.files.values().map(|f| f.bytes.len() as u64).sum::<u64>();
    assert_eq!(report.bytes, bytes);
    let data = fs::metadata(house.pgdata()).unwrap();
    assert_eq!(data.permissions().mode() & 0o7777, 0o700);
    let link = fs::read_link(house.pgdata().join("pg_tblspc/16400")).unwrap();
    assert_eq!(link, house.space());
    assert!(house.pgdata().join("pg_tblspc/16402").symlink_metadata().unwrap().is_dir());
    // Zeros take no room.
    let zeros = fs::metadata(house.pgdata().join("base/1/zeros")).unwrap();
    assert_eq!((zeros.len(), zeros.blocks()), (64 * BLOCK as u64, 0));
}

#[test]
fn a_later_backup_that_refers_to_an_earlier_one_comes_back() {
    let mut files = made_up();
    let mut house = House::new(false);
    let full = house.store(FULL, &files, None);
    let change = |files: &mut Files, path: &str, at: usize, with: &[u8]| {
        files.files.get_mut(path).unwrap().bytes[at..at + with.len()].copy_from_slice(with);
    };
    change(&mut files, "base/1/sparse", 1500 * BLOCK, &pages(50, 2));
    change(&mut files, "base/1/sparse", 10 * BLOCK, &pages(51, 1));
    change(&mut files, "base/1/sparse", 1030 * BLOCK, &vec![0; BLOCK]);
    change(&mut files, "base/1/sparse", 2040 * BLOCK, &pages(54, 4));
    files.files.get_mut("base/1/sparse").unwrap().bytes.truncate(2050 * BLOCK);
    files.files.get_mut("base/1/leaf").unwrap().bytes.extend(pages(52, 3));
    for i in (0..200).step_by(9) {
        change(&mut files, &format!("base/5/{}", 1000 + i), 0, &pages(60 + i, 1));
    }
    files.files.remove("base/1/odd");
    files.put("base/1/new", pages(53, 9));
    let incr = house.store(INCR, &files, Some(&full));
    assert!(incr.record.sizes.raw * 5 < full.record.sizes.raw);
    house.restore(&incr).unwrap();
    house.assert_restored(&files);
}

#[test]
fn blocks_in_the_wrong_place_are_seen_though_every_object_is_sound() {
    let mut files = made_up();
    let mut house = House::new(true);
    let mut full = house.store(FULL, &files, None);
    full.exchange_blocks("base/1/sparse", 901, 902);
    files.put("base/1/new", pages(90, 9));
    let incr = house.store(INCR, &files, Some(&full));
    let e = house.restore(&incr).unwrap_err();
    assert_eq!(e.kind(), Kind::Damaged);
    assert!(e.to_string().contains("base/1/sparse"), "{e}");
    house.assert_not_startable();
}

#[test]
fn damage_is_found_named_and_leaves_nothing_that_starts() {
    let files = made_up();
    let (house, stored) = House::with(&files);
    let name = |object: &str| format!("{FULL}/{object}");
    let (data, other) = (name("packs/000001"), name("packs/000002"));
    let (leaves, manifest) = (name("packs/900000"), name("manifest"));
    type Damage = Box<dyn Fn(&Path)>;
    let flip = |at| -> Damage { Box::new(move |path| flip_bit(path, at)) };
    let shorten = |len| -> Damage { Box::new(move |path| cut(path, len)) };
    let with = house.object(&other);
    let damages: Vec<(&str, &String, Damage)> = vec![
        ("flip", &data, flip(70_000)),
        ("flip in the header", &data, flip(40)),
        ("flip at the end", &data, flip(-90)),
        ("cut", &data, shorten(100_000)),
        ("delete", &data, Box::new(delete)),
        ("swap", &data, Box::new(move |path| swap(path, &with))),
        ("flip", &leaves, flip(200)),
        ("cut", &manifest, shorten(300)),
        ("delete", &manifest, Box::new(delete)),
    ];
    for (how, object, damage) in damages {
        let path = house.object(object);
        let sound =
            [&path, &house.object(&other)].map(|path| (path.clone(), fs::read(path).unwrap()));
        damage(&path);
        let e = house.restore(&stored).expect_err(how);
        assert_eq!(e.kind(), Kind::Damaged, "{how} {object}: {e}");
        assert!(e.to_string().contains(object), "{how} {object}: {e}");
        house.assert_not_startable();
        for (path, bytes) in sound {
            fs::write(path, bytes).unwrap();
        }
    }
    house.restore(&stored).unwrap();
    house.assert_restored(&files);
}

#[test]
fn a_cluster_restored_from_its_files_starts_and_has_its_rows() {
    let cluster = Cluster::builder(15).start();
    let space = cluster.pgdata().with_file_name("space");
    run(command("mkdir").arg(&space));
    cluster.sql(&format!("CREATE TABLESPACE s LOCATION '{}'", space.display()));
    cluster
        .sql("CREATE TABLE a AS SELECT n, repeat('x', 500) AS t FROM generate_series(1, 20000) n");
    cluster.sql("CREATE TABLE b TABLESPACE s AS SELECT n FROM generate_series(1, 5000) n");
    let sum = "SELECT sum(hashtext(a::text)) FROM a UNION ALL SELECT sum(n) FROM b";
    let expected = cluster.sql(sum);

    let scratch = Scratch::new("plain");
    let (plain, remapped) = (scratch.path().join("plain"), scratch.path().join("remapped"));
    let conninfo = cluster.conninfo();
    run(command(program(15, "pg_basebackup"))
        .args(["-d", &conninfo, "-X", "fetch", "-c", "fast", "--no-manifest", "-D"])
        .arg(&plain)
        .arg("-T")
        .arg(format!("{}={}", space.display(), remapped.display())));
    let mut files = Files::read(&plain);
    let oid: u32 =
        cluster.sql("SELECT oid FROM pg_tablespace WHERE spcname = 's'").parse().unwrap();
    let location = space.to_str().unwrap().to_owned();
    files.tablespaces = vec![Tablespace { oid, location, in_place: false }];
    drop(cluster);

    let (house, stored) = House::with(&files);
    let tablespaces = BTreeMap::from([(oid, house.space())]);
    let request = WriteRequest {
        repository: &house.repository,
        layout: &house.layout,
        record: &stored.record,
        pgdata: &house.pgdata(),
        tablespaces: &tablespaces,
        settings: RecoverySettings {
            alone: false,
            signal: Signal::None,
            lines: vec![("work_mem".into(), "3MB".into())],
        },
        threads: 2,
    };
    house.runtime.block_on(write(request, Arc::new(Silent))).unwrap();
    run(Command::new(program(15, "pg_verifybackup")).arg("-n").arg(house.pgdata()));
    for path in [house.pgdata(), house.space()] {
        let user = crate::support::install::user();
        let owner = format!("{}:{}", user.uid, user.gid);
        run(Command::new("chown").args(["-R", &owner]).arg(path));
    }
    let mut restored = Cluster::at(&house.pgdata(), 15);
    restored.start();
    assert_eq!(restored.sql(sum), expected);
    assert_eq!(restored.sql("SHOW work_mem"), "3MB");
    let log = restored.log();
    assert!(log.contains("consistent recovery state reached"), "{log}");
}
