//! Pushing WAL into repositories and getting it back, with segments of real servers.
//!
//! Most of it calls the library, which is faster and says more; [`process`] runs the program, for
//! exit codes and kills, and [`servers`] has servers run it.

mod ahead;
mod check;
mod get;
mod process;
mod push;
mod servers;
mod silent;
mod status;
mod tablespaces;
mod timelines;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use pgkeep::{
    archive::{self, GetOptions, Got, PushOutcome, Stored},
    config::{ClusterSettings, KeySource, RepositorySettings, RetentionSettings},
    error::{Error, Result},
    postgres::{WalFile, control::ControlFile},
    repo::{
        Repository, SystemId,
        catalog::register_system,
        layout::ClusterLayout,
        open::{init, open},
        wal::WalStore,
    },
};

use crate::support::{
    Cluster, Scratch, Stop,
    install::{command, program},
    places::Places,
};

/// Repositories for one cluster, at library level: they belong to the tests' own user.
struct Keeper {
    cluster: ClusterSettings,
    repositories: Vec<RepositorySettings>,
    places: Places,
    scratch: Scratch,
    /// Whether what waits is stored ahead.
    ahead: bool,
}

impl Keeper {
    /// Encrypted repositories of these names, which know the cluster.
    fn new(cluster: &Cluster, names: &[&str]) -> Self {
        let scratch = Scratch::new("keep");
        let mut settings = ClusterSettings::named("main");
        settings.pgdata = Some(cluster.pgdata().to_owned());
        settings.outage_wait = Duration::ZERO;
        let places = Places::new(scratch.path());
        let repository = |name: &&str| RepositorySettings {
            name: (*name).to_owned(),
            location: places.location(name),
            key: KeySource::File(scratch.path().join(format!("{name}.key"))),
            compression_level: 1,
            retention: RetentionSettings::NONE,
        };
        let repositories = names.iter().map(repository).collect();
        let keeper = Keeper { cluster: settings, repositories, places, scratch, ahead: false };
        for settings in &keeper.repositories {
            run(init(settings)).expect("init");
        }
        keeper.register(system(cluster));
        keeper
    }

    fn register(&self, system: SystemId) {
        for settings in &self.repositories {
            run(register_system(&self.open(settings), &self.layout(), system)).expect("register");
        }
    }

    fn layout(&self) -> ClusterLayout {
        ClusterLayout::new(&self.cluster.name).expect("a name")
    }

    fn open(&self, settings: &RepositorySettings) -> Repository {
        run(open(settings)).expect("open")
    }

    /// The archive in the repository of this name.
    fn store(&self, name: &str, cluster: &Cluster) -> WalStore {
        let settings = self.repositories.iter().find(|r| r.name == name).expect("a repository");
        WalStore::new(&self.open(settings), &self.layout(), system(cluster))
    }

    fn push(&self, path: &Path) -> Result<PushOutcome> {
        let repositories: Vec<_> = self.repositories.iter().collect();
        let state_dir = match self.ahead {
            true => self.scratch.path().join("state"),
            false => PathBuf::from("/dev/null/state"),
        };
        run(archive::push(&repositories, &self.cluster, &state_dir, path))
    }

    /// Pushes a file of the cluster's `pg_wal`; what became of it in each repository.
    fn pushed(&self, cluster: &Cluster, name: &str) -> Vec<Stored> {
        let outcome = self.push(&wal(cluster, name)).unwrap_or_else(|e| panic!("{e}"));
        outcome.stored.into_iter().map(|(_, stored)| stored).collect()
    }

    /// Where gets write.
    fn destination(&self) -> PathBuf {
        let folder = self.scratch.path().join("out");
        fs::create_dir_all(&folder).expect("make a folder");
        folder.join("RECOVERYXLOG")
    }

    fn get(&self, name: &str) -> Result<Got> {
        let file: WalFile = name.parse().expect("a name");
        let repositories: Vec<_> = self.repositories.iter().collect();
        let (destination, options) = (self.destination(), GetOptions::default());
        let got = run(archive::get(&repositories, &self.cluster, file, &destination, &options));
        let left: Vec<_> = fs::read_dir(self.scratch.path().join("out")).expect("read").collect();
        assert!(left.len() <= 1, "nothing but the destination is there: {left:?}");
        got
    }

    /// Gets a file that has to be there, and returns its content.
    fn served(&self, name: &str) -> Vec<u8> {
        match self.get(name) {
            Ok(Got::Served { .. }) => fs::read(self.destination()).expect("read"),
            other => panic!("{name}: {other:?}"),
        }
    }

    /// Gets a file that must not be served, and must not be called absent.
    fn refused(&self, name: &str) -> Error {
        let _ = fs::remove_file(self.destination());
        let error = match self.get(name) {
            Err(e) => e,
            Ok(got) => panic!("{name}: {got:?}"),
        };
        assert!(!self.destination().exists(), "nothing is there after: {error}");
        error
    }

    /// The file of an object in the repository of this name.
    fn object(&self, name: &str, cluster: &Cluster, file: &str) -> PathBuf {
        let file: WalFile = file.parse().expect("a name");
        let object = self.store(name, cluster).plain(file);
        self.places.objects(name).join(object.as_str())
    }

    /// The names of the objects of one timeline, sorted.
    fn names(&self, name: &str, cluster: &Cluster, timeline: &str) -> Vec<String> {
        let wal = format!("clusters/main/wal/{}/{timeline}", system(cluster));
        let entries = fs::read_dir(self.places.objects(name).join(wal)).expect("read");
        let mut names: Vec<_> =
            entries.map(|e| e.expect("read").file_name().into_string().expect("UTF-8")).collect();
        names.sort();
        names
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

fn system(cluster: &Cluster) -> SystemId {
    let control = ControlFile::read(cluster.pgdata()).expect("read pg_control");
    SystemId { major: cluster.version(), identifier: control.system_identifier }
}

fn wal(cluster: &Cluster, name: &str) -> PathBuf {
    cluster.pgdata().join("pg_wal").join(name)
}

/// A running cluster with one closed segment after another; their names. Nothing archives, so they
/// all stay in `pg_wal`.
fn cluster_with_segments(version: u32, count: usize) -> (Cluster, Vec<String>) {
    let cluster = Cluster::builder(version).wal_segsize(1).start();
    let segments = (0..count).map(|_| cluster.switch_wal()).collect();
    (cluster, segments)
}

/// Every file below `pg_wal` with its content's checksum and its inode.
fn snapshot(cluster: &Cluster) -> Vec<(PathBuf, u64, blake3::Hash)> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    let mut folders = vec![cluster.pgdata().join("pg_wal")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("read").flatten() {
            let meta = entry.metadata().expect("stat");
            if meta.is_dir() {
                folders.push(entry.path());
            } else {
                let content = fs::read(entry.path()).expect("read");
                found.push((entry.path(), meta.ino(), blake3::hash(&content)));
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// Moves a stopped cluster of 15 to another place in the WAL, or to another timeline: its next
/// segment is `name`.
fn reset_wal(cluster: &mut Cluster, name: &str) {
    cluster.stop(Stop::Fast);
    let mut reset = command(program(15, "pg_resetwal"));
    crate::support::install::run(reset.args(["-f", "-l", name, "-D"]).arg(cluster.pgdata()));
    cluster.start();
}
