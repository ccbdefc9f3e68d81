//! Expiring: what the rules take, and that it can be interrupted anywhere.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use chrono::TimeDelta;
use pgkeep::{
    config::RetentionSettings,
    error::{Error, Kind},
    postgres::{Lsn, SegmentSize, Timeline},
    progress::{Progress, Silent},
    repo::{
        Repository,
        catalog::{self, PAGE},
        drill::{DrillRecord, KEPT, put_drill},
        keys::KeyMaterial,
        lease::{HeldLease, Lease, leases},
        record::Source,
        sealed::put_sealed,
        timelines::WalInventory,
        wal::WalStore,
        wal_floor::Floors,
        wal_gaps::gaps,
    },
    restore::{RestoreRequest, Target, choose::choose},
    retention::{Expiry, expire, pin},
    storage::{ErrorKind, Storage},
};

use super::{
    BASE, Chain, FAULTS, FIRST, SECOND, SEGMENTS, THIRD, archive, archive_one, begin, folders, id,
    layout, listed, open, place, restores,
};
use crate::support::{
    faulty::{Fault, Faulty, Operation},
    memory::Memory,
};

/// Keeps the two newest backups with all WAL from there on.
const TWO: RetentionSettings = RetentionSettings { minimum: Some(2), ..RetentionSettings::NONE };

async fn expire_over(
    storage: Arc<dyn Storage>,
    rules: &RetentionSettings,
) -> Result<Expiry, Error> {
    let repository = open(storage).await;
    expire(&repository, &layout(), rules, false, &Silent).await
}

/// The numbers of a timeline's segments that are there.
fn segments(storage: &Memory, timeline: u32) -> BTreeSet<u64> {
    let folder = format!("/{timeline:08X}/");
    let names =
        storage.objects().keys().filter(|n| n.contains(&folder)).cloned().collect::<Vec<_>>();
    let number = |name: &String| u64::from_str_radix(&name[name.len() - 8..], 16).ok();
    names.iter().filter_map(number).collect()
}

/// What is listed is whole, with the WAL it needs; the two newest are listed, and all WAL since.
async fn check(chain: &Chain, storage: &Memory, when: &str) {
    let now = listed(storage).await;
    let there = segments(storage, 1);
    for backup in &now {
        let restored = restores(chain, storage, backup).await;
        assert!(restored.is_ok(), "{when}: {backup} is listed and broken: {restored:?}");
        let number = [BASE, FIRST, SECOND, THIRD].iter().position(|b| b == backup).unwrap() as u64;
        for segment in [2 + 3 * number, 3 + 3 * number] {
            assert!(there.contains(&segment), "{when}: segment {segment} of {backup} is gone");
        }
    }
    for backup in [SECOND, THIRD] {
        assert!(now.iter().any(|id| id == backup), "{when}: {backup} isn't listed");
    }
    assert!((8..=SEGMENTS).all(|segment| there.contains(&segment)), "{when}: {there:?}");
}

#[tokio::test]
async fn an_expiry_that_dies_at_any_step_is_finished_by_the_next() {
    let chain = Chain::make().await;
    let undisturbed = chain.storage();
    let faulty = Faulty::new(Arc::new(undisturbed.clone()));
    faulty.heal();
    expire_over(Arc::new(faulty.clone()), &TWO).await.unwrap();
    let steps = faulty.changes();
    // Two marks, a floor and seven segments at least.
    assert!(steps >= 10, "{steps}: {:?}", faulty.log());
    check(&chain, &undisturbed, "undisturbed").await;
    assert_eq!(segments(&undisturbed, 1), (8..=SEGMENTS).collect());
    assert_eq!(listed(&undisturbed).await, [SECOND, THIRD]);
    for step in 1..=steps {
        for done in [false, true] {
            let storage = chain.storage();
            let faulty = Faulty::new(Arc::new(storage.clone()));
            faulty.dies(step, done);
            let died = expire_over(Arc::new(faulty.clone()), &TWO).await;
            let when = format!("death at step {step} of {steps}, done: {done}");
            assert!(died.is_err() && faulty.faults() > 0, "{when}");
            check(&chain, &storage, &when).await;
            expire_over(Arc::new(storage.clone()), &TWO).await.unwrap();
            assert_eq!(folders(&storage), folders(&undisturbed), "{when}");
            assert_eq!(segments(&storage, 1), segments(&undisturbed, 1), "{when}");
        }
    }
    println!("{} deaths", 2 * steps);
}

#[tokio::test]
async fn what_backups_use_is_known_before_anything_expires() {
    let chain = Chain::make().await;
    for lose in [false, true] {
        let storage = chain.storage();
        let manifest = layout().of_backup(&id(THIRD), "manifest");
        let mut bytes = storage.objects().remove(manifest.as_str()).unwrap().to_vec();
        if !lose {
            bytes[100] ^= 1;
            storage.objects().insert(manifest.to_string(), bytes.into());
        }
        let before = (folders(&storage), segments(&storage, 1));
        let e = expire_over(Arc::new(storage.clone()), &TWO).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Damaged, "{e}");
        assert_eq!((folders(&storage), segments(&storage, 1)), before, "lost: {lose}");
        assert_eq!(listed(&storage).await, [BASE, FIRST, SECOND, THIRD]);
    }
}

#[tokio::test]
async fn an_expiry_that_meets_any_single_fault_does_no_harm() {
    let chain = Chain::make().await;
    let mut met = 0;
    for (operation, fault) in FAULTS {
        for n in 1.. {
            let storage = chain.storage();
            let faulty = Faulty::new(Arc::new(storage.clone()));
            let repository = open(Arc::new(faulty.clone())).await;
            faulty.nth(operation, n, fault);
            let result = expire(&repository, &layout(), &TWO, false, &Silent).await;
            if faulty.faults() == 0 {
                assert!(n > 1, "{operation:?} never happens");
                break;
            }
            met += 1;
            let when = format!("{operation:?} {n} {fault:?}");
            if fault != Fault::Flips {
                assert!(result.is_err(), "{when}: {result:?}");
            }
            check(&chain, &storage, &when).await;
            expire_over(Arc::new(storage.clone()), &TWO).await.unwrap();
            assert_eq!(listed(&storage).await, [SECOND, THIRD], "{when}");
            assert_eq!(segments(&storage, 1), (8..=SEGMENTS).collect(), "{when}");
        }
    }
    println!("{met} faults");
    assert!(met > 100, "{met}");
}

#[tokio::test]
async fn a_dry_run_says_what_is_then_done() {
    let chain = Chain::make().await;
    let storage = chain.storage();
    let repository = open(Arc::new(storage.clone())).await;
    // A backup that crashed after its first pack, and more drills than are kept.
    let crashed = id("20990101T000000Z-full");
    for name in [layout().of_backup(&crashed, "begin"), layout().pack(&crashed, 0)] {
        put_sealed(&repository, &name, b"x").await.unwrap();
    }
    let drills: Vec<_> = (0..KEPT as i64 + 3).map(drill_at).collect();
    for drill in &drills {
        put_drill(&repository, &layout(), drill).await.unwrap();
    }
    let before = storage.objects().clone();
    let planned = expire(&repository, &layout(), &TWO, true, &Silent).await.unwrap();
    assert_eq!(*storage.objects(), before, "a dry run changes nothing");
    let done = expire(&repository, &layout(), &TWO, false, &Silent).await.unwrap();
    let json = |expiry: &Expiry| {
        let mut json = serde_json::to_value(expiry).unwrap();
        json["dry-run"] = false.into();
        json
    };
    assert_eq!(json(&planned), json(&done));
    let swept = done.swept.iter().find(|swept| swept.backup == crashed).expect("it is told");
    assert_eq!(swept.freed.objects, 2, "the mark of its removal isn't counted: {swept:?}");
    assert_eq!(done.drills.objects, 3);
    let kept = pgkeep::repo::drill::drills(&repository, &layout()).await.unwrap();
    assert_eq!(kept, drills[3..], "the newest stay");
    let (was, is) = (before.len(), storage.objects().len());
    // Two marks and the floor are new, and no mark of a folder that is gone altogether.
    let marks = folders(&storage).len() - 2;
    assert_eq!(done.freed.objects as usize, was + 1 + marks - is, "{done:?}");
    assert_eq!(done.wal.len(), 1);
    assert_eq!(done.wal[0].first_kept, "000000010000000000000008");
    assert_eq!(done.windows[0].backup.as_str(), SECOND);
    // Again there is nothing to do.
    let objects = storage.objects().clone();
    let again = expire(&repository, &layout(), &TWO, false, &Silent).await.unwrap();
    assert_eq!(again.freed.objects, 0, "{again:?}");
    assert_eq!(*storage.objects(), objects);
}

#[tokio::test]
async fn points_keep_their_own_wal_and_no_more() {
    let chain = Chain::make().await;
    let storage = chain.storage();
    let repository = open(Arc::new(storage.clone())).await;
    // Four days have a backup; the newest keeps what follows, the pinned one its own.
    pin(&repository, &layout(), &id(BASE), None).await.unwrap();
    let daily = RetentionSettings { daily: Some(2), ..RetentionSettings::NONE };
    let done = expire(&repository, &layout(), &daily, false, &Silent).await.unwrap();
    let wal: Vec<_> = done.backups.iter().map(|v| serde_json::to_value(v.wal).unwrap()).collect();
    assert_eq!(wal, ["own", "none", "own", "all"]);
    assert_eq!(listed(&storage).await, [BASE, SECOND, THIRD]);
    let expected: BTreeSet<u64> = [2, 3, 8, 9].into_iter().chain(11..=SEGMENTS).collect();
    assert_eq!(segments(&storage, 1), expected);
    for backup in [BASE, SECOND, THIRD] {
        restores(&chain, &storage, backup).await.unwrap();
    }
}

/// A standby's backup stops where replay is: behind a switch that is where a segment begins. Recovery
/// stops only before a record, so it needs one from there.
#[tokio::test]
async fn a_point_that_stops_where_a_segment_ends_can_be_restored() {
    let chain = Chain::make().await;
    let storage = chain.storage();
    let repository = open(Arc::new(storage.clone())).await;
    let mut point = catalog::read_record(&repository, &layout(), &id(BASE)).await.unwrap();
    point.source = Source::Standby;
    point.stop_lsn = SegmentSize::DEFAULT.start_of(4);
    storage.objects().remove(&format!("{}backup.json", layout().backup_folder(&id(BASE))));
    catalog::commit(&repository, &layout(), &point).await.unwrap();
    pin(&repository, &layout(), &id(BASE), None).await.unwrap();
    for _ in 0..2 {
        let to_its_end = RestoreRequest {
            backup: Some(id(BASE)),
            ..RestoreRequest::new("pgdata".into(), Target::Immediate, "get".into())
        };
        let chosen = choose(&repository, &layout(), &to_its_end).await.unwrap();
        assert_eq!(chosen.record.id, id(BASE));
        expire(&repository, &layout(), &TWO, false, &Silent).await.unwrap();
        let expected: BTreeSet<u64> = (2..=4).chain(8..=SEGMENTS).collect();
        assert_eq!(segments(&storage, 1), expected);
    }
    // It isn't taken for one that has expired, either; what a timeline had that left there is.
    let store = WalStore::new(&repository, &layout(), point.system);
    let fork = Lsn(point.stop_lsn.0 + 0x800);
    store.store_history(Timeline(2), format!("1\t{fork}\tx\n").as_bytes()).await.unwrap();
    let mut floors = Floors::read(&repository, &layout(), point.system).await.unwrap();
    let expired = [(Timeline(2), SegmentSize::DEFAULT.start_of(9))].into();
    floors.write(&repository, &layout(), point.system, &expired).await.unwrap();
    let behind = SegmentSize::DEFAULT.name(Timeline(1), 4).to_string();
    for missing in [None, Some((4, 4))] {
        if missing.is_some() {
            storage.objects().retain(|object, _| !object.ends_with(&behind));
        }
        let inventory = WalInventory::read(&store, SegmentSize::DEFAULT).await.unwrap();
        let gaps =
            gaps(&store, &inventory, std::slice::from_ref(&point), Duration::ZERO).await.unwrap();
        let rows: Vec<_> = gaps.iter().map(|gap| (gap.first, gap.last)).collect();
        assert_eq!(rows, Vec::from_iter(missing));
    }
}

#[tokio::test]
async fn what_is_being_restored_stays_with_all_that_follows() {
    let chain = Chain::make().await;
    let storage = chain.storage();
    let repository = open(Arc::new(storage.clone())).await;
    let lease = Lease::new("restore", Some(id(BASE))).unwrap();
    let lease = HeldLease::take(&repository, &layout(), lease).await.unwrap();
    let done = expire(&repository, &layout(), &TWO, false, &Silent).await.unwrap();
    assert_eq!(listed(&storage).await, [BASE, SECOND, THIRD]);
    assert_eq!(segments(&storage, 1), (2..=SEGMENTS).collect());
    let kept_by = serde_json::to_value(&done.backups[0].kept_by).unwrap();
    assert_eq!(kept_by, serde_json::json!(["restoring"]));
    lease.release().await;
    expire(&repository, &layout(), &TWO, false, &Silent).await.unwrap();
    assert_eq!(listed(&storage).await, [SECOND, THIRD]);
}

/// Does something when it is told of a step.
struct AtStep<F>(&'static str, F);

impl<F: Fn() + Send + Sync> Progress for AtStep<F> {
    fn step(&self, message: &str) {
        if message.contains(self.0) {
            self.1();
        }
    }

    fn total(&self, _: Option<u64>) {}

    fn advance(&self, _: u64) {}

    fn warn(&self, _: &str) {}
}

#[tokio::test]
async fn what_is_restored_or_pinned_since_it_was_looked_at_stays() {
    let chain = Chain::make().await;
    let lease = Lease::new("restore", Some(id(FIRST))).unwrap();
    let restored = (layout().lease(lease.id).to_string(), serde_json::to_vec(&lease).unwrap());
    let pinned = {
        let storage = chain.storage();
        let repository = open(Arc::new(storage.clone())).await;
        let before: BTreeSet<String> = storage.objects().keys().cloned().collect();
        pin(&repository, &layout(), &id(FIRST), None).await.unwrap().unwrap();
        let objects = storage.objects();
        let (name, pin) = objects.iter().find(|(name, _)| !before.contains(*name)).unwrap();
        (name.clone(), pin.to_vec())
    };
    for (reason, (name, content)) in [("restoring", restored), ("pinned", pinned)] {
        let storage = chain.storage();
        let repository = open(Arc::new(storage.clone())).await;
        let meanwhile = AtStep(BASE, {
            let storage = storage.clone();
            move || drop(storage.objects().insert(name.clone(), content.clone().into()))
        });
        let done = expire(&repository, &layout(), &TWO, false, &meanwhile).await.unwrap();
        assert_eq!(listed(&storage).await, [FIRST, SECOND, THIRD], "{reason}");
        let kept_by = serde_json::to_value(&done.backups[1].kept_by).unwrap();
        assert_eq!(kept_by, serde_json::json!([reason]));
        let there = segments(&storage, 1);
        // Its own at least; of one that is restored all that follows.
        let last = if reason == "pinned" { 6 } else { SEGMENTS };
        assert!((5..=last).all(|segment| there.contains(&segment)), "{reason}: {there:?}");
        assert!(restores(&chain, &storage, FIRST).await.is_ok(), "{reason}");
    }
}

/// A timeline's first segment begins with what its parent had written in it, long ago.
#[tokio::test]
async fn a_timeline_that_has_just_begun_stays_with_the_backup_that_leads_there() {
    let chain = Chain::make().await;
    let storage = chain.storage();
    let repository = open(Arc::new(storage.clone())).await;
    let record = catalog::backups(&repository, &layout()).await.unwrap().remove(0);
    let store = WalStore::new(&repository, &layout(), record.system);
    let size = SegmentSize::DEFAULT;
    let (last, fork) = (Lsn(size.start_of(4).0 + 0x100), Lsn(size.start_of(4).0 + 0x200));
    let history = format!("1\t{fork}\tno recovery target specified\n");
    store.store_history(Timeline(2), history.as_bytes()).await.unwrap();
    // Its first segment comes only when that is full.
    expire_over(Arc::new(storage.clone()), &TWO).await.unwrap();
    assert_eq!(listed(&storage).await, [BASE, SECOND, THIRD]);
    assert_eq!(segments(&storage, 1), (2..=SEGMENTS).collect());
    let old = begin() + TimeDelta::hours(1);
    archive_one(&repository, &record, Timeline(2), 4, (old, last)).await;
    expire_over(Arc::new(storage.clone()), &TWO).await.unwrap();
    assert_eq!(listed(&storage).await, [BASE, SECOND, THIRD]);
    assert_eq!(segments(&storage, 2), [4].into());
    assert!(segments(&storage, 1).is_superset(&[2, 3].into()));
    // What it writes itself counts, and is older than all that is kept here.
    archive_one(&repository, &record, Timeline(2), 5, (old, size.start_of(6))).await;
    for when in ["when it expires", "when it has expired"] {
        // Its history is left, as at the beginning.
        expire_over(Arc::new(storage.clone()), &TWO).await.unwrap();
        assert_eq!(listed(&storage).await, [SECOND, THIRD], "{when}");
        assert_eq!(segments(&storage, 2), [].into(), "{when}");
    }
}

#[tokio::test]
async fn a_floor_that_somebody_else_wrote_is_made_durable() {
    let chain = Chain::make().await;
    let storage = chain.storage();
    let faulty = Faulty::new(Arc::new(storage.clone()));
    let repository = open(Arc::new(faulty.clone())).await;
    let system = catalog::read_record(&repository, &layout(), &id(THIRD)).await.unwrap().system;
    let raised = [(Timeline(1), SegmentSize::DEFAULT.start_of(8))].into();
    for written in [true, false] {
        let mut floors = Floors::read(&repository, &layout(), system).await.unwrap();
        faulty.heal();
        floors.write(&repository, &layout(), system, &raised).await.unwrap();
        let log = faulty.log();
        let has =
            |operation| log.iter().any(|(of, name)| *of == operation && name.contains("wal-floor"));
        assert_eq!((has(Operation::Finish), has(Operation::Sync)), (written, !written), "{log:?}");
    }
}

#[tokio::test]
async fn without_a_rule_nothing_goes_but_leftovers() {
    let chain = Chain::make().await;
    let storage = chain.storage();
    storage.objects().remove(&format!("{}backup.json", layout().backup_folder(&id(THIRD))));
    let before = segments(&storage, 1);
    let done = expire_over(Arc::new(storage.clone()), &RetentionSettings::NONE).await.unwrap();
    assert_eq!(listed(&storage).await, [BASE, FIRST, SECOND]);
    assert_eq!(segments(&storage, 1), before);
    let swept: Vec<_> = done.swept.iter().map(|swept| swept.backup.as_str()).collect();
    assert_eq!(swept, [THIRD], "a crashed backup is a leftover");
}

#[tokio::test]
async fn backups_that_cant_be_restored_count_for_nothing() {
    let chain = Chain::make().await;
    let storage = chain.storage();
    // The two newest lack a segment of their own.
    for number in [8, 12] {
        let name = SegmentSize::DEFAULT.name(Timeline(1), number).to_string();
        storage.objects().retain(|object, _| !object.ends_with(&name));
    }
    let done = expire_over(Arc::new(storage.clone()), &TWO).await.unwrap();
    // Both that can be restored stay. What the others lack may come yet, and they are newer.
    assert_eq!(listed(&storage).await.len(), 4, "{done:?}");
    let kept_by = |at: usize| serde_json::to_value(&done.backups[at].kept_by).unwrap();
    assert_eq!(kept_by(0), serde_json::json!(["minimum"]));
    assert_eq!(kept_by(3), serde_json::json!(["incomplete"]));
    // One that is older than all that is kept goes.
    let storage = chain.storage();
    let name = SegmentSize::DEFAULT.name(Timeline(1), 5).to_string();
    storage.objects().retain(|object, _| !object.ends_with(&name));
    expire_over(Arc::new(storage.clone()), &TWO).await.unwrap();
    assert_eq!(listed(&storage).await, [SECOND, THIRD]);
    // And where none can, all stay.
    let storage = chain.storage();
    storage.objects().retain(|object, _| !object.contains("/00000001/"));
    expire_over(Arc::new(storage.clone()), &TWO).await.unwrap();
    assert_eq!(listed(&storage).await.len(), 4);
}

#[tokio::test]
async fn floors_are_a_timelines_own_and_older_ones_go() {
    let chain = Chain::make().await;
    let storage = chain.storage();
    let repository = open(Arc::new(storage.clone())).await;
    let three = RetentionSettings { minimum: Some(3), ..RetentionSettings::NONE };
    let newest = catalog::read_record(&repository, &layout(), &id(THIRD)).await.unwrap();
    for (rules, number) in [(&three, 5), (&TWO, 8)] {
        expire(&repository, &layout(), rules, false, &Silent).await.unwrap();
        let floors = Floors::read(&repository, &layout(), newest.system).await.unwrap();
        assert_eq!(floors.of(Timeline(1)), SegmentSize::DEFAULT.start_of(number));
        assert_eq!(floors.of(Timeline(2)).0, 0, "nothing was cut of another timeline");
        let objects = storage.objects();
        assert_eq!(objects.keys().filter(|name| name.contains("/wal-floor/")).count(), 1);
    }
}

#[tokio::test]
async fn what_no_backup_leads_to_goes_when_it_is_older_than_all_that_stays() {
    let chain = Chain::make().await;
    for (time, stays) in
        [(begin() - TimeDelta::days(9), false), (begin() + TimeDelta::days(9), true)]
    {
        let storage = chain.storage();
        let repository = open(Arc::new(storage.clone())).await;
        let mut other = catalog::read_record(&repository, &layout(), &id(THIRD)).await.unwrap();
        other.system.identifier += 1;
        place(&mut other, 1, 0);
        catalog::register_system(&repository, &layout(), other.system).await.unwrap();
        archive(&repository, &other, Timeline(1), 1..=3, time).await;
        expire(&repository, &layout(), &TWO, false, &Silent).await.unwrap();
        let left =
            storage.objects().keys().filter(|n| n.contains(&other.system.to_string())).count();
        // Its registration stays in any case.
        assert_eq!(left, if stays { 4 } else { 1 });
    }
}

#[tokio::test]
async fn what_is_held_is_told_and_goes_later() {
    let chain = Chain::make().await;
    let storage = chain.storage();
    let faulty = Faulty::new(Arc::new(storage.clone()));
    let repository = open(Arc::new(faulty.clone())).await;
    let deletes = {
        let undisturbed = Faulty::new(Arc::new(chain.storage()));
        undisturbed.heal();
        expire_over(Arc::new(undisturbed.clone()), &TWO).await.unwrap();
        undisturbed.log().iter().filter(|(operation, _)| *operation == Operation::Delete).count()
    };
    for n in 1..=deletes as u64 {
        faulty.nth(Operation::Delete, n, Fault::Fails(ErrorKind::Locked));
        let held = expire(&repository, &layout(), &TWO, false, &Silent).await.unwrap();
        let hit = faulty.faults();
        let about = faulty.log();
        faulty.heal();
        if hit > 0 {
            assert!(
                held.held.objects == 1 || about.iter().any(|(_, name)| name.contains("wal-floor")),
                "delete {n}: {held:?}"
            );
        }
        check(&chain, &storage, &format!("delete {n} was refused")).await;
    }
    let rest = expire(&repository, &layout(), &TWO, false, &Silent).await.unwrap();
    assert_eq!(rest.held.objects, 0, "{rest:?}");
    assert_eq!(segments(&storage, 1), (8..=SEGMENTS).collect());
}

/// The result of a drill at this minute.
fn drill_at(minute: i64) -> DrillRecord {
    let json = serde_json::json!({
        "format": 1, "repository": "main", "cluster": "main", "backup": SECOND, "system": null,
        "host": "db1", "began": "2026-11-20T20:00:00Z", "passed": true, "target": "the end",
        "timeline": 1, "restored": null, "rto": {}, "rpo": null,
        "versions": { "pgkeep": "0.1.0" }, "checks": [],
    });
    let drill: DrillRecord = serde_json::from_value(json).unwrap();
    DrillRecord { began: drill.began + chrono::Duration::minutes(minute), ..drill }
}

/// A bucket that holds objects holds leases as well, and there may be more than one listing has.
#[tokio::test]
async fn all_leases_are_read_however_many_there_are() {
    let memory = Memory::default();
    Repository::init(&memory, &KeyMaterial::None).await.unwrap();
    let repository = open(Arc::new(memory.clone())).await;
    let before = leases(&repository, &layout()).await.unwrap().len();
    for _ in 0..=PAGE {
        let lease = Lease::new("restore", None).unwrap();
        let json = serde_json::to_vec(&lease).unwrap();
        repository.storage().replace(&layout().lease(lease.id), json.into()).await.unwrap();
    }
    assert_eq!(leases(&repository, &layout()).await.unwrap().len(), before + PAGE + 1);
}
