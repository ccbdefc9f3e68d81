//! Storing a small file of the archive from memory: a timeline's history.

use async_trait::async_trait;
use sha2::{Digest, Sha256};

use super::{
    repository::Names,
    sealed::SealedWriter,
    wal::{StoredSummary, WalStore},
    wal_taken::{Contents, settle},
};
use crate::{
    error::{Error, Kind, Result},
    postgres::{Timeline, WalFile},
    storage::ObjectName,
};

impl WalStore {
    /// Stores a timeline's history file, in the form in which `archive-push` stores it. Storing the
    /// same content twice succeeds; other content under the same name is a conflict, and what is damaged gets
    /// a copy beside it.
    pub async fn store_history(&self, timeline: Timeline, content: &[u8]) -> Result<()> {
        let file = WalFile::History(timeline);
        let summary = StoredSummary {
            size: content.len() as u64,
            sha256: hex::encode(Sha256::digest(content)),
            segment: None,
        };
        let name = self.object_of(file, &summary);
        let mut small = Small(content);
        // Where the storage overwrites, what is there is looked at before and not by trying.
        let is_taken = self.repository().names() == Names::Content && self.has(file).await?;
        let created = if is_taken { Ok(false) } else { small.create(self, &name, &summary).await };
        let settled = match created {
            Ok(true) => return Ok(()),
            Ok(false) => settle(&mut small, self, file, &summary).await,
            // Where nothing can be written at the moment, it may be there already.
            Err(e) => settle(&mut small, self, file, &summary).await.map_err(|_| e),
        };
        match settled {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == Kind::Conflict => Err(Error::new(
                Kind::Conflict,
                format!("{name} in the repository {} differs from the server's", self.repository().name()),
            )
            .hint("two servers went separate ways under one timeline id; give one of them another cluster name")),
            Err(e) => Err(e),
        }
    }
}

/// A file in memory.
struct Small<'c>(&'c [u8]);

#[async_trait]
impl Contents for Small<'_> {
    async fn create(
        &mut self,
        store: &WalStore,
        name: &ObjectName,
        summary: &StoredSummary,
    ) -> Result<bool> {
        let stored = async {
            let mut writer = SealedWriter::create(store.repository(), name).await?;
            writer.seal(self.0).await?;
            writer.finish(&summary.to_bytes()?).await
        };
        match stored.await {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == Kind::Conflict => Ok(false),
            Err(e) => Err(e),
        }
    }
}
