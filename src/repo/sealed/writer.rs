//! Writing a sealed object to storage.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use tokio::task::JoinHandle;

use super::frame::{CompressedFrame, Lengths, SealedFrame, Sealer};
use crate::{
    error::{Context, Kind, Result},
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

/// What a frame is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameContent {
    /// Bytes as they are.
    Raw(Arc<Vec<u8>>),
    /// What is compressed already, with the level of the object's repository.
    Compressed(Arc<CompressedFrame>),
}

impl FrameContent {
    fn seal(self, sealer: &Sealer, number: u64) -> Result<SealedFrame> {
        match self {
            FrameContent::Raw(raw) => sealer.seal(number, &raw),
            FrameContent::Compressed(frame) => {
                sealer.seal_compressed(number, Arc::unwrap_or_clone(frame))
            }
        }
    }
}

/// A [`SealedWriter`] whose frames are sealed by other threads, some at a time, while the caller reads
/// the next ones.
pub struct ThreadedWriter {
    writer: SealedWriter,
    /// Frames that are being sealed, in their order.
    sealing: VecDeque<JoinHandle<Result<SealedFrame>>>,
    at_once: usize,
    begun: u64,
}

impl ThreadedWriter {
    /// Begins the object `name`, of which up to `at_once` frames are sealed at a time. With 0 the caller's
    /// thread does it.
    pub async fn create(
        repository: &Repository,
        name: &ObjectName,
        at_once: usize,
    ) -> Result<Self> {
        let writer = SealedWriter::create(repository, name).await?;
        Ok(ThreadedWriter { writer, sealing: VecDeque::new(), at_once, begun: 0 })
    }

    /// Takes the next frame. An error may be about one before it.
    pub async fn seal(&mut self, content: FrameContent) -> Result<()> {
        let number = self.begun;
        self.begun += 1;
        if self.at_once == 0 {
            let frame = content.seal(self.writer.sealer(), number)?;
            return self.writer.write(frame).await;
        }
        if self.sealing.len() >= self.at_once {
            self.write_next().await?;
        }
        let sealer = self.writer.sealer().clone();
        self.sealing.push_back(tokio::task::spawn_blocking(move || content.seal(&sealer, number)));
        Ok(())
    }

    async fn write_next(&mut self) -> Result<()> {
        let Some(sealing) = self.sealing.pop_front() else { return Ok(()) };
        let sealed = sealing.await.context(Kind::Internal, || "a thread that seals frames")??;
        self.writer.write(sealed).await
    }

    /// As [`SealedWriter::finish`].
    pub async fn finish(mut self, summary: &[u8]) -> Result<u64> {
        while !self.sealing.is_empty() {
            self.write_next().await?;
        }
        self.writer.finish(summary).await
    }
}

/// Creates a small object of one frame.
pub async fn put_sealed(repository: &Repository, name: &ObjectName, raw: &[u8]) -> Result<u64> {
    let mut writer = SealedWriter::create(repository, name).await?;
    writer.seal(raw).await?;
    writer.finish(&[]).await
}
