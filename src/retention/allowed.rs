//! Whether this host may remove anything at all.

use crate::{
    error::{Error, Result},
    repo::{Repository, id::RandomId, layout::ClusterLayout},
};

/// Makes sure that objects may be removed here, by removing one that nobody has. A mark says for ever
/// that a backup is deleted, so who may store one and remove nothing is refused before it does.
///
/// In a bucket with versions only the right to list them shows.
pub async fn may_remove(repository: &Repository, layout: &ClusterLayout) -> Result<()> {
    let nothing = layout.lease(RandomId::random()?);
    repository
        .storage()
        .delete(&nothing)
        .await
        .map_err(|e| Error::from(e).while_doing("ask whether anything may be removed here"))
}
