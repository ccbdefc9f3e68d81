//! Frames into packs, in one repository.
//!
//! Frames of blocks are sealed by the threads, several at once, and written in their order; frames
//! of leaves are a thousandth of the data and sealed here. A pack that is complete becomes durable
//! beside the next one being written.

use std::{
    collections::VecDeque,
    sync::{Arc, mpsc as std_mpsc},
};

use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{pipeline::Setup, work::Job};
use crate::{
    error::{Error, Kind, Result},
    repo::{
        BackupId, Repository,
        layout::ClusterLayout,
        pack::{FIRST_LEAF_PACK, FullFrame},
        sealed::{SealedFrame, SealedWriter, Sealer},
    },
};

/// How many complete packs may be on their way to the disk beside the one being written.
const FINISHING: usize = 2;

/// What has been stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoredPacks {
    /// Bytes in the frames, before compression.
    pub raw: u64,
    /// Bytes of the packs in the repository.
    pub stored: u64,
}

/// A frame of blocks on its way.
struct Sealing {
    /// The pack that begins with it.
    begins: Option<SealedWriter>,
    /// Whether it is its pack's last.
    ends: bool,
    sealed: oneshot::Receiver<Result<SealedFrame>>,
}

/// Stores the packs of one backup in one repository.
pub struct Store {
    repository: Repository,
    layout: ClusterLayout,
    id: BackupId,
    jobs: std_mpsc::Sender<Job>,
    /// How many frames may be on their way to the threads.
    ahead: usize,
    /// Seals frames of the pack being filled.
    sealer: Option<Arc<Sealer>>,
    sealing: VecDeque<Sealing>,
    pack: Option<SealedWriter>,
    leaf_pack: Option<SealedWriter>,
    finishing: VecDeque<JoinHandle<Result<u64>>>,
    done: StoredPacks,
    writing: mpsc::Sender<()>,
}

impl Store {
    /// `ahead` is how many frames may be on their way to the threads; `writing` is held by all that
    /// may still write.
    pub fn new(
        repository: Repository,
        setup: &Setup,
        jobs: std_mpsc::Sender<Job>,
        ahead: usize,
        writing: mpsc::Sender<()>,
    ) -> Self {
        Store {
            repository,
            layout: setup.layout.clone(),
            id: setup.id.clone(),
            jobs,
            ahead,
            sealer: None,
            sealing: VecDeque::new(),
            pack: None,
            leaf_pack: None,
            finishing: VecDeque::new(),
            done: StoredPacks::default(),
            writing,
        }
    }

    /// Stores the next frame of its kind.
    pub async fn frame(&mut self, frame: FullFrame) -> Result<()> {
        self.done.raw += frame.raw.len() as u64;
        if frame.pack >= FIRST_LEAF_PACK {
            return self.leaf_frame(frame).await;
        }
        let mut begins = None;
        let sealer = match &self.sealer {
            Some(sealer) if frame.frame > 0 => sealer.clone(),
            _ => {
                let writer = self.begin(frame.pack).await?;
                let sealer = Arc::new(writer.sealer().clone());
                begins = Some(writer);
                self.sealer.insert(sealer).clone()
            }
        };
        let (done, sealed) = oneshot::channel();
        let job = Job::Seal { sealer, frame: frame.frame, raw: frame.raw, done };
        // If all threads panicked, `sealed` says so.
        let _ = self.jobs.send(job);
        self.sealing.push_back(Sealing { begins, ends: frame.ends_pack, sealed });
        while self.sealing.len() > self.ahead {
            self.write_next().await?;
        }
        Ok(())
    }

    async fn begin(&self, pack: u32) -> Result<SealedWriter> {
        SealedWriter::create(&self.repository, &self.layout.pack(&self.id, pack)).await
    }

    /// Waits for the oldest frame that is being sealed, and writes it.
    async fn write_next(&mut self) -> Result<()> {
        let Some(next) = self.sealing.pop_front() else { return Ok(()) };
        let sealed = next
            .sealed
            .await
            .unwrap_or_else(|_| Err(Error::new(Kind::Internal, "a worker thread died")))?;
        if let Some(begins) = next.begins {
            self.pack = Some(begins);
        }
        if let Some(pack) = &mut self.pack {
            pack.write(sealed).await?;
        }
        match self.pack.take_if(|_| next.ends) {
            Some(pack) => self.end(pack).await,
            None => Ok(()),
        }
    }

    async fn leaf_frame(&mut self, frame: FullFrame) -> Result<()> {
        let mut pack = match self.leaf_pack.take() {
            Some(pack) => pack,
            None => self.begin(frame.pack).await?,
        };
        pack.seal(&frame.raw).await?;
        if frame.ends_pack {
            return self.end(pack).await;
        }
        self.leaf_pack = Some(pack);
        Ok(())
    }

    /// Makes a pack durable on a thread beside this one.
    async fn end(&mut self, pack: SealedWriter) -> Result<()> {
        if self.finishing.len() >= FINISHING {
            self.finished().await?;
        }
        let (runtime, writing) = (Handle::current(), self.writing.clone());
        self.finishing.push_back(tokio::task::spawn_blocking(move || {
            let size = runtime.block_on(pack.finish(&[]));
            drop(writing);
            size
        }));
        Ok(())
    }

    /// Waits for the oldest pack that is becoming durable.
    async fn finished(&mut self) -> Result<()> {
        if let Some(oldest) = self.finishing.pop_front() {
            self.done.stored += oldest.await.unwrap_or_else(|e| {
                Err(Error::new(Kind::Internal, format!("the thread of a pack died: {e}")))
            })?;
        }
        Ok(())
    }

    /// Returns when everything is durable.
    pub async fn finish(mut self) -> Result<StoredPacks> {
        while !self.sealing.is_empty() {
            self.write_next().await?;
        }
        for pack in [self.pack.take(), self.leaf_pack.take()].into_iter().flatten() {
            self.end(pack).await?;
        }
        while !self.finishing.is_empty() {
            self.finished().await?;
        }
        Ok(self.done)
    }
}
