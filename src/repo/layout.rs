//! The names of everything in a repository, and back from names to what they are.

use chrono::{DateTime, Utc};

use super::{
    drill,
    id::{BackupId, RandomId, SystemId},
};
use crate::{
    error::{Error, Kind, Result},
    postgres::{Timeline, WalFile},
    storage::ObjectName,
};

fn name(text: String) -> ObjectName {
    ObjectName::of_checked_parts(text)
}

/// `repo.json`.
pub fn repository_file() -> ObjectName {
    name("repo.json".into())
}

/// `keys/<n>-<key id>.json`.
pub fn keys_object(number: u32, key: RandomId) -> ObjectName {
    name(format!("keys/{number:06}-{key}.json"))
}

/// The folder of the keys objects, with its slash.
pub const KEYS: &str = "keys/";

/// The names of one cluster's objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterLayout {
    cluster: String,
}

impl ClusterLayout {
    /// The layout of the cluster of this name: lower-case letters, digits and `-`.
    pub fn new(cluster: &str) -> Result<Self> {
        let ok = (1..=63).contains(&cluster.len())
            && !cluster.starts_with('-')
            && cluster.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !ok {
            return Err(Error::new(Kind::Usage, format!("{cluster:?} can't be a cluster's name"))
                .hint("lower-case letters, digits and '-', at most 63"));
        }
        Ok(ClusterLayout { cluster: cluster.to_owned() })
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The folder of all that is the cluster's, with its slash.
    pub fn folder(&self) -> String {
        format!("clusters/{}/", self.cluster)
    }

    /// The folder of the system registrations.
    pub fn systems_folder(&self) -> String {
        format!("clusters/{}/systems/", self.cluster)
    }

    /// The registration of a system.
    pub fn system(&self, system: SystemId) -> ObjectName {
        name(format!("clusters/{}/systems/{system}", self.cluster))
    }

    /// The folder of a system's WAL, without slash.
    pub fn wal_folder(&self, system: SystemId) -> String {
        format!("clusters/{}/wal/{system}", self.cluster)
    }

    /// The folder of a timeline's WAL, with its slash.
    pub fn timeline_folder(&self, system: SystemId, timeline: Timeline) -> String {
        format!("clusters/{}/wal/{system}/{}/", self.cluster, timeline.hex())
    }

    /// An archived file under its plain name.
    pub fn wal_file(&self, system: SystemId, file: WalFile) -> ObjectName {
        let folder = self.timeline_folder(system, file.timeline());
        name(format!("{folder}{file}"))
    }

    /// An archived file under a name with a suffix: `.repair.<checksum>`, or a partial's checksum.
    pub fn wal_variant(&self, system: SystemId, file: WalFile, suffix: &str) -> ObjectName {
        let folder = self.timeline_folder(system, file.timeline());
        name(format!("{folder}{file}.{suffix}"))
    }

    /// The folder of the WAL floors, with its slash.
    pub fn wal_floor_folder(&self) -> String {
        format!("clusters/{}/wal-floor/", self.cluster)
    }

    /// A WAL floor.
    pub fn wal_floor(&self, id: RandomId) -> ObjectName {
        name(format!("clusters/{}/wal-floor/{id}", self.cluster))
    }

    /// The folder of all backups, without slash.
    pub fn backups_folder(&self) -> String {
        format!("clusters/{}/backups", self.cluster)
    }

    /// The folder of a backup, with its slash.
    pub fn backup_folder(&self, backup: &BackupId) -> String {
        format!("clusters/{}/backups/{backup}/", self.cluster)
    }

    /// An object of a backup: `begin`, `manifest`, `backup.json`, `abandoned`, `deleted`.
    pub fn of_backup(&self, backup: &BackupId, object: &str) -> ObjectName {
        name(format!("clusters/{}/backups/{backup}/{object}", self.cluster))
    }

    /// A pack of a backup.
    pub fn pack(&self, backup: &BackupId, pack: u32) -> ObjectName {
        name(format!("clusters/{}/backups/{backup}/packs/{pack:06}", self.cluster))
    }

    /// The folder of a backup's packs, with its slash.
    pub fn packs_folder(&self, backup: &BackupId) -> String {
        format!("clusters/{}/backups/{backup}/packs/", self.cluster)
    }

    /// A pin of a backup.
    pub fn pin(&self, backup: &BackupId, id: RandomId) -> ObjectName {
        name(format!("clusters/{}/pins/{backup}-{id}", self.cluster))
    }

    /// The folder of the pins, with its slash.
    pub fn pins_folder(&self) -> String {
        format!("clusters/{}/pins/", self.cluster)
    }

    /// The result of a drill that began then.
    pub fn drill(&self, began: DateTime<Utc>, id: RandomId) -> ObjectName {
        name(format!("clusters/{}/drills/{}", self.cluster, drill::file_name(began, id)))
    }

    /// The folder of the drills' results, with its slash.
    pub fn drills_folder(&self) -> String {
        format!("clusters/{}/drills/", self.cluster)
    }

    /// A lease.
    pub fn lease(&self, id: RandomId) -> ObjectName {
        name(format!("clusters/{}/leases/{id}", self.cluster))
    }

    /// The folder of the leases, with its slash.
    pub fn leases_folder(&self) -> String {
        format!("clusters/{}/leases/", self.cluster)
    }
}
