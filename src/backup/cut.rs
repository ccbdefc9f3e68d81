//! Files cut into blocks.
//!
//! [`Cutter`] is the sink that a source fills. What comes out of it are [`Batch`]es in the order of
//! the stream: as many blocks as a frame holds with the list of what they are, so that a worker can
//! hash and check them, and the tree can be put together from the batches in the same order. Blocks
//! of zeros, and those that the source says are as in the base backup, are in the list only.
//!
//! This runs on the one thread that reads, so it does nothing but copy each block once.

use bytes::Bytes;

use super::source::FileSink;
use crate::{
    error::{Error, Kind, Result},
    postgres::page::RelationFile,
    repo::{pack::FRAME, tree::BLOCK},
};

/// How many items are collected before they are passed on, with few blocks or none: a directory of
/// a million empty files must not pile up.
const MAX_ITEMS: usize = 8192;

/// One thing of the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    /// A directory.
    Directory {
        /// Relative to the data directory.
        path: Vec<u8>,
        /// The permission bits.
        mode: u32,
    },
    /// A file begins; what follows up to [`Item::EndFile`] are its blocks.
    BeginFile {
        /// Relative to the data directory.
        path: Vec<u8>,
        /// The permission bits.
        mode: u32,
        /// In bytes.
        size: u64,
    },
    /// So many whole blocks of zeros.
    Zeros(u64),
    /// So many whole blocks that are what they were in the base backup.
    Unchanged(u64),
    /// Blocks that lie one after the other in this batch.
    Data {
        /// Where the first one begins in [`Batch::raw`].
        at: usize,
        /// Their length: whole blocks, but for a file's last one.
        len: usize,
        /// The first one's number in its relation fork, when the blocks are pages.
        page: Option<u32>,
    },
    /// The file is complete.
    EndFile,
}

/// A piece of the stream: what happened, and the bytes that came with it.
#[derive(Debug)]
pub struct Batch {
    /// The blocks' bytes, at most a frame of them.
    pub raw: Bytes,
    /// What happened, in order.
    pub items: Vec<Item>,
}

/// The file that is being cut.
#[derive(Debug)]
struct OpenFile {
    path: Vec<u8>,
    left: u64,
    /// The number of the next block in its relation fork.
    page: Option<u32>,
}

/// Cuts a stream of files into batches.
#[derive(Debug)]
pub struct Cutter {
    raw: Vec<u8>,
    items: Vec<Item>,
    ready: Vec<Batch>,
    /// The beginning of a block whose rest hasn't come yet.
    partial: Vec<u8>,
    file: Option<OpenFile>,
    /// Blocks in a relation's file segment, when pages are to be checked.
    segment_blocks: Option<u32>,
    warnings: Vec<String>,
}

impl Cutter {
    /// `segment_blocks` is how many blocks a relation's file has at most, in a cluster with data
    /// checksums; `None` where pages have none.
    pub fn new(segment_blocks: Option<u32>) -> Self {
        Cutter {
            raw: Vec::with_capacity(FRAME),
            items: Vec::new(),
            ready: Vec::new(),
            partial: Vec::with_capacity(BLOCK),
            file: None,
            segment_blocks,
            warnings: Vec::new(),
        }
    }

    /// The batches that are complete, in order.
    pub fn take_ready(&mut self) -> Vec<Batch> {
        std::mem::take(&mut self.ready)
    }

    /// What the source had to say since the last time.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// The last batches.
    pub fn finish(mut self) -> Result<Vec<Batch>> {
        if let Some(file) = &self.file {
            return Err(broken(&file.path, "it was not complete when the stream ended"));
        }
        self.cut();
        Ok(self.ready)
    }

    /// Ends the batch that is being filled, if anything is in it.
    fn cut(&mut self) {
        if !self.items.is_empty() {
            let raw = match self.raw.len() {
                0 => Bytes::new(),
                _ => std::mem::replace(&mut self.raw, Vec::with_capacity(FRAME)).into(),
            };
            self.ready.push(Batch { raw, items: std::mem::take(&mut self.items) });
        }
    }

    fn push(&mut self, item: Item) {
        self.items.push(item);
        if self.items.len() >= MAX_ITEMS {
            self.cut();
        }
    }

    /// The file's next block, whole or the last one.
    fn block(&mut self, block: &[u8]) {
        let page = self.file.as_mut().and_then(|file| {
            let page = file.page;
            file.page = page.map(|n| n.wrapping_add(1));
            page
        });
        if block == ZEROS {
            match self.items.last_mut() {
                Some(Item::Zeros(count)) => *count += 1,
                _ => self.push(Item::Zeros(1)),
            }
            return;
        }
        if self.raw.len() + block.len() > FRAME {
            self.cut();
        }
        let at = self.raw.len();
        self.raw.extend_from_slice(block);
        match self.items.last_mut() {
            // The file's last block may be short, so nothing of this file follows that one.
            Some(Item::Data { at: first, len, .. }) if *first + *len == at => *len += block.len(),
            _ => self.push(Item::Data { at, len: block.len(), page }),
        }
    }
}

fn broken(path: &[u8], what: &str) -> Error {
    let path = String::from_utf8_lossy(path);
    Error::new(Kind::Postgres, format!("the backup stream is broken at {path}: {what}"))
}

/// A block of zeros.
static ZEROS: [u8; BLOCK] = [0; BLOCK];

impl FileSink for Cutter {
    fn directory(&mut self, path: &[u8], mode: u32) -> Result<()> {
        self.push(Item::Directory { path: path.to_vec(), mode });
        Ok(())
    }

    fn begin_file(&mut self, path: &[u8], mode: u32, size: u64) -> Result<()> {
        if let Some(file) = &self.file {
            return Err(broken(&file.path, "another file begins before its end"));
        }
        let page = self.segment_blocks.and_then(|blocks| {
            let file = RelationFile::parse(std::str::from_utf8(path).ok()?)?;
            Some(file.first_block(blocks))
        });
        self.file = Some(OpenFile { path: path.to_vec(), left: size, page });
        self.push(Item::BeginFile { path: path.to_vec(), mode, size });
        Ok(())
    }

    fn data(&mut self, mut bytes: &[u8]) -> Result<()> {
        let file = self.file.as_mut().ok_or_else(|| broken(b"", "data outside of a file"))?;
        file.left = (file.left.checked_sub(bytes.len() as u64))
            .ok_or_else(|| broken(&file.path, "it is longer than was said"))?;
        if !self.partial.is_empty() {
            let (more, rest) = bytes.split_at(bytes.len().min(BLOCK - self.partial.len()));
            self.partial.extend_from_slice(more);
            bytes = rest;
            if self.partial.len() == BLOCK {
                let mut whole = std::mem::take(&mut self.partial);
                self.block(&whole);
                whole.clear();
                self.partial = whole;
            }
        }
        let (blocks, rest) = bytes.as_chunks::<BLOCK>();
        for block in blocks {
            self.block(block);
        }
        self.partial.extend_from_slice(rest);
        Ok(())
    }

    fn unchanged(&mut self, blocks: u64) -> Result<()> {
        let file = self.file.as_mut().ok_or_else(|| broken(b"", "blocks outside of a file"))?;
        let bytes = blocks.checked_mul(BLOCK as u64).filter(|_| self.partial.is_empty());
        file.left = bytes
            .and_then(|bytes| file.left.checked_sub(bytes))
            .ok_or_else(|| broken(&file.path, "its unchanged blocks don't fit into it"))?;
        file.page = file.page.map(|page| page.wrapping_add(blocks as u32));
        match self.items.last_mut() {
            Some(Item::Unchanged(count)) => *count += blocks,
            _ if blocks > 0 => self.push(Item::Unchanged(blocks)),
            _ => {}
        }
        Ok(())
    }

    fn end_file(&mut self) -> Result<()> {
        if !self.partial.is_empty() {
            let mut last = std::mem::take(&mut self.partial);
            self.block(&last);
            last.clear();
            self.partial = last;
        }
        let file = self.file.take().ok_or_else(|| broken(b"", "the end of no file"))?;
        if file.left != 0 {
            return Err(broken(&file.path, "it is shorter than was said"));
        }
        self.push(Item::EndFile);
        Ok(())
    }

    fn warning(&mut self, message: String) {
        self.warnings.push(message);
    }
}
