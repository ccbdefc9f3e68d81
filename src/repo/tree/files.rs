//! File entries and file leaves.
//!
//! ```text
//! leaf   0, table, varint entries, entries                                    (whole)
//!        1, table, extent of a whole leaf, varint changes, entries            (patch)
//! entry  varint bytes shared with the path before, rest of the path behind its length, kind;
//!        kind 2 (only in a patch: it is gone) has nothing more; the others varint mode;
//!        a file (kind 1) varint size, digest 16, its blocks (up to 4), or the extents of its map
//!        leaves and, behind their number, its uses
//! use    backup, pack, varint live bytes
//! ```
//!
//! While a backup runs, entries arrive in the order of directories, so they are kept in their
//! stored form ([`PackedEntry`]), some 100 bytes each, and sorted at the end.

use super::{
    BackupTable, Block, Extent, FileDigest, INLINE_BLOCKS, Numbers, OwnTable, block_count,
    leaf_count,
    map::{put_blocks, read_blocks},
    mapped, put_extent, read_extent,
};
use crate::repo::codec::{Malformed, Reader, put_bytes, put_varint};

/// How many entries a file leaf has at most.
pub const LEAF_FILES: usize = 4096;

/// How many changes a patch has at most that can be read: each entry of one leaf gone, and another's
/// come. None of so many is written, see [`overlay_entries`](super::overlay_entries).
const PATCH_CHANGES: usize = 2 * LEAF_FILES;

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
    /// In map leaves of [`LEAF_BLOCKS`](super::LEAF_BLOCKS) each, the last one with the rest.
    Leaves(LeafMap),
}

/// The map of a file of many blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafMap {
    /// The map leaves.
    pub extents: Vec<Extent>,
    /// Every pack that the leaves are in or lead to, sorted. So a file that didn't change is
    /// referred to without reading its map.
    pub uses: Vec<Use>,
}

/// How much of a pack is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// The backup that stored the pack, by its number in a [`BackupTable`].
    pub backup: u32,
    /// The pack.
    pub pack: u32,
    /// How many raw bytes of it.
    pub live: u64,
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
                FileMap::Leaves(LeafMap { extents, uses }) => {
                    extents.iter().for_each(|extent| put_extent(&mut out, *extent));
                    put_varint(&mut out, uses.len() as u64);
                    for Use { backup, pack, live } in uses {
                        put_varint(&mut out, (*backup).into());
                        put_varint(&mut out, (*pack).into());
                        put_varint(&mut out, *live);
                    }
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
        let mut reader = Reader::new(rest);
        let (mode, kind) =
            read_kind(&mut reader, Numbers::Of(table))?.ok_or_else(|| reader.malformed("kind"))?;
        reader.end("entry")?;
        Ok(FileEntry { path: path.to_vec(), mode, kind })
    }

    /// The entry with the numbers of `own`.
    fn renumbered(&self, own: &mut OwnTable<'_>) -> Result<Self, Malformed> {
        let mut entry = self.unpack(own.of)?;
        if let FileKind::File { map, .. } = &mut entry.kind {
            match map {
                FileMap::Inline(blocks) => {
                    blocks.iter_mut().for_each(|block| *block = own.block(*block));
                }
                FileMap::Leaves(LeafMap { extents, uses }) => {
                    extents.iter_mut().for_each(|extent| *extent = own.extent(*extent));
                    uses.iter_mut().for_each(|used| used.backup = own.number(used.backup));
                }
            }
        }
        Ok(PackedEntry::new(&entry))
    }
}

/// A stored file leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileLeaf {
    /// Its entries, in order of their paths.
    Whole(Vec<FileEntry>),
    /// What differs from a whole leaf.
    Patch(FilePatch),
}

/// A file leaf as the difference to a whole one. Patches are cumulative: never over a patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePatch {
    /// The whole leaf.
    pub base: Extent,
    /// Entries that are new, other or gone, in order of their paths.
    pub changes: Vec<FileChange>,
}

/// A change of a patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileChange {
    /// This is the entry now.
    Is(FileEntry),
    /// There is nothing under this path any more.
    Gone(Vec<u8>),
}

impl FileChange {
    /// The path that it is about.
    pub fn path(&self) -> &[u8] {
        match self {
            FileChange::Is(entry) => &entry.path,
            FileChange::Gone(path) => path,
        }
    }
}

impl FilePatch {
    /// The entries of `base` with the changes made.
    pub fn apply(self, base: Vec<FileEntry>) -> Vec<FileEntry> {
        let mut entries = Vec::with_capacity(base.len());
        let mut base = base.into_iter().peekable();
        for change in self.changes {
            while let Some(entry) = base.next_if(|entry| entry.path.as_slice() < change.path()) {
                entries.push(entry);
            }
            base.next_if(|entry| entry.path.as_slice() == change.path());
            if let FileChange::Is(entry) = change {
                entries.push(entry);
            }
        }
        entries.extend(base);
        entries
    }
}

const GONE: u8 = 2;

/// Writes paths, each by what it shares with the one before.
struct Paths<'a> {
    before: &'a [u8],
}

impl<'a> Paths<'a> {
    fn put(&mut self, out: &mut Vec<u8>, path: &'a [u8]) {
        let shared = path.iter().zip(self.before).take_while(|(a, b)| a == b).count();
        put_varint(out, shared as u64);
        put_bytes(out, &path[shared..]);
        self.before = path;
    }
}

/// A whole leaf's bytes, from entries sorted by path. `table` is what their backup numbers mean.
/// Fails if one of them isn't in it.
pub fn encode_file_leaf<'a>(
    entries: impl Iterator<Item = &'a PackedEntry>,
    table: &BackupTable,
) -> Result<Vec<u8>, Malformed> {
    let mut own = OwnTable::new(table);
    let entries: Vec<PackedEntry> =
        entries.map(|entry| entry.renumbered(&mut own)).collect::<Result<_, _>>()?;
    let mut out = vec![0];
    own.put(&mut out);
    put_varint(&mut out, entries.len() as u64);
    let mut paths = Paths { before: &[] };
    for entry in &entries {
        let (path, rest) = entry.split();
        paths.put(&mut out, path);
        out.extend_from_slice(rest);
    }
    Ok(out)
}

/// A change of a patch in the making, with its entry in the stored form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackedChange {
    /// This is the entry now.
    Is(PackedEntry),
    /// There is nothing under this path any more.
    Gone(Box<[u8]>),
}

impl PackedChange {
    /// The path that it is about.
    pub fn path(&self) -> &[u8] {
        match self {
            PackedChange::Is(entry) => entry.path(),
            PackedChange::Gone(path) => path,
        }
    }

    fn renumbered(&self, own: &mut OwnTable<'_>) -> Result<Self, Malformed> {
        Ok(match self {
            PackedChange::Is(entry) => PackedChange::Is(entry.renumbered(own)?),
            PackedChange::Gone(path) => PackedChange::Gone(path.clone()),
        })
    }
}

impl From<&FileChange> for PackedChange {
    fn from(change: &FileChange) -> Self {
        match change {
            FileChange::Is(entry) => PackedChange::Is(PackedEntry::new(entry)),
            FileChange::Gone(path) => PackedChange::Gone(path.as_slice().into()),
        }
    }
}

/// A patch's bytes, from changes sorted by path. `table` is what the backup numbers mean. Fails if one
/// of them isn't in it.
pub fn encode_file_patch(
    base: Extent,
    changes: &[PackedChange],
    table: &BackupTable,
) -> Result<Vec<u8>, Malformed> {
    let mut own = OwnTable::new(table);
    let base = own.extent(base);
    let changes: Vec<PackedChange> =
        changes.iter().map(|change| change.renumbered(&mut own)).collect::<Result<_, _>>()?;
    let mut out = vec![1];
    own.put(&mut out);
    put_extent(&mut out, base);
    put_varint(&mut out, changes.len() as u64);
    let mut paths = Paths { before: &[] };
    for change in &changes {
        paths.put(&mut out, change.path());
        match change {
            PackedChange::Is(entry) => out.extend_from_slice(entry.split().1),
            PackedChange::Gone(_) => out.push(GONE),
        }
    }
    Ok(out)
}

/// Reads a leaf; its backups get numbers in `table`. Paths must ascend.
pub fn decode_file_leaf(bytes: &[u8], table: &mut BackupTable) -> Result<FileLeaf, Malformed> {
    let mut reader = Reader::new(bytes);
    let form = reader.byte("file leaf")?;
    let numbers = table.read(&mut reader)?;
    let numbers = Numbers::Read(&numbers);
    let base = match form {
        0 => None,
        1 => Some(read_extent(&mut reader, numbers)?),
        _ => return Err(reader.malformed("file leaf")),
    };
    let count = reader.count("entries")?;
    let most = if base.is_some() { PATCH_CHANGES } else { LEAF_FILES };
    if count > most {
        return Err(reader.malformed("entries"));
    }
    let mut changes: Vec<FileChange> = Vec::with_capacity(count);
    for _ in 0..count {
        let before = changes.last().map_or(&[][..], FileChange::path);
        let shared: usize = reader.number("shared path")?;
        let start = before.get(..shared).ok_or_else(|| reader.malformed("shared path"))?;
        let path = [start, reader.bytes("path")?].concat();
        if path.as_slice() <= before || !is_inside(&path) {
            return Err(reader.malformed("path"));
        }
        changes.push(match read_kind(&mut reader, numbers)? {
            Some((mode, kind)) => FileChange::Is(FileEntry { path, mode, kind }),
            None => FileChange::Gone(path),
        });
    }
    reader.end("file leaf")?;
    if let Some(base) = base {
        return Ok(FileLeaf::Patch(FilePatch { base, changes }));
    }
    let whole = |change| match change {
        FileChange::Is(entry) => Ok(entry),
        FileChange::Gone(_) => Err(reader.malformed("kind")),
    };
    Ok(FileLeaf::Whole(changes.into_iter().map(whole).collect::<Result<_, _>>()?))
}

/// What follows an entry's path; nothing of one that is gone.
fn read_kind(
    reader: &mut Reader<'_>,
    numbers: Numbers<'_>,
) -> Result<Option<(u32, FileKind)>, Malformed> {
    let kind = reader.byte("kind")?;
    if kind == GONE {
        return Ok(None);
    }
    let mode = reader.number("mode")?;
    let kind = match kind {
        0 => FileKind::Directory,
        1 => read_file(reader, numbers)?,
        _ => return Err(reader.malformed("kind")),
    };
    Ok(Some((mode, kind)))
}

fn read_file(reader: &mut Reader<'_>, numbers: Numbers<'_>) -> Result<FileKind, Malformed> {
    let size = reader.varint("size")?;
    let digest = reader.array("digest")?;
    let blocks = block_count(size);
    let map = if blocks <= INLINE_BLOCKS as u64 {
        FileMap::Inline(read_blocks(reader, blocks as usize, numbers)?)
    } else {
        let leaves = leaf_count(blocks);
        if leaves > reader.left() as u64 {
            return Err(reader.malformed("size"));
        }
        let extents =
            (0..leaves).map(|_| read_extent(reader, numbers)).collect::<Result<_, _>>()?;
        let uses = reader.count("uses")?;
        let uses = (0..uses).map(|_| read_use(reader, numbers)).collect::<Result<_, _>>()?;
        FileMap::Leaves(LeafMap { extents, uses })
    };
    Ok(FileKind::File { size, digest, map })
}

fn read_use(reader: &mut Reader<'_>, numbers: Numbers<'_>) -> Result<Use, Malformed> {
    Ok(Use {
        backup: mapped(numbers, reader)?,
        pack: reader.number("pack")?,
        live: reader.varint("live bytes")?,
    })
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
        let leaves = FileMap::Leaves(LeafMap {
            extents: vec![Extent { place, len: 5 }, Extent { place, len: 6 }],
            uses: vec![Use { backup, pack: 1, live: 1 << 33 }, Use { backup, pack: 3, live: 0 }],
        });
        let entries = vec![
            FileEntry { path: "base".into(), mode: 0o700, kind: FileKind::Directory },
            file("base/1/1255", 1025 * 8192, leaves),
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
        let bytes = encode_file_leaf(packed.iter(), &table).unwrap();
        assert_eq!(decode_file_leaf(&bytes, &mut table), Ok(FileLeaf::Whole(entries)));
        for cut in 0..bytes.len() {
            assert!(decode_file_leaf(&bytes[..cut], &mut table).is_err());
        }
    }

    #[test]
    fn patches_come_back_and_change_what_they_say() {
        let (entries, mut table) = entries();
        let place = Place { backup: 0, pack: 900_000, frame: 0, offset: 9 };
        let base = Extent { place, len: 77 };
        let directory =
            |path: &str| FileEntry { path: path.into(), mode: 0o750, kind: FileKind::Directory };
        let changes = vec![
            FileChange::Is(directory("a first one")),
            FileChange::Is(directory("base")),
            FileChange::Gone("base/1/1255".into()),
            FileChange::Is(directory("base/1/2")),
            FileChange::Gone("base/1/never there".into()),
            FileChange::Is(directory("z")),
        ];
        let packed: Vec<_> = changes.iter().map(PackedChange::from).collect();
        let bytes = encode_file_patch(base, &packed, &table).unwrap();
        let patch = FilePatch { base, changes };
        assert_eq!(decode_file_leaf(&bytes, &mut table), Ok(FileLeaf::Patch(patch.clone())));
        for cut in 0..bytes.len() {
            assert!(decode_file_leaf(&bytes[..cut], &mut table).is_err());
        }
        let now = patch.apply(entries.clone());
        let paths: Vec<_> = now.iter().map(|e| String::from_utf8_lossy(&e.path)).collect();
        let expected = ["a first one", "base", "base/1/1255_fsm", "base/1/2", "base/1/empty", "z"];
        assert_eq!(paths, expected);
        assert_eq!((now[1].mode, &now[2]), (0o750, &entries[2]));
        // A whole leaf has nothing that is gone.
        let mut whole = bytes.clone();
        whole[0] = 0;
        assert!(decode_file_leaf(&whole, &mut table).is_err());
    }

    #[test]
    fn what_is_written_has_only_the_backups_that_it_uses() {
        let mut table = BackupTable::default();
        for second in 0..60 {
            table.number(&format!("20261120T1958{second:02}Z-incr").parse::<BackupId>().unwrap());
        }
        for number in [0, 7, 59] {
            let (mut entries, _) = entries();
            for entry in &mut entries {
                if let FileKind::File { map: FileMap::Leaves(map), .. } = &mut entry.kind {
                    map.uses.iter_mut().for_each(|used| used.backup = number);
                    map.extents.iter_mut().for_each(|extent| extent.place.backup = number);
                }
            }
            let packed: Vec<_> = entries.iter().map(PackedEntry::new).collect();
            let bytes = encode_file_leaf(packed.iter(), &table).unwrap();
            let mut read = BackupTable::default();
            decode_file_leaf(&bytes, &mut read).unwrap();
            // The large file's, and the small one's.
            let mut expected = vec![table.get(number).unwrap(), table.get(0).unwrap()];
            expected.dedup();
            assert_eq!(read.iter().collect::<Vec<_>>(), expected);
            assert_eq!(decode_file_leaf(&bytes, &mut table), Ok(FileLeaf::Whole(entries)));
        }
        // A number that no backup has.
        let place = Place { backup: 60, pack: 0, frame: 0, offset: 0 };
        let map = FileMap::Inline(vec![Block::Stored { place, hash: 0 }]);
        let kind = FileKind::File { size: 1, digest: [0; 16], map };
        let lost = PackedEntry::new(&FileEntry { path: "lost".into(), mode: 0o600, kind });
        assert!(encode_file_leaf([lost].iter(), &table).is_err());
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        for bad in ["", "/etc/passwd", "../x", "base/../../x", "base//1", "base/."] {
            let entry = FileEntry { path: bad.into(), mode: 0o700, kind: FileKind::Directory };
            let packed = [PackedEntry::new(&entry)];
            let bytes = encode_file_leaf(packed.iter(), &BackupTable::default()).unwrap();
            assert!(decode_file_leaf(&bytes, &mut BackupTable::default()).is_err(), "{bad}");
        }
    }
}
