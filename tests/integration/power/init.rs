//! `init`: a repository and a key that opens it, or neither.

use std::{fs, path::Path};

use super::{Run, assert_sound, is_rest, is_there, killed_and_run_again, whole_or_none};
use crate::support::{Pgkeep, disk::Tree};

const REPOSITORY: &str = "repository/main";

/// Nothing is sealed with a key that may be lost, and a repository has its keys.
fn promise(tree: &Tree, end: &Tree, ended: bool) -> Result<(), String> {
    whole_or_none(tree, end, Path::new(REPOSITORY))?;
    let keys = Path::new(REPOSITORY).join("keys");
    let repository = Path::new(REPOSITORY).join("repo.json");
    if tree.file("main.key").is_some() || tree.files(&keys).next().is_some() || ended {
        is_there(tree, end, Path::new("main.key"))?;
    }
    if tree.file(&repository).is_some() || ended {
        is_there(tree, end, &repository)?;
        for (key, _) in end.files(&keys) {
            is_there(tree, end, key)?;
        }
    }
    Ok(())
}

/// A pgkeep whose repository's directory has to be made.
fn empty() -> Pgkeep {
    let pgkeep = Pgkeep::without_cluster();
    fs::remove_dir(pgkeep.repository()).unwrap();
    pgkeep
}

#[test]
fn an_init_leaves_a_repository_that_its_key_opens_or_none() {
    let pgkeep = empty();
    let root = pgkeep.scratch().path();
    let Some(run) = Run::of("init", root, &pgkeep.command(["init"])) else { return };
    let end = run.end().now();
    let promise = |tree: &Tree, ended| promise(tree, &end, ended);
    let seen = run.keeps(&promise, is_rest);
    assert!(seen.syncs >= 8 && seen.different.len() >= 8, "{seen:?}");
    for (tree, ended) in &seen.different {
        tree.write(root);
        let again = pgkeep.run(["init"]);
        let is_made = tree.file("repository/main/repo.json").is_some();
        assert_eq!(again.code, if is_made { 9 } else { 0 }, "{again}");
        assert!(is_made || !ended);
        assert_sound(&pgkeep, "after an init");
    }
    let needed = run.needs_each_sync(&promise, 1, |path| path.ends_with("repository/main/.tmp"));
    assert!(needed >= 6, "{needed}");
}

#[test]
fn an_init_that_was_killed_and_is_run_again_is_durable() {
    let pgkeep = empty();
    let root = pgkeep.scratch().path();
    let init = || pgkeep.command(["init"]);
    let times = killed_and_run_again(
        "init",
        root,
        [&init, &init],
        |_| true,
        // The first one has made it, as far as anybody sees: it is no second one's to acknowledge.
        Some(9),
        promise,
    );
    assert!(times >= 12, "{times}");
}
