//! The small objects of a repository: JSON, and what the names beside them say.
//!
//! The first byte chooses the object; the rest is its raw content, sealed here under its name and read back
//! as the library reads it. `repo.json` and keys objects aren't sealed, and come as they are; of a backup's marks comes
//! which there are, of registrations their names, by lines. What a reader
//! accepts and writes again is the same.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use pgkeep::{
    postgres::{Lsn, SegmentSize, Timeline, WalFile},
    repo::{
        BackupId, Repository, SystemId,
        catalog::{self, BackupState},
        drill,
        id::RandomId,
        keys::KeyMaterial,
        layout as names, lease, pin,
        timelines::WalInventory,
        tombstone,
        wal::{StoredSummary, WalStore},
        wal_floor::Floors,
    },
    storage::ObjectName,
};
use sha2::{Digest, Sha256};

use super::{
    input::Input,
    place::{Place, layout, plain, seal, wait},
};

fn system() -> SystemId {
    "15-7450000000000000001".parse().expect("a system")
}

fn backup() -> BackupId {
    "20250120T205812Z-incr".parse().expect("an id")
}

fn now() -> DateTime<Utc> {
    "2025-01-21T00:00:00Z".parse().expect("a time")
}

/// A repository with one object of this content.
fn with(name: &ObjectName, content: &[u8], summary: &[u8]) -> (Place, Repository) {
    let (place, repository) = plain();
    place.put(name, seal(&repository, name, &[content], summary));
    (place, repository)
}

fn record(content: &[u8]) {
    let (layout, id) = (layout(), backup());
    let (place, repository) = with(&layout.of_backup(&id, "backup.json"), content, &[]);
    let begin = layout.of_backup(&id, "begin");
    place.put(&begin, seal(&repository, &begin, &[b""], &[]));
    let read = wait(catalog::read_record(&repository, &layout, &id));
    let entries = wait(catalog::entries(&repository, &layout)).expect("they are listed");
    let complete = matches!(entries[..], [ref e] if matches!(e.state, BackupState::Complete(_)));
    assert_eq!(complete, read.is_ok());
    let Ok(record) = read else { return };
    assert_eq!(record.id, id);
    record.start_segment();
    record.stop_segment();
    let json = serde_json::to_vec(&record).expect("it is written");
    let (_, repository) = with(&layout.of_backup(&id, "backup.json"), &json, &[]);
    let again = wait(catalog::read_record(&repository, &layout, &id)).expect("it is read again");
    assert_eq!(serde_json::to_vec(&again).expect("it is written"), json);
    let _ = wait(catalog::in_order(&repository, &layout, vec![again]));
}

fn pins(content: &[u8]) {
    let name = layout().pin(&backup(), RandomId([0x5a; 16]));
    let (_, repository) = with(&name, content, &[]);
    for pin in wait(pin::pins(&repository, &layout())).into_iter().flatten() {
        pin.holds(now());
    }
}

fn leases(content: &[u8]) {
    // A lease is replaced, and so it isn't sealed.
    for sealed in [false, true] {
        let (place, repository) = plain();
        let name = layout().lease(RandomId([0xa5; 16]));
        let sealed_bytes = seal(&repository, &name, &[content], &[]);
        place.put(&name, if sealed { sealed_bytes } else { content.to_vec() });
        for lease in wait(lease::leases(&repository, &layout())).into_iter().flatten() {
            lease.is_expired(now());
            lease.is_alive(now());
            lease.is_abandoned();
        }
    }
}

fn floors(content: &[u8]) {
    let (_, repository) = with(&layout().wal_floor(RandomId([0x3c; 16])), content, &[]);
    if let Ok(floors) = wait(Floors::read(&repository, &layout(), system())) {
        let all: &BTreeMap<Timeline, Lsn> = floors.timelines();
        assert!(all.iter().all(|(timeline, lsn)| floors.of(*timeline) == *lsn));
    }
}

fn drills(content: &[u8]) {
    let began = "2025-01-20T23:30:00Z".parse().expect("a time");
    let (_, repository) = with(&layout().drill(began, RandomId([0xd7; 16])), content, &[]);
    let _ = wait(drill::drills(&repository, &layout()));
}

fn summary(content: &[u8]) {
    let segment = "000000010000000000000003".parse().expect("a segment");
    let layout = layout();
    let name = layout.wal_file(system(), WalFile::Segment(segment));
    let (_, repository) = with(&name, b"", content);
    let store = WalStore::new(&repository, &layout, system());
    let _ = wait(store.segment_size());
    let _ = wait(store.segment_summary(segment));
    let _ = wait(store.copy_to(&name, &mut std::io::sink()));
    let Ok(Some(summary)) = wait(store.summary(&name)) else { return };
    assert!(
        summary.short_checksum().len() <= 16
            || summary.sha256.len() == summary.short_checksum().len()
    );
    if let Some(segment) = &summary.segment {
        segment.passes_time(now(), false);
        segment.passes_time(now(), true);
        segment.may_hold_xid(7);
        segment.restore_point("one");
    }
    // Names are made of it only where it was made here; a stranger's may not fit one.
    let json = summary.to_bytes().expect("it is written");
    assert_eq!(serde_json::from_slice::<StoredSummary>(&json).ok(), Some(summary));
}

/// The history file of timeline 2, and the paths that follow from it.
fn timeline(content: &[u8]) {
    let layout = layout();
    let file = "00000002.history".parse().expect("a file");
    let digits = Sha256::digest(content);
    let sha256 = digits.iter().map(|byte| format!("{byte:02x}")).collect();
    let summary = StoredSummary { size: content.len() as u64, sha256, segment: None };
    let summary = summary.to_bytes().expect("it is written");
    let (_, repository) = with(&layout.wal_file(system(), file), content, &summary);
    let store = WalStore::new(&repository, &layout, system());
    let _ = wait(store.history(Timeline(2)));
    let size = SegmentSize::default();
    let Ok(inventory) = wait(WalInventory::read(&store, size)) else { return };
    for path in inventory.known() {
        inventory.first_missing(path, 0);
        inventory.last_there(path);
        inventory.reaches(path, Lsn(u64::MAX));
        inventory.ends_in(path, u64::MAX);
    }
    inventory.leaves(&[Timeline(1)]);
}

fn repository_file(content: &[u8]) {
    let place = Place::default();
    place.put(&names::repository_file(), content.to_vec());
    let _ = place.open(&KeyMaterial::None);
}

/// The key of the fixture is made of a file, of a passphrase it would take as long as its object asks for.
fn keys(content: &[u8]) {
    let place = Place::default();
    let file = include_bytes!("../../../../fixtures/repository-v1/repo.json");
    place.put(&names::repository_file(), file.to_vec());
    let id: RandomId = "67a16e4effe0683ba4d0737df67fe17c".parse().expect("an id");
    let name = names::keys_object(1, id);
    place.put(&name, content.to_vec());
    let _ = place.open(&KeyMaterial::KeyFile([7; 32].into()));
    let (_, repository) = plain();
    let _ = wait(repository.check_keys_object(&name, 1));
}

/// The marks of a backup: which of them there are decides, and nothing that is in them.
fn marks(content: &[u8]) {
    let Some((&which, content)) = content.split_first() else { return };
    let (layout, id) = (layout(), backup());
    let (place, repository) = plain();
    let record = include_bytes!("../../../../fixtures/fuzz/objects/seed-backup-json");
    let there = |bit: u8| which & bit == bit;
    for (bit, object) in [(1, "begin"), (2, "abandoned"), (4, "deleted"), (8, "backup.json")] {
        let name = layout.of_backup(&id, object);
        // One byte in front of it says what it is a seed of.
        let content = if bit == 8 { &record[1..] } else { content };
        let sealed = seal(&repository, &name, &[content], &[]);
        if there(bit) {
            place.put(&name, if there(16) && bit != 8 { content.to_vec() } else { sealed });
        }
    }
    // What doesn't belong there, before all of them.
    for number in 0..if there(32) { 40 } else { 0 } {
        place.put(&layout.of_backup(&id, &format!("a.{number}")), Vec::new());
    }
    let entries = wait(catalog::entries(&repository, &layout)).expect("they are listed");
    let backups = wait(catalog::backups(&repository, &layout)).expect("they are listed");
    let exists = there(1) && there(8) && !there(4);
    assert_eq!(backups.len(), usize::from(exists));
    let complete = |entry: &catalog::CatalogEntry| matches!(entry.state, BackupState::Complete(_));
    assert_eq!(entries.iter().any(complete), exists);
    let unmarked =
        wait(tombstone::is_unmarked(&repository, &layout, &id)).expect("it is looked at");
    assert_eq!(unmarked, there(1) && !there(4));
    let committed = wait(tombstone::check_committed(&repository, &layout, &id));
    assert_eq!(committed.is_ok(), unmarked && !there(2));
    let base = wait(tombstone::check_base(&repository, &layout, &id));
    assert_eq!(base.is_ok(), unmarked);
}

/// The registrations of systems, one a line: what isn't one is left out.
fn registrations(content: &[u8]) {
    let (place, repository) = plain();
    let text = String::from_utf8_lossy(content);
    let mut expected = BTreeSet::new();
    for line in text.lines() {
        let Ok(name) = ObjectName::new(format!("{}{line}", layout().systems_folder())) else {
            continue;
        };
        if let Ok(system) = line.parse::<SystemId>()
            && system.to_string() == line
        {
            expected.insert(system);
        }
        place.put(&name, content.to_vec());
    }
    let found = wait(catalog::systems(&repository, &layout())).expect("they are listed");
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let chosen = input.byte();
    let content = input.rest();
    match chosen % 11 {
        0 => record(content),
        1 => pins(content),
        2 => leases(content),
        3 => floors(content),
        4 => drills(content),
        5 => summary(content),
        6 => timeline(content),
        7 => repository_file(content),
        8 => keys(content),
        9 => marks(content),
        _ => registrations(content),
    }
}
