//! A directory as storage.
//!
//! An object is written to a temporary file below `.tmp/`, synced, and renamed to its final name
//! with "don't replace" (or linked, where the file system can't do that); then every directory up
//! to the root is synced. So a name appears only with all its content, a taken name is never
//! overwritten, and what was acknowledged survives a power cut.
//!
//! A temporary file is locked while its writer lives. One that nobody holds was left by a process
//! that was killed, and the next writer removes it.
//!
//! A disk may be unmounted under a running process, and the directory that it was mounted on is there
//! then, or another disk. So nothing is stored, and nothing is said to be absent, unless the object that
//! tells this place from others ([`Storage::set_landmark`]) is where it was.

mod walk;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    num::NonZeroU64,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    slice,
    sync::{Arc, Once, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::{Advice, CWD, FlockOperation, RenameFlags, fadvise, flock, renameat_with};

use crate::steps::reached;

use walk::{Walk, entries};

use super::{
    Capabilities, ErrorKind, Listed, ObjectName, ObjectWriter, Range, Result, Storage,
    StorageError, whole,
};

const TEMPORARY: &str = ".tmp";

/// What the system reads ahead of a file anyway.
const READ_TOGETHER: u64 = 1 << 20;

/// How old an unlocked temporary file has to be before it is taken for a leftover: its writer may
/// be between creating and locking it. Only politeness hangs on this: a writer whose file is gone
/// fails and is run again.
const LEFTOVER_AGE: Duration = Duration::from_secs(60);

/// A repository in a local directory, with directories of mode 0700 and files of mode 0600, whatever
/// the process's umask is.
#[derive(Debug, Clone)]
pub struct Local {
    root: PathBuf,
    address: String,
    swept: Arc<Once>,
    landmark: Arc<OnceLock<Landmark>>,
}

/// What tells a place from others.
#[derive(Debug)]
struct Landmark {
    name: ObjectName,
    content: Bytes,
}

impl Local {
    /// The storage in the directory `root`, which must exist and belong to the user of this
    /// process: files written by another one couldn't be read or extended by the server's.
    ///
    /// An empty directory of another user is [`ErrorKind::RootMissing`]: the mount point of a disk
    /// that isn't mounted is mostly root's.
    pub fn open(root: &Path) -> Result<Self> {
        let is_empty = || fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_none());
        Local::opened(root).map_err(|e| {
            if e.kind != ErrorKind::Denied || !is_empty() {
                return e;
            }
            let message = format!("the directory is empty; {}", e.message);
            StorageError { kind: ErrorKind::RootMissing, message, ..e }
        })
    }

    /// As [`Local::open`], making the directory (0700) when it isn't there. Its name is durable then,
    /// also where one that was killed has made it.
    pub fn open_or_make(root: &Path) -> Result<Self> {
        make_folders(root, None)
            .and_then(|()| sync_own_names(root))
            .map_err(|e| Local::at(root).error("make", "", e))?;
        Local::opened(root)
    }

    fn opened(root: &Path) -> Result<Self> {
        let local = Local::at(root);
        let meta = fs::metadata(root).map_err(|e| local.error("open", "", e))?;
        if !meta.is_dir() {
            return Err(local.failure(ErrorKind::RootMissing, "open", "", "it is not a directory"));
        }
        let user = rustix::process::geteuid().as_raw();
        if meta.uid() != user {
            let message = format!(
                "the directory belongs to user id {}, this process runs as {user}; run pgkeep as \
                 the repository's owner",
                meta.uid()
            );
            return Err(local.failure(ErrorKind::Denied, "open", "", message));
        }
        Ok(local)
    }

    fn at(root: &Path) -> Self {
        let address = format!("file://{}", root.display());
        Local {
            root: root.to_owned(),
            address,
            swept: Arc::new(Once::new()),
            landmark: Arc::default(),
        }
    }

    /// Whether what lies at the root is what was opened.
    fn is_there(&self) -> bool {
        let Some(Landmark { name, content }) = self.landmark.get() else {
            return self.root.is_dir();
        };
        let read = || -> io::Result<Vec<u8>> {
            let mut found = Vec::with_capacity(content.len() + 1);
            File::open(self.path(name))?.take(content.len() as u64 + 1).read_to_end(&mut found)?;
            Ok(found)
        };
        read().is_ok_and(|found| found == *content)
    }

    /// An error of [`ErrorKind::RootMissing`], unless what lies at the root is what was opened.
    fn prove_there(&self, operation: &'static str, object: impl ToString) -> Result<()> {
        if self.is_there() {
            return Ok(());
        }
        Err(self.error(operation, object, io::ErrorKind::NotFound.into()))
    }

    /// Makes it durable that something was removed from a folder. Folders are only there for the objects in
    /// them: an empty one goes too.
    fn sync_removed(&self, folder: &Path) -> io::Result<()> {
        let mut folder = Some(folder);
        while let Some(this) = folder.filter(|f| *f != self.root) {
            match File::open(this) {
                // Somebody else has found it empty. That it is gone may not be durable yet.
                Err(e) if e.kind() == io::ErrorKind::NotFound && self.is_there() => {}
                opened => {
                    opened?.sync_all()?;
                    if fs::remove_dir(this).is_err() {
                        break;
                    }
                }
            }
            folder = this.parent();
        }
        Ok(())
    }

    fn path(&self, name: &ObjectName) -> PathBuf {
        self.root.join(name.as_str())
    }

    fn failure(
        &self,
        kind: ErrorKind,
        operation: &'static str,
        object: impl ToString,
        message: impl Into<String>,
    ) -> StorageError {
        StorageError {
            kind,
            operation,
            object: object.to_string(),
            address: self.address.clone(),
            message: message.into(),
            hint: None,
        }
    }

    fn error(&self, operation: &'static str, object: impl ToString, e: io::Error) -> StorageError {
        use io::ErrorKind as Io;
        let kind = match e.kind() {
            Io::NotFound if self.is_there() => ErrorKind::NotFound,
            Io::NotFound => ErrorKind::RootMissing,
            // A name "below" an object isn't there; only making one there is impossible.
            Io::NotADirectory if !self.is_there() => ErrorKind::RootMissing,
            Io::NotADirectory if matches!(operation, "read" | "look at" | "sync") => {
                ErrorKind::NotFound
            }
            Io::AlreadyExists => ErrorKind::AlreadyExists,
            Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::Denied,
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::Full,
            Io::UnexpectedEof => ErrorKind::OutOfRange,
            Io::InvalidData => ErrorKind::Refused,
            _ => ErrorKind::Unavailable,
        };
        let message = match self.landmark.get() {
            Some(Landmark { name, .. }) if kind == ErrorKind::RootMissing && self.root.is_dir() => {
                format!("{name} isn't there any more, or is another one")
            }
            _ => e.to_string(),
        };
        self.failure(kind, operation, object, message)
    }

    /// Makes the name of everything from `folder` up to the root durable.
    fn sync_folders(&self, folder: &Path) -> io::Result<()> {
        let mut folder = folder;
        loop {
            File::open(folder)?.sync_all()?;
            if folder == self.root {
                return Ok(());
            }
            folder = folder.parent().ok_or(io::ErrorKind::NotFound)?;
        }
    }

    /// Makes `folder`, which is below the root, but never the root itself: a disk that isn't
    /// mounted must not be replaced by a directory.
    fn make_folders(&self, folder: &Path) -> io::Result<()> {
        match self.is_there() {
            true => make_folders(folder, Some(&self.root)),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn temporary(&self) -> io::Result<Temporary> {
        let folder = self.root.join(TEMPORARY);
        self.make_folders(&folder)?;
        self.swept.call_once(|| sweep(&folder));
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let path = folder.join(hex::encode(random));
        let file =
            OpenOptions::new().write(true).read(true).create_new(true).mode(0o600).open(&path)?;
        let temporary = Temporary { path, file, renamed: false };
        // A umask may have taken the owner's own rights.
        temporary.file.set_permissions(fs::Permissions::from_mode(0o600))?;
        flock(&temporary.file, FlockOperation::NonBlockingLockExclusive)?;
        // What was made since may lie in another place. From here on the open file holds the disk, and the
        // name of it leads to nothing else.
        if self.is_there() { Ok(temporary) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn read_now(&self, name: &ObjectName, range: Range) -> io::Result<Bytes> {
        let mut file = File::open(self.path(name))?;
        let size = file.metadata()?.len();
        let (offset, len) = match range {
            Range::All => (0, whole(size)?),
            Range::Last(len) => (size - len.min(size), len.min(size)),
            Range::At { offset, len } => (offset, len),
        };
        if offset.checked_add(len).is_none_or(|end| end > size) {
            let what = format!("it has {size} bytes, {len} from {offset} were asked for");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = vec![0; len as usize];
        file.read_exact(&mut bytes)?;
        Ok(bytes.into())
    }
}

/// `mkdir -p` with mode 0700, each new directory's name made durable. Below `root` only, if there is one: a
/// repository that has just gone isn't made anew where it was.
fn make_folders(path: &Path, root: Option<&Path>) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if Some(path) == root {
        return Err(io::ErrorKind::NotFound.into());
    }
    if let Some(parent) = path.parent() {
        make_folders(parent, root)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o700))?,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(e) => return Err(e),
    }
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Makes the name of `path` durable, and those of the directories above it, as far up as they belong to this
/// user: who made them may have died before they were.
fn sync_own_names(path: &Path) -> io::Result<()> {
    let user = rustix::process::geteuid().as_raw();
    for path in path.ancestors() {
        if fs::symlink_metadata(path)?.uid() != user {
            break;
        }
        sync_name(path)?;
    }
    Ok(())
}

/// Makes the name of `path` durable, which is there already, as far as this user and the file system can do
/// that: a folder that can't be opened or synced was filled by somebody else.
pub fn sync_name(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(e) if is_beyond_us(&e) => Ok(()),
        result => result,
    }
}

/// Makes a file durable that is there already, with its name, as far as that can be done; see [`sync_name`].
pub fn sync_what_is_there(path: &Path) -> io::Result<()> {
    match File::open(path).and_then(|file| file.sync_all()) {
        Err(e) if is_beyond_us(&e) => {}
        result => result?,
    }
    sync_name(path)
}

/// Whether a sync isn't possible here at all, in which case nothing was written here either.
fn is_beyond_us(e: &io::Error) -> bool {
    use io::ErrorKind as Io;
    matches!(
        e.kind(),
        Io::PermissionDenied | Io::ReadOnlyFilesystem | Io::InvalidInput | Io::Unsupported
    )
}

/// Removes temporary files whose writer is dead. Failing to is no reason to fail a write.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let old = entry
            .metadata()
            .and_then(|m| m.modified())
            .is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > LEFTOVER_AGE));
        let unlocked = || {
            File::open(entry.path())
                .is_ok_and(|f| flock(&f, FlockOperation::NonBlockingLockExclusive).is_ok())
        };
        if old && unlocked() {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Gives `from` the name `to`, unless that is taken.
fn rename_no_replace(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        result => result.map_err(Into::into),
    }
}

/// A file being written, locked, which goes unless it got its final name.
struct Temporary {
    path: PathBuf,
    file: File,
    renamed: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Begins with the writing out of a file's bytes from `offset` on, all of them without a `length`, and doesn't wait
/// for its end. What is written out already leaves the kernel's cache. Linux does so when it is told that nobody needs the pages (mm/fadvise.c); those that aren't clean yet
/// stay in its cache.
pub fn begin_write_out(file: &File, offset: u64, length: Option<NonZeroU64>) {
    let _ = fadvise(file, offset, length, Advice::DontNeed);
}

struct LocalWriter {
    storage: Local,
    name: ObjectName,
    temporary: Temporary,
    written: u64,
    /// Up to where the kernel was told to begin with the writing out.
    begun: u64,
}

/// So many bytes are handed to the disk at a time while the rest is still made, so that less of them is left for
/// the sync at the end.
const WRITE_OUT: u64 = 1 << 20;

impl LocalWriter {
    fn begin_write_out(&mut self) {
        if self.written - self.begun >= WRITE_OUT {
            let length = NonZeroU64::new(self.written - self.begun);
            begin_write_out(&self.temporary.file, self.begun, length);
            self.begun = self.written;
        }
    }

    fn finish_now(&mut self) -> io::Result<()> {
        let path = self.storage.path(&self.name);
        let folder = path.parent().ok_or(io::ErrorKind::NotFound)?;
        let temporary = &mut self.temporary;
        reached("local storage: written");
        temporary.file.sync_all()?;
        reached("local storage: synced");
        loop {
            self.storage.make_folders(folder)?;
            match rename_no_replace(&temporary.path, &path) {
                // A delete beside us may remove the folder while it is still empty.
                Err(e) if e.kind() == io::ErrorKind::NotFound && temporary.path.exists() => {}
                result => break result?,
            }
        }
        temporary.renamed = true;
        reached("local storage: named");
        self.storage.sync_folders(folder)?;
        reached("local storage: durable");
        Ok(())
    }
}

#[async_trait]
impl ObjectWriter for LocalWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let written = self.temporary.file.write_all(&bytes);
        written.map_err(|e| self.storage.error("write", &self.name, e))?;
        self.written += bytes.len() as u64;
        self.begin_write_out();
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<()> {
        self.finish_now().map_err(|e| self.storage.error("create", &self.name, e))
    }
}

#[async_trait]
impl Storage for Local {
    fn address(&self) -> &str {
        &self.address
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { read_together: READ_TOGETHER, questions_at_once: 1 }
    }

    fn set_landmark(&self, name: &ObjectName, content: Bytes) {
        self.landmark.get_or_init(|| Landmark { name: name.clone(), content });
    }

    async fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>> {
        let temporary = self.temporary().map_err(|e| self.error("create", name, e))?;
        let storage = self.clone();
        Ok(Box::new(LocalWriter { storage, name: name.clone(), temporary, written: 0, begun: 0 }))
    }

    async fn read(&self, name: &ObjectName, range: Range) -> Result<Bytes> {
        self.read_now(name, range).map_err(|e| self.error("read", name, e))
    }

    async fn size(&self, name: &ObjectName) -> Result<u64> {
        let meta = fs::metadata(self.path(name)).map_err(|e| self.error("look at", name, e))?;
        Ok(meta.len())
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>> {
        let walk = Walk { root: &self.root, prefix, after: after.unwrap_or(""), limit };
        let found = walk.objects().map_err(|e| self.error("list", prefix, e))?;
        self.prove_there("list", prefix)?;
        Ok(found)
    }

    async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        let read = || -> io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in entries(&self.root.join(folder))? {
                let (name, is_folder) = entry?;
                if is_folder {
                    names.push(name);
                }
            }
            names.sort();
            Ok(names)
        };
        let names = read().map_err(|e| self.error("list", folder, e))?;
        self.prove_there("list", folder)?;
        Ok(names)
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.delete_all(slice::from_ref(name)).await.pop().unwrap_or(Ok(()))
    }

    /// A folder is synced once for all that was in it.
    async fn delete_all(&self, names: &[ObjectName]) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(names.len());
        let mut folders: BTreeMap<PathBuf, Vec<usize>> = BTreeMap::new();
        for (number, name) in names.iter().enumerate() {
            let path = self.path(name);
            results.push(match fs::remove_file(&path) {
                Err(e) if is_nothing(&e) && self.is_there() => Ok(()),
                Err(e) => Err(self.error("delete", name, e)),
                Ok(()) => {
                    let folder = path.parent().unwrap_or(&self.root).to_owned();
                    folders.entry(folder).or_default().push(number);
                    Ok(())
                }
            });
        }
        // Inner ones first.
        for (folder, removed) in folders.iter().rev() {
            let Err(e) = self.sync_removed(folder) else { continue };
            for number in removed {
                if let (Some(result), Some(name)) = (results.get_mut(*number), names.get(*number)) {
                    *result =
                        Err(self.error("delete", name, io::Error::new(e.kind(), e.to_string())));
                }
            }
        }
        results
    }

    async fn replace(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        let write = || -> io::Result<()> {
            let mut temporary = self.temporary()?;
            let path = self.path(name);
            let folder = path.parent().ok_or(io::ErrorKind::NotFound)?;
            temporary.file.write_all(&bytes)?;
            temporary.file.sync_all()?;
            self.make_folders(folder)?;
            fs::rename(&temporary.path, &path)?;
            temporary.renamed = true;
            self.sync_folders(folder)
        };
        write().map_err(|e| self.error("replace", name, e))
    }

    async fn ensure_durable(&self, name: &ObjectName) -> Result<()> {
        let path = self.path(name);
        let sync = || -> io::Result<()> {
            File::open(&path)?.sync_all()?;
            self.sync_folders(path.parent().ok_or(io::ErrorKind::NotFound)?)
        };
        sync().map_err(|e| self.error("sync", name, e))
    }
}

/// Whether nothing has this name: no such file, or a file where the name has a folder.
fn is_nothing(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
