//! Page maps beside plain arrays of pages, through thousands of histories.
//!
//! What is tried is what a backup and a restore do with maps, from the stream's blocks to the lookup
//! of a page in a later backup: [`TreeBuilder`], [`Base`] and the reader of trees. Frames stay in
//! memory, and a page's number stands for its hash. So that files of many map leaves are cheap, leaves
//! are short ([`with_leaves_of`]); some histories have leaves as they are.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use proptest::{
    prelude::*,
    test_runner::{Config, RngSeed, TestRunner},
};

use super::{House, ReadFile, house, read_maps};
use crate::{
    backup::{
        base::Base,
        cut::{Batch, Item},
        tree::{Tree, TreeBuilder},
        work::Looked,
    },
    error::Result,
    repo::{
        BackupId,
        pack::FullFrame,
        tree::{
            BLOCK, BackupTable, Block, BlockHasher, Extent, FileMap, INLINE_BLOCKS, LEAF_BLOCKS,
            Place, with_leaves_of,
        },
        tree_reader::{ReadFrames, ReadLeaf},
    },
};

/// What a page holds: nothing, or what has this number.
type Page = Option<u64>;

/// Files by path, each a plain array of pages.
type Cluster = BTreeMap<String, Vec<Page>>;

/// What happens to a file between two backups. Positions and lengths are in percents of the longest
/// that a file can be, for leaves of any length.
#[derive(Debug, Clone)]
enum Change {
    /// Each page gets something new, or what many pages have had.
    Write {
        at: usize,
        pages: usize,
        new: bool,
    },
    Zero {
        at: usize,
        percent: usize,
    },
    /// Past its end, by pages that hold something or don't.
    Extend {
        percent: usize,
        written: bool,
    },
    Truncate {
        to: usize,
    },
    /// Gone, and made anew with as many pages.
    Remake {
        percent: usize,
    },
    Drop,
}

/// What happens up to a backup, and how that is taken.
#[derive(Debug, Clone)]
struct Day {
    changes: Vec<(usize, Change)>,
    /// Over the first backup and not over the last.
    differential: bool,
    /// The server knows what changed, and says of so many other pages that they did (one of each so
    /// many; none).
    knows: Option<Option<usize>>,
    /// How many pages a batch has at most.
    batch: usize,
}

#[derive(Debug, Clone)]
struct History {
    /// How many blocks a map leaf has.
    leaf: usize,
    /// How many leaves the longest file has.
    leaves: usize,
    /// In percents of that.
    first: Vec<usize>,
    days: Vec<Day>,
}

const FILES: usize = 2;

fn a_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (0usize..100, 1usize..6, any::<bool>())
            .prop_map(|(at, pages, new)| Change::Write { at, pages, new }),
        1 => (0usize..100, 1usize..40).prop_map(|(at, percent)| Change::Zero { at, percent }),
        2 => (1usize..50, any::<bool>())
            .prop_map(|(percent, written)| Change::Extend { percent, written }),
        2 => (0usize..100).prop_map(|to| Change::Truncate { to }),
        1 => (0usize..=100).prop_map(|percent| Change::Remake { percent }),
        1 => Just(Change::Drop),
    ]
}

fn a_day() -> impl Strategy<Value = Day> {
    let knows = prop::option::of(prop::option::of(1usize..20));
    let changes = prop::collection::vec((0..FILES, a_change()), 0..5);
    (changes, prop::bool::weighted(0.25), knows, 1usize..=32).prop_map(
        |(changes, differential, knows, batch)| Day { changes, differential, knows, batch },
    )
}

/// With leaves of so many blocks.
fn a_history(leaf: impl Strategy<Value = usize>) -> impl Strategy<Value = History> {
    let first = prop::collection::vec(0usize..=100, FILES);
    (leaf, 1usize..=4, first, prop::collection::vec(a_day(), 1..5))
        .prop_map(|(leaf, leaves, first, days)| History { leaf, leaves, first, days })
}

/// Something that no page has had yet.
fn new(written: &mut u64) -> Page {
    *written += 1;
    Some(*written)
}

/// Makes a change to a file of a cluster in which none is longer than `longest`.
fn make(cluster: &mut Cluster, file: usize, change: &Change, longest: usize, written: &mut u64) {
    let path = format!("base/{file}");
    let part = |percent: usize| longest * percent / 100;
    if let Change::Remake { percent } = change {
        cluster.insert(path, (0..part(*percent)).map(|_| new(written)).collect());
        return;
    }
    let Some(pages) = cluster.get_mut(&path) else { return };
    match *change {
        Change::Write { at, pages: count, new: is_new } => {
            for page in pages.iter_mut().skip(part(at)).take(count) {
                *page = if is_new { new(written) } else { Some(1) };
            }
        }
        Change::Zero { at, percent } => {
            pages.iter_mut().skip(part(at)).take(part(percent)).for_each(|page| *page = None);
        }
        Change::Extend { percent, written: holds } => {
            let len = (pages.len() + part(percent)).min(longest);
            pages.resize_with(len, || if holds { new(written) } else { None });
        }
        Change::Truncate { to } => pages.truncate(part(to)),
        Change::Remake { .. } => {}
        Change::Drop => {
            cluster.remove(&path);
        }
    }
}

/// Frames of all backups.
#[derive(Default)]
struct Shelf(Mutex<BTreeMap<(BackupId, u32, u32), Bytes>>);

impl Shelf {
    fn put(&self, id: &BackupId, frames: Vec<FullFrame>) {
        for FullFrame { pack, frame, raw, .. } in frames {
            assert!(self.0.lock().unwrap().insert((id.clone(), pack, frame), raw).is_none());
        }
    }

    /// What the page at a place holds.
    fn page(&self, table: &BackupTable, place: Place) -> Page {
        let frame = self.bytes(table, place);
        let page = &frame[place.offset as usize..][..BLOCK];
        Some(u64::from_le_bytes(page[..8].try_into().unwrap()))
    }

    fn bytes(&self, table: &BackupTable, place: Place) -> Bytes {
        let key = (table.get(place.backup).unwrap().clone(), place.pack, place.frame);
        self.0.lock().unwrap()[&key].clone()
    }
}

impl ReadFrames for Shelf {
    async fn frame(&self, table: &BackupTable, place: Place) -> Result<Vec<u8>> {
        Ok(self.bytes(table, place).to_vec())
    }

    fn object(&self, _: &BackupTable, place: Place) -> String {
        format!("{place:?}")
    }
}

/// Puts blocks into batches.
struct Stream {
    most: usize,
    raw: Vec<u8>,
    items: Vec<Item>,
    hashes: Vec<u64>,
    batches: Vec<(Batch, Looked)>,
}

impl Stream {
    fn cut(&mut self) {
        let (raw, items) = (std::mem::take(&mut self.raw).into(), std::mem::take(&mut self.items));
        let looked = Looked { hashes: std::mem::take(&mut self.hashes), suspects: vec![] };
        self.batches.push((Batch { raw, items }, looked));
    }

    fn page(&mut self, number: u64) {
        if self.hashes.len() == self.most {
            self.cut();
        }
        let at = self.raw.len();
        self.raw.extend_from_slice(&number.to_le_bytes());
        self.raw.extend_from_slice(&[0; BLOCK - 8]);
        self.hashes.push(number);
        match self.items.last_mut() {
            Some(Item::Data { at: first, len, .. }) if *first + *len == at => *len += BLOCK,
            _ => self.items.push(Item::Data { at, len: BLOCK, page: None }),
        }
    }

    /// The cluster `now`, by a server that knows what it was, if `knows` says so.
    fn of(now: &Cluster, before: &Cluster, knows: Option<Option<usize>>, most: usize) -> Self {
        let (raw, items, hashes) = (vec![], vec![], vec![]);
        let mut stream = Stream { most, raw, items, hashes, batches: vec![] };
        for (path, pages) in now {
            let (path, size) = (path.clone().into_bytes(), (pages.len() * BLOCK) as u64);
            let before = before.get(std::str::from_utf8(&path).unwrap());
            stream.items.push(Item::BeginFile { path, mode: 0o600, size });
            for (number, page) in pages.iter().enumerate() {
                let stays = match (knows, before) {
                    // Past the end of what it was is nothing.
                    (Some(but), Some(before)) => {
                        before.get(number).copied().flatten() == *page
                            && but.is_none_or(|each| number % each != 0)
                    }
                    _ => false,
                };
                match (page, stream.items.last_mut()) {
                    (_, Some(Item::Unchanged(count))) if stays => *count += 1,
                    _ if stays => stream.items.push(Item::Unchanged(1)),
                    (None, Some(Item::Zeros(count))) => *count += 1,
                    (None, _) => stream.items.push(Item::Zeros(1)),
                    (Some(page), _) => stream.page(*page),
                }
            }
            stream.items.push(Item::EndFile);
        }
        stream.cut();
        stream
    }
}

/// A backup, and what the cluster was.
struct Taken {
    id: BackupId,
    tree: Tree,
    cluster: Cluster,
}

/// How often what happened, so that it can be told that all of it did.
#[derive(Debug, Default)]
struct Tally {
    /// Map leaves of a backup over another that are that one's, a patch, or whole.
    same: Cell<usize>,
    patched: Cell<usize>,
    whole: Cell<usize>,
    /// Files of more than two leaves.
    long: Cell<usize>,
}

fn count(of: &Cell<usize>) {
    of.set(of.get() + 1);
}

/// Keeps backups, and looks at each.
struct Keeper<'a> {
    shelf: Arc<Shelf>,
    hasher: Arc<BlockHasher>,
    tally: &'a Tally,
    backups: Vec<Taken>,
}

impl Keeper<'_> {
    /// Takes a backup of the cluster, over the backup of this number.
    async fn take(&mut self, cluster: &Cluster, over: Option<usize>, day: &Day) {
        let number = self.backups.len();
        let id: BackupId = format!("202611{:02}T000000Z-incr", number + 1).parse().unwrap();
        let mut table = TreeBuilder::table(&id);
        let base = over.map(|over| &self.backups[over]);
        let (before, base) = match base {
            None => (Cluster::new(), None),
            Some(Taken { id, tree, cluster }) => {
                let leaves = (tree.leaves.clone(), &tree.table);
                let base = Base::of(id, self.shelf.clone(), leaves, &mut table).await.unwrap();
                (cluster.clone(), Some(base))
            }
        };
        let mut builder = TreeBuilder::new(self.hasher.clone(), base, table);
        for (batch, looked) in Stream::of(cluster, &before, day.knows, day.batch).batches {
            builder.follow(&batch, &looked).await.unwrap();
            self.shelf.put(&id, builder.take_full());
        }
        let (tree, frames) = builder.finish().await.unwrap();
        self.shelf.put(&id, frames);
        let changed = |(path, pages): (&String, &Vec<Page>)| {
            let before = before.get(path).map(Vec::as_slice).unwrap_or_default();
            let differs =
                |(n, page): &(usize, &Page)| page.is_some() && before.get(*n) != Some(page);
            pages.iter().enumerate().filter(differs).count()
        };
        let changed: usize = cluster.iter().map(changed).sum();
        assert_eq!(tree.changed, (changed * BLOCK) as u64);
        self.backups.push(Taken { id, tree, cluster: cluster.clone() });
        self.check(number).await;
    }

    /// That a backup's maps are what the cluster was: read from front to back, as a restore does, and
    /// page by page in another order, as the next backup does.
    async fn check(&self, number: usize) {
        let Taken { id, tree, cluster } = &self.backups[number];
        let look = |extent: Extent, leaf: &ReadLeaf<Block>| {
            let is_own = tree.table.get(extent.place.backup) == Some(id);
            match (is_own, &leaf.over) {
                _ if number == 0 => {}
                (false, _) => count(&self.tally.same),
                (true, Some(_)) => count(&self.tally.patched),
                (true, None) => count(&self.tally.whole),
            }
        };
        let (table, files) = read_maps(self.shelf.clone(), tree, look).await;
        assert!(files.keys().eq(cluster.keys()));
        for (path, file) in files {
            let ReadFile { size, digest, blocks } = file.unwrap();
            let pages = &cluster[&path];
            assert_eq!(size, (pages.len() * BLOCK) as u64);
            let mut builder = self.hasher.digest(size);
            for (n, (block, page)) in blocks.iter().zip(pages).enumerate() {
                builder.add(page.unwrap_or(self.hasher.zero_block()));
                let Block::Stored { place, hash } = *block else {
                    assert_eq!(*page, None, "page {n} of {path}");
                    continue;
                };
                assert_eq!(Some(hash), *page, "page {n} of {path}");
                assert_eq!(self.shelf.page(&table, place), *page, "page {n} of {path}");
            }
            assert_eq!(builder.finish(), digest, "{path}");
        }

        let mut table = BackupTable::default();
        let leaves = (tree.leaves.clone(), &tree.table);
        let mut base = Base::of(id, self.shelf.clone(), leaves, &mut table).await.unwrap();
        for (path, pages) in cluster {
            let mut file = base.file(path.as_bytes(), &table).unwrap().unwrap();
            if matches!(&file.map, FileMap::Leaves(map) if map.extents.len() > 2) {
                count(&self.tally.long);
            }
            // From the end to the front, and past the end first.
            for n in (0..=pages.len()).rev().step_by(3) {
                let found = base.block(&mut file, n as u64, &mut table).await.unwrap();
                let found = found.map(|block| match block {
                    Block::Zero => None,
                    Block::Stored { hash, .. } => Some(hash),
                });
                assert_eq!(found, pages.get(n).copied(), "page {n} of {path}");
            }
        }
    }
}

async fn live_through(history: &History, hasher: &Arc<BlockHasher>, tally: &Tally) {
    let longest = history.leaf * history.leaves;
    let (shelf, hasher) = (Arc::default(), hasher.clone());
    let mut keeper = Keeper { shelf, hasher, tally, backups: vec![] };
    // Number 1 is what many pages have had.
    let mut written = 1;
    let mut cluster = Cluster::new();
    for (file, percent) in history.first.iter().enumerate() {
        make(&mut cluster, file, &Change::Remake { percent: *percent }, longest, &mut written);
    }
    let first = Day { changes: vec![], differential: false, knows: None, batch: 32 };
    keeper.take(&cluster, None, &first).await;
    for day in &history.days {
        for (file, change) in &day.changes {
            make(&mut cluster, *file, change, longest, &mut written);
        }
        let over = if day.differential { 0 } else { keeper.backups.len() - 1 };
        keeper.take(&cluster, Some(over), day).await;
    }
}

/// Lives through so many histories with leaves of some length. `PGKEEP_TEST_SEED` says which.
fn agree_through(cases: u32, leaf: impl Strategy<Value = usize>) -> Tally {
    let seed = match std::env::var("PGKEEP_TEST_SEED") {
        Ok(seed) => seed.parse().expect("PGKEEP_TEST_SEED is a number"),
        Err(_) => {
            let mut bytes = [0; 8];
            getrandom::fill(&mut bytes).expect("random bytes");
            u64::from_le_bytes(bytes)
        }
    };
    eprintln!("the histories are those of PGKEEP_TEST_SEED={seed}");
    let House { repository, .. } = &house(None);
    let hasher = Arc::new(BlockHasher::new(repository.keyring()));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let tally = Tally::default();
    let rng_seed = RngSeed::Fixed(seed);
    let config = Config { cases, rng_seed, failure_persistence: None, ..Config::default() };
    let lived = TestRunner::new(config).run(&a_history(leaf), |history| {
        with_leaves_of(history.leaf, || {
            runtime.block_on(live_through(&history, &hasher, &tally));
        });
        Ok(())
    });
    lived.unwrap_or_else(|e| panic!("with PGKEEP_TEST_SEED={seed}: {e}"));
    eprintln!("{tally:?}");
    tally
}

#[test]
fn maps_of_many_leaves_agree_with_plain_arrays() {
    // More than what files have in their entries; patches are worth it from some dozens of blocks on.
    let tally = agree_through(10_000, prop_oneof![1 => INLINE_BLOCKS + 1..12, 1 => 40usize..64]);
    for much in [&tally.same, &tally.patched, &tally.whole, &tally.long] {
        assert!(much.get() > 2_000, "{tally:?}");
    }
}

#[test]
fn maps_of_leaves_as_they_are_agree_with_plain_arrays() {
    let tally = agree_through(40, Just(LEAF_BLOCKS));
    for much in [&tally.same, &tally.patched, &tally.whole, &tally.long] {
        assert!(much.get() > 5, "{tally:?}");
    }
}
