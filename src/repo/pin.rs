//! Pins: what keeps a backup from being deleted and from expiring, for ever or until a date.
//!
//! Each pin is an object of its own, `pins/<backup>-<random>`, and a backup is pinned as long as one
//! of them holds. A pin that can't be read holds: whoever made it had a reason.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    BackupId, Repository,
    catalog::PAGE,
    id::RandomId,
    layout::ClusterLayout,
    lease::this_host,
    sealed::{put_sealed, read_whole},
};
use crate::{
    error::{Context, Kind, Result},
    storage::ObjectName,
};

/// A pin as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Pin {
    /// Its format, 1.
    pub format: u32,
    /// The backup that it holds.
    pub backup: BackupId,
    /// Until when it holds; for ever if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
    /// When it was made.
    pub made: DateTime<Utc>,
    /// The host on which it was made.
    pub host: String,
}

/// A pin in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPin {
    /// The object.
    pub name: ObjectName,
    /// The backup that it holds.
    pub backup: BackupId,
    /// Until when it holds; for ever if there is none, or if it can't be read.
    pub until: Option<DateTime<Utc>>,
}

impl StoredPin {
    /// Whether it holds its backup.
    pub fn holds(&self, now: DateTime<Utc>) -> bool {
        self.until.is_none_or(|until| until > now)
    }
}

/// Stores a pin. It holds from the moment on in which it is there, beside those there are.
pub async fn put_pin(
    repository: &Repository,
    layout: &ClusterLayout,
    backup: &BackupId,
    until: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<ObjectName> {
    let pin = Pin { format: 1, backup: backup.clone(), until, made: now, host: this_host() };
    let json = serde_json::to_vec(&pin).context(Kind::Internal, || "write a pin")?;
    let name = layout.pin(backup, RandomId::random()?);
    put_sealed(repository, &name, &json).await?;
    Ok(name)
}

/// The pins there are, sorted by backup.
pub async fn pins(repository: &Repository, layout: &ClusterLayout) -> Result<Vec<StoredPin>> {
    let storage = repository.storage();
    let mut pins = Vec::new();
    let mut after: Option<ObjectName> = None;
    loop {
        let last = after.as_ref().map(ObjectName::as_str);
        let listed = storage.list(&layout.pins_folder(), last, PAGE).await?;
        let Some(end) = listed.last() else { return Ok(pins) };
        after = Some(end.name.clone());
        for object in listed {
            pins.extend(read(repository, object.name).await?);
        }
    }
}

/// Reads a pin; `None` when it is gone, or when its name is no pin's.
async fn read(repository: &Repository, name: ObjectName) -> Result<Option<StoredPin>> {
    let Some(backup) = backup_of(&name) else {
        tracing::warn!("{name} isn't a pin");
        return Ok(None);
    };
    let until = match read_whole(repository, &name).await {
        Ok(object) => match serde_json::from_slice::<Pin>(&object.into_bytes()) {
            Ok(pin) if pin.format == 1 && pin.backup == backup => pin.until,
            _ => {
                tracing::warn!("{name} isn't a pin that this version reads: it holds {backup}");
                None
            }
        },
        Err(e) if e.kind() == Kind::Damaged => match repository.storage().size(&name).await {
            Err(gone) if gone.is_not_found() => return Ok(None),
            _ => {
                tracing::warn!("{e}: it holds {backup} all the same");
                None
            }
        },
        Err(e) => return Err(e),
    };
    Ok(Some(StoredPin { name, backup, until }))
}

/// The backup in a pin's name, `<backup>-<random>`.
fn backup_of(name: &ObjectName) -> Option<BackupId> {
    let (backup, random) = name.file_name().rsplit_once('-')?;
    random.parse::<RandomId>().ok()?;
    backup.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_which_backup_is_held() {
        let layout = ClusterLayout::new("main").unwrap();
        for id in ["20261120T195812Z-full", "20261120T195812Z-incr-0af3"] {
            let id: BackupId = id.parse().unwrap();
            assert_eq!(backup_of(&layout.pin(&id, RandomId([0xAB; 16]))), Some(id));
        }
        for bad in ["20261120T195812Z-full", "x-00000000000000000000000000000000", "pin"] {
            assert_eq!(backup_of(&ObjectName::new(format!("pins/{bad}")).unwrap()), None, "{bad}");
        }
    }

    #[test]
    fn a_pin_holds_for_ever_or_until_its_date() {
        let now: DateTime<Utc> = "2026-11-20T20:00:00Z".parse().unwrap();
        let pin = |until| StoredPin {
            name: ObjectName::new("pins/x").unwrap(),
            backup: "20261120T195812Z-full".parse().unwrap(),
            until,
        };
        assert!(pin(None).holds(now));
        assert!(pin(Some(now + chrono::Duration::seconds(1))).holds(now));
        assert!(!pin(Some(now)).holds(now));
    }
}
