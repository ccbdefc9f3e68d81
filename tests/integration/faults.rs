//! Backups and restores over storage that fails: at every step of a backup it dies once, before and
//! after the step took effect, and at every read of a restore a bit flips.
//!
//! It all runs in a process of the server's user, who owns the repository.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use pgkeep::{
    backup::{BackupOptions, backup},
    config::{ClusterSettings, Overrides, Settings},
    error::{Error, Kind},
    progress::Silent,
    repo::{
        BackupId, Repository, catalog,
        keys::{KeyMaterial, read_key_file},
        layout::ClusterLayout,
    },
    restore::{RestoreReport, RestoreRequest, Target, TargetTimeline, restore},
    storage::{ErrorKind, local::Local},
};

use crate::support::{
    Cluster, Pgkeep,
    child::{self, child},
    faulty::{Fault, Faulty, Operation},
    install::run,
};

/// What both tests work with: the repository twice, over sound and over failing storage.
struct Site {
    faulty: Faulty,
    failing: Repository,
    sound: Repository,
    cluster: ClusterSettings,
    layout: ClusterLayout,
    scratch: PathBuf,
}

impl Site {
    async fn open(config: &Path) -> Self {
        let overrides = Overrides { config: Some(config.to_owned()), cluster: None };
        let settings = Settings::load(&overrides).expect("read the configuration");
        let scratch = config.parent().expect("a folder").to_owned();
        let key = read_key_file(&scratch.join("main.key")).expect("read the key");
        let material = KeyMaterial::KeyFile(key);
        let local = Arc::new(Local::open(&scratch.join("repository/main")).expect("open it"));
        let faulty = Faulty::new(local.clone());
        let over = async |storage| Repository::open("main", storage, &material, 1).await;
        Site {
            failing: over(Arc::new(faulty.clone())).await.expect("open it"),
            sound: over(local).await.expect("open it"),
            faulty,
            cluster: settings.cluster(None).expect("the cluster").clone(),
            layout: ClusterLayout::new("main").expect("a good name"),
            scratch,
        }
    }

    async fn back_up(&self) -> Result<BackupId, Error> {
        let options = BackupOptions::default();
        let repositories = [self.failing.clone()];
        let mut outcomes = backup(&repositories, &self.cluster, &options, Arc::new(Silent)).await?;
        Ok(outcomes.remove(0).result?.id)
    }

    /// The backups there are, as somebody else sees them.
    async fn backups(&self) -> Vec<BackupId> {
        let records = catalog::backups(&self.sound, &self.layout).await.expect("list backups");
        records.into_iter().map(|record| record.id).collect()
    }

    /// Restores a backup's own state, and returns what the directory holds.
    async fn restore(&self, repository: &Repository, backup: &BackupId) -> Result<Files, Error> {
        let pgdata = self.scratch.join("restored");
        let _ = fs::remove_dir_all(&pgdata);
        let request = RestoreRequest {
            backup: Some(backup.clone()),
            timeline: TargetTimeline::Latest,
            threads: 2,
            ..RestoreRequest::new(pgdata.clone(), Target::Immediate, "false".to_owned())
        };
        let restored: Result<RestoreReport, Error> =
            restore(std::slice::from_ref(repository), &self.cluster, &request, Arc::new(Silent))
                .await;
        if let Err(e) = restored {
            let control = pgdata.join("global/pg_control");
            assert!(!control.exists(), "it could start after: {e}");
            return Err(e);
        }
        let mut files = Files::new();
        collect(&pgdata, &mut files);
        Ok(files)
    }
}

type Files = BTreeMap<PathBuf, blake3::Hash>;

/// The files below a directory, without what says when it was written.
fn collect(folder: &Path, files: &mut Files) {
    for entry in fs::read_dir(folder).expect("read a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if !path.ends_with("backup_manifest") {
            let content = fs::read(&path).expect("read a file");
            files.insert(path, blake3::hash(&content));
        }
    }
}

/// A cluster that archives, and the child that does `what` with it.
fn in_a_child_process(what: &str) {
    let cluster = Cluster::builder(15).start();
    let pgkeep = Pgkeep::archiving(&cluster);
    pgkeep.ok(["check"]);
    cluster.make_table("t", 3000);
    let task = format!("{what}:{}", pgkeep.config().display());
    run(&mut child("faults::in_a_child", &task));
}

#[test]
fn a_backup_whose_storage_dies_at_any_step_is_whole_or_none() {
    in_a_child_process("die");
}

#[test]
fn a_backup_that_meets_any_single_fault_is_whole_or_none() {
    in_a_child_process("fail");
}

#[test]
fn a_bit_that_flips_on_the_way_is_found_or_does_no_harm() {
    in_a_child_process("flip");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_child() {
    let Some(task) = child::task() else { return };
    let (verb, config) = task.split_once(':').expect("verb:config");
    let site = Site::open(Path::new(config)).await;
    match verb {
        "die" => die_at_every_step(&site).await,
        "fail" => fail_once(&site).await,
        "flip" => flip_at_every_read(&site).await,
        other => panic!("nobody knows how to {other}"),
    }
}

/// What a backup has to leave, whatever happened: what is listed restores, and success is listed.
async fn check(site: &Site, before: &[BackupId], result: Result<BackupId, Error>, when: &str) {
    let now = site.backups().await;
    let new: Vec<_> = now.iter().filter(|id| !before.contains(id)).collect();
    assert!(before.iter().all(|id| now.contains(id)), "{when}: a backup is gone");
    if let Ok(id) = &result {
        assert_eq!(new, [id], "{when}");
    }
    for id in new {
        let restored = site.restore(&site.sound, id).await;
        assert!(restored.is_ok(), "{when}: {id} is listed and broken: {restored:?}");
    }
}

async fn die_at_every_step(site: &Site) {
    site.faulty.heal();
    site.back_up().await.expect("nothing fails yet");
    let steps = site.faulty.changes();
    assert!(steps >= 5, "a backup of {steps} steps: {:?}", site.faulty.log());
    for step in 1..=steps {
        for done in [false, true] {
            let before = site.backups().await;
            site.faulty.dies(step, done);
            let result = site.back_up().await;
            assert!(site.faulty.faults() > 0);
            site.faulty.heal();
            let when = format!("death at step {step}, which was done: {done}");
            check(site, &before, result, &when).await;
        }
    }
    // The dead have left nothing that keeps the next one from working.
    let id = site.back_up().await.expect("a backup after all these");
    site.restore(&site.sound, &id).await.expect("and it restores");
}

async fn fail_once(site: &Site) {
    let kinds = [Operation::Create, Operation::Write, Operation::Finish, Operation::Read];
    for (kind, fault) in kinds.into_iter().zip([
        Fault::Fails(ErrorKind::Denied),
        Fault::Fails(ErrorKind::Full),
        Fault::AnswerLost,
        Fault::Fails(ErrorKind::Unavailable),
    ]) {
        for n in 1.. {
            let before = site.backups().await;
            site.faulty.nth(kind, n, fault);
            let result = site.back_up().await;
            let met = site.faulty.faults() > 0;
            site.faulty.heal();
            if let Err(e) = &result {
                let kinds = [Kind::Repository, Kind::Conflict, Kind::Damaged, Kind::Denied];
                let known = kinds.contains(&e.kind());
                assert!(known, "{kind:?} {n} {fault:?}: {e:?}");
            }
            check(site, &before, result, &format!("{kind:?} {n} {fault:?}")).await;
            // Past the last one there is nothing to fail; a backup has many writes alike.
            if !met || n >= 12 {
                break;
            }
        }
    }
    for seed in 0..6 {
        let before = site.backups().await;
        site.faulty.random(seed, 25);
        let result = site.back_up().await;
        site.faulty.heal();
        check(site, &before, result, &format!("random faults of seed {seed}")).await;
    }
}

async fn flip_at_every_read(site: &Site) {
    let id = site.back_up().await.expect("nothing fails yet");
    let sound = site.restore(&site.sound, &id).await.expect("it restores");
    assert!(sound.len() > 500, "{} files", sound.len());
    site.faulty.heal();
    site.restore(&site.failing, &id).await.expect("nothing fails yet");
    let reads = site.faulty.log().iter().filter(|(kind, _)| *kind == Operation::Read).count();
    assert!(reads > 10);
    let mut found = 0;
    // Some thirty of them, the first and the last ones all.
    let all = 1..=reads as u64;
    let chosen =
        all.filter(|n| *n <= 8 || *n + 8 > reads as u64 || n % (reads as u64 / 16 + 1) == 0);
    for n in chosen {
        site.faulty.nth(Operation::Read, n, Fault::Flips);
        let restored = site.restore(&site.failing, &id).await;
        let log = site.faulty.log();
        site.faulty.heal();
        match restored {
            Err(e) => {
                assert_eq!(e.kind(), Kind::Damaged, "read {n} of {reads}: {e:?}");
                found += 1;
            }
            // What was flipped was looked up elsewhere, or wasn't needed.
            Ok(files) => assert!(files == sound, "read {n} gave other files: {log:?}"),
        }
    }
    assert!(found > 10, "flips were found {found} times only");
}
