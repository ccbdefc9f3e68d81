//! What waits in `pg_wal` behind a file that one repository doesn't take: the others get it all the
//! same.
//!
//! The server offers one file at a time, and the next one only when every repository has that. So
//! while one of them is gone, the others would get nothing more, and no backup could end. What is
//! marked `.ready` in `archive_status` is complete (`xlogarchive.c`, `XLogArchiveNotify`) and may be
//! stored early; the server offers it later, and it is there already. Nothing is acknowledged by
//! this, and nothing below the data directory is touched.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use super::{data_directory::DataDirectory, push::store_in_all, source::Source};
use crate::{
    error::Result,
    postgres::WalFile,
    repo::wal::{WalObject, WalStore},
    storage::ObjectName,
};

/// No file is begun later than this: the server waits for the answer, and asks again soon.
const LONGEST: Duration = Duration::from_secs(30);

/// Stores the files that wait beside the one at `path` in `stores`, the oldest first. What goes wrong
/// is told when the server offers the file itself.
pub(super) async fn store(directory: &DataDirectory, path: &Path, stores: &[&WalStore]) {
    let begun = Instant::now();
    let waiting = waiting(path);
    let mut known = Vec::with_capacity(stores.len());
    for store in stores {
        match there(store, &waiting).await {
            Ok(there) => known.push((*store, there)),
            Err(e) => tracing::warn!("look for what could be stored early: {e}"),
        }
    }
    for file in waiting {
        let without = known.iter().filter(|(_, there)| !there.contains(&file.to_string()));
        let without: Vec<_> = without.map(|(store, _)| *store).collect();
        if without.is_empty() {
            continue;
        }
        if begun.elapsed() > LONGEST {
            tracing::info!("{file} and what follows waits until the server tries again");
            return;
        }
        let beside = path.with_file_name(file.to_string());
        if let Err(e) = store_one(directory, &beside, file, &without).await {
            tracing::warn!("store {file} early: {e}");
        }
    }
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

async fn store_one(
    directory: &DataDirectory,
    path: &Path,
    file: WalFile,
    without: &[&WalStore],
) -> Result<()> {
    let mut source = Source::open(path, file, directory)?;
    source.check_ancestry(without).await?;
    for result in store_in_all(&mut source, without).await? {
        result?;
    }
    Ok(())
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
