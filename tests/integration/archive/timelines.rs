//! Promotions and clones: what they leave in the archive, and what is served of it.

use std::fs;

use pgkeep::{
    archive::{Got, Stored},
    error::Kind,
    postgres::{SegmentName, WalFile},
};

use super::{Keeper, reset_wal, run, system, wal};
use crate::support::{Cluster, Stop, objects::flip_bit, scratch::write, wait_until};

/// A primary and two standbys that were promoted within the same segment, the second after more
/// had been written. The primary then closed the segment and went on.
struct Fork {
    primary: Cluster,
    first: Cluster,
    second: Cluster,
    /// The segment on the old timeline.
    segment: String,
    next: String,
    /// The names of the new timeline's history file and first segment.
    history: String,
    begun: String,
}

fn fork(timeline: &str) -> Fork {
    let mut primary = Cluster::builder(15).wal_segsize(1).start();
    let new = format!("{:08X}", u32::from_str_radix(timeline, 16).unwrap() + 1);
    reset_wal(&mut primary, &format!("{timeline}0000000000000100"));
    if timeline != "00000001" {
        let history = wal(&primary, &format!("{timeline}.history"));
        write(&history, "1\t0/10000000\ta test went here at once\n");
    }
    let (first, second) = (Cluster::standby_of(&primary), Cluster::standby_of(&primary));
    primary.switch_wal();
    primary.make_table("t", 10);
    let segment = primary.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    first.catch_up_with(&primary);
    first.promote();
    primary.insert("t", 10);
    second.catch_up_with(&primary);
    second.promote();
    primary.insert("t", 10);
    assert_eq!(primary.switch_wal(), segment, "all of this happened in one segment");
    let next = primary.switch_wal();
    let fork = Fork {
        begun: segment.replacen(timeline, &new, 1),
        history: format!("{new}.history"),
        primary,
        first,
        second,
        segment,
        next,
    };
    for server in [&fork.first, &fork.second] {
        let partial = wal(server, &format!("{}.partial", fork.segment));
        wait_until("the partial segment is there", 20, || partial.exists());
        server.sql("CREATE TABLE own (id int)");
        assert_eq!(server.switch_wal(), fork.begun);
    }
    fork
}

#[test]
fn two_promotions_leave_two_partials_and_one_new_timeline() {
    let fork = fork("0000000F");
    let keeper = Keeper::new(&fork.primary, &["main", "second"]);
    let partial = format!("{}.partial", fork.segment);
    assert_eq!(fork.history, "00000010.history");
    let new = [Stored::New, Stored::New];

    assert_eq!(keeper.pushed(&fork.first, &fork.history), new);
    assert_eq!(keeper.pushed(&fork.first, &partial), new);
    assert_eq!(keeper.pushed(&fork.first, &fork.begun), new, "it begins with the old timeline");
    let short = fs::read(wal(&fork.first, &partial)).unwrap();
    assert_eq!(keeper.served(&fork.segment), short, "a partial one in place of the segment");

    // The second took the same timeline id, as one does that can't see the archive.
    for name in [&fork.history, &fork.begun] {
        let stored = fs::read(keeper.object("main", &fork.primary, name)).unwrap();
        let e = keeper.push(&wal(&fork.second, name)).unwrap_err();
        assert_eq!(e.kind(), Kind::Conflict, "{e}");
        assert_eq!(fs::read(keeper.object("main", &fork.primary, name)).unwrap(), stored);
    }
    assert_eq!(keeper.pushed(&fork.second, &partial), new, "both partials are kept");
    assert_eq!(keeper.pushed(&fork.second, &partial), [Stored::Already, Stored::Already]);
    let long = fs::read(wal(&fork.second, &partial)).unwrap();
    assert_ne!(long, short);
    assert_eq!(keeper.served(&fork.segment), long, "the one with the most WAL");
    assert_eq!(keeper.served(&partial), long);
    assert_eq!(keeper.served(&fork.history), fs::read(wal(&fork.first, &fork.history)).unwrap());

    // The longest one in one repository only.
    let longest = |name: &str| {
        let store = keeper.store(name, &fork.primary);
        let segment: SegmentName = fork.segment.parse().unwrap();
        let ends = run(store.partials(segment)).unwrap().into_iter().map(|object| {
            let summary = run(store.summary(&object)).unwrap().unwrap();
            (summary.segment.unwrap().end, keeper.places.objects(name).join(object.as_str()))
        });
        ends.max().unwrap().1
    };
    fs::remove_file(longest("main")).unwrap();
    assert_eq!(keeper.served(&fork.segment), long);
    // Damaged, it might be the longest: the short one isn't served for it.
    let damaged = longest("second");
    flip_bit(&damaged, 600);
    assert_eq!(keeper.refused(&fork.segment).kind(), Kind::Damaged);
    flip_bit(&damaged, -100);
    assert_eq!(keeper.refused(&fork.segment).kind(), Kind::Damaged);
    // Healed by the server that still has it: in one repository anew, in the other beside it.
    assert_eq!(keeper.pushed(&fork.second, &partial), [Stored::New, Stored::Repaired]);
    assert_eq!(keeper.served(&fork.segment), long);
    fs::remove_file(longest("main")).unwrap();
    assert_eq!(keeper.served(&fork.segment), long, "from the repaired copy");
    flip_bit(&damaged, -100);
    assert_eq!(keeper.served(&fork.segment), long, "the damage is found while it is read");

    // An outage: the whole segment might be in what can't be asked.
    let (second, aside) = (keeper.places.objects("second"), keeper.scratch.join("aside"));
    fs::rename(&second, &aside).unwrap();
    assert_eq!(keeper.refused(&fork.segment).kind(), Kind::Repository);
    fs::rename(&aside, &second).unwrap();

    // The old primary comes back with the whole segment.
    keeper.pushed(&fork.primary, &fork.segment);
    let whole = fs::read(wal(&fork.primary, &fork.segment)).unwrap();
    assert_ne!(whole, long);
    assert_eq!(keeper.served(&fork.segment), whole);
}

#[test]
fn each_of_two_damaged_partials_is_stored_once_more() {
    let fork = fork("00000001");
    let keeper = Keeper::new(&fork.primary, &["main"]);
    let partial = format!("{}.partial", fork.segment);
    let servers = [&fork.first, &fork.second];
    for server in servers {
        assert_eq!(keeper.pushed(server, &partial), [Stored::New]);
    }
    let store = keeper.store("main", &fork.primary);
    for object in run(store.partials(fork.segment.parse().unwrap())).unwrap() {
        flip_bit(&keeper.places.objects("main").join(object.as_str()), 600);
    }
    for server in servers {
        assert_eq!(keeper.pushed(server, &partial), [Stored::Repaired]);
    }
    for server in servers {
        assert_eq!(keeper.pushed(server, &partial), [Stored::Already]);
    }
}

/// As a server has it that was restored from the archive to a moment inside it.
#[test]
fn a_whole_segment_that_a_timeline_leaves_is_stored_as_one() {
    let fork = fork("00000001");
    let keeper = Keeper::new(&fork.primary, &["main"]);
    fs::copy(wal(&fork.first, &fork.history), wal(&fork.primary, &fork.history)).unwrap();
    assert_eq!(keeper.pushed(&fork.primary, &fork.segment), [Stored::New]);
    let store = keeper.store("main", &fork.primary);
    let segment: SegmentName = fork.segment.parse().unwrap();
    assert!(run(store.has(WalFile::Segment(segment))).unwrap());
    assert!(run(store.partials(segment)).unwrap().is_empty());
}

/// Two servers that took the same timeline's number at different places. What the one has written is under names that
/// the other hasn't reached yet, and its history was never offered.
#[test]
fn a_segment_of_another_history_is_a_conflict_whatever_its_name() {
    let fork = fork("00000001");
    let keeper = Keeper::new(&fork.primary, &["main"]);
    keeper.pushed(&fork.first, &fork.history);
    assert_eq!(keeper.pushed(&fork.first, &fork.begun), [Stored::New], "it is the one known");
    let number = u64::from_str_radix(&fork.begun[16..], 16).unwrap();
    let later = format!("{}{:08X}", &fork.begun[..16], number + 1);
    fork.second.sql("CREATE TABLE more AS SELECT generate_series(1, 20000) AS n");
    fork.second.switch_wal();
    let e = keeper.push(&wal(&fork.second, &later)).unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict, "{e}");
    assert!(e.to_string().contains(&fork.history), "{e}");
    let store = keeper.store("main", &fork.primary);
    assert!(!run(store.has(WalFile::Segment(later.parse().unwrap()))).unwrap());
}

#[test]
fn the_history_that_one_repository_does_not_take_is_stored_in_the_others() {
    let fork = fork("00000001");
    let keeper = Keeper::new(&fork.primary, &["first", "gone", "blocked", "last"]);
    let path = |name: &str| match name {
        "aside" => keeper.scratch.join(name),
        name => keeper.places.objects(name),
    };
    let timelines = format!("clusters/main/wal/{}", system(&fork.primary));
    fs::rename(path("gone"), path("aside")).unwrap();
    // It opens, and can't have a folder for the timeline.
    fs::create_dir_all(path("blocked").join(&timelines)).unwrap();
    let in_the_way = path("blocked").join(&timelines).join("00000002");
    fs::write(&in_the_way, "").unwrap();
    let there = |name: &str| {
        [&fork.history, &fork.begun]
            .map(|file| path(name).join(&timelines).join(&file[..8]).join(file).exists())
    };

    let e = keeper.push(&wal(&fork.first, &fork.begun)).unwrap_err();
    assert_eq!(e.kind(), Kind::Repository, "{e}");
    for part in ["repository gone", "repository blocked: store 00000002.history first"] {
        assert!(e.to_string().contains(part), "{e}");
    }
    for name in ["first", "last"] {
        assert_eq!(there(name), [true, true], "{name}");
    }
    // A segment without its history would be of no use: that one gets neither.
    assert_eq!(there("blocked"), [false, false]);

    fs::rename(path("aside"), path("gone")).unwrap();
    fs::remove_file(in_the_way).unwrap();
    let stored = keeper.pushed(&fork.first, &fork.begun);
    assert_eq!(stored, [Stored::Already, Stored::New, Stored::New, Stored::Already]);
    assert_eq!(["gone", "blocked"].map(there), [[true, true]; 2]);
}

#[test]
fn a_partial_does_not_hide_a_gap() {
    let fork = fork("00000001");
    let keeper = Keeper::new(&fork.primary, &["main"]);
    let partial = format!("{}.partial", fork.segment);
    keeper.pushed(&fork.first, &partial);
    assert!(matches!(keeper.get(&fork.segment), Ok(Got::Served { .. })));
    // The old primary had gone on: the whole segment existed, and may still come, though that server
    // doesn't have it beside the next one any more.
    let (whole, aside) = (wal(&fork.primary, &fork.segment), keeper.scratch.join("aside"));
    fs::rename(&whole, &aside).unwrap();
    keeper.pushed(&fork.primary, &fork.next);
    fs::rename(&aside, &whole).unwrap();
    assert_eq!(keeper.get(&fork.segment).unwrap(), Got::Absent);
    keeper.pushed(&fork.primary, &fork.segment);
    assert_eq!(keeper.served(&fork.segment), fs::read(wal(&fork.primary, &fork.segment)).unwrap());
}

#[test]
fn a_clone_that_archives_into_the_same_place_is_refused() {
    let mut original = Cluster::builder(15).wal_segsize(1).start();
    let shared = original.switch_wal();
    original.stop(Stop::Fast);
    let mut clone = original.copy_offline();
    original.start();
    clone.start();
    let keeper = Keeper::new(&original, &["main"]);
    assert_eq!(keeper.pushed(&original, &shared), [Stored::New]);
    assert_eq!(keeper.pushed(&clone, &shared), [Stored::Already], "what both have is the same");

    original.make_table("mine", 5);
    clone.make_table("yours", 5);
    let segment = original.switch_wal();
    assert_eq!(clone.switch_wal(), segment);
    assert_eq!(keeper.pushed(&original, &segment), [Stored::New]);
    let e = keeper.push(&wal(&clone, &segment)).unwrap_err();
    assert_eq!(e.kind(), Kind::Conflict, "{e}");
    assert_eq!(keeper.served(&segment), fs::read(wal(&original, &segment)).unwrap());
}
