//! What threads do: hash and check the blocks of a batch, compress and seal a frame.
//!
//! Several repositories share the threads. Each has keys of its own, so hashes and seals are its own
//! too, and every job brings what it needs.

use std::sync::{Arc, Mutex, PoisonError, mpsc};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::cut::{Batch, Item};
use crate::{
    error::{Error, Kind, Result},
    postgres::{Lsn, page},
    repo::{
        sealed::{SealedFrame, Sealer},
        tree::{BLOCK, BlockHasher},
    },
};

/// Something to be done by a thread. Who waits for the outcome may have given up, which is no matter
/// here.
pub enum Job {
    /// Look at a batch's blocks.
    Look {
        /// The batch.
        batch: Arc<Batch>,
        /// The repository's hasher.
        hasher: Arc<BlockHasher>,
        /// Takes what was found out.
        done: oneshot::Sender<Result<Looked>>,
    },
    /// Compress and seal a frame.
    Seal {
        /// The pack's sealer.
        sealer: Arc<Sealer>,
        /// The frame's number in the pack.
        frame: u32,
        /// Its bytes.
        raw: Bytes,
        /// Takes the sealed frame.
        done: oneshot::Sender<Result<SealedFrame>>,
    },
}

/// What was found out about the blocks of a batch, in their order.
#[derive(Debug, Default)]
pub struct Looked {
    /// Each block's hash.
    pub hashes: Vec<u64>,
    /// Which of them, by position in `hashes`, ascending, are pages whose checksum is wrong.
    pub suspects: Vec<usize>,
}

/// Works until there are no more jobs. Several threads share the receiver. Pages from `start_lsn` on
/// were written during the backup, and may be torn: WAL repairs them.
pub fn work(jobs: &Mutex<mpsc::Receiver<Job>>, start_lsn: Lsn) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(Job::Look { batch, hasher, done }) => {
                let _ = done.send(look_at(&batch, &hasher, start_lsn));
            }
            Ok(Job::Seal { sealer, frame, raw, done }) => {
                let _ = done.send(sealer.seal(frame.into(), &raw));
            }
            Err(_) => return,
        }
    }
}

fn look_at(batch: &Batch, hasher: &BlockHasher, start_lsn: Lsn) -> Result<Looked> {
    let mut looked = Looked::default();
    for item in &batch.items {
        let Item::Data { at, len, page } = item else { continue };
        let blocks = batch.raw.get(*at..at + len).ok_or_else(|| {
            Error::new(Kind::Internal, "a block lies outside the batch it was put into")
        })?;
        for (i, block) in blocks.chunks(BLOCK).enumerate() {
            let number = page.map(|first| first.wrapping_add(i as u32));
            if let Some(number) = number.filter(|_| block.len() == BLOCK)
                && is_suspect(block, number, start_lsn)
            {
                looked.suspects.push(looked.hashes.len());
            }
            looked.hashes.push(hasher.block(block));
        }
    }
    Ok(looked)
}

/// Whether a page that wasn't written since the backup began has a wrong checksum
/// (`backup/basebackup.c`, `verify_page_checksum`). A new page has none.
fn is_suspect(page: &[u8], number: u32, start_lsn: Lsn) -> bool {
    !page::is_new(page)
        && page::lsn(page) < start_lsn
        && page::checksum(page, number) != page::stored_checksum(page)
}
