//! The backup's tree, put together from the stream.
//!
//! [`TreeBuilder`] follows the batches in their order, with the hashes that the workers found, and
//! makes of them map leaves, as soon as 1,024 blocks are known, and entries. Entries are kept, some
//! 100 bytes each, and sorted into file leaves at the end: the stream comes in the order of
//! directories.

use super::cut::Item;
use crate::{
    error::{Error, Kind, Result},
    repo::{
        BackupId,
        pack::{FIRST_LEAF_PACK, FrameFiller, FullFrame},
        record::{BadPage, BadPages},
        tree::{
            BLOCK, BackupTable, Block, BlockHasher, DigestBuilder, Extent, FileEntry, FileKind,
            FileLeaf, FileMap, INLINE_BLOCKS, LEAF_BLOCKS, LEAF_FILES, PackedEntry, Place,
            block_count, encode_map_leaf,
        },
    },
};

/// How many bad pages are named.
const NAMED_PAGES: usize = 100;

/// How many bytes of entries a file leaf has at most, so that its frame stays small.
const LEAF_BYTES: usize = 1 << 20;

/// The file whose blocks are coming.
struct OpenFile {
    path: Vec<u8>,
    mode: u32,
    size: u64,
    digest: DigestBuilder,
    /// Blocks that are in no leaf yet.
    blocks: Vec<Block>,
    leaves: Vec<Extent>,
    count: u64,
}

/// What a worker found out about the stored blocks of a batch, in their order.
#[derive(Debug, Default)]
pub struct Looked {
    /// Each block's hash.
    pub hashes: Vec<u64>,
    /// Which of them, by position in `hashes`, ascending, are pages whose checksum is wrong.
    pub suspects: Vec<usize>,
}

/// The tree, whole.
#[derive(Debug)]
pub struct Tree {
    /// The file leaves, in order.
    pub leaves: Vec<Extent>,
    /// What the numbers of backups in it mean.
    pub table: BackupTable,
    /// Files and directories.
    pub entries: u64,
    /// Files.
    pub files: u64,
    /// Their sizes together, in bytes.
    pub bytes: u64,
    /// Pages whose checksum was wrong in the stream.
    pub suspects: BadPages,
}

/// Builds a tree. Leaves are put into frames here; whoever drives it stores them.
pub struct TreeBuilder {
    hasher: BlockHasher,
    table: BackupTable,
    filler: FrameFiller,
    full: Vec<FullFrame>,
    file: Option<OpenFile>,
    entries: Vec<PackedEntry>,
    files: u64,
    bytes: u64,
    suspects: BadPages,
}

impl TreeBuilder {
    /// The builder of the tree of the backup `id`, which is number 0 in places.
    pub fn new(hasher: BlockHasher, id: &BackupId) -> Self {
        let mut table = BackupTable::default();
        let number = table.number(id);
        TreeBuilder {
            hasher,
            table,
            filler: FrameFiller::new(number, FIRST_LEAF_PACK),
            full: Vec::new(),
            file: None,
            entries: Vec::new(),
            files: 0,
            bytes: 0,
            suspects: BadPages::default(),
        }
    }

    /// Frames of leaves that are full, to be stored in order.
    pub fn take_full(&mut self) -> Vec<FullFrame> {
        std::mem::take(&mut self.full)
    }

    /// Follows one batch.
    pub fn follow(&mut self, items: Vec<Item>, looked: &Looked) -> Result<()> {
        let mut hashes = looked.hashes.iter().copied().enumerate();
        let mut suspects = looked.suspects.iter().copied().peekable();
        for item in items {
            match item {
                Item::Directory { path, mode } => {
                    let entry = FileEntry { path, mode, kind: FileKind::Directory };
                    self.entries.push(PackedEntry::new(&entry));
                }
                Item::BeginFile { path, mode, size } => {
                    self.file = Some(OpenFile {
                        path,
                        mode,
                        size,
                        digest: self.hasher.digest(size),
                        blocks: Vec::new(),
                        leaves: Vec::new(),
                        count: 0,
                    });
                }
                Item::Zeros(count) => {
                    let hash = self.hasher.zero_block();
                    for _ in 0..count {
                        self.add(Block::Zero, hash)?;
                    }
                }
                Item::Stored { place, len, .. } => {
                    for at in (0..len).step_by(BLOCK) {
                        let (number, hash) = hashes.next().ok_or_else(lost)?;
                        if suspects.next_if_eq(&number).is_some() {
                            self.suspect();
                        }
                        let place = Place { offset: place.offset + at as u32, ..place };
                        self.add(Block::Stored { place, hash }, hash)?;
                    }
                }
                Item::EndFile => self.end_file()?,
            }
        }
        hashes.next().map_or(Ok(()), |_| Err(lost()))
    }

    fn add(&mut self, block: Block, hash: u64) -> Result<()> {
        let file = self.file.as_mut().ok_or_else(lost)?;
        file.digest.add(hash);
        file.blocks.push(block);
        file.count += 1;
        if file.blocks.len() == LEAF_BLOCKS {
            self.store_leaf()?;
        }
        Ok(())
    }

    fn store_leaf(&mut self) -> Result<()> {
        let file = self.file.as_mut().ok_or_else(lost)?;
        let bytes = encode_map_leaf(&file.blocks, &self.table);
        file.blocks.clear();
        let (place, full) = self.filler.add(&bytes);
        file.leaves.push(Extent { place, len: bytes.len() as u32 });
        self.full.extend(full);
        Ok(())
    }

    /// Notes the next block of the open file as one with a wrong checksum.
    fn suspect(&mut self) {
        self.suspects.count += 1;
        if let (Some(file), true) = (&self.file, self.suspects.pages.len() < NAMED_PAGES) {
            let path = String::from_utf8_lossy(&file.path).into_owned();
            self.suspects.pages.push(BadPage { path, page: file.count });
        }
    }

    fn end_file(&mut self) -> Result<()> {
        let inline = {
            let file = self.file.as_ref().ok_or_else(lost)?;
            if file.count != block_count(file.size) {
                return Err(lost());
            }
            file.count <= INLINE_BLOCKS as u64
        };
        if !inline && self.file.as_ref().is_some_and(|file| !file.blocks.is_empty()) {
            self.store_leaf()?;
        }
        let file = self.file.take().ok_or_else(lost)?;
        self.files += 1;
        self.bytes += file.size;
        let map = if inline { FileMap::Inline(file.blocks) } else { FileMap::Leaves(file.leaves) };
        let kind = FileKind::File { size: file.size, digest: file.digest.finish(), map };
        let entry = FileEntry { path: file.path, mode: file.mode, kind };
        self.entries.push(PackedEntry::new(&entry));
        Ok(())
    }

    /// Sorts the entries into file leaves. The last frames of leaves come with the tree.
    pub fn finish(mut self) -> Result<(Tree, Vec<FullFrame>)> {
        if self.file.is_some() {
            return Err(lost());
        }
        self.entries.sort_unstable();
        let twice = self.entries.windows(2).find(|two| two[0].path() == two[1].path());
        if let Some([twice, _]) = twice {
            let path = String::from_utf8_lossy(twice.path()).into_owned();
            let message = format!("the backup stream has {path} twice");
            return Err(Error::new(Kind::Postgres, message));
        }
        let mut leaves = Vec::new();
        let mut rest = self.entries.as_slice();
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |entry: &&PackedEntry| {
                bytes += entry.len();
                bytes <= LEAF_BYTES
            };
            let count = rest.iter().take(LEAF_FILES).take_while(fits).count().max(1);
            let (these, others) = rest.split_at(count);
            let bytes = FileLeaf::encode(these, &self.table);
            let (place, full) = self.filler.add(&bytes);
            leaves.push(Extent { place, len: bytes.len() as u32 });
            self.full.extend(full);
            rest = others;
        }
        self.full.extend(self.filler.finish());
        let tree = Tree {
            leaves,
            table: self.table,
            entries: self.entries.len() as u64,
            files: self.files,
            bytes: self.bytes,
            suspects: self.suspects,
        };
        Ok((tree, self.full))
    }
}

/// Batches and hashes don't fit together.
fn lost() -> Error {
    Error::new(Kind::Internal, "the pieces of the backup stream don't fit together")
}
