//! `init`, `archive-push` and `archive-get`: nothing is acknowledged that isn't durable, and recovery isn't told that
//! a segment is absent.

use std::fs;

use super::{assert_sound, assert_told, at_each_call};
use crate::support::{Pgkeep, host::Host, pgkeep::run_to_end};

#[test]
fn an_init_without_space_is_run_again() {
    let pgkeep = Pgkeep::without_cluster();
    let root = pgkeep.scratch().path().to_owned();
    fs::remove_dir(pgkeep.repository()).unwrap();
    at_each_call(
        "init",
        &root,
        || pgkeep.command(["init"]),
        80,
        |case, output| {
            let is_key = output.stderr.contains("write the key file");
            let (code, of) = if is_key { (10, "main.key") } else { (3, "repository/main") };
            assert_told(case, output, code, of);
            let made = pgkeep.run(["init"]);
            // The last step may be what has failed.
            assert!(made.code == 0 || made.code == 9, "{case:?}: {made}");
            assert_sound(&pgkeep, case);
        },
    );
}

#[test]
fn a_push_without_space_acknowledges_nothing_and_is_run_again() {
    let host = Host::with(2);
    let [segment, ahead] = &host.segments[..] else { unreachable!() };
    let repository = host.root().join("repository");
    let push = || host.push(segment);
    at_each_call("archive-push", host.root(), push, 120, |case, output| {
        let is_stored = case.is_below(&repository);
        let is_of_first = output.code != 0;
        if is_stored && is_of_first {
            assert_told(case, output, 3, "file:///");
            assert!(output.stderr.contains(segment.as_str()), "{case:?}: {output}");
        } else {
            // What was to be stored ahead, or noted.
            assert_eq!(output.code, 0, "{case:?}: {output}");
            host.assert_got(segment);
        }
        assert_sound(&host.pgkeep, case);
        for segment in [segment, ahead] {
            let pushed = run_to_end(&mut host.push(segment));
            assert_eq!(pushed.code, 0, "{case:?}: {pushed}");
            host.assert_got(segment);
        }
        assert_sound(&host.pgkeep, case);
    });
}

#[test]
fn a_get_without_space_is_never_an_answer() {
    let host = Host::with(1);
    let segment = &host.segments[0];
    let pushed = run_to_end(&mut host.push(segment));
    assert_eq!(pushed.code, 0, "{pushed}");
    let target = host.data.join("pg_wal/RECOVERYXLOG");
    let get = || host.command(&["archive-get", segment, "pg_wal/RECOVERYXLOG"]);
    let state = host.root().join("state");
    at_each_call("archive-get", host.root(), get, 80, |case, output| {
        if case.is_below(&state) {
            assert_eq!(output.code, 0, "{case:?}: {output}");
        } else if output.code != 0 {
            assert_told(case, output, 126, "RECOVERYXLOG");
            assert!(!target.exists(), "{case:?}");
        }
        host.assert_got(segment);
    });
}
