//! Gaps in the archive that `pg_wal` can still close.
//!
//! A server archives what its own timeline ends. What the old primary hadn't archived before a failover is in the new
//! one's `pg_wal`, but a standby with `archive_mode = on` marks what it receives as done (`walreceiver.c`,
//! `XLogArchiveForceDone`), so nobody would ever store it. So each push looks whether the segment before its own is
//! there, and if it isn't, stores what `pg_wal` has from there backwards.

use std::path::Path;

use super::{data_directory::DataDirectory, push::store_as, source::Source, state::Identity};
use crate::{
    error::{Context, Error, Kind, Result},
    postgres::{SegmentName, SegmentSize, Timeline, WalFile, history::TimelineHistory},
    repo::{
        wal::{WalObject, WalStore},
        wal_floor::Floors,
    },
    steps::reached,
};

/// How many segments one push stores beside its own.
const MOST: usize = 64;

/// Stores what is missing before `file`, the one at `path`, and is beside it, in each of `stores`. The results are
/// in their order: whether it could be told what is missing. What then can't be stored is a warning, since
/// the file itself must not wait for it.
pub async fn before(
    directory: &DataDirectory,
    path: &Path,
    file: WalFile,
    stores: &[&WalStore],
) -> Vec<Result<()>> {
    let mut results = Vec::with_capacity(stores.len());
    for store in stores {
        results.push(match file {
            WalFile::Segment(segment) | WalFile::Partial(segment) => {
                heal(directory, path, segment, store).await
            }
            WalFile::History(_) | WalFile::BackupHistory(..) => Ok(()),
        });
    }
    results
}

async fn heal(
    directory: &DataDirectory,
    path: &Path,
    segment: SegmentName,
    store: &WalStore,
) -> Result<()> {
    let size = directory.control.segment_size;
    let Some(number) = segment.number(size) else { return Ok(()) };
    let beside = |name: SegmentName| path.with_file_name(name.to_string());
    let history = history(path, segment.timeline);
    let name_of = |number: u64| match &history {
        Some(history) => size.name(history.timeline_of_segment(number, size), number),
        None => size.name(segment.timeline, number),
    };
    let (mut missing, mut is_gap) = (Vec::new(), false);
    for number in (0..number).rev().take(MOST) {
        let name = name_of(number);
        is_gap = match store.has(WalFile::Segment(name)).await {
            // There are two: what is to become of them is no business of this segment's.
            Err(e) if e.kind() == Kind::Conflict => {
                tracing::warn!("{e}");
                true
            }
            has => has?,
        };
        if is_gap || !beside(name).exists() {
            break;
        }
        missing.push(name);
    }
    let Some(last) = missing.first().copied() else { return Ok(()) };
    // What has expired isn't missing, and neither is what lies before all WAL that is there: archiving began
    // behind it.
    let (floors, damage) =
        Floors::read_sound(store.repository(), store.layout(), store.system()).await?;
    if let Some(damage) = damage {
        // What has expired is stored once more then, which is better than what is missing not to be.
        tracing::warn!("{damage}");
    }
    missing.retain(|name| {
        name.number(size).is_some_and(|n| size.start_of(n) >= floors.of(name.timeline))
    });
    let is_behind_a_floor = floors.of(last.timeline).is_valid();
    if missing.is_empty()
        || !(is_gap || is_behind_a_floor || has_earlier(store, last, size).await?)
    {
        return Ok(());
    }
    for name in missing.into_iter().rev() {
        let repository = store.repository().name();
        match store_one(directory, &beside(name), name, store).await {
            Ok(()) => {
                tracing::warn!("{name} was missing in repository {repository}: it is stored now")
            }
            Err(e) => tracing::warn!("{name} is missing in repository {repository}: {e}"),
        }
    }
    Ok(())
}

async fn store_one(
    directory: &DataDirectory,
    path: &Path,
    name: SegmentName,
    store: &WalStore,
) -> Result<()> {
    // It is marked as done, and so the server may take it for another segment at any checkpoint, and write to it.
    let before = Identity::of(path).context(Kind::Local, || path.display().to_string())?;
    let mut source = Source::open(path, WalFile::Segment(name), directory)?;
    source.check_ancestry(&[store]).await?;
    let summary = source.summary()?;
    if Identity::of(path).ok() != Some(before) {
        let what = format!("{} was used for another segment just now", path.display());
        return Err(Error::new(Kind::Local, what));
    }
    let stored = store_as(&mut source, &[store], &[], Some(summary)).await?;
    reached("heal: stored");
    stored.into_iter().try_for_each(|stored| stored.map(drop))
}

fn history(path: &Path, timeline: Timeline) -> Option<TimelineHistory> {
    let bytes = std::fs::read(path.with_file_name(timeline.history_file())).ok()?;
    TimelineHistory::parse(timeline, &bytes).ok()
}

/// Whether there is any segment before this one, of its timeline or of one before that.
async fn has_earlier(store: &WalStore, segment: SegmentName, size: SegmentSize) -> Result<bool> {
    for timeline in store.timelines().await? {
        if timeline > segment.timeline {
            break;
        }
        let mut after = None;
        loop {
            let page = store.page(timeline, after.as_ref()).await?;
            let Some((_, last, _)) = page.last() else { break };
            after = Some(last.clone());
            let number_of = |object: &WalObject| match object.file() {
                WalFile::Segment(name) => name.number(size),
                _ => None,
            };
            let is_earlier = |number| Some(number) < segment.number(size);
            if page.iter().filter_map(|(object, ..)| number_of(object)).any(is_earlier) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
