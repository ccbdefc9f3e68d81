//! `backup`, `delete` and `expire`: what fails leaves what is kept as it was.

use super::{assert_sound, assert_told, at_each_call};
use crate::support::host::Small;

#[test]
fn a_backup_without_space_is_none_and_is_taken_again() {
    let small = Small::new();
    small.pgkeep.ok(["backup"]);
    small.cluster.insert("t", 20);
    small.wait_for_quiet();
    let before = small.listed();
    let backup = || small.pgkeep.command(["backup"]);
    at_each_call("backup", small.root(), backup, 30, |case, output| {
        let listed = small.listed();
        match output.code {
            0 => assert_eq!(listed.len(), before.len() + 1, "{case:?}: {output}"),
            _ => assert_told(case, output, 3, "file:///"),
        }
        assert!(before.iter().all(|id| listed.contains(id)), "{case:?}: {listed:?}");
        assert_sound(&small.pgkeep, case);
        small.pgkeep.ok(["backup"]);
        assert_sound(&small.pgkeep, case);
        small.wait_until_archived();
    });
}

#[test]
fn what_is_deleted_on_a_broken_disk_takes_nothing_with_it() {
    let small = Small::new();
    small.pgkeep.ok(["backup"]);
    small.cluster.insert("t", 20);
    small.pgkeep.ok(["backup", "--type", "incr"]);
    small.pgkeep.ok(["backup", "--type", "full"]);
    small.pgkeep.ok(["backup", "--type", "full"]);
    small.wait_for_quiet();
    let before = small.listed();
    small.pgkeep.add("[repository.main.retention]\nminimum = 1\nafter-backup = false");
    let last = before.last().unwrap();
    for command in [&["delete", &before[0]][..], &["expire"]] {
        let run = || small.pgkeep.command(command);
        at_each_call(command[0], small.root(), run, 30, |case, output| {
            if output.code != 0 {
                assert_told(case, output, 3, "file:///");
            }
            assert!(small.listed().contains(last), "{case:?}");
            assert_sound(&small.pgkeep, case);
            let again = small.pgkeep.run(command);
            // One that is marked as deleted is none any more.
            assert!(again.code == 0 || again.code == 1, "{case:?}: {again}");
            let listed = small.listed();
            assert!(listed.contains(last) && !listed.contains(&before[0]), "{case:?}: {listed:?}");
            assert_sound(&small.pgkeep, case);
        });
    }
}
