//! Which files of `pg_wal` are known to be durable in which repositories, because a push has stored them ahead.
//!
//! A note says what was proven: that this file, unchanged since, is durable there. It is written after the proof
//! and never instead of it, and it holds for a few minutes: a repository may be replaced, and whoever finds
//! no note just stores the file, and finds it there.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    data_directory::DataDirectory,
    state::{self, Identity, Moment},
};
use crate::{
    config::{ClusterSettings, RepositorySettings},
    postgres::WalFile,
};

/// How long a note holds. The server asks for a file that was stored ahead within seconds.
const VALID: Duration = Duration::from_secs(300);

#[derive(Serialize, Deserialize)]
struct Note {
    at: Moment,
    file: Identity,
    /// Where it is durable.
    places: Vec<String>,
}

/// The notes about one data directory.
#[derive(Debug, Clone)]
pub struct Proven {
    folder: Option<PathBuf>,
    cluster: String,
}

impl Proven {
    /// Those below `state_dir`.
    pub fn of(state_dir: &Path, directory: &DataDirectory, cluster: &ClusterSettings) -> Self {
        let folder = state::folder(state_dir, "proven", directory);
        Proven { folder, cluster: cluster.name.clone() }
    }

    /// Whether there is a place for notes.
    pub fn is_kept(&self) -> bool {
        self.folder.is_some()
    }

    /// Whether the file at `path` is durable in all of `repositories`.
    pub fn has(&self, path: &Path, file: WalFile, repositories: &[&RepositorySettings]) -> bool {
        let Some(note) = self.read(file) else { return false };
        let is_recent = note.at.age().is_some_and(|age| age < VALID);
        let is_it = Identity::of(path).is_ok_and(|identity| identity == note.file);
        is_recent && is_it && repositories.iter().all(|r| note.places.contains(&self.place(r)))
    }

    /// Takes down that the file that `identity` is of is durable in `repositories`. `identity` is from before it was
    /// read.
    pub fn note(&self, file: WalFile, identity: Identity, repositories: &[&RepositorySettings]) {
        let (Some(folder), Some(at)) = (&self.folder, Moment::now()) else { return };
        let places = repositories.iter().map(|repository| self.place(repository)).collect();
        let path = folder.join(file.to_string());
        let temporary = path.with_extension(std::process::id().to_string());
        let write = || -> std::io::Result<()> {
            fs::write(&temporary, serde_json::to_vec(&Note { at, file: identity, places })?)?;
            fs::rename(&temporary, &path)
        };
        if let Err(e) = write() {
            tracing::warn!("note in {} that {file} is stored: {e}", folder.display());
        }
    }

    /// Removes the notes that don't hold any more, and what a push that was killed has left of one.
    pub fn sweep(&self) {
        let Some(entries) = self.folder.as_ref().and_then(|f| fs::read_dir(f).ok()) else { return };
        for entry in entries.flatten() {
            let age = entry.metadata().and_then(|meta| meta.modified()).map(|t| t.elapsed());
            if !matches!(age, Ok(Ok(age)) if age < VALID) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn read(&self, file: WalFile) -> Option<Note> {
        let path = self.folder.as_ref()?.join(file.to_string());
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    fn place(&self, repository: &RepositorySettings) -> String {
        let (name, location) = (&repository.name, &repository.location);
        format!("{name} {location} {} {}", location.server(), self.cluster)
    }
}
