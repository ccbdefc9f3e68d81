//! `pgkeep delete`, `pin` and `unpin`, as their users see them.

use std::{fs, sync::Arc, time::Duration};

use chrono::Utc;
use pgkeep::{
    config::ClusterSettings,
    error::Kind,
    progress::Silent,
    repo::{
        Repository,
        keys::KeyMaterial,
        layout::ClusterLayout,
        lease::{EXPIRED_AFTER, HeldLease, Lease},
        pin::{pins, put_pin},
    },
    restore::{RestoreRequest, Target, plan::plan},
    retention::{delete, pin},
};
use serde_json::{Value, json};

use super::{BASE, Chain, FIRST, SECOND, THIRD, id, layout, open};
use crate::support::{
    Pgkeep, Scratch,
    objects::objects,
    places::{on_s3, skipped_on_s3},
    scratch::write,
};

/// The program, with repositories of these names that all hold the chain.
pub fn program(chain: &Chain, repositories: &[&str]) -> Pgkeep {
    let pgkeep = Pgkeep::without_cluster();
    for name in repositories {
        if *name != "main" {
            pgkeep.add_repository(name);
        }
        let line = format!("key-file = \"{}\"", pgkeep.key_file(name).display());
        pgkeep.edit(|text| text.replace(&line, "encryption = \"none\""));
        for (object, bytes) in &chain.objects {
            let path = pgkeep.repository_of(name).join(object);
            let folder = path.parent().unwrap();
            match folder.strip_prefix(pgkeep.scratch().path()) {
                Ok(below) => drop(pgkeep.scratch().folder(below.to_str().unwrap())),
                // It is the server's.
                Err(_) => fs::create_dir_all(folder).unwrap(),
            }
            write(&path, bytes);
        }
    }
    pgkeep
}

fn backups(pgkeep: &Pgkeep, repository: &str) -> Vec<String> {
    let info = pgkeep.json(["--repo", repository, "info"]);
    let systems = info["repositories"][0]["systems"].as_array().unwrap();
    let backups = systems.iter().flat_map(|system| system["backups"].as_array().unwrap());
    let mut ids: Vec<String> = backups.map(|b| b["id"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids
}

#[tokio::test]
async fn a_deletion_says_what_goes_and_what_stays() {
    let chain = Chain::make().await;
    let pgkeep = program(&chain, &["main"]);
    let dry = pgkeep.json(["delete", BASE, "--dry-run"]);
    assert_eq!(backups(&pgkeep, "main"), [BASE, FIRST, SECOND, THIRD]);
    let said = &dry["repositories"][0];
    assert_eq!((&said["dry-run"], &said["backup"]), (&json!(true), &json!(BASE)));
    assert_eq!(said["used-by"].as_array().unwrap().len(), 3);
    assert_eq!(said["used-by"][2]["backup"], THIRD);
    assert!(said["used-by"][2]["live-bytes"].as_u64() > Some(500_000), "{said}");

    let done = pgkeep.ok(["delete", BASE]);
    assert!(done.stdout.starts_with(&format!("deleted backup {BASE} from repository main\n")));
    for said in ["is gone\n", "stays, since other backups use it\n", THIRD] {
        assert!(done.stdout.contains(said), "{done}");
    }
    assert_eq!(backups(&pgkeep, "main"), [FIRST, SECOND, THIRD]);
    let again = pgkeep.ok(["delete", BASE]);
    assert!(again.stdout.starts_with(&format!("was deleted already: backup {BASE}")), "{again}");

    let unknown = pgkeep.fails(["delete", "20200101T000000Z-full"]);
    assert_eq!(unknown.code, 1);
    assert!(unknown.stderr.contains("there is no backup 20200101T000000Z-full"), "{unknown}");
    assert_eq!(pgkeep.fails(["delete", "latest"]).code, 2);
}

#[tokio::test]
async fn a_pin_keeps_a_backup_for_ever_or_until_its_date() {
    let chain = Chain::make().await;
    let pgkeep = program(&chain, &["main"]);
    let until = "2999-12-31 23:59:59+01";
    let pinned = pgkeep.json(["pin", SECOND, "--until", until]);
    assert_eq!(pinned["repositories"][0]["until"], "2999-12-31T22:59:59Z");
    let refused = pgkeep.fails(["delete", SECOND]);
    assert_eq!(refused.code, 9);
    assert!(refused.stderr.contains("is pinned until 2999-12-31 22:59:59Z"), "{refused}");
    assert!(refused.stderr.contains(&format!("pgkeep unpin {SECOND}")), "{refused}");
    assert_eq!(pgkeep.fails(["delete", SECOND, "--dry-run"]).code, 9);
    // The one that holds longest counts.
    pgkeep.ok(["pin", SECOND]);
    let info = pgkeep.json(["info"]);
    assert_eq!(info["repositories"][0]["pinned"], json!([{ "id": SECOND, "until": null }]));
    assert!(pgkeep.ok(["info"]).stdout.contains(&format!("{SECOND}  for ever\n")));

    let unpinned = pgkeep.ok(["unpin", SECOND]);
    assert!(unpinned.stdout.starts_with("removed 2 pins"), "{unpinned}");
    assert!(pgkeep.ok(["unpin", SECOND]).stdout.contains("isn't pinned"));
    assert_eq!(pgkeep.json(["info"])["repositories"][0]["pinned"], Value::Null);
    pgkeep.ok(["delete", SECOND]);
    assert_eq!(pgkeep.fails(["pin", SECOND]).code, 9);

    for (time, why) in [("2020-01-01 00:00:00Z", "in the past"), ("2999-12-31", "time of day")] {
        let refused = pgkeep.fails(["pin", FIRST, "--until", time]);
        assert!(refused.code == 2 && refused.stderr.contains(why), "{refused}");
    }
    for command in ["pin", "unpin"] {
        assert_eq!(pgkeep.fails([command, "20200101T000000Z-full"]).code, 1);
    }
}

#[tokio::test]
async fn a_pin_that_is_over_holds_no_more_and_a_damaged_one_does() {
    let chain = Chain::make().await;
    let storage = chain.storage();
    let repository = open(Arc::new(storage.clone())).await;
    let (layout, now) = (layout(), Utc::now());
    put_pin(&repository, &layout, &id(SECOND), Some(now), now).await.unwrap();
    delete(&repository, &layout, &id(SECOND), false, &Silent).await.unwrap().unwrap();
    assert!(pins(&repository, &layout).await.unwrap().is_empty(), "it goes with its backup");

    let soon = now + chrono::Duration::hours(1);
    pin(&repository, &layout, &id(THIRD), Some(soon)).await.unwrap().unwrap();
    let name = pins(&repository, &layout).await.unwrap().pop().unwrap().name;
    let mut bytes = storage.objects()[name.as_str()].to_vec();
    bytes[100] ^= 1;
    storage.objects().insert(name.to_string(), bytes.into());
    let pinned = pins(&repository, &layout).await.unwrap();
    assert_eq!((pinned.len(), pinned[0].until), (1, None));
    let refused = delete(&repository, &layout, &id(THIRD), false, &Silent).await.unwrap_err();
    assert!(refused.to_string().contains("is pinned in"), "{refused}");
}

#[tokio::test]
async fn all_repositories_that_have_it_are_asked() {
    if skipped_on_s3("a prefix that was taken away is a repository that isn't there") {
        return;
    }
    let chain = Chain::make().await;
    let pgkeep = program(&chain, &["main", "second", "third"]);
    pgkeep.ok(["--repo", "third", "delete", THIRD]);
    assert_eq!(backups(&pgkeep, "main").len(), 4);
    let done = pgkeep.json(["delete", THIRD]);
    let names: Vec<&str> = done["repositories"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["repository"].as_str().unwrap())
        .collect();
    // Of the third there may be a rest, of which the others' packs are none.
    assert!(names.starts_with(&["main", "second"]), "{names:?}");
    for repository in ["main", "second", "third"] {
        assert_eq!(backups(&pgkeep, repository), [BASE, FIRST, SECOND]);
    }
    // One that can't be reached doesn't keep the others from theirs, and the exit code tells.
    fs::rename(pgkeep.repository_of("second"), pgkeep.repository_of("away")).unwrap();
    for arguments in [["pin", FIRST], ["unpin", FIRST], ["delete", FIRST]] {
        let failed = pgkeep.fails(arguments);
        assert_eq!(failed.code, 3, "{failed}");
        assert!(failed.stderr.contains("repository/second"), "{failed}");
        for repository in ["main", "third"] {
            assert!(failed.stdout.contains(&format!("repository {repository}")), "{failed}");
        }
    }
    fs::rename(pgkeep.repository_of("away"), pgkeep.repository_of("second")).unwrap();
    assert_eq!(backups(&pgkeep, "second"), [BASE, FIRST, SECOND]);
    assert_eq!(backups(&pgkeep, "third"), [BASE, SECOND]);
}

#[tokio::test]
async fn a_running_backup_is_not_deleted_and_a_crashed_one_is() {
    let chain = Chain::make().await;
    let storage = chain.storage();
    let record = layout().of_backup(&id(THIRD), "backup.json");
    storage.objects().remove(record.as_str());
    let repository = open(Arc::new(storage.clone())).await;
    let lease = Lease::new("backup", Some(id(THIRD))).unwrap();
    let held = HeldLease::take(&repository, &layout(), lease.clone()).await.unwrap();
    let refused = delete(&repository, &layout(), &id(THIRD), false, &Silent).await.unwrap_err();
    assert!(
        refused.to_string().contains(&format!("by process {}", std::process::id())),
        "{refused}"
    );
    pgkeep::retention::clean_up(&repository, &layout(), &Silent).await.unwrap();
    assert!(super::folders(&storage).contains_key(THIRD), "a clean-up leaves it alone too");
    drop(held);

    // Its process has died long ago.
    let old = Utc::now() - 2 * EXPIRED_AFTER;
    let json = serde_json::to_vec(&Lease { renewed: old, ..lease.clone() }).unwrap();
    storage.objects().insert(layout().lease(lease.id).to_string(), json.into());
    delete(&repository, &layout(), &id(THIRD), false, &Silent).await.unwrap().unwrap();
    assert!(!super::folders(&storage).contains_key(THIRD));
}

#[tokio::test]
async fn a_backup_that_is_being_restored_is_not_deleted() {
    let chain = Chain::make().await;
    let storage = chain.storage();
    let repository = open(Arc::new(storage.clone())).await;
    for operation in ["restore", "drill"] {
        let lease = Lease::new(operation, Some(id(FIRST))).unwrap();
        let held = HeldLease::take(&repository, &layout(), lease).await.unwrap();
        let refused = delete(&repository, &layout(), &id(FIRST), false, &Silent).await;
        let refused = refused.unwrap_err().to_string();
        let process = format!("being restored by process {}", std::process::id());
        assert!(refused.contains(&process), "{refused}");
        held.release().await;
    }
    // Another one may go meanwhile, and it itself when that is over.
    let lease = Lease::new("restore", Some(id(SECOND))).unwrap();
    let held = HeldLease::take(&repository, &layout(), lease).await.unwrap();
    delete(&repository, &layout(), &id(FIRST), false, &Silent).await.unwrap().unwrap();
    held.release().await;
    delete(&repository, &layout(), &id(SECOND), false, &Silent).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_restore_of_what_was_deleted_since_it_was_chosen_says_so() {
    let chain = Chain::make().await;
    let repository = open(Arc::new(chain.storage())).await;
    let scratch = Scratch::new("deleted");
    let pgdata = scratch.path().join("data");
    let request = RestoreRequest {
        backup: Some(id(FIRST)),
        ..RestoreRequest::new(pgdata.clone(), Target::Immediate, "get".into())
    };
    let planned = plan(&repository, &ClusterSettings::named("main"), &request).await.unwrap();
    delete(&repository, &layout(), &id(FIRST), false, &Silent).await.unwrap().unwrap();
    let refused = planned.write(&request, Arc::new(Silent)).await.unwrap_err();
    assert!(refused.kind() == Kind::Conflict && refused.to_string().contains("deleted just now"));
    assert!(!pgdata.exists(), "nothing was made");
}

#[tokio::test]
async fn a_deletion_that_is_killed_is_run_again() {
    let chain = Chain::make().await;
    for delay in [2, 4, 6, 8, 10, 12, 15, 20, 30] {
        let pgkeep = program(&chain, &["main"]);
        let killed = pgkeep.spawn(["delete", BASE]).kill_after(Duration::from_millis(delay));
        assert!(matches!(killed.code, 0 | -9), "{killed}");
        assert!(backups(&pgkeep, "main").ends_with(&[FIRST.into(), SECOND.into(), THIRD.into()]));
        pgkeep.ok(["delete", BASE]);
        assert_eq!(backups(&pgkeep, "main"), [FIRST, SECOND, THIRD]);
        for (number, backup) in [FIRST, SECOND, THIRD].into_iter().enumerate() {
            pgkeep.ok(["delete", backup]);
            assert_eq!(backups(&pgkeep, "main").len(), 2 - number);
        }
        let left = objects(&pgkeep.repository()).into_iter().map(|object| object.name);
        let left: Vec<_> = left.filter(|name| name.contains("/backups/")).collect();
        assert_eq!(left, Vec::<String>::new());
        assert!(on_s3() || !pgkeep.repository().join("clusters/main/backups").exists());
    }
}

#[tokio::test]
async fn another_cluster_of_the_same_repository_is_left_alone() {
    let chain = Chain::make().await;
    let storage = chain.storage();
    let repository =
        Repository::open("main", Arc::new(storage.clone()), &KeyMaterial::None, 1).await.unwrap();
    let other = ClusterLayout::new("other").unwrap();
    assert!(delete(&repository, &other, &id(BASE), false, &Silent).await.unwrap().is_none());
    assert!(pin(&repository, &other, &id(BASE), None).await.unwrap().is_none());
    assert_eq!(storage.objects().len(), chain.objects.len());
}
