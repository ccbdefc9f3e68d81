//! Storage in memory: for tests that make a repository a thousand times over.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use bytes::Bytes;
use pgkeep::{
    config::{GivenStorage, KeySource, Location, RepositorySettings, RetentionSettings},
    storage::{
        Capabilities, ErrorKind, LARGEST_WHOLE, Listed, ObjectName, ObjectWriter, Range, Result,
        Storage, StorageError,
    },
};

/// The objects by name.
pub type Objects = BTreeMap<String, Bytes>;

/// A storage in memory. Clones share what they hold.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    objects: Arc<Mutex<Objects>>,
}

impl Memory {
    /// One that holds these objects.
    pub fn of(objects: Objects) -> Self {
        Memory { objects: Arc::new(Mutex::new(objects)) }
    }

    /// A repository in it as it is configured, without encryption and rules.
    pub fn configured(&self, name: &str) -> RepositorySettings {
        RepositorySettings {
            name: name.to_owned(),
            location: Location::Given(GivenStorage(Arc::new(self.clone()))),
            key: KeySource::Unencrypted,
            compression_level: 1,
            retention: RetentionSettings::NONE,
        }
    }

    /// What it holds.
    pub fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().expect("the objects")
    }
}

fn failure(kind: ErrorKind, object: impl ToString) -> StorageError {
    StorageError {
        kind,
        operation: "use",
        object: object.to_string(),
        address: "memory".to_owned(),
        message: format!("{kind:?}"),
        hint: None,
    }
}

#[async_trait]
impl Storage for Memory {
    fn address(&self) -> &str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { read_together: 1, questions_at_once: 1 }
    }

    async fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>> {
        let bytes = Vec::new();
        Ok(Box::new(MemoryWriter { storage: self.clone(), name: name.clone(), bytes }))
    }

    async fn read(&self, name: &ObjectName, range: Range) -> Result<Bytes> {
        let objects = self.objects();
        let bytes = objects.get(name.as_str()).ok_or_else(|| failure(ErrorKind::NotFound, name))?;
        let (offset, len) = match range {
            Range::All if bytes.len() as u64 > LARGEST_WHOLE => {
                return Err(failure(ErrorKind::Refused, name));
            }
            Range::All => (0, bytes.len()),
            Range::Last(len) => {
                let len = bytes.len().min(len as usize);
                (bytes.len() - len, len)
            }
            Range::At { offset, len } => (offset as usize, len as usize),
        };
        match offset.checked_add(len) {
            Some(end) if end <= bytes.len() => Ok(bytes.slice(offset..end)),
            _ => Err(failure(ErrorKind::OutOfRange, name)),
        }
    }

    async fn size(&self, name: &ObjectName) -> Result<u64> {
        let objects = self.objects();
        let bytes = objects.get(name.as_str());
        bytes.map(|b| b.len() as u64).ok_or_else(|| failure(ErrorKind::NotFound, name))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>> {
        let objects = self.objects();
        let listed = objects
            .iter()
            .filter(|(name, _)| name.starts_with(prefix))
            .filter(|(name, _)| after.is_none_or(|after| name.as_str() > after))
            .take(limit);
        Ok(listed
            .map(|(name, bytes)| Listed {
                name: ObjectName::new(name.as_str()).expect("it was one"),
                size: bytes.len() as u64,
            })
            .collect())
    }

    async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let objects = self.objects();
        let below = objects.keys().filter_map(|name| name.strip_prefix(&prefix));
        let names: BTreeSet<&str> =
            below.filter_map(|rest| Some(rest.split_once('/')?.0)).collect();
        Ok(names.into_iter().map(str::to_owned).collect())
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.objects().remove(name.as_str());
        Ok(())
    }

    async fn replace(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        self.objects().insert(name.to_string(), bytes);
        Ok(())
    }

    async fn ensure_durable(&self, name: &ObjectName) -> Result<()> {
        self.size(name).await.map(drop)
    }
}

struct MemoryWriter {
    storage: Memory,
    name: ObjectName,
    bytes: Vec<u8>,
}

#[async_trait]
impl ObjectWriter for MemoryWriter {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<()> {
        let mut objects = self.storage.objects();
        if objects.contains_key(self.name.as_str()) {
            return Err(failure(ErrorKind::AlreadyExists, &self.name));
        }
        objects.insert(self.name.to_string(), self.bytes.into());
        Ok(())
    }
}
