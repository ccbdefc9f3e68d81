//! The directories being written, by the paths of the tree.
//!
//! Everything is opened relative to the data directory or a tablespace's directory, one part of the
//! path after the other and never through a symbolic link: neither a hostile tree nor a link that
//! somebody leaves there leads a write anywhere else.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, fchmod, mkdirat, openat, renameat, symlinkat, unlinkat,
};

use super::guard::Places;
use crate::error::{Error, Kind, Result};

/// Where tablespaces are, in the tree and in a data directory.
const TABLESPACES: &[u8] = b"pg_tblspc/";

/// How many directories are kept open.
const OPEN_DIRECTORIES: usize = 64;

/// The permission bits that may be restored: those of owner, group and others.
const PERMISSIONS: u32 = 0o777;

/// The directories of a restore.
pub struct Target {
    pgdata: Arc<OwnedFd>,
    tablespaces: BTreeMap<u32, Arc<OwnedFd>>,
    open: Mutex<HashMap<Vec<u8>, Arc<OwnedFd>>>,
    /// For messages.
    address: String,
}

impl Target {
    /// Opens the directories.
    pub fn open(places: &Places) -> Result<Self> {
        let open = |path: &Path| {
            openat(CWD, path, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
                .map(Arc::new)
                .map_err(|e| {
                    let message = format!("open {}", path.display());
                    Error::new(Kind::Local, message).because(io::Error::from(e))
                })
        };
        Ok(Target {
            pgdata: open(&places.pgdata)?,
            tablespaces: places
                .tablespaces
                .iter()
                .map(|(oid, path)| Ok((*oid, open(path)?)))
                .collect::<Result<_>>()?,
            open: Mutex::default(),
            address: places.pgdata.display().to_string(),
        })
    }

    /// The root that `path` is below, and the rest of it, which is empty for the root itself.
    fn locate<'p>(&self, path: &'p [u8]) -> (&Arc<OwnedFd>, &'p [u8]) {
        let in_tablespace = || {
            let below = path.strip_prefix(TABLESPACES)?;
            let (oid, rest) = match below.iter().position(|b| *b == b'/') {
                Some(slash) => (&below[..slash], &below[slash + 1..]),
                None => (below, &below[below.len()..]),
            };
            let oid: u32 = std::str::from_utf8(oid).ok()?.parse().ok()?;
            Some((self.tablespaces.get(&oid)?, rest))
        };
        in_tablespace().unwrap_or((&self.pgdata, path))
    }

    /// The directory `path`.
    fn directory(&self, path: &[u8]) -> io::Result<Arc<OwnedFd>> {
        let (root, rest) = self.locate(path);
        if rest.is_empty() {
            return Ok(root.clone());
        }
        let cache = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = cache().get(path) {
            return Ok(open.clone());
        }
        let mut at = root.clone();
        for part in rest.split(|b| *b == b'/') {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            at = Arc::new(openat(&*at, checked(part)?, flags, Mode::empty())?);
        }
        let mut cache = cache();
        if cache.len() >= OPEN_DIRECTORIES {
            cache.clear();
        }
        cache.insert(path.to_vec(), at.clone());
        Ok(at)
    }

    /// The directory that `path` is in, and its name there.
    fn parent<'p>(&self, path: &'p [u8]) -> io::Result<(Arc<OwnedFd>, &'p OsStr)> {
        let (above, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], path),
        };
        Ok((self.directory(above)?, checked(name)?))
    }

    fn open_at(&self, path: &[u8], flags: OFlags) -> io::Result<File> {
        let (directory, name) = self.parent(path)?;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(&*directory, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// Makes a directory that only its owner may use for now. The root of a tablespace is there
    /// already.
    pub fn make_directory(&self, path: &[u8]) -> Result<()> {
        if self.locate(path).1.is_empty() {
            return Ok(());
        }
        let make = || {
            let (directory, name) = self.parent(path)?;
            Ok(mkdirat(&*directory, name, Mode::RWXU)?)
        };
        make().map_err(|e| self.error("make", path, e))
    }

    /// Makes a file of `size` bytes, all of them a hole. It must not be there.
    pub fn create(&self, path: &[u8], size: u64) -> Result<File> {
        let create = || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let file = self.open_at(path, flags)?;
            file.set_len(size)?;
            Ok(file)
        };
        create().map_err(|e| self.error("make", path, e))
    }

    /// Opens a file for writing to.
    pub fn open_file(&self, path: &[u8]) -> Result<File> {
        self.open_at(path, OFlags::WRONLY).map_err(|e| self.error("open", path, e))
    }

    /// Reads a small file; `None` if there is none.
    pub fn read(&self, path: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        match self.open_at(path, OFlags::RDONLY).and_then(|mut f| f.read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.error("read", path, e)),
        }
    }

    /// Writes a small file (0600) instead of one that may be there, and syncs it.
    pub fn replace(&self, path: &[u8], bytes: &[u8]) -> Result<()> {
        self.remove(path)?;
        let mut file = self.create(path, 0)?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(|e| self.error("write", path, e))
    }

    /// Removes a file, if there is one.
    pub fn remove(&self, path: &[u8]) -> Result<()> {
        let remove = || -> io::Result<()> {
            let (directory, name) = self.parent(path)?;
            Ok(unlinkat(&*directory, name, AtFlags::empty())?)
        };
        match remove() {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.error("remove", path, e)),
            _ => Ok(()),
        }
    }

    /// Makes a symbolic link.
    pub fn link(&self, path: &[u8], target: &Path) -> Result<()> {
        // Always below the data directory: where tablespaces are linked from.
        let link = || -> io::Result<()> {
            let directory = self.open_pgdata_directory(TABLESPACES)?;
            let name = path.strip_prefix(TABLESPACES).unwrap_or(path);
            Ok(symlinkat(target, &directory, checked(name)?)?)
        };
        link().map_err(|e| self.error("link", path, e))
    }

    /// Opens a directory directly below the data directory.
    fn open_pgdata_directory(&self, name: &[u8]) -> io::Result<OwnedFd> {
        let name = checked(name.strip_suffix(b"/").unwrap_or(name))?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(&*self.pgdata, name, flags, Mode::empty())?)
    }

    /// Gives a file another name in its directory, and makes that durable.
    pub fn rename(&self, from: &[u8], to: &[u8]) -> Result<()> {
        let rename = || -> io::Result<()> {
            let (directory, name) = self.parent(from)?;
            let (_, new_name) = self.parent(to)?;
            renameat(&*directory, name, &*directory, new_name)?;
            Ok(rustix::fs::fsync(&*directory)?)
        };
        rename().map_err(|e| self.error("rename", from, e))
    }

    /// Gives a file its permissions and makes it durable.
    pub fn seal_file(&self, path: &[u8], mode: u32) -> Result<()> {
        let seal = || {
            let file = self.open_at(path, OFlags::RDONLY)?;
            let mode = mode & PERMISSIONS;
            if mode != 0o600 {
                fchmod(&file, Mode::from_raw_mode(mode))?;
            }
            file.sync_all()
        };
        seal().map_err(|e| self.error("sync", path, e))
    }

    /// Gives a directory its permissions and makes the names in it durable. The empty path is the
    /// data directory.
    pub fn seal_directory(&self, path: &[u8], mode: u32) -> Result<()> {
        let seal = || -> io::Result<()> {
            let directory = self.directory(path)?;
            fchmod(&*directory, Mode::from_raw_mode(mode & PERMISSIONS))?;
            Ok(rustix::fs::fsync(&*directory)?)
        };
        seal().map_err(|e| self.error("sync", path, e))
    }

    /// Makes the names in `pg_tblspc` and the tablespaces' directories durable.
    pub fn sync_roots(&self) -> Result<()> {
        let sync = || -> io::Result<()> {
            for root in self.tablespaces.values() {
                rustix::fs::fsync(&**root)?;
            }
            Ok(rustix::fs::fsync(&*self.pgdata)?)
        };
        sync().map_err(|e| self.error("sync", b"", e))
    }

    /// Has everything written out that is still in memory, so that syncing the files one by one
    /// finds little left to do. Proves nothing: only that tells of errors on every kernel. But what this tells of, that
    /// may not any more, of a file that the kernel has forgotten in between.
    pub fn flush(&self) -> Result<()> {
        #[cfg(target_os = "linux")]
        for root in self.tablespaces.values().chain([&self.pgdata]) {
            use rustix::io::Errno;
            match rustix::fs::syncfs(&**root) {
                Ok(()) => {}
                Err(e @ (Errno::IO | Errno::NOSPC | Errno::DQUOT)) => {
                    let error = self.error("write out", b"all", e.into());
                    return Err(error.hint(
                        "the kernel says so of the file system, and not of which file on it: run the restore again",
                    ));
                }
                Err(e) => tracing::debug!("syncfs: {e}"),
            }
        }
        Ok(())
    }

    /// An error about a path of the tree.
    pub fn error(&self, doing: &str, path: &[u8], e: io::Error) -> Error {
        let path = String::from_utf8_lossy(path);
        let error = Error::new(Kind::Local, format!("{doing} {path} in {}", self.address));
        match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                error.because(e).hint("make room and run the restore again")
            }
            _ => error.because(e),
        }
    }
}

/// A single part of a path that can only mean something in its directory.
fn checked(part: &[u8]) -> io::Result<&OsStr> {
    match part {
        b"" | b"." | b".." => Err(io::ErrorKind::InvalidInput.into()),
        part if part.contains(&b'/') => Err(io::ErrorKind::InvalidInput.into()),
        part => Ok(OsStr::from_bytes(part)),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// Whoever may write to the directory may put one in the place of what was made a moment before.
    #[test]
    fn no_link_that_somebody_has_put_there_is_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let (pgdata, outside) = (scratch.path().join("data"), scratch.path().join("outside"));
        fs::create_dir(&pgdata).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "theirs").unwrap();
        let places = Places { pgdata: pgdata.clone(), tablespaces: BTreeMap::new() };
        let target = Target::open(&places).unwrap();
        symlink(&outside, pgdata.join("base")).unwrap();
        symlink(outside.join("file"), pgdata.join("file")).unwrap();

        for path in [&b"file"[..], b"base/file"] {
            assert!(target.open_file(path).is_err());
            assert!(target.read(path).is_err());
            assert!(target.seal_file(path, 0o644).is_err());
            assert!(target.create(path, 0).is_err());
        }
        assert!(target.create(b"base/new", 0).is_err());
        assert!(target.make_directory(b"base/new").is_err());
        assert!(target.seal_directory(b"base", 0o755).is_err());
        assert!(target.remove(b"base/file").is_err());
        assert!(target.rename(b"base/file", b"base/other").is_err());
        // Its own name is written anew, and what it led to is left alone.
        target.replace(b"file", b"ours").unwrap();
        assert_eq!(fs::read(pgdata.join("file")).unwrap(), b"ours");
        assert_eq!(fs::read(outside.join("file")).unwrap(), b"theirs");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);

        fs::remove_file(pgdata.join("base")).unwrap();
        fs::rename(&pgdata, scratch.path().join("moved")).unwrap();
        symlink(&outside, &pgdata).unwrap();
        assert!(Target::open(&places).is_err(), "nor is one in the place of the directory");
    }
}
