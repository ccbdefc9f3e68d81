//! The marker of a restore that isn't finished: what makes it safe to run one again.
//!
//! While a restore writes, its data directory and each of its tablespaces' directories hold a small
//! file that says so. A directory with one has nothing in it that anybody could miss, so the next
//! restore may empty it; any other directory has to be empty already. No server reads it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::repo::{BackupId, id::RandomId};

/// The marker's name.
pub const MARKER: &str = "pgkeep-restore.json";

/// The name under which a marker is written before it gets its own.
pub const NEW_MARKER: &str = "pgkeep-restore.json.new";

/// How far a restore came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It is writing files; each tablespace's directory has a marker too.
    Writing,
    /// All files are durable. The tablespaces' markers are being removed, and `pg_control` put in
    /// place after that.
    Finishing,
}

/// What a marker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Marker {
    /// Always `pgkeep restore`.
    pub product: String,
    /// The restore that wrote it.
    pub restore: RandomId,
    /// The repository it restores from.
    pub repository: RandomId,
    /// The backup it restores.
    pub backup: BackupId,
    /// When it began.
    pub started: DateTime<Utc>,
    /// How far it came.
    pub phase: Phase,
    /// The data directory.
    pub data_directory: PathBuf,
    /// Where its tablespaces go, by object id.
    pub tablespaces: BTreeMap<u32, PathBuf>,
}

impl Marker {
    /// What a marker's `product` says.
    pub const PRODUCT: &'static str = "pgkeep restore";

    /// The marker in `directory`: `None` if there is none, an error of kind
    /// [`io::ErrorKind::InvalidData`] if a file of its name is something else.
    pub fn read(directory: &Path) -> io::Result<Option<Self>> {
        let path = directory.join(MARKER);
        match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
            Ok(meta) if !meta.is_file() || meta.len() > 1 << 20 => {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Ok(_) => {}
        }
        let marker: Marker = serde_json::from_slice(&fs::read(path)?)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        if marker.product != Marker::PRODUCT {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Some(marker))
    }

    /// Puts the marker into `directory`, whole or not at all, durably, instead of one that is there.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        let mut json = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        json.push(b'\n');
        let new = directory.join(NEW_MARKER);
        match fs::remove_file(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&json)?;
        file.sync_all()?;
        fs::rename(&new, directory.join(MARKER))?;
        sync_directory(directory)
    }

    /// Removes the marker from `directory`, durably. Succeeds if there is none.
    pub fn remove(directory: &Path) -> io::Result<()> {
        match fs::remove_file(directory.join(MARKER)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => sync_directory(directory),
        }
    }
}

/// Makes the names in a directory durable.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn marker() -> Marker {
        Marker {
            product: Marker::PRODUCT.to_owned(),
            restore: RandomId([1; 16]),
            repository: RandomId([2; 16]),
            backup: "20261121T195812Z-full".parse().unwrap(),
            started: "2026-11-21T20:00:00Z".parse().unwrap(),
            phase: Phase::Writing,
            data_directory: "/data".into(),
            tablespaces: BTreeMap::new(),
        }
    }

    #[test]
    fn what_was_written_is_read_and_can_be_removed_twice() {
        let scratch = tempfile::tempdir().unwrap();
        assert_eq!(Marker::read(scratch.path()).unwrap(), None);
        let (first, second) = (marker(), Marker { phase: Phase::Finishing, ..marker() });
        for marker in [first, second] {
            // What a restore that was killed has left.
            fs::write(scratch.path().join(NEW_MARKER), "half of one").unwrap();
            marker.write(scratch.path()).unwrap();
            assert_eq!(Marker::read(scratch.path()).unwrap(), Some(marker));
        }
        Marker::remove(scratch.path()).unwrap();
        Marker::remove(scratch.path()).unwrap();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }

    /// A directory with a marker may be emptied: so nothing else counts as one, and what can't be asked isn't absent.
    #[test]
    fn nothing_else_of_its_name_is_a_marker() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join(MARKER);
        let is_no_marker = |what: &str| {
            let error = Marker::read(scratch.path()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{what}");
        };
        let json = serde_json::to_string(&marker()).unwrap();
        let padded = |len: usize| format!("{json}{}", " ".repeat(len - json.len()));
        fs::write(&path, padded(1 << 20)).unwrap();
        assert!(Marker::read(scratch.path()).unwrap().is_some());
        for (content, what) in [
            (padded((1 << 20) + 1), "too long"),
            (json.replace(Marker::PRODUCT, "other"), "of another product"),
            (json[1..].to_owned(), "no JSON"),
        ] {
            fs::write(&path, content).unwrap();
            is_no_marker(what);
        }
        fs::write(scratch.path().join("elsewhere"), &json).unwrap();
        fs::remove_file(&path).unwrap();
        symlink(scratch.path().join("elsewhere"), &path).unwrap();
        is_no_marker("a link to one");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        is_no_marker("a directory");
        assert!(Marker::remove(scratch.path()).is_err());
        assert!(Marker::read(&scratch.path().join("elsewhere")).is_err(), "below a file");
    }

    #[test]
    fn one_that_cannot_be_written_is_an_error() {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join(NEW_MARKER)).unwrap();
        assert!(marker().write(scratch.path()).is_err());
        assert_eq!(Marker::read(scratch.path()).unwrap(), None);
    }
}
