//! `archive-push` and `archive-get`: what was acknowledged is there, and what a recovery gets is whole.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    Run, after_a_boot, all, assert_sound, is_rest, is_there, killed_and_run_again, whole_or_none,
};
use crate::support::{disk::Tree, host::Host, pgkeep::run_to_end, scratch, wait_until};

const REPOSITORY: &str = "repository/main";

/// Where a segment's object is.
fn object_of(tree: &Tree, segment: &str) -> PathBuf {
    let mut objects = tree.files(Path::new(REPOSITORY)).map(|(path, _)| path);
    let object = objects.find(|path| path.file_name().is_some_and(|name| name == segment));
    object.unwrap_or_else(|| panic!("{segment} isn't stored")).to_owned()
}

#[test]
fn a_push_acknowledges_what_is_durable_and_leaves_nothing_half() {
    let host = Host::with(3);
    let [first, ahead, _] = &host.segments[..] else { unreachable!() };
    let Some(new) = Run::of("archive-push", host.root(), &host.push(first)) else { return };
    let again = Run::of("archive-push again", host.root(), &host.push(first)).unwrap();
    let known = Run::of("archive-push ahead", host.root(), &host.push(ahead)).unwrap();
    let end = new.end().now();
    let acknowledged = host.segments.iter().map(|segment| object_of(&end, segment));
    let acknowledged: Vec<PathBuf> = acknowledged.collect();
    let holds = |tree: &Tree, ended: bool, objects: &[PathBuf]| {
        whole_or_none(tree, &end, Path::new(REPOSITORY))?;
        objects.iter().filter(|_| ended).try_for_each(|object| is_there(tree, &end, object))
    };
    let mut count = 0;
    // Each push: what it acknowledges, and what a crash after the ones before it may have forgotten.
    for (run, segment, stored) in
        [(&new, first, 0..1), (&again, first, 0..3), (&known, ahead, 0..3)]
    {
        let promise = |tree: &Tree, ended: bool| holds(tree, ended, &acknowledged[stored.clone()]);
        let seen = run.keeps(&promise, is_rest);
        let step = if all() { 1 } else { seen.different.len().div_ceil(40) };
        // The last one is what is there in the end.
        for (tree, ended) in seen.different.into_iter().rev().step_by(step) {
            count += 1;
            let what = format!("after {}", run.what);
            after_a_boot(tree).write(host.root());
            assert_sound(&host.pgkeep, &what);
            if ended {
                host.assert_got(segment);
            }
            let pushed =
                host.pgkeep.run_in(&host.data, ["archive-push", &format!("pg_wal/{segment}")]);
            assert_eq!(pushed.code, 0, "{what}: {pushed}");
            host.assert_got(segment);
            assert_sound(&host.pgkeep, &what);
        }
    }
    eprintln!("{count} trees were looked at with the program");
}

/// The syncs of a push that stores one segment into an archive of which nothing is there yet.
#[test]
fn no_sync_of_a_push_may_be_missing() {
    let host = Host::with(1);
    let segment = &host.segments[0];
    let Some(run) = Run::of("archive-push", host.root(), &host.push(segment)) else { return };
    let end = run.end().now();
    let object = object_of(&end, segment);
    let promise = |tree: &Tree, ended: bool| {
        whole_or_none(tree, &end, Path::new(REPOSITORY))?;
        if ended { is_there(tree, &end, &object) } else { Ok(()) }
    };
    let needed = run.needs_each_sync(&promise, 1, |_| false);
    assert!(needed >= 5, "{needed}");
}

#[test]
fn a_push_that_was_killed_and_is_run_again_is_durable() {
    let host = Host::with(1);
    let segment = &host.segments[0];
    let push = || host.push(segment);
    let times = killed_and_run_again(
        "archive-push",
        host.root(),
        [&push, &push],
        |_| true,
        None,
        |tree, end, ended| {
            whole_or_none(tree, end, Path::new(REPOSITORY))?;
            if ended { is_there(tree, end, &object_of(end, segment)) } else { Ok(()) }
        },
    );
    assert!(times >= 10, "{times}");
}

/// A recovery begins anew after a power loss. What was fetched ahead was never synced, and is nothing then.
#[test]
fn a_get_after_a_power_loss_takes_nothing_that_was_fetched_before() {
    let host = Host::with(4);
    for segment in &host.segments {
        let pushed = run_to_end(&mut host.push(segment));
        assert_eq!(pushed.code, 0, "{pushed}");
    }
    // What fetches ahead stays as long as there is a server.
    let server = host.data.join("postmaster.pid");
    scratch::write(&server, "4711\n");
    let first = host.command(&["archive-get", &host.segments[0], "pg_wal/RECOVERYXLOG"]);
    let run = std::thread::scope(|scope| {
        scope.spawn(|| {
            let end = Instant::now() + Duration::from_secs(20);
            while Instant::now() < end && notes_below(&host.root().join("state")) < 3 {
                std::thread::sleep(Duration::from_millis(50));
            }
            fs::remove_file(&server).unwrap();
        });
        Run::beside_others("archive-get", host.root(), &first, |path| path == server)
    });
    let Some(run) = run else { return };
    let end = run.end().now();
    let target = Path::new("data/pg_wal/RECOVERYXLOG");
    let promise = |tree: &Tree, _: bool| match tree.file(target) {
        Some(_) => is_there(tree, &end, target),
        None => Ok(()),
    };
    let seen = run.keeps(&promise, is_rest);
    let is_fetched = |tree: &Tree| tree.files(Path::new("state")).count() > 5;
    let (with, without): (Vec<_>, Vec<_>) =
        seen.different.into_iter().partition(|(tree, _)| is_fetched(tree));
    assert!(!with.is_empty(), "nothing was fetched ahead");
    for trees in [with, without] {
        let step = if all() { 1 } else { trees.len().div_ceil(20) };
        for (mut tree, _) in trees.into_iter().step_by(step) {
            tree.0.remove(Path::new("data/postmaster.pid"));
            after_a_boot(tree).write(host.root());
            host.assert_got(&host.segments[1]);
            host.assert_got(&host.segments[0]);
            wait_until("nothing fetches ahead any more", 30, || !runs_with(host.pgkeep.config()));
        }
    }
}

/// How many segments a spool says that it has. It changes while it is looked at.
fn notes_below(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let notes = entries.map(|entry| match entry.path() {
        path if path.is_dir() => notes_below(&path),
        path => usize::from(path.extension().is_some_and(|e| e == "json")),
    });
    notes.sum()
}

/// Whether a process runs that has this in its command line.
fn runs_with(config: &Path) -> bool {
    let processes = fs::read_dir("/proc").expect("read /proc").flatten();
    let mut lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.any(|line| String::from_utf8_lossy(&line).contains(&*config.to_string_lossy()))
}
