//! Many backups and much WAL: what `info` and `expire` take of a repository that has grown for a long time.
//!
//! ```text
//! PGKEEP_TEST_KEEP=1 PGKEEP_TEST_BACKUPS=500 cargo test --test integration -- --nocapture catalog::info
//! ```
//!
//! leaves such a repository with its key and a configuration, and says where, for whoever wants to measure more.

use std::{fs, sync::Arc, time::Instant};

use chrono::{TimeDelta, Utc};
use pgkeep::{
    postgres::{Lsn, SegmentSize, Timeline},
    repo::{
        BackupType, Repository, catalog,
        keys::{KeyMaterial, read_key_file, write_key_file},
        layout::ClusterLayout,
        record::BackupRecord,
        tree::BackupTable,
    },
};

use crate::{
    restore_write::store::{Files, pages, store_as},
    retention::archive,
    support::{
        Scratch,
        install::{command, other_program, pgkeep_binary},
        memory::Memory,
        pgkeep::{Output, start},
        scratch::{own, write},
    },
};

/// A full backup comes after so many incremental ones.
const BETWEEN: u64 = 9;
/// How many full backups the rules keep.
const FULL: u64 = 5;
/// Segments from one backup to the next.
const SEGMENTS: u64 = 20;

/// A repository with so many backups, an hour apart, the last one an hour ago, and all WAL since the first. It is
/// made in memory: so nothing is synced, and 10,000 segments take a moment.
async fn grown(backups: u64) -> Scratch {
    let memory = Memory::default();
    let elsewhere = Scratch::new("key");
    let key = elsewhere.join("main.key");
    write_key_file(&key).unwrap();
    let material = || KeyMaterial::KeyFile(read_key_file(&key).unwrap());
    Repository::init(&memory, &material()).await.unwrap();
    let repository =
        Repository::open("main", Arc::new(memory.clone()), &material(), 1).await.unwrap();
    let layout = ClusterLayout::new("main").unwrap();
    let begin = Utc::now() - TimeDelta::hours(backups as i64);
    let at = |hours: u64| begin + TimeDelta::hours(hours as i64);
    let (mut table, mut base) = (BackupTable::default(), None);
    let mut before = None;
    let mut system = None;
    let size = SegmentSize::DEFAULT;
    for number in 0..backups {
        let full = number % (BETWEEN + 1) == 0;
        if full {
            (table, base, before) = (BackupTable::default(), None, None);
        }
        let mut files = Files::default();
        files.put("global/pg_control", pages(1, 1));
        files.put("PG_VERSION", "15\n");
        files.put("base/1/1000", pages(10 + number, 1));
        files.put("base/1/1001", pages(9, 4));
        let kind = if full { "full" } else { "incr" };
        let id = format!("{}-{kind}", at(number).format("%Y%m%dT%H%M%SZ"));
        let first = 1 + SEGMENTS * number;
        let describe = |record: &mut BackupRecord| {
            record.base = before.take();
            record.kind = if full { BackupType::Full } else { BackupType::Incr };
            record.asked = record.kind;
            record.start_lsn = Lsn(size.start_of(first).0 + 0x28);
            record.stop_lsn = Lsn(size.start_of(first).0 + 0x100);
            (record.started_at, record.stopped_at) = (at(number), at(number));
        };
        let place = (&repository, &layout);
        let stored = store_as(place, &id, &files, &[], base.as_ref(), &mut table, describe).await;
        before = Some(stored.record.id.clone());
        if system.is_none() {
            catalog::register_system(&repository, &layout, stored.record.system).await.unwrap();
            system = Some(stored.record.system);
        }
        let wal = first..first + SEGMENTS;
        archive(&repository, &stored.record, Timeline(1), wal, at(number)).await;
        base = Some(stored);
    }
    let home = Scratch::new("catalog");
    let root = home.folder("repository");
    for (name, bytes) in memory.objects().iter() {
        let path = root.join(name);
        let folder = path.parent().unwrap();
        if !folder.exists() {
            fs::create_dir_all(folder).unwrap();
            for folder in folder.ancestors().take_while(|above| *above != root) {
                own(folder);
            }
        }
        write(&path, bytes);
    }
    let key = home.file("main.key", fs::read(&key).unwrap());
    home.file(
        "pgkeep.toml",
        format!(
            "[repository.main]\nurl = \"file://{}\"\nkey-file = \"{}\"\n\
             [repository.main.retention]\nfull = {FULL}\n[cluster.main]\n",
            root.display(),
            key.display()
        ),
    );
    home
}

/// How many backups there are to be.
fn backups() -> u64 {
    std::env::var("PGKEEP_TEST_BACKUPS").map_or(500, |number| number.parse().expect("a number"))
}

/// Runs the program there; it may have 50 MiB.
fn measured(home: &Scratch, arguments: &[&str]) -> Output {
    let mut command = command(pgkeep_binary());
    command.arg("--config").arg(home.join("pgkeep.toml")).args(arguments);
    let begun = Instant::now();
    let (output, peak) = start(command).wait_and_measure();
    let took = begun.elapsed().as_millis();
    assert_eq!(output.code, 0, "{arguments:?}: {output}");
    let peak = if other_program().is_some() { peak.all } else { peak.own };
    println!("{} backups, {arguments:?}: {took} ms, {} MiB at the peak", backups(), peak >> 20);
    assert!(peak < 50 << 20, "{arguments:?} took {} MiB", peak >> 20);
    output
}

/// The ids of the backups that `info` shows, and how many segments.
fn shown(home: &Scratch) -> (Vec<String>, u64) {
    let output = measured(home, &["info", "--output", "json"]);
    let info: serde_json::Value = serde_json::from_str(&output.stdout).expect("JSON");
    let system = &info["repositories"][0]["systems"][0];
    let of = |record: &serde_json::Value| record["id"].as_str().expect("an id").to_owned();
    let ids = system["backups"].as_array().expect("backups").iter().map(of).collect();
    (ids, system["timelines"][0]["segments"].as_u64().expect("a number"))
}

#[tokio::test]
async fn info_of_many_backups_takes_little_memory() {
    let home = grown(backups()).await;
    let text = measured(&home, &["info"]).stdout;
    let (ids, segments) = shown(&home);
    assert_eq!((ids.len() as u64, segments), (backups(), backups() * SEGMENTS));
    for id in ids {
        assert!(text.contains(&id), "{id} isn't shown");
    }
}

#[tokio::test]
async fn an_expiry_of_many_backups_takes_little_memory() {
    let home = grown(backups()).await;
    let (before, _) = shown(&home);
    measured(&home, &["expire", "--dry-run"]);
    measured(&home, &["expire"]);
    let (ids, segments) = shown(&home);
    // The newest five full backups with what is over them, and the WAL from the oldest of these on.
    let kept = FULL * (BETWEEN + 1);
    assert_eq!(ids, before[before.len() - kept as usize..]);
    assert_eq!(segments, kept * SEGMENTS);
}
