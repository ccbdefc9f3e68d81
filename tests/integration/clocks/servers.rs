//! Servers whose clock jumps while they write WAL.

use std::fs;

use rustix::process::Signal;

use super::*;
use crate::support::{Writes, pgkeep::start, wait_until};

/// Commits wait for the stream, and the clock of both jumps.
#[test]
fn a_stream_goes_on_through_every_jump_of_the_clock() {
    let mut site = Site::with_server(15);
    site.backup("full");
    let stream = start(site.command(&["stream"]));
    site.cluster.sql("ALTER SYSTEM SET synchronous_standby_names = 'pgkeep'");
    site.cluster.reload();
    wait_until("the stream is a synchronous standby", 60, || {
        site.cluster.sql("SELECT sync_state FROM pg_stat_replication") == "sync"
    });
    let writes = Writes::start(&site.cluster, "rows");
    for jump in [HOUR, -DAY, YEAR, -YEAR, 0] {
        site.clock.set(jump);
        let before = writes.acknowledged();
        wait_until("commits go on", 30, || writes.acknowledged() > before + 30);
        site.cluster.switch_wal();
        wait_until("commits go on", 30, || writes.acknowledged() > before + 60);
    }
    site.cluster.kill9();
    let acknowledged = writes.stop();
    stream.signal(Signal::TERM);
    let output = stream.wait();
    assert_eq!(output.code, 0, "{output}");
    fs::remove_dir_all(site.cluster.pgdata()).expect("lose the server");
    let restored = site.pgkeep.restored(15, "latest", &[]);
    let rows: u64 = restored.sql("SELECT count(*) FROM rows").parse().expect("a number");
    assert!(
        (acknowledged..=acknowledged + 1).contains(&rows),
        "{rows}, acknowledged {acknowledged}"
    );
}

/// The server's clock is set back by an hour and a half between commits. A target time means the first
/// commit past it in the order of the WAL, from the backup that is begun with; the backup is one that was
/// complete before that moment by the WAL too.
#[test]
fn a_target_time_around_a_step_of_the_servers_clock_is_restored_to() {
    let site = Site::with_server(15);
    let time = || site.cluster.sql("SELECT clock_timestamp()");
    let insert = || site.cluster.sql("INSERT INTO t DEFAULT VALUES");
    let (first, _) = site.backup("full");
    let early = time();
    site.clock.set(HOUR);
    insert();
    let ahead = time();
    let (second, _) = site.backup("incr");
    site.clock.set(-HOUR / 2);
    insert();
    let (third, _) = site.backup("incr");
    let behind = time();
    site.clock.set(-HOUR / 4);
    insert();
    site.clock.set(2 * HOUR);
    insert();
    site.cluster.switch_wal();
    site.pgkeep.ok(["check"]);
    assert_eq!(site.backups(), [first.clone(), second, third.clone()]);
    let restored = |name: &str, target: &str, backup: &[&str]| {
        site.rows(name, &[&["--target-time", target], backup].concat())
    };
    // From the first backup on: the first commit past that moment is the one by the clock that was ahead.
    assert_eq!(restored("early", &early, &["--backup", &first]), 1);
    // From the third: all up to the one a quarter of an hour later.
    assert_eq!(restored("behind", &behind, &["--backup", &third]), 5);
    // The first one wasn't complete at that moment, by any clock.
    let place = site.pgkeep.scratch().path().join("refused").display().to_string();
    let refused = ["restore", "--pgdata", &place, "--target-time", &behind, "--backup", &first];
    let refused = site.pgkeep.fails(refused);
    assert_eq!(refused.code, 8, "{refused}");
    // By itself the newest is begun with that was complete at that moment. Where the time came twice, it
    // comes to the second.
    assert_eq!(restored("early-2", &early, &[]), 6);
    assert_eq!(restored("behind-2", &behind, &[]), 5);
    assert_eq!(restored("ahead-2", &ahead, &[]), 6);
}
