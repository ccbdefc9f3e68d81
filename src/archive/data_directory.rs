//! Which data directory a WAL file belongs to, and which system that is.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    config::ClusterSettings,
    error::{Context, Error, Kind, Result},
    postgres::{
        backup_label::BACKUP_LABEL,
        control::{CONTROL_FILE, ControlFile, read_major},
    },
    repo::SystemId,
};

/// A data directory and what its control file says.
#[derive(Debug)]
pub struct DataDirectory {
    /// Where it is.
    pub path: PathBuf,
    /// Its system.
    pub system: SystemId,
    /// `global/pg_control`.
    pub control: ControlFile,
}

impl DataDirectory {
    /// The data directory that `wal_path` belongs to, a path as PostgreSQL gives it for `%p`.
    ///
    /// That is the directory above `pg_wal`; where the path doesn't say (it leads through the
    /// target of a symbolic link), the working directory, which PostgreSQL sets to the data
    /// directory (`pgarch.c`, `xlogarchive.c`); and last the configured one.
    pub fn of_wal_path(wal_path: &Path, cluster: &ClusterSettings) -> Result<Self> {
        let above = wal_path.parent().and_then(Path::parent).map(|p| match p.as_os_str().len() {
            0 => Path::new("."),
            _ => p,
        });
        let places = [above, Some(Path::new(".")), cluster.pgdata.as_deref()];
        for place in places.into_iter().flatten() {
            let control = place.join("global/pg_control");
            match fs::metadata(&control) {
                Ok(_) => return DataDirectory::read(place),
                Err(e) if is_absent(&e) => {}
                Err(e) => {
                    return Err(e)
                        .context(Kind::Local, || format!("look at {}", control.display()));
                }
            }
        }
        Err(Error::new(
            Kind::Local,
            format!("no global/pg_control found above {}", wal_path.display()),
        )
        .hint(format!(
            "PostgreSQL runs this command in its data directory; to run it by hand, go there \
             first, or set pgdata in [cluster.{}]",
            cluster.name
        )))
    }

    /// Reads a data directory's identity.
    pub fn read(path: &Path) -> Result<Self> {
        let what = || format!("read the identity of the data directory {}", path.display());
        let control = ControlFile::read(path)
            .context(Kind::Local, what)
            .map_err(|e| e.if_denied(&path.join(CONTROL_FILE)))?;
        let major = read_major(path).context(Kind::Local, what)?;
        let system = SystemId { major, identifier: control.system_identifier };
        Ok(DataDirectory { path: path.to_owned(), system, control })
    }

    /// Whether a server that recovers here has a base backup to come through yet: the server removes
    /// its label when it begins, and forgets where it began when it has replayed its end
    /// (`StartupXLOG` in `xlog.c`, `ReachedEndOfBackup` in `xlogrecovery.c`).
    pub fn is_in_backup(&self) -> Result<bool> {
        let label = self.path.join(BACKUP_LABEL);
        let labelled =
            label.try_exists().context(Kind::Local, || format!("look at {}", label.display()))?;
        Ok(labelled || self.control.backup_start.is_some())
    }

    /// Refuses a directory of another system than the configured data directory has. One that
    /// isn't there, or another copy of the same system, is no reason to refuse.
    pub fn check_configured(&self, cluster: &ClusterSettings) -> Result<()> {
        let Some(configured) = &cluster.pgdata else { return Ok(()) };
        let same_place = fs::canonicalize(configured)
            .and_then(|c| Ok(c == fs::canonicalize(&self.path)?))
            .unwrap_or(false);
        if same_place {
            return Ok(());
        }
        match DataDirectory::read(configured) {
            Ok(other) if other.system != self.system => Err(Error::new(
                Kind::Conflict,
                format!(
                    "{} is system {}, but the data directory of [cluster.{}], {}, is system {}",
                    self.path.display(),
                    self.system,
                    cluster.name,
                    configured.display(),
                    other.system
                ),
            )
            .hint("give each cluster a section of its own and name it with --cluster")),
            _ => Ok(()),
        }
    }
}

fn is_absent(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
