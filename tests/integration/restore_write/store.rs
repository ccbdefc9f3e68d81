//! Files in memory, and storing them as a backup, without a server and without the pipeline.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
};

use chrono::Utc;
use pgkeep::{
    postgres::{Lsn, SegmentSize, Timeline},
    repo::{
        BackupId, BackupType, Repository, SystemId, catalog,
        keys::{KeyMaterial, read_key_file, write_key_file},
        layout::ClusterLayout,
        manifest::{ClusterFacts, Manifest, Reference},
        pack::{FIRST_LEAF_PACK, FrameFiller, FullFrame},
        record::{BackupRecord, Sizes, Source, Tablespace},
        sealed::{SealedWriter, put_sealed},
        tree::{
            BLOCK, BackupTable, Block, BlockHasher, Extent, FileEntry, FileKind, FileMap,
            INLINE_BLOCKS, LEAF_BLOCKS, LEAF_FILES, LeafMap, PackedChange, PackedEntry, Patch,
            Place, Use, encode_file_leaf, encode_file_patch, encode_map_leaf, encode_map_patch,
        },
    },
    storage::local::Local,
};

/// A file's permissions and content.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    pub mode: u32,
    pub bytes: Vec<u8>,
}

/// What a data directory holds, tablespaces below `pg_tblspc/<oid>`.
#[derive(Clone, Default)]
pub struct Files {
    pub files: BTreeMap<String, Content>,
    pub directories: BTreeMap<String, u32>,
    pub tablespaces: Vec<Tablespace>,
}

impl Files {
    pub fn put(&mut self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.put_with_mode(path, 0o600, bytes);
    }

    pub fn put_with_mode(&mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) {
        let mut above = path;
        while let Some((folder, _)) = above.rsplit_once('/') {
            self.directories.entry(folder.into()).or_insert(0o700);
            above = folder;
        }
        self.files.insert(path.into(), Content { mode, bytes: bytes.into() });
    }

    /// Everything below `root`, links to directories followed.
    pub fn read(root: &Path) -> Self {
        let mut found = Files::default();
        found.read_below(root, "");
        found
    }

    fn read_below(&mut self, folder: &Path, name: &str) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let below = entry.file_name().into_string().unwrap();
            let below = if name.is_empty() { below } else { format!("{name}/{below}") };
            let meta = fs::metadata(entry.path()).unwrap();
            let mode = meta.permissions().mode() & 0o7777;
            if meta.is_dir() {
                self.directories.insert(below.clone(), mode);
                self.read_below(&entry.path(), &below);
            } else {
                let bytes = fs::read(entry.path()).unwrap();
                self.files.insert(below, Content { mode, bytes });
            }
        }
    }
}

/// A new repository in `root`.
pub async fn new_repository(root: &Path, encrypted: bool) -> (Repository, ClusterLayout) {
    fs::create_dir_all(root).unwrap();
    let storage = Local::open(root).unwrap();
    let key = root.with_extension("key");
    if encrypted {
        write_key_file(&key).unwrap();
    }
    let material = || match encrypted {
        true => KeyMaterial::KeyFile(read_key_file(&key).unwrap()),
        false => KeyMaterial::None,
    };
    Repository::init(&storage, &material()).await.unwrap();
    let repository = Repository::open("main", Arc::new(storage), &material(), 1).await.unwrap();
    (repository, ClusterLayout::new("main").unwrap())
}

/// A stored backup, and what a later one needs to refer to it.
pub struct Stored {
    pub record: BackupRecord,
    maps: BTreeMap<String, (Vec<Block>, Vec<Extent>)>,
    /// Which of the extents are patches, each with the leaf that it is over.
    patches: Vec<(Extent, Extent)>,
    leaves: Vec<StoredLeaf>,
}

/// A file leaf.
struct StoredLeaf {
    extent: Extent,
    entries: Vec<PackedEntry>,
    /// The whole leaf that it is a patch over.
    over: Option<Extent>,
}

impl Stored {
    /// Pretends that two blocks of a file lie each where the other does.
    pub fn exchange_blocks(&mut self, path: &str, a: usize, b: usize) {
        let blocks = &mut self.maps.get_mut(path).unwrap().0;
        let (
            Block::Stored { place: at_a, hash: hash_a },
            Block::Stored { place: at_b, hash: hash_b },
        ) = (blocks[a], blocks[b])
        else {
            panic!("both are stored");
        };
        blocks[a] = Block::Stored { place: at_b, hash: hash_a };
        blocks[b] = Block::Stored { place: at_a, hash: hash_b };
        // So that the leaves are stored anew.
        self.maps.get_mut(path).unwrap().1.clear();
    }
}

/// How many raw bytes a pack of these tests has: small, so that there are several.
const SMALL_PACK: usize = 2 << 20;

struct Packs<'a> {
    repository: &'a Repository,
    layout: &'a ClusterLayout,
    id: &'a BackupId,
    number: u32,
    filler: Option<FrameFiller>,
    pack: u32,
    in_pack: usize,
    writer: Option<SealedWriter>,
}

impl Packs<'_> {
    async fn add(&mut self, bytes: &[u8]) -> Place {
        if self.in_pack >= SMALL_PACK {
            self.end_pack().await;
            self.pack += 1;
        }
        let (number, pack) = (self.number, self.pack);
        let filler = self.filler.get_or_insert_with(|| FrameFiller::new(number, pack));
        let (place, full) = filler.add(bytes);
        self.in_pack += bytes.len();
        if let Some(full) = full {
            self.store(full).await;
        }
        place
    }

    async fn store(&mut self, full: FullFrame) {
        if self.writer.is_none() {
            let name = self.layout.pack(self.id, full.pack);
            self.writer = Some(SealedWriter::create(self.repository, &name).await.unwrap());
        }
        self.writer.as_mut().unwrap().seal(&full.raw).await.unwrap();
    }

    async fn end_pack(&mut self) {
        if let Some(full) = self.filler.take().and_then(FrameFiller::finish) {
            self.store(full).await;
        }
        if let Some(writer) = self.writer.take() {
            writer.finish(&[]).await.unwrap();
        }
        self.in_pack = 0;
    }
}

/// Stores files in the order of `order` as backup `id`. With a `base`, blocks and leaves that it has
/// are referred to. Backup numbers are those of `table`, which is shared by all backups.
pub async fn store(
    (repository, layout): (&Repository, &ClusterLayout),
    id: &str,
    files: &Files,
    order: &[&String],
    base: Option<&Stored>,
    table: &mut BackupTable,
) -> Stored {
    store_as((repository, layout), id, files, order, base, table, |_| {}).await
}

/// As [`store`], with what `describe` makes of the record.
pub async fn store_as(
    (repository, layout): (&Repository, &ClusterLayout),
    id: &str,
    files: &Files,
    order: &[&String],
    base: Option<&Stored>,
    table: &mut BackupTable,
    describe: impl FnOnce(&mut BackupRecord),
) -> Stored {
    let id: BackupId = id.parse().unwrap();
    if !catalog::exists(repository, &layout.of_backup(&id, "begin")).await.unwrap() {
        put_sealed(repository, &layout.of_backup(&id, "begin"), b"").await.unwrap();
    }
    let hasher = BlockHasher::new(repository.keyring());
    let number = table.number(&id);
    let packs = |pack| Packs {
        repository,
        layout,
        id: &id,
        number,
        filler: None,
        pack,
        in_pack: 0,
        writer: None,
    };
    let (mut data, mut leaves) = (packs(0), packs(FIRST_LEAF_PACK));
    let mut live: BTreeMap<(u32, u32), u64> = BTreeMap::new();
    let mut entries = Vec::new();
    let mut maps = BTreeMap::new();
    let mut patches = base.map(|base| base.patches.clone()).unwrap_or_default();
    let mut stored_bytes = 0;
    let unordered: Vec<&String> = files.files.keys().filter(|k| !order.contains(k)).collect();
    for path in order.iter().copied().chain(unordered) {
        let Content { mode, bytes } = &files.files[path];
        let before = base.and_then(|base| base.maps.get(path));
        let mut digest = hasher.digest(bytes.len() as u64);
        let mut blocks = Vec::new();
        for (i, block) in bytes.chunks(BLOCK).enumerate() {
            let hash = hasher.block(block);
            digest.add(hash);
            if block == [0; BLOCK] {
                blocks.push(Block::Zero);
                continue;
            }
            let same = before
                .and_then(|(blocks, _)| blocks.get(i))
                .filter(|b| matches!(b, Block::Stored { hash: known, .. } if *known == hash));
            let block = match same {
                Some(known) => *known,
                None => {
                    stored_bytes += block.len() as u64;
                    Block::Stored { place: data.add(block).await, hash }
                }
            };
            blocks.push(block);
        }
        let mut used: BTreeMap<(u32, u32), u64> = BTreeMap::new();
        let mut using = |place: &Place, len: usize| {
            *used.entry((place.backup, place.pack)).or_default() += len as u64;
        };
        for (block, bytes) in blocks.iter().zip(bytes.chunks(BLOCK)) {
            if let Block::Stored { place, .. } = block {
                using(place, bytes.len());
            }
        }
        let mut extents = Vec::new();
        let map = if blocks.len() <= INLINE_BLOCKS {
            FileMap::Inline(blocks.clone())
        } else {
            for (i, part) in blocks.chunks(LEAF_BLOCKS).enumerate() {
                let known =
                    before.and_then(|(b, e)| Some((b.chunks(LEAF_BLOCKS).nth(i)?, *e.get(i)?)));
                let (raw, base) = match known {
                    Some((old, extent)) if old == part => {
                        extents.push(extent);
                        continue;
                    }
                    Some((old, extent)) if over(&patches, &extent).is_none() => {
                        let changed =
                            |(i, b): (usize, &Block)| (old.get(i) != Some(b)).then_some((i, *b));
                        let changes = part.iter().enumerate().filter_map(changed).collect();
                        let patch = Patch { base: extent, count: part.len(), changes };
                        (encode_map_patch(&patch, table), Some(extent))
                    }
                    _ => (encode_map_leaf(part, table), None),
                };
                let extent = Extent { place: leaves.add(&raw).await, len: raw.len() as u32 };
                patches.extend(base.map(|base| (extent, base)));
                extents.push(extent);
            }
            // A patch leads to the leaf that it is over.
            for extent in extents.iter().flat_map(|e| [Some(e), over(&patches, e)]).flatten() {
                using(&extent.place, extent.len as usize);
            }
            let uses = used.iter().map(|(&(backup, pack), &live)| Use { backup, pack, live });
            FileMap::Leaves(LeafMap { extents: extents.clone(), uses: uses.collect() })
        };
        for (pack, len) in used {
            *live.entry(pack).or_default() += len;
        }
        let kind = FileKind::File { size: bytes.len() as u64, digest: digest.finish(), map };
        let path_bytes = path.clone().into_bytes();
        entries.push(PackedEntry::new(&FileEntry { path: path_bytes, mode: *mode, kind }));
        maps.insert(path.clone(), (blocks, extents));
    }
    for (path, mode) in &files.directories {
        let path = path.clone().into_bytes();
        entries.push(PackedEntry::new(&FileEntry { path, mode: *mode, kind: FileKind::Directory }));
    }
    entries.sort();
    data.end_pack().await;
    let mut file_leaves = Vec::new();
    let mut rest = entries.as_slice();
    // Over a base, the leaves have its boundaries.
    for (number, before) in base.iter().flat_map(|base| &base.leaves).enumerate() {
        let next = base.and_then(|base| base.leaves.get(number + 1)).map(|leaf| &leaf.entries[0]);
        let (these, others) =
            rest.split_at(next.map_or(rest.len(), |next| {
                rest.partition_point(|entry| entry.path() < next.path())
            }));
        rest = others;
        assert!(!these.is_empty(), "no backup of the tests loses all of a leaf");
        let whole = encode_file_leaf(these.iter(), table).unwrap();
        let changes = changes(&before.entries, these);
        let patch = encode_file_patch(before.extent, &changes, table).unwrap();
        let (extent, over) = if changes.is_empty() {
            (before.extent, before.over)
        } else if before.over.is_none() && patch.len() * 4 <= whole.len() {
            (put(&mut leaves, &patch).await, Some(before.extent))
        } else {
            (put(&mut leaves, &whole).await, None)
        };
        file_leaves.push(StoredLeaf { extent, entries: these.to_vec(), over });
    }
    for part in rest.chunks(LEAF_FILES.min(100)) {
        let extent = put(&mut leaves, &encode_file_leaf(part.iter(), table).unwrap()).await;
        file_leaves.push(StoredLeaf { extent, entries: part.to_vec(), over: None });
    }
    for extent in file_leaves.iter().flat_map(|leaf| [Some(leaf.extent), leaf.over]).flatten() {
        *live.entry((extent.place.backup, extent.place.pack)).or_default() += u64::from(extent.len);
    }
    leaves.end_pack().await;
    let bytes = files.files.values().map(|f| f.bytes.len() as u64).sum();
    let references: BTreeSet<Reference> = live
        .iter()
        .map(|(&(backup, pack), &live)| Reference {
            backup: table.get(backup).unwrap().clone(),
            pack,
            live,
        })
        .collect();
    let manifest = Manifest {
        facts: ClusterFacts {
            format: 1,
            backup: id.clone(),
            block_size: 8192,
            directory_mode: 0o700,
            tablespaces: files.tablespaces.clone(),
            entries: entries.len() as u64,
            bytes,
        },
        leaves: file_leaves.iter().map(|leaf| leaf.extent).collect(),
        table: table.clone(),
        references: references.into_iter().collect(),
    };
    manifest.create(repository, layout).await.unwrap();
    let mut record = record(&id, files, bytes, stored_bytes);
    describe(&mut record);
    catalog::commit(repository, layout, &record).await.unwrap();
    Stored { record, maps, patches, leaves: file_leaves }
}

async fn put(packs: &mut Packs<'_>, leaf: &[u8]) -> Extent {
    Extent { place: packs.add(leaf).await, len: leaf.len() as u32 }
}

/// What makes `now` of `before`.
fn changes(before: &[PackedEntry], now: &[PackedEntry]) -> Vec<PackedChange> {
    let gone = before.iter().map(PackedEntry::path);
    let gone = gone.filter(|path| now.iter().all(|entry| entry.path() != *path));
    let gone = gone.map(|path| PackedChange::Gone(path.into()));
    let new = now.iter().filter(|entry| !before.contains(entry));
    let mut changes: Vec<_> = new.cloned().map(PackedChange::Is).chain(gone).collect();
    changes.sort_by(|a, b| a.path().cmp(b.path()));
    changes
}

/// The leaf that a patch is over, if it is one.
fn over<'a>(patches: &'a [(Extent, Extent)], extent: &Extent) -> Option<&'a Extent> {
    patches.iter().find(|(patch, _)| patch == extent).map(|(_, base)| base)
}

/// The record of a backup of these files.
pub fn record(id: &BackupId, files: &Files, bytes: u64, raw: u64) -> BackupRecord {
    BackupRecord {
        format: 1,
        id: id.clone(),
        cluster: "main".into(),
        kind: BackupType::Full,
        asked: BackupType::Full,
        why: None,
        base: None,
        way: None,
        why_compared: None,
        uses: BTreeMap::new(),
        label: "test".into(),
        system: SystemId { major: 15, identifier: 7_450_000_000_000_000_001 },
        server_version: "15.18".into(),
        source: Source::Primary,
        timeline: Timeline(1),
        start_lsn: Lsn(0x200_0028),
        stop_lsn: Lsn(0x200_0100),
        segment_size: SegmentSize::DEFAULT,
        started_at: Utc::now(),
        stopped_at: Utc::now(),
        data_checksums: false,
        bad_pages: Default::default(),
        held_until: None,
        sizes: Sizes {
            files: files.files.len() as u64,
            cluster: bytes,
            sent: bytes,
            changed: raw,
            raw,
            stored: raw,
        },
        warnings: Vec::new(),
        tablespaces: files.tablespaces.clone(),
        pgkeep: "test".into(),
    }
}

/// Pages that don't repeat and hold no zero block, `count` of them.
pub fn pages(seed: u64, count: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count * BLOCK);
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for _ in 0..count * BLOCK / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&(state & 0x0F0F_0F0F_0F0F_0F0F).to_le_bytes());
    }
    bytes
}
