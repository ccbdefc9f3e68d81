//! Objects that are genuine and don't fit together: what only reading all of a backup shows.

use std::{collections::BTreeMap, sync::Arc};

use pgkeep::{
    postgres::{Lsn, Timeline, WalFile, page},
    repo::{
        Repository, catalog,
        layout::ClusterLayout,
        manifest::Manifest,
        record::{BackupRecord, BadPage},
        sealed::{SealedWriter, put_sealed},
        tombstone::mark_deleted,
        tree::{BLOCK, BackupTable},
        wal::{StoredSummary, WAL_FRAME, WalObject, WalStore},
    },
    storage::{ObjectName, local::Local},
    verify::{
        VerifyRequest,
        report::{Level, ProblemKind, Report},
        verify,
    },
};
use sha2::{Digest, Sha256};
use tokio::runtime::{Builder, Runtime};

use super::{Sound, layout, open, request, silent};
use crate::{
    restore_write::store::{Files, Stored, new_repository, store, store_as},
    support::Scratch,
};

const FULL: &str = "20261120T195812Z-full";
const NEXT: &str = "20261121T195812Z-incr";

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// What a backup has to have, and a file of nine pages.
fn files() -> Files {
    let mut files = Files::default();
    for needed in ["PG_VERSION", "backup_label", "global/pg_control"] {
        files.put(needed, "x");
    }
    files.put("base/5/16384", (1..=9).flat_map(|n| page_of(n, n - 1)).collect::<Vec<u8>>());
    files
}

/// A page that says `n`, with the checksum that it must have as this block.
fn page_of(n: u32, block: u32) -> Vec<u8> {
    let mut bytes = vec![n as u8; BLOCK];
    // pd_lsn, pd_checksum, pd_flags, pd_lower, pd_upper.
    bytes[..16].copy_from_slice(&[0, 0, 0, 0, n as u8, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 32]);
    let checksum = page::checksum(&bytes, block);
    bytes[8..10].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Verifies the trees and the packs: there is no WAL here, so what that misses is left out.
async fn contents(repository: &Repository, layout: &ClusterLayout) -> Report {
    let report = verify(repository, layout, &request(Level::Full), silent()).await;
    let mut report = report.unwrap().unwrap();
    report.problems.retain(|p| !p.object.contains("/wal/") && !p.object.contains("/systems/"));
    report
}

async fn stored(
    at: (&Repository, &ClusterLayout),
    files: &Files,
    describe: impl FnOnce(&mut BackupRecord),
) -> Stored {
    let mut table = BackupTable::default();
    store_as(at, FULL, files, &[], None, &mut table, |record| {
        record.data_checksums = true;
        describe(record);
    })
    .await
}

#[test]
fn pages_with_a_wrong_checksum_are_told_unless_they_were_known_or_may_be_torn() {
    let path = "base/5/16384";
    let bad = |files: &mut Files, page: usize| {
        files.files.get_mut(path).unwrap().bytes[page * BLOCK + 5000] ^= 1;
    };
    let known = |record: &mut BackupRecord, pages: &[u64], count: u64| {
        record.bad_pages.count = count;
        record.bad_pages.pages =
            pages.iter().map(|page| BadPage { path: path.into(), page: *page }).collect();
    };
    runtime().block_on(async {
        for (case, wrong, describe) in [
            (
                "sound",
                vec![],
                Box::new(|_: &mut BackupRecord| {}) as Box<dyn Fn(&mut BackupRecord)>,
            ),
            ("bad", vec![4], Box::new(|_| {})),
            ("known", vec![4], Box::new(|record| known(record, &[4], 1))),
            ("another is known", vec![4], Box::new(|record| known(record, &[3], 1))),
            ("more than are named", vec![4], Box::new(|record| known(record, &[3], 2))),
            ("torn", vec![4], Box::new(|record| record.start_lsn = Lsn(3))),
            ("without checksums", vec![4], Box::new(|record| record.data_checksums = false)),
        ] {
            let scratch = Scratch::new("pages");
            let (repository, layout) = new_repository(&scratch.path().join("r"), true).await;
            let mut files = files();
            wrong.iter().for_each(|page| bad(&mut files, *page));
            stored((&repository, &layout), &files, describe).await;
            let report = contents(&repository, &layout).await;
            let is_found = matches!(case, "bad" | "another is known");
            assert_eq!(report.problems.len(), usize::from(is_found), "{case}: {report:#?}");
            if is_found {
                let problem = &report.problems[0];
                assert_eq!(problem.kind, ProblemKind::PageChecksum, "{problem:#?}");
                assert!(
                    problem.text.contains("the first is page 4 of base/5/16384"),
                    "{problem:#?}"
                );
                assert_eq!(problem.backups[0].as_str(), FULL);
                assert!(problem.moments.is_empty(), "it can be restored");
            }
            let pages = match case {
                "torn" => 2,
                "without checksums" => 0,
                _ => 9,
            };
            assert_eq!(report.checked.pages, pages, "{case}");
            let noticed = report.notices.iter().any(|n| n.text.contains("as was known"));
            assert_eq!(noticed, matches!(case, "known" | "more than are named"), "{case}");
        }
    });
}

/// The pack stays, as the next backup uses it.
#[test]
fn a_wrong_checksum_is_told_when_the_backup_that_read_the_page_is_deleted() {
    runtime().block_on(async {
        let scratch = Scratch::new("pages");
        let (repository, layout) = new_repository(&scratch.path().join("r"), true).await;
        let (at, mut table) = ((&repository, &layout), BackupTable::default());
        let mut files = files();
        files.files.get_mut("base/5/16384").unwrap().bytes[4 * BLOCK + 5000] ^= 1;
        let with_checksums = |record: &mut BackupRecord| record.data_checksums = true;
        let full = store_as(at, FULL, &files, &[], None, &mut table, with_checksums).await;
        files.put("base/5/16385", page_of(1, 0));
        store_as(at, NEXT, &files, &[], Some(&full), &mut table, with_checksums).await;
        mark_deleted(&repository, &layout, &FULL.parse().unwrap()).await.unwrap();
        let report = contents(&repository, &layout).await;
        let bad: Vec<_> =
            report.problems.iter().filter(|p| p.kind == ProblemKind::PageChecksum).collect();
        assert_eq!(bad.len(), 1, "{report:#?}");
        assert_eq!(bad[0].backups.iter().map(|id| id.as_str()).collect::<Vec<_>>(), [NEXT]);
    });
}

#[test]
fn a_tree_that_leads_to_the_wrong_blocks_is_found() {
    runtime().block_on(async {
        let scratch = Scratch::new("tree");
        let (repository, layout) = new_repository(&scratch.path().join("r"), true).await;
        let (at, files) = ((&repository, &layout), files());
        let mut table = BackupTable::default();
        let mut base = store(at, FULL, &files, &[], None, &mut table).await;
        // Each block is said to be where the other is, with its own hash: the digest fits.
        base.exchange_blocks("base/5/16384", 2, 6);
        store(at, NEXT, &files, &[], Some(&base), &mut table).await;
        let report = contents(&repository, &layout).await;
        let [problem] = report.problems.as_slice() else { panic!("{report:#?}") };
        assert_eq!(problem.kind, ProblemKind::Damaged);
        assert!(problem.text.contains("doesn't hold the blocks"), "{problem:#?}");
        assert!(problem.object.ends_with("packs/000000"), "{problem:#?}");
        let backups: Vec<_> = problem.backups.iter().map(|id| id.as_str()).collect();
        // The frame is one that both need.
        assert_eq!(backups, [FULL, NEXT]);
    });
}

#[test]
fn a_reference_list_that_leaves_a_pack_out_is_found() {
    runtime().block_on(async {
        let scratch = Scratch::new("list");
        let (repository, layout) = new_repository(&scratch.path().join("r"), true).await;
        let first = stored((&repository, &layout), &files(), |_| {}).await;
        // The same backup under another id, with a list that a deletion would go by.
        let mut manifest = Manifest::read(&repository, &layout, &first.record.id).await.unwrap();
        let other = NEXT.parse().unwrap();
        manifest.facts.backup = other;
        manifest.references.retain(|reference| reference.pack != 0);
        manifest.create(&repository, &layout).await.unwrap();
        let mut record = first.record.clone();
        record.id = NEXT.parse().unwrap();
        put_sealed(&repository, &layout.of_backup(&record.id, "begin"), b"").await.unwrap();
        catalog::commit(&repository, &layout, &record).await.unwrap();
        let report = contents(&repository, &layout).await;
        let [problem] = report.problems.as_slice() else { panic!("{report:#?}") };
        assert_eq!(problem.kind, ProblemKind::Inconsistent);
        assert!(problem.object.ends_with(&format!("{NEXT}/manifest")), "{problem:#?}");
        assert!(problem.text.contains("reference list"), "{problem:#?}");
    });
}

/// However few blocks may be known at a time, the same is found.
#[test]
fn walking_the_trees_again_and_again_finds_the_same() {
    let sound = Sound::new();
    runtime().block_on(async {
        let storage = Arc::new(Local::open(&sound.root()).unwrap());
        let repository = open(storage, &sound.material()).await.unwrap();
        let mut found = BTreeMap::new();
        for blocks_at_once in [1, 50, 100_000] {
            let request = VerifyRequest { blocks_at_once, ..request(Level::Full) };
            let report = verify(&repository, &layout(), &request, silent()).await.unwrap().unwrap();
            assert!(report.sound, "{:#?}", report.problems);
            found.insert(blocks_at_once, report.checked);
        }
        let all = found[&100_000];
        assert!(all.blocks > 400 && found.values().all(|checked| *checked == all), "{found:?}");
    });
}

/// The first segment of a timeline, its content, and what its object says.
async fn first_segment(
    store: &WalStore,
    timeline: Timeline,
) -> (ObjectName, Vec<u8>, StoredSummary) {
    let page = store.page(timeline, None).await.unwrap();
    let is_segment = |object: &WalObject| matches!(object, WalObject::Plain(WalFile::Segment(_)));
    let (_, name, _) = page.into_iter().find(|(object, ..)| is_segment(object)).unwrap();
    let mut content = Vec::new();
    let summary = store.copy_to(&name, &mut content).await.unwrap().unwrap();
    (name, content, summary)
}

/// Segments that are stored as they were pushed, and whose records aren't right: in themselves, where
/// one goes on from the segment before on another timeline, or beside what their objects say.
#[test]
fn records_that_recovery_would_stop_at_are_found() {
    let sound = Sound::new();
    runtime().block_on(async {
        let storage = Arc::new(Local::open(&sound.root()).unwrap());
        let repository = open(storage, &sound.material()).await.unwrap();
        let layout = layout();
        let system = catalog::systems(&repository, &layout).await.unwrap()[0];
        let store = WalStore::new(&repository, &layout, system);
        // Of the first record behind the long header; of what goes on from the segment before.
        for (timeline, flipped, said) in [
            (1, None, None),
            (1, Some(70), Some("its records end at")),
            (2, Some(1000), Some("its records end at")),
            (1, Some(usize::MAX), Some("isn't what is in them")),
        ] {
            let (name, genuine, genuine_summary) = first_segment(&store, Timeline(timeline)).await;
            let (mut content, mut summary) = (genuine.clone(), genuine_summary.clone());
            match flipped {
                Some(usize::MAX) => summary.segment.as_mut().unwrap().backup_ends.clear(),
                Some(at) => content[at] ^= 1,
                None => {}
            }
            put(&repository, &name, &content, summary).await;
            let quick = verify(&repository, &layout, &request(Level::Quick), silent()).await;
            assert!(quick.unwrap().unwrap().sound, "only its records are wrong");
            let full = verify(&repository, &layout, &request(Level::Full), silent()).await;
            let problems = full.unwrap().unwrap().problems;
            assert_eq!(problems.len(), usize::from(said.is_some()), "{flipped:?}: {problems:#?}");
            if let Some(said) = said {
                assert_eq!(problems[0].kind, ProblemKind::Inconsistent);
                assert_eq!(problems[0].object, name.as_str());
                assert!(problems[0].text.contains(said), "{problems:#?}");
                assert!(!problems[0].moments.is_empty(), "{problems:#?}");
            }
            put(&repository, &name, &genuine, genuine_summary).await;
        }
    });
}

/// Stores a file of the archive in place of what is there.
async fn put(
    repository: &Repository,
    name: &ObjectName,
    content: &[u8],
    mut summary: StoredSummary,
) {
    repository.storage().delete(name).await.unwrap();
    summary.sha256 = hex::encode(Sha256::digest(content));
    let mut writer = SealedWriter::create(repository, name).await.unwrap();
    for frame in content.chunks(WAL_FRAME) {
        writer.seal(frame).await.unwrap();
    }
    writer.finish(&summary.to_bytes().unwrap()).await.unwrap();
}
