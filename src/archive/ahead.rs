//! What waits in `pg_wal` behind the file that the server offers: it is stored ahead, several files at a time.
//!
//! The server offers one file at a time, and the next one when that is stored. What is marked `.ready` in
//! `archive_status` is complete (`xlogarchive.c`, `XLogArchiveNotify`) and may be stored before it is offered. Nothing
//! is acknowledged by this, and nothing below the data directory is touched. When the server offers
//! such a file, [`Proven`] knows that it is durable, or else the file is stored as any other, and found there.
//!
//! It happens within a push, and no process stays behind it: such a one would be the server's own child where
//! the server is process 1 of a container, and its death would be taken for a backend's crash (`postmaster.c`,
//! `CleanupBackend`). What that costs is that nothing is stored during the calls that find their file there.
//!
//! When one repository can't be reached, the server offers the same file again and again. Then the others get
//! what waits all the same, or no backup could end.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::{JoinError, JoinSet};

use super::{
    data_directory::DataDirectory,
    proven::Proven,
    push::{is_left_unfinished, store_in_all},
    source::Source,
    state::Identity,
};
use crate::{
    config::RepositorySettings,
    error::{Context, Error, Kind, Result},
    postgres::{Timeline, WalFile},
    repo::wal::{WalObject, WalStore},
    steps::reached,
    storage::ObjectName,
};

/// No file is begun later than this: the server waits for the answer.
const BRIEF: Duration = Duration::from_secs(2);

/// The same where a repository is away, and the server asks only three times a minute: or as long as it took to see that it is away.
const LONG: Duration = Duration::from_secs(30);

/// How many files are stored at a time: as many where each waits for answers, and on a disk as there are
/// processors. Each holds some MiB.
const AT_ONCE: usize = 4;

/// Stores the files that wait beside the one at `path`, and of whose timeline they are, in all repositories, the
/// oldest first, and notes it. What goes wrong is told when the server offers the file itself. Another timeline's
/// segments wait for their own push, which sees to that timeline's history first.
pub(super) async fn store(
    directory: &Arc<DataDirectory>,
    path: &Path,
    repositories: &[&RepositorySettings],
    stores: &[&WalStore],
    timeline: Timeline,
    proven: &Proven,
) {
    if !proven.is_kept() {
        return;
    }
    proven.sweep();
    let is_new = |file: &WalFile| {
        let may_be_first = file.timeline() == timeline || matches!(file, WalFile::History(_));
        may_be_first && !proven.has(&path.with_file_name(file.to_string()), *file, repositories)
    };
    let files = waiting(path).into_iter().filter(is_new).map(|file| (file, stores.to_vec()));
    let note = |file, identity| proven.note(file, identity, repositories);
    run(directory, path, files, BRIEF, note).await;
}

/// Stores them in the repositories that can be reached, where they aren't yet. The call has taken so long `by_now`.
pub(super) async fn store_in_reachable(
    directory: &Arc<DataDirectory>,
    path: &Path,
    stores: &[&WalStore],
    by_now: Duration,
) {
    let waiting = waiting(path);
    let mut known = Vec::with_capacity(stores.len());
    for store in stores {
        match there(store, &waiting).await {
            Ok(there) => known.push((*store, there)),
            Err(e) => tracing::warn!("look for what could be stored early: {e}"),
        }
    }
    let files = waiting.into_iter().map(|file| {
        let without = known.iter().filter(|(_, there)| !there.contains(&file.to_string()));
        (file, without.map(|(store, _)| *store).collect())
    });
    run(directory, path, files, LONG.max(by_now), |_, _| {}).await;
}

/// Stores each file in its stores, several at a time, and calls `stored` for those that have become durable in
/// all of them.
async fn run<'s>(
    directory: &Arc<DataDirectory>,
    path: &Path,
    files: impl Iterator<Item = (WalFile, Vec<&'s WalStore>)>,
    longest: Duration,
    stored: impl Fn(WalFile, Identity),
) {
    let begun = Instant::now();
    let mut storing: JoinSet<(WalFile, Result<Identity>)> = JoinSet::new();
    let end = |joined: Option<Result<(WalFile, Result<Identity>), JoinError>>| match joined {
        Some(Ok((file, Ok(identity)))) => {
            reached("ahead: stored");
            stored(file, identity);
            reached("ahead: noted");
        }
        Some(Ok((file, Err(e)))) => tracing::warn!("store {file} ahead: {e}"),
        Some(Err(e)) => tracing::warn!("store a file ahead: {e}"),
        None => {}
    };
    for (file, stores) in files.filter(|(_, stores)| !stores.is_empty()) {
        if begun.elapsed() > longest {
            tracing::info!("{file} and what follows waits until the server calls again");
            break;
        }
        if storing.len() >= at_once(&stores) {
            end(storing.join_next().await);
        }
        let directory = Arc::clone(directory);
        let beside = path.with_file_name(file.to_string());
        let stores: Vec<WalStore> = stores.into_iter().cloned().collect();
        storing.spawn(async move { (file, store_one(&directory, beside, file, &stores).await) });
    }
    while !storing.is_empty() {
        end(storing.join_next().await);
    }
}

fn at_once(stores: &[&WalStore]) -> usize {
    let questions =
        |store: &&WalStore| store.repository().storage().capabilities().questions_at_once;
    match stores.iter().map(questions).max() {
        Some(2..) => AT_ONCE,
        _ => std::thread::available_parallelism().map_or(1, usize::from).min(AT_ONCE),
    }
}

async fn store_one(
    directory: &DataDirectory,
    path: PathBuf,
    file: WalFile,
    stores: &[WalStore],
) -> Result<Identity> {
    let stores: Vec<_> = stores.iter().collect();
    // From before it is read: what is changed meanwhile isn't what was stored.
    let identity =
        Identity::of(&path).context(Kind::Local, || format!("look at {}", path.display()))?;
    if let WalFile::Segment(segment) = file
        && is_left_unfinished(&path, segment, directory)?
    {
        let what = format!("{segment} isn't whole, and gets another name when it is offered");
        return Err(Error::new(Kind::Local, what));
    }
    let mut source = Source::open(&path, file, directory)?.on_one_thread();
    source.check_ancestry(&stores).await?;
    for result in store_in_all(&mut source, &stores).await? {
        result?;
    }
    Ok(identity)
}

/// The names of files that a repository has of the timelines that `waiting` is of, from the first
/// of `waiting` on: by listing, since there may be thousands.
async fn there(store: &WalStore, waiting: &[WalFile]) -> Result<BTreeSet<String>> {
    let timelines: BTreeSet<_> = waiting.iter().map(|file| file.timeline()).collect();
    let mut there = BTreeSet::new();
    for timeline in timelines {
        let of_timeline = waiting.iter().filter(|file| file.timeline() == timeline);
        let first = of_timeline.map(|file| store.plain(*file)).min();
        // A listing begins behind a name; without its last letter one sorts right before it.
        let mut after = first.and_then(|first| {
            let name = first.as_str();
            ObjectName::new(name.get(..name.len() - 1)?).ok()
        });
        loop {
            let page = store.page(timeline, after.as_ref()).await?;
            let Some((_, last, _)) = page.last() else { break };
            after = Some(last.clone());
            there.extend(page.iter().filter_map(|(object, ..)| match object {
                WalObject::Plain(file) | WalObject::Content(file, _) => Some(file.to_string()),
                WalObject::Partial(..) | WalObject::Repair(..) | WalObject::Part(..) => None,
            }));
        }
    }
    Ok(there)
}

/// The files beside `path` that the server will offer next: histories, then segments, as it does
/// (`pgarch.c`, `ready_file_comparator`). A partial segment has a name of its own content and waits.
fn waiting(path: &Path) -> Vec<WalFile> {
    let status = path.with_file_name("archive_status");
    let Ok(entries) = fs::read_dir(status) else { return Vec::new() };
    let mut files: Vec<(bool, String, WalFile)> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let name = name.strip_suffix(".ready")?.to_owned();
            let file: WalFile = name.parse().ok()?;
            let is_this = path.file_name().is_some_and(|this| *this == *name);
            let waits = !is_this && !matches!(file, WalFile::Partial(_));
            waits.then_some((!matches!(file, WalFile::History(_)), name, file))
        })
        .collect();
    files.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    files.into_iter().map(|(.., file)| file).collect()
}
