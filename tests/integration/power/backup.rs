//! `backup`, `delete` and `expire`: a backup is whole or isn't one.

use std::path::{Path, PathBuf};

use super::{Run, all, assert_sound, is_rest, is_there, killed_and_run_again, whole_or_none};
use crate::{
    retention::{BASE, Chain, SECOND, command::program},
    support::{disk::Tree, host::Small},
};

const BACKUPS: &str = "repository/main/clusters/main/backups";

/// Runs a command, while the server archives.
fn run(small: &Small, what: &str, arguments: &[&str]) -> Option<Run> {
    small.wait_for_quiet();
    let theirs = |path: &Path| {
        let text = path.to_string_lossy();
        text.contains("/clusters/main/wal/") || text.contains("/state/") || is_of_server(path)
    };
    let run = Run::beside_others(what, small.root(), &small.pgkeep.command(arguments), theirs);
    small.wait_for_quiet();
    run
}

/// What a push that the server has running writes meanwhile.
fn is_of_server(path: &Path) -> bool {
    path.starts_with("state")
}

/// The folders of backups that a tree has.
fn folders(tree: &Tree) -> Vec<PathBuf> {
    let files = tree.files(Path::new(BACKUPS));
    let depth = Path::new(BACKUPS).components().count() + 1;
    let mut folders: Vec<PathBuf> =
        files.map(|(path, _)| path.components().take(depth).collect()).collect();
    folders.dedup();
    folders
}

fn is_a_backup(tree: &Tree, folder: &Path) -> bool {
    tree.file(folder.join("backup.json")).is_some() && tree.file(folder.join("deleted")).is_none()
}

/// Each backup of the tree has all that `whole` has of it, and those that are to be there are.
fn backups_are_whole(tree: &Tree, whole: &Tree, needed: &[PathBuf]) -> Result<(), String> {
    for folder in folders(whole) {
        if is_a_backup(tree, &folder) {
            for (path, _) in whole.files(&folder) {
                is_there(tree, whole, path)?;
            }
        } else if needed.contains(&folder) {
            return Err(format!("{} is no backup", folder.display()));
        }
    }
    Ok(())
}

fn ids(folders: &[PathBuf]) -> Vec<String> {
    let mut ids: Vec<String> = folders
        .iter()
        .map(|folder| folder.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    ids.sort();
    ids
}

#[test]
fn a_backup_is_whole_or_none_whenever_the_power_goes() {
    // On a busy machine one less was counted in some runs and not in others; why isn't known.
    let reached: Vec<usize> =
        (0..4).map(|_| backups_keep_their_promise()).take_while(|n| *n < 12).collect();
    assert!(reached.len() < 4, "syncs that are needed: {reached:?}");
}

/// Takes a full and an incremental backup. How many syncs at least are needed in each.
fn backups_keep_their_promise() -> usize {
    let small = Small::new();
    let Some(full) = run(&small, "a full backup", &["backup"]) else { return usize::MAX };
    let mut fewest = usize::MAX;
    small.cluster.insert("t", 20);
    let incremental = run(&small, "an incremental backup", &["backup", "--type", "incr"]).unwrap();
    let digest = small.cluster.digest("t");
    for (number, run) in [full, incremental].into_iter().enumerate() {
        let end = run.end().now();
        let backups = folders(&end);
        assert_eq!(backups.len(), number + 1);
        let before = folders(&run.before.now());
        let promise = |tree: &Tree, ended: bool| {
            whole_or_none(tree, &end, Path::new("repository/main"))?;
            backups_are_whole(tree, &end, if ended { &backups } else { &before })
        };
        let seen = run.keeps(&promise, is_rest);
        assert!(seen.syncs > 30, "{seen:?}");
        let needed = run.needs_each_sync(&promise, 1, is_spare);
        fewest = fewest.min(needed);
        let step = if all() { 1 } else { seen.different.len().div_ceil(25) };
        for (tree, _) in seen.different.iter().rev().step_by(step) {
            tree.write(small.root());
            assert_sound(&small.pgkeep, &run.what);
            let whole: Vec<_> = backups.iter().filter(|b| is_a_backup(tree, b)).cloned().collect();
            let mut listed = small.listed();
            listed.sort();
            assert_eq!(listed, ids(&whole), "{}", run.what);
        }
        // The last thing that was seen is what is durable in the end, or nearly.
        let unfinished = seen.different.iter().filter(|(_, ended)| !ended);
        for (tree, _) in unfinished.step_by(seen.different.len().div_ceil(3)) {
            tree.write(small.root());
            small.pgkeep.ok(["backup"]);
            assert_sound(&small.pgkeep, "after another backup");
        }
        let durable = run.end().lost(super::Rest::Nothing, &mut super::Random::of_seed(1));
        durable.write(small.root());
        if number == 1 {
            let restored = small.pgkeep.restored(
                15,
                "latest",
                &["--target-immediate", "--target-action", "promote"],
            );
            assert_eq!(restored.digest("t"), digest);
        }
    }
    fewest
}

/// Leases say who is at work, and nothing hangs on their being there; nor on what is temporary. Once a cluster has
/// backups, its folder has none to lose but that of the leases.
fn is_spare(path: &Path) -> bool {
    path.iter().any(|part| part == ".tmp" || part == "leases") || path.ends_with("clusters/main")
}

#[test]
fn what_is_deleted_takes_nothing_with_it_whenever_the_power_goes() {
    let small = Small::new();
    small.pgkeep.ok(["backup"]);
    small.cluster.insert("t", 20);
    small.pgkeep.ok(["backup", "--type", "incr"]);
    small.pgkeep.ok(["backup", "--type", "full"]);
    small.pgkeep.ok(["backup", "--type", "full"]);
    let first = small.listed()[0].clone();
    // One of which another needs some, and what retention doesn't keep.
    let delete = ["delete", &first];
    let Some(deleted) = run(&small, "delete", &delete) else { return };
    small.pgkeep.add("[repository.main.retention]\nminimum = 1\nafter-backup = false");
    let expired = run(&small, "expire", &["expire"]).unwrap();
    for (run, again) in [(deleted, &delete[..]), (expired, &["expire"])] {
        let (before, end) = (run.before.now(), run.end().now());
        let goes: Vec<_> =
            folders(&before).into_iter().filter(|folder| !is_a_backup(&end, folder)).collect();
        let stays: Vec<_> =
            folders(&before).into_iter().filter(|folder| is_a_backup(&end, folder)).collect();
        assert!(!goes.is_empty() && !stays.is_empty(), "{goes:?} {stays:?}");
        let promise = |tree: &Tree, ended: bool| {
            backups_are_whole(tree, &before, &stays)?;
            match goes.iter().find(|folder| ended && is_a_backup(tree, folder)) {
                Some(folder) => Err(format!("{} is a backup again", folder.display())),
                None => Ok(()),
            }
        };
        let seen = run.keeps(&promise, is_rest);
        let step = if all() { 1 } else { seen.different.len().div_ceil(25) };
        for (tree, ended) in seen.different.iter().rev().step_by(step) {
            tree.write(small.root());
            assert_sound(&small.pgkeep, &run.what);
            let output = small.pgkeep.run(again);
            // What is gone already can't be deleted.
            let is_gone = output.code == 1 && !goes.iter().any(|b| is_a_backup(tree, b));
            assert!(output.code == 0 || is_gone, "{}: {output}", run.what);
            assert!(!ended || ids(&stays).iter().all(|id| small.listed().contains(id)));
            assert_sound(&small.pgkeep, &run.what);
        }
    }
}

#[test]
fn an_expiry_that_was_killed_and_is_run_again_takes_nothing_with_it() {
    let small = Small::new();
    for _ in 0..3 {
        small.pgkeep.ok(["backup", "--type", "full"]);
    }
    small.wait_for_quiet();
    small.pgkeep.add("[repository.main.retention]\nminimum = 1\nafter-backup = false");
    let before = Tree::read(small.root());
    let stays = [folders(&before).pop().expect("the newest")];
    let expire = || small.pgkeep.command(["expire"]);
    let times = killed_and_run_again(
        "expire",
        small.root(),
        [&expire, &expire],
        |path| all() || !path.iter().any(|part| part == "wal" || part == ".tmp"),
        None,
        |tree, _, ended| {
            backups_are_whole(tree, &before, &stays)?;
            let all = folders(&before);
            match all.iter().find(|b| ended && !stays.contains(b) && is_a_backup(tree, b)) {
                Some(folder) => Err(format!("{} is a backup again", folder.display())),
                None => Ok(()),
            }
        },
    );
    assert!(times >= 10, "{times}");
}

/// Who comes after a deletion that was killed removes what it has marked, of which some stays for others.
#[tokio::test]
async fn what_a_killed_deletion_has_marked_is_marked_for_good_before_it_goes() {
    let pgkeep = program(&Chain::make().await, &["main"]);
    let root = pgkeep.scratch().path();
    let before = Tree::read(root);
    let goes = [BASE, SECOND].map(|id| Path::new(BACKUPS).join(id));
    let stays: Vec<_> = folders(&before).into_iter().filter(|b| !goes.contains(b)).collect();
    assert_eq!(stays.len(), 2);
    for after in [BASE, SECOND] {
        let times = killed_and_run_again(
            "delete",
            root,
            [&|| pgkeep.command(["delete", BASE]), &|| pgkeep.command(["delete", after])],
            |_| true,
            None,
            |tree, _, ended| {
                backups_are_whole(tree, &before, &stays)?;
                match goes.iter().find(|b| ended && b.ends_with(after) && is_a_backup(tree, b)) {
                    Some(folder) => Err(format!("{} is a backup again", folder.display())),
                    None => Ok(()),
                }
            },
        );
        assert!(times >= 6, "{times}");
        before.write(root);
    }
}
