//! The backup that a later one is compared with, in one repository.
//!
//! Its entries are held in memory, some 100 bytes a file; the maps of its larger files stay in the
//! repository, and one leaf at a time is read when it is its turn. An entry that the new backup has
//! again, just as it was, isn't held twice: it is only marked.

use std::{ops::Range, sync::Arc};

use crate::{
    error::{Error, Kind, Result},
    repo::{
        BackupId, Repository,
        layout::ClusterLayout,
        manifest::Manifest,
        pack::PackReader,
        record::{BadPage, BadPages},
        tree::{
            BLOCK, BackupTable, Block, Extent, FileDigest, FileKind, FileMap, PackedEntry,
            first_block, leaf_len, position,
        },
        tree_reader::{ReadFrames, ReadLeaf, TreeReader},
    },
};

/// A base backup's tree.
pub struct Base<F = PackReader> {
    id: BackupId,
    reader: TreeReader<F>,
    /// All its entries, in order of their paths.
    entries: Vec<BaseEntry>,
    /// The file leaves they are in, in the same order.
    leaves: Vec<BaseLeaf>,
    /// Pages that had a wrong checksum when it was taken.
    bad_pages: BadPages,
}

struct BaseEntry {
    entry: PackedEntry,
    seen: Seen,
}

/// What became of an entry in the new backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    No,
    Same,
    Other,
}

/// A file leaf of the base.
pub struct BaseLeaf {
    /// Where it lies.
    pub extent: Extent,
    /// The whole leaf that it is a patch over.
    pub over: Option<Extent>,
    entries: Range<usize>,
}

/// A file of the base.
pub struct BaseFile {
    /// In bytes.
    pub size: u64,
    /// Its digest.
    pub digest: FileDigest,
    /// Where its blocks are.
    pub map: FileMap,
    /// The map leaf that is at hand, by its number in the file.
    leaf: Option<(usize, ReadLeaf<Block>)>,
}

impl BaseFile {
    /// How long block `index` is, in bytes.
    pub fn block_len(&self, index: u64) -> usize {
        let offset = index.saturating_mul(BLOCK as u64);
        self.size.saturating_sub(offset).min(BLOCK as u64) as usize
    }
}

impl Base {
    /// Reads the tree of the backup `id`. Its backups get numbers in `table`.
    pub async fn read(
        repository: &Repository,
        layout: &ClusterLayout,
        id: &BackupId,
        table: &mut BackupTable,
    ) -> Result<Self> {
        let manifest = Manifest::read(repository, layout, id).await?;
        let packs = Arc::new(PackReader::new(repository, layout));
        Base::of(id, packs, (manifest.leaves, &manifest.table), table).await
    }
}

impl<F: ReadFrames> Base<F> {
    /// The same, of which it is known that these pages have a wrong checksum.
    #[must_use]
    pub fn with_bad_pages(self, bad_pages: BadPages) -> Self {
        Base { bad_pages, ..self }
    }

    /// Which of these pages of a file are known to have a wrong checksum.
    pub fn bad_pages(&self, path: &[u8], pages: Range<u64>) -> Vec<BadPage> {
        let here = |bad: &&BadPage| bad.path.as_bytes() == path && pages.contains(&bad.page);
        self.bad_pages.pages.iter().filter(here).cloned().collect()
    }

    /// Reads the tree of the backup `id` with these file leaves. The table beside them is what the
    /// backup numbers in them mean, and doesn't matter any more then.
    pub async fn of(
        id: &BackupId,
        packs: Arc<F>,
        (leaves, own): (Vec<Extent>, &BackupTable),
        table: &mut BackupTable,
    ) -> Result<Self> {
        let numbers: Vec<u32> = own.iter().map(|backup| table.number(backup)).collect();
        let reader = TreeReader::new(packs);
        let mut base = Base {
            id: id.clone(),
            reader,
            entries: Vec::new(),
            leaves: Vec::new(),
            bad_pages: BadPages::default(),
        };
        for mut extent in leaves {
            let number = numbers.get(extent.place.backup as usize);
            extent.place.backup = *number.ok_or_else(|| base.broken("a file leaf"))?;
            let leaf = base.reader.file_leaf(table, extent).await?;
            let start = base.entries.len();
            base.entries.extend(
                leaf.items
                    .iter()
                    .map(|entry| BaseEntry { entry: PackedEntry::new(entry), seen: Seen::No }),
            );
            let over = leaf.over.map(|(whole, _)| whole);
            base.leaves.push(BaseLeaf { extent, over, entries: start..base.entries.len() });
        }
        if !base.entries.is_sorted_by(|a, b| a.entry.path() < b.entry.path()) {
            return Err(base.broken("the order of its files"));
        }
        Ok(base)
    }

    fn broken(&self, what: &str) -> Error {
        let message = format!("the tree of the base backup {} is broken: {what}", self.id);
        Error::new(Kind::Damaged, message).hint("take a full backup: --type full")
    }

    /// All its regular files: path and size in bytes.
    pub fn files<'a>(
        &'a self,
        table: &'a BackupTable,
    ) -> impl Iterator<Item = (&'a [u8], u64)> + 'a {
        self.entries.iter().filter_map(|held| match held.entry.unpack(table).ok()?.kind {
            FileKind::File { size, .. } => Some((held.entry.path(), size)),
            FileKind::Directory => None,
        })
    }

    fn position(&self, path: &[u8]) -> Result<usize, usize> {
        self.entries.binary_search_by(|held| held.entry.path().cmp(path))
    }

    /// The base's file of this path.
    pub fn file(&self, path: &[u8], table: &BackupTable) -> Result<Option<BaseFile>> {
        let Ok(at) = self.position(path) else { return Ok(None) };
        let entry = self.entries[at].entry.unpack(table).map_err(|_| self.broken("an entry"))?;
        Ok(match entry.kind {
            FileKind::File { size, digest, map } => {
                Some(BaseFile { size, digest, map, leaf: None })
            }
            FileKind::Directory => None,
        })
    }

    /// Block `index` of a file of the base; none past its end.
    pub async fn block(
        &mut self,
        file: &mut BaseFile,
        index: u64,
        table: &mut BackupTable,
    ) -> Result<Option<Block>> {
        if file.block_len(index) == 0 {
            return Ok(None);
        }
        let FileMap::Leaves(map) = &file.map else {
            let FileMap::Inline(blocks) = &file.map else { return Ok(None) };
            return Ok(blocks.get(index as usize).copied());
        };
        let (number, at) = position(index);
        if file.leaf.as_ref().is_none_or(|(held, _)| *held != number) {
            let extent = *map.extents.get(number).ok_or_else(|| self.broken("a map"))?;
            let read = self.reader.map_leaf(table, extent, leaf_len(file.size, number)).await?;
            file.leaf = Some((number, read));
        }
        Ok(file.leaf.as_ref().and_then(|(_, leaf)| leaf.items.get(at).copied()))
    }

    /// Map leaf `number` of a file of the base, and where it lies, if the file has it.
    pub async fn map_leaf<'f>(
        &mut self,
        file: &'f mut BaseFile,
        number: usize,
        table: &mut BackupTable,
    ) -> Result<Option<(Extent, &'f ReadLeaf<Block>)>> {
        let FileMap::Leaves(map) = &file.map else { return Ok(None) };
        let Some(extent) = map.extents.get(number).copied() else { return Ok(None) };
        // Reads it unless it is at hand.
        self.block(file, first_block(number), table).await?;
        Ok(file.leaf.as_ref().map(|(_, leaf)| (extent, leaf)))
    }

    /// Notes an entry of the new backup. It is given back when the base doesn't have it just so. An
    /// entry that was noted before is an error.
    pub fn note(&mut self, entry: PackedEntry) -> Result<Option<PackedEntry>, Twice> {
        let Ok(at) = self.position(entry.path()) else { return Ok(Some(entry)) };
        let held = &mut self.entries[at];
        if held.seen != Seen::No {
            return Err(Twice(entry.path().to_vec()));
        }
        if held.entry == entry {
            held.seen = Seen::Same;
            return Ok(None);
        }
        held.seen = Seen::Other;
        Ok(Some(entry))
    }

    /// The base's file leaves.
    pub fn leaves(&self) -> &[BaseLeaf] {
        &self.leaves
    }

    /// The path of the first entry of leaf `number`, where the leaf before it ends.
    pub fn first_path(&self, number: usize) -> Option<&[u8]> {
        let first = self.leaves.get(number)?.entries.start;
        self.entries.get(first).map(|held| held.entry.path())
    }

    /// The entries of leaf `number` that the new backup has just so, and whether that is all of them.
    pub fn same_in(&self, number: usize) -> (Vec<&PackedEntry>, bool) {
        let range = self.leaves.get(number).map_or(0..0, |leaf| leaf.entries.clone());
        let held = self.entries.get(range).unwrap_or_default();
        let same: Vec<_> =
            held.iter().filter(|held| held.seen == Seen::Same).map(|held| &held.entry).collect();
        let all = same.len() == held.len();
        (same, all)
    }

    /// The whole leaf that leaf `number` is, or is a patch over: where it lies and its entries.
    pub async fn whole_leaf(
        &mut self,
        number: usize,
        table: &mut BackupTable,
    ) -> Result<(Extent, Vec<PackedEntry>)> {
        let leaf = self.leaves.get(number).ok_or_else(|| self.broken("a file leaf"))?;
        let read = self.reader.file_leaf(table, leaf.extent).await?;
        let (whole, items) = read.whole(leaf.extent);
        Ok((whole, items.iter().map(PackedEntry::new).collect()))
    }
}

/// The path came twice.
#[derive(Debug)]
pub struct Twice(pub Vec<u8>);
