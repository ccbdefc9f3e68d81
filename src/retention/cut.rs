//! Removing WAL that no backup needs any more.
//!
//! The floor is written first, then the repository is looked at once more, and only what both looks
//! let go is removed: see [`crate::repo::wal_floor`].

use std::collections::BTreeMap;

use super::{
    amount::{Amount, Removed, remove_all},
    plan::Cut,
};
use crate::{
    error::Result,
    postgres::{Lsn, SegmentSize, Timeline, WalFile},
    repo::{
        Repository, SystemId,
        layout::ClusterLayout,
        wal::{WalObject, WalStore},
        wal_floor::Floors,
    },
    steps::reached,
    storage::{Listed, ObjectName},
};

/// What a cut takes, as the repository is now. Changes nothing.
pub(super) async fn preview(
    repository: &Repository,
    layout: &ClusterLayout,
    cut: &Cut,
    size: SegmentSize,
) -> Result<Amount> {
    let mut amount = Amount::default();
    let mut pages = Pages::of(repository, layout, cut, size);
    while let Some(page) = pages.next().await? {
        page.iter().for_each(|object| amount.add(object));
    }
    Ok(amount)
}

/// Says that the WAL of these cuts, all of one system, may be gone.
pub(super) async fn write_floor(
    repository: &Repository,
    layout: &ClusterLayout,
    system: SystemId,
    cuts: &[&Cut],
) -> Result<()> {
    let raised: BTreeMap<Timeline, Lsn> =
        cuts.iter().map(|cut| (cut.timeline, cut.floor)).collect();
    let mut floors = Floors::read(repository, layout, system).await?;
    floors.write(repository, layout, system, &raised).await?;
    reached("expire: the floor is raised");
    Ok(())
}

/// What two cuts of the same timeline both take.
pub(super) fn both(one: &Cut, other: &Cut) -> Cut {
    let lower = if one.first_kept < other.first_kept { one } else { other };
    let spared = one.spared.iter().chain(&other.spared).copied().collect();
    Cut { spared, ..lower.clone() }
}

/// Removes what a cut takes.
pub(super) async fn remove(
    repository: &Repository,
    layout: &ClusterLayout,
    cut: &Cut,
    size: SegmentSize,
) -> Result<Removed> {
    let mut removed = Removed::default();
    let mut pages = Pages::of(repository, layout, cut, size);
    while let Some(page) = pages.next().await? {
        removed.add(remove_all(repository, &page).await?);
    }
    Ok(removed)
}

/// The objects that a cut takes, in pages. History files are never among them: without one an id
/// may be given out again.
struct Pages<'c> {
    store: WalStore,
    cut: &'c Cut,
    size: SegmentSize,
    after: Option<ObjectName>,
}

impl<'c> Pages<'c> {
    fn of(
        repository: &Repository,
        layout: &ClusterLayout,
        cut: &'c Cut,
        size: SegmentSize,
    ) -> Self {
        Pages { store: WalStore::new(repository, layout, cut.system), cut, size, after: None }
    }

    /// The next page; `None` behind the last one.
    async fn next(&mut self) -> Result<Option<Vec<Listed>>> {
        let page = self.store.page(self.cut.timeline, self.after.as_ref()).await?;
        let Some((_, last, _)) = page.last() else { return Ok(None) };
        self.after = Some(last.clone());
        let goes = page.into_iter().filter_map(|(object, name, size)| {
            let number = number(&object, self.size)?;
            self.cut.takes(number).then_some(Listed { name, size })
        });
        Ok(Some(goes.collect()))
    }
}

/// The number of the segment that an object belongs to; `None` for history files and for what isn't
/// a segment of this size.
fn number(object: &WalObject, size: SegmentSize) -> Option<u64> {
    match object.file() {
        WalFile::Segment(segment)
        | WalFile::Partial(segment)
        | WalFile::BackupHistory(segment, _) => segment.number(size),
        WalFile::History(_) => None,
    }
}
