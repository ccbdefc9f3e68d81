//! A leaf over the one of an earlier backup: referred to, patched, or stored whole.
//!
//! What changed little is stored as a patch over a whole leaf, so that scattered changes stay small;
//! past a quarter of the whole one, it is stored whole again.

use super::{
    BackupTable, Block, Extent, LEAF_FILES, Patch, encode_map_leaf, encode_map_patch,
    files::{PackedChange, PackedEntry, encode_file_leaf, encode_file_patch},
};
use crate::repo::codec::Malformed;

/// A patch has at most this part of the whole leaf's bytes.
const PATCH_PART: usize = 4;

/// How a leaf is to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// As these bytes, which are a whole leaf.
    Whole(Vec<u8>),
    /// As these bytes, which are a patch over a leaf that was stored before.
    Patch(Vec<u8>),
}

/// How the blocks `now` are stored beside the whole leaf at `whole` that holds `before`. `table` is
/// what their backup numbers mean.
pub fn overlay_blocks(
    now: &[Block],
    whole: Extent,
    before: &[Block],
    table: &BackupTable,
) -> Stored {
    let changed = |(position, block): (usize, &Block)| {
        (before.get(position) != Some(block)).then_some((position, *block))
    };
    let changes: Vec<_> = now.iter().enumerate().filter_map(changed).collect();
    let as_whole = encode_map_leaf(now, table);
    // A patch of more positions than this can't be small enough: each has a hash of eight bytes.
    if changes.len() * 8 * PATCH_PART > as_whole.len() {
        return Stored::Whole(as_whole);
    }
    let patch = Patch { base: whole, count: now.len(), changes };
    smaller(as_whole, encode_map_patch(&patch, table))
}

/// How the entries `now` are stored, of which `changes` differ from those of the whole leaf at
/// `whole`; both are sorted by path. `table` is what their backup numbers mean. Fails if one of them isn't
/// in it.
pub fn overlay_entries(
    now: &[&PackedEntry],
    whole: Extent,
    changes: &[PackedChange],
    table: &BackupTable,
) -> Result<Stored, Malformed> {
    let as_whole = encode_file_leaf(now.iter().copied(), table)?;
    // Each entry that is gone is a change too. Readers refuse a leaf of too many.
    if changes.len() > LEAF_FILES {
        return Ok(Stored::Whole(as_whole));
    }
    Ok(smaller(as_whole, encode_file_patch(whole, changes, table)?))
}

fn smaller(whole: Vec<u8>, patch: Vec<u8>) -> Stored {
    if patch.len() * PATCH_PART <= whole.len() {
        Stored::Patch(patch)
    } else {
        Stored::Whole(whole)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::repo::{
        BackupId,
        tree::{
            BLOCK, FileEntry, FileKind, FileLeaf, FileMap, LEAF_BLOCKS, LeafMap, MapLeaf, Place,
            decode_file_leaf, decode_map_leaf,
        },
    };

    /// A leaf of 1 GiB files and very many small ones, of which all go, and as many come that a leaf of
    /// large files still has room for.
    #[test]
    fn a_leaf_of_which_nearly_all_changes_can_be_read() {
        let mut table = BackupTable::default();
        let backup = table.number(&"20261120T195812Z-full".parse::<BackupId>().unwrap());
        let extent =
            Extent { place: Place { backup, pack: 900_000, frame: 7, offset: 9 }, len: 9000 };
        let file = |path: String, leaves: usize| {
            let map = match leaves {
                0 => FileMap::Inline(vec![Block::Zero]),
                _ => FileMap::Leaves(LeafMap { extents: vec![extent; leaves], uses: Vec::new() }),
            };
            let size = (leaves * LEAF_BLOCKS * BLOCK).max(BLOCK) as u64;
            let kind = FileKind::File { size, digest: [7; 16], map };
            FileEntry { path: path.into(), mode: 0o600, kind }
        };
        let large = |n: usize| file(format!("base/1/1{n:04}"), 128);
        let now: Vec<FileEntry> =
            (0..96).map(large).chain((0..97).map(|n| file(format!("base/3/{n:04}"), 0))).collect();
        let packed: Vec<PackedEntry> = now.iter().map(PackedEntry::new).collect();
        let gone =
            (0..4000).map(|n| PackedChange::Gone(format!("base/2/{n:04}").into_bytes().into()));
        let come = packed[96..].iter().cloned().map(PackedChange::Is);
        let changes: Vec<PackedChange> = gone.chain(come).collect();

        let refs: Vec<&PackedEntry> = packed.iter().collect();
        let (Stored::Whole(bytes) | Stored::Patch(bytes)) =
            overlay_entries(&refs, extent, &changes, &table).unwrap();
        assert_eq!(decode_file_leaf(&bytes, &mut table), Ok(FileLeaf::Whole(now)));
        // A patch of them would be small enough.
        let patch = encode_file_patch(extent, &changes, &table).unwrap();
        assert!(patch.len() * PATCH_PART < bytes.len());
        let Ok(FileLeaf::Patch(patch)) = decode_file_leaf(&patch, &mut table) else {
            panic!("a patch that can be read")
        };
        assert_eq!(patch.changes.len(), 4097);
    }

    /// What happens to a file between two backups.
    #[derive(Debug, Clone)]
    enum Change {
        Write { at: usize, blocks: usize },
        Zero { at: usize, blocks: usize },
        Length(usize),
    }

    fn change(max: usize) -> impl Strategy<Value = Change> {
        prop_oneof![
            4 => (0..max, 1usize..30).prop_map(|(at, blocks)| Change::Write { at, blocks }),
            1 => (0..max, 1usize..60).prop_map(|(at, blocks)| Change::Zero { at, blocks }),
            1 => (0..max).prop_map(Change::Length),
        ]
    }

    /// A leaf as it is stored, and what it must read as.
    struct Leaf {
        at: Extent,
        bytes: Vec<u8>,
    }

    /// Reads a stored leaf, as a restore does.
    fn read(
        leaf: &Leaf,
        stored: &BTreeMap<Extent, Vec<u8>>,
        table: &mut BackupTable,
    ) -> (Vec<Block>, (Extent, Vec<Block>)) {
        match decode_map_leaf(&leaf.bytes, table).unwrap() {
            MapLeaf::Whole(blocks) => (blocks.clone(), (leaf.at, blocks)),
            MapLeaf::Patch(patch) => {
                let Ok(MapLeaf::Whole(base)) = decode_map_leaf(&stored[&patch.base], table) else {
                    panic!("a patch over something else than a whole leaf");
                };
                (patch.apply(base.clone()).unwrap(), (patch.base, base))
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        /// A leaf through a history of backups, beside a plain array of what each page holds.
        #[test]
        fn a_leaf_agrees_with_a_plain_array_through_a_history_of_backups(
            length in 5usize..=LEAF_BLOCKS,
            history in prop::collection::vec(prop::collection::vec(change(LEAF_BLOCKS), 0..6), 1..8),
        ) {
            let mut table = BackupTable::default();
            let mut stored: BTreeMap<Extent, Vec<u8>> = BTreeMap::new();
            // What each page holds: zeros, or what was written at some moment.
            let mut plain: Vec<Option<u64>> = (0..length as u64).map(|n| Some(n + 1)).collect();
            let mut written = 1_000_000u64;
            let mut last: Option<Leaf> = None;
            for (number, changes) in history.iter().enumerate() {
                for change in changes {
                    match *change {
                        Change::Write { at, blocks } => {
                            for page in plain.iter_mut().skip(at).take(blocks) {
                                written += 1;
                                *page = Some(written);
                            }
                        }
                        Change::Zero { at, blocks } => {
                            plain.iter_mut().skip(at).take(blocks).for_each(|page| *page = None);
                        }
                        Change::Length(length) => plain.resize(length.max(1), None),
                    }
                }
                let id = format!("202611{:02}T000000Z-incr", number + 1);
                let backup = table.number(&id.parse::<BackupId>().unwrap());
                let base = last.as_ref().map(|leaf| (leaf.at, read(leaf, &stored, &mut table)));
                // Changed pages get a place in this backup, the others keep theirs.
                let mut next = 0;
                let now: Vec<Block> = plain
                    .iter()
                    .enumerate()
                    .map(|(position, page)| {
                        let Some(hash) = *page else { return Block::Zero };
                        let before = base.as_ref().and_then(|(_, (now, _))| now.get(position));
                        match before {
                            Some(block @ Block::Stored { hash: h, .. }) if *h == hash => *block,
                            _ => {
                                next += 1;
                                let (frame, offset) = (next / 32, next % 32 * BLOCK as u32);
                                Block::Stored { place: Place { backup, pack: 0, frame, offset }, hash }
                            }
                        }
                    })
                    .collect();
                let place = Place { backup, pack: 900_000, frame: 0, offset: 0 };
                let leaf = match &base {
                    Some((at, (before, _))) if *before == now => {
                        Leaf { at: *at, bytes: stored[at].clone() }
                    }
                    Some((_, (_, (whole, before)))) => {
                        let (bytes, is_patch) = match overlay_blocks(&now, *whole, before, &table) {
                            Stored::Whole(bytes) => (bytes, false),
                            Stored::Patch(bytes) => (bytes, true),
                        };
                        let whole = encode_map_leaf(&now, &table).len();
                        prop_assert!(!is_patch || bytes.len() * PATCH_PART <= whole);
                        Leaf { at: Extent { place, len: bytes.len() as u32 }, bytes }
                    }
                    None => {
                        let bytes = encode_map_leaf(&now, &table);
                        Leaf { at: Extent { place, len: bytes.len() as u32 }, bytes }
                    }
                };
                stored.insert(leaf.at, leaf.bytes.clone());
                let (back, _) = read(&leaf, &stored, &mut table);
                let holds: Vec<Option<u64>> = back
                    .iter()
                    .map(|block| match block {
                        Block::Zero => None,
                        Block::Stored { hash, .. } => Some(*hash),
                    })
                    .collect();
                prop_assert_eq!(&holds, &plain);
                prop_assert_eq!(back, now);
                last = Some(leaf);
            }
        }
    }
}
