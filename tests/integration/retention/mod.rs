//! Deleting, pinning, expiring and cleaning up: what goes, what stays, and what is left when it is
//! interrupted.

pub mod command;
mod crash;
mod expire;
mod histories;
mod server;

use std::{collections::BTreeMap, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use pgkeep::{
    error::Result,
    postgres::{Lsn, SegmentSize, Timeline, WalFile, wal::SegmentSummary},
    progress::Silent,
    repo::{
        BackupId, Repository, catalog,
        keys::KeyMaterial,
        layout::ClusterLayout,
        record::BackupRecord,
        sealed::SealedWriter,
        tree::BackupTable,
        wal::{StoredSummary, WalStore},
    },
    restore::{
        settings::{RecoverySettings, Signal},
        write::{WriteRequest, write},
    },
    storage::{ErrorKind, Storage},
};

use crate::{
    restore_write::store::{Files, pages, store_as},
    support::{
        Scratch,
        faulty::{Fault, Operation},
        memory::{Memory, Objects},
    },
};

/// What can go wrong with a single operation of a storage, of those that a deletion does.
pub const FAULTS: [(Operation, Fault); 9] = [
    (Operation::Create, Fault::Fails(ErrorKind::Full)),
    (Operation::Finish, Fault::Fails(ErrorKind::Full)),
    (Operation::Finish, Fault::AnswerLost),
    (Operation::Read, Fault::Fails(ErrorKind::Unavailable)),
    (Operation::Read, Fault::Flips),
    (Operation::Size, Fault::Fails(ErrorKind::Denied)),
    (Operation::List, Fault::Fails(ErrorKind::Unavailable)),
    (Operation::Delete, Fault::Fails(ErrorKind::Denied)),
    (Operation::Delete, Fault::AnswerLost),
];

/// How many segments the chain's archive has, from 1 on. The backups begin at 2, 5, 8 and 11, and
/// have two each.
const SEGMENTS: u64 = 14;

pub const BASE: &str = "20261120T000000Z-full";
const FIRST: &str = "20261121T000000Z-incr";
pub const SECOND: &str = "20261122T000000Z-incr";
const THIRD: &str = "20261123T000000Z-incr";

fn id(text: &str) -> BackupId {
    text.parse().unwrap()
}

fn layout() -> ClusterLayout {
    ClusterLayout::new("main").unwrap()
}

/// When everything happened: backups are a day apart.
fn begin() -> DateTime<Utc> {
    "2026-11-20T00:00:00Z".parse().unwrap()
}

/// Has a backup reach over these two segments and two into the third, and stop on that day.
pub fn place(record: &mut BackupRecord, segment: u64, day: i64) {
    let size = SegmentSize::DEFAULT;
    record.start_lsn = Lsn(size.start_of(segment).0 + 0x28);
    record.stop_lsn = Lsn(size.start_of(segment + 1).0 + 0x100);
    record.stopped_at = begin() + TimeDelta::days(day);
    record.started_at = record.stopped_at - TimeDelta::minutes(5);
}

/// Archives segments of a record's system, each with a transaction at that time. What they hold
/// doesn't matter here.
pub async fn archive(
    repository: &Repository,
    record: &BackupRecord,
    timeline: Timeline,
    segments: impl IntoIterator<Item = u64>,
    time: DateTime<Utc>,
) {
    for number in segments {
        let end = SegmentSize::DEFAULT.start_of(number + 1);
        archive_one(repository, record, timeline, number, (time, end)).await;
    }
}

/// As [`archive`], one segment whose last transaction was then and ends there.
pub async fn archive_one(
    repository: &Repository,
    record: &BackupRecord,
    timeline: Timeline,
    number: u64,
    (time, last): (DateTime<Utc>, Lsn),
) {
    let store = WalStore::new(repository, &layout(), record.system);
    let start = SegmentSize::DEFAULT.start_of(number);
    let end = SegmentSize::DEFAULT.start_of(number + 1);
    let segment: SegmentSummary = serde_json::from_value(serde_json::json!({
        "start": start, "end": end, "whole": true, "head-known": true, "timeline": timeline,
        "magic": 0xD110, "parsed": true,
        "transactions": {
            "min-time": time, "max-time": time, "last-time": time, "last-commit": last,
            "min-xid": 700, "max-xid": 700, "last-xid": 700, "count": 1,
        },
    }))
    .unwrap();
    let summary = StoredSummary { size: 3, sha256: "00".repeat(32), segment: Some(segment) };
    let name = store.plain(WalFile::Segment(SegmentSize::DEFAULT.name(timeline, number)));
    let mut writer = SealedWriter::create(repository, &name).await.unwrap();
    writer.seal(b"WAL").await.unwrap();
    writer.finish(&summary.to_bytes().unwrap()).await.unwrap();
}

/// A full backup and three incremental ones, each of which shares some pages with those before it.
/// `THIRD` has pages of all four.
pub struct Chain {
    objects: Objects,
    files: BTreeMap<String, Files>,
}

async fn open(storage: Arc<dyn Storage>) -> Repository {
    Repository::open("main", storage, &KeyMaterial::None, 1).await.unwrap()
}

impl Chain {
    pub async fn make() -> Self {
        let memory = Memory::default();
        Repository::init(&memory, &KeyMaterial::None).await.unwrap();
        let repository = open(Arc::new(memory.clone())).await;
        let (mut table, mut base) = (BackupTable::default(), None);
        let mut content = Files::default();
        content.put("global/pg_control", pages(1, 1));
        content.put("PG_VERSION", "15\n");
        content
            .put("backup_label", "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n");
        // Two packs of the helper's size. The second backup has nothing of the first one left.
        for table in 0..6 {
            content.put(&format!("base/1/{}", 1000 + table), pages(10 + table, 90));
        }
        let order: Vec<String> = (1000..1006).map(|table| format!("base/1/{table}")).collect();
        let order: Vec<&String> = order.iter().collect();
        let changes = [0..0, 1000..1003, 1003..1004, 1004..1005];
        let mut files = BTreeMap::new();
        for (number, backup) in [BASE, FIRST, SECOND, THIRD].into_iter().enumerate() {
            for table in changes[number].clone() {
                content.put(&format!("base/1/{table}"), pages(50 + table, 90));
            }
            let last = &mut content.files.get_mut("base/1/1005").unwrap().bytes;
            last[number * 8192..][..8192].copy_from_slice(&pages(80 + number as u64, 1));
            let at = (&repository, &layout());
            let before = base.as_ref();
            let of = |number: usize| id([BASE, FIRST, SECOND, THIRD][number]);
            let stored = store_as(at, backup, &content, &order, before, &mut table, |record| {
                record.base = number.checked_sub(1).map(of);
                place(record, 2 + 3 * number as u64, number as i64);
            });
            base = Some(stored.await);
            files.insert(backup.to_owned(), content.clone());
        }
        let last = catalog::read_record(&repository, &layout(), &id(THIRD)).await.unwrap();
        catalog::register_system(&repository, &layout(), last.system).await.unwrap();
        archive(&repository, &last, Timeline(1), 1..=SEGMENTS, last.stopped_at).await;
        let objects = memory.objects().clone();
        Chain { objects, files }
    }

    /// A storage that holds it.
    fn storage(&self) -> Memory {
        Memory::of(self.objects.clone())
    }
}

/// The backups that are listed.
async fn listed(storage: &Memory) -> Vec<String> {
    let repository = open(Arc::new(storage.clone())).await;
    let backups = catalog::backups(&repository, &layout()).await.unwrap();
    let mut ids: Vec<String> = backups.into_iter().map(|record| record.id.to_string()).collect();
    ids.sort();
    ids
}

/// Restores a backup, and compares every file of it.
async fn restores(chain: &Chain, storage: &Memory, backup: &str) -> Result<()> {
    restores_over(chain, Arc::new(storage.clone()), backup).await
}

/// As [`restores`], over any storage.
async fn restores_over(chain: &Chain, storage: Arc<dyn Storage>, backup: &str) -> Result<()> {
    let repository = Repository::open("main", storage, &KeyMaterial::None, 1).await?;
    let layout = layout();
    let scratch = Scratch::new("chain");
    let pgdata = scratch.path().join("data");
    let record = catalog::read_record(&repository, &layout, &id(backup)).await?;
    let request = WriteRequest {
        repository: &repository,
        layout: &layout,
        record: &record,
        pgdata: &pgdata,
        tablespaces: &BTreeMap::new(),
        settings: RecoverySettings { signal: Signal::Recovery, lines: Vec::new(), alone: false },
        threads: 1,
    };
    write(request, Arc::new(Silent)).await?;
    let found = Files::read(&pgdata);
    for (path, expected) in &chain.files[backup].files {
        assert!(found.files[path].bytes == expected.bytes, "{path} of {backup} differs");
    }
    Ok(())
}

/// The folders below `backups/`, and how many packs each has.
fn folders(storage: &Memory) -> BTreeMap<String, usize> {
    let mut folders = BTreeMap::new();
    for name in storage.objects().keys() {
        let Some(rest) = name.strip_prefix("clusters/main/backups/") else { continue };
        let (folder, part) = rest.split_once('/').unwrap();
        *folders.entry(folder.to_owned()).or_default() += usize::from(part.starts_with("packs/"));
    }
    folders
}
