//! Directories that belong to the server's user and go with the test.

use std::{
    fs,
    ops::Deref,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use super::install::{command, run, user};

/// A directory (0700, of the server's user) that is removed when this is dropped, unless
/// `PGKEEP_TEST_KEEP` is set.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new directory. Paths are kept short: a socket's has room for 107 bytes.
    pub fn new(what: &str) -> Self {
        let path = tempfile::Builder::new()
            .prefix(&format!("pgkeep-{what}-"))
            .tempdir_in(base())
            .expect("make a scratch directory")
            .keep();
        let scratch = Scratch { path };
        own(&scratch.path);
        fs::set_permissions(&scratch.path, fs::Permissions::from_mode(0o700)).expect("chmod");
        scratch
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new folder in it, of the server's user, 0700.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        run(command("mkdir").args(["-m", "0700", "-p"]).arg(&path));
        path
    }

    /// Writes a file in it, of the server's user, 0600.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path.join(name);
        write(&path, content);
        path
    }
}

/// Where scratch directories are made: `PGKEEP_TEST_DIR`, else in memory where there is room (ten
/// times as fast for the thousand files of a cluster), else `/tmp`.
fn base() -> PathBuf {
    if let Some(dir) = std::env::var_os("PGKEEP_TEST_DIR") {
        return dir.into();
    }
    let memory = Path::new("/dev/shm");
    let room = rustix::fs::statvfs(memory).map_or(0, |fs| fs.f_bavail * fs.f_frsize);
    if room > 4 << 30 { memory.into() } else { "/tmp".into() }
}

impl Deref for Scratch {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::env::var_os("PGKEEP_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.path.display());
        } else {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Gives a file or directory to the server's user.
pub fn own(path: &Path) {
    chown(path, Some(user().uid), Some(user().gid)).expect("give a path to the server's user");
}

/// Writes a file that belongs to the server's user and that nobody else can read.
pub fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::write(path, content).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("chmod");
    own(path);
}
