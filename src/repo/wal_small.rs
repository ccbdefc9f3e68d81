//! Storing a small file of the archive from memory: a timeline's history.

use sha2::{Digest, Sha256};

use super::{
    repository::Names,
    sealed::SealedWriter,
    wal::{StoredSummary, WalStore},
};
use crate::{
    error::{Error, Kind, Result},
    postgres::{Timeline, WalFile},
};

impl WalStore {
    /// Stores a timeline's history file, in the form in which `archive-push` stores it. Storing the
    /// same content twice succeeds; other content under the same name is a conflict.
    pub async fn store_history(&self, timeline: Timeline, content: &[u8]) -> Result<()> {
        let file = WalFile::History(timeline);
        let summary = StoredSummary {
            size: content.len() as u64,
            sha256: hex::encode(Sha256::digest(content)),
            segment: None,
        };
        let name = self.object_of(file, &summary);
        // Where the storage overwrites, what is there is looked at before and not by trying.
        let taken = self.repository().names() == Names::Content && self.has(file).await?;
        let store = async {
            if taken {
                return Err(Error::new(Kind::Conflict, "the name is taken"));
            }
            let mut writer = SealedWriter::create(self.repository(), &name).await?;
            writer.seal(content).await?;
            writer.finish(&summary.to_bytes()?).await
        };
        let Err(refused) = store.await else { return Ok(()) };
        // Where nothing can be written at the moment, it may be there already.
        match (refused.kind(), self.history(timeline).await) {
            (_, Ok(Some(stored))) if stored == content => {
                Ok(self.repository().storage().ensure_durable(&name).await?)
            }
            (Kind::Conflict, Err(e)) => Err(e),
            (Kind::Conflict, Ok(_)) => Err(Error::new(
                Kind::Conflict,
                format!("{name} in the repository {} differs from the server's", self.repository().name()),
            )
            .hint("two servers went separate ways under one timeline id; give one of them another cluster name")),
            _ => Err(refused),
        }
    }
}
