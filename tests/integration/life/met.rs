//! What schedules have met, or could: each fault alone, at every operation.

use std::{fs, path::Path, sync::Arc};

use bytes::Bytes;
use pgkeep::{
    archive,
    config::{
        ClusterSettings, GivenStorage, KeySource, Location, RepositorySettings, RetentionSettings,
    },
    error::{Kind, Result},
    repo::{
        catalog,
        keys::write_key_file,
        open::{init, open},
        wal::WalStore,
    },
    storage::{ErrorKind, ObjectName, Storage},
    verify::Level,
};

use super::{
    server::FIRST,
    steps::verified,
    world::{layout, segment_name},
};
use crate::support::{
    Scratch,
    faulty::{Fault, Faulty, Operation},
    memory::Memory,
    wal::{SYSTEM, Writer, data_directory},
};

fn over(faulty: &Faulty) -> RepositorySettings {
    RepositorySettings {
        name: "main".to_owned(),
        location: Location::Given(GivenStorage(Arc::new(faulty.clone()))),
        key: KeySource::Unencrypted,
        compression_level: 1,
        retention: RetentionSettings::NONE,
    }
}

/// A repository that knows the system.
async fn made(faulty: &Faulty) {
    init(&over(faulty)).await.unwrap();
    let repository = open(&over(faulty)).await.unwrap();
    catalog::register_system(&repository, &layout(), SYSTEM).await.unwrap();
}

/// Pushes a first segment with this transaction.
async fn push(faulty: &Faulty, data: &Path, xid: u32) -> Result<()> {
    let mut wal = Writer::new(FIRST);
    wal.commit(xid, "2026-11-20T00:00:00Z".parse().unwrap());
    wal.switch();
    let path = data.join("pg_wal").join(segment_name(FIRST).to_string());
    fs::write(&path, wal.bytes).unwrap();
    let cluster = ClusterSettings::named("main");
    let settings = over(faulty);
    archive::push(&[&settings], &cluster, Path::new("/dev/null/state"), &path).await.map(drop)
}

#[tokio::test]
async fn a_segment_that_seems_damaged_is_read_once_more() {
    let scratch = Scratch::new("flips");
    let data = data_directory(&scratch.path().join("data"));
    for n in 1.. {
        let memory = Memory::default();
        let faulty = Faulty::new(Arc::new(memory.clone()));
        made(&faulty).await;
        push(&faulty, &data, 700).await.unwrap();
        let stored = memory.objects().len();
        faulty.nth(Operation::Read, n, Fault::Flips);
        let other = push(&faulty, &data, 701).await;
        let met = faulty.faults() > 0;
        faulty.nth(Operation::Read, n, Fault::Flips);
        let same = push(&faulty, &data, 700).await;
        // What decides whether it is a repository at all may still be told as damage.
        let kind = other.expect_err("other content isn't taken").kind();
        assert!([Kind::Conflict, Kind::Damaged].contains(&kind), "read {n}: {kind:?}");
        assert!(same.is_ok() || same.is_err_and(|e| e.kind() == Kind::Damaged), "read {n}");
        assert_eq!(memory.objects().len(), stored, "read {n}: nothing is stored once more");
        if !met {
            assert!(n > 3, "only {n} reads");
            break;
        }
    }
}

#[tokio::test]
async fn a_part_that_seems_damaged_is_read_once_more() {
    let faulty = Faulty::new(Arc::new(Memory::default()));
    made(&faulty).await;
    let repository = open(&over(&faulty)).await.unwrap();
    let store = WalStore::new(&repository, &layout(), SYSTEM);
    let content = [Bytes::from_static(b"what was reported as stored")];
    let part = store.put_part(segment_name(FIRST), 0, &content).await.unwrap();
    for n in 1.. {
        faulty.nth(Operation::Read, n, Fault::Flips);
        let again = store.put_part(segment_name(FIRST), 0, &content).await;
        assert_eq!(again.unwrap(), part, "read {n}");
        let log = faulty.log();
        let removes = log.iter().any(|(operation, _)| *operation == Operation::Delete);
        assert!(!removes, "read {n}: {log:?}");
        if faulty.faults() == 0 {
            assert!(n > 1);
            break;
        }
    }
}

/// How large segments are is then told by one of them.
#[tokio::test]
async fn without_a_backup_an_outage_is_no_finding_either() {
    let scratch = Scratch::new("met");
    let data = data_directory(&scratch.path().join("data"));
    let faulty = Faulty::new(Arc::new(Memory::default()));
    made(&faulty).await;
    push(&faulty, &data, 700).await.unwrap();
    for level in [Level::Quick, Level::Full] {
        faulty.heal();
        let report = verified(&over(&faulty), level).await.unwrap();
        assert!(report.sound, "{:?}", report.problems);
        for operation in [Operation::Read, Operation::Size, Operation::List] {
            for n in 1.. {
                faulty.nth(operation, n, Fault::Fails(ErrorKind::Unavailable));
                let verified = verified(&over(&faulty), level).await;
                if faulty.faults() == 0 {
                    assert!(n > 1, "{operation:?} never happens");
                    break;
                }
                let kind = verified.expect_err("it isn't known to be sound").kind();
                assert_eq!(kind, Kind::Repository, "{operation:?} {n}");
            }
        }
    }
}

/// Who takes another repository's id for its own stores what nobody can restore.
/// What lies below `keys/` may be anybody's where the url is wrong.
#[tokio::test]
async fn what_is_too_large_for_a_keys_object_is_not_read() {
    let scratch = Scratch::new("keys");
    let key = scratch.path().join("main.key");
    write_key_file(&key).unwrap();
    for is_repository in [false, true] {
        let faulty = Faulty::new(Arc::new(Memory::default()));
        let settings = RepositorySettings { key: KeySource::File(key.clone()), ..over(&faulty) };
        if is_repository {
            init(&settings).await.unwrap();
        }
        let large = ObjectName::new("keys/large").unwrap();
        faulty.put(&large, vec![b'x'; (64 << 10) + 1].into()).await.unwrap();
        // The keys object that init has made is read as well.
        faulty.nth(Operation::Read, 2 + u64::from(is_repository), Fault::Fails(ErrorKind::Denied));
        let refused = open(&settings).await.expect_err("it can't be opened");
        let (kind, what) = match is_repository {
            true => (Kind::Damaged, "has 65537 bytes, where 65536 are the most"),
            false => (Kind::Repository, "there is no repository"),
        };
        assert_eq!(refused.kind(), kind, "{refused}");
        assert!(refused.to_string().contains(what), "{refused}");
        assert_eq!(faulty.faults(), 0, "the large one is read");
    }
}

#[tokio::test]
async fn a_repository_whose_file_comes_with_another_bit_is_not_opened() {
    let faulty = Faulty::new(Arc::new(Memory::default()));
    made(&faulty).await;
    for n in 1.. {
        faulty.nth(Operation::Read, n, Fault::Flips);
        let opened = open(&over(&faulty)).await;
        if faulty.faults() == 0 {
            assert!(opened.is_ok() && n == 3);
            break;
        }
        assert_eq!(opened.expect_err("another bit").kind(), Kind::Damaged, "read {n}");
    }
}
