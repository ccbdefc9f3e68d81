//! WAL floors: what expiry has cut.
//!
//! An object `wal-floor/<random>` says of each timeline of a system up to where WAL may be gone, but
//! for what kept backups need from their start to their stop. Expiry writes one before it removes
//! anything and reads the backups again afterwards; a backup reads the floors after its commit
//! object is written. So one of the two sees the other, whatever happens in between.
//!
//! A floor belongs to a timeline: a cluster that is taken back in time goes on with a new one, on
//! which its positions may lie below what was cut before. Each object says all that is known of its
//! system, so that older ones can go.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Repository, SystemId,
    catalog::PAGE,
    id::RandomId,
    layout::ClusterLayout,
    record::BackupRecord,
    sealed::{put_sealed, read_whole},
};
use crate::{
    error::{Context, Error, Kind, Result},
    postgres::{Lsn, Timeline},
    storage::{ErrorKind, ObjectName},
};

/// How often the floors are read anew because one of them went meanwhile.
const ATTEMPTS: usize = 20;

/// The floors of a system as they are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct WalFloor {
    /// Its format, 1.
    pub format: u32,
    /// The system whose WAL was cut.
    pub system: SystemId,
    /// Of each timeline, the position before which WAL may be gone.
    pub timelines: BTreeMap<Timeline, Lsn>,
}

/// The floors of one system, with the objects that say them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Floors {
    timelines: BTreeMap<Timeline, Lsn>,
    objects: Vec<ObjectName>,
}

impl Floors {
    /// Reads the floors of a system. One that is damaged is an error: WAL may be gone.
    pub async fn read(
        repository: &Repository,
        layout: &ClusterLayout,
        system: SystemId,
    ) -> Result<Self> {
        match Self::read_sound(repository, layout, system).await? {
            (floors, None) => Ok(floors),
            (_, Some(damage)) => Err(damage),
        }
    }

    /// Reads those floors of a system that aren't damaged, and says what is wrong with the first that
    /// is. For who would ask more of the archive without a floor, or only has to see what an expiry
    /// says that runs now: one that meets a damaged floor ends before it removes anything.
    pub async fn read_sound(
        repository: &Repository,
        layout: &ClusterLayout,
        system: SystemId,
    ) -> Result<(Self, Option<Error>)> {
        for _ in 0..ATTEMPTS {
            if let Some(found) = Self::read_once(repository, layout, system).await? {
                return Ok(found);
            }
        }
        let message = format!(
            "{} in {} changes all the while",
            layout.wal_floor_folder(),
            repository.storage().address()
        );
        Err(Error::new(Kind::Conflict, message).hint("wait until no expire runs, and try again"))
    }

    /// `None` when one of them went after it was listed; another one then says the same.
    async fn read_once(
        repository: &Repository,
        layout: &ClusterLayout,
        system: SystemId,
    ) -> Result<Option<(Self, Option<Error>)>> {
        let storage = repository.storage();
        let (mut floors, mut damage) = (Floors::default(), None);
        let mut after: Option<ObjectName> = None;
        loop {
            let last = after.as_ref().map(ObjectName::as_str);
            let listed = storage.list(&layout.wal_floor_folder(), last, PAGE).await?;
            let Some(end) = listed.last() else { return Ok(Some((floors, damage))) };
            after = Some(end.name.clone());
            for object in listed {
                let floor = match read_one(repository, &object.name).await {
                    Ok(floor) => floor,
                    Err(e) => match storage.size(&object.name).await {
                        Err(gone) if gone.is_not_found() => return Ok(None),
                        _ if e.kind() == Kind::Damaged => {
                            damage.get_or_insert(e);
                            continue;
                        }
                        _ => return Err(e),
                    },
                };
                if floor.system == system {
                    floors.objects.push(object.name);
                    for (timeline, lsn) in floor.timelines {
                        floors.raise(timeline, lsn);
                    }
                }
            }
        }
    }

    /// Before which position WAL of a timeline may be gone; 0/0 when nothing was cut.
    pub fn of(&self, timeline: Timeline) -> Lsn {
        self.timelines.get(&timeline).copied().unwrap_or_default()
    }

    /// Whether all WAL behind a backup may be gone, so that it can be restored to its own end at most.
    pub fn make_point(&self, record: &BackupRecord) -> bool {
        record.stop_lsn < self.of(record.timeline)
    }

    /// Of each timeline that was cut, the position before which WAL may be gone.
    pub fn timelines(&self) -> &BTreeMap<Timeline, Lsn> {
        &self.timelines
    }

    fn raise(&mut self, timeline: Timeline, lsn: Lsn) {
        let floor = self.timelines.entry(timeline).or_default();
        *floor = lsn.max(*floor);
    }

    /// Says, durably, that WAL of these timelines before these positions may be gone from now on.
    /// When that was said before, it is only made sure that it is durable: whoever said it may have
    /// been killed before it was. Objects that say nothing more are removed, but for what is held.
    pub async fn write(
        &mut self,
        repository: &Repository,
        layout: &ClusterLayout,
        system: SystemId,
        raised: &BTreeMap<Timeline, Lsn>,
    ) -> Result<()> {
        let storage = repository.storage();
        if raised.iter().all(|(timeline, lsn)| *lsn <= self.of(*timeline)) {
            for name in &self.objects {
                match storage.ensure_durable(name).await {
                    // Another expiry has said the same, and removed what said it before.
                    Err(e) if e.is_not_found() => {}
                    result => result?,
                }
            }
            return Ok(());
        }
        for (timeline, lsn) in raised {
            self.raise(*timeline, *lsn);
        }
        let floor = WalFloor { format: 1, system, timelines: self.timelines.clone() };
        let json = serde_json::to_vec(&floor).context(Kind::Internal, || "write a WAL floor")?;
        let name = layout.wal_floor(RandomId::random()?);
        put_sealed(repository, &name, &json).await?;
        for older in std::mem::replace(&mut self.objects, vec![name]) {
            match storage.delete(&older).await {
                Err(e) if e.kind == ErrorKind::Locked => self.objects.push(older),
                result => result?,
            }
        }
        Ok(())
    }
}

async fn read_one(repository: &Repository, name: &ObjectName) -> Result<WalFloor> {
    let bytes = read_whole(repository, name).await?.into_bytes();
    let floor: WalFloor = serde_json::from_slice(&bytes).map_err(|e| {
        let address = repository.storage().address();
        Error::new(Kind::Damaged, format!("{name} in {address} is damaged: {e}"))
    })?;
    if floor.format != 1 {
        let message = format!("{name} has format {}, not 1", floor.format);
        return Err(Error::new(Kind::Damaged, message)
            .hint("it was written by a newer pgkeep: use that one"));
    }
    Ok(floor)
}
