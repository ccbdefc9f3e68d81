//! `archive-push` and `archive-get`: what was acknowledged is there, and what a recovery gets is whole.

use std::path::{Path, PathBuf};

use super::{
    Run, after_a_boot, all, assert_sound, is_rest, is_there, killed_and_run_again, whole_or_none,
};
use crate::support::{disk::Tree, host::Host};

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
    let needed = run.needs_each_sync(&promise, |_| false);
    assert!(needed >= 5, "{needed}");
}

#[test]
fn a_push_that_was_killed_and_is_run_again_is_durable() {
    let host = Host::with(1);
    let segment = &host.segments[0];
    let times = killed_and_run_again(
        "archive-push",
        host.root(),
        || host.push(segment),
        |_| true,
        None,
        |tree, end| is_there(tree, end, &object_of(end, segment)),
    );
    assert!(times >= 10, "{times}");
}
