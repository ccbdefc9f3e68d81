//! Fetching for a recovery what it will ask for next, while it replays.
//!
//! Recovery calls `archive-get` for one segment and waits. A process that the first call leaves behind fetches the
//! ones after it into a [`Spool`], as many as have room, and stays as long as recovery goes on asking. It may end at
//! any time, and nothing depends on it: a get that doesn't find its segment in the spool fetches it itself.
//!
//! It fetches whole segments of one timeline, in order, and never what only the end of an archive has. At the
//! first one that isn't there it waits for recovery to ask for something else.
//!
//! It isn't begun where the server is process 1, as in a container without an init: it would become the
//! server's child, and if somebody killed it, the server would take that for a backend's crash and restart
//! (`postmaster.c`, `CleanupBackend`).

use std::{
    ffi::OsString,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{data_directory::DataDirectory, get::Request, spool::Spool, tablespaces::Tablespaces};
use crate::{
    config::{ClusterSettings, RepositorySettings},
    error::{Context, Kind, Result},
    postgres::{SegmentName, WalFile},
    repo::{layout::ClusterLayout, open::open, opening::open_each, wal::WalStore},
};

/// How long nobody asks for anything before the process ends. Replay of one segment may take some seconds.
const IDLE: Duration = Duration::from_secs(10);

/// How often it looks what was asked for.
const LOOK: Duration = Duration::from_millis(10);

/// How many segments are fetched at a time.
const AT_ONCE: usize = 4;

/// How much later than others the threads that fetch get a processor (`nice(2)`).
const NICE: i32 = 10;

/// How many bytes stay free on the spool's disk, which may be the server's.
const STAYS_FREE: u64 = 1 << 30;

/// The name under which recovery asks for a segment (`xlogarchive.c`, `RestoreArchivedFile`).
pub const RECOVERY_FILE: &str = "RECOVERYXLOG";

/// How to fetch ahead.
#[derive(Debug, Clone)]
pub struct FetchAhead {
    /// `state-dir`.
    pub state_dir: PathBuf,
    /// The program and its arguments, which run [`fetch_ahead`].
    pub command: Vec<OsString>,
}

impl FetchAhead {
    /// The spool for this request, if it is one of recovery that may have one.
    pub(super) fn spool(
        &self,
        request: &Request<'_>,
        cluster: &ClusterSettings,
        repositories: &[&RepositorySettings],
    ) -> Option<Spool> {
        let is_recovery = request.destination.file_name().is_some_and(|n| n == RECOVERY_FILE);
        if !is_recovery || server_is_first_process(request.directory) {
            return None;
        }
        Spool::of(&self.state_dir, request.directory, &cluster.name, repositories)
    }

    /// Says that `segment` was asked for, and begins the process if there is none.
    pub(super) fn go_on(&self, spool: &Spool, segment: SegmentName) {
        let begun = spool.want(segment).and_then(|()| {
            let (Some((program, arguments)), Some(lock)) =
                (self.command.split_first(), spool.lock())
            else {
                return Ok(());
            };
            drop(lock);
            let mut command = Command::new(program);
            command.args(arguments);
            // The server's log must not stay open after the server has ended.
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            // A signal to the server's processes isn't for this one. It stays in recovery's session, in which
            // priorities are compared where the kernel groups processes by session (`sched(7)`, autogroup).
            command.process_group(0);
            command.spawn().map(drop)
        });
        if let Err(e) = begun {
            tracing::warn!("fetch ahead of {segment}: {e}");
        }
    }
}

/// Replay is what is waited for, if there aren't processors for both. Linux has a priority for each thread
/// (`setpriority(2)`), so each that fetches sets its own.
fn let_replay_go_first() {
    let _ = rustix::process::setpriority_process(None, NICE);
}

fn server_is_first_process(directory: &DataDirectory) -> bool {
    let file = fs::read_to_string(directory.path.join("postmaster.pid"));
    file.is_ok_and(|text| text.lines().next().is_some_and(|line| line.trim() == "1"))
}

/// Fetches what recovery will ask for, until it doesn't ask any more. `destination` is the path that recovery gave
/// for a segment.
pub async fn fetch_ahead(
    repositories: &[&RepositorySettings],
    cluster: &ClusterSettings,
    state_dir: &Path,
    destination: &Path,
) -> Result<()> {
    let directory = DataDirectory::of_wal_path(destination, cluster)?;
    let Some(spool) = Spool::of(state_dir, &directory, &cluster.name, repositories) else {
        return Ok(());
    };
    let Some(_lock) = spool.lock() else { return Ok(()) };
    // What one that was killed has left may be half of something.
    spool.drop_all_but(&[]);
    let layout = ClusterLayout::new(&cluster.name)?;
    let mut stores = Vec::with_capacity(repositories.len());
    let mut failure = None;
    for (settings, opened) in repositories.iter().zip(open_each(repositories, open).await) {
        // What one repository doesn't say, get will ask for itself; what another one has is served meanwhile.
        let repository = match opened {
            Ok(repository) => repository,
            Err(e) => {
                failure = Some(e);
                continue;
            }
        };
        let store = WalStore::new(&repository, &layout, directory.system);
        stores.push((settings.name.clone(), store));
    }
    let are_all_open = failure.is_none();
    if let Some(e) = failure.filter(|_| stores.is_empty()) {
        return Err(e);
    }
    let (directory, stores) = (directory.into(), stores.into());
    let fetcher = Fetcher { directory, spool, stores, are_all_open };
    let result = fetcher.run().await;
    fetcher.spool.drop_all_but(&[]);
    result
}

type Fetched = (SegmentName, Result<bool>);

#[derive(Clone)]
struct Fetcher {
    directory: Arc<DataDirectory>,
    spool: Spool,
    stores: Arc<[(String, WalStore)]>,
    are_all_open: bool,
}

impl Fetcher {
    async fn run(&self) -> Result<()> {
        let size = self.directory.control.segment_size;
        let mut fetching: JoinSet<Fetched> = JoinSet::new();
        let mut under_way: Vec<SegmentName> = Vec::new();
        let (mut last, mut asked) = (None, Instant::now());
        // The first one that isn't there, as far as recovery's present timeline goes.
        let mut end: Option<SegmentName> = None;
        while asked.elapsed() < IDLE && self.directory.path.join("postmaster.pid").exists() {
            let wanted = self.spool.wanted();
            if wanted != last {
                // Another repository has it. The process that is begun next tries to open that anew.
                if !self.are_all_open && end.is_some() && wanted >= end {
                    return Ok(());
                }
                (last, asked, end) = (wanted, Instant::now(), None);
            }
            let number = wanted.and_then(|wanted| Some((wanted.timeline, wanted.number(size)?)));
            let behind = |(timeline, number): (_, u64)| {
                (number + 1..=number + Spool::room(size)).map(move |n| size.name(timeline, n))
            };
            let next: Vec<_> = number.into_iter().flat_map(behind).collect();
            let keep: Vec<_> = next.iter().chain(&under_way).chain(&wanted).copied().collect();
            self.spool.drop_all_but(&keep);
            let there_may_be = |segment: &&SegmentName| end.is_none_or(|end| **segment < end);
            for segment in next.iter().take_while(there_may_be) {
                let is_new = !under_way.contains(segment) && !self.spool.has(*segment);
                if is_new && under_way.len() < AT_ONCE && self.has_space()? {
                    self.spool.begin(*segment).context(Kind::Local, || "write to state-dir")?;
                    under_way.push(*segment);
                    let (fetcher, segment) = (self.clone(), *segment);
                    fetching.spawn(async move {
                        let_replay_go_first();
                        (segment, fetcher.fetch(segment).await)
                    });
                }
            }
            let Ok(Some(fetched)) = timeout(LOOK, fetching.join_next()).await else {
                sleep(LOOK).await;
                continue;
            };
            let (segment, is_there) =
                fetched.context(Kind::Internal, || "a thread that fetches ahead")?;
            under_way.retain(|other| *other != segment);
            // What can't be fetched is told by the get that asks for it.
            if !matches!(is_there, Ok(true)) {
                self.spool.give_up(segment);
                end = Some(end.map_or(segment, |end| end.min(segment)));
            }
        }
        Ok(())
    }

    /// Whether there is space for one more segment, and much more.
    fn has_space(&self) -> Result<bool> {
        let what = || "look at state-dir";
        let disk = rustix::fs::statvfs(&self.spool.folder).map_err(std::io::Error::from);
        let disk = disk.context(Kind::Local, what)?;
        let needed = STAYS_FREE + self.directory.control.segment_size.bytes();
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize) > needed)
    }

    /// Fetches one segment from the first repository that has it and gives it; false when none has.
    async fn fetch(&self, segment: SegmentName) -> Result<bool> {
        let path = self.spool.path(segment);
        let request = Request {
            file: WalFile::Segment(segment),
            destination: &path,
            directory: &self.directory,
            // Whoever takes it looks: what is there by then counts.
            tablespaces: Tablespaces::Any,
            // Recovery syncs what it takes (`xlogarchive.c`, `KeepFileRestoredFromArchive`), and replay would wait
            // for the disk that this keeps busy.
            sync: false,
        };
        let mut failure = None;
        for (name, store) in self.stores.iter() {
            let fetched = match request.serve(store).await {
                Ok(Some(fetched)) => fetched,
                Ok(None) => continue,
                // It is of this host, and so it would be with another repository.
                Err(e) if e.kind() == Kind::Local => return Err(e),
                Err(e) => {
                    failure = Some(e);
                    continue;
                }
            };
            let put = self.spool.put(segment, name, fetched);
            put.context(Kind::Local, || "write to state-dir")?;
            return Ok(true);
        }
        failure.map_or(Ok(false), Err)
    }
}
