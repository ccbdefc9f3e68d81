//! A name that is taken: by the same content, by another, or by something damaged.

use std::io;

use async_trait::async_trait;

use super::{
    catalog::exists,
    wal::{StoredSummary, WalStore},
};
use crate::{
    error::{Error, Kind, Result},
    postgres::WalFile,
    storage::ObjectName,
};

/// What became of a file in one repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It was stored now.
    New,
    /// The same content was there, and is durable.
    Already,
    /// What was there is damaged, so it was stored again beside it.
    Repaired,
}

/// What objects of one content can be made of.
#[async_trait]
pub trait Contents: Send {
    /// Makes an object of it, which closes with `summary`; false when the name is taken.
    async fn create(
        &mut self,
        store: &WalStore,
        name: &ObjectName,
        summary: &StoredSummary,
    ) -> Result<bool>;
}

/// Deals with a name that is taken: by the same content, by another, or by something damaged.
pub async fn settle(
    contents: &mut dyn Contents,
    store: &WalStore,
    wal: WalFile,
    summary: &StoredSummary,
) -> Result<Stored> {
    let name = match wal {
        WalFile::Partial(_) => Some(store.object_of(wal, summary)),
        _ => store.find(wal).await?,
    };
    let name = name.ok_or_else(|| vanished(store, wal))?;
    let damage = match confirm(store, &name, summary).await {
        Ok(()) => return Ok(Stored::Already),
        Err(e) if e.kind() == Kind::Damaged => e,
        Err(e) => return Err(e),
    };
    // What doesn't answer as it should may be the repository and not the object.
    store.repository().prove_present().await?;
    for repair in store.repairs_of(&name).await? {
        match confirm(store, &repair, summary).await {
            Ok(()) => return Ok(Stored::Already),
            Err(e) if e.kind() == Kind::Damaged => tracing::warn!("{e}"),
            Err(e) => return Err(e),
        }
    }
    // A repaired copy may be damaged as well, so there may be several.
    for attempt in 0..100 {
        let name = store.repair(wal, summary, attempt);
        if !exists(store.repository(), &name).await?
            && contents.create(store, &name, summary).await?
        {
            tracing::warn!("{damage}; stored {wal} once more beside it");
            return Ok(Stored::Repaired);
        }
    }
    Err(Error::new(
        Kind::Damaged,
        format!(
            "every stored copy of {wal} in {} is damaged",
            store.repository().storage().address()
        ),
    )
    .hint("check the disk under the repository"))
}

/// Makes sure that an object has this content, to the last byte, and that it is durable. Whoever
/// wrote it may have been killed before it was. What seems damaged is read once more: a bit may have
/// flipped on the way, and other content would be taken for a damaged copy of this one.
async fn confirm(store: &WalStore, name: &ObjectName, summary: &StoredSummary) -> Result<()> {
    match confirm_once(store, name, summary).await {
        Err(e) if e.kind() == Kind::Damaged => {
            tracing::warn!("{e}: reading it once more");
            confirm_once(store, name, summary).await
        }
        confirmed => confirmed,
    }
}

async fn confirm_once(store: &WalStore, name: &ObjectName, summary: &StoredSummary) -> Result<()> {
    let differs = |stored: &StoredSummary| other_content(store, name, stored, &summary.sha256);
    let vanished = || vanished(store, name);
    let same = |stored: &StoredSummary| stored.sha256 == summary.sha256;
    match store.summary(name).await? {
        None => return Err(vanished()),
        Some(stored) if !same(&stored) => return Err(differs(&stored)),
        Some(_) => {}
    }
    match store.copy_to(name, &mut io::sink()).await? {
        None => return Err(vanished()),
        Some(stored) if !same(&stored) => return Err(differs(&stored)),
        Some(_) => {}
    }
    Ok(store.repository().storage().ensure_durable(name).await?)
}

/// An object that has other content than what was given, of this SHA-256.
pub fn other_content(
    store: &WalStore,
    name: &ObjectName,
    stored: &StoredSummary,
    given: &str,
) -> Error {
    Error::new(
        Kind::Conflict,
        format!(
            "{name} in {} has other content: SHA-256 {} is stored, {given} was given",
            store.repository().storage().address(),
            stored.sha256,
        ),
    )
    .hint("the stored one was left as it is")
    .hint(
        "two servers archive into the same place, or a server went back in time on the same timeline: give a \
         copy a cluster name or a repository of its own",
    )
}

/// An object that was there a moment ago.
pub fn vanished(store: &WalStore, what: impl std::fmt::Display) -> Error {
    let address = store.repository().storage().address();
    Error::new(Kind::Repository, format!("{what} vanished from {address} while it was looked at"))
}
