//! What can't be read may be sound: an outage is an error. And what others take away meanwhile, as
//! they may, is no damage.

use std::{
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use pgkeep::{
    config::RetentionSettings,
    error::Kind,
    progress::Silent,
    repo::{BackupId, catalog, keys::KeyMaterial},
    retention::{delete, expire},
    storage::{
        Capabilities, ErrorKind, Listed, ObjectName, ObjectWriter, Range, Result, Storage,
        local::Local,
    },
    verify::{VerifyRequest, report::Level, verify},
};
use tokio::runtime::{Builder, Runtime};

use super::{Sound, layout, open, request, silent};
use crate::support::{
    faulty::{Fault, Faulty, Operation},
    memory::{Memory, Objects},
};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn an_outage_at_any_step_is_an_error_and_never_a_finding() {
    let sound = Sound::new();
    let runtime = runtime();
    let faulty = Faulty::new(Arc::new(Local::open(&sound.root()).unwrap()));
    let repository = runtime.block_on(open(Arc::new(faulty.clone()), &sound.material())).unwrap();
    for level in [Level::Quick, Level::Full] {
        let run = || runtime.block_on(verify(&repository, &layout(), &request(level), silent()));
        faulty.heal();
        assert!(run().unwrap().unwrap().sound);
        let log = faulty.log();
        let mut tried = 0;
        for operation in [Operation::Read, Operation::List, Operation::Size] {
            let count = log.iter().filter(|(this, _)| *this == operation).count();
            for n in 1..=count as u64 {
                for kind in [ErrorKind::Unavailable, ErrorKind::RootMissing, ErrorKind::Denied] {
                    faulty.nth(operation, n, Fault::Fails(kind));
                    let error = run().expect_err("what couldn't be read isn't known to be sound");
                    assert_eq!(faulty.faults(), 1);
                    let expected =
                        if kind == ErrorKind::Denied { Kind::Denied } else { Kind::Repository };
                    assert_eq!(error.kind(), expected, "{operation:?} {n}: {error}");
                    tried += 1;
                }
            }
        }
        assert!(tried > 100, "{tried} faults are few");
    }
}

/// All objects below a folder.
fn objects_in(root: &Path) -> Objects {
    crate::support::objects::objects(root)
        .into_iter()
        .map(|object| (object.name, fs::read(object.path).unwrap().into()))
        .collect()
}

/// Storage that is changed by somebody else while it is used: at each of its operations from the
/// `from`-th on, by the next of some states.
#[derive(Debug, Clone)]
struct Changing {
    inner: Memory,
    states: Arc<Vec<Objects>>,
    from: usize,
    count: Arc<AtomicUsize>,
}

impl Changing {
    fn step(&self) {
        let count = self.count.fetch_add(1, Ordering::SeqCst);
        if let Some(state) = count.checked_sub(self.from).and_then(|n| self.states.get(n)) {
            *self.inner.objects() = state.clone();
        }
    }
}

#[async_trait]
impl Storage for Changing {
    fn address(&self) -> &str {
        self.inner.address()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>> {
        self.inner.create(name).await
    }

    async fn read(&self, name: &ObjectName, range: Range) -> Result<Bytes> {
        self.step();
        self.inner.read(name, range).await
    }

    async fn size(&self, name: &ObjectName) -> Result<u64> {
        self.step();
        self.inner.size(name).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>> {
        self.step();
        self.inner.list(prefix, after, limit).await
    }

    async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        self.step();
        self.inner.folders(folder).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.inner.delete(name).await
    }

    async fn replace(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        self.inner.replace(name, bytes).await
    }

    async fn ensure_durable(&self, name: &ObjectName) -> Result<()> {
        self.inner.ensure_durable(name).await
    }
}

/// Storage that keeps what it held after each change.
#[derive(Debug, Clone)]
struct Recording {
    inner: Memory,
    states: Arc<Mutex<Vec<Objects>>>,
}

#[async_trait]
impl Storage for Recording {
    fn address(&self) -> &str {
        self.inner.address()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>> {
        self.inner.create(name).await
    }

    async fn put(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        self.inner.put(name, bytes).await
    }

    async fn read(&self, name: &ObjectName, range: Range) -> Result<Bytes> {
        self.note();
        self.inner.read(name, range).await
    }

    async fn size(&self, name: &ObjectName) -> Result<u64> {
        self.note();
        self.inner.size(name).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>> {
        self.note();
        self.inner.list(prefix, after, limit).await
    }

    async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        self.note();
        self.inner.folders(folder).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.inner.delete(name).await?;
        self.note();
        Ok(())
    }

    async fn replace(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        self.inner.replace(name, bytes).await
    }

    async fn ensure_durable(&self, name: &ObjectName) -> Result<()> {
        self.inner.ensure_durable(name).await
    }
}

impl Recording {
    /// Keeps the state, if it isn't the one that was kept last.
    fn note(&self) {
        let now = self.inner.objects().clone();
        let mut states = self.states.lock().unwrap();
        if states.last() != Some(&now) {
            states.push(now);
        }
    }
}

/// What somebody else does meanwhile.
#[derive(Debug)]
enum Deed {
    Delete(BackupId),
    Expire,
}

/// What the storage holds after each step of it. Nothing is pinned.
async fn steps(deed: &Deed, start: &Objects, material: &KeyMaterial) -> Vec<Objects> {
    let recording = Recording { inner: Memory::of(start.clone()), states: Arc::default() };
    let repository = open(Arc::new(recording.clone()), material).await.unwrap();
    match deed {
        Deed::Delete(backup) => {
            delete(&repository, &layout(), backup, false, &Silent).await.unwrap().unwrap();
        }
        Deed::Expire => {
            let rules = RetentionSettings { minimum: Some(1), ..RetentionSettings::NONE };
            let expiry = expire(&repository, &layout(), &rules, false, &Silent).await.unwrap();
            assert!(expiry.wal.iter().any(|cut| cut.freed.objects > 0), "{expiry:?}");
        }
    }
    recording.note();
    let states = recording.states.lock().unwrap().clone();
    assert!(states.len() > 2, "it has steps");
    states
}

/// Verifies while storage goes through these states, from each of its operations on in turn. Returns
/// how often.
async fn verify_beside(
    (deed, start, states): (&Deed, &Objects, Vec<Objects>),
    level: Level,
    material: &KeyMaterial,
) -> usize {
    let (states, mut from, mut tried) = (Arc::new(states), 0, 0);
    loop {
        let count = Arc::new(AtomicUsize::new(0));
        let (inner, states) = (Memory::of(start.clone()), states.clone());
        let storage = Changing { inner, states, from, count: count.clone() };
        let repository = open(Arc::new(storage), material).await.unwrap();
        let opened = count.load(Ordering::SeqCst);
        // A hundred blocks at a time: the trees are walked more than once.
        let request = VerifyRequest { blocks_at_once: 100, ..request(level) };
        let report = verify(&repository, &layout(), &request, silent()).await.unwrap().unwrap();
        let problems = &report.problems;
        assert!(report.sound, "{deed:?} from operation {from} on, {level:?}: {problems:#?}");
        tried += 1;
        if from > count.load(Ordering::SeqCst) {
            return tried;
        }
        // Reading every byte takes longer, and most steps are reads of the same kind.
        from = (from + if level == Level::Full { 3 } else { 1 }).max(opened);
    }
}

#[test]
fn what_others_take_away_meanwhile_is_no_damage() {
    let sound = Sound::new();
    let material = sound.material();
    let mut start = objects_in(&sound.root());
    start.retain(|name, _| !name.contains("/pins/"));
    runtime().block_on(async {
        let repository = open(Arc::new(Memory::of(start.clone())), &material).await.unwrap();
        let backups = catalog::backups(&repository, &layout()).await.unwrap();
        // The newest one goes altogether; of the older ones what it uses stays.
        let deeds = backups.into_iter().map(|record| Deed::Delete(record.id));
        let mut tried = 0;
        for deed in deeds.chain([Deed::Expire]) {
            let states = steps(&deed, &start, &material).await;
            for level in [Level::Quick, Level::Full] {
                tried += verify_beside((&deed, &start, states.clone()), level, &material).await;
            }
        }
        assert!(tried > 200, "{tried} orders are few");
    });
}
