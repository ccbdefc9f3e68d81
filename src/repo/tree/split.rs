//! How a file's blocks are split into map leaves: [`LEAF_BLOCKS`] to each, the last one has the rest.

use super::block_count;

/// How many blocks a map leaf covers.
pub const LEAF_BLOCKS: usize = 1024;

/// As [`LEAF_BLOCKS`] says. Tests have leaves of a few blocks, that a file of some dozens has many.
#[cfg(not(test))]
const fn leaf_blocks() -> usize {
    LEAF_BLOCKS
}

#[cfg(test)]
pub use tests::{leaf_blocks, with_leaves_of};

/// Whether so many blocks fill a leaf.
pub fn fills_leaf(blocks: usize) -> bool {
    blocks >= leaf_blocks()
}

/// How many leaves a file of so many blocks has.
pub fn leaf_count(blocks: u64) -> u64 {
    blocks.div_ceil(leaf_blocks() as u64)
}

/// How many blocks leaf `number` of a file of `size` bytes has.
pub fn leaf_len(size: u64, number: usize) -> usize {
    block_count(size).saturating_sub(first_block(number)).min(leaf_blocks() as u64) as usize
}

/// The first block that leaf `number` of a file covers.
pub fn first_block(number: usize) -> u64 {
    (number as u64).saturating_mul(leaf_blocks() as u64)
}

/// The leaf that covers block `index` of a file, and the block's position in it.
pub fn position(index: u64) -> (usize, usize) {
    let blocks = leaf_blocks() as u64;
    ((index / blocks) as usize, (index % blocks) as usize)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::repo::tree::BLOCK;

    thread_local! {
        static BLOCKS: Cell<usize> = const { Cell::new(LEAF_BLOCKS) };
    }

    /// How many blocks a map leaf covers in this thread.
    pub fn leaf_blocks() -> usize {
        BLOCKS.get()
    }

    /// Does something, in this thread, with map leaves of so many blocks.
    pub fn with_leaves_of<T>(blocks: usize, what: impl FnOnce() -> T) -> T {
        /// Also where `what` panics.
        struct Back(usize);
        impl Drop for Back {
            fn drop(&mut self) {
                BLOCKS.set(self.0);
            }
        }
        let _back = Back(BLOCKS.replace(blocks));
        what()
    }

    #[test]
    fn each_block_is_in_one_leaf_at_one_position() {
        for blocks in [0, 1, 5, 1023, 1024, 1025, 2048, 5000] {
            let size = blocks * BLOCK as u64;
            let count = leaf_count(blocks) as usize;
            let mut next = 0;
            for number in 0..count {
                assert_eq!(first_block(number), next);
                for at in 0..leaf_len(size, number) {
                    assert_eq!(position(next), (number, at));
                    next += 1;
                }
            }
            assert_eq!(next, blocks);
            assert_eq!(leaf_len(size, count), 0);
            // A last block that is short is one too.
            assert_eq!(leaf_len(size + 1, count), usize::from(blocks % 1024 == 0));
        }
        assert!(fills_leaf(1024) && !fills_leaf(1023));
        assert_eq!(leaf_len(u64::MAX, usize::MAX), 0);
    }
}
