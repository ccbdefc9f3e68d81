//! What an object is, by its name: the way back from [`super::layout`].
//!
//! A name is known only if it is exactly the one that the layout gives to such an object; anything
//! else in a repository is a stranger. A new kind of object has to be added here, else a
//! verification takes it for one.

use super::{
    drill,
    id::{BackupId, RandomId, SystemId},
    layout::{self, ClusterLayout},
    repository::Names,
    wal::WalObject,
};
use crate::{
    postgres::{Timeline, WalFile},
    storage::ObjectName,
};

/// An object of a repository, as seen from one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// `repo.json`.
    RepositoryFile,
    /// What is created again to see whether the storage refuses it.
    Probe,
    /// A keys object, with its number.
    Keys(u32),
    /// Something of another cluster.
    OtherCluster,
    /// The registration of a system.
    System(SystemId),
    /// A file of the archive.
    Wal(SystemId, Timeline, WalObject),
    /// A WAL floor.
    WalFloor(RandomId),
    /// A part of a backup.
    Part(BackupId, Part),
    /// A pack of a backup.
    Pack(BackupId, u32),
    /// A pin of a backup.
    Pin(BackupId),
    /// The result of a drill.
    Drill(RandomId),
    /// A lease.
    Lease(RandomId),
}

/// What a backup's folder holds beside its packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// `abandoned`.
    Abandoned,
    /// `backup.json`.
    Record,
    /// `begin`.
    Begin,
    /// `deleted`.
    Deleted,
    /// `manifest`.
    Manifest,
}

impl Part {
    /// All there are.
    const ALL: [Part; 5] =
        [Part::Abandoned, Part::Record, Part::Begin, Part::Deleted, Part::Manifest];

    /// Its name in the folder.
    pub fn as_str(self) -> &'static str {
        match self {
            Part::Abandoned => "abandoned",
            Part::Record => "backup.json",
            Part::Begin => "begin",
            Part::Deleted => "deleted",
            Part::Manifest => "manifest",
        }
    }
}

/// What an object is to the cluster of `layout`; `None` for a stranger. `names` are the repository's.
pub fn named(layout: &ClusterLayout, names: Names, name: &ObjectName) -> Option<Named> {
    let parts: Vec<&str> = name.as_str().split('/').collect();
    let (found, again) = match parts[..] {
        ["repo.json"] => (Named::RepositoryFile, layout::repository_file()),
        ["probe"] => return Some(Named::Probe),
        ["keys", file] => {
            let (number, key) = file.strip_suffix(".json")?.split_once('-')?;
            let (number, key) = (number.parse().ok()?, key.parse().ok()?);
            (Named::Keys(number), layout::keys_object(number, key))
        }
        ["clusters", cluster, _, ..] if cluster != layout.cluster() => {
            return ClusterLayout::new(cluster).ok().map(|_| Named::OtherCluster);
        }
        ["clusters", _, "systems", system] => {
            let system = system.parse().ok()?;
            (Named::System(system), layout.system(system))
        }
        ["clusters", _, "wal", system, timeline, file] => {
            let (system, timeline) = (system.parse().ok()?, Timeline::from_hex(timeline)?);
            let object = wal_object(names, file)?;
            let of = object.file();
            let folder = layout.timeline_folder(system, of.timeline());
            return (of.timeline() == timeline && name.as_str() == format!("{folder}{file}"))
                .then_some(Named::Wal(system, timeline, object));
        }
        ["clusters", _, "wal-floor", id] => {
            let id = id.parse().ok()?;
            (Named::WalFloor(id), layout.wal_floor(id))
        }
        ["clusters", _, "backups", id, "packs", pack] => {
            let (id, pack) = (id.parse().ok()?, pack.parse().ok()?);
            let again = layout.pack(&id, pack);
            (Named::Pack(id, pack), again)
        }
        ["clusters", _, "backups", id, part] => {
            let id: BackupId = id.parse().ok()?;
            let part = Part::ALL.into_iter().find(|known| known.as_str() == part)?;
            let again = layout.of_backup(&id, part.as_str());
            (Named::Part(id, part), again)
        }
        ["clusters", _, "pins", pin] => {
            let (backup, random) = pin.rsplit_once('-')?;
            let (backup, random) = (backup.parse().ok()?, random.parse().ok()?);
            let again = layout.pin(&backup, random);
            (Named::Pin(backup), again)
        }
        ["clusters", _, "drills", file] => {
            let (began, id) = drill::parts_of_name(file)?;
            (Named::Drill(id), layout.drill(began, id))
        }
        ["clusters", _, "leases", id] => {
            let id = id.parse().ok()?;
            (Named::Lease(id), layout.lease(id))
        }
        _ => return None,
    };
    (again == *name).then_some(found)
}

/// What a file's name in a timeline's folder stands for, where names are like this.
fn wal_object(names: Names, file: &str) -> Option<WalObject> {
    let object = WalObject::parse(file)?;
    let is_checksum = |text: &str| {
        text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let known = match (&object, names) {
        // Partial ones have their content's checksum in their names everywhere.
        (WalObject::Plain(WalFile::Partial(_)), _) => false,
        (WalObject::Plain(_), names) => names == Names::Plain,
        (WalObject::Content(_, checksum), names) => {
            names == Names::Content && is_checksum(checksum)
        }
        (WalObject::Partial(_, checksum) | WalObject::Part(.., checksum), _) => {
            is_checksum(checksum)
        }
        (WalObject::Repair(_, checksum), _) => {
            // As [`super::wal::WalStore::repair`] counts its attempts.
            let (checksum, attempt) = checksum.split_once('-').unwrap_or((checksum, "1"));
            let counts = |n: u32| n > 0 && n.to_string() == attempt;
            is_checksum(checksum) && attempt.parse().is_ok_and(counts)
        }
    };
    known.then_some(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, names: Names) -> Option<Named> {
        let layout = ClusterLayout::new("main").unwrap();
        named(&layout, names, &ObjectName::new(name).unwrap())
    }

    #[test]
    fn every_name_of_the_layout_is_known() {
        let layout = ClusterLayout::new("main").unwrap();
        let backup: BackupId = "20261120T195812Z-incr-0af3".parse().unwrap();
        let system: SystemId = "15-7".parse().unwrap();
        let id = RandomId([0xAB; 16]);
        let known = |name: ObjectName| named(&layout, Names::Plain, &name);
        assert_eq!(known(layout::repository_file()), Some(Named::RepositoryFile));
        assert_eq!(known(layout::keys_object(7, id)), Some(Named::Keys(7)));
        assert_eq!(known(layout.system(system)), Some(Named::System(system)));
        assert_eq!(known(layout.lease(id)), Some(Named::Lease(id)));
        assert_eq!(known(layout.pin(&backup, id)), Some(Named::Pin(backup.clone())));
        let began = "2026-11-20T19:58:12Z".parse().unwrap();
        assert_eq!(known(layout.drill(began, id)), Some(Named::Drill(id)));
        assert_eq!(known(layout.pack(&backup, 9)), Some(Named::Pack(backup.clone(), 9)));
        for part in Part::ALL {
            let name = layout.of_backup(&backup, part.as_str());
            assert_eq!(known(name), Some(Named::Part(backup.clone(), part)));
        }
        for file in ["00000001000000000000001A", "00000002.history"] {
            let file: WalFile = file.parse().unwrap();
            let expected = Named::Wal(system, file.timeline(), WalObject::Plain(file));
            assert_eq!(known(layout.wal_file(system, file)), Some(expected));
        }
        assert_eq!(known(layout.wal_floor(id)), Some(Named::WalFloor(id)));
        assert_eq!(of("clusters/other/anything", Names::Plain), Some(Named::OtherCluster));
        assert_eq!(of("probe", Names::Plain), Some(Named::Probe));
    }

    #[test]
    fn strangers_are_told_from_what_looks_like_them() {
        for stranger in [
            "readme",
            "keys/1-abababababababababababababababab.json",
            "keys/000001-AB.json",
            "clusters/main/readme",
            "clusters/Main/readme",
            "clusters/main/backups/readme",
            "clusters/main/backups/20261120T195812Z-full/other",
            "clusters/main/backups/20261120T195812Z-full/packs/7",
            "clusters/main/backups/20261120T195812Z-full/packs/000007.old",
            "clusters/main/pins/20261120T195812Z-full",
            "clusters/main/leases/x",
            "clusters/main/drills/20261120T195812Z",
            "clusters/main/drills/20261120T195812Z-AB",
            "clusters/main/drills/20261132T195800Z-abababababababababababababababab",
            "clusters/main/systems/15",
            "clusters/main/wal-floor/0",
            "clusters/main/wal-floor/01",
            "clusters/main/wal/15-7/00000001/00000002000000000000001A",
            "clusters/main/wal/15-7/00000001/00000001000000000000001A.partial",
            "clusters/main/wal/15-7/00000001/00000001000000000000001A.repair.x",
            "clusters/main/wal/15-7/00000001/00000001000000000000001A.0123456789abcdef",
            "clusters/main/wal/15-7/1/00000001000000000000001A",
        ] {
            assert_eq!(of(stranger, Names::Plain), None, "{stranger}");
        }
        let plain = "clusters/main/wal/15-7/00000001/00000001000000000000001A";
        assert_eq!(of(plain, Names::Content), None);
        for with in [
            "0123456789abcdef",
            "repair.0123456789abcdef-1",
            "partial.0123456789abcdef",
            "part.00000000-0000ffff.0123456789abcdef",
        ] {
            assert!(of(&format!("{plain}.{with}"), Names::Content).is_some(), "{with}");
        }
        for without in ["repair.0123456789abcdef-0", "repair.0123456789abcdef-01"] {
            assert_eq!(of(&format!("{plain}.{without}"), Names::Plain), None, "{without}");
        }
    }
}
