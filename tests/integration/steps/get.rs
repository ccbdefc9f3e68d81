//! A recovery whose `restore_command`, and the process that fetches ahead of it, die at each step.

use std::time::{Duration, Instant};

use crate::support::{Cluster, Pgkeep, on_each_version, scratch, steps::Death, wait_until};

pub const STEPS: &[&str] = &[
    "get: fetched",
    "get: synced",
    "get: nothing has the name",
    "get: named",
    "spool: wanted",
    "spool: begun",
    "spool: fetched",
    "spool: noted",
    "spool: handed over",
];

on_each_version!(a_recovery_goes_on_whatever_dies: 15 postgres_15, 18 postgres_18);

fn a_recovery_goes_on_whatever_dies(version: u32) {
    let primary = Cluster::builder(version).wal_segsize(1).start();
    let pgkeep = Pgkeep::archiving(&primary);
    pgkeep.ok(["check"]);
    primary.make_table("t", 10);
    let mut copy = primary.copy_online();
    let mut last = String::new();
    for _ in 0..60 {
        primary.insert("t", 50);
        last = primary.switch_wal();
    }
    let archived = || primary.sql("SELECT last_archived_wal FROM pg_stat_archiver");
    wait_until("everything is archived", 60, || archived() >= last);
    let end = primary.digest("t");

    let death = Death::in_folder(pgkeep.scratch());
    let command = death.before(&pgkeep.restore_command());
    copy.conf(&format!("archive_mode = off\nrestore_command = '{command} && sleep 0.05'"));
    scratch::write(&copy.pgdata().join("recovery.signal"), "");
    let mut left = STEPS.iter();
    copy.spawn();
    let (mut starts, until) = (0, Instant::now() + Duration::from_secs(120));
    death.at(left.next().expect("a first step"));
    // A recovery that is stopped begins anew, and so does the fetching.
    while copy.try_sql("SELECT pg_is_in_recovery()").as_deref() != Ok("f") {
        assert!(Instant::now() < until, "{}", copy.log());
        if death.has_come()
            && let Some(step) = left.next()
        {
            death.at(step);
        }
        if !copy.runs() {
            // The server doesn't take the death of its command for the end of the archive.
            copy.wait_for_end(1);
            copy.spawn();
            starts += 1;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(death.has_come() && left.next().is_none(), "not all died: {:?}", left.as_slice());
    assert!(starts > 4, "{starts}");
    assert_eq!(copy.digest("t"), end);
    let segments = std::fs::read_dir(copy.pgdata().join("pg_wal")).expect("read pg_wal").flatten();
    let names = segments.filter_map(|entry| entry.file_name().into_string().ok());
    let strangers: Vec<_> =
        names.filter(|n| n.contains("pgkeep") || n.contains("RECOVERY")).collect();
    assert!(strangers.is_empty(), "{strangers:?}");
}
