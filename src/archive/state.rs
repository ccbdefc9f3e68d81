//! What a command of the server leaves for the next one: on this host, and it may be lost.
//!
//! It lies below `state-dir`, in a folder for each data directory. Nothing there is needed. What is read from it
//! is believed only if this boot of the system wrote it, since nothing is synced.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    process::geteuid,
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};

use super::data_directory::DataDirectory;

/// When something was written: in which boot of the system, and how long after it. No clock that is set
/// changes that (`clock_gettime(2)`, `CLOCK_BOOTTIME`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    boot: String,
    after: Duration,
}

impl Moment {
    /// Now; `None` where the system doesn't say.
    pub fn now() -> Option<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let after = clock_gettime(ClockId::Boottime).try_into().ok()?;
        Some(Moment { boot: boot.trim().to_owned(), after })
    }

    /// How long ago that was; `None` if it was in another boot, or isn't over yet.
    pub fn age(&self) -> Option<Duration> {
        let now = Moment::now()?;
        if now.boot != self.boot { None } else { now.after.checked_sub(self.after) }
    }
}

/// What tells a file from every other one, and from itself after it was changed: nobody can set the time
/// of the last change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    /// That of the file at `path`.
    pub fn of(path: &Path) -> std::io::Result<Self> {
        fs::metadata(path).map(|meta| Identity::from(&meta))
    }
}

impl From<&fs::Metadata> for Identity {
    fn from(meta: &fs::Metadata) -> Self {
        Identity {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// The folder `of`, below `state_dir`, of a data directory; made if it isn't there. `None`, with a warning,
/// where there can't be one that no other user may write to: then there is nothing to go by.
pub fn folder(state_dir: &Path, of: &str, directory: &DataDirectory) -> Option<PathBuf> {
    let place = fs::metadata(&directory.path).ok()?;
    let name = format!("{}-{:x}-{:x}", directory.system, place.dev(), place.ino());
    let folder = state_dir.join(of).join(name);
    for made in [state_dir, &state_dir.join(of), &folder] {
        if let Err(why) = private_folder(made) {
            tracing::warn!(
                "state-dir can't be used, so nothing is done ahead: {} {why}",
                made.display()
            );
            return None;
        }
    }
    Some(folder)
}

fn private_folder(path: &Path) -> Result<(), String> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(format!("can't be made: {e}"));
        }
        _ => {}
    }
    let meta = fs::symlink_metadata(path).map_err(|e| format!("can't be looked at: {e}"))?;
    if !meta.is_dir() {
        return Err("isn't a directory".into());
    }
    if meta.uid() != geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        return Err("may be written to by another user".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn only_a_folder_of_ones_own_is_used() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("state");
        assert_eq!(private_folder(&path), Ok(()));
        assert_eq!(private_folder(&path), Ok(()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(private_folder(&path).is_err(), "the group could write there");
        let link = scratch.path().join("link");
        symlink(scratch.path(), &link).unwrap();
        assert!(private_folder(&link).is_err(), "another user may have made the link");
        assert!(private_folder(&scratch.path().join("not/there")).is_err());
    }

    #[test]
    fn a_moment_of_another_boot_is_of_no_age() {
        let now = Moment::now().unwrap();
        assert!(now.age().unwrap() < Duration::from_secs(60));
        let other = Moment { boot: "another".into(), ..now.clone() };
        assert_eq!(other.age(), None);
        let later = Moment { after: now.after + Duration::from_secs(3600), ..now };
        assert_eq!(later.age(), None);
    }

    #[test]
    fn a_file_that_was_changed_is_another() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        fs::write(&path, "one").unwrap();
        let before = Identity::of(&path).unwrap();
        assert_eq!(Identity::of(&path).unwrap(), before);
        std::thread::sleep(Duration::from_millis(20));
        let was = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, "two").unwrap();
        fs::File::open(&path).unwrap().set_modified(was).unwrap();
        assert_ne!(Identity::of(&path).unwrap(), before);
    }
}
