//! File leaves and map leaves, whole ones and patches.
//!
//! The first byte chooses: 0 a file leaf, 1 a map leaf, as they are stored; 2 and 3 the same, read through a
//! tree's reader, with the rest cut in two: the leaf at the beginning of its frame, and what lies wherever
//! an extent in it leads. What is read and written again is the same; no path leads out.

use std::sync::Arc;

use pgkeep::{
    error::Result,
    repo::{
        BackupId,
        tree::{
            BackupTable, Block, Extent, FileChange, FileEntry, FileKind, FileLeaf, FileMap,
            LEAF_BLOCKS, LEAF_FILES, MapLeaf, PackedChange, PackedEntry, Place, block_count,
            decode_file_leaf, decode_map_leaf, encode_file_leaf, encode_file_patch,
            encode_map_leaf, encode_map_patch, leaf_count, leaf_len,
        },
        tree_reader::{ReadFrames, TreeReader},
    },
};

use super::{input::Input, place::wait};

/// The frame in which the leaf lies that is asked for, and the one that is everywhere else.
struct Two(Vec<u8>, Vec<u8>);

const HERE: Place = Place { backup: 0, pack: 0, frame: 0, offset: 0 };

impl ReadFrames for Two {
    async fn frame(&self, _table: &BackupTable, place: Place) -> Result<Vec<u8>> {
        let here = (place.pack, place.frame) == (HERE.pack, HERE.frame);
        if here {
            return Ok(self.0.clone());
        }
        // Where it is looked for, but for what no frame is long enough for.
        let before = if place.offset < 1 << 18 { place.offset as usize } else { 0 };
        Ok([vec![0; before], self.1.clone()].concat())
    }

    fn object(&self, _table: &BackupTable, place: Place) -> String {
        format!("{place:?}")
    }
}

fn check_entry(entry: &FileEntry) {
    let inside = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
    assert!(entry.path.split(|b| *b == b'/').all(inside), "{:?}", entry.path);
    if let FileKind::File { size, map, .. } = &entry.kind {
        match map {
            FileMap::Inline(blocks) => assert_eq!(blocks.len() as u64, block_count(*size)),
            FileMap::Leaves(map) => {
                assert_eq!(map.extents.len() as u64, leaf_count(block_count(*size)));
                for number in 0..map.extents.len() {
                    assert!((1..=LEAF_BLOCKS).contains(&leaf_len(*size, number)));
                }
            }
        }
    }
}

fn file_leaf(bytes: &[u8]) {
    let mut table = BackupTable::default();
    let Ok(leaf) = decode_file_leaf(bytes, &mut table) else { return };
    let again = match &leaf {
        FileLeaf::Whole(entries) => {
            assert!(entries.len() <= LEAF_FILES && entries.is_sorted_by(|a, b| a.path < b.path));
            let packed: Vec<_> = entries.iter().map(PackedEntry::new).collect();
            for (entry, packed) in entries.iter().zip(&packed) {
                check_entry(entry);
                assert_eq!(packed.path(), entry.path);
                assert_eq!(packed.unpack(&table).as_ref(), Ok(entry));
            }
            encode_file_leaf(packed.iter(), &table).expect("what was read")
        }
        FileLeaf::Patch(patch) => {
            assert!(patch.changes.is_sorted_by(|a, b| a.path() < b.path()));
            let packed: Vec<_> = patch.changes.iter().map(PackedChange::from).collect();
            let now = patch.clone().apply(Vec::new());
            now.iter().for_each(check_entry);
            let stay = patch.changes.iter().filter(|c| matches!(c, FileChange::Is(_))).count();
            assert_eq!(now.len(), stay);
            encode_file_patch(patch.base, &packed, &table).expect("what was read")
        }
    };
    assert_eq!(decode_file_leaf(&again, &mut table), Ok(leaf));
}

fn check_blocks(blocks: &[Block], table: &BackupTable) {
    assert!(blocks.len() <= LEAF_BLOCKS);
    for block in blocks {
        if let Block::Stored { place, .. } = block {
            assert!(table.get(place.backup).is_some(), "{place:?}");
        }
    }
}

fn map_leaf(bytes: &[u8]) {
    let mut table = BackupTable::default();
    let Ok(leaf) = decode_map_leaf(bytes, &mut table) else { return };
    let again = match &leaf {
        MapLeaf::Whole(blocks) => {
            check_blocks(blocks, &table);
            encode_map_leaf(blocks, &table)
        }
        MapLeaf::Patch(patch) => {
            assert!(patch.changes.is_sorted_by(|a, b| a.0 < b.0));
            for base in [0, 1, patch.count, LEAF_BLOCKS] {
                if let Ok(now) = patch.apply(vec![Block::Zero; base]) {
                    assert_eq!(now.len(), patch.count);
                    check_blocks(&now, &table);
                }
            }
            encode_map_patch(patch, &table)
        }
    };
    assert_eq!(decode_map_leaf(&again, &mut table), Ok(leaf));
}

pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let form = input.byte() % 4;
    if form < 2 {
        return if form == 0 { file_leaf(input.rest()) } else { map_leaf(input.rest()) };
    }
    let count = input.short().into();
    let leaf = input.piece();
    let extent = Extent { place: HERE, len: leaf.len() as u32 };
    let mut reader = TreeReader::new(Arc::new(Two(leaf.to_vec(), input.rest().to_vec())));
    let mut table = BackupTable::default();
    table.number(&"20250120T205812Z-incr".parse::<BackupId>().expect("an id"));
    if form == 2 {
        if let Ok(read) = wait(reader.file_leaf(&mut table, extent)) {
            assert!(read.items.is_sorted_by(|a, b| a.path < b.path));
            read.items.iter().for_each(check_entry);
            read.whole(extent);
        }
    } else if let Ok(read) = wait(reader.map_leaf(&mut table, extent, count)) {
        assert_eq!(read.items.len(), count);
        check_blocks(&read.items, &table);
        read.whole(extent);
    }
}
