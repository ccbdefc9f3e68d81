//! From files to the frames they need: in windows of a bounded number of blocks.
//!
//! Files come in the order of their first blocks ([`super::tree`]). Their blocks are collected until
//! a window is full, sorted by place, and handed out frame by frame. In a full backup the files of a
//! window use one stretch of frames, of which only the first and the last are shared with another
//! window, so each frame is read once, but for one in a thousand. In a later backup, blocks of many
//! files lie together in a frame, and a window reads it once for all of its own. A block takes 40
//! bytes here, and at most three windows live at a time, whatever the cluster's size.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use crc_fast::crc32_iscsi;

use super::{
    crc::ZERO_BLOCK,
    stretch::Stretch,
    target::Target,
    tree::{IndexedFile, Tree, unpack},
};
use crate::{
    error::{Error, Kind, Result},
    postgres::control::CONTROL_FILE,
    repo::{
        BackupId,
        tree::{BLOCK, Block, BlockHasher, FileKind, FileMap, Place, block_count, leaf_len},
        tree_reader::TreeReader,
    },
};

/// How many blocks and parts of files a window has at least, but for the last one: up to 256 MiB of
/// the cluster.
const WINDOW: usize = 32 << 10;

/// The name that the control file has until the restore is done.
pub const CONTROL_FILE_HELD_BACK: &[u8] = b"global/pg_control.restoring";

/// The name under which a file of the tree is written.
pub fn written_as(path: &[u8]) -> &[u8] {
    if path == CONTROL_FILE.as_bytes() { CONTROL_FILE_HELD_BACK } else { path }
}

/// A part of a file whose blocks are in one window: all of them, or a stretch.
#[derive(Debug)]
pub struct Part {
    /// The file.
    pub path: Vec<u8>,
    /// The file's size in bytes.
    pub size: u64,
    /// The number in the file of the part's first block.
    pub first_block: u64,
    /// The part's blocks in [`Window::crcs`].
    pub blocks: Range<usize>,
    /// Whether the file ends with this part.
    pub ends_file: bool,
}

impl Part {
    /// Where block `index` of the part begins in the file, and its length.
    pub fn block(&self, index: usize) -> (u64, usize) {
        let offset = (self.first_block + index as u64) * BLOCK as u64;
        (offset, self.size.saturating_sub(offset).min(BLOCK as u64) as usize)
    }
}

/// A stored block that a part needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// Where it lies.
    pub place: Place,
    /// The part that needs it, in [`Window::parts`].
    pub part: u32,
    /// Which of the part's blocks it is.
    pub index: u32,
    /// Its hash.
    pub hash: u64,
}

/// A stretch of the work.
#[derive(Debug)]
pub struct Window {
    /// Windows are numbered from 0.
    pub number: u64,
    /// Parts of files, in the order of the files.
    pub parts: Vec<Part>,
    /// The CRC-32C of each block of the parts: that of zeros until it has been written.
    pub crcs: Vec<AtomicU32>,
    /// The stored blocks, sorted by place.
    pub wanted: Vec<Wanted>,
    /// How many bytes of the parts are zeros that needn't be written.
    pub zero_bytes: u64,
    /// How many jobs aren't done yet.
    pub open_jobs: AtomicUsize,
}

/// A frame to fetch, and the blocks of a window that lie in it.
#[derive(Debug)]
pub struct Job {
    /// The window.
    pub window: Arc<Window>,
    /// The backup that the frame's pack is of.
    pub backup: BackupId,
    /// Which of [`Window::wanted`].
    pub wanted: Range<usize>,
    /// What the frame is fetched with, where frames are fetched together.
    pub stretch: Option<Arc<Stretch>>,
}

impl Job {
    /// The pack and the frame.
    pub fn frame(&self) -> (u32, u32) {
        let first = self.window.wanted.get(self.wanted.start);
        first.map_or((0, 0), |wanted| (wanted.place.pack, wanted.place.frame))
    }
}

/// Makes the windows.
pub struct Planner<'a> {
    hasher: &'a BlockHasher,
    target: &'a Target,
    number: u64,
    parts: Vec<Part>,
    blocks: usize,
    zeros: Vec<(usize, u32)>,
    wanted: Vec<Wanted>,
}

impl<'a> Planner<'a> {
    /// A planner that makes the files in `target`.
    pub fn new(hasher: &'a BlockHasher, target: &'a Target) -> Self {
        let (parts, zeros, wanted) = (Vec::new(), Vec::new(), Vec::new());
        Planner { hasher, target, number: 0, parts, blocks: 0, zeros, wanted }
    }

    /// Makes every file of the tree, at its full length, and gives each window to `window` with
    /// its jobs. A file's digest is computed of the hashes that its blocks must have, and has to be
    /// the one in its entry; that the blocks have these hashes is checked when they are written.
    pub async fn plan(
        mut self,
        tree: &mut Tree,
        reader: &mut TreeReader,
        window: &mut dyn FnMut(Arc<Window>, Vec<Job>) -> Result<()>,
    ) -> Result<()> {
        let files = std::mem::take(&mut tree.files);
        for IndexedFile { entry, .. } in &files {
            let FileKind::File { size, digest, map } = unpack(entry, &tree.table)? else {
                continue;
            };
            let path = entry.path();
            self.target.create(written_as(path), size)?;
            self.begin_part(path, size, 0);
            let mut found = self.hasher.digest(size);
            let leaves = match &map {
                FileMap::Inline(_) => 1,
                FileMap::Leaves(map) => map.extents.len(),
            };
            for leaf in 0..leaves {
                let read;
                let blocks = match &map {
                    FileMap::Inline(blocks) => blocks,
                    FileMap::Leaves(map) => {
                        let count = leaf_len(size, leaf);
                        let extent = map.extents[leaf];
                        read = reader.map_leaf(&mut tree.table, extent, count).await?;
                        &read.items
                    }
                };
                if self.blocks + self.parts.len() >= WINDOW {
                    let next =
                        self.parts.last().map_or(0, |p| p.first_block + p.blocks.len() as u64);
                    self.flush(tree, window)?;
                    self.begin_part(path, size, next);
                }
                for block in blocks {
                    found.add(self.add(block));
                }
            }
            let whole = self
                .parts
                .last_mut()
                .map(|part| {
                    part.ends_file = true;
                    part.first_block + part.blocks.len() as u64
                })
                .is_some_and(|blocks| blocks == block_count(size));
            if !whole || found.finish() != digest {
                let path = String::from_utf8_lossy(path);
                let backup = &tree.facts.backup;
                return Err(Error::new(
                    Kind::Damaged,
                    format!("the map of {path} in backup {backup} doesn't fit the file's digest"),
                ));
            }
        }
        tree.files = files;
        self.flush(tree, window)
    }

    fn begin_part(&mut self, path: &[u8], size: u64, first_block: u64) {
        let blocks = self.blocks..self.blocks;
        self.parts.push(Part { path: path.to_vec(), size, first_block, blocks, ends_file: false });
    }

    /// Adds a block to the last part, and returns the hash it must have.
    fn add(&mut self, block: &Block) -> u64 {
        let number = self.parts.len().saturating_sub(1);
        let Some(part) = self.parts.last_mut() else { return 0 };
        let index = part.blocks.len();
        part.blocks.end += 1;
        self.blocks += 1;
        match block {
            Block::Stored { place, hash } => {
                let (part, index) = (number as u32, index as u32);
                self.wanted.push(Wanted { place: *place, part, index, hash: *hash });
                *hash
            }
            Block::Zero => {
                let (hash, crc) = match part.block(index).1 {
                    BLOCK => (self.hasher.zero_block(), *ZERO_BLOCK),
                    len => {
                        let zeros = &[0; BLOCK][..len];
                        (self.hasher.block(zeros), crc32_iscsi(zeros))
                    }
                };
                self.zeros.push((part.blocks.end - 1, crc));
                hash
            }
        }
    }

    /// Ends the window, if anything is in it.
    fn flush(
        &mut self,
        tree: &Tree,
        window: &mut dyn FnMut(Arc<Window>, Vec<Job>) -> Result<()>,
    ) -> Result<()> {
        if self.parts.is_empty() {
            return Ok(());
        }
        let crcs: Vec<AtomicU32> = (0..self.blocks).map(|_| AtomicU32::new(0)).collect();
        let zero_bytes = (self.zeros.len() * BLOCK) as u64;
        for (block, zeros) in self.zeros.drain(..) {
            if let Some(crc) = crcs.get(block) {
                crc.store(zeros, Ordering::Relaxed);
            }
        }
        let mut wanted = std::mem::take(&mut self.wanted);
        wanted.sort_unstable();
        let frame = |w: &Wanted| (w.place.backup, w.place.pack, w.place.frame);
        let mut ranges: Vec<(u32, Range<usize>)> = Vec::new();
        let mut at = 0;
        for same in wanted.chunk_by(|a, b| frame(a) == frame(b)) {
            ranges.push((same[0].place.backup, at..at + same.len()));
            at += same.len();
        }
        let made = Arc::new(Window {
            number: self.number,
            parts: std::mem::take(&mut self.parts),
            crcs,
            wanted,
            zero_bytes,
            open_jobs: AtomicUsize::new(ranges.len()),
        });
        self.number += 1;
        self.blocks = 0;
        let job = |(backup, wanted)| {
            let backup = tree.table.get(backup).cloned().ok_or_else(|| {
                Error::new(Kind::Internal, format!("no backup has number {backup}"))
            })?;
            Ok(Job { window: made.clone(), backup, wanted, stretch: None })
        };
        let jobs = ranges.into_iter().map(job).collect::<Result<_>>()?;
        window(made.clone(), jobs)
    }
}
