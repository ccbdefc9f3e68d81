//! The file that a get writes.
//!
//! It has no name until it is whole and synced (`O_TMPFILE`), so that a get that is killed leaves
//! nothing: not half a file under the name that was asked for, and no leftover in `pg_wal`, which
//! `pg_rewind` would copy. Where the file system can't do that, it is written beside its name, as
//! `<name>.pgkeep-tmp`, which the next get of the same name overwrites.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};

use crate::{
    error::{Context, Kind, Result},
    steps::reached,
    storage::local::begin_write_out,
};

/// Under which the kernel shows a process its open files.
const OPEN_FILES: &str = "/proc/self/fd";

/// A file on its way to `path`. Dropped before [`Destination::finish`], it leaves nothing.
#[derive(Debug)]
pub struct Destination {
    file: File,
    path: PathBuf,
    /// The temporary name, where there must be one.
    temporary: Option<PathBuf>,
}

impl Destination {
    /// Begins a file for `path`, in whose directory it is made.
    pub fn create(path: &Path) -> Result<Self> {
        let unnamed = if Path::new(OPEN_FILES).is_dir() { unnamed(path).ok() } else { None };
        match unnamed {
            Some(file) => Ok(Destination { file, path: path.to_owned(), temporary: None }),
            None => Destination::create_named(path),
        }
    }

    fn create_named(path: &Path) -> Result<Self> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".pgkeep-tmp");
        let temporary = PathBuf::from(temporary);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o640)
            .open(&temporary)
            .context(Kind::Local, || format!("write {}", temporary.display()))?;
        Ok(Destination { file, path: path.to_owned(), temporary: Some(temporary) })
    }

    /// The file.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Syncs the file and gives it its name, in place of what had it before.
    pub fn finish(self) -> Result<()> {
        self.file.sync_all().context(Kind::Local, || format!("write {}", self.path.display()))?;
        reached("get: synced");
        self.give_name()
    }

    /// Gives the file its name without waiting until it is durable; that begins.
    pub fn finish_unsynced(self) -> Result<()> {
        begin_write_out(&self.file, 0, None);
        self.give_name()
    }

    fn give_name(mut self) -> Result<()> {
        let give_name = |destination: &mut Destination| -> io::Result<()> {
            if let Some(temporary) = &destination.temporary {
                fs::rename(temporary, &destination.path)?;
                destination.temporary = None;
                return Ok(());
            }
            match fs::remove_file(&destination.path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let open = format!("{OPEN_FILES}/{}", destination.file.as_raw_fd());
            reached("get: nothing has the name");
            linkat(CWD, open, CWD, &destination.path, AtFlags::SYMLINK_FOLLOW)?;
            reached("get: named");
            Ok(())
        };
        give_name(&mut self).context(Kind::Local, || format!("write {}", self.path.display()))
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
        }
    }
}

/// The mode is what `cp` would give, within the server's umask: 0600, or 0640 where the group may
/// read the data directory.
fn unnamed(path: &Path) -> rustix::io::Result<File> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    openat(CWD, folder, flags, Mode::from_raw_mode(0o640)).map(File::from)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap();
        names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        for create in [Destination::create, Destination::create_named] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("RECOVERYXLOG");
            let mut dropped = create(&path).unwrap();
            dropped.file().write_all(b"half").unwrap();
            drop(dropped);
            assert_eq!(names(folder.path()), Vec::<String>::new());

            fs::write(&path, "an older one").unwrap();
            let mut whole = create(&path).unwrap();
            whole.file().write_all(b"whole").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"an older one");
            whole.finish().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"whole");
            assert_eq!(names(folder.path()), ["RECOVERYXLOG"]);
        }
    }

    #[test]
    fn nothing_has_a_name_while_it_is_written_here() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("RECOVERYXLOG");
        if unnamed(&path).is_ok() {
            let _half = Destination::create(&path).unwrap();
            assert_eq!(names(folder.path()), Vec::<String>::new());
        }
    }
}
