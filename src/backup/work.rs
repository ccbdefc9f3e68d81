//! What threads do with a batch: hash its blocks, check its pages, compress and seal its frame.

use std::sync::{Arc, Mutex, PoisonError, mpsc};

use tokio::sync::oneshot;

use super::{
    cut::{Batch, Item},
    tree::Looked,
};
use crate::{
    error::{Error, Kind, Result},
    postgres::{Lsn, page},
    repo::{
        sealed::{SealedFrame, Sealer},
        tree::{BLOCK, BlockHasher},
    },
};

/// A batch with what is needed to work on it, and where the outcome goes.
pub struct Job {
    /// The batch.
    pub batch: Batch,
    /// Seals frames of the pack that the batch's frame belongs to; none without a frame.
    pub sealer: Option<Arc<Sealer>>,
    /// Takes what came of it.
    pub done: oneshot::Sender<Result<Worked>>,
}

/// A batch worked on.
#[derive(Debug)]
pub struct Worked {
    /// What happened in the stream.
    pub items: Vec<Item>,
    /// The stored blocks' hashes, and which pages look bad.
    pub looked: Looked,
    /// The frame, to be stored.
    pub frame: Option<SealedFrame>,
}

/// What every worker knows.
#[derive(Clone)]
pub struct Worker {
    hasher: BlockHasher,
    /// Pages from here on were written during the backup, and may be torn: WAL repairs them.
    start_lsn: Lsn,
}

impl Worker {
    /// A worker for a backup that starts at `start_lsn`.
    pub fn new(hasher: BlockHasher, start_lsn: Lsn) -> Self {
        Worker { hasher, start_lsn }
    }

    /// Works until there are no more jobs. Several workers share the receiver.
    pub fn run(&self, jobs: &Mutex<mpsc::Receiver<Job>>) {
        loop {
            let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = job else { return };
            let worked = self.work(job.batch, job.sealer.as_deref());
            // Nobody waits for it any more when the backup has failed elsewhere.
            let _ = job.done.send(worked);
        }
    }

    fn work(&self, batch: Batch, sealer: Option<&Sealer>) -> Result<Worked> {
        let Batch { frame, items } = batch;
        let raw = frame.as_ref().map_or(&[][..], |frame| &frame.raw);
        let mut looked = Looked::default();
        for item in &items {
            if let Item::Stored { place, len, page } = item {
                let start = place.offset as usize;
                let blocks = raw.get(start..start + len).ok_or_else(|| {
                    Error::new(Kind::Internal, "a block lies outside the frame it was put into")
                })?;
                self.look(blocks, *page, &mut looked);
            }
        }
        let frame = match (&frame, sealer) {
            (Some(frame), Some(sealer)) => Some(sealer.seal(frame.frame.into(), &frame.raw)?),
            _ => None,
        };
        Ok(Worked { items, looked, frame })
    }

    /// Looks at blocks of one file, the first of which is block `page` of its relation fork.
    fn look(&self, blocks: &[u8], page: Option<u32>, looked: &mut Looked) {
        for (i, block) in blocks.chunks(BLOCK).enumerate() {
            let number = page.map(|first| first.wrapping_add(i as u32));
            if let Some(number) = number.filter(|_| block.len() == BLOCK)
                && is_suspect(block, number, self.start_lsn)
            {
                looked.suspects.push(looked.hashes.len());
            }
            looked.hashes.push(self.hasher.block(block));
        }
    }
}

/// Whether a page that wasn't written since the backup began has a wrong checksum
/// (`backup/basebackup.c`, `verify_page_checksum`). A new page has none.
fn is_suspect(page: &[u8], number: u32, start_lsn: Lsn) -> bool {
    !page::is_new(page)
        && page::lsn(page) < start_lsn
        && page::checksum(page, number) != page::stored_checksum(page)
}
