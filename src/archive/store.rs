//! Putting one file into one repository: new, already there, or there and damaged.

use std::io;

use async_trait::async_trait;

use super::source::Source;
use crate::{
    error::{Error, Kind, Result},
    postgres::WalFile,
    repo::{
        catalog::exists,
        sealed::ThreadedWriter,
        wal::{StoredSummary, WalStore},
    },
    steps::reached,
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

/// Reads the source once and creates its object in each of `targets`. The outer error is about the
/// source, the inner ones about a repository; one repository's failure doesn't keep the others
/// from getting theirs. [`Stored::Already`] here means only that the name is taken.
pub async fn create_in_all(
    source: &mut Source,
    targets: &[(&WalStore, ObjectName)],
    expected: Option<&StoredSummary>,
) -> Result<(StoredSummary, Vec<Result<Stored>>)> {
    let mut writers = Vec::with_capacity(targets.len());
    for (store, name) in targets {
        writers.push(ThreadedWriter::create(store.repository(), name, source.threads()).await);
    }
    let mut pass = source.pass()?;
    while let Some(chunk) = pass.next()? {
        for slot in &mut writers {
            if let Ok(writer) = slot
                && let Err(e) = writer.seal(chunk.clone()).await
            {
                *slot = Err(e);
            }
        }
    }
    let summary = pass.finish()?;
    if let Some(expected) = expected.filter(|e| e.sha256 != summary.sha256) {
        return Err(Error::new(
            Kind::Local,
            format!(
                "the file changed while it was read: its SHA-256 was {}, then {}",
                expected.sha256, summary.sha256
            ),
        ));
    }
    let end = summary.to_bytes()?;
    reached("push: read");
    let mut results = Vec::with_capacity(writers.len());
    for writer in writers {
        let finished = match writer {
            Ok(writer) => writer.finish(&end).await.map(drop),
            Err(e) => Err(e),
        };
        results.push(match finished {
            Ok(()) => {
                reached("push: in a repository");
                Ok(Stored::New)
            }
            Err(e) if e.kind() == Kind::Conflict => Ok(Stored::Already),
            Err(e) => Err(e),
        });
    }
    Ok((summary, results))
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

#[async_trait]
impl Contents for Source {
    async fn create(
        &mut self,
        store: &WalStore,
        name: &ObjectName,
        summary: &StoredSummary,
    ) -> Result<bool> {
        let (_, results) = create_in_all(self, &[(store, name.clone())], Some(summary)).await?;
        let result = results.into_iter().next().ok_or_else(lost_result)?;
        Ok(result? == Stored::New)
    }
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
    for repair in store.repairs(wal).await? {
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
pub(super) fn other_content(
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

pub(super) fn vanished(store: &WalStore, what: impl std::fmt::Display) -> Error {
    let address = store.repository().storage().address();
    Error::new(Kind::Repository, format!("{what} vanished from {address} while it was looked at"))
}

/// A repository that nothing was heard of.
pub fn lost_result() -> Error {
    Error::new(Kind::Internal, "a repository has no result")
}
