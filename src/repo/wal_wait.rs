//! Waiting until WAL has arrived in a repository.
//!
//! Archiving is PostgreSQL's doing; all that can be done here is to look again. Looking costs one
//! small read, so it starts often and gets rarer.

use std::time::Duration;

use tokio::time::Instant;

use super::wal::{StoredSummary, WalStore};
use crate::{
    error::{Error, Kind, Result},
    postgres::{SegmentName, SegmentSize, Timeline},
};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Waits at most `within` until a whole segment is in the repository, and returns what its object
/// says. An unreachable repository is asked again until the time is up, a damaged object is an
/// error at once.
pub async fn wait_for_segment(
    store: &WalStore,
    segment: SegmentName,
    within: Duration,
) -> Result<StoredSummary> {
    let deadline = Instant::now() + within;
    let mut pause = FIRST_PAUSE;
    loop {
        let looked = store.segment_summary(segment).await;
        let late = Instant::now() >= deadline;
        match looked {
            Ok(Some(summary)) => return Ok(summary),
            Ok(None) if late => return Err(missing(store, segment, within)),
            Err(e) if late || e.kind() != Kind::Repository => return Err(e),
            Ok(None) | Err(_) => {}
        }
        tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Waits until the segments with the numbers `first` to `last` of one timeline are all there.
///
/// `within` is the longest time without an arrival, so a long range that is on its way isn't given
/// up. `on_wait` hears of each segment that wasn't there when it was first looked for.
pub async fn wait_for_range(
    store: &WalStore,
    timeline: Timeline,
    first: u64,
    last: u64,
    size: SegmentSize,
    within: Duration,
    on_wait: &mut (dyn FnMut(SegmentName) + Send),
) -> Result<()> {
    for number in first..=last {
        let segment = size.name(timeline, number);
        match store.segment_summary(segment).await {
            Ok(Some(_)) => continue,
            Ok(None) => on_wait(segment),
            Err(e) if e.kind() == Kind::Repository => tracing::warn!("{e}"),
            Err(e) => return Err(e),
        }
        wait_for_segment(store, segment, within).await?;
    }
    Ok(())
}

fn missing(store: &WalStore, segment: SegmentName, within: Duration) -> Error {
    let repository = store.repository();
    Error::new(
        Kind::Wal,
        format!(
            "WAL segment {segment} didn't arrive in the repository {} at {} within {} s",
            repository.name(),
            repository.storage().address(),
            within.as_secs()
        ),
    )
    .hint("run `pgkeep check`: it says why archiving doesn't work")
    .hint(format!(
        "if the archiver is only slow, raise archive-timeout in [cluster.{}]",
        store.layout().cluster()
    ))
}
