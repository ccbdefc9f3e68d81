//! `restore`: what it leaves doesn't start, and is restored to again.

use std::path::Path;

use super::{assert_told, at_each_call};
use crate::support::{disk::Tree, host::Small, pgkeep::run_to_end};

#[test]
fn a_restore_without_space_does_not_start_and_is_run_again() {
    let small = Small::new();
    small.pgkeep.ok(["backup"]);
    small.wait_for_quiet();
    let Small { pgkeep, cluster } = small;
    drop(cluster);
    let data = pgkeep.scratch().path().join("restored");
    let whole = pgkeep.scratch().path().join("whole");
    let restore = |data: &Path| {
        let mut command = pgkeep.command(["restore", "--target-immediate", "--pgdata"]);
        command.arg(data);
        command
    };
    assert_eq!(run_to_end(&mut restore(&whole)).code, 0);
    let base = Tree::read(&whole.join("base"));
    let is_whole = || Tree::read(&data.join("base")).differences(&base).is_empty();
    let control = data.join("global/pg_control");
    let root = pgkeep.scratch().path();
    at_each_call(
        "restore",
        root,
        || restore(&data),
        40,
        |case, output| {
            if output.code != 0 {
                let repository = root.join("repository");
                let is_target = case.hit.iter().any(|path| !path.starts_with(&repository));
                assert!(is_target, "a restore only reads the repository: {case:?}: {output}");
                assert_told(case, output, 10, "restored");
            }
            assert!(!control.exists() || is_whole(), "{case:?}");
            let again = run_to_end(&mut restore(&data));
            let is_done = again.code == 9 && control.exists();
            assert!(again.code == 0 || is_done, "{case:?}: {again}");
            assert!(control.exists() && is_whole(), "{case:?}");
        },
    );
}
