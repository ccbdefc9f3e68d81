//! The code itself: a backup that is committed while its base is deleted or expires with its WAL, or
//! while it is taken for a crashed one and cleaned up, in all orders of what the two do.

use std::sync::Arc;

use pgkeep::{
    backup::commit,
    config::RetentionSettings,
    error::{Error, Result},
    postgres::{SegmentSize, Timeline},
    progress::Silent,
    repo::{
        BackupId, BackupType, Repository,
        catalog::register_system,
        keys::KeyMaterial,
        layout::ClusterLayout,
        manifest::{ClusterFacts, Manifest, Reference},
        record::BackupRecord,
        sealed::put_sealed,
        tree::BackupTable,
    },
    retention,
};
use tokio::runtime::{Builder, Runtime};

use super::steps::{Gate, Process, all_orders, random_order};
use crate::{
    restore_write::store::{Files, record},
    retention::{archive, place},
    support::memory::{Memory, Objects},
};

const FULL: &str = "20261120T195812Z-full";
const INCR: &str = "20261121T195812Z-incr";
/// Taken while other things happen, it uses nothing of the second one, which is its base.
const APART: &str = "20261122T195812Z-incr";
/// As that, and it does use a pack of its base.
const SHARING: &str = "20261123T195812Z-incr";
/// As that, and it uses nothing of others; its WAL begins before that of the others, as that
/// of a standby that lags may.
const LAGGING: &str = "20261124T195812Z-full";
const ALL: [&str; 5] = [FULL, INCR, APART, SHARING, LAGGING];

/// Keeps the newest backup, and all WAL from there on.
const ONE: RetentionSettings = RetentionSettings { minimum: Some(1), ..RetentionSettings::NONE };

/// The first of the two segments that a backup begins and ends in.
fn first_segment(backup: &str) -> u64 {
    match backup {
        FULL | LAGGING => 2,
        INCR => 4,
        _ => 6,
    }
}

fn id(text: &str) -> BackupId {
    text.parse().expect("an id")
}

fn layout() -> ClusterLayout {
    ClusterLayout::new("main").expect("a name")
}

fn runtime() -> Runtime {
    Builder::new_current_thread().build().expect("a runtime")
}

async fn open(storage: Arc<dyn pgkeep::storage::Storage>) -> Repository {
    Repository::open("main", storage, &KeyMaterial::None, 1).await.expect("open it")
}

/// What a backup's list names: packs 0 and 1 of itself, and some of those before it.
fn list(backup: &str) -> Vec<(&str, u32)> {
    let others: &[(&str, u32)] = match backup {
        FULL | LAGGING => &[],
        SHARING => &[(FULL, 0), (INCR, 1)],
        _ => &[(FULL, 0)],
    };
    [others, &[(backup, 0), (backup, 1)]].concat()
}

/// Takes a backup, as far as storing it goes.
async fn back_up(repository: &Repository, backup: &str, base: Option<&str>) -> Result<()> {
    let (layout, own) = (layout(), id(backup));
    put_sealed(repository, &layout.of_backup(&own, "begin"), b"").await?;
    for pack in [0, 1] {
        put_sealed(repository, &layout.pack(&own, pack), b"pages").await?;
    }
    let references = list(backup).into_iter();
    let references =
        references.map(|(of, pack)| Reference { backup: id(of), pack, live: 5 }).collect();
    let facts = ClusterFacts {
        format: 1,
        backup: own.clone(),
        block_size: 8192,
        directory_mode: 0o700,
        tablespaces: Vec::new(),
        entries: 0,
        bytes: 0,
    };
    let leaves = Vec::new();
    let manifest = Manifest { facts, leaves, table: BackupTable::default(), references };
    manifest.create(repository, &layout).await?;
    let kind = if base.is_some() { BackupType::Incr } else { BackupType::Full };
    let base = base.map(id);
    let mut record =
        BackupRecord { kind, asked: kind, base, ..record(&own, &Files::default(), 0, 0) };
    let day = ALL.iter().position(|known| *known == backup).expect("a known one");
    place(&mut record, first_segment(backup), day as i64);
    commit::commit(repository, &layout, &record).await
}

/// A repository with two backups.
fn two_backups() -> Objects {
    runtime().block_on(async {
        let memory = Memory::default();
        Repository::init(&memory, &KeyMaterial::None).await.expect("make it");
        let repository = open(Arc::new(memory.clone())).await;
        back_up(&repository, FULL, None).await.expect("the first");
        back_up(&repository, INCR, Some(FULL)).await.expect("the second");
        let wal = record(&id(INCR), &Files::default(), 0, 0);
        register_system(&repository, &layout(), wal.system).await.expect("register it");
        archive(&repository, &wal, Timeline(1), 2..=7, wal.stopped_at).await;
        memory.objects().clone()
    })
}

/// What goes on beside the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Delete(&'static str),
    CleanUp,
    Expire,
}

/// A repository and the gates in front of it.
struct World {
    memory: Memory,
    gates: Vec<(Gate, Repository)>,
}

impl World {
    fn of(objects: &Objects, processes: usize) -> Self {
        let memory = Memory::of(objects.clone());
        let runtime = runtime();
        let gates = (0..processes).map(|_| {
            let gate = Gate::before(&memory);
            let repository = runtime.block_on(open(Arc::new(gate.clone())));
            gate.lock();
            (gate, repository)
        });
        World { gates: gates.collect(), memory }
    }

    /// The backup, on the second one, and what goes on beside it.
    fn processes(&self, running: &'static str, beside: &[Beside]) -> Vec<Process<'_>> {
        let text = |e: Error| e.to_string();
        let (gate, repository) = &self.gates[0];
        let base = (running != LAGGING).then_some(INCR);
        let backup = async move { back_up(repository, running, base).await.map_err(text) };
        let mut processes = vec![Process::start(gate, backup)];
        for ((gate, repository), beside) in self.gates[1..].iter().zip(beside.iter().copied()) {
            let work = async move {
                let layout = layout();
                match beside {
                    Beside::Delete(backup) => {
                        retention::delete(repository, &layout, &id(backup), false, &Silent)
                            .await
                            .map(drop)
                    }
                    Beside::CleanUp => {
                        retention::clean_up(repository, &layout, &Silent).await.map(drop)
                    }
                    Beside::Expire => {
                        retention::expire(repository, &layout, &ONE, false, &Silent).await.map(drop)
                    }
                }
                .map_err(text)
            };
            processes.push(Process::start(gate, work));
        }
        processes
    }

    fn has(&self, backup: &str, part: &str) -> bool {
        let name = layout().of_backup(&id(backup), part);
        self.memory.objects().contains_key(name.as_str())
    }

    fn is_listed(&self, backup: &str) -> bool {
        self.has(backup, "backup.json") && self.has(backup, "begin") && !self.has(backup, "deleted")
    }

    /// Whether the WAL of a backup itself is there.
    fn has_wal(&self, backup: &str) -> bool {
        let first = first_segment(backup);
        let objects = self.memory.objects();
        (first..=first + 1).all(|number| {
            let name = SegmentSize::DEFAULT.name(Timeline(1), number).to_string();
            objects.keys().any(|object| object.ends_with(&name))
        })
    }

    /// That what is listed is whole, and what has succeeded is listed.
    fn check(&self, processes: &[Process<'_>], running: &str, beside: &[Beside], order: &[usize]) {
        for backup in ALL {
            let succeeded = match backup {
                FULL | INCR => true,
                _ => backup == running && processes[0].result() == Some(&Ok(())),
            };
            let listed = self.is_listed(backup);
            // The first expires in any case, as does one that lags; the base when a newer one is there.
            let expires = beside.contains(&Beside::Expire)
                && match backup {
                    FULL | LAGGING => true,
                    INCR => running != LAGGING && self.has(running, "backup.json"),
                    _ => false,
                };
            if succeeded && !expires && !beside.contains(&Beside::Delete(backup)) {
                assert!(listed, "{backup} has succeeded and is gone: {order:?}");
            }
            if succeeded && listed {
                assert!(self.has_wal(backup), "{backup} lacks WAL: {order:?}");
            }
            for (of, pack) in list(backup) {
                let there = self.has(of, &format!("packs/{pack:06}"));
                assert!(there || !listed, "{backup} lacks pack {pack} of {of}: {order:?}");
            }
        }
    }

    /// That a last clean-up leaves what the backups need and nothing else.
    fn check_tidy(&self) {
        runtime().block_on(async {
            let repository = open(Arc::new(self.memory.clone())).await;
            let listed = |backup: &&str| self.is_listed(backup);
            let before: Vec<&str> = ALL.into_iter().filter(listed).collect();
            retention::clean_up(&repository, &layout(), &Silent).await.expect("clean up");
            let after: Vec<&str> = ALL.into_iter().filter(listed).collect();
            assert_eq!(before, after);
            for backup in &after {
                assert!(self.has_wal(backup), "{backup} lacks WAL");
            }
            let needed: Vec<_> = after.iter().flat_map(|backup| list(backup)).collect();
            for backup in ALL {
                for pack in [0, 1] {
                    let there = self.has(backup, &format!("packs/{pack:06}"));
                    assert_eq!(there, needed.contains(&(backup, pack)), "pack {pack} of {backup}");
                }
                let any = needed.iter().any(|(of, _)| *of == backup);
                assert_eq!(self.has(backup, "manifest"), any, "the folder of {backup}");
            }
        });
    }
}

fn every_order(running: &'static str, beside: &[Beside]) {
    let objects = two_backups();
    let orders = all_orders(
        || World::of(&objects, 1 + beside.len()),
        |world| world.processes(running, beside),
        |world, processes, order| world.check(processes, running, beside, order),
        World::check_tidy,
    );
    println!("{orders} orders of backup {running} beside {beside:?}");
    assert!(orders > 50, "{orders} orders");
}

#[test]
fn a_backup_and_the_deletion_of_its_base_in_every_order() {
    every_order(SHARING, &[Beside::Delete(INCR)]);
    every_order(APART, &[Beside::Delete(INCR)]);
}

#[test]
fn a_backup_and_the_deletion_of_what_its_base_uses_in_every_order() {
    every_order(SHARING, &[Beside::Delete(FULL)]);
}

#[test]
fn a_backup_that_is_taken_for_a_crashed_one_in_every_order() {
    every_order(APART, &[Beside::CleanUp]);
}

/// How many orders are tried where there are too many for all.
const ORDERS: u64 = 800;

/// Three and more at once have too many orders, as has an expiry: some of them, by their seeds.
fn random_orders(beside: &[Beside]) {
    let objects = two_backups();
    for seed in 0..ORDERS {
        let running = [APART, SHARING, LAGGING][(seed % 3) as usize];
        let world = World::of(&objects, 1 + beside.len());
        let mut processes = world.processes(running, beside);
        let order = random_order(seed, &mut processes, |processes, order| {
            world.check(processes, running, beside, order);
        });
        assert!(order.len() > 40, "seed {seed}: {order:?}");
        drop(processes);
        world.check_tidy();
    }
}

#[test]
fn two_deletions_beside_a_backup_in_random_orders() {
    random_orders(&[Beside::Delete(INCR), Beside::Delete(FULL)]);
}

#[test]
fn a_backup_and_an_expiry_in_random_orders() {
    random_orders(&[Beside::Expire]);
}

#[test]
fn two_expiries_beside_a_backup_in_random_orders() {
    random_orders(&[Beside::Expire, Beside::Expire]);
}

#[test]
fn two_clean_ups_and_a_deletion_beside_a_backup_in_random_orders() {
    random_orders(&[Beside::CleanUp, Beside::CleanUp, Beside::Delete(INCR)]);
}
