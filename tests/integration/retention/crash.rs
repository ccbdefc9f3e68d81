//! Deletions that are interrupted at every step, or meet a fault there.

use std::sync::Arc;

use pgkeep::{
    error::{Error, Kind},
    progress::Silent,
    repo::{catalog, manifest::Manifest},
    retention::{clean_up, delete},
    storage::{ObjectName, Storage},
};

use super::{
    BASE, Chain, FAULTS, FIRST, SECOND, THIRD, folders, id, layout, listed, open, restores,
};
use crate::support::{
    faulty::{Fault, Faulty},
    memory::Memory,
};

async fn delete_over(storage: Arc<dyn Storage>, backup: &str) -> Result<(), Error> {
    let repository = open(storage).await;
    delete(&repository, &layout(), &id(backup), false, &Silent).await.map(drop)
}

/// What has to be after an interrupted deletion: all others are listed and restore; the one is too,
/// or isn't listed.
async fn check(chain: &Chain, storage: &Memory, deleting: &str, gone: &[&str], when: &str) {
    let now = listed(storage).await;
    for backup in chain.files.keys().filter(|backup| !gone.contains(&backup.as_str())) {
        let there = now.iter().any(|id| id == backup);
        assert!(there || *backup == deleting, "{when}: {backup} isn't listed");
        if there {
            let restored = restores(chain, storage, backup).await;
            assert!(restored.is_ok(), "{when}: {backup} is listed and broken: {restored:?}");
        }
    }
    assert!(!gone.iter().any(|g| now.iter().any(|id| id == g)), "{when}: a backup came back");
}

/// Dies at each step of deleting `backup`, where `gone` are deleted already; the next run finishes it.
async fn die_everywhere(chain: &Chain, start: &Memory, backup: &str, gone: &[&str]) -> Memory {
    let undisturbed = Memory::of(start.objects().clone());
    let faulty = Faulty::new(Arc::new(undisturbed.clone()));
    faulty.heal();
    delete_over(Arc::new(faulty.clone()), backup).await.unwrap();
    let steps = faulty.changes();
    assert!(steps >= 1, "{:?}", faulty.log());
    for step in 1..=steps {
        for done in [false, true] {
            let storage = Memory::of(start.objects().clone());
            let faulty = Faulty::new(Arc::new(storage.clone()));
            faulty.dies(step, done);
            let died = delete_over(Arc::new(faulty.clone()), backup).await;
            assert!(died.is_err() && faulty.faults() > 0);
            let when = format!("death at step {step} of deleting {backup}, done: {done}");
            check(chain, &storage, backup, gone, &when).await;
            // Run again, it comes to the same as if nothing had happened.
            delete_over(Arc::new(storage.clone()), backup).await.unwrap();
            assert_eq!(folders(&storage), folders(&undisturbed), "{when}");
        }
    }
    undisturbed
}

#[tokio::test]
async fn a_deletion_that_dies_at_any_step_is_finished_by_the_next() {
    let chain = Chain::make().await;
    for order in [[BASE, SECOND, FIRST, THIRD], [THIRD, BASE, FIRST, SECOND]] {
        let mut storage = chain.storage();
        let mut gone = Vec::new();
        for backup in order {
            storage = die_everywhere(&chain, &storage, backup, &gone).await;
            gone.push(backup);
            check(&chain, &storage, backup, &gone, "undisturbed").await;
        }
        assert!(folders(&storage).is_empty(), "{:?}", folders(&storage));
    }
}

#[tokio::test]
async fn a_deletion_that_meets_any_single_fault_does_no_harm() {
    let chain = Chain::make().await;
    for (operation, fault) in FAULTS {
        for n in 1.. {
            let storage = chain.storage();
            let faulty = Faulty::new(Arc::new(storage.clone()));
            let opened = open(Arc::new(faulty.clone())).await;
            faulty.nth(operation, n, fault);
            let result = delete(&opened, &layout(), &id(BASE), false, &Silent).await;
            let met = faulty.faults() > 0;
            let when = format!("{operation:?} {n} {fault:?}");
            if fault != Fault::Flips {
                assert_eq!(result.is_err(), met, "{when}: {result:?}");
            }
            check(&chain, &storage, BASE, &[], &when).await;
            delete_over(Arc::new(storage.clone()), BASE).await.unwrap();
            assert_eq!(listed(&storage).await, [FIRST, SECOND, THIRD], "{when}");
            if !met {
                assert!(n > 1, "{operation:?} never happens");
                break;
            }
        }
    }
}

#[tokio::test]
async fn packs_stay_as_long_as_somebody_uses_them() {
    let chain = Chain::make().await;
    let storage = chain.storage();
    let repository = open(Arc::new(storage.clone())).await;
    let before = folders(&storage);
    let report = delete(&repository, &layout(), &id(BASE), true, &Silent).await.unwrap().unwrap();
    assert_eq!(folders(&storage), before, "a dry run changes nothing");
    assert_eq!(storage.objects().len(), chain.objects.len());
    let users: Vec<String> =
        report.swept.used_by.iter().map(|user| user.backup.to_string()).collect();
    assert_eq!(users, [FIRST, SECOND, THIRD]);
    assert!(report.swept.freed.objects > 0 && report.swept.kept.objects > 0, "{report:?}");
    // What it said is what then happens.
    let done = delete(&repository, &layout(), &id(BASE), false, &Silent).await.unwrap().unwrap();
    assert_eq!(done.swept, report.swept);
    let freed = before[BASE] - folders(&storage)[BASE];
    assert_eq!(freed as u64, report.swept.freed.objects);
    for backup in [FIRST, SECOND, THIRD] {
        restores(&chain, &storage, backup).await.unwrap();
    }
    // The last user takes the rest along.
    for backup in [SECOND, FIRST] {
        delete(&repository, &layout(), &id(backup), false, &Silent).await.unwrap();
    }
    restores(&chain, &storage, THIRD).await.unwrap();
    assert!(folders(&storage).contains_key(BASE));
    let last = delete(&repository, &layout(), &id(THIRD), false, &Silent).await.unwrap().unwrap();
    assert!(last.last);
    let others: Vec<String> = last.others.iter().map(|swept| swept.backup.to_string()).collect();
    assert_eq!(others, [BASE, FIRST, SECOND]);
    assert!(folders(&storage).is_empty(), "{:?}", folders(&storage));
    let missing = delete(&repository, &layout(), &id(THIRD), false, &Silent).await.unwrap();
    assert!(missing.is_none());
}

#[tokio::test]
async fn nothing_goes_as_long_as_a_list_cant_be_read() {
    let chain = Chain::make().await;
    for lose in [false, true] {
        let storage = chain.storage();
        let repository = open(Arc::new(storage.clone())).await;
        let manifest = layout().of_backup(&id(THIRD), "manifest");
        let mut bytes = storage.objects().remove(manifest.as_str()).unwrap().to_vec();
        if !lose {
            bytes[100] ^= 1;
            storage.objects().insert(manifest.to_string(), bytes.into());
        }
        let before = folders(&storage);
        let e = delete(&repository, &layout(), &id(FIRST), false, &Silent).await.unwrap_err();
        assert_eq!(e.kind(), Kind::Damaged);
        assert!(e.to_string().contains(THIRD) && e.hints().len() == 2, "{e} {:?}", e.hints());
        assert_eq!(folders(&storage), before);
        assert_eq!(listed(&storage).await, [BASE, SECOND, THIRD]);
        // When the damaged one goes, the others do what they had to.
        delete(&repository, &layout(), &id(THIRD), false, &Silent).await.unwrap();
        assert_eq!(listed(&storage).await, [BASE, SECOND]);
        assert!(!folders(&storage).contains_key(THIRD));
        for backup in [BASE, SECOND] {
            restores(&chain, &storage, backup).await.unwrap();
        }
    }
}

/// What is stored of a backup that got so far, as a crash leaves it.
async fn crash_after(storage: &Memory, parts: &[&str]) {
    let keep = |name: &str| {
        let rest = name.strip_prefix(&layout().backup_folder(&id(THIRD)));
        rest.is_none_or(|rest| parts.iter().any(|part| rest.starts_with(part)))
    };
    storage.objects().retain(|name, _| keep(name));
}

#[tokio::test]
async fn what_a_crashed_backup_leaves_is_cleaned_up() {
    let chain = Chain::make().await;
    let all = ["begin", "packs/", "manifest", "backup.json"];
    for parts in
        [&all[..1], &all[..2], &all[..3], &all[1..4], &["packs/"], &["abandoned", "packs/"]]
    {
        let storage = chain.storage();
        crash_after(&storage, parts).await;
        let repository = open(Arc::new(storage.clone())).await;
        clean_up(&repository, &layout(), &Silent).await.unwrap();
        assert_eq!(listed(&storage).await, [BASE, FIRST, SECOND], "{parts:?}");
        assert!(!folders(&storage).contains_key(THIRD), "{parts:?}");
        for backup in [BASE, FIRST, SECOND] {
            restores(&chain, &storage, backup).await.unwrap();
        }
    }
    // A whole one stays, whatever marks a clean-up made that came too late.
    let storage = chain.storage();
    let claim = ObjectName::new(format!("{}abandoned", layout().backup_folder(&id(THIRD))));
    storage.put(&claim.unwrap(), "".into()).await.unwrap();
    let repository = open(Arc::new(storage.clone())).await;
    assert!(clean_up(&repository, &layout(), &Silent).await.unwrap().is_empty());
    restores(&chain, &storage, THIRD).await.unwrap();
}

#[tokio::test]
async fn reference_lists_name_what_is_there() {
    // What the other tests stand on: the chain shares packs as incremental backups do.
    let chain = Chain::make().await;
    let storage = chain.storage();
    let repository = open(Arc::new(storage.clone())).await;
    let mut shared = 0;
    for backup in [BASE, FIRST, SECOND, THIRD] {
        let record = catalog::read_record(&repository, &layout(), &id(backup)).await.unwrap();
        let manifest = Manifest::read(&repository, &layout(), &record.id).await.unwrap();
        for reference in manifest.references {
            let pack = layout().pack(&reference.backup, reference.pack);
            assert!(storage.objects().contains_key(pack.as_str()));
            shared += usize::from(reference.backup != record.id);
        }
    }
    assert!(shared >= 6, "{shared}");
}
