//! The backup's tree, put together from the stream, over the tree of a base backup if there is one.
//!
//! [`TreeBuilder`] follows the batches in their order, with the hashes that the workers found. A block
//! that the base has at the same position, with the same hash, is referred to where it lies; all
//! others get a place in a frame of this backup. Map leaves are made as soon as 1,024 blocks are
//! known. Entries are kept, some 100 bytes each, and sorted into file leaves at the end: the stream
//! comes in the order of directories. Leaves that are as they were are referred to as well.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    base::{Base, BaseFile, Twice},
    cut::{Batch, Item},
    work::Looked,
};
use crate::{
    error::{Error, Kind, Result},
    repo::{
        BackupId,
        manifest::Reference,
        pack::{FIRST_LEAF_PACK, FrameFiller, FullFrame, PackReader},
        record::{BadPage, BadPages},
        tree::{
            BLOCK, BackupTable, Block, BlockHasher, DigestBuilder, Extent, FileEntry, FileKind,
            FileMap, INLINE_BLOCKS, LEAF_FILES, LeafMap, PackedChange, PackedEntry, Place, Stored,
            Use, block_count, encode_file_leaf, encode_map_leaf, fills_leaf, overlay_blocks,
            overlay_entries,
        },
        tree_reader::ReadFrames,
    },
};

/// How many bytes of entries a file leaf has at most, so that its frame stays small.
const LEAF_BYTES: usize = 1 << 20;

/// Raw bytes in use, by backup number and pack.
#[derive(Debug, Default)]
struct Uses(BTreeMap<(u32, u32), u64>);

impl Uses {
    fn add(&mut self, backup: u32, pack: u32, live: u64) {
        *self.0.entry((backup, pack)).or_default() += live;
    }

    fn extent(&mut self, extent: Extent) {
        self.add(extent.place.backup, extent.place.pack, extent.len.into());
    }

    fn list(&self) -> Vec<Use> {
        self.0.iter().map(|(&(backup, pack), &live)| Use { backup, pack, live }).collect()
    }
}

/// The file whose blocks are coming.
struct OpenFile {
    path: Vec<u8>,
    mode: u32,
    size: u64,
    digest: DigestBuilder,
    /// The base's file of the same path.
    before: Option<BaseFile>,
    /// Nothing of it changed, as the source says.
    unchanged: bool,
    /// Blocks that are in no leaf yet.
    blocks: Vec<Block>,
    leaves: Vec<Extent>,
    uses: Uses,
    count: u64,
}

/// The tree, whole.
#[derive(Debug)]
pub struct Tree {
    /// The file leaves, in order.
    pub leaves: Vec<Extent>,
    /// What the numbers of backups in it mean.
    pub table: BackupTable,
    /// Every pack that it refers to, sorted.
    pub references: Vec<Reference>,
    /// Files and directories.
    pub entries: u64,
    /// Files.
    pub files: u64,
    /// Their sizes together, in bytes.
    pub bytes: u64,
    /// Bytes of blocks that the base doesn't have.
    pub changed: u64,
    /// Pages whose checksum was wrong in the stream.
    pub suspects: BadPages,
    /// Pages whose checksum was wrong in the base, and which are the base's; of more than it names, those that it names.
    pub inherited: BadPages,
}

/// Builds a tree. Blocks and leaves are put into frames here; whoever drives it stores them.
pub struct TreeBuilder<F = PackReader> {
    hasher: Arc<BlockHasher>,
    table: BackupTable,
    base: Option<Base<F>>,
    blocks: FrameFiller,
    leaves: FrameFiller,
    full: Vec<FullFrame>,
    file: Option<OpenFile>,
    /// Those that the base doesn't have just so.
    entries: Vec<PackedEntry>,
    uses: Uses,
    count: u64,
    files: u64,
    bytes: u64,
    changed: u64,
    suspects: BadPages,
    inherited: BadPages,
}

impl TreeBuilder {
    /// A table in which the new backup is number 0.
    pub fn table(id: &BackupId) -> BackupTable {
        let mut table = BackupTable::default();
        table.number(id);
        table
    }
}

impl<F: ReadFrames> TreeBuilder<F> {
    /// The builder of a tree over `base`'s. `table` is what the base's backup numbers mean; the new
    /// backup is number 0 in it.
    pub fn new(hasher: Arc<BlockHasher>, base: Option<Base<F>>, table: BackupTable) -> Self {
        TreeBuilder {
            hasher,
            table,
            base,
            blocks: FrameFiller::new(0, 0),
            leaves: FrameFiller::new(0, FIRST_LEAF_PACK),
            full: Vec::new(),
            file: None,
            entries: Vec::new(),
            uses: Uses::default(),
            count: 0,
            files: 0,
            bytes: 0,
            changed: 0,
            suspects: BadPages::default(),
            inherited: BadPages::default(),
        }
    }

    /// Frames that are full, to be stored in order: of blocks, and of leaves, which have packs of
    /// their own.
    pub fn take_full(&mut self) -> Vec<FullFrame> {
        std::mem::take(&mut self.full)
    }

    /// Follows one batch.
    pub async fn follow(&mut self, batch: &Batch, looked: &Looked) -> Result<()> {
        let mut hashes = looked.hashes.iter().copied().enumerate();
        let mut suspects = looked.suspects.iter().copied().peekable();
        // Without a base everything is stored: as it came, and without a copy.
        let whole = (self.base.is_none() && !batch.raw.is_empty()).then(|| {
            let (place, before, frame) = self.blocks.add_frame(batch.raw.clone());
            self.full.extend(before);
            self.full.push(frame);
            place
        });
        for item in &batch.items {
            match item {
                Item::Directory { path, mode } => {
                    let (path, mode) = (path.clone(), *mode);
                    self.entry(&FileEntry { path, mode, kind: FileKind::Directory })?;
                }
                Item::BeginFile { path, mode, size } => self.begin_file(path, *mode, *size)?,
                Item::Zeros(count) => {
                    for _ in 0..*count {
                        self.add(Block::Zero).await?;
                    }
                }
                Item::Unchanged(count) => self.unchanged(*count).await?,
                Item::Data { at, len, .. } => {
                    let data = batch.raw.get(*at..at + len).ok_or_else(lost)?;
                    for (n, bytes) in data.chunks(BLOCK).enumerate() {
                        let (number, hash) = hashes.next().ok_or_else(lost)?;
                        if suspects.next_if_eq(&number).is_some() {
                            self.suspect();
                        }
                        let block = match self.in_base(hash, bytes.len()).await? {
                            Some(block) => block,
                            None => {
                                self.changed += bytes.len() as u64;
                                let place = match whole {
                                    Some(first) => {
                                        Place { offset: (at + n * BLOCK) as u32, ..first }
                                    }
                                    None => self.place(bytes),
                                };
                                Block::Stored { place, hash }
                            }
                        };
                        self.add(block).await?;
                    }
                }
                Item::EndFile => self.end_file().await?,
            }
        }
        hashes.next().map_or(Ok(()), |_| Err(lost()))
    }

    fn place(&mut self, bytes: &[u8]) -> Place {
        let (place, full) = self.blocks.add(bytes);
        self.full.extend(full);
        place
    }

    fn begin_file(&mut self, path: &[u8], mode: u32, size: u64) -> Result<()> {
        let before = match &self.base {
            Some(base) => base.file(path, &self.table)?,
            None => None,
        };
        self.file = Some(OpenFile {
            path: path.to_vec(),
            mode,
            size,
            digest: self.hasher.digest(size),
            before,
            unchanged: false,
            blocks: Vec::new(),
            leaves: Vec::new(),
            uses: Uses::default(),
            count: 0,
        });
        Ok(())
    }

    /// The next block of the open file as the base has it; none past the end of the base's file.
    async fn next_in_base(&mut self) -> Result<Option<Block>> {
        let file = self.file.as_mut().ok_or_else(lost)?;
        match (&mut self.base, &mut file.before) {
            (Some(base), Some(before)) => base.block(before, file.count, &mut self.table).await,
            _ => Ok(None),
        }
    }

    fn base_has_whole_block(&self) -> bool {
        let before = self.file.as_ref().and_then(|file| Some((file.before.as_ref()?, file.count)));
        before.is_some_and(|(before, count)| before.block_len(count) == BLOCK)
    }

    /// The next block of the open file, if the base has the same there.
    async fn in_base(&mut self, hash: u64, len: usize) -> Result<Option<Block>> {
        let file = self.file.as_ref().ok_or_else(lost)?;
        if file.before.as_ref().is_none_or(|before| before.block_len(file.count) != len) {
            return Ok(None);
        }
        let same = |block: &Block| matches!(block, Block::Stored { hash: h, .. } if *h == hash);
        Ok(self.next_in_base().await?.filter(same))
    }

    /// The next blocks are the base's.
    async fn unchanged(&mut self, count: u64) -> Result<()> {
        let file = self.file.as_mut().ok_or_else(lost)?;
        let before = file.before.as_ref().ok_or_else(|| {
            let path = String::from_utf8_lossy(&file.path);
            let message = format!("the server sent changes of {path}, which the base doesn't have");
            Error::new(Kind::Postgres, message)
        })?;
        if let Some(base) = &self.base {
            let pages = base.bad_pages(&file.path, file.count..file.count.saturating_add(count));
            self.inherited.add(BadPages { count: pages.len() as u64, pages });
        }
        if file.count == 0 && before.size == file.size && count == block_count(file.size) {
            // Its map needn't be read.
            file.count = count;
            file.unchanged = true;
            return Ok(());
        }
        for _ in 0..count {
            // A block that the base has only in part isn't one that the server knows.
            let whole = self.base_has_whole_block();
            let block = self.next_in_base().await?.filter(|_| whole).unwrap_or(Block::Zero);
            self.add(block).await?;
        }
        Ok(())
    }

    async fn add(&mut self, block: Block) -> Result<()> {
        let file = self.file.as_mut().ok_or_else(lost)?;
        match block {
            Block::Zero => file.digest.add(self.hasher.zero_block()),
            Block::Stored { place, hash } => {
                file.digest.add(hash);
                let left = file.size.saturating_sub(file.count * BLOCK as u64);
                file.uses.add(place.backup, place.pack, left.min(BLOCK as u64));
            }
        }
        file.blocks.push(block);
        file.count += 1;
        if fills_leaf(file.blocks.len()) {
            self.end_leaf().await?;
        }
        Ok(())
    }

    /// The blocks of the open file that are in no leaf yet make one.
    async fn end_leaf(&mut self) -> Result<()> {
        let file = self.file.as_mut().ok_or_else(lost)?;
        let blocks = std::mem::take(&mut file.blocks);
        let number = file.leaves.len();
        let before = match (&mut self.base, &mut file.before) {
            (Some(base), Some(before)) => base.map_leaf(before, number, &mut self.table).await?,
            _ => None,
        };
        let bytes = match before {
            Some((extent, leaf)) if leaf.items == blocks => {
                file.uses.extent(extent);
                if let Some((whole, _)) = &leaf.over {
                    file.uses.extent(*whole);
                }
                file.leaves.push(extent);
                return Ok(());
            }
            Some((extent, leaf)) => {
                let (whole, before) = leaf.whole(extent);
                match overlay_blocks(&blocks, whole, before, &self.table) {
                    Stored::Whole(bytes) => bytes,
                    Stored::Patch(bytes) => {
                        file.uses.extent(whole);
                        bytes
                    }
                }
            }
            None => encode_map_leaf(&blocks, &self.table),
        };
        let (place, full) = self.leaves.add(&bytes);
        self.full.extend(full);
        let extent = Extent { place, len: bytes.len() as u32 };
        file.uses.extent(extent);
        file.leaves.push(extent);
        Ok(())
    }

    /// Notes the next block of the open file as one with a wrong checksum.
    fn suspect(&mut self) {
        if let Some(file) = &self.file {
            let path = String::from_utf8_lossy(&file.path).into_owned();
            let page = BadPage { path, page: file.count };
            self.suspects.add(BadPages { count: 1, pages: vec![page] });
        }
    }

    async fn end_file(&mut self) -> Result<()> {
        let file = self.file.as_ref().ok_or_else(lost)?;
        if file.count != block_count(file.size) {
            return Err(lost());
        }
        let inline = file.count <= INLINE_BLOCKS as u64;
        if !inline && !file.blocks.is_empty() {
            self.end_leaf().await?;
        }
        let file = self.file.take().ok_or_else(lost)?;
        let digest = file.digest.finish();
        let same = |before: &BaseFile| {
            file.unchanged || (before.size == file.size && before.digest == digest)
        };
        let (digest, map) = match file.before {
            Some(before) if same(&before) => (before.digest, before.map),
            _ if inline => (digest, FileMap::Inline(file.blocks)),
            _ => {
                let uses = file.uses.list();
                (digest, FileMap::Leaves(LeafMap { extents: file.leaves, uses }))
            }
        };
        self.use_map(&map, file.size);
        self.files += 1;
        self.bytes += file.size;
        let kind = FileKind::File { size: file.size, digest, map };
        self.entry(&FileEntry { path: file.path, mode: file.mode, kind })
    }

    /// Counts what a file's map leads to.
    fn use_map(&mut self, map: &FileMap, size: u64) {
        match map {
            FileMap::Inline(blocks) => {
                for (block, offset) in blocks.iter().zip((0..size).step_by(BLOCK)) {
                    if let Block::Stored { place, .. } = block {
                        let len = (size - offset).min(BLOCK as u64);
                        self.uses.add(place.backup, place.pack, len);
                    }
                }
            }
            FileMap::Leaves(map) => {
                map.uses.iter().for_each(|used| self.uses.add(used.backup, used.pack, used.live));
            }
        }
    }

    fn entry(&mut self, entry: &FileEntry) -> Result<()> {
        self.count += 1;
        let entry = PackedEntry::new(entry);
        let new = match &mut self.base {
            Some(base) => base.note(entry).map_err(|Twice(path)| twice(&path))?,
            None => Some(entry),
        };
        self.entries.extend(new);
        Ok(())
    }

    /// Sorts the entries into file leaves. The last frames come with the tree.
    pub async fn finish(mut self) -> Result<(Tree, Vec<FullFrame>)> {
        if self.file.is_some() {
            return Err(lost());
        }
        let mut entries = std::mem::take(&mut self.entries);
        entries.sort_unstable();
        if let Some([one, _]) = entries.array_windows().find(|[a, b]| a.path() == b.path()) {
            return Err(twice(one.path()));
        }
        let mut leaves = Vec::new();
        match self.base.take() {
            None => self.whole_leaves(&entries.iter().collect::<Vec<_>>(), &mut leaves)?,
            Some(base) => self.leaves_over(base, &entries, &mut leaves).await?,
        }
        self.full.extend(self.blocks.finish());
        self.full.extend(self.leaves.finish());
        let mut references: Vec<Reference> = Vec::new();
        for ((backup, pack), live) in self.uses.0 {
            let backup = self.table.get(backup).ok_or_else(lost)?.clone();
            references.push(Reference { backup, pack, live });
        }
        references.sort_unstable();
        let tree = Tree {
            leaves,
            table: self.table,
            references,
            entries: self.count,
            files: self.files,
            bytes: self.bytes,
            changed: self.changed,
            suspects: self.suspects,
            inherited: self.inherited,
        };
        Ok((tree, self.full))
    }

    fn put_leaf(&mut self, bytes: &[u8], leaves: &mut Vec<Extent>) {
        let (place, full) = self.leaves.add(bytes);
        self.full.extend(full);
        let extent = Extent { place, len: bytes.len() as u32 };
        self.uses.extent(extent);
        leaves.push(extent);
    }

    /// Whole leaves of sorted entries.
    fn whole_leaves(&mut self, entries: &[&PackedEntry], leaves: &mut Vec<Extent>) -> Result<()> {
        let mut rest = entries;
        while !rest.is_empty() {
            let (these, others) = rest.split_at(fitting(rest));
            let bytes = encode_file_leaf(these.iter().copied(), &self.table).map_err(|_| lost())?;
            self.put_leaf(&bytes, leaves);
            rest = others;
        }
        Ok(())
    }

    /// Leaves over those of the base, with the same boundaries, so that what is the same stays the
    /// same. `entries` are those that the base doesn't have just so.
    async fn leaves_over(
        &mut self,
        mut base: Base<F>,
        entries: &[PackedEntry],
        leaves: &mut Vec<Extent>,
    ) -> Result<()> {
        let mut rest = entries;
        for number in 0..base.leaves().len() {
            let until = match base.first_path(number + 1) {
                Some(next) => rest.partition_point(|entry| entry.path() < next),
                None => rest.len(),
            };
            let (these, others) = rest.split_at(until);
            rest = others;
            let (same, all) = base.same_in(number);
            if these.is_empty() && all {
                let leaf = &base.leaves()[number];
                leaves.push(leaf.extent);
                self.uses.extent(leaf.extent);
                leaf.over.iter().for_each(|over| self.uses.extent(*over));
                continue;
            }
            let mut now: Vec<PackedEntry> = same.into_iter().chain(these).cloned().collect();
            now.sort_unstable();
            let now: Vec<&PackedEntry> = now.iter().collect();
            if now.is_empty() || fitting(&now) < now.len() {
                self.whole_leaves(&now, leaves)?;
                continue;
            }
            let (whole, before) = base.whole_leaf(number, &mut self.table).await?;
            let changes = changes(&before, &now);
            match overlay_entries(&now, whole, &changes, &self.table).map_err(|_| lost())? {
                Stored::Whole(bytes) => self.put_leaf(&bytes, leaves),
                Stored::Patch(bytes) => {
                    self.uses.extent(whole);
                    self.put_leaf(&bytes, leaves);
                }
            }
        }
        self.whole_leaves(&rest.iter().collect::<Vec<_>>(), leaves)
    }
}

/// How many of the first entries one leaf takes.
fn fitting(entries: &[&PackedEntry]) -> usize {
    let mut bytes = 0;
    let fits = |entry: &&&PackedEntry| {
        bytes += entry.len();
        bytes <= LEAF_BYTES
    };
    entries.iter().take(LEAF_FILES).take_while(fits).count().max(1)
}

/// What makes `now` of `before`, both sorted by path.
fn changes(before: &[PackedEntry], now: &[&PackedEntry]) -> Vec<PackedChange> {
    let mut changes = Vec::new();
    let mut before = before.iter().peekable();
    for entry in now {
        while let Some(gone) = before.next_if(|old| old.path() < entry.path()) {
            changes.push(PackedChange::Gone(gone.path().into()));
        }
        match before.next_if(|old| old.path() == entry.path()) {
            Some(old) if old == *entry => {}
            _ => changes.push(PackedChange::Is((*entry).clone())),
        }
    }
    changes.extend(before.map(|gone| PackedChange::Gone(gone.path().into())));
    changes
}

fn twice(path: &[u8]) -> Error {
    let path = String::from_utf8_lossy(path);
    Error::new(Kind::Postgres, format!("the backup stream has {path} twice"))
}

/// Batches and hashes don't fit together.
fn lost() -> Error {
    Error::new(Kind::Internal, "the pieces of the backup stream don't fit together")
}
