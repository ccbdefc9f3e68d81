//! Writing a sealed object to storage.

use bytes::Bytes;

use super::frame::{Lengths, SealedFrame, Sealer};
use crate::{
    error::Result,
    repo::Repository,
    storage::{ObjectName, ObjectWriter},
};

/// An object being written frame by frame.
pub struct SealedWriter {
    sealer: Sealer,
    writer: Box<dyn ObjectWriter>,
    frames: Vec<Lengths>,
    stored: u64,
}

impl SealedWriter {
    /// Begins the object `name`. It exists after [`SealedWriter::finish`].
    pub async fn create(repository: &Repository, name: &ObjectName) -> Result<Self> {
        let sealer = Sealer::new(repository.keyring(), name, repository.compression_level())?;
        let mut writer = repository.storage().create(name).await?;
        let header = Bytes::copy_from_slice(sealer.header());
        let stored = header.len() as u64;
        writer.write(header).await?;
        Ok(SealedWriter { sealer, writer, frames: Vec::new(), stored })
    }

    /// What seals this object's frames, for threads that do it beside the writer.
    pub fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// Stores the next frame. Frames must come in the order of the numbers they were sealed with.
    pub async fn write(&mut self, frame: SealedFrame) -> Result<()> {
        self.stored += frame.bytes.len() as u64;
        self.frames.push(frame.lengths);
        Ok(self.writer.write(frame.bytes.into()).await?)
    }

    /// Seals and stores the next frame.
    pub async fn seal(&mut self, raw: &[u8]) -> Result<()> {
        let frame = self.sealer.seal(self.frames.len() as u64, raw)?;
        self.write(frame).await
    }

    /// Closes the object, with its summary, and makes it durable. Returns its size in bytes.
    pub async fn finish(mut self, summary: &[u8]) -> Result<u64> {
        let end = self.sealer.close(&self.frames, summary)?;
        self.stored += end.len() as u64;
        self.writer.write(end.into()).await?;
        self.writer.finish().await?;
        Ok(self.stored)
    }
}

/// Creates a small object of one frame.
pub async fn put_sealed(repository: &Repository, name: &ObjectName, raw: &[u8]) -> Result<u64> {
    let mut writer = SealedWriter::create(repository, name).await?;
    writer.seal(raw).await?;
    writer.finish(&[]).await
}
