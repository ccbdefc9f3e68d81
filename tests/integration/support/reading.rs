//! Storage that notes what is read from it.

use std::{path::Path, sync::Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use pgkeep::storage::{
    Capabilities, Listed, ObjectName, ObjectWriter, Range, Result, Storage, local::Local,
};

/// A repository directory, and each read of an object: its name and how many bytes came from where.
#[derive(Debug)]
pub struct Reading(Local, Mutex<Vec<(String, Range)>>);

impl Reading {
    /// Of a directory that belongs to the user that runs the tests.
    pub fn of(directory: &Path) -> Self {
        Reading(Local::open(directory).expect("open the repository"), Mutex::default())
    }

    /// What was read, in order; from then on nothing was.
    pub fn take(&self) -> Vec<(String, Range)> {
        std::mem::take(&mut self.1.lock().expect("the reads"))
    }
}

#[async_trait]
impl Storage for Reading {
    fn address(&self) -> &str {
        self.0.address()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn create(&self, name: &ObjectName) -> Result<Box<dyn ObjectWriter>> {
        self.0.create(name).await
    }

    async fn read(&self, name: &ObjectName, range: Range) -> Result<Bytes> {
        self.1.lock().expect("the reads").push((name.to_string(), range));
        self.0.read(name, range).await
    }

    async fn size(&self, name: &ObjectName) -> Result<u64> {
        self.0.size(name).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>> {
        self.0.list(prefix, after, limit).await
    }

    async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        self.0.folders(folder).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.0.delete(name).await
    }

    async fn replace(&self, name: &ObjectName, bytes: Bytes) -> Result<()> {
        self.0.replace(name, bytes).await
    }

    async fn ensure_durable(&self, name: &ObjectName) -> Result<()> {
        self.0.ensure_durable(name).await
    }
}
