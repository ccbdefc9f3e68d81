//! Pushing: what is stored, what is refused, and that the source is left alone.

use std::{fs, sync::Arc};

use pgkeep::{
    archive::Stored,
    config::{GivenStorage, Location},
    error::Kind,
    postgres::{SegmentName, SegmentSize},
    repo::{
        open::storage,
        wal_wait::{wait_for_range, wait_for_segment},
    },
    storage::ErrorKind,
};

use super::{Keeper, cluster_with_segments, run, snapshot, system, wal};
use crate::support::{
    Cluster,
    faulty::{Fault, Faulty, Operation},
    objects::{cut, flip_bit},
    on_each_version,
};

on_each_version!(a_segment_comes_back_as_it_was);

fn a_segment_comes_back_as_it_was(version: u32) {
    let (cluster, segments) = cluster_with_segments(version, 3);
    let keeper = Keeper::new(&cluster, &["main", "second"]);
    let before = snapshot(&cluster);
    for segment in &segments {
        assert_eq!(keeper.pushed(&cluster, segment), [Stored::New, Stored::New]);
    }
    assert_eq!(snapshot(&cluster), before, "pg_wal is only read");
    for segment in &segments {
        assert_eq!(keeper.served(segment), fs::read(wal(&cluster, segment)).unwrap());
    }
    for name in ["main", "second"] {
        let store = keeper.store(name, &cluster);
        for (i, segment) in segments.iter().enumerate() {
            let name: SegmentName = segment.parse().unwrap();
            let stored = run(store.segment_summary(name)).unwrap().unwrap();
            let summary = stored.segment.unwrap();
            // What goes on into the first one may lie in a segment that is gone from pg_wal.
            let head = i == 0 || summary.head_known;
            assert!(summary.parsed && summary.whole && head, "{i}: {summary:?}");
        }
    }
}

#[test]
fn the_same_file_again_is_a_success_and_other_content_a_conflict() {
    let (cluster, segments) = cluster_with_segments(15, 2);
    let keeper = Keeper::new(&cluster, &["main"]);
    assert_eq!(keeper.pushed(&cluster, &segments[0]), [Stored::New]);
    assert_eq!(keeper.pushed(&cluster, &segments[0]), [Stored::Already]);
    let stored = fs::read(keeper.object("main", &cluster, &segments[0])).unwrap();
    let original = keeper.served(&segments[0]);

    // Two servers that write the same segment differ somewhere in it.
    flip_bit(&wal(&cluster, &segments[0]), 9000);
    let e = keeper.push(&wal(&cluster, &segments[0])).unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict);
    let given = hex_sha256(&fs::read(wal(&cluster, &segments[0])).unwrap());
    for checksum in [given, hex_sha256(&original)] {
        assert!(e.to_string().contains(&checksum), "{e}");
    }
    assert_eq!(fs::read(keeper.object("main", &cluster, &segments[0])).unwrap(), stored);
    assert_eq!(keeper.served(&segments[0]), original);
}

fn hex_sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}

#[test]
fn one_repository_that_fails_does_not_keep_the_other_from_its_copy() {
    let (cluster, segments) = cluster_with_segments(15, 1);
    let keeper = Keeper::new(&cluster, &["first", "gone", "last"]);
    let (gone, aside) = (keeper.places.objects("gone"), keeper.scratch.join("aside"));
    fs::rename(&gone, &aside).unwrap();
    let e = keeper.push(&wal(&cluster, &segments[0])).unwrap_err();
    assert_eq!(e.kind(), Kind::Repository);
    assert!(e.to_string().contains("repository gone"), "{e}");
    assert!(!gone.exists(), "a disk that isn't mounted isn't replaced by a directory");
    for name in ["first", "last"] {
        assert!(keeper.object(name, &cluster, &segments[0]).exists(), "{name}");
    }
    fs::rename(&aside, &gone).unwrap();
    let stored = keeper.pushed(&cluster, &segments[0]);
    assert_eq!(stored, [Stored::Already, Stored::New, Stored::Already]);
}

/// A push asks for everything at once. What it hears before it knows that the repository is there says
/// nothing: a disk may be mounted in between, and somebody may be making the repository, or the object.
#[test]
fn what_was_asked_too_early_is_asked_again() {
    let (cluster, segments) = cluster_with_segments(15, 3);
    let mut keeper = Keeper::new(&cluster, &["main"]);
    let inner = storage(&keeper.repositories[0].location).unwrap();
    let faulty = Faulty::new(inner);
    keeper.repositories[0].location = Location::Given(GivenStorage(Arc::new(faulty.clone())));
    assert_eq!(keeper.pushed(&cluster, &segments[0]), [Stored::New]);
    let asked = faulty.log();
    let registration = keeper.layout().system(system(&cluster)).to_string();
    let reads = asked.iter().filter(|(operation, _)| *operation == Operation::Read);
    let read = 1 + reads.take_while(|(_, name)| *name != registration).count() as u64;
    for (operation, n, what) in [
        (Operation::List, 1, "keys/"),
        (Operation::Read, read, registration.as_str()),
        (Operation::Size, 1, segments[0].as_str()),
    ] {
        let mut of_kind = asked.iter().filter(|(of, _)| *of == operation);
        let (_, name) = of_kind.nth(n as usize - 1).expect("the question");
        assert!(name.ends_with(what), "{name} is asked for, not {what}");
        for kind in [ErrorKind::NotFound, ErrorKind::Unavailable] {
            // An outage of keys/ isn't passed over: without them it wouldn't come to the other questions.
            let fails = operation == Operation::List && kind == ErrorKind::Unavailable;
            for (segment, stored) in [(&segments[1], Stored::New), (&segments[0], Stored::Already)]
            {
                let object = keeper.object("main", &cluster, &segments[1]);
                let _ = fs::remove_file(&object);
                faulty.nth(operation, n, Fault::Fails(kind));
                let pushed = keeper.push(&wal(&cluster, segment));
                assert_eq!(faulty.faults(), 1, "{name} {kind:?}");
                match pushed {
                    Err(e) if fails => assert_eq!(e.kind(), Kind::Repository),
                    Err(e) => panic!("{name} {kind:?}: {e}"),
                    Ok(_) if fails => panic!("{name} {kind:?} was passed over"),
                    Ok(outcome) => {
                        assert_eq!(
                            outcome.stored,
                            [("main".to_owned(), stored)],
                            "{name} {kind:?}"
                        );
                    }
                }
                faulty.heal();
                if !fails {
                    let original = fs::read(wal(&cluster, segment)).unwrap();
                    assert_eq!(keeper.served(segment), original);
                }
            }
        }
    }
}

#[test]
fn a_damaged_object_is_healed_by_the_next_push() {
    let (cluster, segments) = cluster_with_segments(15, 6);
    let keeper = Keeper::new(&cluster, &["main"]);
    type Damage = fn(&std::path::Path);
    let damages: [Damage; 6] = [
        |path| flip_bit(path, 3),
        |path| flip_bit(path, 500),
        |path| flip_bit(path, -5),
        |path| flip_bit(path, -150),
        |path| cut(path, 1),
        |path| fs::write(path, "").unwrap(),
    ];
    for (segment, damage) in segments.iter().zip(damages) {
        keeper.pushed(&cluster, segment);
        let object = keeper.object("main", &cluster, segment);
        damage(&object);
        let damaged = fs::read(&object).unwrap();
        assert_eq!(keeper.refused(segment).kind(), Kind::Damaged);

        assert_eq!(keeper.pushed(&cluster, segment), [Stored::Repaired]);
        assert_eq!(keeper.pushed(&cluster, segment), [Stored::Already], "one repair is enough");
        assert_eq!(fs::read(&object).unwrap(), damaged, "objects are never overwritten");
        assert_eq!(keeper.served(segment), fs::read(wal(&cluster, segment)).unwrap());

        // Also when the repaired copy is damaged in its turn.
        let repair = repair_of(&keeper, &cluster, segment);
        flip_bit(&keeper.object("main", &cluster, segment).with_file_name(&repair), 300);
        assert_eq!(keeper.refused(segment).kind(), Kind::Damaged);
        assert_eq!(keeper.pushed(&cluster, segment), [Stored::Repaired]);
        assert_eq!(keeper.served(segment), fs::read(wal(&cluster, segment)).unwrap());
    }
    // The repaired copy stands for the segment: other content is a conflict with it.
    flip_bit(&wal(&cluster, &segments[0]), 9000);
    let e = keeper.push(&wal(&cluster, &segments[0])).unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict, "{e}");
}

fn repair_of(keeper: &Keeper, cluster: &Cluster, segment: &str) -> String {
    let names = keeper.names("main", cluster, &segment[..8]);
    let mut repairs =
        names.into_iter().filter(|name| name.starts_with(&format!("{segment}.repair.")));
    repairs.next().expect("a repair")
}

#[test]
fn a_missing_keys_object_is_not_taken_for_damage() {
    let (cluster, segments) = cluster_with_segments(15, 1);
    let keeper = Keeper::new(&cluster, &["main"]);
    keeper.pushed(&cluster, &segments[0]);
    let names = keeper.names("main", &cluster, "00000001");
    let keys = keeper.places.objects("main").join("keys");
    fs::rename(&keys, keeper.scratch.join("keys")).unwrap();
    assert!(keeper.push(&wal(&cluster, &segments[0])).is_err());
    keeper.refused(&segments[0]);
    assert_eq!(keeper.names("main", &cluster, "00000001"), names);
}

#[test]
fn wal_of_another_cluster_is_refused_and_named() {
    let (cluster, _) = cluster_with_segments(15, 1);
    let (other, foreign) = cluster_with_segments(15, 2);
    let keeper = Keeper::new(&cluster, &["main"]);

    // A foreign segment in this data directory.
    let smuggled = wal(&cluster, &foreign[1]);
    fs::copy(wal(&other, &foreign[1]), &smuggled).unwrap();
    let e = keeper.push(&smuggled).unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict);
    for system in [system(&cluster), system(&other)] {
        assert!(e.to_string().contains(&system.identifier.to_string()), "{e}");
    }

    // Another cluster's archive_command with this cluster's configuration.
    let e = keeper.push(&wal(&other, &foreign[0])).unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict);
    assert!(e.to_string().contains(&system(&other).to_string()), "{e}");

    // A system that nobody has registered.
    let mut keeper = keeper;
    keeper.cluster.pgdata = None;
    let e = keeper.push(&wal(&other, &foreign[0])).unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict);
    assert!(e.hints().iter().any(|hint| hint.contains("pgkeep check")), "{:?}", e.hints());
    keeper.register(system(&other));
    keeper.pushed(&other, &foreign[0]);
}

#[test]
fn files_that_are_not_what_their_name_says_are_refused() {
    let (cluster, segments) = cluster_with_segments(15, 2);
    let keeper = Keeper::new(&cluster, &["main"]);
    let content = fs::read(wal(&cluster, &segments[0])).unwrap();
    let refused = |name: &str, content: &[u8]| {
        let path = wal(&cluster, name);
        fs::write(&path, content).unwrap();
        let e = keeper.push(&path).unwrap_err();
        fs::remove_file(&path).unwrap();
        e
    };
    let later = "000000010000000000000123";
    // Renamed, of a later timeline under an earlier one's name, short, long, zeros, no segment.
    assert_eq!(refused(later, &content).kind(), Kind::Conflict);
    let mut of_timeline_9 = content.clone();
    of_timeline_9[4] = 9;
    fs::rename(wal(&cluster, &segments[0]), wal(&cluster, "aside")).unwrap();
    assert_eq!(refused(&segments[0], &of_timeline_9).kind(), Kind::Conflict);
    let mut of_16 = content.clone();
    of_16[..2].copy_from_slice(&0xD113u16.to_le_bytes());
    assert_eq!(refused(&segments[0], &of_16).kind(), Kind::Conflict);
    assert_eq!(refused(&segments[0], &content[1..]).kind(), Kind::Local);
    assert_eq!(refused(&segments[0], &[&content[..], b"x"].concat()).kind(), Kind::Local);
    assert_eq!(refused(&segments[0], &vec![0; content.len()]).kind(), Kind::Local);
    assert_eq!(refused(&segments[0], b"").kind(), Kind::Local);
    assert_eq!(refused("00000002.history", b"nonsense\n").kind(), Kind::Local);
    assert_eq!(refused("00000002.history", b"2\t0/3000000\tits own parent\n").kind(), Kind::Local);
    // Names that no server archives.
    for name in ["00000001000000000000001a", "RECOVERYXLOG", "0000000100000000000010FF"] {
        assert!(matches!(refused(name, &content).kind(), Kind::Usage | Kind::Conflict), "{name}");
    }
    assert_eq!(
        keeper.push(&wal(&cluster, "000000010000000000000099")).unwrap_err().kind(),
        Kind::Local
    );
    assert!(!keeper.object("main", &cluster, &segments[0]).exists());
}

#[test]
fn a_segment_whose_timeline_is_no_ancestor_is_refused() {
    let (cluster, segments) = cluster_with_segments(15, 1);
    let keeper = Keeper::new(&cluster, &["main"]);
    // Timeline 3 says that it comes from 2 alone, yet the segment begins with WAL of 1.
    let name = segments[0].replacen("00000001", "00000003", 1);
    fs::copy(wal(&cluster, &segments[0]), wal(&cluster, &name)).unwrap();
    keeper.pushed(&cluster, &name);
    fs::write(wal(&cluster, "00000003.history"), "2\t0/1000000\tx\n").unwrap();
    let e = keeper.push(&wal(&cluster, &name)).unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict, "{e}");
    fs::write(wal(&cluster, "00000003.history"), "1\t0/1800000\tx\n2\t0/1900000\tx\n").unwrap();
    assert_eq!(keeper.pushed(&cluster, &name), [Stored::Already]);
}

#[test]
fn wal_of_a_version_from_the_future_is_stored_unread() {
    let (cluster, segments) = cluster_with_segments(15, 1);
    let keeper = Keeper::new(&cluster, &["main"]);
    let mut content = fs::read(wal(&cluster, &segments[0])).unwrap();
    content[..2].copy_from_slice(&0xD199u16.to_le_bytes());
    fs::write(wal(&cluster, &segments[0]), &content).unwrap();
    assert_eq!(keeper.pushed(&cluster, &segments[0]), [Stored::New]);
    assert_eq!(keeper.served(&segments[0]), content);
}

#[test]
fn nothing_of_the_content_can_be_read_in_the_repository() {
    let (cluster, _) = cluster_with_segments(15, 1);
    let marker = "a row that must stay a secret";
    cluster.sql(&format!("SELECT pg_logical_emit_message(false, 'test', '{marker}')"));
    let segment = cluster.switch_wal();
    let keeper = Keeper::new(&cluster, &["main"]);
    keeper.pushed(&cluster, &segment);
    let find = |bytes: &[u8]| bytes.windows(marker.len()).any(|w| w == marker.as_bytes());
    assert!(find(&fs::read(wal(&cluster, &segment)).unwrap()));
    for object in crate::support::objects::objects(&keeper.places.objects("main")) {
        assert!(!find(&fs::read(&object.path).unwrap()), "{}", object.name);
    }
}

#[test]
fn wal_that_does_not_come_is_waited_for_and_named() {
    let (cluster, segments) = cluster_with_segments(15, 3);
    let keeper = Keeper::new(&cluster, &["main"]);
    let store = keeper.store("main", &cluster);
    let within = std::time::Duration::from_millis(300);
    let size = SegmentSize::new(1 << 20).unwrap();
    let names: Vec<SegmentName> = segments.iter().map(|s| s.parse().unwrap()).collect();
    let number = |i: usize| names[i].number(size).unwrap();
    keeper.pushed(&cluster, &segments[0]);
    // What pg_wal has would be stored with the one behind it.
    let (missing, aside) = (wal(&cluster, &segments[1]), keeper.scratch.join("aside"));
    fs::rename(&missing, &aside).unwrap();
    keeper.pushed(&cluster, &segments[2]);
    fs::rename(&aside, &missing).unwrap();
    let mut waited = Vec::new();
    let mut on_wait = |segment: SegmentName| waited.push(segment);
    let range =
        wait_for_range(&store, names[0].timeline, number(0), number(2), size, within, &mut on_wait);
    let e = run(range).unwrap_err();
    assert_eq!(e.kind(), Kind::Wal);
    assert!(e.to_string().contains(&segments[1]), "{e}");
    assert_eq!(waited, [names[1]]);

    let path = wal(&cluster, &segments[1]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(within);
            keeper.push(&path).unwrap();
        });
        let stored = run(wait_for_segment(&store, names[1], within * 40)).unwrap();
        assert_eq!(stored.size, 1 << 20);
    });
}
