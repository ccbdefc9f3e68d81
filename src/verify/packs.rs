//! Packs read whole, each once whatever number of backups share it: every frame is opened, and every
//! block that a tree says is in it has to be there, with the hash that the tree has for it.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    findings::{Done, damage},
    report::Checked,
    tree::{PackId, PageRule, Wanted},
};
use crate::{
    error::Result,
    postgres::page,
    progress::Progress,
    repo::{
        Repository,
        catalog::exists,
        sealed::{Frames, ObjectReader},
        tree::{BLOCK, BlockHasher},
    },
    storage::ObjectName,
};

/// A pack to read.
pub struct Pack {
    /// Its numbers, if trees may lead to it.
    pub id: Option<PackId>,
    /// Its object.
    pub name: ObjectName,
    /// Stored bytes.
    pub stored: u64,
    /// All blocks that are known, sorted by place.
    pub wanted: Arc<Vec<Wanted>>,
    /// How its pages are checked.
    pub rule: Option<PageRule>,
}

/// What is wrong in a pack.
#[derive(Debug, Default)]
pub struct Wrong {
    /// What is wrong with the object itself.
    pub damaged: Option<String>,
    /// The frames that can't be opened, or in which a block isn't what it should be; all, if the
    /// object as a whole can't be read.
    pub frames: Option<BTreeSet<u32>>,
    /// Pages whose own checksum is wrong.
    pub pages: Vec<Wanted>,
}

/// A pack that was read.
pub struct ReadPack {
    /// Its numbers.
    pub id: Option<PackId>,
    /// Its object.
    pub name: ObjectName,
    /// Whether it isn't there any more.
    pub gone: bool,
    /// What is wrong with it.
    pub wrong: Wrong,
    /// What was looked at.
    pub done: Done,
}

/// Reads a pack.
pub async fn read(
    repository: Repository,
    hasher: BlockHasher,
    pack: Pack,
    progress: Arc<dyn Progress>,
) -> Result<ReadPack> {
    let mut reading = Reading {
        repository: &repository,
        hasher: &hasher,
        pack: &pack,
        checked: Checked { objects: 1, packs: 1, bytes: pack.stored, ..Checked::default() },
        wrong: Wrong { frames: Some(BTreeSet::new()), ..Wrong::default() },
        progress: progress.as_ref(),
        told: 0,
    };
    let mut gone = false;
    if let Err(e) = reading.all().await {
        let what = damage(e)?;
        gone = !exists(&repository, &pack.name).await?;
        reading.wrong.damaged.get_or_insert(what);
        reading.wrong.frames = None;
    }
    let Reading { checked, wrong, told, .. } = reading;
    progress.advance(pack.stored.saturating_sub(told));
    let done = Done { checked, ..Done::default() };
    Ok(ReadPack { id: pack.id, name: pack.name, gone, wrong, done })
}

struct Reading<'a> {
    repository: &'a Repository,
    hasher: &'a BlockHasher,
    pack: &'a Pack,
    checked: Checked,
    wrong: Wrong,
    progress: &'a dyn Progress,
    /// How many stored bytes were told of.
    told: u64,
}

impl Reading<'_> {
    async fn all(&mut self) -> Result<()> {
        let reader = ObjectReader::open(self.repository, &self.pack.name).await?;
        reader.check_header(self.repository).await?;
        let together = self.repository.storage().capabilities().read_together;
        let wanted = self.pack.wanted.clone();
        let mut wanted = match self.pack.id {
            Some((backup, pack)) => {
                let of = |w: &Wanted| (w.place.backup, w.place.pack);
                let from = wanted.partition_point(|w| of(w) < (backup, pack));
                let to = wanted.partition_point(|w| of(w) <= (backup, pack));
                wanted.get(from..to).unwrap_or_default().to_vec()
            }
            None => Vec::new(),
        };
        wanted.dedup();
        let mut rest = wanted.as_slice();
        let count = reader.frame_count() as u64;
        let mut next = 0;
        while next < count {
            let mut end = next;
            let mut bytes = 0;
            while end < count && (end == next || bytes < together) {
                bytes += u64::from(reader.raw_len(end).unwrap_or_default());
                end += 1;
            }
            let frames = reader.fetch_frames(self.repository, next..end).await?;
            for number in next..end {
                let here = rest.partition_point(|w| u64::from(w.place.frame) <= number);
                let (blocks, behind) = rest.split_at(here);
                rest = behind;
                self.frame(&reader, number, &frames, blocks)?;
            }
            let read = (self.pack.stored * end / count).saturating_sub(self.told);
            self.told += read;
            self.progress.advance(read);
            next = end;
        }
        if let Some(beyond) = rest.first() {
            self.bad(beyond.place.frame, format!("it has no frame {}", beyond.place.frame));
        }
        Ok(())
    }

    /// Opens a frame, and compares the blocks that have to be in it.
    fn frame(
        &mut self,
        reader: &ObjectReader,
        number: u64,
        frames: &Frames,
        blocks: &[Wanted],
    ) -> Result<()> {
        let frame = number as u32;
        let raw = match reader.open_frame(self.repository, number, frames) {
            Ok(raw) => raw,
            Err(e) => {
                self.bad(frame, damage(e)?);
                return Ok(());
            }
        };
        for wanted in blocks {
            let start = wanted.place.offset as usize;
            let block = raw.get(start..start + usize::from(wanted.len));
            let Some(block) = block.filter(|block| self.hasher.block(block) == wanted.hash) else {
                let what =
                    format!("frame {frame} doesn't hold the blocks that backups say it does");
                self.bad(frame, what);
                continue;
            };
            self.checked.blocks += 1;
            if let (Some(page), Some(rule)) = (wanted.page(), self.pack.rule)
                && rule.checksums
                && block.len() == BLOCK
                && !page::is_new(block)
                && page::lsn(block) < rule.start_lsn
            {
                self.checked.pages += 1;
                if page::checksum(block, page) != page::stored_checksum(block) {
                    self.wrong.pages.push(*wanted);
                }
            }
        }
        Ok(())
    }

    fn bad(&mut self, frame: u32, what: String) {
        self.wrong.damaged.get_or_insert(what);
        if let Some(frames) = &mut self.wrong.frames {
            frames.insert(frame);
        }
    }
}
