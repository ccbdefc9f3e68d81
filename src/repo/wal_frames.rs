//! The frames of WAL that is stored more than once: as a part, as what parts are merged to, as a segment,
//! and in each repository.
//!
//! Most of what that takes is compression. So the compressed frames of what is held in memory are kept, and
//! whoever stores the same bytes again seals them again only, as that is bound to the object.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use super::{
    sealed::{CompressedFrame, SealedWriter},
    wal::WAL_FRAME,
};
use crate::error::Result;

/// The shortest frame that is kept, in bytes: of short ones an object would be larger than it need be.
const SHORTEST: usize = WAL_FRAME / 2;

/// How many compressed bytes are kept of a stretch of WAL: half of the largest. What doesn't compress is soon tried,
/// too.
const MOST: usize = 8 << 20;

/// Compressed frames of one stretch of WAL, whose bytes don't change. A clone is the same.
#[derive(Debug, Clone, Default)]
pub struct KeptFrames(Option<Arc<Mutex<Kept>>>);

#[derive(Debug, Default)]
struct Kept {
    /// By zstd's level, and by the offset in the segment.
    frames: BTreeMap<(i32, u32), Arc<CompressedFrame>>,
    stored_bytes: usize,
}

impl KeptFrames {
    /// Keeps nothing.
    pub fn none() -> Self {
        KeptFrames(None)
    }

    /// Keeps frames, up to 8 MiB of them.
    pub fn new() -> Self {
        KeptFrames(Some(Arc::default()))
    }

    fn kept(&self) -> Option<MutexGuard<'_, Kept>> {
        let kept = self.0.as_ref()?;
        Some(kept.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The frame that begins at an offset, if it isn't longer than `most` bytes.
    fn at(&self, level: i32, offset: u32, most: u64) -> Option<Arc<CompressedFrame>> {
        let kept = self.kept()?;
        kept.frames.get(&(level, offset)).filter(|frame| u64::from(frame.raw) <= most).cloned()
    }

    /// Where the first frame behind an offset begins.
    fn next(&self, level: i32, offset: u32) -> Option<u32> {
        let kept = self.kept()?;
        let behind = offset.checked_add(1)?;
        kept.frames.range((level, behind)..=(level, u32::MAX)).next().map(|((_, next), _)| *next)
    }

    fn add(&self, offset: u32, frame: &Arc<CompressedFrame>) {
        let Some(mut kept) = self.kept() else { return };
        let stored_bytes = kept.stored_bytes + frame.stored_bytes();
        let key = (frame.level, offset);
        if frame.raw as usize >= SHORTEST && stored_bytes <= MOST && !kept.frames.contains_key(&key)
        {
            kept.stored_bytes = stored_bytes;
            kept.frames.insert(key, frame.clone());
        }
    }

    /// Seals pieces of any size, the bytes of a segment from the offset `from` on, as frames of the usual size or of
    /// those that are kept.
    pub async fn seal(
        &self,
        writer: &mut SealedWriter,
        from: u32,
        content: &[Bytes],
    ) -> Result<()> {
        let level = writer.sealer().level();
        let mut rest = Pieces::new(content);
        let mut at = from;
        let mut raw = Vec::new();
        while rest.len > 0 {
            let frame = match self.at(level, at, rest.len) {
                Some(frame) => {
                    rest.take(frame.raw as usize, |_| {});
                    frame
                }
                None => {
                    let next = self.next(level, at).map_or(WAL_FRAME, |next| (next - at) as usize);
                    raw.clear();
                    rest.take(next.min(WAL_FRAME), |piece| raw.extend_from_slice(piece));
                    if self.0.is_none() {
                        writer.seal(&raw).await?;
                        continue;
                    }
                    let frame = Arc::new(writer.sealer().compress(&raw)?);
                    self.add(at, &frame);
                    frame
                }
            };
            writer.seal_compressed(&frame).await?;
            at = at.saturating_add(frame.raw);
        }
        Ok(())
    }
}

/// Bytes in pieces, taken from the front.
struct Pieces<'b> {
    pieces: std::slice::Iter<'b, Bytes>,
    now: &'b [u8],
    /// How many bytes are left.
    len: u64,
}

impl<'b> Pieces<'b> {
    fn new(pieces: &'b [Bytes]) -> Self {
        let len = pieces.iter().map(|piece| piece.len() as u64).sum();
        Pieces { pieces: pieces.iter(), now: &[], len }
    }

    /// Takes up to `wanted` bytes.
    fn take(&mut self, wanted: usize, mut sink: impl FnMut(&[u8])) {
        let mut wanted = wanted;
        while wanted > 0 {
            if self.now.is_empty() {
                let Some(next) = self.pieces.next() else { return };
                self.now = next;
            }
            let (taken, later) = self.now.split_at(self.now.len().min(wanted));
            sink(taken);
            (self.now, wanted) = (later, wanted - taken.len());
            self.len -= taken.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        repo::{
            Repository,
            keys::KeyMaterial,
            sealed::{ObjectReader, read_whole},
        },
        storage::{ObjectName, local::Local},
    };

    /// Seals bytes from an offset on, and says how long the object's frames are. They have what went in.
    async fn sealed(
        frames: &KeptFrames,
        repository: &Repository,
        from: u32,
        raw: &[u8],
    ) -> Vec<u32> {
        let name = ObjectName::new(format!("clusters/main/{from}-{}", raw.len())).unwrap();
        let mut writer = SealedWriter::create(repository, &name).await.unwrap();
        let pieces: Vec<Bytes> = raw.chunks(300_001).map(Bytes::copy_from_slice).collect();
        frames.seal(&mut writer, from, &pieces).await.unwrap();
        writer.finish(&[]).await.unwrap();
        let whole = read_whole(repository, &name).await.unwrap().into_bytes();
        assert!(whole == raw, "what comes back is what went in");
        let object = ObjectReader::open(repository, &name).await.unwrap();
        (0..object.frame_count() as u64).filter_map(|n| object.raw_len(n)).collect()
    }

    #[tokio::test]
    async fn what_was_compressed_before_is_taken_where_the_bytes_are_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Arc::new(Local::open_or_make(&folder.path().join("repo")).unwrap());
        Repository::init(storage.as_ref(), &KeyMaterial::None).await.unwrap();
        let open = |level| Repository::open("main", storage.clone(), &KeyMaterial::None, level);
        let repository = open(1).await.unwrap();
        const MIB: u32 = WAL_FRAME as u32;
        let content: Vec<u8> = (0..5 * MIB).map(|n| (n / 7 % 251) as u8).collect();
        let bytes = |from: u32, to: u32| &content[from as usize..to as usize];

        let frames = KeptFrames::new();
        // One that is kept, one that is too short, and one behind a gap.
        assert_eq!(sealed(&frames, &repository, 0, bytes(0, 700_000)).await, [700_000]);
        assert_eq!(sealed(&frames, &repository, 700_000, bytes(700_000, 700_100)).await, [100]);
        let behind = sealed(&frames, &repository, 2_000_000, bytes(2_000_000, 4_000_000)).await;
        assert_eq!(behind, [MIB, 2_000_000 - MIB]);

        let between = 2_000_000 - 700_000 - MIB;
        let last = 5 * MIB - 4_000_000 - MIB;
        let whole = sealed(&frames, &repository, 0, &content).await;
        assert_eq!(whole, [700_000, MIB, between, MIB, 2_000_000 - MIB, MIB, last]);

        // A kept frame that is longer than what is asked for isn't taken.
        assert_eq!(sealed(&frames, &repository, 0, bytes(0, 600_000)).await, [600_000]);
        // Neither is one of another level, nor where nothing is kept.
        let other = open(3).await.unwrap();
        std::fs::remove_dir_all(folder.path().join("repo/clusters/main")).unwrap();
        assert_eq!(sealed(&frames, &other, 0, &content).await, [MIB; 5]);
        std::fs::remove_dir_all(folder.path().join("repo/clusters/main")).unwrap();
        assert_eq!(sealed(&KeptFrames::none(), &repository, 0, &content).await, [MIB; 5]);
    }

    #[tokio::test]
    async fn no_more_is_kept_than_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Arc::new(Local::open_or_make(&folder.path().join("repo")).unwrap());
        Repository::init(storage.as_ref(), &KeyMaterial::None).await.unwrap();
        let repository = Repository::open("main", storage, &KeyMaterial::None, 1).await.unwrap();
        let mut state = 1u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let content: Vec<u8> = (0..16 << 20).map(|_| random()).collect();
        let frames = KeptFrames::new();
        sealed(&frames, &repository, 0, &content).await;
        let kept = frames.kept().unwrap();
        let stored_bytes: usize = kept.frames.values().map(|frame| frame.stored_bytes()).sum();
        assert_eq!(stored_bytes, kept.stored_bytes);
        assert!((MOST / 2..=MOST).contains(&stored_bytes), "{stored_bytes}");
    }
}
