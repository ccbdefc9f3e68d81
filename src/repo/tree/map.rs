//! Maps from a file's blocks to where they lie, and their two stored forms.
//!
//! ```text
//! blocks  runs, then an 8-byte hash for every stored block
//! run     varint length·2 (zero blocks) or length·2+1 followed by the first block's place;
//!         the others follow it in the same frame
//! leaf    0, table, varint count, blocks                                (whole)
//!         1, table, varint count, extent of a whole leaf,
//!            varint changes, gaps between their positions, blocks       (patch)
//! ```

use super::{
    BLOCK, BackupTable, Extent, LEAF_BLOCKS, Numbers, OwnTable, Place, put_extent, put_place,
    read_extent, read_place,
};
use crate::repo::codec::{Malformed, Reader, put_varint};

/// One block of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// 8 KiB of zeros, stored nowhere.
    Zero,
    /// Stored.
    Stored {
        /// Where.
        place: Place,
        /// Its keyed hash.
        hash: u64,
    },
}

/// A stored map leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapLeaf {
    /// All its blocks.
    Whole(Vec<Block>),
    /// What differs from a whole leaf.
    Patch(Patch),
}

/// A map leaf as the difference to a whole one. Patches are cumulative: never over a patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// The whole leaf.
    pub base: Extent,
    /// How many blocks there are now.
    pub count: usize,
    /// Positions in the leaf, ascending, and what is there now.
    pub changes: Vec<(usize, Block)>,
}

impl Patch {
    /// The blocks of `base` with the changes made.
    pub fn apply(&self, mut base: Vec<Block>) -> Result<Vec<Block>, Malformed> {
        let malformed = Malformed { what: "map patch", at: 0 };
        let kept = base.len().min(self.count);
        base.resize(self.count, Block::Zero);
        let mut new = kept;
        for &(position, block) in &self.changes {
            *base.get_mut(position).ok_or_else(|| malformed.clone())? = block;
            new += usize::from(position >= kept);
        }
        // Blocks that the base doesn't have must all be in the patch.
        if new == self.count { Ok(base) } else { Err(malformed) }
    }
}

fn follows(a: Place, b: Place, distance: usize) -> bool {
    (a.backup, a.pack, a.frame) == (b.backup, b.pack, b.frame)
        && u64::from(a.offset) + (distance * BLOCK) as u64 == u64::from(b.offset)
}

pub(super) fn put_blocks(out: &mut Vec<u8>, blocks: &[Block]) {
    let mut at = 0;
    while at < blocks.len() {
        let rest = &blocks[at..];
        let len = match blocks[at] {
            Block::Zero => {
                let len = rest.iter().take_while(|b| matches!(b, Block::Zero)).count();
                put_varint(out, (len as u64) << 1);
                len
            }
            Block::Stored { place: first, .. } => {
                let in_run = |(i, b): &(usize, &Block)| matches!(b, Block::Stored { place, .. } if follows(first, *place, *i));
                let len = rest.iter().enumerate().take_while(in_run).count();
                put_varint(out, (len as u64) << 1 | 1);
                put_place(out, first);
                len
            }
        };
        at += len;
    }
    for block in blocks {
        if let Block::Stored { hash, .. } = block {
            out.extend_from_slice(&hash.to_le_bytes());
        }
    }
}

pub(super) fn read_blocks(
    reader: &mut Reader<'_>,
    count: usize,
    numbers: Numbers<'_>,
) -> Result<Vec<Block>, Malformed> {
    if count > LEAF_BLOCKS {
        return Err(reader.malformed("block count"));
    }
    let mut blocks = Vec::with_capacity(count);
    while blocks.len() < count {
        let run: u64 = reader.varint("run")?;
        let len = usize::try_from(run >> 1).unwrap_or(usize::MAX);
        if len == 0 || len > count - blocks.len() {
            return Err(reader.malformed("run"));
        }
        if run & 1 == 0 {
            blocks.resize(blocks.len() + len, Block::Zero);
            continue;
        }
        let first = read_place(reader, numbers)?;
        for i in 0..len as u32 {
            let offset = (i * BLOCK as u32)
                .checked_add(first.offset)
                .ok_or_else(|| reader.malformed("offset"))?;
            blocks.push(Block::Stored { place: Place { offset, ..first }, hash: 0 });
        }
    }
    for block in &mut blocks {
        if let Block::Stored { hash, .. } = block {
            *hash = u64::from_le_bytes(reader.array("hash")?);
        }
    }
    Ok(blocks)
}

/// A whole leaf's bytes. `table` is what the blocks' backup numbers mean.
pub fn encode_map_leaf(blocks: &[Block], table: &BackupTable) -> Vec<u8> {
    let mut own = OwnTable::new(table);
    let blocks: Vec<Block> = blocks.iter().map(|block| own.block(*block)).collect();
    let mut out = vec![0];
    own.put(&mut out);
    put_varint(&mut out, blocks.len() as u64);
    put_blocks(&mut out, &blocks);
    out
}

/// A patch's bytes.
pub fn encode_map_patch(patch: &Patch, table: &BackupTable) -> Vec<u8> {
    let mut own = OwnTable::new(table);
    let blocks: Vec<Block> = patch.changes.iter().map(|(_, block)| own.block(*block)).collect();
    let base = own.extent(patch.base);
    let mut out = vec![1];
    own.put(&mut out);
    put_varint(&mut out, patch.count as u64);
    put_extent(&mut out, base);
    put_varint(&mut out, patch.changes.len() as u64);
    let mut next = 0;
    for (position, _) in &patch.changes {
        put_varint(&mut out, (position - next) as u64);
        next = position + 1;
    }
    put_blocks(&mut out, &blocks);
    out
}

/// Reads a leaf; its backups get numbers in `table`.
pub fn decode_map_leaf(bytes: &[u8], table: &mut BackupTable) -> Result<MapLeaf, Malformed> {
    let mut reader = Reader::new(bytes);
    let form = reader.byte("map leaf")?;
    let numbers = table.read(&mut reader)?;
    let numbers = Numbers::Read(&numbers);
    let count: usize = reader.number("block count")?;
    let leaf = match form {
        0 => MapLeaf::Whole(read_blocks(&mut reader, count, numbers)?),
        1 if count <= LEAF_BLOCKS => {
            let base = read_extent(&mut reader, numbers)?;
            let changed = reader.count("changes")?;
            let mut positions = Vec::with_capacity(changed);
            let mut next = 0usize;
            for _ in 0..changed {
                let position = reader
                    .number::<usize>("position")?
                    .checked_add(next)
                    .filter(|p| *p < count)
                    .ok_or_else(|| reader.malformed("position"))?;
                positions.push(position);
                next = position + 1;
            }
            let blocks = read_blocks(&mut reader, changed, numbers)?;
            MapLeaf::Patch(Patch {
                base,
                count,
                changes: positions.into_iter().zip(blocks).collect(),
            })
        }
        _ => return Err(reader.malformed("map leaf")),
    };
    reader.end("map leaf")?;
    Ok(leaf)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::repo::BackupId;

    fn table() -> BackupTable {
        let mut table = BackupTable::default();
        for id in ["20261120T195812Z-full", "20261121T195812Z-incr", "20261122T195812Z-incr"] {
            table.number(&id.parse::<BackupId>().unwrap());
        }
        table
    }

    fn block() -> impl Strategy<Value = Block> {
        prop_oneof![
            Just(Block::Zero),
            (0u32..3, 0u32..3, 0u32..4, 0u32..40, any::<u64>()).prop_map(
                |(backup, pack, frame, index, hash)| Block::Stored {
                    place: Place { backup, pack, frame, offset: index * BLOCK as u32 },
                    hash,
                }
            ),
        ]
    }

    /// Blocks in which runs are likely.
    fn blocks(max: usize) -> impl Strategy<Value = Vec<Block>> {
        prop::collection::vec((block(), 1usize..40), 0..40).prop_map(move |runs| {
            let mut out = Vec::new();
            for (first, len) in runs {
                for i in 0..len as u32 {
                    out.push(match first {
                        Block::Zero => Block::Zero,
                        Block::Stored { place, hash } => Block::Stored {
                            place: Place { offset: place.offset + i * BLOCK as u32, ..place },
                            hash: hash ^ u64::from(i),
                        },
                    });
                }
            }
            out.truncate(max);
            out
        })
    }

    proptest! {
        #[test]
        fn whole_leaves_come_back(blocks in blocks(LEAF_BLOCKS)) {
            let mut table = table();
            let bytes = encode_map_leaf(&blocks, &table);
            prop_assert_eq!(decode_map_leaf(&bytes, &mut table), Ok(MapLeaf::Whole(blocks)));
        }

        #[test]
        fn patches_agree_with_a_plain_array(
            base in blocks(200),
            count in 0usize..200,
            writes in prop::collection::btree_map(0usize..200, block(), 0..50),
        ) {
            let mut expected = base.clone();
            expected.resize(count, Block::Zero);
            let mut changes: std::collections::BTreeMap<_, _> =
                writes.into_iter().filter(|(p, _)| *p < count).collect();
            for position in base.len()..count {
                changes.entry(position).or_insert(Block::Zero);
            }
            for (position, block) in &changes {
                expected[*position] = *block;
            }
            let place = Place { backup: 1, pack: 5, frame: 6, offset: 7 };
            let patch = Patch {
                base: Extent { place, len: 9 },
                count,
                changes: changes.into_iter().collect(),
            };
            let mut table = table();
            let bytes = encode_map_patch(&patch, &table);
            let MapLeaf::Patch(read) = decode_map_leaf(&bytes, &mut table).unwrap() else {
                return Err(TestCaseError::fail("not a patch"));
            };
            prop_assert_eq!(&read, &patch);
            prop_assert_eq!(read.apply(base), Ok(expected));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = decode_map_leaf(&bytes, &mut table());
        }
    }
}
