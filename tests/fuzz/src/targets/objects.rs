//! The small objects of a repository: JSON, and what the names beside them say.
//!
//! The first byte chooses the object; the rest is its raw content, sealed here under its name and read back
//! as the library reads it. `repo.json` and keys objects aren't sealed, and come as they are. What a reader
//! accepts and writes again is the same.

use std::collections::BTreeMap;

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

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let chosen = input.byte();
    let content = input.rest();
    match chosen % 9 {
        0 => record(content),
        1 => pins(content),
        2 => leases(content),
        3 => floors(content),
        4 => drills(content),
        5 => summary(content),
        6 => timeline(content),
        7 => repository_file(content),
        _ => keys(content),
    }
}
