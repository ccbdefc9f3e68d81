//! Restores that stop anywhere: what they leave can't start, and can be restored to again.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use pgkeep::{error::Kind, progress::Progress, restore::marker::MARKER};

use super::{House, made_up, names};

/// Panics at the n-th thing it is told: as good as a crash, since nothing is cleaned up.
pub struct Crash {
    at: usize,
    told: AtomicUsize,
}

impl Crash {
    pub fn at(at: usize) -> Arc<Self> {
        Arc::new(Crash { at, told: AtomicUsize::new(0) })
    }

    fn tell(&self) {
        assert!(self.told.fetch_add(1, Ordering::Relaxed) != self.at, "crash");
    }
}

impl Progress for Crash {
    fn step(&self, _: &str) {
        self.tell();
    }

    fn total(&self, _: Option<u64>) {}

    fn advance(&self, _: u64) {
        self.tell();
    }

    fn warn(&self, message: &str) {
        assert!(message.contains("recovery_target_xid"), "{message}");
    }
}

#[test]
fn a_restore_that_was_interrupted_anywhere_can_be_run_again() {
    let files = made_up();
    let (house, stored) = House::with(&files);
    let tablespaces = BTreeMap::from([(16400, house.space())]);
    let mut crashes = 0;
    // Each crash meets what the ones before it left.
    for at in (1..10).chain((10..).step_by(13)) {
        let crash = Crash::at(at);
        let result = house.restore_to(&stored.record, &house.pgdata(), &tablespaces, crash);
        if result.is_ok() {
            break;
        }
        assert_eq!(result.unwrap_err().kind(), Kind::Internal);
        crashes += 1;
        house.assert_not_startable();
        if house.pgdata().exists() {
            // A server that is started here anyway finds no control file.
            assert!(house.pgdata().join(MARKER).exists());
        }
    }
    assert!(crashes > 10, "{crashes}");
    house.assert_restored(&files);
}

#[test]
fn a_crash_in_the_last_steps_can_be_repeated_unless_a_server_ran_since() {
    let files = made_up();
    let (house, stored) = House::with(&files);
    // Stopped before pg_control: all files are there, and both markers.
    let tablespaces = BTreeMap::from([(16400, house.space())]);
    let last_step = {
        let crash = Crash::at(usize::MAX);
        let pgdata = house.pgdata();
        house.restore_to(&stored.record, &pgdata, &tablespaces, crash.clone()).unwrap();
        fs::remove_dir_all(&pgdata).unwrap();
        fs::remove_dir_all(house.space()).unwrap();
        crash.told.load(Ordering::Relaxed) - 1
    };
    let crash = Crash::at(last_step);
    house.restore_to(&stored.record, &house.pgdata(), &tablespaces, crash).unwrap_err();
    let marker = fs::read_to_string(house.pgdata().join(MARKER)).unwrap();
    // The crash comes after the tablespace's marker was taken away, and then after pg_control.
    let finishing = marker.replace("\"writing\"", "\"finishing\"");
    assert_ne!(marker, finishing);
    fs::write(house.pgdata().join(MARKER), finishing).unwrap();
    fs::remove_file(house.space().join(MARKER)).unwrap();
    fs::rename(
        house.pgdata().join("global/pg_control.restoring"),
        house.pgdata().join("global/pg_control"),
    )
    .unwrap();
    fs::write(house.pgdata().join("postmaster.opts"), "").unwrap();
    let e = house.restore(&stored).unwrap_err();
    assert!(e.to_string().contains("a server was started there since"), "{e}");
    assert!(house.pgdata().join("global/pg_control").exists(), "it is in use");
    fs::remove_file(house.pgdata().join("postmaster.opts")).unwrap();
    house.restore(&stored).unwrap();
    house.assert_restored(&files);
}

#[test]
fn a_second_restore_elsewhere_clears_the_tablespaces_of_the_interrupted_one() {
    let files = made_up();
    let (house, stored) = House::with(&files);
    let old = BTreeMap::from([(16400, house.path("old space"))]);
    house.restore_to(&stored.record, &house.pgdata(), &old, Crash::at(9)).unwrap_err();
    assert!(!names(&house.path("old space")).is_empty());
    house.restore(&stored).unwrap();
    assert!(names(&house.path("old space")).is_empty());
    house.assert_restored(&files);
}
