//! A repository in memory whose objects are what a target puts there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use pgkeep::{
    repo::{
        Repository,
        keys::KeyMaterial,
        layout::ClusterLayout,
        sealed::{Lengths, Sealer},
    },
    storage::{
        Capabilities, ErrorKind, Listed, ObjectName, ObjectWriter, Range, Result, Storage,
        StorageError,
    },
};
use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: Runtime =
        Builder::new_current_thread().enable_all().build().expect("a runtime");
}

/// Waits for a future.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.with(|runtime| runtime.block_on(future))
}

/// A directory for what is written. Much of it is synced, so in memory where there is some.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// Objects by name.
#[derive(Debug, Clone, Default)]
pub struct Place(Arc<Mutex<BTreeMap<String, Bytes>>>);

impl Place {
    /// With the fixture's `repo.json` in it, which says that nothing is encrypted.
    pub fn plain() -> Self {
        let place = Place::default();
        let file = include_bytes!("../../../../fixtures/repository-v1-plain/repo.json");
        place.put(&pgkeep::repo::layout::repository_file(), file.to_vec());
        place
    }

    pub fn put(&self, name: &ObjectName, bytes: Vec<u8>) {
        self.objects().insert(name.to_string(), bytes.into());
    }

    /// Opens what is in it.
    pub fn open(&self, key: &KeyMaterial) -> pgkeep::error::Result<Repository> {
        wait(Repository::open("fuzzed", Arc::new(self.clone()), key, 1))
    }

    fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The layout of the fixture's cluster.
pub fn layout() -> ClusterLayout {
    ClusterLayout::new("main").expect("a name")
}

/// A repository without encryption, and where it lies.
pub fn plain() -> (Place, Repository) {
    let place = Place::plain();
    let repository = place.open(&KeyMaterial::None).expect("the fixture's");
    (place, repository)
}

/// Seals these frames and this summary, as an object of this name.
pub fn seal(repository: &Repository, name: &ObjectName, frames: &[&[u8]], end: &[u8]) -> Vec<u8> {
    let sealer = Sealer::new(repository.keyring(), name, 1).expect("a sealer");
    let mut bytes = sealer.header().to_vec();
    let mut lengths: Vec<Lengths> = Vec::new();
    for (number, raw) in frames.iter().enumerate() {
        let sealed = sealer.seal(number as u64, raw).expect("small enough");
        bytes.extend_from_slice(&sealed.bytes);
        lengths.push(sealed.lengths);
    }
    bytes.extend_from_slice(&sealer.close(&lengths, end).expect("small enough"));
    bytes
}

fn failure(kind: ErrorKind, object: &str) -> StorageError {
    StorageError {
        kind,
        operation: "use",
        object: object.to_owned(),
        address: "memory".to_owned(),
        message: format!("{kind:?}"),
        hint: None,
    }
}

#[async_trait]
impl Storage for Place {
    fn address(&self) -> &str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { read_together: 4096, questions_at_once: 1 }
    }

    async fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>> {
        Ok(Box::new(Writer { place: self.clone(), name: name.clone(), bytes: Vec::new() }))
    }

    async fn read(&self, name: &ObjectName, range: Range) -> Result<Bytes> {
        let objects = self.objects();
        let name = name.as_str();
        let bytes = objects.get(name).ok_or_else(|| failure(ErrorKind::NotFound, name))?;
        let len = bytes.len() as u64;
        let (from, to) = match range {
            Range::All => (0, Some(len)),
            Range::Last(last) => (len.saturating_sub(last), Some(len)),
            Range::At { offset, len } => (offset, offset.checked_add(len)),
        };
        match to {
            Some(to) if to <= len => Ok(bytes.slice(from as usize..to as usize)),
            _ => Err(failure(ErrorKind::OutOfRange, name)),
        }
    }

    async fn size(&self, name: &ObjectName) -> Result<u64> {
        let objects = self.objects();
        let bytes = objects.get(name.as_str());
        bytes.map(|b| b.len() as u64).ok_or_else(|| failure(ErrorKind::NotFound, name.as_str()))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>> {
        let objects = self.objects();
        let wanted = |name: &str| name.starts_with(prefix) && after.is_none_or(|a| name > a);
        let listed = objects.iter().filter(|(name, _)| wanted(name)).take(limit);
        let listed = listed.map(|(name, bytes)| {
            let name = ObjectName::new(name.as_str()).expect("it was one");
            Listed { name, size: bytes.len() as u64 }
        });
        Ok(listed.collect())
    }

    async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let objects = self.objects();
        let below = objects.keys().filter_map(|name| name.strip_prefix(&prefix));
        let names: BTreeSet<_> = below.filter_map(|rest| Some(rest.split_once('/')?.0)).collect();
        Ok(names.into_iter().map(str::to_owned).collect())
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        Err(failure(ErrorKind::Denied, name.as_str()))
    }

    async fn replace(&self, name: &ObjectName, _bytes: Bytes) -> Result<()> {
        Err(failure(ErrorKind::Denied, name.as_str()))
    }

    async fn ensure_durable(&self, name: &ObjectName) -> Result<()> {
        self.size(name).await.map(drop)
    }
}

struct Writer {
    place: Place,
    name: ObjectName,
    bytes: Vec<u8>,
}

#[async_trait]
impl ObjectWriter for Writer {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<()> {
        self.place.put(&self.name, self.bytes);
        Ok(())
    }
}
