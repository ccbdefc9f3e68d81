//! What a backup's tree holds, in the order in which its blocks lie in the packs.
//!
//! File leaves are sorted by path, packs by the order in which the server sent the files. To read
//! each frame about once, the files are sorted by where their first block lies. That takes an entry
//! in memory for each file, in its stored form, some 100 bytes; the maps of larger files stay in the
//! repository, and are read a second time when it is their turn. Their leaves are in the same order
//! as the blocks, so both readings go through them from front to back.

use crate::{
    error::{Error, Kind, Result},
    postgres::{
        backup_label::BACKUP_LABEL, backup_manifest::BACKUP_MANIFEST, control::CONTROL_FILE,
    },
    repo::{
        BackupId,
        layout::ClusterLayout,
        manifest::{ClusterFacts, Manifest},
        pack::{LeafReader, PackReader},
        tree::{
            BackupTable, Block, Extent, FileKind, FileLeaf, FileMap, LEAF_BLOCKS, MapLeaf,
            PackedEntry, Place, decode_map_leaf,
        },
    },
};

use super::{
    marker::{MARKER, NEW_MARKER},
    settings::{RECOVERY_SIGNAL, STANDBY_SIGNAL},
};

/// Files that are not restored, even if a backup has them: they would start the server as something
/// else, or say something that isn't true of the restored cluster.
const LEFT_OUT: [&[u8]; 7] = [
    RECOVERY_SIGNAL,
    STANDBY_SIGNAL,
    b"postmaster.pid",
    b"postmaster.opts",
    BACKUP_MANIFEST.as_bytes(),
    MARKER.as_bytes(),
    NEW_MARKER.as_bytes(),
];

/// Files without which a server wouldn't start, or, worse, would.
const NEEDED: [&str; 3] = [BACKUP_LABEL, CONTROL_FILE, "PG_VERSION"];

/// Directories that a server must find, and that nothing else makes.
const NEEDED_DIRECTORIES: [&[u8]; 2] = [b"pg_tblspc", b"pg_wal"];

/// A backup's tree.
pub struct Tree {
    /// The cluster's facts.
    pub facts: ClusterFacts,
    /// What backup numbers mean.
    pub table: BackupTable,
    /// Directories with their permissions, sorted: those above before those in them.
    pub directories: Vec<(Vec<u8>, u32)>,
    /// The files.
    pub files: Vec<IndexedFile>,
}

/// A file, and where its first block lies.
pub struct IndexedFile {
    /// What the files are sorted by.
    pub first: Place,
    /// The file.
    pub entry: PackedEntry,
}

/// Reads the leaves of one backup.
pub struct TreeReader<'a> {
    packs: &'a PackReader,
    layout: &'a ClusterLayout,
    leaves: LeafReader<'a>,
    /// For the whole leaves that patches are over: they are in other packs.
    bases: LeafReader<'a>,
}

impl<'a> TreeReader<'a> {
    /// A reader of leaves in `packs`.
    pub fn new(packs: &'a PackReader, layout: &'a ClusterLayout) -> Self {
        let (leaves, bases) = (LeafReader::new(packs), LeafReader::new(packs));
        TreeReader { packs, layout, leaves, bases }
    }

    /// Reads the backup's tree, but for the maps of its larger files.
    pub async fn read(&mut self, backup: &BackupId) -> Result<Tree> {
        let Manifest { facts, leaves, mut table, .. } =
            Manifest::read(self.packs.repository(), self.layout, backup).await?;
        let mut directories: Vec<(Vec<u8>, u32)> = Vec::new();
        let mut files = Vec::new();
        let mut needed = NEEDED.to_vec();
        let (mut entries, mut bytes) = (0, 0u64);
        let mut before = Vec::new();
        for extent in leaves {
            let raw = self.leaves.read(&table, extent).await?;
            let leaf =
                FileLeaf::decode(&raw, &mut table).map_err(|e| self.damaged(&table, extent, e))?;
            if leaf.entries.first().is_none_or(|first| first.path <= before) {
                return Err(self.damaged(&table, extent, "its leaf isn't the next one"));
            }
            entries += leaf.entries.len() as u64;
            for entry in leaf.entries {
                before.clone_from(&entry.path);
                match &entry.kind {
                    FileKind::Directory => directories.push((entry.path, entry.mode)),
                    FileKind::File { size, map, .. } => {
                        bytes = bytes.saturating_add(*size);
                        needed.retain(|path| path.as_bytes() != entry.path);
                        if !LEFT_OUT.contains(&entry.path.as_slice()) {
                            let (first, entry) = (first_place(map), PackedEntry::new(&entry));
                            files.push(IndexedFile { first, entry });
                        }
                    }
                }
            }
        }
        if (entries, bytes) != (facts.entries, facts.bytes) {
            return Err(self.incomplete(
                backup,
                format!(
                    "the manifest says {} entries and {} bytes, the tree has {entries} and {bytes}",
                    facts.entries, facts.bytes
                ),
            ));
        }
        if let Some(path) = needed.first() {
            return Err(self.incomplete(backup, format!("there is no {path} in the tree")));
        }
        for needed in NEEDED_DIRECTORIES {
            if let Err(at) = directories.binary_search_by(|(path, _)| path.as_slice().cmp(needed)) {
                directories.insert(at, (needed.to_vec(), 0o700));
            }
        }
        let mut tree = Tree { facts, table, directories, files };
        self.sort(&mut tree).await?;
        Ok(tree)
    }

    /// Sorts the files by where their first block lies, which for larger files their first map leaf
    /// tells.
    async fn sort(&mut self, tree: &mut Tree) -> Result<()> {
        tree.files.sort_unstable_by_key(|file| file.first);
        for file in &mut tree.files {
            let entry = self.unpack(&file.entry, &tree.table)?;
            let FileKind::File { map: FileMap::Leaves(extents), size, .. } = entry else {
                continue;
            };
            if let Some(extent) = extents.first() {
                let blocks = self.blocks(&mut tree.table, *extent, leaf_len(size, 0)).await?;
                file.first = first_stored(&blocks).unwrap_or(file.first);
            }
        }
        tree.files.sort_unstable_by_key(|file| file.first);
        Ok(())
    }

    /// What an entry says.
    pub fn unpack(&self, entry: &PackedEntry, table: &BackupTable) -> Result<FileKind> {
        let path = String::from_utf8_lossy(entry.path());
        let entry = entry.unpack(table);
        Ok(entry.map_err(|e| Error::new(Kind::Internal, format!("{path}: {e}")))?.kind)
    }

    /// The blocks of a map leaf, which must be `count`.
    pub async fn blocks(
        &mut self,
        table: &mut BackupTable,
        extent: Extent,
        count: usize,
    ) -> Result<Vec<Block>> {
        let raw = self.leaves.read(table, extent).await?;
        let leaf = decode_map_leaf(&raw, table).map_err(|e| self.damaged(table, extent, e))?;
        let blocks = match leaf {
            MapLeaf::Whole(blocks) => blocks,
            MapLeaf::Patch(patch) => {
                let raw = self.bases.read(table, patch.base).await?;
                match decode_map_leaf(&raw, table) {
                    Ok(MapLeaf::Whole(base)) => {
                        patch.apply(base).map_err(|e| self.damaged(table, extent, e))?
                    }
                    Ok(MapLeaf::Patch(_)) => {
                        return Err(self.damaged(table, patch.base, "a patch is over a patch"));
                    }
                    Err(e) => return Err(self.damaged(table, patch.base, e)),
                }
            }
        };
        if blocks.len() != count {
            let what = format!("a map leaf has {} blocks instead of {count}", blocks.len());
            return Err(self.damaged(table, extent, what));
        }
        Ok(blocks)
    }

    /// The error that a leaf is damaged.
    fn damaged(&self, table: &BackupTable, extent: Extent, what: impl std::fmt::Display) -> Error {
        let address = self.packs.repository().storage().address();
        let Place { backup, pack, frame, .. } = extent.place;
        let object = match table.get(backup) {
            Some(backup) => self.layout.pack(backup, pack).to_string(),
            None => format!("pack {pack}"),
        };
        let message = format!("{object} in {address} is damaged: frame {frame}: {what}");
        Error::new(Kind::Damaged, message)
    }

    fn incomplete(&self, backup: &BackupId, what: String) -> Error {
        let address = self.packs.repository().storage().address();
        let name = self.layout.of_backup(backup, "manifest");
        Error::new(Kind::Damaged, format!("{name} in {address} is damaged: {what}"))
    }
}

/// How many blocks map leaf `index` of a file of `size` bytes has.
pub fn leaf_len(size: u64, index: usize) -> usize {
    let blocks = crate::repo::tree::block_count(size);
    blocks.saturating_sub((index * LEAF_BLOCKS) as u64).min(LEAF_BLOCKS as u64) as usize
}

/// Where a map's first block lies, or its first leaf; a file that has neither comes first.
fn first_place(map: &FileMap) -> Place {
    let nowhere = Place { backup: 0, pack: 0, frame: 0, offset: 0 };
    match map {
        FileMap::Inline(blocks) => first_stored(blocks).unwrap_or(nowhere),
        FileMap::Leaves(leaves) => leaves.first().map_or(nowhere, |extent| extent.place),
    }
}

fn first_stored(blocks: &[Block]) -> Option<Place> {
    blocks.iter().find_map(|block| match block {
        Block::Stored { place, .. } => Some(*place),
        Block::Zero => None,
    })
}
