//! WAL floors: what expiry has cut.
//!
//! `wal-floor/<n>` says up to where WAL of a system may be gone, but for what kept backups need.
//! Expiry writes one before it removes anything and reads the backups again afterwards; a backup
//! reads the floors after its commit object is written. So one of the two sees the other, whatever
//! happens in between.

use serde::{Deserialize, Serialize};

use super::{Repository, SystemId, catalog::PAGE, layout::ClusterLayout, sealed::read_whole};
use crate::{
    error::{Error, Kind, Result},
    postgres::Lsn,
};

/// A floor as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct WalFloor {
    /// Its format, 1.
    pub format: u32,
    /// The system whose WAL was cut.
    pub system: SystemId,
    /// WAL before here may be gone.
    pub floor: Lsn,
}

/// The highest floor of a system. One that can't be read is an error: WAL may be gone.
pub async fn highest_floor(
    repository: &Repository,
    layout: &ClusterLayout,
    system: SystemId,
) -> Result<Option<Lsn>> {
    let mut highest = None;
    for listed in repository.storage().list(&layout.wal_floor_folder(), None, PAGE).await? {
        let bytes = read_whole(repository, &listed.name).await?.into_bytes();
        let floor: WalFloor = serde_json::from_slice(&bytes).map_err(|e| {
            let address = repository.storage().address();
            Error::new(Kind::Damaged, format!("{} in {address} is damaged: {e}", listed.name))
        })?;
        if floor.system == system {
            highest = highest.max(Some(floor.floor));
        }
    }
    Ok(highest)
}
