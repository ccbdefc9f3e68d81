//! Getting: what is served, what is absent, and what is neither.

use std::{fs, path::Path};

use pgkeep::{archive::Got, archive::Stored, error::Kind};

use super::{Keeper, cluster_with_segments, reset_wal, wal};
use crate::support::{
    Cluster, Stop,
    objects::{flip_bit, swap},
};

#[test]
fn absent_is_said_only_when_every_repository_has_said_so() {
    let (cluster, segments) = cluster_with_segments(15, 2);
    let keeper = Keeper::new(&cluster, &["main", "second"]);
    // Nothing was ever archived: the folder of the system's WAL isn't there.
    assert_eq!(keeper.refused(&segments[0]).kind(), Kind::Wal);
    keeper.pushed(&cluster, &segments[0]);
    for absent in [&segments[1], "00000002.history", "000000010000000000000001.00000028.backup"] {
        assert_eq!(keeper.get(absent).unwrap(), Got::Absent, "{absent}");
    }
    let outage = |what: &str, kind: Kind, breaks: &dyn Fn(&Path), heals: &dyn Fn(&Path)| {
        let root = keeper.places.objects("second");
        breaks(&root);
        assert_eq!(keeper.refused(&segments[1]).kind(), kind, "{what}");
        // The other one has it all the same.
        assert!(matches!(keeper.get(&segments[0]), Ok(Got::Served { .. })), "{what}");
        heals(&root);
        assert_eq!(keeper.get(&segments[1]).unwrap(), Got::Absent, "{what}");
    };
    let aside = keeper.scratch.join("aside");
    let moves = |from: &str| {
        let (from, aside) = (from.to_owned(), aside.clone());
        let (there, back) = ((from.clone(), aside.clone()), (from, aside));
        (
            move |root: &Path| fs::rename(root.join(&there.0), &there.1).unwrap(),
            move |root: &Path| fs::rename(&back.1, root.join(&back.0)).unwrap(),
        )
    };
    let root_gone = (
        |root: &Path| fs::rename(root, &aside).unwrap(),
        |root: &Path| fs::rename(&aside, root).unwrap(),
    );
    outage("the root is gone", Kind::Repository, &root_gone.0, &root_gone.1);
    let not_mounted = (
        |root: &Path| {
            fs::rename(root, &aside).unwrap();
            fs::create_dir(root).unwrap();
        },
        |root: &Path| {
            fs::remove_dir(root).unwrap();
            fs::rename(&aside, root).unwrap();
        },
    );
    outage("an empty mount point", Kind::Repository, &not_mounted.0, &not_mounted.1);
    for (what, kind) in [
        ("repo.json", Kind::Repository),
        ("keys", Kind::Damaged),
        ("clusters", Kind::Wal),
        ("clusters/main/wal", Kind::Wal),
    ] {
        let (breaks, heals) = moves(what);
        outage(what, kind, &breaks, &heals);
    }
    let other_repository = (
        |root: &Path| swap(&root.join("repo.json"), &root.with_file_name("main").join("repo.json")),
        |root: &Path| swap(&root.join("repo.json"), &root.with_file_name("main").join("repo.json")),
    );
    other_repository.0(&keeper.places.objects("second"));
    keeper.refused(&segments[1]);
    other_repository.1(&keeper.places.objects("second"));
}

#[test]
fn an_outage_that_passes_is_waited_for() {
    let (cluster, segments) = cluster_with_segments(15, 1);
    let mut keeper = Keeper::new(&cluster, &["main"]);
    keeper.cluster.outage_wait = std::time::Duration::from_secs(20);
    keeper.pushed(&cluster, &segments[0]);
    let (root, aside) = (keeper.places.objects("main"), keeper.scratch.join("aside"));
    fs::rename(&root, &aside).unwrap();
    let back = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(400));
        fs::rename(&aside, &root).unwrap();
    });
    assert_eq!(keeper.served(&segments[0]), fs::read(wal(&cluster, &segments[0])).unwrap());
    back.join().unwrap();
}

#[test]
fn a_damaged_segment_is_neither_served_nor_absent() {
    let (cluster, segments) = cluster_with_segments(15, 3);
    let keeper = Keeper::new(&cluster, &["main", "second"]);
    for segment in &segments {
        keeper.pushed(&cluster, segment);
    }
    let object = |name: &str, i: usize| keeper.object(name, &cluster, &segments[i]);
    flip_bit(&object("main", 0), 777);
    assert_eq!(keeper.served(&segments[0]), fs::read(wal(&cluster, &segments[0])).unwrap());
    fs::remove_file(object("second", 0)).unwrap();
    assert_eq!(keeper.refused(&segments[0]).kind(), Kind::Damaged, "damaged here, absent there");

    // A damaged copy isn't an outage, even when the other repository has one.
    let (second, aside) = (keeper.places.objects("second"), keeper.scratch.join("aside"));
    fs::rename(&second, &aside).unwrap();
    assert_eq!(keeper.refused(&segments[0]).kind(), Kind::Damaged);
    fs::rename(&aside, &second).unwrap();

    // Each other's name: sound objects that aren't what they are called.
    for name in ["main", "second"] {
        swap(&object(name, 1), &object(name, 2));
    }
    assert_eq!(keeper.refused(&segments[1]).kind(), Kind::Damaged);
    assert_eq!(keeper.refused(&segments[2]).kind(), Kind::Damaged);
}

#[test]
fn of_several_reasons_the_one_is_told_that_waiting_does_not_help() {
    let (cluster, segments) = cluster_with_segments(15, 1);
    let mut keeper = Keeper::new(&cluster, &["damaged", "unregistered", "gone"]);
    keeper.pushed(&cluster, &segments[0]);
    flip_bit(&keeper.object("damaged", &cluster, &segments[0]), 777);
    fs::rename(keeper.places.objects("gone"), keeper.scratch.join("aside")).unwrap();
    let clusters = keeper.places.objects("unregistered").join("clusters");
    fs::rename(clusters, keeper.scratch.join("clusters")).unwrap();
    for _ in 0..keeper.repositories.len() {
        let order: Vec<_> = keeper.repositories.iter().map(|r| r.name.clone()).collect();
        assert_eq!(keeper.refused(&segments[0]).kind(), Kind::Damaged, "{order:?}");
        keeper.repositories.rotate_left(1);
    }
    keeper.repositories.retain(|repository| repository.name != "damaged");
    for _ in 0..keeper.repositories.len() {
        let order: Vec<_> = keeper.repositories.iter().map(|r| r.name.clone()).collect();
        assert_eq!(keeper.refused(&segments[0]).kind(), Kind::Wal, "{order:?}");
        keeper.repositories.rotate_left(1);
    }
}

#[test]
fn names_that_begin_alike_are_told_apart() {
    let (cluster, segments) = cluster_with_segments(15, 1);
    let keeper = Keeper::new(&cluster, &["main"]);
    let segment = &segments[0];
    let backup = format!("{segment}.00000028.backup");
    let partial = format!("{segment}.partial");
    let content = fs::read(wal(&cluster, segment)).unwrap();
    fs::write(wal(&cluster, &backup), "START WAL LOCATION: …\n").unwrap();
    fs::write(wal(&cluster, &partial), &content).unwrap();

    keeper.pushed(&cluster, &backup);
    assert_eq!(keeper.get(segment).unwrap(), Got::Absent, "a .backup is no segment");
    assert_eq!(keeper.get(&partial).unwrap(), Got::Absent);
    assert_eq!(keeper.served(&backup), fs::read(wal(&cluster, &backup)).unwrap());
    keeper.pushed(&cluster, &partial);
    keeper.pushed(&cluster, segment);
    assert_eq!(keeper.served(segment), content);
    assert_eq!(keeper.served(&partial), content);
    assert_eq!(keeper.get(&format!("{segment}.00000029.backup")).unwrap(), Got::Absent);
    // A .backup that isn't one is PostgreSQL's affair, and kept as it is.
    assert_eq!(keeper.pushed(&cluster, &backup), [Stored::Already]);
}

#[test]
fn segments_of_every_size_and_past_the_end_of_a_high_part() {
    for mebibytes in [1, 16, 64] {
        let per_high = 4096 / mebibytes;
        let mut cluster = Cluster::builder(15).wal_segsize(mebibytes).start();
        let keeper = Keeper::new(&cluster, &["main"]);
        reset_wal(&mut cluster, &format!("0000000100000000{:08X}", per_high - 2));
        let segments: Vec<_> = (0..3).map(|_| cluster.switch_wal()).collect();
        assert_eq!(segments[1], format!("0000000100000000{:08X}", per_high - 1));
        assert_eq!(segments[2], "000000010000000100000000");
        for segment in &segments {
            keeper.pushed(&cluster, segment);
            let content = fs::read(wal(&cluster, segment)).unwrap();
            assert_eq!(content.len() as u64, u64::from(mebibytes) << 20);
            assert!(keeper.served(segment) == content, "{segment}");
        }
    }
}

#[test]
fn a_segment_of_one_gibibyte() {
    let sizes = "max_wal_size = 4GB\nmin_wal_size = 2GB";
    let mut cluster = Cluster::builder(15).wal_segsize(1024).conf(sizes).start();
    let keeper = Keeper::new(&cluster, &["main"]);
    let segment = cluster.switch_wal();
    cluster.stop(Stop::Fast);
    keeper.pushed(&cluster, &segment);
    keeper.served(&segment);
    let same = std::process::Command::new("cmp")
        .args([keeper.destination(), wal(&cluster, &segment)])
        .status()
        .unwrap();
    assert!(same.success());
    let stored = fs::metadata(keeper.object("main", &cluster, &segment)).unwrap().len();
    assert!(stored < 10 << 20, "the zeros behind a switch compress well: {stored}");
}
