//! Backups over a base: whatever they refer to, they are what the cluster was.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use proptest::prelude::*;

use super::{END, FIRST, MadeUp, futures, house, noise, read_back, run, run_over};
use crate::{
    backup::{
        pipeline,
        source::{Fed, FileSink, Source},
    },
    error::Result,
    progress::{Progress, Silent},
    repo::tree::BLOCK,
};

/// What a cluster does between two backups.
#[derive(Debug, Clone)]
enum Change {
    Write { file: usize, at: usize, len: usize },
    Zero { file: usize, at: usize, len: usize },
    Length { file: usize, len: usize },
    New { file: usize, len: usize },
    Drop { file: usize },
}

/// Past four blocks a file has map leaves.
const LONGEST: usize = 40 * BLOCK;

fn a_length() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 0usize..6 * BLOCK,
        2 => (0usize..8).prop_map(|blocks| blocks * BLOCK),
    ]
}

fn a_change() -> impl Strategy<Value = Change> {
    let file = 0usize..12;
    prop_oneof![
        6 => (file.clone(), 0usize..LONGEST, 1usize..3 * BLOCK)
            .prop_map(|(file, at, len)| Change::Write { file, at, len }),
        1 => (file.clone(), 0usize..LONGEST, 1usize..40 * BLOCK)
            .prop_map(|(file, at, len)| Change::Zero { file, at, len }),
        2 => (file.clone(), a_length()).prop_map(|(file, len)| Change::Length { file, len }),
        1 => (0..LONGEST).prop_map(|len| Change::Length { file: 0, len }),
        1 => (file.clone(), a_length()).prop_map(|(file, len)| Change::New { file, len }),
        1 => file.prop_map(|file| Change::Drop { file }),
    ]
}

type Cluster = BTreeMap<String, Option<Vec<u8>>>;

fn make(cluster: &mut Cluster, change: &Change, seed: u64) {
    let name = |file: &usize| format!("base/{file}");
    let within = |content: &[u8], at: usize, len: usize| {
        let at = at % content.len().max(1);
        at..(at + len).min(content.len())
    };
    match change {
        Change::Write { file, at, len } => {
            if let Some(Some(content)) = cluster.get_mut(&name(file)) {
                let range = within(content, *at, *len);
                let noise = noise(range.len(), seed);
                content[range].copy_from_slice(&noise);
            }
        }
        Change::Zero { file, at, len } => {
            if let Some(Some(content)) = cluster.get_mut(&name(file)) {
                let range = within(content, *at, *len);
                content[range].fill(0);
            }
        }
        Change::Length { file, len } => {
            if let Some(Some(content)) = cluster.get_mut(&name(file)) {
                content.resize(*len, 0);
            }
        }
        Change::New { file, len } => {
            cluster.insert(name(file), Some(noise(*len, seed)));
        }
        Change::Drop { file } => {
            cluster.remove(&name(file));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Each backup of a history is what the cluster was, whatever it refers to; and a page that is
    /// the same stores nothing.
    #[test]
    fn each_backup_over_another_is_what_the_cluster_was(
        first in prop::collection::vec(a_length(), 12),
        history in prop::collection::vec(prop::collection::vec(a_change(), 0..5), 1..6),
        knows: bool,
    ) {
        let mut house = house(None);
        let mut cluster: Cluster = first
            .iter()
            .enumerate()
            .map(|(n, len)| (format!("base/{n}"), Some(noise(*len, n as u64))))
            .collect();
        cluster.insert("base".into(), None);
        let mut base: Option<String> = None;
        for (number, changes) in [vec![]].into_iter().chain(history).enumerate() {
            let before = cluster.clone();
            for (n, change) in changes.iter().enumerate() {
                make(&mut cluster, change, (number * 100 + n + 1_000) as u64);
            }
            let kind = if number == 0 { "full" } else { "incr" };
            let id = format!("202611{:02}T000000Z-{kind}", number + 1);
            house.setup.id = id.parse().unwrap();
            let found = futures(async {
                let mut source: Box<dyn Source> = if knows && number > 0 {
                    Box::new(Changes { before: before.clone(), now: cluster.clone() })
                } else {
                    Box::new(MadeUp::new(cluster.clone().into_iter().collect(), 30_000))
                };
                let stored = run_over(&house, base.as_deref(), source.as_mut()).await.unwrap();
                if before == cluster && number > 0 {
                    assert_eq!((stored.tree.changed, stored.packs.raw), (0, 0));
                }
                house.keep(&stored).await;
                read_back(&house, &stored).await
            });
            prop_assert!(found == cluster);
            base = Some(id);
        }
    }
}

/// A file of two map leaves: one is patched, one referred to, and after many changes one is whole.
#[test]
fn map_leaves_are_referred_to_patched_or_stored_whole() {
    let mut house = house(None);
    let path = || "base/5/16384".to_owned();
    let mut content = noise(1_030 * BLOCK, 1);
    let mut raw = Vec::new();
    let mut base: Option<String> = None;
    for (day, changed) in [(1, 0..0), (2, 3..5), (3, 100..102), (4, 200..900), (5, 1_026..1_027)] {
        for block in changed {
            content[block * BLOCK..][..BLOCK].copy_from_slice(&noise(BLOCK, (day * block) as u64));
        }
        let id = format!("2026110{day}T000000Z-incr");
        house.setup.id = id.parse().unwrap();
        let cluster = Cluster::from([(path(), Some(content.clone()))]);
        let stored = futures(async {
            let mut source = MadeUp::new(cluster.clone().into_iter().collect(), 100_000);
            let stored = run_over(&house, base.as_deref(), &mut source).await.unwrap();
            house.keep(&stored).await;
            assert!(read_back(&house, &stored).await == cluster);
            stored
        });
        // What the tree takes, beside the blocks.
        raw.push(stored.packs.raw - stored.tree.changed);
        base = Some(id);
    }
    // A whole leaf has eight bytes of hash a block; a patch has those of what differs from it.
    assert!(raw[0] > 8 * 1_030 && raw[1] < 500 && raw[2] < 600, "{raw:?}");
    assert!(raw[3] > 8 * 1_024 && raw[4] < 500, "{raw:?}");
}

/// Ten of a hundred thousand small files: what is stored follows from what changed.
#[test]
fn few_changed_files_of_very_many_cost_little() {
    let mut house = house(None);
    let mut cluster: Cluster =
        (0..100_000).map(|n| (format!("base/16384/{n}"), Some(noise(100, n)))).collect();
    let source = |cluster: &Cluster| MadeUp::new(cluster.clone().into_iter().collect(), 8192);
    let (first, second) = futures(async {
        let first = run(&house, source(&cluster)).await.unwrap();
        house.keep(&first).await;
        for n in 0..10 {
            cluster.insert(format!("base/16384/{}", n * 9_999), Some(noise(120, 1_000_000 + n)));
        }
        house.setup.id = "20261121T000000Z-incr".parse().unwrap();
        let second = run_over(&house, Some(FIRST), &mut source(&cluster)).await.unwrap();
        assert!(read_back(&house, &second).await == cluster);
        (first.packs, second)
    });
    assert_eq!(second.tree.changed, 10 * 120);
    assert!(first.raw > 10_000_000, "{first:?}");
    assert!(second.packs.raw < 10_000, "{:?}", second.packs);
}

/// A cluster as a server sends it that knows what changed: blocks that are as before come as such.
struct Changes {
    before: Cluster,
    now: Cluster,
}

#[async_trait]
impl Source for Changes {
    async fn feed(&mut self, sink: &mut dyn FileSink) -> Result<Fed> {
        let Some((path, content)) = self.now.pop_first() else { return Ok(Fed::End(END)) };
        let Some(content) = content else {
            sink.directory(path.as_bytes(), 0o700)?;
            return Ok(Fed::More(0));
        };
        sink.begin_file(path.as_bytes(), 0o600, content.len() as u64)?;
        let whole = |bytes: &Vec<u8>| bytes.len().is_multiple_of(BLOCK);
        match self.before.get(&path) {
            // Of a block that the base has only in part the server knows nothing: it counts as zeros.
            Some(Some(before)) if whole(&content) => {
                for (number, block) in content.chunks(BLOCK).enumerate() {
                    let old = before.get(number * BLOCK..(number + 1) * BLOCK);
                    if old.unwrap_or(&[0; BLOCK]) == block {
                        sink.unchanged(1)?;
                    } else {
                        sink.data(block)?;
                    }
                }
            }
            _ => sink.data(&content)?,
        }
        sink.end_file()?;
        Ok(Fed::More(0))
    }
}

/// A relation that was just being extended when the base was taken, and the page never written.
#[test]
fn a_block_that_the_base_has_in_part_is_none_that_stays() {
    let mut house = house(None);
    let path = || "base/1".to_owned();
    for blocks in [2, 7] {
        let before: Cluster = [(path(), Some(noise(blocks * BLOCK + 4096, 1)))].into();
        let mut content = noise(blocks * BLOCK, 1);
        content.resize((blocks + 1) * BLOCK, 0);
        let now: Cluster = [(path(), Some(content))].into();
        let found = futures(async {
            let base = format!("2026110{blocks}T000000Z-full");
            house.setup.id = base.parse().unwrap();
            let source = MadeUp::new(before.clone().into_iter().collect(), 30_000);
            let stored = run(&house, source).await.unwrap();
            house.keep(&stored).await;
            house.setup.id = format!("2026111{blocks}T000000Z-incr").parse().unwrap();
            let mut changes = Changes { before, now: now.clone() };
            let stored = run_over(&house, Some(&base), &mut changes).await.unwrap();
            read_back(&house, &stored).await
        });
        assert!(found == now, "{blocks} blocks");
    }
}

#[test]
fn blocks_that_stay_must_fit_into_a_file_that_the_base_has() {
    let house = house(None);
    let progress: Arc<dyn Progress> = Arc::new(Silent);
    let path = || "base/1".to_owned();
    let mut changes = Changes {
        before: [(path(), Some(noise(3 * BLOCK, 1)))].into(),
        now: [(path(), Some(noise(3 * BLOCK, 1)))].into(),
    };
    let error = futures(async {
        let lanes = vec![house.lane(None).await];
        let read = pipeline::run(&mut changes, &house.setup, lanes, &progress).await;
        read.unwrap().lanes.remove(0).err().unwrap()
    });
    assert!(error.to_string().contains("base/1, which the base doesn't have"), "{error}");
}
