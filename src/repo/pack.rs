//! Packs: where blocks and leaves lie, in frames of some 256 KiB.
//!
//! A frame is a stretch of what a backup stores, in the order in which it came: pages of one file,
//! a batch of small files, changed pages from here and there, or leaves. Data packs are numbered
//! from 0; packs of leaves from [`FIRST_LEAF_PACK`], so that a tree can be read without touching
//! the packs that hold the data.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use tokio::sync::Mutex;

use super::{
    BackupId, Repository,
    layout::ClusterLayout,
    sealed::ObjectReader,
    tree::{BackupTable, Place},
};
use crate::error::{Error, Kind, Result};

/// How many raw bytes a frame has, but for a pack's last ones.
pub const FRAME: usize = 256 << 10;

/// How many raw bytes a pack has at least before the next one is begun.
pub const PACK: u64 = 256 << 20;

/// The number of a backup's first pack of leaves.
pub const FIRST_LEAF_PACK: u32 = 900_000;

/// Gives out places: fills frames one after the other, and packs with them, by raw bytes alone, so
/// that where a block lies doesn't depend on how it compresses.
#[derive(Debug)]
pub struct FrameFiller {
    backup: u32,
    pack: u32,
    frame: u32,
    in_pack: u64,
    filling: Vec<u8>,
}

/// A frame that is full, to be sealed as frame `frame` of pack `pack`.
#[derive(Debug)]
pub struct FullFrame {
    /// The pack's number.
    pub pack: u32,
    /// The frame's number in it.
    pub frame: u32,
    /// Its raw bytes.
    pub raw: Bytes,
    /// Whether it is the pack's last.
    pub ends_pack: bool,
}

impl FrameFiller {
    /// Fills packs from `first_pack` on; `backup` is the number that places get.
    pub fn new(backup: u32, first_pack: u32) -> Self {
        FrameFiller {
            backup,
            pack: first_pack,
            frame: 0,
            in_pack: 0,
            filling: Vec::with_capacity(FRAME),
        }
    }

    /// Adds bytes that must lie in one frame, and says where they do. When they don't fit into the
    /// frame being filled, that one is full and returned.
    pub fn add(&mut self, bytes: &[u8]) -> (Place, Option<FullFrame>) {
        let full = (!self.filling.is_empty() && self.filling.len() + bytes.len() > FRAME)
            .then(|| self.next_frame());
        let place = Place {
            backup: self.backup,
            pack: self.pack,
            frame: self.frame,
            offset: self.filling.len() as u32,
        };
        self.filling.extend_from_slice(bytes);
        (place, full)
    }

    fn next_frame(&mut self) -> FullFrame {
        let raw = std::mem::replace(&mut self.filling, Vec::with_capacity(FRAME));
        self.next_of(raw.into())
    }

    fn next_of(&mut self, raw: Bytes) -> FullFrame {
        self.in_pack += raw.len() as u64;
        let ends_pack = self.in_pack >= PACK;
        let full = FullFrame { pack: self.pack, frame: self.frame, raw, ends_pack };
        if ends_pack {
            self.pack += 1;
            self.frame = 0;
            self.in_pack = 0;
        } else {
            self.frame += 1;
        }
        full
    }

    /// Makes a frame of its own of `raw`, which has at most [`FRAME`] bytes and isn't copied, and
    /// says where it begins. What was being filled is returned before it.
    pub fn add_frame(&mut self, raw: Bytes) -> (Place, Option<FullFrame>, FullFrame) {
        let before = (!self.filling.is_empty()).then(|| self.next_frame());
        let place = Place { backup: self.backup, pack: self.pack, frame: self.frame, offset: 0 };
        (place, before, self.next_of(raw))
    }

    /// The last frame, if anything is in it.
    pub fn finish(mut self) -> Option<FullFrame> {
        (!self.filling.is_empty()).then(|| FullFrame { ends_pack: true, ..self.next_frame() })
    }
}

/// Reads frames of the packs that a backup's tree refers to. Shared between threads.
///
/// Each pack's closing frame is read once and kept; the packs in use at a time are few.
pub struct PackReader {
    repository: Repository,
    layout: ClusterLayout,
    open: Mutex<BTreeMap<(BackupId, u32), Arc<ObjectReader>>>,
}

/// How many packs' closing frames are kept.
const OPEN_PACKS: usize = 64;

impl PackReader {
    /// A reader of packs of this cluster.
    pub fn new(repository: &Repository, layout: &ClusterLayout) -> Self {
        PackReader {
            repository: repository.clone(),
            layout: layout.clone(),
            open: Mutex::default(),
        }
    }

    /// The cluster's names.
    pub fn layout(&self) -> &ClusterLayout {
        &self.layout
    }

    /// The repository that is read.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The pack, with its header checked and its closing frame read.
    pub async fn pack(&self, backup: &BackupId, pack: u32) -> Result<Arc<ObjectReader>> {
        let mut open = self.open.lock().await;
        let key = (backup.clone(), pack);
        if let Some(reader) = open.get(&key) {
            return Ok(reader.clone());
        }
        let name = self.layout.pack(backup, pack);
        let reader = ObjectReader::open(&self.repository, &name).await?;
        reader.check_header(&self.repository).await?;
        let reader = Arc::new(reader);
        if open.len() >= OPEN_PACKS {
            open.pop_first();
        }
        open.insert(key, reader.clone());
        Ok(reader)
    }

    /// The raw bytes of a frame.
    pub async fn frame(&self, table: &BackupTable, place: Place) -> Result<Vec<u8>> {
        let backup = table.get(place.backup).ok_or_else(|| {
            Error::new(Kind::Internal, format!("no backup has number {}", place.backup))
        })?;
        let pack = self.pack(backup, place.pack).await?;
        pack.frame(&self.repository, place.frame.into()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_hold_what_was_added_where_it_was_said() {
        let mut filler = FrameFiller::new(0, 7);
        let mut frames = Vec::new();
        let mut placed = Vec::new();
        for i in 0..100u8 {
            let bytes = vec![i; 5_000 + usize::from(i) * 100];
            let (place, full) = filler.add(&bytes);
            frames.extend(full);
            placed.push((place, bytes));
        }
        frames.extend(filler.finish());
        assert!(frames.len() > 2);
        for (place, bytes) in placed {
            let frame = frames.iter().find(|f| (f.pack, f.frame) == (place.pack, place.frame));
            let at = place.offset as usize;
            assert_eq!(frame.unwrap().raw[at..at + bytes.len()], bytes[..]);
        }
        assert!(frames.iter().all(|f| f.raw.len() <= FRAME));
        assert_eq!(frames.iter().filter(|f| f.ends_pack).count(), 1);
    }
}
