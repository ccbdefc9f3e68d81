//! Which directories a restore may write to, and taking them.
//!
//! A restore writes into empty directories, or into those of a restore that was interrupted
//! ([`super::marker`]), and nowhere else: not over a running server, not over any other cluster, not
//! into the repository it reads. [`Places::check`] only looks. [`Claim::take`] makes and locks the
//! directories, looks again, and begins: an existing `global/pg_control` is moved away before
//! anything else, so that from there on nothing can start until [`Claim::finish`].

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    process::{Pid, test_kill_process},
};

use super::marker::{MARKER, Marker, NEW_MARKER, Phase, sync_directory};
use crate::{
    error::{Context, Error, Kind, Result},
    postgres::control::{CONTROL_FILE, ControlFile},
    steps::reached,
    storage::local::sync_name,
};

/// Refuses to restore as root, by this command: PostgreSQL doesn't start as root, nor in a directory of
/// root's.
pub fn refuse_root(command: &str) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let message = format!("a {command} can't run as root, who can't own a cluster");
    Err(Error::new(Kind::Usage, message).hint(format!(
        "run it as the user that runs PostgreSQL, as in `sudo -u postgres pgkeep {command} …`"
    )))
}

/// The directories of one restore, absolute and without symbolic links in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The data directory.
    pub pgdata: PathBuf,
    /// The tablespaces' directories, by object id.
    pub tablespaces: BTreeMap<u32, PathBuf>,
}

impl Places {
    /// Checks without changing anything that a restore may write to `pgdata` and `tablespaces`.
    /// `repository` is the directory it reads from, if it is one.
    pub fn check(
        pgdata: &Path,
        tablespaces: &BTreeMap<u32, PathBuf>,
        repository: Option<&Path>,
    ) -> Result<Self> {
        let mut places = Places { pgdata: resolve(pgdata)?, tablespaces: BTreeMap::new() };
        for (oid, path) in tablespaces {
            // Before it is resolved too: the data directory needn't be there yet.
            outside(*oid, path, [pgdata])?;
            let path = resolve(path).map_err(|e| e.hint(elsewhere(*oid)))?;
            let above = path.ancestors().skip(1).filter(|above| above.join("PG_VERSION").exists());
            outside(*oid, &path, above.chain([places.pgdata.as_path()]))?;
            places.tablespaces.insert(*oid, path);
        }
        if let Some(path) = places.all().find(|path| path.to_str().is_none()) {
            return Err(Error::new(
                Kind::Usage,
                format!("can't restore to {path:?}: only paths in UTF-8 are supported"),
            ));
        }
        let mut taken: Vec<(&str, &Path)> = Vec::new();
        let repository = repository.map(resolve).transpose()?;
        taken.extend(repository.as_deref().map(|path| ("the repository", path)));
        for path in places.all() {
            for (what, other) in &taken {
                if path.starts_with(other) || other.starts_with(path) {
                    return Err(Error::new(
                        Kind::Usage,
                        format!(
                            "can't restore to {}: it and {what} at {} lie one in the other",
                            path.display(),
                            other.display()
                        ),
                    ));
                }
            }
            taken.push(("another directory of this restore", path));
        }
        places.look()?;
        Ok(places)
    }

    /// All directories, the data directory first.
    fn all(&self) -> impl Iterator<Item = &Path> {
        [&self.pgdata].into_iter().chain(self.tablespaces.values()).map(PathBuf::as_path)
    }

    /// Looks into the directories. Returns the marker of the data directory, if there is one.
    fn look(&self) -> Result<Option<Marker>> {
        let interrupted = look_into(&self.pgdata, None)?;
        if let Some(marker) = interrupted.as_ref().filter(|m| m.data_directory != self.pgdata) {
            // A copy of a directory may have its marker too, and be in use.
            let of = marker.data_directory.display();
            return Err(in_the_way(&self.pgdata, format!("its marker is of a restore to {of}"))
                .hint("remove what is there if it isn't needed, and run the restore again"));
        }
        for path in self.tablespaces.values() {
            look_into(path, interrupted.as_ref().filter(|marker| Self::wrote(marker, path)))?;
        }
        Ok(interrupted)
    }

    /// Whether the restore that `marker` in the data directory is of had filled the tablespace at
    /// `path` and taken its marker away.
    fn wrote(marker: &Marker, path: &Path) -> bool {
        marker.phase == Phase::Finishing && marker.tablespaces.values().any(|p| p == path)
    }
}

/// Refuses a place for a tablespace inside one of these data directories. A cluster may have such a
/// tablespace, and its backup does; but what is below a data directory is a server's alone.
fn outside<'a>(
    oid: u32,
    path: &Path,
    data_directories: impl IntoIterator<Item = &'a Path>,
) -> Result<()> {
    match data_directories.into_iter().find(|directory| path.starts_with(directory)) {
        None => Ok(()),
        Some(directory) => Err(Error::new(
            Kind::Usage,
            format!(
                "tablespace {oid} would lie at {}, inside the data directory {}: it is in the \
                 backup, but can be restored only to a place outside",
                path.display(),
                directory.display()
            ),
        )
        .hint(elsewhere(oid))),
    }
}

fn elsewhere(oid: u32) -> String {
    format!("--tablespace-map {oid}=DIR puts it into the directory DIR")
}

/// `path`, absolute and resolved; its last part may not exist yet.
fn resolve(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(path)
        .context(Kind::Usage, || format!("{} is no path", path.display()))?;
    let name = absolute.file_name().ok_or_else(|| {
        Error::new(Kind::Usage, format!("can't restore to {}", absolute.display()))
    })?;
    match absolute.canonicalize() {
        Ok(path) => Ok(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound && !absolute.is_symlink() => {
            let parent = absolute.parent().unwrap_or(Path::new("/"));
            let parent = parent
                .canonicalize()
                .context(Kind::Local, || {
                    format!("the directory above {} can't be used", absolute.display())
                })
                .map_err(|e| e.if_denied(parent))?;
            Ok(parent.join(name))
        }
        Err(e) => Err(local("use", &absolute, e)),
    }
}

fn local(doing: &str, path: &Path, e: io::Error) -> Error {
    Error::new(Kind::Local, format!("{doing} {}", path.display())).because(e).if_denied(path)
}

fn in_the_way(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::new(Kind::Conflict, format!("can't restore to {}: {what}", path.display()))
}

/// Looks whether `path` may be restored to: it isn't there, or it is empty, or it has a marker, or
/// it is a tablespace that the restore `interrupted` wrote. Returns its own marker.
fn look_into(path: &Path, interrupted: Option<&Marker>) -> Result<Option<Marker>> {
    let meta = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(|e| local("look at", path, e))?,
    };
    if !meta.is_dir() {
        return Err(in_the_way(path, "it is not a directory"));
    }
    let user = rustix::process::geteuid().as_raw();
    if meta.uid() != user {
        let owner = meta.uid();
        return Err(in_the_way(
            path,
            format!("it belongs to user id {owner}, this process runs as {user}"),
        )
        .hint("run pgkeep as the user that runs PostgreSQL"));
    }
    refuse_running(path)?;
    match Marker::read(path) {
        Ok(Some(marker)) => {
            refuse_started(path)?;
            return Ok(Some(marker));
        }
        Ok(None) => {}
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            return Err(in_the_way(path, format!("its file {MARKER} isn't a restore's marker")));
        }
        Err(e) => return Err(local("look into", path, e)),
    }
    if interrupted.is_some() {
        return Ok(None);
    }
    for entry in fs::read_dir(path).map_err(|e| local("look into", path, e))? {
        let name = entry.map_err(|e| local("look into", path, e))?.file_name();
        if name != NEW_MARKER {
            let cluster = match ControlFile::read(path) {
                Ok(control) => format!(
                    "; it holds the cluster with system identifier {} (in its control file: {:?})",
                    control.system_identifier, control.state
                ),
                Err(_) => String::new(),
            };
            return Err(in_the_way(path, format!("it isn't empty{cluster}"))
                .hint("restore to an empty directory, or move away what is there"));
        }
    }
    Ok(None)
}

/// Refuses a directory with a server running in it, whatever else is there.
fn refuse_running(path: &Path) -> Result<()> {
    let file = path.join("postmaster.pid");
    let text = match fs::read(&file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(local("read", &file, e)),
    };
    // A single-user backend writes its process id negated.
    let first = text.lines().next().unwrap_or_default().trim();
    let Some(pid) = first.parse::<i32>().ok().and_then(|n| Pid::from_raw(n.checked_abs()?)) else {
        return Err(in_the_way(path, "its postmaster.pid can't be understood"));
    };
    match test_kill_process(pid) {
        Err(Errno::SRCH) => Ok(()),
        _ => Err(in_the_way(
            path,
            format!("a server may be running there, process {}", pid.as_raw_nonzero()),
        )
        .hint("stop it first, and restore to an empty directory")),
    }
}

/// Refuses a directory that has a marker but in which a server was started since: the restore was
/// as good as done then, and what is there is in use.
fn refuse_started(path: &Path) -> Result<()> {
    for name in ["postmaster.opts", "postmaster.pid"] {
        if path.join(name).symlink_metadata().is_ok() {
            return Err(in_the_way(
                path,
                "a restore left its marker there, but a server was started there since",
            )
            .hint(format!("if this cluster is in use, remove {MARKER} from it"))
            .hint("to restore over it, move its content away first"));
        }
    }
    Ok(())
}

/// Directories taken by a restore: locked, marked, and empty but for the marker.
#[derive(Debug)]
pub struct Claim {
    places: Places,
    marker: Marker,
    /// Held as long as the restore runs.
    _locks: Vec<File>,
}

impl Claim {
    /// Takes the directories. What an interrupted restore left in them is removed, also from the
    /// tablespaces it wrote to.
    ///
    /// `marker` is the new restore's, its places and phase are set here.
    pub fn take(places: &Places, marker: Marker) -> Result<Self> {
        let mut locks = Vec::new();
        for path in places.all() {
            make(path)?;
            locks.push(lock(path)?);
        }
        let before = places.look()?;
        disarm(&places.pgdata)?;
        if let Some(before) = &before {
            clear_old_tablespaces(before, places, &mut locks)?;
        }
        let marker = Marker {
            phase: Phase::Writing,
            data_directory: places.pgdata.clone(),
            tablespaces: places.tablespaces.clone(),
            ..marker
        };
        // The data directory's last: until then the old one there says which tablespaces are ours.
        for path in places.tablespaces.values().chain([&places.pgdata]) {
            marker.write(path).map_err(|e| local("mark", path, e))?;
        }
        reached("restore: directories marked");
        for path in places.all() {
            clear(path)?;
        }
        reached("restore: directories emptied");
        Ok(Claim { places: places.clone(), marker, _locks: locks })
    }

    /// Where to write.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// Says, durably, that all files are: from here on only `pg_control` is missing. Call when they
    /// are, and before putting it in place.
    pub fn finishing(&mut self) -> Result<()> {
        self.marker.phase = Phase::Finishing;
        let pgdata = &self.places.pgdata;
        self.marker.write(pgdata).map_err(|e| local("mark", pgdata, e))?;
        reached("restore: all but pg_control is durable");
        for path in self.places.tablespaces.values() {
            Marker::remove(path).map_err(|e| local("remove the marker from", path, e))?;
        }
        Ok(())
    }

    /// Ends the restore: removes the marker. Call when `pg_control` is in place, durably.
    pub fn finish(self) -> Result<()> {
        let pgdata = &self.places.pgdata;
        Marker::remove(pgdata).map_err(|e| local("remove the marker from", pgdata, e))
    }
}

/// Makes a directory that isn't there, but not those above it: a disk that isn't mounted must be
/// noticed. Its name is durable then, also where a restore that was killed has made it.
fn make(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            return sync_name(path).map_err(|e| local("sync the name of", path, e));
        }
        result => result.map_err(|e| local("make", path, e))?,
    }
    match path.parent() {
        Some(parent) => sync_directory(parent).map_err(|e| local("sync", parent, e)),
        None => Ok(()),
    }
}

/// How long a lock may be in the way that isn't held any more: a restore that was killed is still ending, or a process
/// was begun beside it and has its files until it runs its program.
const LETS_GO: Duration = Duration::from_secs(1);

/// How often it is tried meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Locks a directory against another restore, until the file is dropped.
fn lock(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(|e| local("open", path, e))?;
    let begun = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if begun.elapsed() < LETS_GO => thread::sleep(LOOK_AGAIN),
            Err(Errno::WOULDBLOCK) => {
                return Err(in_the_way(path, "another restore is writing there"));
            }
            // Network file systems may not lock directories. The lock is a courtesy to who starts the
            // same restore twice; nothing else hangs on it.
            Err(e) => {
                tracing::debug!("can't lock {}: {e}", path.display());
                return Ok(file);
            }
        }
    }
}

/// Moves an existing `global/pg_control` away, durably: nothing can start here now.
fn disarm(pgdata: &Path) -> Result<()> {
    let control = pgdata.join(CONTROL_FILE);
    let global = pgdata.join("global");
    if !global.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        return Ok(());
    }
    let away = global.join("pg_control.interrupted");
    match fs::rename(&control, &away) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result
            .and_then(|()| sync_directory(&global))
            .map_err(|e| local("move away", &control, e)),
    }
}

/// Empties the tablespaces' directories of an interrupted restore that the new one doesn't use: those that
/// say themselves that it was filling them. Of others only the data directory's marker says so, and that may be old by
/// now; nobody has named them to this restore.
fn clear_old_tablespaces(before: &Marker, places: &Places, locks: &mut Vec<File>) -> Result<()> {
    for path in before.tablespaces.values() {
        let again = places.all().any(|p| p == path);
        if again || !path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            continue;
        }
        let marked = match Marker::read(path) {
            Ok(found) => found.is_some_and(|found| found.restore == before.restore),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => false,
            Err(e) => return Err(local("look into", path, e)),
        };
        if marked {
            locks.push(lock(path)?);
            clear(path)?;
            Marker::remove(path).map_err(|e| local("remove the marker from", path, e))?;
        } else if Places::wrote(before, path) {
            tracing::warn!(
                "{} may have files of an earlier restore, of a tablespace that lies elsewhere now: they are left there",
                path.display()
            );
        }
    }
    Ok(())
}

/// Removes everything but the marker from a directory. Links are removed, never followed.
fn clear(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).map_err(|e| local("look into", path, e))? {
        let entry = entry.map_err(|e| local("look into", path, e))?;
        if entry.file_name() == MARKER {
            continue;
        }
        let inner = entry.path();
        let is_directory = entry.file_type().map_err(|e| local("look at", &inner, e))?.is_dir();
        let removed =
            if is_directory { fs::remove_dir_all(&inner) } else { fs::remove_file(&inner) };
        removed.map_err(|e| local("remove", &inner, e))?;
    }
    sync_directory(path).map_err(|e| local("sync", path, e))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::repo::id::RandomId;

    /// What can't be asked isn't absent: a server may run where its file can't be read.
    #[test]
    fn a_directory_is_free_only_when_its_postmaster_pid_says_so() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("postmaster.pid");
        assert!(refuse_running(scratch.path()).is_ok(), "there is none");
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        let gone = ended.id();
        ended.wait().unwrap();
        let own = std::process::id();
        for (content, is_free) in [
            (format!("{gone}\n/data\n"), true),
            (format!("-{gone}\n"), true),
            (format!("{own}\n"), false),
            (format!("-{own}\n"), false),
            (String::new(), false),
            ("0\n".into(), false),
            ("no number\n".into(), false),
        ] {
            fs::write(&file, &content).unwrap();
            assert_eq!(refuse_running(scratch.path()).is_ok(), is_free, "{content:?}");
        }
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert_eq!(refuse_running(scratch.path()).unwrap_err().kind(), Kind::Local);
    }

    #[test]
    fn a_path_that_leads_nowhere_is_no_new_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let place = scratch.path().canonicalize().unwrap();
        fs::write(place.join("file"), "").unwrap();
        symlink(place.join("nowhere"), place.join("link")).unwrap();
        assert_eq!(resolve(&place.join("new")).unwrap(), place.join("new"));
        for path in ["file/below", "link", "not/there"] {
            assert_eq!(resolve(&place.join(path)).unwrap_err().kind(), Kind::Local, "{path}");
        }
        assert!(look_into(&place.join("new"), None).unwrap().is_none());
        assert_eq!(look_into(&place.join("file/below"), None).unwrap_err().kind(), Kind::Local);
        assert_eq!(look_into(&place.join("file"), None).unwrap_err().kind(), Kind::Conflict);
        assert!(make(&place.join("new")).is_ok() && make(&place.join("new")).is_ok());
        assert!(make(&place.join("not/there")).is_err());
    }

    #[test]
    fn the_control_file_is_moved_away_or_the_restore_does_not_begin() {
        let scratch = tempfile::tempdir().unwrap();
        let pgdata = scratch.path();
        assert!(disarm(pgdata).is_ok(), "nothing is there");
        let control = pgdata.join(CONTROL_FILE);
        fs::create_dir(pgdata.join("global")).unwrap();
        assert!(disarm(pgdata).is_ok(), "nor in the directory");
        fs::write(&control, "control").unwrap();
        disarm(pgdata).unwrap();
        assert!(!control.exists());
        let away = pgdata.join("global/pg_control.interrupted");
        assert_eq!(fs::read(&away).unwrap(), b"control");

        fs::remove_file(&away).unwrap();
        fs::create_dir(&away).unwrap();
        fs::write(&control, "control").unwrap();
        assert_eq!(disarm(pgdata).unwrap_err().kind(), Kind::Local);
    }

    /// Whose own marker is gone may be emptied only at the very end of the restore that wrote it.
    #[test]
    fn a_tablespace_without_a_marker_is_a_restores_when_that_had_come_to_its_end() {
        let marker = |phase| Marker {
            product: Marker::PRODUCT.to_owned(),
            restore: RandomId([1; 16]),
            repository: RandomId([2; 16]),
            backup: "20261121T195812Z-full".parse().unwrap(),
            started: "2026-11-21T20:00:00Z".parse().unwrap(),
            phase,
            data_directory: "/data".into(),
            tablespaces: BTreeMap::from([(16384, "/space".into())]),
        };
        for (phase, path, wrote) in [
            (Phase::Finishing, "/space", true),
            (Phase::Finishing, "/other", false),
            (Phase::Writing, "/space", false),
            (Phase::Writing, "/other", false),
        ] {
            assert_eq!(Places::wrote(&marker(phase), Path::new(path)), wrote, "{phase:?} {path}");
        }
    }

    #[test]
    fn a_lock_that_goes_soon_is_waited_for_and_one_that_stays_refuses() {
        let scratch = tempfile::tempdir().unwrap();
        let held = lock(scratch.path()).unwrap();
        let begun = Instant::now();
        assert_eq!(lock(scratch.path()).unwrap_err().kind(), Kind::Conflict);
        assert!(begun.elapsed() >= LETS_GO);
        let release = thread::spawn(move || {
            thread::sleep(LETS_GO / 5);
            drop(held);
        });
        assert!(lock(scratch.path()).is_ok());
        release.join().unwrap();
    }
}
