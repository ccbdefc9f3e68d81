//! Base backups read into memory, and put together again as `pg_combinebackup` would.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use pgkeep::postgres::{
    Lsn, Timeline,
    backup_label::complete_label,
    backup_manifest::WalRange,
    client::{Client, ConnInfo, Environment, Mode, PgError},
    history::TimelineHistory,
    incremental::{
        BLOCK_SIZE, IncrementalEvent, IncrementalParser, ManifestUpload, Origin, original_path,
    },
    replication::{self, BaseBackup, BaseBackupEvent, BaseBackupOptions},
    tar::{TarEvent, TarParser},
};

use crate::support::{
    Cluster,
    install::{command, run},
    scratch::write,
};

/// Blocks in a file of a relation, as all builds have it.
pub const SEGMENT_BLOCKS: u32 = 131_072;

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

pub async fn connect(cluster: &Cluster, mode: Mode) -> Client {
    let environment = Environment::new(&[], None, None);
    let info = ConnInfo::parse_in(&cluster.conninfo(), &environment).expect("a conninfo");
    Client::connect(&info, mode).await.unwrap_or_else(|e| panic!("{e}"))
}

/// A base backup in memory.
#[derive(Debug)]
pub struct Taken {
    /// By path relative to the data directory. Empty directories end with a slash.
    pub files: BTreeMap<String, Vec<u8>>,
    pub timeline: Timeline,
    pub start: Lsn,
    pub stop: Lsn,
    pub stop_timeline: Timeline,
    /// How many bytes of tar came.
    pub sent: usize,
}

/// Takes a base backup: an incremental one over what was uploaded, or a full one.
pub async fn take(client: &mut Client, incremental: bool) -> Result<Taken, PgError> {
    let options = BaseBackupOptions {
        label: "test".to_owned(),
        fast_checkpoint: true,
        max_rate: None,
        wait_for_archive: false,
        verify_checksums: true,
        incremental,
    };
    let mut backup = BaseBackup::start(client, &options).await?;
    let (start, timeline) = (backup.start_lsn(), backup.timeline());
    let (mut files, mut sent) = (BTreeMap::new(), 0);
    let (mut prefix, mut parser, mut current) = (String::new(), TarParser::new(), String::new());
    loop {
        match backup.next().await? {
            BaseBackupEvent::Archive { name, .. } => {
                parser = TarParser::new();
                prefix = match name.strip_suffix(".tar").expect("a tar") {
                    "base" => String::new(),
                    oid => format!("pg_tblspc/{oid}/"),
                };
            }
            BaseBackupEvent::Data(data) => {
                sent += data.len();
                let mut input = &data[..];
                while let Some(event) = parser.next(&mut input).unwrap() {
                    let path = |path: &[u8]| format!("{prefix}{}", String::from_utf8_lossy(path));
                    match event {
                        TarEvent::File { entry, .. } => {
                            current = path(&entry.path);
                            files.insert(current.clone(), Vec::new());
                        }
                        TarEvent::Data(bytes) => files.get_mut(&current).unwrap().extend(bytes),
                        TarEvent::Directory(entry) => {
                            files.insert(path(&entry.path) + "/", Vec::new());
                        }
                        TarEvent::FileEnd | TarEvent::Symlink { .. } => {}
                    }
                }
            }
            BaseBackupEvent::Progress(_) | BaseBackupEvent::Notice(_) => {}
            BaseBackupEvent::End(end) => {
                let (stop, stop_timeline) = (end.stop_lsn, end.stop_timeline);
                return Ok(Taken { files, timeline, start, stop, stop_timeline, sent });
            }
        }
    }
}

/// Tells the server that we have `base`, visibility maps apart: servers before 17.11 and 18.6 don't
/// know all their changes.
pub async fn upload(client: &mut Client, base: &Taken) -> Result<(), PgError> {
    let identity = replication::identify_system(client).await?;
    let ranges = ranges(client, base).await;
    let mut upload = ManifestUpload::start(client, identity.system_identifier).await?;
    for path in base.files.keys().filter(|path| !path.ends_with("_vm")) {
        upload.file(path.as_bytes(), 0).await?;
    }
    upload.finish(&ranges).await
}

/// The WAL that `base` needs.
pub async fn ranges(client: &mut Client, base: &Taken) -> Vec<WalRange> {
    if base.timeline == base.stop_timeline {
        return vec![WalRange { timeline: base.timeline, start: base.start, end: base.stop }];
    }
    let history = history(client, base.stop_timeline).await;
    WalRange::of_backup(&history, base.timeline, base.start, base.stop).expect("a way")
}

/// The history of a timeline that the server has.
pub async fn history(client: &mut Client, timeline: Timeline) -> TimelineHistory {
    if timeline == Timeline(1) {
        return TimelineHistory::first();
    }
    let bytes = replication::timeline_history(client, timeline).await.unwrap();
    TimelineHistory::parse(timeline, &bytes).unwrap()
}

/// What an incremental backup and the files of the one before make.
#[derive(Debug)]
pub struct Rebuilt {
    pub files: BTreeMap<String, Vec<u8>>,
    /// The files of which only a part was sent, and how many blocks of each.
    pub partly: BTreeMap<String, usize>,
}

pub fn rebuild(base: &Taken, increment: &Taken) -> Rebuilt {
    let (mut files, mut partly) = (BTreeMap::new(), BTreeMap::new());
    for (path, bytes) in &increment.files {
        if path == "backup_label" {
            let completed = complete_label(bytes).unwrap();
            assert_eq!(completed.base, Some((base.start, base.timeline)));
            files.insert(path.clone(), completed.label);
        } else if let Some(original) = original_path(path.as_bytes()) {
            let earlier = base.files.get(&original);
            let earlier = earlier.unwrap_or_else(|| panic!("{original} isn't in the base"));
            let (file, blocks) = rebuild_file(earlier, bytes);
            partly.insert(original.clone(), blocks);
            files.insert(original, file);
        } else {
            files.insert(path.clone(), bytes.clone());
        }
    }
    Rebuilt { files, partly }
}

/// The file, and how many blocks of it came.
fn rebuild_file(earlier: &[u8], increment: &[u8]) -> (Vec<u8>, usize) {
    let mut parser = IncrementalParser::new(increment.len() as u64, SEGMENT_BLOCKS).unwrap();
    let (mut header, mut pages) = (None, BTreeMap::new());
    // Pieces of an odd size, as the network makes them.
    for mut piece in increment.chunks(33_333) {
        while let Some(event) = parser.next(&mut piece).unwrap() {
            match event {
                IncrementalEvent::Header(found) => header = Some(found.clone()),
                IncrementalEvent::Page { block, page } => {
                    pages.insert(block, page.to_vec());
                }
            }
        }
    }
    assert!(parser.is_complete());
    let header = header.unwrap();
    assert!(header.blocks.iter().eq(pages.keys()));
    let mut file = Vec::new();
    for run in header.runs((earlier.len() / BLOCK_SIZE) as u32) {
        for block in run.first..run.first + run.count {
            let at = block as usize * BLOCK_SIZE;
            match run.origin {
                Origin::Increment => file.extend(&pages[&block]),
                Origin::Base => file.extend(&earlier[at..at + BLOCK_SIZE]),
                Origin::Zero => file.resize(file.len() + BLOCK_SIZE, 0),
            }
        }
    }
    assert_eq!(file.len(), header.length() as usize * BLOCK_SIZE);
    (file, pages.len())
}

/// Writes files as a data directory that recovers with the WAL in `wal`, to its end.
pub fn write_directory(files: &BTreeMap<String, Vec<u8>>, pgdata: &Path, wal: &Path) {
    let folders: BTreeSet<&str> =
        files.keys().filter_map(|p| Some(p.rsplit_once('/')?.0)).collect();
    let folders = folders.into_iter().map(|folder| pgdata.join(folder));
    run(command("mkdir").args(["-m", "0700", "-p"]).arg(pgdata).args(folders));
    for (path, bytes) in files.iter().filter(|(path, _)| !path.ends_with('/')) {
        write(&pgdata.join(path), bytes);
    }
    let conf = String::from_utf8(files["postgresql.conf"].clone()).unwrap();
    let restore = format!("restore_command = 'cp {}/%f %p'", wal.display());
    write(&pgdata.join("postgresql.conf"), format!("{conf}\n{restore}\narchive_mode = off\n"));
    write(&pgdata.join("recovery.signal"), "");
}
