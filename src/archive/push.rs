//! `archive-push`: one file of `pg_wal` into every repository.
//!
//! Success means that each of them holds the file durably; where one fails, the others get theirs all
//! the same. What waits behind it is stored ahead ([`super::ahead`]), and what is missing before it, too
//! ([`super::heal`]). Nothing is queued, nothing below the data directory is touched. A file that was stored before is a success again, since PostgreSQL offers a
//! file once more after a crash, and since the push before may have been killed after storing it; to
//! be sure that what is there is the file and durable, all of it is read. Other content under the
//! same name is refused and the stored one stays.

use std::{
    fs::{self, File},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use futures_util::future::join_all;

use super::{
    ahead,
    data_directory::DataDirectory,
    heal,
    proven::Proven,
    source::Source,
    state::Identity,
    store::{create_in_all, lost_result},
};
use crate::{
    config::{ClusterSettings, RepositorySettings},
    error::{Context, Error, Kind, Result},
    postgres::{SegmentName, Timeline, WalFile, history::TimelineHistory, wal::scan_file},
    repo::{
        SystemId,
        catalog::{exists, systems},
        layout::ClusterLayout,
        open::{open_in, storage},
        repository::Names,
        sealed::open_whole,
        wal::{StoredSummary, WalStore},
        wal_taken::{Stored, settle},
    },
    steps::reached,
    storage::{Range, Storage},
};

/// What a push did.
#[derive(Debug, Clone)]
pub struct PushOutcome {
    /// The file.
    pub file: WalFile,
    /// Its length in bytes.
    pub size: u64,
    /// The system it is of.
    pub system: SystemId,
    /// The repositories by name, and what became of it there.
    pub stored: Vec<(String, Stored)>,
}

/// Stores the file at `path` in every repository. `path` is as PostgreSQL gives it: `pg_wal/NAME`
/// in the data directory, or absolute. `state_dir` is where it is noted what was stored ahead.
///
/// Fails with [`Kind::Conflict`] when the file is of another system than the data directory, when
/// the system isn't registered in a repository, or when other content is stored under the name.
pub async fn push(
    repositories: &[&RepositorySettings],
    cluster: &ClusterSettings,
    state_dir: &Path,
    path: &Path,
) -> Result<PushOutcome> {
    if repositories.is_empty() {
        return Err(Error::new(Kind::Usage, "no repository is configured"));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let wal: WalFile = name
        .parse()
        .map_err(|e| Error::new(Kind::Usage, format!("push {}", path.display())).because(e))?;
    let directory = Arc::new(DataDirectory::of_wal_path(path, cluster)?);
    directory.check_configured(cluster)?;
    let mut source = Source::open(path, wal, &directory)?;
    let layout = ClusterLayout::new(&cluster.name)?;
    let system = directory.system;
    let proven = Proven::of(state_dir, &directory, cluster);
    if proven.has(path, wal, repositories) {
        reached("push: known to be stored");
        let stored = repositories.iter().map(|r| (r.name.clone(), Stored::Already)).collect();
        return Ok(PushOutcome { file: wal, size: source.size(), system, stored });
    }
    let wal = match wal {
        WalFile::Segment(segment) if is_left_unfinished(path, segment, &directory)? => {
            tracing::info!("{segment} is where its timeline was left: stored as a partial one");
            let wal = WalFile::Partial(segment);
            source = Source::open(path, wal, &directory)?;
            wal
        }
        wal => wal,
    };

    let lacking = AtomicUsize::new(repositories.len());
    let begun = Instant::now();
    let each = repositories.iter();
    let opening = join_all(each.map(|settings| open_for(wal, settings, &layout, system, &lacking)));
    let opened = match one_level(repositories) {
        Some(level) => {
            let is_wanted = || lacking.load(Ordering::Relaxed) > 0;
            source.compress_during(level, is_wanted, opening).await
        }
        None => opening.await,
    };
    let (mut stores, there): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
    let open: Vec<_> = stores.iter().filter_map(|store| store.as_ref().ok()).collect();
    source.check_ancestry(&open).await?;
    reached("push: opened");
    if !matches!(wal, WalFile::History(_)) {
        store_history(&directory, (repositories, &mut stores), path, wal.timeline(), &proven).await;
    }
    let both = stores.iter().zip(there);
    let (open, there): (Vec<_>, Vec<_>) =
        both.filter_map(|(store, there)| Some((store.as_ref().ok()?, there))).unzip();
    let storing = store_where_missing(&mut source, &open, &there);
    let (results, healed) = tokio::join!(storing, heal::before(&directory, path, wal, &open));
    reached("push: stored");
    let both = results?.into_iter().zip(healed);
    let mut results =
        both.map(|(stored, healed)| stored.and_then(|stored| healed.map(|()| stored)));
    let mut stored = Vec::with_capacity(repositories.len());
    let (mut healthy, mut failed) = (Vec::new(), Vec::new());
    // What is wrong with a repository keeps the others from nothing; what is wrong with the file does.
    let mut is_files = false;
    for (settings, store) in repositories.iter().zip(stores) {
        let is_open = store.is_ok();
        let result = store.and_then(|store| {
            let result = results.next().unwrap_or_else(|| Err(lost_result()));
            result.map(|what| (store, what))
        });
        match result {
            Ok((store, what)) => {
                stored.push((settings.name.clone(), what));
                healthy.push(store);
            }
            Err(e) => {
                is_files |= is_open && !matches!(e.kind(), Kind::Repository | Kind::Denied);
                failed.push(e.while_doing(format!("push {wal} to repository {}", settings.name)));
            }
        }
    }
    let healthy: Vec<_> = healthy.iter().collect();
    let Some(failure) = merge(failed) else {
        ahead::store(&directory, path, repositories, &healthy, wal.timeline(), &proven).await;
        reached("push: done");
        return Ok(PushOutcome { file: wal, size: source.size(), system, stored });
    };
    if !is_files && !healthy.is_empty() {
        ahead::store_in_reachable(&directory, path, &healthy, begun.elapsed()).await;
    }
    Err(failure)
}

/// Whether another timeline leaves this segment's inside or before it, as a history beside it says, and it isn't whole.
/// PostgreSQL gives such a one `.partial` for its name when it promotes (`CleanupAfterArchiveRecovery` in
/// `xlog.c`), but not what it has offered for archiving before: with `archive_mode = always` all that was
/// restored. It would offer it for ever, and nothing behind it.
pub(super) fn is_left_unfinished(
    path: &Path,
    segment: SegmentName,
    directory: &DataDirectory,
) -> Result<bool> {
    let size = directory.control.segment_size;
    let what = || format!("look at {}", path.display());
    let beside = path.with_file_name(".");
    let mut is_left = false;
    for entry in fs::read_dir(beside).context(Kind::Local, what)?.flatten() {
        let name = entry.file_name();
        let Some(Ok(WalFile::History(timeline))) = name.to_str().map(str::parse) else { continue };
        let Ok(bytes) = fs::read(entry.path()) else { continue };
        let Ok(history) = TimelineHistory::parse(timeline, &bytes) else { continue };
        let end = history.end_of(segment.timeline).flatten();
        // The record at the end may go on into the next one, of which there may be a part as well.
        let is_behind = |end| segment.number(size).is_some_and(|n| end < size.start_of(n + 1));
        is_left |= end.is_some_and(is_behind);
    }
    if !is_left {
        return Ok(false);
    }
    let mut file = File::open(path).context(Kind::Local, what)?;
    let summary = scan_file(&mut file, segment, size).context(Kind::Local, what)?;
    Ok(summary.parsed && !summary.whole)
}

/// Stores the history of a segment's timeline before the segment, where it isn't yet: without it
/// nobody knows where that WAL belongs. The server offers it by itself, but not when the timeline
/// began while archiving was off. Where it is there it has to be the same: two servers that took the same timeline's
/// number, at different places, mustn't have their segments taken for those of one.
///
/// A repository that can't be given it is one that fails: its store becomes the error.
async fn store_history(
    directory: &DataDirectory,
    (repositories, stores): (&[&RepositorySettings], &mut [Result<WalStore>]),
    path: &Path,
    timeline: Timeline,
    proven: &Proven,
) {
    let file = WalFile::History(timeline);
    let beside = path.with_file_name(timeline.history_file());
    if timeline == Timeline(1) || proven.has(&beside, file, repositories) {
        return;
    }
    let open = || stores.iter().filter_map(|store| store.as_ref().ok());
    let Ok(identity) = Identity::of(&beside) else {
        for store in open() {
            if matches!(store.has(file).await, Ok(false)) {
                tracing::warn!("{} is neither here nor in the archive", timeline.history_file());
            }
        }
        return;
    };
    let targets: Vec<&WalStore> = open().collect();
    let stored =
        async { store_in_all(&mut Source::open(&beside, file, directory)?, &targets).await };
    let doing = format!("store {} first", timeline.history_file());
    let mut results = Vec::with_capacity(targets.len());
    match stored.await {
        Ok(stored) => results.extend(stored.into_iter().map(|stored| stored.map(drop))),
        // It can't be read here. Where it is there, that is no reason to store nothing.
        Err(e) => {
            for store in &targets {
                let is_there = matches!(store.has(file).await, Ok(true));
                let lacking = || Err(Error::new(e.kind(), e.to_string()));
                results.push(if is_there { Ok(()) } else { lacking() });
            }
        }
    }
    let mut results = results.into_iter();
    for store in stores.iter_mut().filter(|store| store.is_ok()) {
        if let Err(e) = results.next().unwrap_or_else(|| Err(lost_result())) {
            *store = Err(e.while_doing(&doing));
        }
    }
    if stores.iter().all(Result::is_ok) {
        proven.note(file, identity, repositories);
    }
}

/// Opens a repository for a file, and asks meanwhile whether it has that: `None` where the name alone doesn't say.
/// Should it come into being in between, its creation is refused. One that has it is one less of those `lacking` it.
async fn open_for(
    wal: WalFile,
    settings: &RepositorySettings,
    layout: &ClusterLayout,
    system: SystemId,
    lacking: &AtomicUsize,
) -> (Result<WalStore>, Option<bool>) {
    let storage = match storage(&settings.location) {
        Ok(storage) => storage,
        Err(e) => return (Err(e), None),
    };
    let there = async {
        if matches!(wal, WalFile::Partial(_)) {
            return None;
        }
        match storage.size(&layout.wal_file(system, wal)).await {
            Ok(_) => {
                lacking.fetch_sub(1, Ordering::Relaxed);
                Some(true)
            }
            Err(e) if e.is_not_found() => Some(false),
            Err(_) => None,
        }
    };
    let opening = open_store_in(Arc::clone(&storage), settings, layout, system);
    let (store, there) = tokio::join!(opening, there);
    let is_plain = |store: &WalStore| store.repository().names() == Names::Plain;
    let there = there.filter(|_| store.as_ref().is_ok_and(is_plain));
    (store, there)
}

/// The level that all of them compress with, if it is one.
fn one_level(repositories: &[&RepositorySettings]) -> Option<i32> {
    let mut levels = repositories.iter().map(|settings| settings.compression_level);
    let first = levels.next()?;
    levels.all(|level| level == first).then_some(first)
}

/// Opens a repository and makes sure that the system is one of the cluster's there.
pub(super) async fn open_store(
    settings: &RepositorySettings,
    layout: &ClusterLayout,
    system: SystemId,
) -> Result<WalStore> {
    open_store_in(storage(&settings.location)?, settings, layout, system).await
}

async fn open_store_in(
    storage: Arc<dyn Storage>,
    settings: &RepositorySettings,
    layout: &ClusterLayout,
    system: SystemId,
) -> Result<WalStore> {
    let registration = layout.system(system);
    let opening = open_in(Arc::clone(&storage), settings);
    let (repository, early) = tokio::join!(opening, storage.read(&registration, Range::All));
    let repository = repository?;
    let registered = match early {
        Ok(registered) => Some(registered),
        // Before the repository was seen to be there this says nothing: a disk may have been mounted since.
        Err(_) => match storage.read(&registration, Range::All).await {
            Err(e) if e.is_not_found() => None,
            read => Some(read?),
        },
    };
    let Some(registered) = registered else {
        let others: Vec<_> =
            systems(&repository, layout).await?.iter().map(ToString::to_string).collect();
        let message = match others.as_slice() {
            [] => format!("the system {system} isn't registered for cluster {}", layout.cluster()),
            others => format!(
                "the system {system} isn't registered for cluster {}, which has {}",
                layout.cluster(),
                others.join(", ")
            ),
        };
        let error = Error::new(Kind::Conflict, message);
        return Err(match others.as_slice() {
            [] => error.hint("run `pgkeep check` once: it registers the system"),
            _ => error
                .hint(
                    "if it is another cluster, give it a section [cluster.NAME] with its pgdata, or \
                     name it by --cluster in archive_command",
                )
                .hint("if it is the same one after pg_upgrade or initdb: pgkeep check --new-system"),
        });
    };
    open_whole(&repository, &registration, &registered)?;
    Ok(WalStore::new(&repository, layout, system))
}

/// Stores a file where it isn't yet. The results are in the order of `stores`.
pub(super) async fn store_in_all(
    source: &mut Source,
    stores: &[&WalStore],
) -> Result<Vec<Result<Stored>>> {
    store_where_missing(source, stores, &[]).await
}

/// As [`store_in_all`], where of some it is known whether the file is there.
async fn store_where_missing(
    source: &mut Source,
    stores: &[&WalStore],
    known: &[Option<bool>],
) -> Result<Vec<Result<Stored>>> {
    let wal = source.wal();
    // Where the name has the checksum, the file is read twice: a partial one, which comes once a
    // promotion, or all where the storage overwrites.
    let is_partial = matches!(wal, WalFile::Partial(_));
    let named = |store: &WalStore| store.repository().names() == Names::Content;
    let summary = match is_partial || stores.iter().any(|store| named(store)) {
        true => Some(source.summary()?),
        false => None,
    };
    store_as(source, stores, known, summary).await
}

/// Stores the file where it isn't, if it has the `summary` that it had when it was read before.
pub(super) async fn store_as(
    source: &mut Source,
    stores: &[&WalStore],
    known: &[Option<bool>],
    summary: Option<StoredSummary>,
) -> Result<Vec<Result<Stored>>> {
    let wal = source.wal();
    let is_partial = matches!(wal, WalFile::Partial(_));
    let mut results = Vec::with_capacity(stores.len());
    let (mut missing, mut names) = (Vec::new(), Vec::new());
    for (index, store) in stores.iter().enumerate() {
        let name = summary.as_ref().map_or_else(|| store.plain(wal), |s| store.object_of(wal, s));
        let there = match known.get(index).copied().flatten() {
            Some(there) => Ok(there),
            None if is_partial => exists(store.repository(), &name).await,
            None => store.has(wal).await,
        };
        if matches!(there, Ok(false)) {
            missing.push(index);
            names.push((*store, name));
        }
        results.push(there.map(|_| Stored::Already));
    }
    // Also where nothing is missing: the file's checksum is needed to compare.
    let (summary, created) = create_in_all(source, &names, summary.as_ref()).await?;
    for ((index, (store, name)), result) in missing.into_iter().zip(&names).zip(created) {
        results[index] = match result {
            Ok(stored) => store.prove_alone(wal, name).await.map(|()| stored),
            Err(e) => Err(e),
        };
    }
    for (store, result) in stores.iter().zip(&mut results) {
        if matches!(result, Ok(Stored::Already)) {
            *result = settle(source, store, wal, &summary).await;
        }
    }
    Ok(results)
}

/// One error that says them all, of the first one's kind.
fn merge(errors: Vec<Error>) -> Option<Error> {
    let mut errors = errors.into_iter();
    let first = errors.next()?;
    Some(errors.fold(first, |all, next| {
        let mut merged = Error::new(all.kind(), format!("{all}; {next}"));
        for hint in all.hints().iter().chain(next.hints()) {
            if !merged.hints().contains(hint) {
                merged = merged.hint(hint);
            }
        }
        merged
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{KeySource, Location, RetentionSettings};

    #[test]
    fn one_frame_serves_only_repositories_of_one_level() {
        let at = |compression_level| RepositorySettings {
            name: "main".into(),
            location: Location::Directory("/repository".into()),
            key: KeySource::Unencrypted,
            compression_level,
            retention: RetentionSettings::NONE,
        };
        let (one, other) = (at(1), at(3));
        assert_eq!(one_level(&[&one]), Some(1));
        assert_eq!(one_level(&[&other, &other]), Some(3));
        assert_eq!(one_level(&[&one, &one, &other]), None);
    }
}
