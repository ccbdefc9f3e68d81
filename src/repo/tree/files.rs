//! File entries and file leaves.
//!
//! ```text
//! leaf   table, varint entries, entries
//! entry  varint bytes shared with the path before, rest of the path behind its length,
//!        kind, varint mode, and for a file:
//!        varint size, digest 16, its blocks (up to 4) or varint leaves and their extents
//! ```
//!
//! While a backup runs, entries arrive in the order of directories, so they are kept in their
//! stored form ([`PackedEntry`]), some 100 bytes each, and sorted at the end.

use super::{
    BackupTable, Block, Extent, FileDigest, INLINE_BLOCKS, LEAF_BLOCKS, block_count,
    map::{put_blocks, read_blocks},
    put_extent, read_extent,
};
use crate::repo::codec::{Malformed, Reader, put_bytes, put_varint};

/// How many entries a file leaf has at most.
pub const LEAF_FILES: usize = 4096;

/// Something in the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Relative to the data directory, without slashes at its ends; tablespaces are below
    /// `pg_tblspc/<oid>/`.
    pub path: Vec<u8>,
    /// The permission bits.
    pub mode: u32,
    /// What it is.
    pub kind: FileKind,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// In bytes.
        size: u64,
        /// The digest of its length and blocks.
        digest: FileDigest,
        /// Where its blocks are.
        map: FileMap,
    },
}

/// Where a file's blocks are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileMap {
    /// In the entry: at most [`INLINE_BLOCKS`].
    Inline(Vec<Block>),
    /// In map leaves of [`LEAF_BLOCKS`] each, the last one with the rest.
    Leaves(Vec<Extent>),
}

/// An entry in its stored form but for the path, which is whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackedEntry(Box<[u8]>);

impl PackedEntry {
    /// Packs an entry.
    pub fn new(entry: &FileEntry) -> Self {
        let mut out = entry.path.clone();
        // Paths have no NUL, so that packed entries sort as their paths do.
        out.push(0);
        out.push(matches!(entry.kind, FileKind::File { .. }).into());
        put_varint(&mut out, entry.mode.into());
        if let FileKind::File { size, digest, map } = &entry.kind {
            put_varint(&mut out, *size);
            out.extend_from_slice(digest);
            match map {
                FileMap::Inline(blocks) => put_blocks(&mut out, blocks),
                FileMap::Leaves(leaves) => {
                    leaves.iter().for_each(|extent| put_extent(&mut out, *extent));
                }
            }
        }
        PackedEntry(out.into())
    }

    /// The path, and what follows it.
    fn split(&self) -> (&[u8], &[u8]) {
        let end = self.0.iter().position(|b| *b == 0).unwrap_or(self.0.len());
        (&self.0[..end], self.0.get(end + 1..).unwrap_or_default())
    }

    /// How long it is, in bytes: about what it takes in a leaf.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: an entry has at least a path.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The path.
    pub fn path(&self) -> &[u8] {
        self.split().0
    }

    /// The entry again. `table` is what its backup numbers mean.
    pub fn unpack(&self, table: &BackupTable) -> Result<FileEntry, Malformed> {
        let (path, rest) = self.split();
        let numbers: Vec<u32> = (0..table.0.len() as u32).collect();
        let mut reader = Reader::new(rest);
        let (mode, kind) = read_kind(&mut reader, &numbers)?;
        reader.end("entry")?;
        Ok(FileEntry { path: path.to_vec(), mode, kind })
    }
}

/// Some entries in order of their paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLeaf {
    /// The entries.
    pub entries: Vec<FileEntry>,
}

impl FileLeaf {
    /// A leaf's bytes, from entries sorted by path. `table` is what their backup numbers mean.
    pub fn encode(entries: &[PackedEntry], table: &BackupTable) -> Vec<u8> {
        let mut out = Vec::new();
        table.put(&mut out);
        put_varint(&mut out, entries.len() as u64);
        let mut before: &[u8] = &[];
        for entry in entries {
            let (path, rest) = entry.split();
            let shared = path.iter().zip(before).take_while(|(a, b)| a == b).count();
            put_varint(&mut out, shared as u64);
            put_bytes(&mut out, &path[shared..]);
            out.extend_from_slice(rest);
            before = path;
        }
        out
    }

    /// Reads a leaf; its backups get numbers in `table`. Paths must ascend.
    pub fn decode(bytes: &[u8], table: &mut BackupTable) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let numbers = table.read(&mut reader)?;
        let count = reader.count("entries")?;
        if count > LEAF_FILES {
            return Err(reader.malformed("entries"));
        }
        let mut entries: Vec<FileEntry> = Vec::with_capacity(count);
        for _ in 0..count {
            let before = entries.last().map_or(&[][..], |e| &e.path);
            let shared: usize = reader.number("shared path")?;
            let start = before.get(..shared).ok_or_else(|| reader.malformed("shared path"))?;
            let path = [start, reader.bytes("path")?].concat();
            if path.as_slice() <= before || !is_inside(&path) {
                return Err(reader.malformed("path"));
            }
            let (mode, kind) = read_kind(&mut reader, &numbers)?;
            entries.push(FileEntry { path, mode, kind });
        }
        reader.end("file leaf")?;
        Ok(FileLeaf { entries })
    }
}

/// What follows an entry's path.
fn read_kind(reader: &mut Reader<'_>, numbers: &[u32]) -> Result<(u32, FileKind), Malformed> {
    let is_file = reader.byte("kind")?;
    let mode = reader.number("mode")?;
    let kind = match is_file {
        0 => FileKind::Directory,
        1 => read_file(reader, numbers)?,
        _ => return Err(reader.malformed("kind")),
    };
    Ok((mode, kind))
}

fn read_file(reader: &mut Reader<'_>, numbers: &[u32]) -> Result<FileKind, Malformed> {
    let size = reader.varint("size")?;
    let digest = reader.array("digest")?;
    let blocks = block_count(size);
    let map = if blocks <= INLINE_BLOCKS as u64 {
        FileMap::Inline(read_blocks(reader, blocks as usize, numbers)?)
    } else {
        let leaves = blocks.div_ceil(LEAF_BLOCKS as u64);
        if leaves > reader.left() as u64 {
            return Err(reader.malformed("size"));
        }
        let leaves = (0..leaves).map(|_| read_extent(reader, numbers)).collect::<Result<_, _>>()?;
        FileMap::Leaves(leaves)
    };
    Ok(FileKind::File { size, digest, map })
}

/// Whether a path can only lead to something inside the directory that it is relative to.
fn is_inside(path: &[u8]) -> bool {
    !path.contains(&0) && path.split(|b| *b == b'/').all(|part| !matches!(part, b"" | b"." | b".."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::{BackupId, tree::Place};

    fn entries() -> (Vec<FileEntry>, BackupTable) {
        let mut table = BackupTable::default();
        let backup = table.number(&"20261120T195812Z-full".parse::<BackupId>().unwrap());
        let place = Place { backup, pack: 1, frame: 2, offset: 3 };
        let file = |path: &str, size, map| FileEntry {
            path: path.into(),
            mode: 0o600,
            kind: FileKind::File { size, digest: [9; 16], map },
        };
        let stored = Block::Stored { place, hash: 77 };
        let leaves = vec![Extent { place, len: 5 }, Extent { place, len: 6 }];
        let entries = vec![
            FileEntry { path: "base".into(), mode: 0o700, kind: FileKind::Directory },
            file("base/1/1255", 1025 * 8192, FileMap::Leaves(leaves)),
            file(
                "base/1/1255_fsm",
                3 * 8192,
                FileMap::Inline(vec![stored, Block::Zero, Block::Zero]),
            ),
            file("base/1/empty", 0, FileMap::Inline(vec![])),
        ];
        (entries, table)
    }

    #[test]
    fn leaves_come_back() {
        let (entries, mut table) = entries();
        let packed: Vec<_> = entries.iter().map(PackedEntry::new).collect();
        assert!(packed.is_sorted());
        for (packed, entry) in packed.iter().zip(&entries) {
            assert_eq!(packed.unpack(&table).as_ref(), Ok(entry));
        }
        let bytes = FileLeaf::encode(&packed, &table);
        assert_eq!(FileLeaf::decode(&bytes, &mut table), Ok(FileLeaf { entries }));
        for cut in 0..bytes.len() {
            assert!(FileLeaf::decode(&bytes[..cut], &mut table).is_err());
        }
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        for bad in ["", "/etc/passwd", "../x", "base/../../x", "base//1", "base/."] {
            let entry = FileEntry { path: bad.into(), mode: 0o700, kind: FileKind::Directory };
            let bytes = FileLeaf::encode(&[PackedEntry::new(&entry)], &BackupTable::default());
            assert!(FileLeaf::decode(&bytes, &mut BackupTable::default()).is_err(), "{bad}");
        }
    }
}
