//! What a restore refuses, before it has changed anything, and links that lead elsewhere.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::{Path, PathBuf},
    sync::Arc,
};

use pgkeep::{
    error::Kind,
    progress::{Progress, Silent},
    restore::marker::MARKER,
};

use super::{House, crashes::Crash, made_up, names, store::Files};
use crate::support::Scratch;

#[test]
fn directories_in_use_are_refused_and_left_alone() {
    let files = made_up();
    let (house, stored) = House::with(&files);
    let refused = |why: &str| {
        let before = Files::read(house.scratch.path());
        let e = house.restore(&stored).unwrap_err();
        assert!(e.to_string().contains(why), "{e}");
        let after = Files::read(house.scratch.path());
        assert!(before.files == after.files && before.directories == after.directories, "{why}");
        e.kind()
    };
    let data = house.pgdata();

    fs::create_dir(&data).unwrap();
    fs::write(data.join("somebody's file"), "precious").unwrap();
    assert_eq!(refused("it isn't empty"), Kind::Conflict);
    fs::write(data.join(MARKER), "{}").unwrap();
    assert_eq!(refused("isn't a restore's marker"), Kind::Conflict);
    fs::remove_file(data.join(MARKER)).unwrap();
    symlink("/etc/hostname", data.join(MARKER)).unwrap();
    assert_eq!(refused("isn't a restore's marker"), Kind::Conflict);
    fs::write(data.join("postmaster.pid"), format!("{}\n/x\n", std::process::id())).unwrap();
    assert_eq!(refused("a server may be running there"), Kind::Conflict);
    fs::remove_dir_all(&data).unwrap();

    fs::create_dir(house.space()).unwrap();
    fs::write(house.space().join("live"), "precious").unwrap();
    assert_eq!(refused("it isn't empty"), Kind::Conflict);
    fs::remove_dir_all(house.space()).unwrap();

    fs::write(&data, "a file").unwrap();
    assert_eq!(refused("it is not a directory"), Kind::Conflict);
}

#[test]
fn impossible_requests_are_refused_before_anything_is_written() {
    let files = made_up();
    let (house, stored) = House::with(&files);
    let before = Files::read(house.scratch.path()).directories;
    let refused = |pgdata: &Path, spaces: &[(u32, PathBuf)], why: &str| {
        let spaces = spaces.iter().cloned().collect();
        let e = house.restore_to(&stored.record, pgdata, &spaces, Arc::new(Silent)).unwrap_err();
        assert!(e.to_string().contains(why), "{e}");
        assert_eq!(Files::read(house.scratch.path()).directories, before);
    };
    let space = || (16400, house.space());
    let data = house.pgdata();
    refused(&data, &[], "where tablespace 16400 goes");
    refused(&data, &[space(), (16402, house.path("x"))], "no tablespace 16402");
    refused(&data, &[(16400, data.join("inside"))], "only to a place outside");
    refused(&data, &[(16400, data.clone())], "only to a place outside");
    refused(&data, &[(16400, house.path("missing/space"))], "the directory above");
    refused(&house.path("missing/data"), &[space()], "the directory above");
    for inside in ["repository", "repository/data", "repository/clusters"] {
        refused(&house.path(inside), &[space()], "the repository at");
    }
    let elsewhere = Scratch::new("link");
    refused(house.scratch.path(), &[(16400, elsewhere.join("space"))], "the repository at");
    symlink(house.path("repository"), elsewhere.join("link")).unwrap();
    refused(&elsewhere.join("link/data"), &[space()], "the repository at");
    // The marker of a restore can't name them, nor can its report.
    let strange = elsewhere.join(OsStr::from_bytes(b"not UTF-8 \xff"));
    refused(&strange, &[space()], "only paths in UTF-8");
    fs::create_dir(&strange).unwrap();
    symlink(&strange, elsewhere.join("plain")).unwrap();
    refused(&elsewhere.join("plain/data"), &[space()], "only paths in UTF-8");
    refused(&data, &[(16400, elsewhere.join("plain/space"))], "only paths in UTF-8");
    assert_eq!(fs::read_dir(&strange).unwrap().count(), 0);
}

#[test]
fn links_are_never_followed_while_clearing_or_writing() {
    let files = made_up();
    let (house, stored) = House::with(&files);
    let victim = house.path("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("precious"), "precious").unwrap();
    // What an interrupted restore left has links in it: in clearing they are removed, not followed.
    let tablespaces = BTreeMap::from([(16400, house.space())]);
    house.restore_to(&stored.record, &house.pgdata(), &tablespaces, Crash::at(12)).unwrap_err();
    fs::remove_dir_all(house.pgdata().join("base")).unwrap();
    symlink(&victim, house.pgdata().join("base")).unwrap();
    symlink(&victim, house.space().join("link")).unwrap();
    symlink(victim.join("precious"), house.pgdata().join("a link")).unwrap();
    house.restore(&stored).unwrap();
    house.assert_restored(&files);
    assert_eq!(names(&victim), ["precious"]);

    // And one that appears while files are written makes it fail.
    fs::remove_dir_all(house.pgdata()).unwrap();
    fs::remove_dir_all(house.space()).unwrap();
    struct Attack(PathBuf, PathBuf);
    impl Progress for Attack {
        fn step(&self, _: &str) {}
        fn total(&self, _: Option<u64>) {
            fs::create_dir_all(&self.0).unwrap();
            symlink(&self.1, self.0.join("base")).unwrap();
        }
        fn advance(&self, _: u64) {}
        fn warn(&self, _: &str) {}
    }
    let attack = Arc::new(Attack(house.pgdata(), victim.clone()));
    let result = house.restore_to(&stored.record, &house.pgdata(), &tablespaces, attack);
    assert_eq!(result.unwrap_err().kind(), Kind::Local);
    assert_eq!(names(&victim), ["precious"]);
    house.assert_not_startable();
}

#[test]
fn two_restores_to_one_directory_at_once_are_refused() {
    let files = made_up();
    let (house, stored) = House::with(&files);
    fs::create_dir(house.pgdata()).unwrap();
    let held = fs::File::open(house.pgdata()).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let e = house.restore(&stored).unwrap_err();
    assert!(e.to_string().contains("another restore is writing there"), "{e}");
}
