//! Writing a data directory: everything comes back, nothing half restored can start, and nothing
//! outside the directories that were given is touched.

mod real;
mod store;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use pgkeep::{
    error::{Error, Kind},
    postgres::backup_label::parse_tablespace_map,
    progress::{Progress, Silent},
    repo::{
        Repository,
        keys::{KeyMaterial, read_key_file},
        layout::ClusterLayout,
        record::{BackupRecord, Tablespace},
        sealed::ObjectReader,
        tree::{BLOCK, BackupTable},
    },
    restore::{
        marker::MARKER,
        settings::{RecoverySettings, Signal},
        write::{WriteReport, WriteRequest, write},
    },
    storage::{self, Capabilities, Listed, ObjectName, ObjectWriter, Range, Storage, local::Local},
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

/// Storage that counts how often each pack is read from.
#[derive(Debug)]
struct Counting(Local, Mutex<BTreeMap<String, usize>>);

#[async_trait]
impl Storage for Counting {
    fn address(&self) -> &str {
        self.0.address()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn create(&self, name: &ObjectName) -> storage::Result<Box<dyn ObjectWriter>> {
        self.0.create(name).await
    }

    async fn read(&self, name: &ObjectName, range: Range) -> storage::Result<Bytes> {
        *self.1.lock().unwrap().entry(name.to_string()).or_default() += 1;
        self.0.read(name, range).await
    }

    async fn size(&self, name: &ObjectName) -> storage::Result<u64> {
        self.0.size(name).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> storage::Result<Vec<Listed>> {
        self.0.list(prefix, after, limit).await
    }

    async fn folders(&self, folder: &str) -> storage::Result<Vec<String>> {
        self.0.folders(folder).await
    }

    async fn delete(&self, name: &ObjectName) -> storage::Result<()> {
        self.0.delete(name).await
    }

    async fn replace(&self, name: &ObjectName, bytes: Bytes) -> storage::Result<()> {
        self.0.replace(name, bytes).await
    }

    async fn ensure_durable(&self, name: &ObjectName) -> storage::Result<()> {
        self.0.ensure_durable(name).await
    }
}

#[test]
fn files_of_several_windows_come_back_and_frames_are_read_once() {
    let mut files = made_up();
    // 300 MiB, mostly holes: more blocks than a window has.
    let mut long = vec![0; 38_000 * BLOCK + 5];
    for (i, at) in (0..38_000).step_by(500).enumerate() {
        long[at * BLOCK..][..BLOCK].copy_from_slice(&pages(500 + i as u64, 1));
    }
    files.put("base/2/long", long);
    for i in 0..20 {
        files.put(&format!("base/3/{i}"), pages(700 + i, 9));
    }
    let (mut house, stored) = House::with(&files);
    let root = house.path("repository");
    let counting = Arc::new(Counting(Local::open(&root).unwrap(), Mutex::default()));
    let key = KeyMaterial::KeyFile(read_key_file(&root.with_extension("key")).unwrap());
    let opened = Repository::open("main", counting.clone(), &key, 1);
    house.repository = house.runtime.block_on(opened).unwrap();
    house.restore(&stored).unwrap();
    house.assert_restored(&files);

    let reads = counting.1.lock().unwrap().clone();
    let mut packs = 0;
    for (name, reads) in reads.iter().filter(|(name, _)| name.contains("/packs/0")) {
        let name = ObjectName::new(name.clone()).unwrap();
        let reader = ObjectReader::open(&house.repository, &name);
        let frames = house.runtime.block_on(reader).unwrap().frame_count();
        // Its end, its header, each frame; two windows may share one.
        assert!(
            (frames + 2..=frames + 3).contains(reads),
            "{name}: {reads} reads, {frames} frames"
        );
        packs += 1;
    }
    assert!(packs > 2);
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

/// Panics at the n-th thing it is told: as good as a crash, since nothing is cleaned up.
struct Crash {
    at: usize,
    told: AtomicUsize,
}

impl Crash {
    fn at(at: usize) -> Arc<Self> {
        Arc::new(Crash { at, told: AtomicUsize::new(0) })
    }

    fn tell(&self) {
        assert!(self.told.fetch_add(1, Ordering::Relaxed) != self.at, "crash");
    }
}

impl Progress for Crash {
    fn step(&self, _: &str) {
        self.tell();
    }

    fn total(&self, _: Option<u64>) {}

    fn advance(&self, _: u64) {
        self.tell();
    }

    fn warn(&self, message: &str) {
        assert!(message.contains("recovery_target_xid"), "{message}");
    }
}

#[test]
fn a_restore_that_was_interrupted_anywhere_can_be_run_again() {
    let files = made_up();
    let (house, stored) = House::with(&files);
    let tablespaces = BTreeMap::from([(16400, house.space())]);
    let mut crashes = 0;
    // Each crash meets what the ones before it left.
    for at in (1..10).chain((10..).step_by(13)) {
        let crash = Crash::at(at);
        let result = house.restore_to(&stored.record, &house.pgdata(), &tablespaces, crash);
        if result.is_ok() {
            break;
        }
        assert_eq!(result.unwrap_err().kind(), Kind::Internal);
        crashes += 1;
        house.assert_not_startable();
        if house.pgdata().exists() {
            // A server that is started here anyway finds no control file.
            assert!(house.pgdata().join(MARKER).exists());
        }
    }
    assert!(crashes > 10, "{crashes}");
    house.assert_restored(&files);
}

#[test]
fn a_crash_in_the_last_steps_can_be_repeated_unless_a_server_ran_since() {
    let files = made_up();
    let (house, stored) = House::with(&files);
    // Stopped before pg_control: all files are there, and both markers.
    let tablespaces = BTreeMap::from([(16400, house.space())]);
    let last_step = {
        let crash = Crash::at(usize::MAX);
        let pgdata = house.pgdata();
        house.restore_to(&stored.record, &pgdata, &tablespaces, crash.clone()).unwrap();
        fs::remove_dir_all(&pgdata).unwrap();
        fs::remove_dir_all(house.space()).unwrap();
        crash.told.load(Ordering::Relaxed) - 1
    };
    let crash = Crash::at(last_step);
    house.restore_to(&stored.record, &house.pgdata(), &tablespaces, crash).unwrap_err();
    let marker = fs::read_to_string(house.pgdata().join(MARKER)).unwrap();
    // The crash comes after the tablespace's marker was taken away, and then after pg_control.
    let finishing = marker.replace("\"writing\"", "\"finishing\"");
    assert_ne!(marker, finishing);
    fs::write(house.pgdata().join(MARKER), finishing).unwrap();
    fs::remove_file(house.space().join(MARKER)).unwrap();
    fs::rename(
        house.pgdata().join("global/pg_control.restoring"),
        house.pgdata().join("global/pg_control"),
    )
    .unwrap();
    fs::write(house.pgdata().join("postmaster.opts"), "").unwrap();
    let e = house.restore(&stored).unwrap_err();
    assert!(e.to_string().contains("a server was started there since"), "{e}");
    assert!(house.pgdata().join("global/pg_control").exists(), "it is in use");
    fs::remove_file(house.pgdata().join("postmaster.opts")).unwrap();
    house.restore(&stored).unwrap();
    house.assert_restored(&files);
}

#[test]
fn a_second_restore_elsewhere_clears_the_tablespaces_of_the_interrupted_one() {
    let files = made_up();
    let (house, stored) = House::with(&files);
    let old = BTreeMap::from([(16400, house.path("old space"))]);
    house.restore_to(&stored.record, &house.pgdata(), &old, Crash::at(9)).unwrap_err();
    assert!(!names(&house.path("old space")).is_empty());
    house.restore(&stored).unwrap();
    assert!(names(&house.path("old space")).is_empty());
    house.assert_restored(&files);
}

#[test]
fn directories_in_use_are_refused_and_left_alone() {
    let files = made_up();
    let (house, stored) = House::with(&files);
    let refused = |why: &str| {
        let before = Files::read(house.scratch.path());
        let e = house.restore(&stored).unwrap_err();
        assert!(e.to_string().contains(why), "{e}");
        let after = Files::read(house.scratch.path());
        assert!(before.files == after.files && before.directories == after.directories, "{why}");
        e.kind()
    };
    let data = house.pgdata();

    fs::create_dir(&data).unwrap();
    fs::write(data.join("somebody's file"), "precious").unwrap();
    assert_eq!(refused("it isn't empty"), Kind::Conflict);
    fs::write(data.join(MARKER), "{}").unwrap();
    assert_eq!(refused("isn't a restore's marker"), Kind::Conflict);
    fs::remove_file(data.join(MARKER)).unwrap();
    symlink("/etc/hostname", data.join(MARKER)).unwrap();
    assert_eq!(refused("isn't a restore's marker"), Kind::Conflict);
    fs::write(data.join("postmaster.pid"), format!("{}\n/x\n", std::process::id())).unwrap();
    assert_eq!(refused("a server may be running there"), Kind::Conflict);
    fs::remove_dir_all(&data).unwrap();

    fs::create_dir(house.space()).unwrap();
    fs::write(house.space().join("live"), "precious").unwrap();
    assert_eq!(refused("it isn't empty"), Kind::Conflict);
    fs::remove_dir_all(house.space()).unwrap();

    fs::write(&data, "a file").unwrap();
    assert_eq!(refused("it is not a directory"), Kind::Conflict);
}

#[test]
fn impossible_requests_are_refused_before_anything_is_written() {
    let files = made_up();
    let (house, stored) = House::with(&files);
    let before = Files::read(house.scratch.path()).directories;
    let refused = |pgdata: &Path, spaces: &[(u32, PathBuf)], why: &str| {
        let spaces = spaces.iter().cloned().collect();
        let e = house.restore_to(&stored.record, pgdata, &spaces, Arc::new(Silent)).unwrap_err();
        assert!(e.to_string().contains(why), "{e}");
        assert_eq!(Files::read(house.scratch.path()).directories, before);
    };
    let space = || (16400, house.space());
    let data = house.pgdata();
    refused(&data, &[], "where tablespace 16400 goes");
    refused(&data, &[space(), (16402, house.path("x"))], "no tablespace 16402");
    refused(&data, &[(16400, data.join("inside"))], "the directory above");
    refused(&data, &[(16400, data.clone())], "lie one in the other");
    refused(&house.path("missing/data"), &[space()], "the directory above");
    for inside in ["repository", "repository/data", "repository/clusters"] {
        refused(&house.path(inside), &[space()], "the repository at");
    }
    refused(house.scratch.path(), &[space()], "the repository at");
    let elsewhere = Scratch::new("link");
    symlink(house.path("repository"), elsewhere.join("link")).unwrap();
    refused(&elsewhere.join("link/data"), &[space()], "the repository at");
}

#[test]
fn links_are_never_followed_while_clearing_or_writing() {
    let files = made_up();
    let (house, stored) = House::with(&files);
    let victim = house.path("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("precious"), "precious").unwrap();
    // What an interrupted restore left has links in it: in clearing they are removed, not followed.
    let tablespaces = BTreeMap::from([(16400, house.space())]);
    house.restore_to(&stored.record, &house.pgdata(), &tablespaces, Crash::at(12)).unwrap_err();
    fs::remove_dir_all(house.pgdata().join("base")).unwrap();
    symlink(&victim, house.pgdata().join("base")).unwrap();
    symlink(&victim, house.space().join("link")).unwrap();
    symlink(victim.join("precious"), house.pgdata().join("a link")).unwrap();
    house.restore(&stored).unwrap();
    house.assert_restored(&files);
    assert_eq!(names(&victim), ["precious"]);

    // And one that appears while files are written makes it fail.
    fs::remove_dir_all(house.pgdata()).unwrap();
    fs::remove_dir_all(house.space()).unwrap();
    struct Attack(PathBuf, PathBuf);
    impl Progress for Attack {
        fn step(&self, _: &str) {}
        fn total(&self, _: Option<u64>) {
            fs::create_dir_all(&self.0).unwrap();
            symlink(&self.1, self.0.join("base")).unwrap();
        }
        fn advance(&self, _: u64) {}
        fn warn(&self, _: &str) {}
    }
    let attack = Arc::new(Attack(house.pgdata(), victim.clone()));
    let result = house.restore_to(&stored.record, &house.pgdata(), &tablespaces, attack);
    assert_eq!(result.unwrap_err().kind(), Kind::Local);
    assert_eq!(names(&victim), ["precious"]);
    house.assert_not_startable();
}

#[test]
fn two_restores_to_one_directory_at_once_are_refused() {
    let files = made_up();
    let (house, stored) = House::with(&files);
    fs::create_dir(house.pgdata()).unwrap();
    let held = fs::File::open(house.pgdata()).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let e = house.restore(&stored).unwrap_err();
    assert!(e.to_string().contains("another restore is writing there"), "{e}");
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
