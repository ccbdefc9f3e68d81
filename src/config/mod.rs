//! File, environment and flags made into typed settings.
//!
//! The file is TOML ([`mod@file`]), each key may also come from the environment ([`environment`]), and
//! what may be set at all is one table ([`keys`]). Whatever is unknown, of the wrong type or
//! impossible is refused with the key's name, its file and line or its variable, and what is
//! allowed. Nothing is guessed: no relative paths, no numbers without a unit.

mod drill;
mod environment;
mod file;
mod keys;
mod resolve;
mod retention;
mod s3;
mod source;
mod values;

use std::{
    ffi::OsString,
    fmt,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use drill::{DrillQuery, DrillSettings};
pub use environment::environment_names;
pub use file::{DEFAULT_PATH, PATH_VARIABLE};
pub use keys::{KEYS, Key, Scope};
pub use retention::RetentionSettings;

use crate::{
    error::{Context, Error, Kind, Result},
    storage::{Storage, s3::S3Settings},
};

/// What the command line says about the configuration.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--config`: the configuration file. It must exist.
    pub config: Option<PathBuf>,
    /// `--cluster`. Where no cluster is configured at all, it names the one there is by default.
    pub cluster: Option<String>,
}

/// Everything that is configured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The repositories, in the order of the file: the order in which they are read. Those that
    /// only the environment names come after them, by name.
    pub repositories: Vec<RepositorySettings>,
    /// The clusters. Never empty: where none is configured, there is one with all defaults, so
    /// that a host with nothing but a repository's address and key can restore.
    pub clusters: Vec<ClusterSettings>,
    /// How many threads a backup or a restore works with, at least 1.
    pub threads: usize,
    /// `state-dir`: where commands of the server leave something for the next one, an absolute path.
    pub state_dir: PathBuf,
    /// The keys of `[drill]`.
    pub drill: DrillSettings,
    /// The configuration file that was read, absolute.
    pub file: Option<PathBuf>,
    /// The file that was looked for, for messages.
    looked_for: PathBuf,
}

/// A repository, `[repository.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositorySettings {
    /// Its name in the configuration.
    pub name: String,
    /// `url`: where it lies.
    pub location: Location,
    /// `key-file`, `passphrase-file`, `passphrase-command` or `encryption`.
    pub key: KeySource,
    /// `compression-level`: of zstd, 1 to 19.
    pub compression_level: i32,
    /// The keys of `[repository.NAME.retention]`.
    pub retention: RetentionSettings,
}

/// Where a repository lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In a local directory, an absolute path.
    Directory(PathBuf),
    /// In a bucket: `url` and the keys of `[repository.NAME.s3]`.
    Bucket(Box<S3Settings>),
    /// In a storage that whoever calls the library brings along. No configuration names one.
    Given(GivenStorage),
}

/// A storage that was brought along ([`Location::Given`]). It is equal to itself only.
#[derive(Debug, Clone)]
pub struct GivenStorage(pub Arc<dyn Storage>);

impl PartialEq for GivenStorage {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for GivenStorage {}

impl Location {
    /// What its URL doesn't say of where it is: the endpoint and the region of a bucket.
    pub fn server(&self) -> String {
        match self {
            Location::Bucket(settings) => {
                let (endpoint, region) = (&settings.endpoint, &settings.region);
                format!(
                    "{} {}",
                    endpoint.as_deref().unwrap_or("-"),
                    region.as_deref().unwrap_or("-")
                )
            }
            Location::Directory(_) | Location::Given(_) => String::new(),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Directory(path) => write!(f, "file://{}", path.display()),
            Location::Bucket(settings) => settings.fmt(f),
            Location::Given(storage) => f.write_str(storage.0.address()),
        }
    }
}

/// What opens a repository.
#[derive(Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A key file, an absolute path.
    File(PathBuf),
    /// A file whose first line is the passphrase, an absolute path.
    PassphraseFile(PathBuf),
    /// A shell command that prints the passphrase.
    PassphraseCommand(String),
    /// Nothing: the repository isn't encrypted, because that was asked for.
    Unencrypted,
}

impl fmt::Debug for KeySource {
    /// Without the command, which may have a secret among its arguments.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySource::File(path) => write!(f, "key-file {}", path.display()),
            KeySource::PassphraseFile(path) => write!(f, "passphrase-file {}", path.display()),
            KeySource::PassphraseCommand(_) => f.write_str("passphrase-command"),
            KeySource::Unencrypted => f.write_str("encryption none"),
        }
    }
}

/// A cluster, `[cluster.NAME]`.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Its name in the configuration and in the repositories.
    pub name: String,
    /// `conninfo`: how to connect, as libpq reads it. May hold a password.
    pub conninfo: String,
    /// `pgdata`: the server's data directory, an absolute path.
    pub pgdata: Option<PathBuf>,
    /// `standby-outage`.
    pub standby_outage: StandbyOutage,
    /// `archive-timeout`: how long backup and check wait for WAL to arrive in the repository.
    pub archive_wait: Duration,
    /// `stall-timeout`: after how long without a word the server is given up.
    pub stall_timeout: Duration,
    /// `outage-timeout`: how long archive-get keeps trying while a repository can't be asked.
    pub outage_wait: Duration,
    /// The keys of `[cluster.NAME.stream]`.
    pub stream: StreamSettings,
}

/// How a cluster's WAL is streamed, `[cluster.NAME.stream]`.
#[derive(Clone, PartialEq, Eq)]
pub struct StreamSettings {
    /// `slot`: the physical replication slot.
    pub slot: String,
    /// `max-lag`: how old WAL may become before it is stored, where no commit waits for it.
    pub max_lag: Duration,
    /// `conninfo`: how to connect, where it isn't as the cluster's. May hold a password.
    pub conninfo: Option<String>,
}

impl Default for StreamSettings {
    fn default() -> Self {
        StreamSettings {
            slot: "pgkeep".to_owned(),
            max_lag: Duration::from_secs(1),
            conninfo: None,
        }
    }
}

impl ClusterSettings {
    /// A cluster of this name with all defaults.
    pub fn named(name: &str) -> Self {
        ClusterSettings {
            name: name.to_owned(),
            conninfo: String::new(),
            pgdata: None,
            standby_outage: StandbyOutage::Continue,
            archive_wait: Duration::from_secs(60),
            stall_timeout: crate::postgres::client::DEFAULT_STALL_TIMEOUT,
            outage_wait: Duration::from_secs(30),
            stream: StreamSettings::default(),
        }
    }
}

impl fmt::Debug for ClusterSettings {
    /// Without the connection string, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterSettings")
            .field("name", &self.name)
            .field("pgdata", &self.pgdata)
            .field("standby_outage", &self.standby_outage)
            .field("archive_wait", &self.archive_wait)
            .field("stall_timeout", &self.stall_timeout)
            .field("outage_wait", &self.outage_wait)
            .field("slot", &self.stream.slot)
            .field("max_lag", &self.stream.max_lag)
            .finish_non_exhaustive()
    }
}

/// What archive-get answers on a standby when no repository can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StandbyOutage {
    /// That the file isn't there, so that the standby goes on streaming.
    Continue,
    /// Nothing: the server stops.
    Stop,
}

/// The name that a cluster or a repository has where nobody gave it one.
const MAIN: &str = "main";

impl Settings {
    /// Reads the file and the environment of this process.
    pub fn load(overrides: &Overrides) -> Result<Settings> {
        Settings::load_with(overrides, std::env::vars_os().collect())
    }

    /// [`Settings::load`] with another environment.
    pub fn load_with(
        overrides: &Overrides,
        environment: Vec<(OsString, OsString)>,
    ) -> Result<Settings> {
        let variable = environment.iter().find(|(name, _)| name == PATH_VARIABLE);
        let (path, demanded) = match (&overrides.config, variable) {
            (Some(path), _) => {
                let absolute = std::path::absolute(path)
                    .context(Kind::Usage, || format!("find the file {}", path.display()))?;
                (absolute, true)
            }
            (None, Some((_, value))) => {
                let path = PathBuf::from(value);
                if !path.is_absolute() {
                    let message = format!("{PATH_VARIABLE}: {value:?} isn't an absolute path");
                    return Err(Error::new(Kind::Usage, message)
                        .hint(format!("as in {PATH_VARIABLE}={DEFAULT_PATH}")));
                }
                (path, true)
            }
            (None, None) => (PathBuf::from(DEFAULT_PATH), false),
        };
        let file = file::ConfigFile::read(&path)?;
        if file.is_none() && demanded {
            let message = format!("there is no configuration file {}", path.display());
            return Err(Error::new(Kind::Usage, message)
                .hint(format!("it is named by --config or {PATH_VARIABLE}")));
        }
        let mut raw = file.as_ref().map(file::ConfigFile::parse).transpose()?.unwrap_or_default();
        environment::overlay(&mut raw, environment.into_iter())?;
        if raw.clusters.is_empty() {
            let name = overrides.cluster.as_deref().unwrap_or(MAIN);
            raw.section(Scope::Cluster, name, &source::Origin::Default)?;
        }
        let settings = resolve::settings(&raw, file.as_ref())?;
        Ok(Settings { looked_for: path, ..settings })
    }

    /// The cluster of this name; without a name the only one there is, or `main`.
    pub fn cluster(&self, name: Option<&str>) -> Result<&ClusterSettings> {
        match (name, self.clusters.as_slice()) {
            (None, [only]) => Ok(only),
            _ => self.clusters.iter().find(|c| c.name == name.unwrap_or(MAIN)).ok_or_else(|| {
                match name {
                    Some(name) => self.unknown("cluster", name, self.cluster_names()),
                    None => self.several_clusters(),
                }
            }),
        }
    }

    /// The cluster whose server runs in the directory `data`; where no `pgdata` is that directory,
    /// the only one there is.
    pub fn cluster_of_data_directory(&self, data: &Path) -> Result<&ClusterSettings> {
        let found = self
            .clusters
            .iter()
            .find(|c| c.pgdata.as_deref().is_some_and(|pgdata| same_directory(pgdata, data)));
        match (found, self.clusters.as_slice()) {
            (Some(found), _) => Ok(found),
            (None, [only]) => Ok(only),
            (None, _) => {
                let message =
                    format!("no configured cluster has the data directory {}", data.display());
                Err(Error::new(Kind::Usage, message).hint(format!(
                    "name it by --cluster ({}), or set pgdata of each",
                    self.cluster_names()
                )))
            }
        }
    }

    /// The repository of this name; without a name the only one there is. With several a name is
    /// needed.
    pub fn repository(&self, name: Option<&str>) -> Result<&RepositorySettings> {
        match self.selected_repositories(name)?.as_slice() {
            [only] => Ok(only),
            _ => Err(Error::new(Kind::Usage, "several repositories are configured")
                .hint(format!("name one by --repo: {}", self.repository_names()))),
        }
    }

    /// The repository of this name; without a name all there are, in order. Never empty.
    pub fn selected_repositories(&self, name: Option<&str>) -> Result<Vec<&RepositorySettings>> {
        let selected: Vec<_> =
            self.repositories.iter().filter(|r| name.is_none_or(|name| r.name == name)).collect();
        match (selected.is_empty(), name) {
            (false, _) => Ok(selected),
            (true, Some(name)) if !self.repositories.is_empty() => {
                Err(self.unknown("repository", name, self.repository_names()))
            }
            (true, _) => Err(Error::new(Kind::Usage, "no repository is configured").hint(format!(
                "write [repository.{MAIN}] with url and key-file into {}, or set \
                 PGKEEP_REPOSITORY__MAIN__URL and PGKEEP_REPOSITORY__MAIN__KEY_FILE",
                self.looked_for.display()
            ))),
        }
    }

    fn unknown(&self, what: &str, name: &str, names: String) -> Error {
        Error::new(Kind::Usage, format!("no {what} {name} is configured"))
            .hint(format!("configured: {names}"))
    }

    fn several_clusters(&self) -> Error {
        Error::new(Kind::Usage, "several clusters are configured")
            .hint(format!("name one by --cluster: {}", self.cluster_names()))
    }

    fn cluster_names(&self) -> String {
        self.clusters.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    fn repository_names(&self) -> String {
        self.repositories.iter().map(|r| r.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// Whether two paths are the same directory, through whatever links.
fn same_directory(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    one == other || identity(one).is_some_and(|id| Some(id) == identity(other))
}
