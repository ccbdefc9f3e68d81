//! Letting old results of drills go: the newest [`KEPT`] of a cluster stay.

use super::amount::{Amount, Removed, remove_all};
use crate::{
    error::Result,
    repo::{
        Repository,
        drill::{KEPT, listed},
        layout::ClusterLayout,
    },
    storage::Listed,
};

/// Counts what would go.
pub(super) async fn preview(repository: &Repository, layout: &ClusterLayout) -> Result<Amount> {
    let mut amount = Amount::default();
    old(repository, layout).await?.iter().for_each(|object| amount.add(object));
    Ok(amount)
}

/// Removes them; what object lock holds stays.
pub(super) async fn remove(repository: &Repository, layout: &ClusterLayout) -> Result<Removed> {
    remove_all(repository, &old(repository, layout).await?).await
}

async fn old(repository: &Repository, layout: &ClusterLayout) -> Result<Vec<Listed>> {
    let mut all = listed(repository, layout).await?;
    all.truncate(all.len().saturating_sub(KEPT));
    Ok(all)
}
