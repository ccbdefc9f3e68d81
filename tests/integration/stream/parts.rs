//! Parts of a segment, put together: those that overlap, differ, are damaged, leave holes, or change meanwhile.

use std::sync::Arc;

use bytes::Bytes;
use pgkeep::{
    config::{GivenStorage, KeySource, Location, RepositorySettings, RetentionSettings},
    error::{Kind, Result},
    postgres::SegmentName,
    repo::{
        layout::ClusterLayout,
        open::{init, open},
        wal::WalStore,
        wal_parts::Part,
    },
    storage::ErrorKind,
};

use crate::support::{
    faulty::{Fault, Faulty, Operation},
    memory::Memory,
    wal::SYSTEM,
};

const LEN: usize = 3000;

/// A repository in memory, and the content of a segment's beginning.
struct Archive {
    memory: Memory,
    faulty: Faulty,
    store: WalStore,
    content: Bytes,
}

impl Archive {
    async fn new() -> Self {
        let memory = Memory::default();
        let faulty = Faulty::new(Arc::new(memory.clone()));
        let settings = RepositorySettings {
            name: "main".to_owned(),
            location: Location::Given(GivenStorage(Arc::new(faulty.clone()))),
            key: KeySource::Unencrypted,
            compression_level: 1,
            retention: RetentionSettings::NONE,
        };
        init(&settings).await.unwrap();
        let repository = open(&settings).await.unwrap();
        let store = WalStore::new(&repository, &ClusterLayout::new("main").unwrap(), SYSTEM);
        // Nothing that compresses, so that each byte of it is one that is stored.
        let byte = |n: usize| (n.wrapping_mul(2_654_435_761) >> 13) as u8;
        Archive { memory, faulty, store, content: (0..LEN).map(byte).collect() }
    }

    async fn put(&self, from: usize, to: usize) -> Part {
        self.put_bytes(from, self.content.slice(from..to)).await.unwrap()
    }

    async fn put_bytes(&self, from: usize, bytes: Bytes) -> Result<Part> {
        self.store.put_part(segment(), u32::try_from(from).unwrap(), &[bytes]).await
    }

    fn damage(&self, part: &Part) {
        let mut objects = self.memory.objects();
        let object = objects.get_mut(part.name.as_str()).expect("the part");
        let mut bytes = object.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 4;
        *object = bytes.into();
    }

    async fn copied(&self) -> Result<usize> {
        let mut bytes = Vec::new();
        let len = self.store.copy_parts(segment(), &mut bytes).await?;
        assert_eq!(len, bytes.len() as u64);
        assert!(self.content.starts_with(&bytes), "what comes is what was put");
        Ok(bytes.len())
    }
}

fn segment() -> SegmentName {
    "000000010000000000000007".parse().expect("a segment")
}

#[tokio::test]
async fn parts_reach_as_far_as_there_is_no_hole() {
    let archive = Archive::new().await;
    assert_eq!(archive.copied().await.unwrap(), 0);
    archive.put(100, 200).await;
    assert_eq!(archive.copied().await.unwrap(), 0, "the beginning is missing");
    archive.put(0, 100).await;
    assert_eq!(archive.copied().await.unwrap(), 200);
    archive.put(300, 400).await;
    assert_eq!(archive.copied().await.unwrap(), 200, "a hole");
    // In front of the hole, over it, and behind it.
    archive.put(50, 301).await;
    assert_eq!(archive.copied().await.unwrap(), 400);
    archive.put(10, 20).await;
    archive.put(0, 1).await;
    archive.put(399, LEN).await;
    assert_eq!(archive.copied().await.unwrap(), LEN);
}

#[tokio::test]
async fn parts_that_differ_where_they_overlap_are_a_conflict() {
    for (from, to) in [(0, 100), (50, 150), (99, 300), (120, 130)] {
        let archive = Archive::new().await;
        archive.put(0, 100).await;
        archive.put(80, 200).await;
        let mut other = archive.content.slice(from..to).to_vec();
        // The first byte that another part has, too.
        other[0] ^= 1;
        archive.put_bytes(from, other.into()).await.unwrap();
        let kind = archive.copied().await.expect_err("two contents").kind();
        assert_eq!(kind, Kind::Conflict, "{from} to {to}");
    }
}

#[tokio::test]
async fn a_damaged_part_counts_where_no_other_has_its_bytes() {
    // The damaged one, the others, and how far it goes then.
    type Bytes = (usize, usize);
    let cases: [(Bytes, &[Bytes], Option<usize>); 7] = [
        ((0, 100), &[], None),
        ((0, 100), &[(0, 150)], Some(150)),
        ((0, 100), &[(0, 60), (60, 100)], Some(100)),
        ((0, 100), &[(0, 99)], None),
        ((100, 200), &[(0, 100)], None),
        ((100, 200), &[(0, 100), (100, 201)], Some(201)),
        // Behind a hole nothing is missed.
        ((200, 300), &[(0, 100)], Some(100)),
    ];
    for (damaged, sound, reach) in cases {
        let archive = Archive::new().await;
        let part = archive.put(damaged.0, damaged.1).await;
        archive.damage(&part);
        for (from, to) in sound {
            archive.put(*from, *to).await;
        }
        match (archive.copied().await, reach) {
            (Ok(len), Some(reach)) => assert_eq!(len, reach, "{damaged:?} {sound:?}"),
            (Err(e), None) => assert_eq!(e.kind(), Kind::Damaged, "{damaged:?} {sound:?}"),
            (copied, _) => panic!("{damaged:?} {sound:?}: {copied:?}"),
        }
    }
}

/// The largest damage is what is told, whichever comes first.
#[tokio::test]
async fn a_part_that_covers_one_damaged_part_does_not_hide_a_longer_one() {
    for damaged in [[(0, 100), (0, 300)], [(0, 300), (20, 100)]] {
        let archive = Archive::new().await;
        for (from, to) in damaged {
            let part = archive.put(from, to).await;
            archive.damage(&part);
        }
        archive.put(0, 200).await;
        let kind = archive.copied().await.expect_err("bytes 200 to 300").kind();
        assert_eq!(kind, Kind::Damaged, "{damaged:?}");
    }
}

#[tokio::test]
async fn a_part_that_is_there_is_a_success_and_a_damaged_one_is_stored_anew() {
    let archive = Archive::new().await;
    let part = archive.put(0, 100).await;
    let before = archive.memory.objects().clone();
    assert_eq!(archive.put(0, 100).await, part);
    assert_eq!(*archive.memory.objects(), before);
    archive.damage(&part);
    let again = archive.put_bytes(0, archive.content.slice(..100)).await;
    assert_eq!(
        again.expect_err("it is damaged").kind(),
        Kind::Repository,
        "as an outage: tried again"
    );
    assert_eq!(archive.put(0, 100).await, part);
    assert_eq!(archive.copied().await.unwrap(), 100);
}

/// A killed writer's part may not be durable yet: that it is there is said when it is.
#[tokio::test]
async fn a_part_that_is_there_is_proven_to_be_durable() {
    let archive = Archive::new().await;
    archive.put(0, 100).await;
    archive.faulty.nth(Operation::Sync, 1, Fault::Fails(ErrorKind::Unavailable));
    let again = archive.put_bytes(0, archive.content.slice(..100)).await;
    assert_eq!(again.expect_err("not known to be durable").kind(), Kind::Repository);
    archive.faulty.heal();
    archive.put(0, 100).await;
}

#[tokio::test]
async fn what_fails_is_neither_a_hole_nor_damage() {
    for operation in [Operation::List, Operation::Read] {
        for n in 1.. {
            let archive = Archive::new().await;
            archive.put(0, 100).await;
            archive.put(100, 200).await;
            archive.faulty.nth(operation, n, Fault::Fails(ErrorKind::Unavailable));
            let copied = archive.copied().await;
            if archive.faulty.faults() == 0 {
                assert_eq!(copied.unwrap(), 200);
                assert!(n > 2, "{operation:?}");
                break;
            }
            let kind = copied.expect_err("not all was read").kind();
            assert_eq!(kind, Kind::Repository, "{operation:?} {n}");
        }
    }
}

#[tokio::test]
async fn parts_that_stay_are_counted() {
    let archive = Archive::new().await;
    let parts = [archive.put(0, 100).await, archive.put(100, 200).await];
    archive.faulty.nth(Operation::Delete, 2, Fault::Fails(ErrorKind::Locked));
    assert_eq!(archive.store.remove_parts(&parts).await, 1);
    archive.faulty.heal();
    assert_eq!(archive.store.parts(segment()).await.unwrap(), parts[1..]);
    assert_eq!(archive.store.remove_parts(&parts).await, 0, "one of them has gone before");
    assert!(archive.store.parts(segment()).await.unwrap().is_empty());
}
