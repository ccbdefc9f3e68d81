//! Putting one file into each repository.

use async_trait::async_trait;

use super::source::Source;
use crate::{
    error::{Error, Kind, Result},
    repo::{
        sealed::ThreadedWriter,
        wal::{StoredSummary, WalStore},
        wal_taken::{Contents, Stored},
    },
    steps::reached,
    storage::ObjectName,
};

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

/// A repository that nothing was heard of.
pub fn lost_result() -> Error {
    Error::new(Kind::Internal, "a repository has no result")
}
