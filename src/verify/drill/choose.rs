//! Which backup is tried, and where the WAL behind it ends.

use chrono::{DateTime, Utc};

use super::DrillRequest;
use crate::{
    error::{Error, Kind, Result},
    postgres::Lsn,
    repo::{
        BackupId, Repository,
        catalog::{self, BackupState},
        id::RandomId,
        layout::ClusterLayout,
        record::BackupRecord,
        replay::Replay,
        timelines::WalInventory,
        wal::WalStore,
        wal_floor::Floors,
    },
    restore::{Target, plan::Plan},
};

/// Which backup is to be tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The newest; with a target, the one that a restore would begin with.
    Latest,
    /// This one.
    Backup(BackupId),
    /// Any.
    Random,
}

/// The backup that was chosen.
pub struct Chosen {
    /// Its id.
    pub id: BackupId,
    /// What it says of itself.
    pub record: Option<Box<BackupRecord>>,
    /// Why that can't be read.
    pub broken: Option<Error>,
}

impl Chosen {
    fn of(record: BackupRecord) -> Self {
        Chosen { id: record.id.clone(), record: Some(Box::new(record)), broken: None }
    }

    fn broken(id: BackupId, e: Error) -> Self {
        let e = e.while_doing(format!("read backup {id}"));
        Chosen { id, record: None, broken: Some(e) }
    }
}

/// Chooses. `None` when the target decides, as it does for a restore.
///
/// A backup whose commit object is damaged is one, and a drill of it fails: the newest isn't simply the
/// newest that is sound.
pub async fn choose(
    repository: &Repository,
    layout: &ClusterLayout,
    request: &DrillRequest,
) -> Result<Option<Chosen>> {
    if request.which == Which::Latest && request.target != Target::Latest {
        return Ok(None);
    }
    let (mut records, mut damaged) = (Vec::new(), Vec::new());
    for entry in catalog::entries(repository, layout).await? {
        match entry.state {
            BackupState::Complete(record) => records.push(*record),
            BackupState::Damaged(e) => damaged.push((entry.id, e)),
            BackupState::Unfinished | BackupState::Deleted => {}
        }
    }
    let (cluster, address) = (layout.cluster(), repository.storage().address());
    let no = |what: String| {
        Error::new(Kind::No, format!("{what} of cluster {cluster} in {address}"))
            .hint("`pgkeep info` lists the backups; is --cluster right?")
    };
    if let Which::Backup(id) = &request.which {
        let of_id = |(_, (damaged, _)): &(usize, &(BackupId, Error))| damaged == id;
        if let Some((at, _)) = damaged.iter().enumerate().find(of_id) {
            let (id, e) = damaged.swap_remove(at);
            return Ok(Some(Chosen::broken(id, e)));
        }
        let found = records.into_iter().find(|record| record.id == *id);
        let found = found.ok_or_else(|| no(format!("there is no backup {id}")))?;
        return Ok(Some(Chosen::of(found)));
    }
    let all = records.len() + damaged.len();
    if all == 0 {
        return Err(no("there is no backup".to_owned()));
    }
    if request.which == Which::Random {
        let at = random_below(all)?;
        return Ok(Some(match at.checked_sub(records.len()) {
            None => Chosen::of(records.swap_remove(at)),
            Some(at) => {
                let (id, e) = damaged.swap_remove(at);
                Chosen::broken(id, e)
            }
        }));
    }
    let newest = catalog::in_order(repository, layout, records).await?.pop();
    // Of one that can't be read nothing but its id's time is known.
    damaged.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(match (newest, damaged.pop()) {
        (Some(newest), Some((id, e))) if id > newest.id => Some(Chosen::broken(id, e)),
        (Some(newest), _) => Some(Chosen::of(newest)),
        (None, Some((id, e))) => Some(Chosen::broken(id, e)),
        (None, None) => None,
    })
}

/// A number from 0 to below `n`. Sixteen random bytes leave no preference worth a thought.
fn random_below(n: usize) -> Result<usize> {
    let random = u128::from_le_bytes(RandomId::random()?.0);
    Ok((random % n.max(1) as u128) as usize)
}

/// Whether expiry keeps a backup only as a point: of WAL behind it nothing is promised any more.
pub async fn is_point(
    repository: &Repository,
    layout: &ClusterLayout,
    record: &BackupRecord,
) -> Result<bool> {
    let floors = Floors::read(repository, layout, record.system).await?;
    Ok(floors.make_point(record))
}

/// Where the WAL ends that a repository has behind a backup.
#[derive(Debug, Clone, Copy)]
pub struct ArchiveEnd {
    /// The end of the last record.
    pub lsn: Lsn,
    /// When the last transaction ended.
    pub transaction: Option<DateTime<Utc>>,
}

/// Looks for it, along the timeline of a plan. `None` when that has no history here.
pub async fn archive_end(
    repository: &Repository,
    layout: &ClusterLayout,
    plan: &Plan,
) -> Result<Option<ArchiveEnd>> {
    let record = plan.record();
    let store = WalStore::new(repository, layout, record.system);
    let inventory = WalInventory::read_what_can_be(&store, record.segment_size).await?;
    let Some(path) = inventory.path(plan.timeline()) else { return Ok(None) };
    let replay = Replay { store: &store, inventory: &inventory, path };
    let reach = replay.end_from(record.segment_size.number_at(record.start_lsn)).await?;
    let transaction = reach.last_transaction.map(|last| last.time);
    Ok(Some(ArchiveEnd { lsn: reach.end, transaction }))
}
