//! Walking the backups' trees: what they say has to fit together, and which blocks must be where.
//!
//! The first walk goes through all trees and compares what they say: paths in order, the number of
//! entries and their bytes, the digest of each file with the hashes of its blocks, the packs that are
//! led to with the list that deletions go by. A file or a leaf that several backups have in common is
//! looked at once.
//!
//! Which block with which hash lies where takes 32 bytes a block, so that is collected for some packs
//! at a time ([`Trees::collect`]), however large the backups are.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::Arc,
};

use super::{
    findings::{Finding, Loss, damage},
    report::ProblemKind,
};
use crate::{
    error::{Error, Result},
    postgres::{
        Lsn, backup_label::BACKUP_LABEL, control::CONTROL_FILE, control::ControlFile,
        page::RelationFile,
    },
    repo::{
        BackupId, Repository,
        layout::ClusterLayout,
        manifest::Manifest,
        pack::PackReader,
        record::BackupRecord,
        tree::{
            BLOCK, BackupTable, Block, BlockHasher, DigestBuilder, Extent, FileEntry, FileKind,
            FileMap, Place, first_block, leaf_len,
        },
        tree_reader::TreeReader,
    },
    storage::ObjectName,
};

/// How many blocks are known at a time, if nothing else is said: some 64 MB, for 16 GB of files.
pub const MOST: usize = 2_000_000;

/// Files without which a backup isn't one.
const NEEDED: [&str; 3] = [BACKUP_LABEL, CONTROL_FILE, "PG_VERSION"];

/// Blocks of a relation's file, where no control file says it.
const SEGMENT_BLOCKS: u32 = 131_072;

/// A pack: the number of the backup that stored it, and its own.
pub type PackId = (u32, u32);

/// A block that has to be where a tree says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    /// Where it lies.
    pub place: Place,
    /// Its hash.
    pub hash: u64,
    /// Its length in bytes.
    pub len: u16,
    /// Its number in its relation's fork, if it is a page whose checksum is to be compared, else
    /// [`NO_PAGE`].
    page: u32,
}

/// No page has this number (`MaxBlockNumber`).
const NO_PAGE: u32 = u32::MAX;

impl Wanted {
    /// The block's number in its relation's fork, if it is a page whose checksum is to be compared.
    pub fn page(&self) -> Option<u32> {
        (self.page != NO_PAGE).then_some(self.page)
    }
}

/// A backup whose tree is walked.
pub struct Root {
    /// The backup.
    pub record: BackupRecord,
    /// Its manifest.
    pub manifest: Manifest,
    /// Whether its tree could be walked to its end.
    pub walked: bool,
}

/// Pages of a backup's own packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRule {
    /// Whether they carry checksums.
    pub checksums: bool,
    /// Pages from here on may be torn: WAL repairs them.
    pub start_lsn: Lsn,
}

/// A place that a block of a file has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Used {
    /// Where.
    pub place: Place,
    /// Whose file.
    pub backup: BackupId,
    /// The file.
    pub path: String,
    /// Which of its blocks.
    pub block: u64,
}

/// The trees of some backups, with one numbering of backups for all.
pub struct Trees {
    repository: Repository,
    layout: ClusterLayout,
    hasher: BlockHasher,
    reader: TreeReader,
    /// What backup numbers mean.
    pub table: BackupTable,
    /// The roots.
    pub roots: Vec<Root>,
    /// Of the backups that stored blocks, by number.
    pub rules: BTreeMap<u32, PageRule>,
    /// How many blocks there are, by pack.
    pub blocks: BTreeMap<PackId, u64>,
    /// How many blocks may be known at a time.
    most: usize,
}

/// What has been seen on a walk.
#[derive(Default)]
struct Seen {
    files: HashSet<u64>,
    leaves: HashSet<Extent>,
    hashing: RandomState,
}

impl Seen {
    /// Whether a file with this map is met for the first time.
    fn is_new(&mut self, entry: &FileEntry) -> bool {
        let mut hash = self.hashing.build_hasher();
        entry.path.hash(&mut hash);
        if let FileKind::File { size, digest, map } = &entry.kind {
            (size, digest).hash(&mut hash);
            match map {
                FileMap::Inline(blocks) => blocks.iter().for_each(|block| match block {
                    Block::Zero => 0u64.hash(&mut hash),
                    Block::Stored { place, hash: own } => (place, own).hash(&mut hash),
                }),
                FileMap::Leaves(map) => map.extents.hash(&mut hash),
            }
        }
        self.files.insert(hash.finish())
    }
}

impl Trees {
    /// For trees in this repository; so many blocks may be known at a time.
    pub fn new(repository: &Repository, layout: &ClusterLayout, most: usize) -> Self {
        let packs = Arc::new(PackReader::new(repository, layout));
        Trees {
            repository: repository.clone(),
            layout: layout.clone(),
            hasher: BlockHasher::new(repository.keyring()),
            reader: TreeReader::new(packs),
            table: BackupTable::default(),
            roots: Vec::new(),
            rules: BTreeMap::new(),
            blocks: BTreeMap::new(),
            most,
        }
    }

    /// Adds a backup.
    pub fn add(&mut self, record: BackupRecord, mut manifest: Manifest) {
        for extent in &mut manifest.leaves {
            if let Some(backup) = manifest.table.get(extent.place.backup) {
                extent.place.backup = self.table.number(backup);
            }
        }
        self.roots.push(Root { record, manifest, walked: true });
    }

    /// Says how the pages of a backup's own packs are to be checked.
    pub fn rule(&mut self, record: &BackupRecord) {
        let number = self.table.number(&record.id);
        let rule = PageRule { checksums: record.data_checksums, start_lsn: record.start_lsn };
        self.rules.insert(number, rule);
    }

    /// The name of a pack.
    pub fn pack(&self, (backup, pack): PackId) -> Option<ObjectName> {
        Some(self.layout.pack(self.table.get(backup)?, pack))
    }

    /// The first walk. Returns the blocks too, if they aren't too many.
    pub async fn check(&mut self) -> Result<(Vec<Finding>, Option<Vec<Wanted>>)> {
        let (mut findings, mut seen) = (Vec::new(), Seen::default());
        let mut wanted = Some(Vec::new());
        for number in 0..self.roots.len() {
            if let Err(finding) = self.check_root(number, &mut seen, &mut wanted).await? {
                self.roots[number].walked = false;
                findings.push(finding);
            }
        }
        Ok((findings, wanted))
    }

    /// Walks one tree. A finding ends it: what is behind isn't known.
    async fn check_root(
        &mut self,
        root: usize,
        seen: &mut Seen,
        wanted: &mut Option<Vec<Wanted>>,
    ) -> Result<Result<(), Finding>> {
        let record = self.roots[root].record.clone();
        let id = record.id.clone();
        let name = self.layout.of_backup(&id, "manifest");
        let inconsistent = |what: String| {
            Finding::of(ProblemKind::Inconsistent, &name, what)
                .costs(Loss::of_backups([id.clone()]))
                .in_folder(&id)
        };
        let named: BTreeSet<PackId> = {
            let table = &mut self.table;
            let references = self.roots[root].manifest.references.iter();
            references.map(|r| (table.number(&r.backup), r.pack)).collect()
        };
        let segment_blocks = match self.segment_blocks(root).await {
            Ok(blocks) => blocks,
            Err(e) => return self.unreadable(root, e).map(Err),
        };
        let leaves = self.roots[root].manifest.leaves.clone();
        let mut needed = NEEDED.to_vec();
        let (mut entries, mut bytes, mut before) = (0u64, 0u64, Vec::new());
        for extent in leaves {
            let leaf = match self.reader.file_leaf(&mut self.table, extent).await {
                Ok(leaf) => leaf,
                Err(e) => return self.unreadable(root, e).map(Err),
            };
            if leaf.items.first().is_none_or(|first| first.path <= before) {
                return Ok(Err(inconsistent("its file leaves aren't in order".into())));
            }
            let over = leaf.over.as_ref().map(|(whole, _)| *whole);
            for place in [Some(extent), over].into_iter().flatten().map(|extent| extent.place) {
                if !named.contains(&(place.backup, place.pack)) {
                    return Ok(Err(inconsistent(self.unnamed(place, "a file leaf"))));
                }
            }
            entries += leaf.items.len() as u64;
            for entry in leaf.items {
                before.clone_from(&entry.path);
                let FileKind::File { size, .. } = &entry.kind else { continue };
                bytes = bytes.saturating_add(*size);
                needed.retain(|path| path.as_bytes() != entry.path);
                let path = String::from_utf8_lossy(&entry.path).into_owned();
                if let Some(place) = not_among(&entry, &named) {
                    return Ok(Err(inconsistent(self.unnamed(place, &path))));
                }
                if !seen.is_new(&entry) {
                    continue;
                }
                match self.check_file(&entry, segment_blocks, seen, wanted).await {
                    Ok(Ok(())) => {}
                    Ok(Err(what)) => return Ok(Err(inconsistent(format!("{path}: {what}")))),
                    Err(e) => return self.unreadable(root, e).map(Err),
                }
            }
        }
        let facts = &self.roots[root].manifest.facts;
        if (entries, bytes) != (facts.entries, facts.bytes) {
            return Ok(Err(inconsistent(format!(
                "it says {} entries and {} bytes, its tree has {entries} and {bytes}",
                facts.entries, facts.bytes
            ))));
        }
        Ok(match needed.first() {
            Some(path) => Err(inconsistent(format!("there is no {path} in its tree"))),
            None => Ok(()),
        })
    }

    fn unnamed(&self, place: Place, what: &str) -> String {
        let pack = self.pack((place.backup, place.pack)).map(|name| name.to_string());
        format!(
            "{what} leads to {}, which its reference list doesn't name: a deletion may take it away",
            pack.unwrap_or_default()
        )
    }

    /// That a leaf can't be read.
    fn unreadable(&self, root: usize, e: Error) -> Result<Finding> {
        let text = e.to_string();
        let what = damage(e)?;
        let id = &self.roots[root].record.id;
        let address = format!(" in {}", self.repository.storage().address());
        let named = text.split(&address).next().and_then(|text| text.split(' ').next_back());
        let name = named.and_then(|name| ObjectName::new(name).ok());
        let name = name.unwrap_or_else(|| self.layout.of_backup(id, "manifest"));
        Ok(Finding::of(ProblemKind::Damaged, &name, what)
            .costs(Loss::of_backups([id.clone()]))
            .in_folder(id))
    }

    /// A file's map: its digest, and the packs that it leads to.
    async fn check_file(
        &mut self,
        entry: &FileEntry,
        segment_blocks: u32,
        seen: &mut Seen,
        wanted: &mut Option<Vec<Wanted>>,
    ) -> Result<Result<(), String>> {
        let FileKind::File { size, digest, map } = &entry.kind else { return Ok(Ok(())) };
        let mut found = self.hasher.digest(*size);
        let page = first_page(&entry.path, segment_blocks);
        match map {
            FileMap::Inline(blocks) => {
                self.add_blocks(blocks, 0, *size, page, &mut |wanted_now, trees| {
                    trees.count(wanted_now, wanted);
                });
                self.hash_blocks(blocks, 0, *size, &mut found);
            }
            FileMap::Leaves(map) => {
                let uses: BTreeSet<PackId> = map.uses.iter().map(|u| (u.backup, u.pack)).collect();
                for (index, extent) in map.extents.iter().enumerate() {
                    let count = leaf_len(*size, index);
                    let leaf = self.reader.map_leaf(&mut self.table, *extent, count).await?;
                    let over = leaf.over.as_ref().map(|(whole, _)| whole.place);
                    let stored = leaf.items.iter().filter_map(|block| match block {
                        Block::Stored { place, .. } => Some(*place),
                        Block::Zero => None,
                    });
                    let mut places = [Some(extent.place), over].into_iter().flatten().chain(stored);
                    if let Some(place) = places.find(|p| !uses.contains(&(p.backup, p.pack))) {
                        return Ok(Err(self.unnamed(place, "its map")));
                    }
                    let first = first_block(index);
                    self.hash_blocks(&leaf.items, first, *size, &mut found);
                    if seen.leaves.insert(*extent) {
                        self.add_blocks(&leaf.items, first, *size, page, &mut |one, trees| {
                            trees.count(one, wanted);
                        });
                    }
                }
            }
        }
        Ok(if found.finish() == *digest {
            Ok(())
        } else {
            Err("its map doesn't fit its digest".to_owned())
        })
    }

    fn hash_blocks(&self, blocks: &[Block], first: u64, size: u64, digest: &mut DigestBuilder) {
        for (number, block) in (first..).zip(blocks) {
            digest.add(match block {
                Block::Stored { hash, .. } => *hash,
                Block::Zero => match block_len(size, number) {
                    BLOCK => self.hasher.zero_block(),
                    len => self.hasher.block(&[0; BLOCK][..len]),
                },
            });
        }
    }

    /// Tells of each stored block of a file what has to be where.
    fn add_blocks(
        &mut self,
        blocks: &[Block],
        first: u64,
        size: u64,
        page: Option<u32>,
        add: &mut dyn FnMut(Wanted, &mut Self),
    ) {
        for (number, block) in (first..).zip(blocks) {
            let Block::Stored { place, hash } = block else { continue };
            let len = block_len(size, number);
            let checksums = self.rules.get(&place.backup).is_some_and(|rule| rule.checksums);
            let page = page.filter(|_| checksums && len == BLOCK);
            let page = page.map_or(NO_PAGE, |page| page.wrapping_add(number as u32));
            add(Wanted { place: *place, hash: *hash, len: len as u16, page }, self);
        }
    }

    fn count(&mut self, one: Wanted, wanted: &mut Option<Vec<Wanted>>) {
        *self.blocks.entry((one.place.backup, one.place.pack)).or_default() += 1;
        if let Some(list) = wanted {
            list.push(one);
            if list.len() > self.most {
                *wanted = None;
            }
        }
    }

    /// The blocks that must lie in some packs, in no order. A tree that could be walked before and
    /// can't be any more is left out, and told.
    pub async fn collect(
        &mut self,
        packs: &BTreeSet<PackId>,
    ) -> Result<(Vec<Wanted>, Vec<Finding>)> {
        let (mut wanted, mut findings) = (Vec::new(), Vec::new());
        let mut seen = Seen::default();
        for root in 0..self.roots.len() {
            if !self.roots[root].walked {
                continue;
            }
            if let Err(e) = self.collect_root(root, packs, &mut seen, &mut wanted).await {
                findings.push(self.unreadable(root, e)?);
                self.roots[root].walked = false;
            }
        }
        Ok((wanted, findings))
    }

    async fn collect_root(
        &mut self,
        root: usize,
        packs: &BTreeSet<PackId>,
        seen: &mut Seen,
        wanted: &mut Vec<Wanted>,
    ) -> Result<()> {
        let segment_blocks = self.segment_blocks(root).await?;
        let mut add = |one: Wanted, _: &mut Self| {
            if packs.contains(&(one.place.backup, one.place.pack)) {
                wanted.push(one);
            }
        };
        for extent in self.roots[root].manifest.leaves.clone() {
            if !seen.leaves.insert(extent) {
                continue;
            }
            let leaf = self.reader.file_leaf(&mut self.table, extent).await?;
            for entry in leaf.items.iter().filter(|entry| may_use(entry, packs)) {
                let FileKind::File { size, map, .. } = &entry.kind else { continue };
                if !seen.is_new(entry) {
                    continue;
                }
                let page = first_page(&entry.path, segment_blocks);
                match map {
                    FileMap::Inline(blocks) => self.add_blocks(blocks, 0, *size, page, &mut add),
                    FileMap::Leaves(map) => {
                        for (index, extent) in map.extents.iter().enumerate() {
                            if !seen.leaves.insert(*extent) {
                                continue;
                            }
                            let count = leaf_len(*size, index);
                            let leaf =
                                self.reader.map_leaf(&mut self.table, *extent, count).await?;
                            let first = first_block(index);
                            self.add_blocks(&leaf.items, first, *size, page, &mut add);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Which files have blocks in some frames: backup, pack, frame. At most `most` of each backup.
    pub async fn users(
        &mut self,
        frames: &BTreeSet<(u32, u32, u32)>,
        most: usize,
    ) -> Result<Vec<Used>> {
        let packs: BTreeSet<PackId> =
            frames.iter().map(|(backup, pack, _)| (*backup, *pack)).collect();
        let is_in = |place: &Place| frames.contains(&(place.backup, place.pack, place.frame));
        let mut used = Vec::new();
        for root in 0..self.roots.len() {
            let (walked, id) = (self.roots[root].walked, self.roots[root].record.id.clone());
            if !walked {
                continue;
            }
            let before = used.len();
            for extent in self.roots[root].manifest.leaves.clone() {
                if used.len() - before >= most {
                    break;
                }
                let leaf = self.reader.file_leaf(&mut self.table, extent).await?;
                for entry in leaf.items.iter().filter(|entry| may_use(entry, &packs)) {
                    let FileKind::File { size, map, .. } = &entry.kind else { continue };
                    let path = String::from_utf8_lossy(&entry.path).into_owned();
                    let mut add = |first: u64, blocks: &[Block]| {
                        for (block, stored) in (first..).zip(blocks) {
                            if let Block::Stored { place, .. } = stored
                                && is_in(place)
                            {
                                let (backup, path) = (id.clone(), path.clone());
                                used.push(Used { place: *place, backup, path, block });
                            }
                        }
                    };
                    match map {
                        FileMap::Inline(blocks) => add(0, blocks),
                        FileMap::Leaves(map) => {
                            for (index, extent) in map.extents.iter().enumerate() {
                                let count = leaf_len(*size, index);
                                let leaf =
                                    self.reader.map_leaf(&mut self.table, *extent, count).await?;
                                add(first_block(index), &leaf.items);
                            }
                        }
                    }
                }
            }
        }
        Ok(used)
    }

    /// How many blocks a relation's file has, by the control file in a backup's tree.
    async fn segment_blocks(&mut self, root: usize) -> Result<u32> {
        for extent in self.roots[root].manifest.leaves.clone() {
            let leaf = self.reader.file_leaf(&mut self.table, extent).await?;
            let control = leaf.items.iter().find(|e| e.path == CONTROL_FILE.as_bytes());
            let Some(FileKind::File { map: FileMap::Inline(blocks), size, .. }) =
                control.map(|entry| &entry.kind)
            else {
                continue;
            };
            let Some(Block::Stored { place, .. }) = blocks.first() else { break };
            let frame = match self.reader.packs().frame(&self.table, *place).await {
                Ok(frame) => frame,
                // It is told when the pack is read.
                Err(e) => return damage(e).map(|_| SEGMENT_BLOCKS),
            };
            let start = place.offset as usize;
            let bytes = frame.get(start..start + block_len(*size, 0)).unwrap_or_default();
            return Ok(ControlFile::parse(bytes).map_or(SEGMENT_BLOCKS, |c| c.segment_blocks));
        }
        Ok(SEGMENT_BLOCKS)
    }
}

/// The length of a file's block.
fn block_len(size: u64, number: u64) -> usize {
    size.saturating_sub(number * BLOCK as u64).min(BLOCK as u64) as usize
}

/// The number in its fork of a relation file's first block.
fn first_page(path: &[u8], segment_blocks: u32) -> Option<u32> {
    let file = RelationFile::parse(std::str::from_utf8(path).ok()?)?;
    Some(file.first_block(segment_blocks))
}

/// Whether a file may have blocks in some packs.
fn may_use(entry: &FileEntry, packs: &BTreeSet<PackId>) -> bool {
    let FileKind::File { map, .. } = &entry.kind else { return false };
    match map {
        FileMap::Inline(blocks) => blocks.iter().any(|block| match block {
            Block::Stored { place, .. } => packs.contains(&(place.backup, place.pack)),
            Block::Zero => false,
        }),
        FileMap::Leaves(map) => map.uses.iter().any(|u| packs.contains(&(u.backup, u.pack))),
    }
}

/// Something of a file that lies in none of these packs.
fn not_among(entry: &FileEntry, packs: &BTreeSet<PackId>) -> Option<Place> {
    let FileKind::File { map, .. } = &entry.kind else { return None };
    let is_out = |place: &Place| !packs.contains(&(place.backup, place.pack));
    match map {
        FileMap::Inline(blocks) => blocks.iter().find_map(|block| match block {
            Block::Stored { place, .. } => Some(*place).filter(is_out),
            Block::Zero => None,
        }),
        FileMap::Leaves(map) => {
            let places = map.uses.iter().map(|u| Place {
                backup: u.backup,
                pack: u.pack,
                frame: 0,
                offset: 0,
            });
            places.into_iter().find(is_out)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_takes_as_much_memory_as_is_said() {
        assert_eq!(size_of::<Wanted>(), 32);
    }
}
