//! CRC-32C of a file from those of its blocks, in whatever order the blocks were written.
//!
//! Appending a block of zeros to a file is a linear map on its checksum, and so it is a table for
//! the one length that all blocks have; a last, shorter block is combined the general way.

use std::sync::LazyLock;

use crc_fast::{CrcAlgorithm, checksum_combine, crc32_iscsi};

use crate::repo::tree::BLOCK;

/// The CRC-32C of a block of zeros.
pub static ZERO_BLOCK: LazyLock<u32> = LazyLock::new(|| crc32_iscsi(&[0; BLOCK]));

/// For each byte of a checksum, what it becomes when a block is appended.
static SHIFT: LazyLock<[[u32; 256]; 4]> = LazyLock::new(|| {
    let mut table = [[0; 256]; 4];
    for (byte, column) in table.iter_mut().enumerate() {
        for (value, entry) in column.iter_mut().enumerate() {
            *entry = combine((value as u32) << (8 * byte), 0, BLOCK as u64);
        }
    }
    table
});

fn combine(before: u32, block: u32, len: u64) -> u32 {
    checksum_combine(CrcAlgorithm::Crc32Iscsi, before.into(), block.into(), len) as u32
}

/// The checksum of bytes with checksum `before`, followed by a block of `len` bytes with checksum
/// `block`.
pub fn append(before: u32, block: u32, len: usize) -> u32 {
    if len != BLOCK {
        return combine(before, block, len as u64);
    }
    let [a, b, c, d] = before.to_le_bytes().map(usize::from);
    SHIFT[0][a] ^ SHIFT[1][b] ^ SHIFT[2][c] ^ SHIFT[3][d] ^ block
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn blocks_add_up_to_the_file(len in 0usize..6 * BLOCK, seed: u32) {
            let bytes: Vec<u8> = (0..len as u32)
                .map(|i| if i < BLOCK as u32 { 0 } else { (i.wrapping_mul(seed) >> 13) as u8 })
                .collect();
            let crc = bytes.chunks(BLOCK).fold(0, |crc, b| append(crc, crc32_iscsi(b), b.len()));
            prop_assert_eq!(crc, crc32_iscsi(&bytes));
        }
    }

    #[test]
    fn a_hole_is_a_block_of_zeros() {
        assert_eq!(append(*ZERO_BLOCK, *ZERO_BLOCK, BLOCK), crc32_iscsi(&[0; 2 * BLOCK]));
    }
}
