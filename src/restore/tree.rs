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
        manifest::{ClusterFacts, Manifest},
        tree::{BackupTable, Block, FileKind, FileMap, PackedEntry, Place, leaf_len},
        tree_reader::TreeReader,
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

/// Reads a backup's tree, but for the maps of its larger files.
pub async fn read_tree(reader: &mut TreeReader, backup: &BackupId) -> Result<Tree> {
    let (repository, layout) =
        (reader.packs().repository().clone(), reader.packs().layout().clone());
    let incomplete = |what: String| {
        let address = repository.storage().address();
        let name = layout.of_backup(backup, "manifest");
        Error::new(Kind::Damaged, format!("{name} in {address} is damaged: {what}"))
    };
    let Manifest { facts, leaves, mut table, .. } =
        Manifest::read(&repository, &layout, backup).await?;
    let mut directories: Vec<(Vec<u8>, u32)> = Vec::new();
    let mut files = Vec::new();
    let mut needed = NEEDED.to_vec();
    let (mut entries, mut bytes) = (0, 0u64);
    let mut before = Vec::new();
    for extent in leaves {
        let leaf = reader.file_leaf(&mut table, extent).await?;
        if leaf.items.first().is_none_or(|first| first.path <= before) {
            return Err(reader.damaged(&table, extent, "its leaf isn't the next one"));
        }
        entries += leaf.items.len() as u64;
        for entry in leaf.items {
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
        return Err(incomplete(format!(
            "the manifest says {} entries and {} bytes, the tree has {entries} and {bytes}",
            facts.entries, facts.bytes
        )));
    }
    if let Some(path) = needed.first() {
        return Err(incomplete(format!("there is no {path} in the tree")));
    }
    for needed in NEEDED_DIRECTORIES {
        if let Err(at) = directories.binary_search_by(|(path, _)| path.as_slice().cmp(needed)) {
            directories.insert(at, (needed.to_vec(), 0o700));
        }
    }
    let mut tree = Tree { facts, table, directories, files };
    sort(&mut tree, reader).await?;
    Ok(tree)
}

/// Sorts the files by where their first block lies, which for larger files their first map leaf
/// tells.
async fn sort(tree: &mut Tree, reader: &mut TreeReader) -> Result<()> {
    tree.files.sort_unstable_by_key(|file| file.first);
    for file in &mut tree.files {
        let FileKind::File { map: FileMap::Leaves(map), size, .. } =
            unpack(&file.entry, &tree.table)?
        else {
            continue;
        };
        if let Some(extent) = map.extents.first() {
            let leaf = reader.map_leaf(&mut tree.table, *extent, leaf_len(size, 0)).await?;
            file.first = first_stored(&leaf.items).unwrap_or(file.first);
        }
    }
    tree.files.sort_unstable_by_key(|file| file.first);
    Ok(())
}

/// What an entry says.
pub fn unpack(entry: &PackedEntry, table: &BackupTable) -> Result<FileKind> {
    let path = String::from_utf8_lossy(entry.path());
    let entry = entry.unpack(table);
    Ok(entry.map_err(|e| Error::new(Kind::Internal, format!("{path}: {e}")))?.kind)
}

/// Where a map's first block lies, or its first leaf; a file that has neither comes first.
fn first_place(map: &FileMap) -> Place {
    let nowhere = Place { backup: 0, pack: 0, frame: 0, offset: 0 };
    match map {
        FileMap::Inline(blocks) => first_stored(blocks).unwrap_or(nowhere),
        FileMap::Leaves(map) => map.extents.first().map_or(nowhere, |extent| extent.place),
    }
}

fn first_stored(blocks: &[Block]) -> Option<Place> {
    blocks.iter().find_map(|block| match block {
        Block::Stored { place, .. } => Some(*place),
        Block::Zero => None,
    })
}
