//! File systems that are full for real: with room for so many pages, or so many files, and then for more.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{
    disk::Tree,
    host::{Host, Small},
    install::is_root,
    pgkeep::{Output, run_to_end},
    scratch::own,
};

use super::assert_sound;

const PAGE: u64 = 4096;

/// A file system in memory over a directory, which goes with this.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Over the directory at `path`, with what is in it. `None`, and a loud word, where none can be mounted.
    pub fn over(path: &Path) -> Option<Self> {
        if !is_root() {
            eprintln!("SKIPPED: only root can mount a small disk");
            return None;
        }
        let before = Tree::read(path);
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64m,mode=0700", "none"]).arg(path);
        let output = run_to_end(&mut mount);
        if output.code != 0 {
            eprintln!("SKIPPED: no small disk can be mounted here: {output}");
            return None;
        }
        let disk = SmallDisk { path: path.to_owned() };
        own(path);
        before.write(path);
        Some(disk)
    }

    /// How many pages and how many files there are.
    fn used(&self) -> (u64, u64) {
        let disk = rustix::fs::statvfs(&self.path).expect("look at the disk");
        (disk.f_blocks - disk.f_bfree, disk.f_files - disk.f_ffree)
    }

    fn limit(&self, pages: u64, files: u64) -> Output {
        // None at all would be no limit.
        let size = (pages.max(1) * PAGE).to_string();
        let mut mount = Command::new("mount");
        mount.arg("-o").arg(format!("remount,size={size},nr_inodes={}", files.max(1)));
        run_to_end(mount.arg(&self.path))
    }

    /// Leaves room for so many more pages, or files, and no more.
    pub fn leave(&self, room: Room) {
        let limit = || {
            let (pages, files) = self.used();
            match room {
                Room::Pages(more) => self.limit(pages + more, files + 10_000),
                Room::Files(more) => self.limit(pages + 10_000, files + more),
            }
        };
        // Where somebody writes at the same time, there may be more by now.
        let mut limited = limit();
        for _ in 0..100 {
            if limited.code == 0 {
                break;
            }
            limited = limit();
        }
        assert_eq!(limited.code, 0, "{limited}");
    }

    pub fn make_room(&self) {
        let limited = self.limit(16_384, 100_000);
        assert_eq!(limited.code, 0, "{limited}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whatever is open there still.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// How much more there is room for.
#[derive(Debug, Clone, Copy)]
pub enum Room {
    Pages(u64),
    Files(u64),
}

/// Calls `full` with ever more room, until it says that there was enough; how often there wasn't.
fn with_ever_more_room(
    steps: impl Iterator<Item = u64> + Clone,
    full: impl Fn(Room) -> bool,
) -> u64 {
    let mut times = 0;
    for kind in [Room::Pages, Room::Files] {
        for more in steps.clone() {
            if full(kind(more)) {
                break;
            }
            times += 1;
        }
    }
    times
}

fn assert_no_space(output: &Output, code: i32, room: Room) {
    assert_eq!(output.code, code, "{room:?}: {output}");
    assert!(output.stderr.contains("No space left on device"), "{room:?}: {output}");
    assert!(!output.stderr.contains("a fault in pgkeep"), "{room:?}: {output}");
}

#[test]
fn a_push_to_a_full_disk_fails_until_there_is_room() {
    let host = Host::with(1);
    let segment = &host.segments[0];
    let root = host.pgkeep.repository();
    let Some(disk) = SmallDisk::over(&root) else { return };
    let base = Tree::read(&root);
    let times = with_ever_more_room(0..100, |room| {
        disk.leave(room);
        let pushed = run_to_end(&mut host.push(segment));
        disk.make_room();
        let was_enough = pushed.code == 0;
        if !was_enough {
            assert_no_space(&pushed, 3, room);
            assert!(pushed.stderr.contains(segment.as_str()), "{pushed}");
            assert!(pushed.stderr.contains("make room"), "{pushed}");
        }
        assert_sound(&host.pgkeep, &room);
        assert_eq!(run_to_end(&mut host.push(segment)).code, 0, "{room:?}");
        host.assert_got(segment);
        base.write(&root);
        was_enough
    });
    eprintln!("the disk was full {times} times");
    assert!(times >= 4, "{times}");
}

#[test]
fn a_state_dir_without_room_stops_neither_archiving_nor_recovery() {
    let host = Host::with(3);
    let Some(disk) = SmallDisk::over(&host.pgkeep.scratch().folder("state")) else { return };
    for room in [Room::Pages(0), Room::Pages(1), Room::Files(0), Room::Files(1), Room::Files(3)] {
        Tree::default().write(&disk.path);
        disk.leave(room);
        // Recovery's own process fetches ahead only for a server.
        for segment in &host.segments {
            let pushed = run_to_end(&mut host.push(segment));
            assert_eq!(pushed.code, 0, "{room:?}: {pushed}");
            host.assert_got(segment);
        }
        disk.make_room();
    }
}

#[test]
fn a_get_to_a_full_disk_says_so_and_nothing_else() {
    let host = Host::with(1);
    let segment = &host.segments[0];
    assert_eq!(run_to_end(&mut host.push(segment)).code, 0);
    let Some(disk) = SmallDisk::over(&host.data.join("pg_wal")) else { return };
    let target = host.data.join("pg_wal/RECOVERYXLOG");
    // A segment has 256 pages.
    let times = with_ever_more_room([0, 1, 2, 100, 254, 255, 300].into_iter(), |room| {
        let _ = std::fs::remove_file(&target);
        disk.leave(room);
        let got = host.pgkeep.run_in(&host.data, ["archive-get", segment, "pg_wal/RECOVERYXLOG"]);
        disk.make_room();
        let was_enough = got.code == 0;
        if !was_enough {
            assert_no_space(&got, 126, room);
            assert!(got.stderr.contains("pg_wal/RECOVERYXLOG"), "{room:?}: {got}");
            assert!(!target.exists(), "{room:?}");
        }
        host.assert_got(segment);
        was_enough
    });
    assert!(times >= 7, "{times}");
}

#[test]
fn a_restore_to_a_full_disk_does_not_start_and_is_run_again() {
    let small = Small::new();
    small.pgkeep.ok(["backup"]);
    small.wait_for_quiet();
    let Small { pgkeep, cluster } = small;
    drop(cluster);
    let data = pgkeep.scratch().folder("restored");
    let Some(disk) = SmallDisk::over(&data) else { return };
    let restore = || {
        let mut command = pgkeep.command(["restore", "--target-immediate", "--pgdata"]);
        command.arg(&data);
        run_to_end(&mut command)
    };
    let empty = disk.used();
    assert_eq!(restore().code, 0);
    let (base, full) = (Tree::read(&data.join("base")), disk.used());
    let control = data.join("global/pg_control");
    let (pages, files) = (full.0 - empty.0, full.1 - empty.1);
    let steps = |all: u64| [0, 1, 2, all / 3, all / 2, all - 8, all - 1];
    let rooms = steps(pages).map(Room::Pages).into_iter().chain(steps(files).map(Room::Files));
    let mut times = 0;
    for room in rooms {
        Tree::default().write(&data);
        disk.leave(room);
        let output = restore();
        disk.make_room();
        if output.code != 0 {
            times += 1;
            assert_no_space(&output, 10, room);
            assert!(output.stderr.contains("restored"), "{room:?}: {output}");
            assert!(!control.exists(), "{room:?}");
        }
        let again = restore();
        let is_done = output.code == 0 && again.code == 9;
        assert!(again.code == 0 || is_done, "{room:?}: {again}");
        assert!(control.exists() && Tree::read(&data.join("base")).differences(&base).is_empty());
    }
    eprintln!("the disk was full {times} times, of {pages} pages and {files} files");
    assert!(times >= 10, "{times}");
}
