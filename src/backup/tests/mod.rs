//! The pipeline with a made-up source: what went in comes out of the repository again.

mod maps;
mod over_base;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use proptest::prelude::*;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::{
    base::Base,
    pipeline::{self, Lane, Setup, Stored},
    source::{Fed, FileSink, Source, SourceEnd},
    tree::{Tree, TreeBuilder},
};
use crate::{
    error::{Error, Kind, Result},
    postgres::{Lsn, Timeline, page},
    progress::{Progress, Silent},
    repo::{
        BackupId, Repository,
        keys::KeyMaterial,
        layout::ClusterLayout,
        manifest::{ClusterFacts, Manifest},
        pack::{FIRST_LEAF_PACK, PackReader},
        tree::{
            BLOCK, BackupTable, Block, BlockHasher, Extent, FileDigest, FileKind, FileMap,
            block_count, leaf_len,
        },
        tree_reader::{ReadFrames, ReadLeaf, TreeReader},
    },
    storage::local::Local,
};

const END: SourceEnd =
    SourceEnd { stop_lsn: Lsn(0x300_0100), timeline: Timeline(1), checksum_failures: false };

/// Directories (no content) and files, given in pieces of some length.
#[derive(Clone)]
struct MadeUp {
    members: Vec<(String, Option<Vec<u8>>)>,
    piece: usize,
    at: usize,
    /// Fails instead of ending.
    breaks: bool,
}

impl MadeUp {
    fn new(members: Vec<(String, Option<Vec<u8>>)>, piece: usize) -> Self {
        MadeUp { members, piece, at: 0, breaks: false }
    }
}

#[async_trait]
impl Source for MadeUp {
    async fn feed(&mut self, sink: &mut dyn FileSink) -> Result<Fed> {
        let Some((path, content)) = self.members.get(self.at) else {
            return if self.breaks {
                Err(Error::new(Kind::Postgres, "the connection broke"))
            } else {
                Ok(Fed::End(END))
            };
        };
        self.at += 1;
        let Some(content) = content else {
            sink.directory(path.as_bytes(), 0o700)?;
            return Ok(Fed::More(0));
        };
        sink.begin_file(path.as_bytes(), 0o600, content.len() as u64)?;
        for piece in content.chunks(self.piece) {
            sink.data(piece)?;
        }
        sink.end_file()?;
        Ok(Fed::More(content.len() as u64))
    }
}

const FIRST: &str = "20261120T195812Z-full";

struct House {
    _folder: tempfile::TempDir,
    repository: Repository,
    setup: Setup,
    writing: mpsc::Sender<()>,
    all_written: mpsc::Receiver<()>,
}

fn house(segment_blocks: Option<u32>) -> House {
    let folder = tempfile::tempdir().unwrap();
    let local = Arc::new(Local::open(folder.path()).unwrap());
    let key = KeyMaterial::KeyFile(Zeroizing::new([7; 32]));
    let repository = futures(async {
        Repository::init(local.as_ref(), &key).await.unwrap();
        Repository::open("main", local.clone(), &key, 1).await.unwrap()
    });
    let (writing, all_written) = mpsc::channel(1);
    let setup = Setup {
        layout: ClusterLayout::new("main").unwrap(),
        id: FIRST.parse::<BackupId>().unwrap(),
        threads: 2,
        start_lsn: Lsn(0x300_0000),
        segment_blocks,
    };
    House { _folder: folder, repository, setup, writing, all_written }
}

impl House {
    /// A lane over the backup `base`, for the backup that `setup` names.
    async fn lane(&self, base: Option<&str>) -> Lane {
        let mut table = TreeBuilder::table(&self.setup.id);
        let base = match base {
            None => None,
            Some(id) => {
                let id = id.parse().unwrap();
                let layout = &self.setup.layout;
                Some(Base::read(&self.repository, layout, &id, &mut table).await.unwrap())
            }
        };
        let (repository, writing) = (self.repository.clone(), self.writing.clone());
        Lane { repository, base, table, writing }
    }

    /// Stores the manifest, so that the backup can be a base.
    async fn keep(&self, stored: &Stored) {
        let manifest = Manifest {
            facts: ClusterFacts {
                format: 1,
                backup: self.setup.id.clone(),
                block_size: BLOCK as u32,
                directory_mode: 0o700,
                tablespaces: vec![],
                entries: stored.tree.entries,
                bytes: stored.tree.bytes,
            },
            leaves: stored.tree.leaves.clone(),
            table: stored.tree.table.clone(),
            references: stored.tree.references.clone(),
        };
        manifest.create(&self.repository, &self.setup.layout).await.unwrap();
    }
}

fn futures<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

async fn run(house: &House, mut source: MadeUp) -> Result<Stored> {
    run_over(house, None, &mut source).await
}

async fn run_over(house: &House, base: Option<&str>, source: &mut dyn Source) -> Result<Stored> {
    let progress: Arc<dyn Progress> = Arc::new(Silent);
    let lanes = vec![house.lane(base).await];
    let mut read = pipeline::run(source, &house.setup, lanes, &progress).await?;
    assert_eq!(read.end, END);
    assert_eq!(read.lanes.len(), 1);
    read.lanes.remove(0)
}

/// A file as the tree has it.
struct ReadFile {
    size: u64,
    digest: FileDigest,
    blocks: Vec<Block>,
}

/// Everything in the tree: a directory is none. What the tree leads to must be just what it says it
/// refers to. `look` sees each map leaf.
async fn read_maps<F: ReadFrames>(
    packs: Arc<F>,
    tree: &Tree,
    mut look: impl FnMut(Extent, &ReadLeaf<Block>),
) -> (BackupTable, BTreeMap<String, Option<ReadFile>>) {
    let mut leaves = TreeReader::new(packs);
    let mut table = tree.table.clone();
    let mut found = BTreeMap::new();
    let mut used: BTreeMap<(u32, u32), u64> = BTreeMap::new();
    let mut count =
        |backup: u32, pack: u32, len: u64| *used.entry((backup, pack)).or_default() += len;
    for extent in &tree.leaves {
        let leaf = leaves.file_leaf(&mut table, *extent).await.unwrap();
        count(extent.place.backup, extent.place.pack, extent.len.into());
        if let Some((whole, _)) = leaf.over {
            count(whole.place.backup, whole.place.pack, whole.len.into());
        }
        for entry in leaf.items {
            let path = String::from_utf8(entry.path).unwrap();
            let FileKind::File { size, digest, map } = entry.kind else {
                assert!(found.insert(path, None).is_none());
                continue;
            };
            let mut blocks = Vec::new();
            match map {
                FileMap::Inline(inline) => blocks = inline,
                FileMap::Leaves(map) => {
                    for (number, extent) in map.extents.into_iter().enumerate() {
                        let expected = leaf_len(size, number);
                        let leaf = leaves.map_leaf(&mut table, extent, expected).await.unwrap();
                        look(extent, &leaf);
                        count(extent.place.backup, extent.place.pack, extent.len.into());
                        if let Some((whole, _)) = leaf.over {
                            count(whole.place.backup, whole.place.pack, whole.len.into());
                        }
                        blocks.extend(leaf.items);
                    }
                }
            }
            assert_eq!(blocks.len() as u64, block_count(size), "{path}");
            for (block, at) in blocks.iter().zip((0..size).step_by(BLOCK)) {
                if let Block::Stored { place, .. } = block {
                    count(place.backup, place.pack, (size - at).min(BLOCK as u64));
                }
            }
            assert!(found.insert(path, Some(ReadFile { size, digest, blocks })).is_none());
        }
    }
    let id = |number| table.get(number).unwrap().clone();
    let mut used: Vec<_> = used.into_iter().map(|((b, pack), live)| (id(b), pack, live)).collect();
    used.sort();
    let said: Vec<_> = tree.references.iter().map(|r| (r.backup.clone(), r.pack, r.live)).collect();
    assert_eq!(used, said);
    (table, found)
}

/// The content of everything in the tree, with the files' digests recomputed.
async fn read_back(house: &House, stored: &Stored) -> BTreeMap<String, Option<Vec<u8>>> {
    let packs = Arc::new(PackReader::new(&house.repository, &house.setup.layout));
    let hasher = BlockHasher::new(house.repository.keyring());
    let mut frame = (None, Vec::new());
    let (table, files) = read_maps(packs.clone(), &stored.tree, |_, _| {}).await;
    let mut found = BTreeMap::new();
    for (path, file) in files {
        let Some(ReadFile { size, digest, blocks }) = file else {
            found.insert(path, None);
            continue;
        };
        let mut content = Vec::new();
        let mut builder = hasher.digest(size);
        for block in blocks {
            let len = BLOCK.min(size as usize - content.len());
            match block {
                Block::Zero => {
                    builder.add(hasher.zero_block());
                    content.resize(content.len() + len, 0);
                }
                Block::Stored { place, hash } => {
                    let key = Some((place.backup, place.pack, place.frame));
                    if frame.0 != key {
                        frame = (key, packs.frame(&table, place).await.unwrap());
                    }
                    let bytes = &frame.1[place.offset as usize..][..len];
                    assert_eq!(hasher.block(bytes), hash);
                    builder.add(hash);
                    content.extend_from_slice(bytes);
                }
            }
        }
        assert_eq!(builder.finish(), digest, "{path}");
        assert_eq!(content.len() as u64, size, "{path}");
        found.insert(path, Some(content));
    }
    found
}

/// Bytes that don't repeat.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    let mut bytes = vec![0; len];
    reader.fill(&mut bytes);
    bytes
}

fn file(path: &str, content: Vec<u8>) -> (String, Option<Vec<u8>>) {
    (path.to_owned(), Some(content))
}

#[test]
fn what_goes_in_comes_out() {
    let house = house(None);
    let mut holes = noise(3_000 * BLOCK, 1);
    holes[100 * BLOCK..1_500 * BLOCK].fill(0);
    holes[2_999 * BLOCK..].fill(0);
    let members = vec![
        file("backup_label", noise(226, 2)),
        ("global".into(), None),
        file("base/1/holes", holes),
        ("base".into(), None),
        file("base/1/zeros", vec![0; 2_000 * BLOCK]),
        file("base/1/short zeros", vec![0; 100]),
        file("base/1/empty", vec![]),
        file("base/1/four", noise(4 * BLOCK, 3)),
        file("base/1/five", noise(4 * BLOCK + 1, 4)),
        file("base/1/leaf", noise(1024 * BLOCK, 5)),
        file("base/1/leaf+", noise(1024 * BLOCK + 5, 6)),
        file("global/pg_control", noise(BLOCK, 7)),
    ];
    let expected: BTreeMap<_, _> = members.iter().cloned().collect();
    let found = futures(async {
        let stored = run(&house, MadeUp::new(members, 32 << 10)).await.unwrap();
        assert_eq!((stored.tree.entries, stored.tree.files), (12, 10));
        let blocks = stored.tree.references.iter().filter(|used| used.pack < FIRST_LEAF_PACK);
        let raw: u64 = blocks.map(|used| used.live).sum();
        assert_eq!(stored.tree.changed, raw);
        let sizes = [226, 1_599 * BLOCK, 100, 8 * BLOCK + 1, 2_048 * BLOCK + 5, BLOCK];
        assert_eq!(raw, sizes.iter().sum::<usize>() as u64);
        read_back(&house, &stored).await
    });
    assert!(found == expected);
}

#[test]
fn many_small_things_do_not_pile_up() {
    let house = house(None);
    let mut members = vec![file("first", vec![1])];
    members.extend((0..20_000).map(|n| (format!("d/{n}"), None)));
    members.extend((0..20_000).map(|n| file(&format!("e/{n}"), vec![])));
    members.extend((0..1_000).map(|n| file(&format!("s/{n}"), noise(n % 300, n as u64))));
    let expected: BTreeMap<_, _> = members.iter().cloned().collect();
    let found = futures(async {
        let stored = run(&house, MadeUp::new(members, 512)).await.unwrap();
        assert!(stored.tree.leaves.len() > 10);
        read_back(&house, &stored).await
    });
    assert!(found == expected);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn pieces_of_any_length_give_the_same_tree(
        piece in 1usize..40_000,
        files in prop::collection::vec((0usize..60_000, any::<bool>()), 0..20),
    ) {
        let house = house(None);
        let content = |(n, (len, zero)): (usize, &(usize, bool))| {
            let mut bytes = noise(*len, n as u64);
            if *zero {
                bytes[len / 3..].fill(0);
            }
            file(&format!("base/{n}"), bytes)
        };
        let members: Vec<_> = files.iter().enumerate().map(content).collect();
        let expected: BTreeMap<_, _> = members.iter().cloned().collect();
        let found = futures(async {
            let stored = run(&house, MadeUp::new(members, piece)).await.unwrap();
            read_back(&house, &stored).await
        });
        prop_assert!(found == expected);
    }
}

#[test]
fn a_path_that_comes_twice_is_refused() {
    let house = house(None);
    let members = vec![file("base/1", vec![1]), file("base/2", vec![2]), file("base/1", vec![1])];
    let error = futures(run(&house, MadeUp::new(members, 100))).err().unwrap();
    assert!(error.to_string().contains("base/1 twice"), "{error}");
}

#[test]
fn a_stream_that_breaks_leaves_nothing_whole() {
    let mut house = house(None);
    let mut source = MadeUp::new(vec![file("base/1", noise(5 << 20, 1))], 8192);
    source.breaks = true;
    let error = futures(run(&house, source)).err().unwrap();
    assert_eq!(error.kind(), Kind::Postgres);
    let packs = house.setup.layout.packs_folder(&house.setup.id);
    let listed = futures(house.repository.storage().list(&packs, None, 10)).unwrap();
    assert!(listed.is_empty());
    // All that could still have written is gone.
    drop(house.writing);
    assert_eq!(futures(house.all_written.recv()), None);
}

#[test]
fn what_storing_fails_with_is_what_the_backup_fails_with() {
    let house = house(None);
    // The first pack's name is taken: what storing fails with must not be hidden by the stream,
    // which breaks off then.
    let name = house.setup.layout.pack(&house.setup.id, 0);
    futures(house.repository.storage().put(&name, "taken".into())).unwrap();
    let members = vec![file("base/1", noise(20 << 20, 1)), file("base/2", noise(20 << 20, 2))];
    let error = futures(run(&house, MadeUp::new(members, 8192))).err().unwrap();
    assert_eq!(error.kind(), Kind::Conflict, "{error}");
}

#[test]
fn pages_with_wrong_checksums_are_found() {
    let house = house(Some(10));
    let good = |block: u32, lsn: u64| {
        let mut page = noise(BLOCK, block.into());
        page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        page[14..16].copy_from_slice(&8000u16.to_le_bytes());
        let sum = page::checksum(&page, block);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    };
    let bad = |block: u32, lsn: u64| {
        let mut page = good(block, lsn);
        page[5000] ^= 1;
        page
    };
    let old = 0x200_0000;
    let pages = |first: u32, bad_at: &[u32], torn_at: &[u32]| -> Vec<u8> {
        (first..first + 10)
            .flat_map(|n| match (bad_at.contains(&n), torn_at.contains(&n)) {
                (true, _) => bad(n, old),
                (_, true) => bad(n, 0x300_0000),
                _ if n % 10 == 7 => vec![0; BLOCK],
                _ => good(n, old),
            })
            .collect()
    };
    let members = vec![
        file("base/5/100", pages(0, &[3], &[4])),
        file("base/5/100.1", pages(10, &[18, 19], &[])),
        file("base/5/pg_filenode.map", pages(0, &[1], &[])),
        file("pg_tblspc/77/PG_15_202209061/5/9_vm", pages(0, &[], &[])),
        file("base/5/other", pages(0, &[1], &[])),
        file("base/5/101", [pages(0, &[], &[]), vec![1; 100]].concat()),
    ];
    let stored = futures(run(&house, MadeUp::new(members, 10_000))).unwrap();
    let found: Vec<_> =
        stored.tree.suspects.pages.iter().map(|bad| (bad.path.as_str(), bad.page)).collect();
    assert_eq!(found, [("base/5/100", 3), ("base/5/100.1", 8), ("base/5/100.1", 9)]);
    assert_eq!(stored.tree.suspects.count, 3);
}
