//! Writing a backup's data directory, in an order that makes a restore all or nothing.
//!
//! 1. The backup's tree is read; nothing has been touched yet.
//! 2. The directories are taken ([`super::guard`]): marked, and a `global/pg_control` that was there
//!    is moved away before anything else.
//! 3. All files are written, the control file under another name; then settings, links, manifest.
//! 4. Everything is synced: once as a whole, which is fast, then file by file and directory by
//!    directory, which tells of errors on every kernel and file system.
//! 5. `global/pg_control` gets its name, durably. Only now can a server start.
//! 6. The marker is removed.
//!
//! So whenever a restore is killed, or the machine loses power, what it leaves either can't start or
//! is whole; and it can be run again, because all it has to know is on disk.

use std::{
    collections::BTreeMap,
    io::BufWriter,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use chrono::Utc;
use crc_fast::crc32_iscsi;
use tokio::runtime::Handle;

use super::{
    frames::{Work, write_files},
    guard::{Claim, Places},
    marker::{Marker, Phase},
    settings::{AUTO_CONF, RecoverySettings, places_in},
    target::Target,
    tree::{Tree, read_tree},
    windows::{CONTROL_FILE_HELD_BACK, written_as},
};
use crate::{
    error::{Context, Error, Kind, Result},
    postgres::{
        backup_label::{
            TABLESPACE_MAP, TablespaceLink, format_tablespace_map, parse_tablespace_map,
        },
        backup_manifest::{BACKUP_MANIFEST, ManifestVersion, ManifestWriter, WalRange},
        control::CONTROL_FILE,
    },
    progress::Progress,
    repo::{
        Repository, id::RandomId, layout::ClusterLayout, manifest::ClusterFacts, pack::PackReader,
        record::BackupRecord, tree::FileKind, tree_reader::TreeReader,
    },
    steps::reached,
};

/// What to restore, and where to.
pub struct WriteRequest<'a> {
    /// The repository to read.
    pub repository: &'a Repository,
    /// The cluster's objects in it.
    pub layout: &'a ClusterLayout,
    /// The backup.
    pub record: &'a BackupRecord,
    /// The data directory.
    pub pgdata: &'a Path,
    /// Where each tablespace goes, by object id: all of the backup's but those that lie in place.
    pub tablespaces: &'a BTreeMap<u32, PathBuf>,
    /// The settings of the restored server.
    pub settings: RecoverySettings,
    /// How many threads fetch and write.
    pub threads: usize,
}

/// What was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteReport {
    /// How many files.
    pub files: u64,
    /// Their length, in bytes.
    pub bytes: u64,
}

/// Stops the threads when nobody waits for them any more.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Restores a backup's data directory. When this fails, or is killed, the directory can't be
/// started, and the same restore can be run again.
pub async fn write(request: WriteRequest<'_>, progress: Arc<dyn Progress>) -> Result<WriteReport> {
    request.settings.check()?;
    let repository_path = request.repository.storage().address().strip_prefix("file://");
    let places =
        Places::check(request.pgdata, request.tablespaces, repository_path.map(Path::new))?;
    progress.step(&format!("reading what backup {} holds", request.record.id));
    let packs = Arc::new(PackReader::new(request.repository, request.layout));
    let tree = read_tree(&mut TreeReader::new(packs.clone()), &request.record.id).await?;
    check_tablespaces(&tree, request.tablespaces)?;
    let stop = StopOnDrop(Arc::default());
    let writer = Writer {
        packs,
        layout: request.layout.clone(),
        record: request.record.clone(),
        places,
        settings: request.settings,
        threads: request.threads.max(1),
        runtime: Handle::current(),
        progress,
        stop: stop.0.clone(),
    };
    let written = tokio::task::spawn_blocking(move || writer.write(tree)).await;
    written.context(Kind::Internal, || "the restore panicked")?
}

/// That every tablespace of the backup has a place, and no other has one.
fn check_tablespaces(tree: &Tree, given: &BTreeMap<u32, PathBuf>) -> Result<()> {
    let spaces = &tree.facts.tablespaces;
    for space in spaces.iter().filter(|space| !space.in_place) {
        if !given.contains_key(&space.oid) {
            return Err(Error::new(
                Kind::Usage,
                format!("nothing says where tablespace {} goes", space.oid),
            )
            .hint(format!("it was at {} when the backup was taken", space.location)));
        }
    }
    for oid in given.keys() {
        if !spaces.iter().any(|space| space.oid == *oid && !space.in_place) {
            let message = format!("the backup has no tablespace {oid} that could go elsewhere");
            return Err(Error::new(Kind::Usage, message));
        }
    }
    let files = tree.files.iter().map(|file| file.entry.path());
    for path in files.chain(tree.directories.iter().map(|(path, _)| path.as_slice())) {
        let Some(below) = path.strip_prefix(b"pg_tblspc/") else { continue };
        let oid = below.split(|b| *b == b'/').next().unwrap_or_default();
        let known = spaces.iter().any(|space| space.oid.to_string().as_bytes() == oid);
        if !known {
            let path = String::from_utf8_lossy(path);
            let backup = &tree.facts.backup;
            return Err(Error::new(
                Kind::Damaged,
                format!(
                    "backup {backup} has {path}, but its manifest doesn't name that tablespace"
                ),
            ));
        }
    }
    Ok(())
}

/// A restore on its own thread.
struct Writer {
    packs: Arc<PackReader>,
    layout: ClusterLayout,
    record: BackupRecord,
    places: Places,
    settings: RecoverySettings,
    threads: usize,
    runtime: Handle,
    progress: Arc<dyn Progress>,
    stop: Arc<AtomicBool>,
}

impl Writer {
    fn write(&self, mut tree: Tree) -> Result<WriteReport> {
        self.progress.step("taking the data directory");
        let mut claim = Claim::take(&self.places, self.marker()?)?;
        let target = Target::open(claim.places())?;

        self.progress.step(&format!("writing {} files", tree.files.len()));
        self.progress.total(Some(tree.facts.bytes));
        for (path, _) in &tree.directories {
            target.make_directory(path)?;
        }
        let manifest_file = target.create(BACKUP_MANIFEST.as_bytes(), 0)?;
        let manifest = ManifestWriter::new(
            BufWriter::new(manifest_file),
            ManifestVersion::of_major(self.record.system.major),
            self.record.system.identifier,
        )
        .context(Kind::Local, || "write backup_manifest")?;
        let work = Work {
            packs: &self.packs,
            layout: &self.layout,
            target: &target,
            threads: self.threads,
            runtime: &self.runtime,
            progress: self.progress.as_ref(),
            stop: &self.stop,
        };
        let mut manifest = write_files(&work, &mut tree, manifest)?;
        reached("restore: files written");

        self.progress.step("writing the settings");
        for (path, content) in [
            (AUTO_CONF, self.auto_conf(&target)?),
            (TABLESPACE_MAP.as_bytes(), self.tablespace_map(&target, &tree.facts)?),
        ] {
            let Some(content) = content else { continue };
            target.replace(path, &content)?;
            manifest
                .file(path, content.len() as u64, Utc::now(), crc32_iscsi(&content))
                .context(Kind::Local, || "write backup_manifest")?;
        }
        for (oid, path) in &self.places.tablespaces {
            target.link(format!("pg_tblspc/{oid}").as_bytes(), path)?;
        }
        if let Some(signal) = self.settings.signal.file() {
            target.replace(signal, b"")?;
        }
        let range = WalRange {
            timeline: self.record.timeline,
            start: self.record.start_lsn,
            end: self.record.stop_lsn,
        };
        manifest.finish(&[range]).context(Kind::Local, || "write backup_manifest")?;
        self.warn_of_places(&target)?;

        self.progress.step("syncing");
        self.sync(&target, &tree)?;
        reached("restore: synced");

        self.progress.step("putting pg_control in place");
        claim.finishing()?;
        reached("restore: tablespaces handed over");
        target.rename(CONTROL_FILE_HELD_BACK, CONTROL_FILE.as_bytes())?;
        reached("restore: pg_control in place");
        claim.finish()?;
        Ok(WriteReport { files: tree.files.len() as u64, bytes: tree.facts.bytes })
    }

    fn marker(&self) -> Result<Marker> {
        Ok(Marker {
            product: Marker::PRODUCT.into(),
            restore: RandomId::random()?,
            repository: self.packs.repository().keyring().repository(),
            backup: self.record.id.clone(),
            started: Utc::now(),
            phase: Phase::Writing,
            data_directory: self.places.pgdata.clone(),
            tablespaces: self.places.tablespaces.clone(),
        })
    }

    /// The new `postgresql.auto.conf`.
    fn auto_conf(&self, target: &Target) -> Result<Option<Vec<u8>>> {
        let old = target.read(AUTO_CONF)?.unwrap_or_default();
        Ok(Some(self.settings.apply(&old, self.record.id.as_str())))
    }

    /// The new `tablespace_map`, which the server makes the links from when it starts: where the
    /// tablespaces are now; those that lie in place stay as they are. None is needed without any.
    fn tablespace_map(&self, target: &Target, facts: &ClusterFacts) -> Result<Option<Vec<u8>>> {
        let old = target.read(TABLESPACE_MAP.as_bytes())?;
        let links = parse_tablespace_map(old.as_deref().unwrap_or_default()).map_err(|e| {
            let message = format!("the tablespace_map of backup {} is damaged", facts.backup);
            Error::new(Kind::Damaged, message).because(e)
        })?;
        let mut new: Vec<TablespaceLink> = Vec::new();
        for link in links {
            if self.places.tablespaces.contains_key(&link.oid) {
                continue;
            }
            if link.path.starts_with(b"/") {
                let path = String::from_utf8_lossy(&link.path);
                let message = format!(
                    "the tablespace_map of backup {} leads to {path}, which its manifest doesn't name",
                    facts.backup
                );
                return Err(Error::new(Kind::Damaged, message));
            }
            new.push(link);
        }
        for (oid, path) in &self.places.tablespaces {
            new.push(TablespaceLink { oid: *oid, path: path.as_os_str().as_bytes().to_vec() });
        }
        new.sort_unstable_by_key(|link| link.oid);
        Ok((old.is_some() || !new.is_empty()).then(|| format_tablespace_map(&new)))
    }

    /// What the user's own configuration file leads to, and `postgresql.auto.conf` can't take back.
    fn warn_of_places(&self, target: &Target) -> Result<()> {
        for (name, setting) in [("postgresql.conf", "config_file"), ("pg_hba.conf", "hba_file")] {
            if target.read(name.as_bytes())?.is_none() {
                self.progress.warn(&format!(
                    "the backup has no {name}: the original has it elsewhere, and the server doesn't start without one; put \
                     the original's here first, or name it with -c {setting}="
                ));
            }
        }
        let conf = target.read(b"postgresql.conf")?.unwrap_or_default();
        for (name, value) in places_in(&conf) {
            if Path::new(&value).starts_with(&self.places.pgdata) {
                continue;
            }
            let then = match name.as_str() {
                "data_directory" => "the server would start there, and not in what was restored",
                _ => "the server would use that, which may be the original's",
            };
            self.progress.warn(&format!(
                "postgresql.conf sets {name} to {value:?}: {then}; change it first"
            ));
        }
        Ok(())
    }

    /// Gives everything its permissions and makes it durable.
    fn sync(&self, target: &Target, tree: &Tree) -> Result<()> {
        target.flush()?;
        let next = AtomicUsize::new(0);
        let failure: Mutex<Option<Error>> = Mutex::new(None);
        let sync_next = || -> Result<bool> {
            // A few at a time, so that threads don't meet at the counter.
            const STEP: usize = 64;
            let at = next.fetch_add(STEP, Ordering::Relaxed);
            for file in tree.files.iter().skip(at).take(STEP) {
                let entry = file.entry.unpack(&tree.table);
                let entry = entry.context(Kind::Internal, || "read an entry again")?;
                if let FileKind::File { .. } = entry.kind {
                    target.seal_file(written_as(&entry.path), entry.mode)?;
                }
            }
            Ok(at < tree.files.len() && !self.stop.load(Ordering::Acquire))
        };
        thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    loop {
                        match sync_next() {
                            Ok(true) => {}
                            Ok(false) => return,
                            Err(e) => {
                                let mut failure =
                                    failure.lock().unwrap_or_else(PoisonError::into_inner);
                                failure.get_or_insert(e);
                                next.store(tree.files.len(), Ordering::Relaxed);
                                return;
                            }
                        }
                    }
                });
            }
        });
        if let Some(e) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(e);
        }
        if self.stop.load(Ordering::Acquire) {
            return Err(Error::new(Kind::Interrupted, "the restore was stopped"));
        }
        target.seal_file(BACKUP_MANIFEST.as_bytes(), 0o600)?;
        // Inner ones first: a directory that its owner may not enter is still to be synced.
        for (path, mode) in tree.directories.iter().rev() {
            target.seal_directory(path, *mode)?;
        }
        let mode = if tree.facts.directory_mode == 0o750 { 0o750 } else { 0o700 };
        target.seal_directory(b"", mode)?;
        target.sync_roots()
    }
}
