//! `restore`: a directory that can be started is whole, and any other is restored to again.

use std::{path::Path, process::Command};

use super::{Run, all, is_there, killed_and_run_again};
use crate::support::{
    Pgkeep,
    disk::{Node, Tree},
    host::Small,
    pgkeep::run_to_end,
};

const DATA: &str = "restored";
const MARKER: &str = "restored/pgkeep-restore.json";

/// Where there is a control file, there is everything.
fn promise(tree: &Tree, end: &Tree, ended: bool) -> Result<(), String> {
    let control = Path::new("restored/global/pg_control");
    if tree.file(control).is_none() {
        return if ended { Err("there is no pg_control".to_owned()) } else { Ok(()) };
    }
    for (path, node) in end.0.iter().filter(|(path, _)| path.starts_with(DATA)) {
        match node {
            Node::File(_) => is_there(tree, end, path)?,
            node if tree.0.get(path) != Some(node) => {
                return Err(format!("{} isn't there", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Contents of the cluster's files, of which there is much and which only `promise` looks at.
fn is_content(path: &Path) -> bool {
    path.starts_with("restored/base") || path.starts_with("restored/global") || super::is_rest(path)
}

/// A repository with a backup of a small cluster.
fn backed_up() -> Pgkeep {
    let small = Small::new();
    small.pgkeep.ok(["backup"]);
    small.wait_for_quiet();
    small.pgkeep
}

fn restore(pgkeep: &Pgkeep) -> Command {
    let path = pgkeep.scratch().path().join(DATA);
    let mut command = pgkeep.command(["restore", "--target-immediate", "--pgdata"]);
    command.arg(path);
    command
}

#[test]
fn a_restored_directory_that_starts_is_whole_whenever_the_power_goes() {
    let pgkeep = backed_up();
    let root = pgkeep.scratch().path();
    let Some(run) = Run::of("restore", root, &restore(&pgkeep)) else { return };
    let end = run.end().now();
    let promise = |tree: &Tree, ended: bool| promise(tree, &end, ended);
    let seen = run.keeps(&promise, is_content);
    assert!(seen.syncs > 300, "{}", seen.syncs);
    let step = if all() { 1 } else { seen.different.len().div_ceil(8) };
    for (tree, ended) in seen.different.iter().rev().step_by(step) {
        tree.write(root);
        let output = run_to_end(&mut restore(&pgkeep));
        // Where the marker is gone there is a cluster, and nobody writes over it.
        let is_done = tree.file(MARKER).is_none() && tree.file("restored/PG_VERSION").is_some();
        assert_eq!(output.code, if is_done { 9 } else { 0 }, "{ended}: {output}");
        let again = Tree::read(root);
        assert!(again.file("restored/global/pg_control").is_some() && again.file(MARKER).is_none());
        for (path, content) in end.files(Path::new("restored/base")) {
            assert!(again.file(path) == Some(content), "{} differs", path.display());
        }
    }
}

#[test]
fn a_restore_that_was_killed_and_is_run_again_is_durable() {
    let pgkeep = backed_up();
    let root = pgkeep.scratch().path();
    let data = root.join(DATA);
    let is_turn = |path: &Path| path == root || path == data || path == data.join("global");
    let restore = || restore(&pgkeep);
    let times = killed_and_run_again(
        "restore",
        root,
        [&restore, &restore],
        |path| all() || is_turn(path),
        // All but the removal of the marker was done, and nobody writes over a cluster.
        Some(9),
        promise,
    );
    assert!(times >= 4, "{times}");
}
