//! Random schedules over a repository's life, against a model of what was acknowledged.
//!
//! Each schedule begins with a chain of backups and goes through some of what users, cron and crashes do: delete,
//! expire, clean up and restore, each with the storage sound, failing once, failing now and then, or dying for good in the
//! midst of it; take a backup and archive, or lose a backup in the making, which the test does by itself. The model knows which backups were acknowledged and never
//! asked to go: they are listed and restore byte for byte, whatever else has happened, and their WAL is there. What was
//! acknowledged as deleted never comes back. A schedule that fails names its seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use pgkeep::{
    config::RetentionSettings,
    error::Result,
    postgres::{SegmentSize, Timeline, WalFile},
    progress::Silent,
    repo::{Repository, catalog, keys::KeyMaterial, tree::BackupTable, wal::WalStore},
    retention::{clean_up, delete, expire},
};

use super::{
    BASE, Chain, FAULTS, FIRST, SECOND, SEGMENTS, THIRD, archive, id, layout, listed, open, place,
    restores, restores_over,
};
use crate::{
    restore_write::store::{Files, pages, store_as},
    support::{faulty::Faulty, memory::Memory, random::Random},
};

/// How long there are schedules where nobody says how many.
const BRIEF: Duration = Duration::from_secs(20);

/// What all schedules of a run came to.
#[derive(Default)]
struct Tally {
    schedules: AtomicU64,
    steps: AtomicU64,
    faults: AtomicU64,
    deaths: AtomicU64,
    restores: AtomicU64,
}

/// What a backup may be, as far as anybody was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// It was acknowledged.
    Kept,
    /// It was to go, and nobody knows how far that came.
    Going,
    /// It was acknowledged that it is gone, or it never was one.
    Gone,
}

struct World<'a> {
    random: Random,
    tally: &'a Tally,
    chain: Chain,
    storage: Memory,
    faulty: Faulty,
    told: BTreeMap<String, Told>,
    /// The last segment that was acknowledged.
    last: u64,
    steps: Vec<String>,
}

impl World<'_> {
    fn new<'a>(start: &Chain, seed: u64, tally: &'a Tally) -> World<'a> {
        let storage = start.storage();
        let chain = Chain { objects: start.objects.clone(), files: start.files.clone() };
        World {
            random: Random::of_seed(seed),
            tally,
            chain,
            faulty: Faulty::new(Arc::new(storage.clone())),
            storage,
            told: [BASE, FIRST, SECOND, THIRD].map(|id| (id.to_owned(), Told::Kept)).into(),
            last: SEGMENTS,
            steps: Vec::new(),
        }
    }

    /// Decides what goes wrong in the next step, and says it.
    fn trouble(&mut self) -> String {
        self.faulty.heal();
        match self.random.below(6) {
            0 | 1 => "nothing".to_owned(),
            2 | 3 => {
                let (n, done) = (1 + self.random.below(12), self.random.below(2) == 0);
                self.faulty.dies(n, done);
                format!("death at change {n}, done: {done}")
            }
            4 => {
                let (operation, fault) = FAULTS[self.random.below(FAULTS.len() as u64) as usize];
                let n = 1 + self.random.below(20);
                self.faulty.nth(operation, n, fault);
                format!("{fault:?} at {operation:?} {n}")
            }
            _ => {
                let (seed, of) = (self.random.below(u64::MAX), 2 + self.random.below(30));
                self.faulty.random(seed, of);
                format!("one in {of} fails")
            }
        }
    }

    fn kept(&self) -> Vec<String> {
        let kept = self.told.iter().filter(|(_, told)| **told == Told::Kept);
        kept.map(|(id, _)| id.clone()).collect()
    }

    async fn step(&mut self) {
        let what = self.random.below(8);
        let trouble = self.trouble();
        let before = self.steps.len();
        match what {
            0 | 1 => self.delete(&trouble).await,
            2 | 3 => self.expire(&trouble).await,
            4 => {
                self.steps.push(format!("clean up, {trouble}"));
                // One that can't even be opened is left alone.
                if let Ok(repository) = self.opened().await {
                    let done = clean_up(&repository, &layout(), &Silent).await;
                    assert!(
                        done.is_ok() || self.faulty.faults() > 0,
                        "{done:?}: {:#?}",
                        self.steps
                    );
                }
            }
            5 => self.back_up().await,
            _ => self.restore_one(&trouble).await,
        }
        let faults = self.faulty.faults();
        self.tally.steps.fetch_add((self.steps.len() - before) as u64, Ordering::Relaxed);
        self.tally.faults.fetch_add(faults, Ordering::Relaxed);
        let died = faults > 0 && trouble.starts_with("death");
        self.tally.deaths.fetch_add(u64::from(died), Ordering::Relaxed);
        self.check().await;
    }

    async fn opened(&self) -> Result<Repository> {
        let storage = Arc::new(self.faulty.clone());
        Repository::open("main", storage, &KeyMaterial::None, 1).await
    }

    async fn delete(&mut self, trouble: &str) {
        let all: Vec<String> = self.told.keys().cloned().collect();
        let one = all[self.random.below(all.len() as u64) as usize].clone();
        self.steps.push(format!("delete {one}, {trouble}"));
        let Ok(repository) = self.opened().await else { return };
        let was = self.told[&one];
        match delete(&repository, &layout(), &id(&one), false, &Silent).await {
            Ok(Some(_)) => self.told.insert(one, Told::Gone),
            Ok(None) => {
                assert_ne!(was, Told::Kept, "{one} is said not to be there: {:#?}", self.steps);
                None
            }
            Err(_) if was == Told::Kept => self.told.insert(one, Told::Going),
            Err(_) => None,
        };
    }

    async fn expire(&mut self, trouble: &str) {
        let minimum = 1 + self.random.below(3) as u32;
        self.steps.push(format!("expire all but {minimum}, {trouble}"));
        let rules = RetentionSettings { minimum: Some(minimum), ..RetentionSettings::NONE };
        let before = listed(&self.storage).await;
        let Ok(repository) = self.opened().await else { return };
        let done = expire(&repository, &layout(), &rules, false, &Silent).await;
        if self.faulty.faults() == 0 {
            done.unwrap_or_else(|e| panic!("{e}: {:#?}", self.steps));
            let left = before.len().min(minimum as usize);
            assert_eq!(listed(&self.storage).await.len(), left, "{:#?}", self.steps);
        }
        // The newest ones stay, also of those that were to go before. Of the others nobody was told that they do.
        let may_go = before.len().saturating_sub(minimum as usize);
        for id in &before[..may_go] {
            self.told.insert(id.clone(), Told::Going);
        }
    }

    /// Takes a full backup, or loses one in the making.
    async fn back_up(&mut self) {
        let number = self.told.len() as u64;
        let segment = self.last;
        let name = format!("202611{:02}T{:02}0000Z-full", 24 + number / 24, number % 24);
        let mut files = Files::default();
        files.put("global/pg_control", pages(100 + number, 1));
        files.put("PG_VERSION", "15\n");
        let label = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n";
        files.put("backup_label", label);
        files.put("base/1/1", pages(200 + number, 5));
        let repository = open(Arc::new(self.storage.clone())).await;
        let order = ["base/1/1".to_owned()];
        let order: Vec<&String> = order.iter().collect();
        let (layout, mut table) = (layout(), BackupTable::default());
        let at = (&repository, &layout);
        let stored = store_as(at, &name, &files, &order, None, &mut table, |record| {
            place(record, segment, 4 + number as i64);
        });
        let record = stored.await.record;
        archive(&repository, &record, Timeline(1), segment + 1..=segment + 3, record.stopped_at)
            .await;
        self.last = segment + 3;
        let is_lost = self.random.below(3) == 0;
        if is_lost {
            let folder = format!("clusters/main/backups/{name}/");
            let mut objects = self.storage.objects();
            let of_it: Vec<String> =
                objects.keys().filter(|name| name.starts_with(&folder)).cloned().collect();
            objects.remove(&format!("{folder}backup.json"));
            // What came before may be there or not.
            for name in of_it.iter().filter(|name| !name.ends_with("/begin")) {
                if self.random.below(3) == 0 {
                    objects.remove(name);
                }
            }
        }
        self.steps.push(format!("back up {name}, lost: {is_lost}"));
        self.chain.files.insert(name.clone(), files);
        self.told.insert(name, if is_lost { Told::Gone } else { Told::Kept });
    }

    /// Restores one over the failing storage: the content is right, or it fails.
    async fn restore_one(&mut self, trouble: &str) {
        let kept = self.kept();
        let Some(one) = kept.get(self.random.below(1 + kept.len() as u64) as usize).cloned() else {
            return;
        };
        self.steps.push(format!("restore {one}, {trouble}"));
        let restored = restores_over(&self.chain, Arc::new(self.faulty.clone()), &one).await;
        self.tally.restores.fetch_add(u64::from(restored.is_ok()), Ordering::Relaxed);
        if self.faulty.faults() == 0 {
            restored.unwrap_or_else(|e| panic!("{one}: {e}: {:#?}", self.steps));
        }
    }

    /// What a sound look at the repository must find.
    async fn check(&mut self) {
        self.faulty.heal();
        let now: BTreeSet<String> = listed(&self.storage).await.into_iter().collect();
        for (id, told) in &mut self.told {
            let is_there = now.contains(id);
            match told {
                Told::Kept => assert!(is_there, "{id} is lost: {:#?}", self.steps),
                Told::Gone => assert!(!is_there, "{id} came back: {:#?}", self.steps),
                Told::Going if !is_there => *told = Told::Gone,
                Told::Going => {}
            }
        }
        let repository = open(Arc::new(self.storage.clone())).await;
        let newest = self.kept().pop();
        for id in &now {
            let record =
                catalog::read_record(&repository, &layout(), &super::id(id)).await.unwrap();
            let store = WalStore::new(&repository, &layout(), record.system);
            let size = SegmentSize::DEFAULT;
            let first = size.number_at(record.start_lsn);
            // From the newest one on, to every moment.
            let last = match newest.as_ref() == Some(id) {
                true => self.last,
                false => size.number_at(record.stop_lsn),
            };
            for number in first..=last {
                let segment = WalFile::Segment(size.name(Timeline(1), number));
                assert!(store.has(segment).await.unwrap(), "{segment} of {id}: {:#?}", self.steps);
            }
        }
    }

    /// Everything that is listed restores in the end.
    async fn end(&mut self) {
        for id in listed(&self.storage).await {
            let restored = restores(&self.chain, &self.storage, &id).await;
            restored
                .unwrap_or_else(|e| panic!("{id} is listed and broken: {e}: {:#?}", self.steps));
            self.tally.restores.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// `PGKEEP_TEST_SCHEDULES` says how many there are. They run on two threads.
#[test]
fn whatever_happens_what_was_acknowledged_is_there() {
    let many: Option<u64> = std::env::var("PGKEEP_TEST_SCHEDULES")
        .ok()
        .map(|many| many.parse().expect("PGKEEP_TEST_SCHEDULES is a number"));
    // One that has failed, alone.
    let again: Option<u64> = std::env::var("PGKEEP_TEST_SCHEDULE")
        .ok()
        .map(|seed| seed.parse().expect("PGKEEP_TEST_SCHEDULE is a number"));
    let many = again.map(|_| 1).or(many);
    let first = again.unwrap_or_else(|| Random::of_this_run().below(1 << 48));
    let begun = Instant::now();
    let (next, tally) = (AtomicU64::new(0), Tally::default());
    let is_over = |number: u64| match many {
        Some(many) => number >= many,
        None => begun.elapsed() > BRIEF,
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let runtime =
                    tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
                let start = runtime.block_on(Chain::make());
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if is_over(number) {
                        return;
                    }
                    let seed = first + number;
                    let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        runtime.block_on(async {
                            let mut world = World::new(&start, seed, &tally);
                            for _ in 0..4 + world.random.below(8) {
                                world.step().await;
                            }
                            world.end().await;
                        });
                    }));
                    if let Err(panic) = told {
                        eprintln!(
                            "the schedule that failed is that of PGKEEP_TEST_SCHEDULE={seed}"
                        );
                        std::panic::resume_unwind(panic);
                    }
                    tally.schedules.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
    println!(
        "{} schedules of {} steps: {} faults, {} deaths, {} restores compared, in {} s",
        of(&tally.schedules),
        of(&tally.steps),
        of(&tally.faults),
        of(&tally.deaths),
        of(&tally.restores),
        begun.elapsed().as_secs()
    );
    assert!(again.is_some() || (of(&tally.deaths) > 0 && of(&tally.restores) > 0));
}
