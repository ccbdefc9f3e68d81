//! The tree of a backup: file leaves over map leaves over blocks.
//!
//! A file is a row of *blocks* of 8 KiB, the last one may be shorter. A block is zero or lies at a
//! *place*: a backup, a pack of it, a frame, an offset in the frame's raw bytes. A file of few
//! blocks has its map in its entry; larger ones have *map leaves* of 1,024 blocks each. Entries,
//! sorted by path, make *file leaves*. All leaves lie in packs, as blocks do, and are found by an
//! [`Extent`]; so a later backup refers to a leaf that didn't change as it does to a block.

mod files;
mod hash;
mod map;
mod overlay;
mod split;

pub use files::{
    FileChange, FileEntry, FileKind, FileLeaf, FileMap, FilePatch, LEAF_FILES, LeafMap,
    PackedChange, PackedEntry, Use, decode_file_leaf, encode_file_leaf, encode_file_patch,
};
pub use hash::{BlockHasher, DigestBuilder, FileDigest};
pub use map::{Block, MapLeaf, Patch, decode_map_leaf, encode_map_leaf, encode_map_patch};
pub use overlay::{Stored, overlay_blocks, overlay_entries};
pub use split::{LEAF_BLOCKS, fills_leaf, first_block, leaf_count, leaf_len, position};
#[cfg(test)]
pub use split::{leaf_blocks, with_leaves_of};

use std::collections::HashMap;

use super::{
    codec::{Malformed, Reader, put_bytes, put_varint},
    id::BackupId,
};

/// A block's length in bytes; a file's last one may be shorter.
pub const BLOCK: usize = 8192;

/// The largest file, in blocks, whose map is in its entry.
pub const INLINE_BLOCKS: usize = 4;

/// How many blocks a file of `size` bytes has.
pub fn block_count(size: u64) -> u64 {
    size.div_ceil(BLOCK as u64)
}

/// Backups by number: what places and extents mean by their `backup`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackupTable {
    backups: Vec<BackupId>,
    numbers: HashMap<BackupId, u32>,
}

impl BackupTable {
    /// The number of `backup`, given to it now if it had none.
    pub fn number(&mut self, backup: &BackupId) -> u32 {
        if let Some(known) = self.numbers.get(backup) {
            return *known;
        }
        let number = self.backups.len() as u32;
        self.backups.push(backup.clone());
        self.numbers.insert(backup.clone(), number);
        number
    }

    /// The backup of this number.
    pub fn get(&self, number: u32) -> Option<&BackupId> {
        self.backups.get(number as usize)
    }

    /// The backups, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &BackupId> {
        self.backups.iter()
    }

    fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.backups.len() as u64);
        for backup in &self.backups {
            put_bytes(out, backup.as_str().as_bytes());
        }
    }

    /// Reads a stored table and returns, for each of its numbers, the number in `self`.
    fn read(&mut self, reader: &mut Reader<'_>) -> Result<Vec<u32>, Malformed> {
        let count = reader.count("backup table")?;
        let mut numbers = Vec::with_capacity(count);
        for _ in 0..count {
            let malformed = reader.malformed("backup id");
            let id = reader.text("backup id")?.parse().map_err(|_| malformed)?;
            numbers.push(self.number(&id));
        }
        Ok(numbers)
    }
}

/// The table of what is being written: of another one just the backups that are used.
///
/// So what is stored doesn't grow with the number of backups that a chain has had.
struct OwnTable<'a> {
    of: &'a BackupTable,
    own: BackupTable,
}

impl<'a> OwnTable<'a> {
    fn new(of: &'a BackupTable) -> Self {
        OwnTable { of, own: BackupTable::default() }
    }

    /// The number here of a backup of the other table. One that isn't there is in none, so what was
    /// written with it can't be read.
    fn number(&mut self, number: u32) -> u32 {
        self.of.get(number).map_or(u32::MAX, |backup| self.own.number(backup))
    }

    fn put(&self, out: &mut Vec<u8>) {
        self.own.put(out);
    }

    fn place(&mut self, place: Place) -> Place {
        Place { backup: self.number(place.backup), ..place }
    }

    fn extent(&mut self, extent: Extent) -> Extent {
        Extent { place: self.place(extent.place), ..extent }
    }

    fn block(&mut self, block: Block) -> Block {
        match block {
            Block::Zero => Block::Zero,
            Block::Stored { place, hash } => Block::Stored { place: self.place(place), hash },
        }
    }
}

/// What the backup numbers mean in what is read.
#[derive(Debug, Clone, Copy)]
enum Numbers<'a> {
    /// At the number of each the one in the table that is in use, as [`BackupTable::read`] has it.
    Read(&'a [u32]),
    /// They are those of this table.
    Of(&'a BackupTable),
}

fn mapped(numbers: Numbers<'_>, reader: &mut Reader<'_>) -> Result<u32, Malformed> {
    let malformed = reader.malformed("backup number");
    let stored: usize = reader.number("backup number")?;
    let number = match numbers {
        Numbers::Read(numbers) => numbers.get(stored).copied(),
        Numbers::Of(table) => (stored < table.backups.len()).then_some(stored as u32),
    };
    number.ok_or(malformed)
}

/// Where a block lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The backup, by its number in a [`BackupTable`].
    pub backup: u32,
    /// The pack of that backup.
    pub pack: u32,
    /// The frame in that pack.
    pub frame: u32,
    /// In the frame's raw bytes.
    pub offset: u32,
}

/// Where a leaf lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    /// Where it begins.
    pub place: Place,
    /// Its length in raw bytes.
    pub len: u32,
}

fn put_place(out: &mut Vec<u8>, place: Place) {
    for n in [place.backup, place.pack, place.frame, place.offset] {
        put_varint(out, n.into());
    }
}

fn read_place(reader: &mut Reader<'_>, numbers: Numbers<'_>) -> Result<Place, Malformed> {
    Ok(Place {
        backup: mapped(numbers, reader)?,
        pack: reader.number("pack")?,
        frame: reader.number("frame")?,
        offset: reader.number("offset")?,
    })
}

fn put_extent(out: &mut Vec<u8>, extent: Extent) {
    put_place(out, extent.place);
    put_varint(out, extent.len.into());
}

fn read_extent(reader: &mut Reader<'_>, numbers: Numbers<'_>) -> Result<Extent, Malformed> {
    Ok(Extent { place: read_place(reader, numbers)?, len: reader.number("length")? })
}

/// Extents with their own table in front, as the manifest keeps the file leaves.
pub(super) fn put_extents(out: &mut Vec<u8>, table: &BackupTable, extents: &[Extent]) {
    let mut own = OwnTable::new(table);
    let extents: Vec<Extent> = extents.iter().map(|extent| own.extent(*extent)).collect();
    own.put(out);
    put_varint(out, extents.len() as u64);
    for extent in extents {
        put_extent(out, extent);
    }
}

pub(super) fn read_extents(
    bytes: &[u8],
    table: &mut BackupTable,
) -> Result<Vec<Extent>, Malformed> {
    let mut reader = Reader::new(bytes);
    let numbers = table.read(&mut reader)?;
    let numbers = Numbers::Read(&numbers);
    let count = reader.count("extents")?;
    let extents =
        (0..count).map(|_| read_extent(&mut reader, numbers)).collect::<Result<_, _>>()?;
    reader.end("extents")?;
    Ok(extents)
}
