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
