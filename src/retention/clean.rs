//! Cleaning up after backups that crashed.
//!
//! A lease that nobody renews says that a backup has crashed, and may be wrong: its process may only
//! have been asleep. So the lease decides nothing but whether to try. The folder is claimed first, and
//! left alone when its commit object turns out to be there; then it goes the way of every deleted
//! backup. A process that wakes up finds the mark, or its `begin` gone, and fails.

use chrono::Utc;

use super::{
    delete::live_lease,
    sweep::{Swept, sweep},
};
use crate::{
    error::Result,
    progress::Progress,
    repo::{
        BackupId, Repository,
        catalog::{self, BackupState},
        layout::ClusterLayout,
        lease::{Lease, leases},
        leftovers,
        tombstone::{abandon, mark_deleted},
    },
    storage::ErrorKind,
};

/// The backups that seem to have crashed, and all leases.
pub(super) async fn crashed(
    repository: &Repository,
    layout: &ClusterLayout,
) -> Result<(Vec<BackupId>, Vec<Lease>)> {
    // The leases afterwards: a backup that begins in between is seen to be running.
    let entries = catalog::entries(repository, layout).await?;
    let leases = leases(repository, layout).await?;
    let crashed = entries.into_iter().filter(|entry| {
        matches!(entry.state, BackupState::Unfinished) && live_lease(&leases, &entry.id).is_none()
    });
    Ok((crashed.map(|entry| entry.id).collect(), leases))
}

/// Removes what crashed backups have left, and what nobody refers to of deleted ones.
pub async fn clean_up(
    repository: &Repository,
    layout: &ClusterLayout,
    progress: &dyn Progress,
) -> Result<Vec<Swept>> {
    let (crashed, leases) = crashed(repository, layout).await?;
    for id in crashed {
        if abandon(repository, layout, &id).await? {
            tracing::info!("backup {id} has crashed: removing what it has stored");
            mark_deleted(repository, layout, &id).await?;
        }
    }
    let mut swept = sweep(repository, layout, progress).await?;
    swept.retain(|swept| swept.freed.objects + swept.held.objects > 0);
    // Leases of processes that are dead. One that is only asleep makes its lease anew.
    let now = Utc::now();
    for lease in leases.iter().filter(|lease| !lease.is_alive(now)) {
        match repository.storage().delete(&layout.lease(lease.id)).await {
            Err(e) if e.kind == ErrorKind::Locked => {}
            result => result?,
        }
    }
    leftovers::remove(repository, layout).await;
    Ok(swept)
}
