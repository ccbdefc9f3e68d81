//! Segments that were fetched ahead for a recovery, in a folder of its data directory below `state-dir`.
//!
//! A segment is there whole, was checked as one that is handed over at once, and has a note beside it
//! of which file that was; a file that was changed since, or that an earlier boot of the system has left, isn't
//! used. Nothing says that a segment is absent. One process fills the spool ([`mod@super::fetch_ahead`]), and holds its
//! lock; each get empties it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    data_directory::DataDirectory,
    destination::Destination,
    get::Fetched,
    state::{self, Identity, Moment},
};
use crate::{
    config::RepositorySettings,
    error::{Context, Kind, Result},
    postgres::{SegmentName, SegmentSize},
    steps::reached,
};

/// How old a segment may be when it is used.
const VALID: Duration = Duration::from_secs(600);

/// The most segments that are kept, and their most bytes, but for one.
const SEGMENTS: u64 = 16;
const BYTES: u64 = 256 << 20;

const LOCK: &str = "lock";
const WANTED: &str = "wanted";

#[derive(Serialize, Deserialize)]
struct Note {
    at: Moment,
    file: Identity,
    repository: String,
    object: String,
    #[serde(default)]
    makes_no_tablespace: bool,
}

/// A segment that was taken out: where it came from.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The repository's name.
    pub repository: String,
    /// The object's.
    pub object: String,
}

/// The spool of one data directory.
#[derive(Debug, Clone)]
pub struct Spool {
    pub(super) folder: PathBuf,
}

/// The right to fill a spool, until it is dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the lock lives as long as its file is open")] File);

impl Spool {
    /// The one below `state_dir` for a cluster in these repositories; `None` where there can't be one.
    ///
    /// Where something else is asked for, as when a directory is restored again from another place, it is
    /// another spool with another process.
    pub fn of(
        state_dir: &Path,
        directory: &DataDirectory,
        cluster: &str,
        repositories: &[&RepositorySettings],
    ) -> Option<Self> {
        let mut asked = Sha256::new();
        asked.update(cluster);
        for repository in repositories {
            let (name, location) = (&repository.name, &repository.location);
            asked.update(format!("\0{name}\0{location}\0{}", location.server()));
        }
        let asked = hex::encode(&asked.finalize()[..8]);
        let folder = state::folder(state_dir, &format!("fetched-{asked}"), directory)?;
        Some(Spool { folder })
    }

    /// How many segments of this size it may have.
    pub fn room(size: SegmentSize) -> u64 {
        (BYTES / size.bytes()).clamp(1, SEGMENTS)
    }

    /// Where a segment lies, or will.
    pub fn path(&self, segment: SegmentName) -> PathBuf {
        self.folder.join(segment.to_string())
    }

    fn note_path(&self, segment: SegmentName) -> PathBuf {
        self.folder.join(format!("{segment}.json"))
    }

    fn mark_path(&self, segment: SegmentName) -> PathBuf {
        self.folder.join(format!("{segment}.fetching"))
    }

    /// The lock, if nobody has it.
    pub fn lock(&self) -> Option<Lock> {
        let mut options = OpenOptions::new();
        let file =
            options.create(true).append(true).mode(0o600).open(self.folder.join(LOCK)).ok()?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(Lock(file))
    }

    /// Says which segment recovery asks for: those behind it are worth fetching.
    pub fn want(&self, segment: SegmentName) -> io::Result<()> {
        let temporary = self.folder.join(format!("{WANTED}.{}", std::process::id()));
        fs::write(&temporary, segment.to_string())?;
        fs::rename(&temporary, self.folder.join(WANTED))?;
        reached("spool: wanted");
        Ok(())
    }

    /// Which segment recovery asked for last.
    pub fn wanted(&self) -> Option<SegmentName> {
        fs::read_to_string(self.folder.join(WANTED)).ok()?.parse().ok()
    }

    /// Whether it has a segment.
    pub fn has(&self, segment: SegmentName) -> bool {
        self.note_path(segment).exists()
    }

    /// Whether somebody fetches a segment right now.
    pub fn is_fetched_now(&self, segment: SegmentName) -> bool {
        self.mark_path(segment).exists() && self.lock().is_none()
    }

    /// Says that a segment is being fetched, until [`Spool::put`] or [`Spool::give_up`].
    pub fn begin(&self, segment: SegmentName) -> io::Result<()> {
        File::create(self.mark_path(segment))?;
        reached("spool: begun");
        Ok(())
    }

    /// Takes it back.
    pub fn give_up(&self, segment: SegmentName) {
        let _ = fs::remove_file(self.mark_path(segment));
    }

    /// Adds the segment that was written to [`Spool::path`].
    pub fn put(&self, segment: SegmentName, repository: &str, fetched: Fetched) -> io::Result<()> {
        let at = Moment::now().ok_or(io::ErrorKind::Unsupported)?;
        let file = Identity::of(&self.path(segment))?;
        let (repository, object) = (repository.to_owned(), fetched.object.to_string());
        let makes_no_tablespace = fetched.makes_no_tablespace;
        let note = Note { at, file, repository, object, makes_no_tablespace };
        let temporary = self.folder.join(format!("{segment}.note"));
        fs::write(&temporary, serde_json::to_vec(&note)?)?;
        reached("spool: fetched");
        fs::rename(&temporary, self.note_path(segment))?;
        reached("spool: noted");
        self.give_up(segment);
        Ok(())
    }

    /// The note of a segment that is there and is what was fetched.
    fn sound(&self, segment: SegmentName) -> Option<Note> {
        let note: Note = serde_json::from_slice(&fs::read(self.note_path(segment)).ok()?).ok()?;
        let is_recent = note.at.age().is_some_and(|age| age < VALID);
        let is_it = Identity::of(&self.path(segment)).is_ok_and(|identity| identity == note.file);
        (is_recent && is_it).then_some(note)
    }

    /// Moves a segment to `destination`, once `check`, which is told whether it is certain that no tablespace is made in
    /// it, has found nothing against it. `None` when there is none to
    /// take. An error is about the destination.
    pub fn take(
        &self,
        segment: SegmentName,
        destination: &Path,
        check: impl FnOnce(&mut File, bool) -> Result<()>,
    ) -> Result<Option<Taken>> {
        let Some(note) = self.sound(segment) else { return Ok(None) };
        let path = self.path(segment);
        let Ok(mut file) = File::open(&path) else { return Ok(None) };
        if let Err(e) = check(&mut file, note.makes_no_tablespace) {
            tracing::warn!("{segment} isn't taken from state-dir: {e}");
            return Ok(None);
        }
        let what = || format!("write {}", destination.display());
        match fs::rename(&path, destination) {
            Ok(()) => {}
            // Whoever fills the spool may empty it, too.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(_) => {
                // It wasn't synced, and what couldn't be written out may read as something else by now.
                if file.sync_all().is_err() {
                    return Ok(None);
                }
                let mut written = Destination::create(destination)?;
                io::Seek::rewind(&mut file).context(Kind::Local, what)?;
                io::copy(&mut file, written.file()).context(Kind::Local, what)?;
                written.finish()?;
                let _ = fs::remove_file(&path);
            }
        }
        reached("spool: handed over");
        let _ = fs::remove_file(self.note_path(segment));
        Ok(Some(Taken { repository: note.repository, object: note.object }))
    }

    /// Removes everything but what belongs to the segments of `kept`.
    pub fn drop_all_but(&self, kept: &[SegmentName]) {
        let kept: Vec<String> = kept.iter().map(ToString::to_string).collect();
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            let segment = name.split('.').next().unwrap_or_default();
            let stays =
                name == LOCK || name.starts_with(WANTED) || kept.iter().any(|k| k == segment);
            if !stays {
                let _ = fs::remove_file(self.folder.join(name));
            }
        }
    }
}
