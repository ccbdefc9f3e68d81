//! The directory in which a drill does everything, and which goes with it.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::{
    error::{Context, Error, Kind, Result},
    repo::id::RandomId,
};

/// What the directories of drills are called, before a random number.
pub const PREFIX: &str = "pgkeep-drill-";

/// What a socket's path may have at most, in bytes (`sun_path` in `sys/un.h`, without its NUL).
const SOCKET_PATH: usize = 107;

/// How long is tried to remove the directory: what writes into it is told to stop first, and does so
/// within this.
const REMOVED_WITHIN: Duration = Duration::from_secs(20);

/// A drill's directory, of mode 0700: nobody else reads the cluster that is restored there, or reaches
/// its socket. It is removed when this is dropped, unless it is to be kept.
pub struct Home {
    path: PathBuf,
    /// Elsewhere, where the path would be too long for a socket.
    sockets: PathBuf,
    keep: bool,
}

impl Home {
    /// A new one, in the directory `above`.
    pub fn make(above: &Path, keep: bool) -> Result<Self> {
        let above = above
            .canonicalize()
            .context(Kind::Local, || format!("use the directory {}", above.display()))
            .map_err(|e| e.if_denied(above).hint("drill.directory, or --directory, names it"))?;
        let path = new_directory(&above)?;
        let mut home = Home { sockets: path.join("sockets"), path, keep };
        let longest = home.sockets.join(".s.PGSQL.5432.lock");
        if longest.as_os_str().len() <= SOCKET_PATH {
            make(&home.sockets)?;
        } else {
            home.sockets = new_directory(&std::env::temp_dir())?;
        }
        Ok(home)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// Where the tablespaces lie, each in a folder called by its object id.
    pub fn tablespaces(&self) -> PathBuf {
        self.path.join("tablespaces")
    }

    /// Makes that, for a restore that puts something there.
    pub fn make_tablespaces(&self) -> Result<()> {
        make(&self.tablespaces())
    }

    /// Where the server's socket is.
    pub fn sockets(&self) -> &Path {
        &self.sockets
    }

    /// The server's log.
    pub fn log(&self) -> PathBuf {
        self.path.join("server.log")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.sockets.parent() != Some(&self.path) {
            let _ = fs::remove_dir_all(&self.sockets);
        }
        if self.keep {
            return;
        }
        // A thread that writes files, or a command that the server ran, may not have seen yet that it
        // is over.
        let deadline = Instant::now() + REMOVED_WITHIN;
        loop {
            match fs::remove_dir_all(&self.path) {
                Ok(()) => return,
                Err(e) if e.kind() == io::ErrorKind::NotFound && !self.path.exists() => return,
                Err(e) if Instant::now() > deadline => {
                    tracing::error!("remove {}: {e}", self.path.display());
                    return;
                }
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

fn make(path: &Path) -> Result<()> {
    DirBuilder::new()
        .mode(0o700)
        .create(path)
        .context(Kind::Local, || format!("make {}", path.display()))
        .map_err(|e| e.if_denied(path))
}

/// A directory of a name that nobody can foresee.
fn new_directory(above: &Path) -> Result<PathBuf> {
    let random = RandomId::random()?.to_string();
    let path = above.join(format!("{PREFIX}{}", &random[..12]));
    make(&path)?;
    Ok(path)
}

/// Refuses a place in which so many bytes find no room. What WAL adds isn't known beforehand.
pub fn check_room(above: &Path, bytes: u64) -> Result<()> {
    let room = rustix::fs::statvfs(above)
        .map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize))
        .map_err(io::Error::from)
        .context(Kind::Local, || format!("ask how much room is in {}", above.display()))?;
    if room >= bytes {
        return Ok(());
    }
    let message = format!(
        "{} has room for {room} bytes, and the restored cluster needs {bytes} and some for WAL",
        above.display()
    );
    Err(Error::new(Kind::Local, message)
        .hint("name another directory: --directory, or directory in [drill]"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_home_is_private_and_goes_unless_it_is_kept() {
        let above = tempfile::tempdir().unwrap();
        for keep in [false, true] {
            let home = Home::make(above.path(), keep).unwrap();
            let mode = fs::metadata(home.path()).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
            fs::write(home.log(), "x").unwrap();
            drop(home);
            assert_eq!(fs::read_dir(above.path()).unwrap().count(), usize::from(keep));
        }
    }

    #[test]
    fn a_path_too_long_for_a_socket_has_it_elsewhere() {
        let above = tempfile::tempdir().unwrap();
        let long = above.path().join("x".repeat(100));
        fs::create_dir(&long).unwrap();
        let home = Home::make(&long, false).unwrap();
        let sockets = home.sockets().to_owned();
        assert!(sockets.is_dir() && !sockets.starts_with(&long));
        drop(home);
        assert!(!sockets.exists() && fs::read_dir(&long).unwrap().next().is_none());
    }

    #[test]
    fn room_is_asked_for() {
        let above = tempfile::tempdir().unwrap();
        check_room(above.path(), 1).unwrap();
        let e = check_room(above.path(), u64::MAX).unwrap_err();
        assert_eq!(e.kind(), Kind::Local);
    }
}
