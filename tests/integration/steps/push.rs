//! A server that archives, whose `archive_command` dies at each step.

use crate::support::{Cluster, Pgkeep, Writes, on_each_version, steps::Death, wait_until};

pub const STEPS: &[&str] = &[
    "push: opened",
    "push: read",
    "local storage: written",
    "local storage: synced",
    "local storage: named",
    "local storage: durable",
    "push: in a repository",
    "push: stored",
    "ahead: stored",
    "ahead: noted",
    "push: done",
    "push: known to be stored",
    "heal: stored",
];

on_each_version!(a_push_that_dies_at_any_step_loses_nothing: 15 postgres_15, 18 postgres_18);

fn a_push_that_dies_at_any_step_loses_nothing(version: u32) {
    let primary = Cluster::builder(version).wal_segsize(1).start();
    let pgkeep = Pgkeep::archiving(&primary);
    pgkeep.add_repository("second");
    pgkeep.ok(["init", "--repo", "second"]);
    pgkeep.ok(["check"]);
    pgkeep.ok(["backup", "--repo", "main"]);
    let death = Death::in_folder(pgkeep.scratch());
    let command = death.before(&pgkeep.archive_command());
    // A death that the server sees itself ends its archiver for ten seconds; that is tried once.
    let archive = |command: &str| {
        primary.conf(&format!("archive_command = '{command}'"));
        primary.reload();
    };
    primary.make_table("t", 10);
    let writes = Writes::start(&primary, "rows");
    let archived = || primary.sql("SELECT last_archived_wal FROM pg_stat_archiver");
    for step in STEPS {
        if *step == "heal: stored" {
            skip_one(&primary, archive);
        }
        if step.starts_with("ahead") || *step == "push: known to be stored" {
            // Some wait, so that some are stored ahead.
            archive("false");
            for _ in 0..5 {
                primary.insert("t", 1);
                primary.switch_wal();
            }
        }
        death.at(step);
        archive(&format!("{command} || exit 1"));
        wait_until(&format!("a push dies at {step:?}"), 60, || {
            primary.insert("t", 1);
            primary.switch_wal();
            death.has_come()
        });
        let last = primary.switch_wal();
        wait_until(&format!("the archiver gets on after {step:?}"), 60, || archived() >= last);
    }
    archive(&command);
    death.at("push: in a repository");
    primary.switch_wal();
    death.wait("push: in a repository");
    let acknowledged = writes.stop();
    let last = primary.switch_wal();
    wait_until("the server begins its archiver again", 60, || archived() >= last);
    let failures: u32 =
        primary.sql("SELECT failed_count FROM pg_stat_archiver").parse().expect("a number");
    assert!(failures >= STEPS.len() as u32 - 1, "{failures}");

    let end = primary.digest("rows");
    for repository in ["main", "second"] {
        pgkeep.ok(["verify", "--level", "full", "--repo", repository]);
    }
    let restored = pgkeep.restored(version, "latest", &[]);
    assert_eq!(restored.digest("rows"), end);
    let rows: u64 = restored.sql("SELECT count(*) FROM rows").parse().expect("a number");
    assert!(rows >= acknowledged, "{rows} rows, {acknowledged} were acknowledged");
    // The second one has as much of it: only what was archived before it was there is missing.
    let (main, second) = (segments(&pgkeep, "main"), segments(&pgkeep, "second"));
    assert!(main.ends_with(&second), "{main:?} {second:?}");
    assert!(second.len() > STEPS.len());
}

/// Has a segment be marked as archived that isn't.
fn skip_one(primary: &Cluster, archive: impl Fn(&str)) {
    archive("true");
    primary.insert("t", 1);
    primary.switch_wal();
    primary.insert("t", 1);
    let last = primary.switch_wal();
    wait_until("it is skipped", 60, || {
        primary.sql("SELECT last_archived_wal FROM pg_stat_archiver") >= last
    });
}

/// The names of the segments that a repository has, in order.
fn segments(pgkeep: &Pgkeep, repository: &str) -> Vec<String> {
    let objects = crate::support::objects::objects(&pgkeep.repository_of(repository));
    let names = objects.into_iter().filter(|object| object.name.contains("/wal/"));
    let mut names: Vec<_> =
        names.filter_map(|object| Some(object.name.rsplit_once('/')?.1.to_owned())).collect();
    names.sort();
    names
}
