//! Object lock: what a backup uses has to be held as long as the backup itself.
//!
//! On a bucket that holds objects for a time, each pack is held from when it was stored. An
//! incremental backup that is stored later is held longer than the older packs that it uses, so their
//! time is extended to its own, before it is committed.

use chrono::{DateTime, Utc};

use crate::{
    error::{Error, Kind, Result},
    repo::{Repository, layout::ClusterLayout, manifest::Manifest, named::Part},
};

/// Extends the retention of all older packs in `manifest`, which has been stored, to that of the
/// manifest. Until when all that it uses is held, which is until the first of its own objects, stored when it began, isn't
/// any more; `None` where nothing is held. An error means that it isn't known, or that some of them could not be
/// extended.
pub async fn protect(
    repository: &Repository,
    layout: &ClusterLayout,
    manifest: &Manifest,
) -> Result<Option<DateTime<Utc>>> {
    let storage = repository.storage();
    let own = &manifest.facts.backup;
    let Some(until) = storage.retained_until(&layout.of_backup(own, "manifest")).await? else {
        return Ok(None);
    };
    let mut unheld = None;
    for used in manifest.references.iter().filter(|used| used.backup != *own) {
        let pack = layout.pack(&used.backup, used.pack);
        let is_held = storage
            .extend_retention(&pack, until)
            .await
            .map_err(|e| Error::from(e).while_doing("hold what the backup uses of older ones"))?;
        if !is_held {
            unheld.get_or_insert(pack);
        }
    }
    if let Some(pack) = unheld {
        let what = format!("{pack} isn't held: it was stored before the bucket held anything");
        return Err(Error::new(Kind::Repository, what).hint("a full backup uses nothing older"));
    }
    let begun = storage.retained_until(&layout.of_backup(own, Part::Begin.as_str())).await?;
    Ok(begun.map(|begun| begun.min(until)))
}
