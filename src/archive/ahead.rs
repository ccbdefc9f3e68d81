//! What waits in `pg_wal` behind a file that one repository doesn't take: the others get it all the
//! same.
//!
//! The server offers one file at a time, and the next one only when every repository has that. So
//! while one of them is gone, the others would get nothing more, and no backup could end. What is
//! marked `.ready` in `archive_status` is complete (`xlogarchive.c`, `XLogArchiveNotify`) and may be
//! stored early; the server offers it later, and it is there already. Nothing is acknowledged by
//! this, and nothing below the data directory is touched.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use super::{data_directory::DataDirectory, push::store_in_all, source::Source};
use crate::{error::Result, postgres::WalFile, repo::wal::WalStore};

/// No file is begun later than this: the server waits for the answer, and asks again soon.
const LONGEST: Duration = Duration::from_secs(30);

/// Stores the files that wait beside the one at `path` in `stores`, the oldest first. What goes wrong
/// is told when the server offers the file itself.
pub(super) async fn store(directory: &DataDirectory, path: &Path, stores: &[&WalStore]) {
    let begun = Instant::now();
    for file in waiting(path) {
        if begun.elapsed() > LONGEST {
            tracing::info!("{file} and what follows waits until the server tries again");
            return;
        }
        match store_one(directory, &path.with_file_name(file.to_string()), file, stores).await {
            Ok(()) => {}
            Err(e) => return tracing::warn!("store {file} early: {e}"),
        }
    }
}

async fn store_one(
    directory: &DataDirectory,
    path: &Path,
    file: WalFile,
    stores: &[&WalStore],
) -> Result<()> {
    let mut without = Vec::new();
    for store in stores {
        if !store.has(file).await? {
            without.push(*store);
        }
    }
    if without.is_empty() {
        return Ok(());
    }
    let mut source = Source::open(path, file, directory)?;
    source.check_ancestry(&without).await?;
    for result in store_in_all(&mut source, &without).await? {
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
