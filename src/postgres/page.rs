//! Pages of relations: their position in the WAL, their checksum, and the files they lie in.
//!
//! A page begins with `pd_lsn`, two words with the high half first, then `pd_checksum`
//! (`storage/bufpage.h`). Numbers are little-endian, as on every platform this is built for.

use super::Lsn;

/// Where `pd_checksum` lies in a page.
const CHECKSUM_AT: usize = 8;

/// Where `pd_upper` lies in a page.
const UPPER_AT: usize = 14;

/// A row of the checksum: 32 lanes of 4 bytes.
const ROW: usize = 32 * 4;

const PRIME: u32 = 16_777_619;

/// Where each lane begins (`storage/checksum_impl.h`).
const OFFSETS: [u32; 32] = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
];

fn word(page: &[u8], at: usize) -> Option<[u8; 4]> {
    page.get(at..at + 4)?.try_into().ok()
}

/// The end of the last WAL record that changed the page; `0/0` when the page is too short for one.
pub fn lsn(page: &[u8]) -> Lsn {
    let half = |at| word(page, at).map_or(0, u32::from_le_bytes);
    Lsn(u64::from(half(0)) << 32 | u64::from(half(4)))
}

/// Whether the page was never initialised (`PageIsNew`): it has no checksum then.
pub fn is_new(page: &[u8]) -> bool {
    matches!(page.get(UPPER_AT..UPPER_AT + 2), None | Some([0, 0]))
}

/// The checksum in the page.
pub fn stored_checksum(page: &[u8]) -> u16 {
    match page.get(CHECKSUM_AT..CHECKSUM_AT + 2) {
        Some([low, high]) => u16::from_le_bytes([*low, *high]),
        _ => 0,
    }
}

/// The checksum the page should have as block `block` of its fork: of the fork, not of the file
/// ([`RelationFile::first_block`]). The page's length must be a multiple of 128 bytes, as every
/// block size is; what is beyond the last multiple is left out.
///
/// 32 lanes of FNV-1a with an extra shift, over rows of 128 bytes and two rows of zeros, folded
/// together with the block number (`storage/checksum_impl.h`). The stored checksum counts as zero.
pub fn checksum(page: &[u8], block: u32) -> u16 {
    let (rows, _) = page.as_chunks::<ROW>();
    let mut sums = OFFSETS;
    if let Some((first, rest)) = rows.split_first() {
        let mut first = *first;
        first[CHECKSUM_AT] = 0;
        first[CHECKSUM_AT + 1] = 0;
        mix(&mut sums, &first);
        for row in rest {
            mix(&mut sums, row);
        }
    }
    mix(&mut sums, &[0; ROW]);
    mix(&mut sums, &[0; ROW]);
    let folded = sums.iter().fold(block, |all, sum| all ^ sum);
    (folded % 65_535 + 1) as u16
}

/// One row into the lanes. Plain loops over arrays, so that they become vector instructions.
#[inline(always)]
fn mix(sums: &mut [u32; 32], row: &[u8; ROW]) {
    let (words, _) = row.as_chunks::<4>();
    for (sum, word) in sums.iter_mut().zip(words) {
        let mixed = *sum ^ u32::from_le_bytes(*word);
        *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

/// A part of a relation's storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fork {
    /// The rows or index entries.
    Main,
    /// The free space map, `_fsm`.
    FreeSpace,
    /// The visibility map, `_vm`.
    Visibility,
    /// What an unlogged relation is reset to, `_init`.
    Init,
}

/// A file that holds pages of a relation, by its name (`common/relpath.c`):
/// `base/<database>/<number>[_fork][.<segment>]`, the same in `global/` and below
/// `pg_tblspc/<tablespace>/<version directory>/`. Temporary relations aren't among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RelationFile {
    /// The tablespace's id; `None` for the default one and `global/`.
    pub tablespace: Option<u32>,
    /// The database's id; 0 for `global/`.
    pub database: u32,
    /// The file number (`relfilenode`).
    pub number: u32,
    /// Which fork.
    pub fork: Fork,
    /// Which segment of the fork, from 0.
    pub segment: u32,
}

impl RelationFile {
    /// What the file at `path`, relative to the data directory, holds; `None` if it isn't a
    /// relation's.
    pub fn parse(path: &str) -> Option<Self> {
        let (folder, file) = path.rsplit_once('/')?;
        let (tablespace, database) = match folder.split('/').collect::<Vec<_>>()[..] {
            ["global"] => (None, 0),
            ["base", database] => (None, oid(database)?),
            ["pg_tblspc", tablespace, version, database] if version.starts_with("PG_") => {
                (Some(oid(tablespace)?), oid(database)?)
            }
            _ => return None,
        };
        let (stem, segment) = match file.split_once('.') {
            Some((stem, segment)) => (stem, oid(segment)?),
            None => (file, 0),
        };
        let (number, fork) = match stem.split_once('_') {
            None => (stem, Fork::Main),
            Some((number, "fsm")) => (number, Fork::FreeSpace),
            Some((number, "vm")) => (number, Fork::Visibility),
            Some((number, "init")) => (number, Fork::Init),
            Some(_) => return None,
        };
        Some(RelationFile { tablespace, database, number: oid(number)?, fork, segment })
    }

    /// The number in the fork of the file's first block, with `segment_blocks` blocks in a segment
    /// ([`super::control::ControlFile::segment_blocks`]).
    pub fn first_block(&self, segment_blocks: u32) -> u32 {
        self.segment.wrapping_mul(segment_blocks)
    }
}

/// A number from 1, without leading zeros.
fn oid(text: &str) -> Option<u32> {
    let ok = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    ok.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn relation_files_are_told_from_others() {
        let file = |tablespace, database, number, fork, segment| {
            Some(RelationFile { tablespace, database, number, fork, segment })
        };
        for (path, expected) in [
            ("base/5/1259", file(None, 5, 1259, Fork::Main, 0)),
            ("base/5/1259.1", file(None, 5, 1259, Fork::Main, 1)),
            ("base/5/1259_fsm", file(None, 5, 1259, Fork::FreeSpace, 0)),
            ("base/5/16384_vm.12", file(None, 5, 16384, Fork::Visibility, 12)),
            ("global/1262_init", file(None, 0, 1262, Fork::Init, 0)),
            (
                "pg_tblspc/16400/PG_15_202209061/5/16401.2",
                file(Some(16400), 5, 16401, Fork::Main, 2),
            ),
        ] {
            assert_eq!(RelationFile::parse(path), expected, "{path}");
        }
        for other in [
            "",
            "1259",
            "base/1259",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "base/5/t3_16384",
            "base/5/01259",
            "base/5/1259.0",
            "base/5/1259.01",
            "base/5/1259.",
            "base/5/1259_tmp",
            "base/5/1259_fsm_vm",
            "base/5/1259_fsm.1.2",
            "base/5/4294967296",
            "base/5/+1",
            "base/5/6/1259",
            "global/pg_control",
            "global/pg_control.old",
            "pg_xact/0000",
            "pg_tblspc/16400/5/16401",
        ] {
            assert_eq!(RelationFile::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_page_header_is_read() {
        let mut page = vec![0; 8192];
        assert!(is_new(&page));
        page[..16].copy_from_slice(&[2, 0, 0, 0, 0x28, 0, 0, 3, 0x34, 0x12, 0, 0, 28, 0, 0, 32]);
        assert_eq!(lsn(&page).to_string(), "2/3000028");
        assert_eq!(stored_checksum(&page), 0x1234);
        assert!(!is_new(&page));
    }

    /// One lane after the other, word by word: the definition, slowly.
    fn plain(page: &[u8], block: u32) -> u16 {
        let mut all = block;
        for lane in 0..32 {
            let mut sum = OFFSETS[lane];
            let column = page.chunks_exact(ROW).enumerate().map(|(row, bytes)| {
                let word = u32::from_le_bytes(bytes[lane * 4..lane * 4 + 4].try_into().unwrap());
                if row == 0 && lane == 2 { word & 0xFFFF_0000 } else { word }
            });
            for word in column.chain([0, 0]) {
                let mixed = sum ^ word;
                sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
            }
            all ^= sum;
        }
        (all % 65_535 + 1) as u16
    }

    proptest! {
        #[test]
        fn the_checksum_is_the_plain_one(seed: u64, block: u32) {
            let page: Vec<u8> = (0..8192u64)
                .map(|i| (seed.wrapping_mul(i | 1).wrapping_add(i * i) >> 23) as u8)
                .collect();
            prop_assert_eq!(checksum(&page, block), plain(&page, block));
            let mut other = page.clone();
            other[8] ^= 0xFF;
            prop_assert_eq!(checksum(&other, block), checksum(&page, block));
        }

        #[test]
        fn any_bytes_do(page in prop::collection::vec(any::<u8>(), 0..400), path: String) {
            let _ = (lsn(&page), is_new(&page), stored_checksum(&page), checksum(&page, 7));
            let _ = RelationFile::parse(&path);
        }
    }
}
