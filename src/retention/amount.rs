//! Removing objects, and counting them.

use serde::Serialize;

use crate::{
    error::Result,
    repo::Repository,
    steps::reached,
    storage::{self, ErrorKind, Listed},
};

/// A number of objects and their stored bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Amount {
    /// How many objects.
    pub objects: u64,
    /// Their bytes in the repository.
    pub bytes: u64,
}

impl Amount {
    /// Counts an object.
    pub fn add(&mut self, object: &Listed) {
        self.objects += 1;
        self.bytes += object.size;
    }
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Amount) {
        self.objects += other.objects;
        self.bytes += other.bytes;
    }
}

/// What came of removing objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Removed {
    /// What is gone.
    pub freed: Amount,
    /// What the place holds, so that it can't be removed yet (object lock).
    pub held: Amount,
}

impl Removed {
    fn note(&mut self, object: &Listed, result: storage::Result<()>) -> Result<()> {
        match result {
            Ok(()) => self.freed.add(object),
            Err(e) if e.kind == ErrorKind::Locked => self.held.add(object),
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    /// Both together.
    pub fn add(&mut self, other: Removed) {
        self.freed += other.freed;
        self.held += other.held;
    }
}

/// Removes objects, as many at once as the place is worth asking. What is held stays, and is
/// counted; any other failure ends it.
pub(super) async fn remove_all(repository: &Repository, objects: &[Listed]) -> Result<Removed> {
    let mut removed = Removed::default();
    if objects.is_empty() {
        return Ok(removed);
    }
    reached("expire: objects are being removed");
    let names: Vec<_> = objects.iter().map(|object| object.name.clone()).collect();
    let results = repository.storage().delete_all(&names).await;
    for (object, result) in objects.iter().zip(results) {
        removed.note(object, result)?;
    }
    Ok(removed)
}
