//! Reading a backup's tree: file leaves and map leaves, whatever form they are stored in.

use std::{collections::HashMap, sync::Arc};

use super::{
    codec::Malformed,
    pack::PackReader,
    tree::{
        BackupTable, Block, Extent, FileEntry, FileLeaf, MapLeaf, Place, decode_file_leaf,
        decode_map_leaf,
    },
};
use crate::error::{Error, Kind, Result};

/// Where frames are read from: the packs of a repository ([`PackReader`]), but in tests.
pub trait ReadFrames: Send + Sync {
    /// The raw bytes of the frame that a place is in; `table` is what its backup number means.
    fn frame(
        &self,
        table: &BackupTable,
        place: Place,
    ) -> impl Future<Output = Result<Vec<u8>>> + Send;

    /// The object that a place is in, as a person finds it.
    fn object(&self, table: &BackupTable, place: Place) -> String;
}

impl ReadFrames for PackReader {
    async fn frame(&self, table: &BackupTable, place: Place) -> Result<Vec<u8>> {
        PackReader::frame(self, table, place).await
    }

    fn object(&self, table: &BackupTable, place: Place) -> String {
        let address = self.repository().storage().address();
        match table.get(place.backup) {
            Some(backup) => format!("{} in {address}", self.layout().pack(backup, place.pack)),
            None => format!("pack {} in {address}", place.pack),
        }
    }
}

/// How many frames of leaves are kept, about 256 KiB each.
const KEPT_FRAMES: usize = 8;

/// A leaf as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadLeaf<T> {
    /// What is in it.
    pub items: Vec<T>,
    /// When it is stored as a patch: the whole leaf it is over, and what is in that.
    pub over: Option<(Extent, Vec<T>)>,
}

impl<T> ReadLeaf<T> {
    /// The whole leaf under it, which is the leaf at `extent` itself unless that is a patch.
    pub fn whole(&self, extent: Extent) -> (Extent, &[T]) {
        match &self.over {
            Some((whole, items)) => (*whole, items),
            None => (extent, &self.items),
        }
    }
}

/// Reads leaves of trees. Quick when they are read in the order in which they were stored.
pub struct TreeReader<F = PackReader> {
    packs: Arc<F>,
    leaves: Frames,
    /// For the whole leaves that patches are over: they are in other packs.
    bases: Frames,
}

/// The last frames of leaves that were read.
#[derive(Default)]
struct Frames(HashMap<(u32, u32, u32), Arc<Vec<u8>>>);

impl<F: ReadFrames> TreeReader<F> {
    /// A reader of leaves in `packs`.
    pub fn new(packs: Arc<F>) -> Self {
        TreeReader { packs, leaves: Frames::default(), bases: Frames::default() }
    }

    /// The packs it reads.
    pub fn packs(&self) -> &F {
        &self.packs
    }

    /// The entries of a file leaf, in order of their paths.
    pub async fn file_leaf(
        &mut self,
        table: &mut BackupTable,
        extent: Extent,
    ) -> Result<ReadLeaf<FileEntry>> {
        let raw = self.leaves.read(self.packs.as_ref(), table, extent).await?;
        let leaf = decode_file_leaf(&raw, table).map_err(|e| self.damaged(table, extent, e))?;
        let patch = match leaf {
            FileLeaf::Whole(items) => return Ok(ReadLeaf { items, over: None }),
            FileLeaf::Patch(patch) => patch,
        };
        let base = patch.base;
        let raw = self.bases.read(self.packs.as_ref(), table, base).await?;
        match decode_file_leaf(&raw, table) {
            Ok(FileLeaf::Whole(whole)) => {
                let items = patch.apply(whole.clone());
                Ok(ReadLeaf { items, over: Some((base, whole)) })
            }
            Ok(FileLeaf::Patch(_)) => Err(self.damaged(table, base, "a patch is over a patch")),
            Err(e) => Err(self.damaged(table, base, e)),
        }
    }

    /// The blocks of a map leaf, which must be `count`.
    pub async fn map_leaf(
        &mut self,
        table: &mut BackupTable,
        extent: Extent,
        count: usize,
    ) -> Result<ReadLeaf<Block>> {
        let raw = self.leaves.read(self.packs.as_ref(), table, extent).await?;
        let leaf = decode_map_leaf(&raw, table).map_err(|e| self.damaged(table, extent, e))?;
        let read = match leaf {
            MapLeaf::Whole(items) => ReadLeaf { items, over: None },
            MapLeaf::Patch(patch) => {
                let raw = self.bases.read(self.packs.as_ref(), table, patch.base).await?;
                let whole = match decode_map_leaf(&raw, table) {
                    Ok(MapLeaf::Whole(whole)) => whole,
                    Ok(MapLeaf::Patch(_)) => {
                        return Err(self.damaged(table, patch.base, "a patch is over a patch"));
                    }
                    Err(e) => return Err(self.damaged(table, patch.base, e)),
                };
                let items =
                    patch.apply(whole.clone()).map_err(|e| self.damaged(table, extent, e))?;
                ReadLeaf { items, over: Some((patch.base, whole)) }
            }
        };
        if read.items.len() != count {
            let what = format!("a map leaf has {} blocks instead of {count}", read.items.len());
            return Err(self.damaged(table, extent, what));
        }
        Ok(read)
    }

    /// The error that a leaf is damaged.
    pub fn damaged(
        &self,
        table: &BackupTable,
        extent: Extent,
        what: impl std::fmt::Display,
    ) -> Error {
        damaged(self.packs.as_ref(), table, extent, what)
    }
}

impl Frames {
    /// The bytes of a leaf.
    async fn read(
        &mut self,
        packs: &impl ReadFrames,
        table: &BackupTable,
        extent: Extent,
    ) -> Result<Vec<u8>> {
        let Extent { place, len } = extent;
        let key = (place.backup, place.pack, place.frame);
        let frame = match self.0.get(&key) {
            Some(frame) => frame.clone(),
            None => {
                let frame = Arc::new(packs.frame(table, place).await?);
                if self.0.len() >= KEPT_FRAMES {
                    self.0.clear();
                }
                self.0.insert(key, frame.clone());
                frame
            }
        };
        let start = place.offset as usize;
        let bytes = frame.get(start..start.saturating_add(len as usize));
        let outside = Malformed { what: "leaf, which lies outside its frame,", at: start };
        Ok(bytes.ok_or_else(|| damaged(packs, table, extent, outside))?.to_vec())
    }
}

fn damaged(
    packs: &impl ReadFrames,
    table: &BackupTable,
    extent: Extent,
    what: impl std::fmt::Display,
) -> Error {
    let object = packs.object(table, extent.place);
    let message = format!("{object} is damaged: frame {}: {what}", extent.place.frame);
    Error::new(Kind::Damaged, message)
}
