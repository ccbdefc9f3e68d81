//! What killed processes left of objects that they never finished.
//!
//! Nobody sees it, since an object has its name only with all its content; but a bucket keeps, and
//! bills, the parts of an upload until somebody says that it is over.

use std::time::Duration;

use super::{Repository, layout::ClusterLayout};
use crate::storage::ErrorKind;

/// An upload that began longer ago belongs to nobody. A pack is open until it has 256 MiB, or until its backup ends, which
/// in a slow one that changes little may take days.
const AGE: Duration = Duration::from_secs(7 * 86_400);

/// Removes what is left of a cluster's objects. That it couldn't be is no reason for anything else
/// to fail.
pub async fn remove(repository: &Repository, layout: &ClusterLayout) {
    match repository.storage().remove_leftovers(&layout.folder(), AGE).await {
        Ok(0) => {}
        Ok(n) => tracing::info!("removed {n} uploads that a killed process had left"),
        // Who may only add may not look for it either; somebody else has to.
        Err(e) if e.kind == ErrorKind::Denied => tracing::info!("{e}"),
        Err(e) => tracing::warn!("look for uploads that a killed process has left: {e}"),
    }
}
