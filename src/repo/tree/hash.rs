//! Hashes of blocks and digests of files.
//!
//! Both are keyed, so that stored hashes tell nobody without the key what a page holds. A block's
//! hash has 64 bits: it decides whether a page changed. A file's digest has 128 bits and is made of
//! the length and the blocks' hashes in order, so a later backup can carry it forward without
//! reading the blocks that didn't change, and a restore can recompute it.

use super::BLOCK;
use crate::repo::keys::Keyring;

/// Hashes blocks and files of one repository.
#[derive(Clone)]
pub struct BlockHasher {
    block_key: [u8; 32],
    digest_key: [u8; 32],
    zero: u64,
}

/// The digest of a file: 128 bits.
pub type FileDigest = [u8; 16];

impl BlockHasher {
    /// The hasher of the repository these keys belong to.
    pub fn new(ring: &Keyring) -> Self {
        let block_key = blake3::derive_key("pgkeep block hash v1", ring.page_hash_key());
        let digest_key = blake3::derive_key("pgkeep file digest v1", ring.page_hash_key());
        let zero = hash(&block_key, &[0; BLOCK]);
        BlockHasher { block_key, digest_key, zero }
    }

    /// A block's hash.
    pub fn block(&self, block: &[u8]) -> u64 {
        hash(&self.block_key, block)
    }

    /// The hash of a whole block of zeros, which is stored nowhere.
    pub fn zero_block(&self) -> u64 {
        self.zero
    }

    /// Begins the digest of a file of `size` bytes.
    pub fn digest(&self, size: u64) -> DigestBuilder {
        let mut hasher = blake3::Hasher::new_keyed(&self.digest_key);
        hasher.update(&size.to_le_bytes());
        DigestBuilder { hasher }
    }
}

fn hash(key: &[u8; 32], block: &[u8]) -> u64 {
    let hash = blake3::keyed_hash(key, block);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// A file's digest in the making: add its blocks' hashes in order.
pub struct DigestBuilder {
    hasher: blake3::Hasher,
}

impl DigestBuilder {
    /// The next block's hash.
    pub fn add(&mut self, hash: u64) {
        self.hasher.update(&hash.to_le_bytes());
    }

    /// The digest.
    pub fn finish(&self) -> FileDigest {
        let mut digest = [0; 16];
        digest.copy_from_slice(&self.hasher.finalize().as_bytes()[..16]);
        digest
    }
}
