//! When the server is lost and a standby takes over: nothing between is missing.

use std::fs;

use rustix::process::Signal;

use super::{CAUGHT_UP, Site};
use crate::support::{Cluster, Stop, objects::flip_bit, on_each_version, scratch, wait_until};

on_each_version!(before_and_after_a_failover_every_moment_restores: 15 postgres_15, 17 postgres_17);

/// What the primary didn't archive before it died, the promoted standby never does. The stream has it.
fn before_and_after_a_failover_every_moment_restores(version: u32) {
    let mut site = Site::archiving(Cluster::builder(version).wal_segsize(1).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    let standby = Cluster::standby_of(&site.cluster);
    let conninfo = format!(
        "host={},{} target_session_attrs=primary user=postgres",
        site.cluster.socket_dir().display(),
        standby.socket_dir().display()
    );
    site.pgkeep.add(&format!("[cluster.main.stream]\nconninfo = \"{conninfo}\""));
    let stream = site.stream();
    site.cluster.conf("archive_command = '/bin/false'");
    site.cluster.reload();
    site.cluster.insert("t", 20_000);
    site.cluster.switch_wal();
    let before = site.cluster.moment("t");
    site.cluster.insert("t", 5);
    standby.catch_up_with(&site.cluster);
    site.wait_for_stream();
    let last = site.cluster.digest("t");

    site.cluster.kill9();
    standby.promote();
    wait_until("the stream follows", 60, || standby.sql(CAUGHT_UP) == "1");
    assert_eq!(standby.digest("t"), last);
    let after = standby.moment("t");
    standby.insert("t", 1);
    wait_until("the stream has it", 60, || standby.sql(CAUGHT_UP) == "1");
    let end = standby.digest("t");
    stream.signal(Signal::TERM);
    assert_eq!(stream.wait().code, 0);
    drop(standby);
    fs::remove_dir_all(site.cluster.pgdata()).expect("lose the server");

    for (name, moment) in [("before", &before), ("after", &after)] {
        let target = ["--target-time", &moment.time, "--target-action", "promote"];
        let restored = site.pgkeep.restored(version, name, &target);
        assert_eq!(restored.digest("t"), moment.digest, "{name}");
    }
    assert_eq!(site.pgkeep.restored(version, "latest", &[]).digest("t"), end);
    // The old timeline to its end, of which only parts are there.
    let old = ["--target-timeline", "1"];
    assert_eq!(site.pgkeep.restored(version, "old", &old).digest("t"), last);
}

/// The server has it still, and without it nobody could tell where the timeline comes from.
#[test]
fn a_damaged_history_is_stored_once_more_beside_what_is_there() {
    let mut site = Site::archiving(Cluster::builder(17).wal_segsize(1).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    for _ in 0..2 {
        site.cluster.stop(Stop::Fast);
        site.cluster.conf("restore_command = 'false'");
        scratch::write(&site.cluster.pgdata().join("recovery.signal"), "");
        site.cluster.start();
        site.cluster.wait_for_primary(60);
    }
    let histories = ["00000002.history", "00000003.history"];
    for history in histories {
        wait_until("the history is archived", 60, || site.archived().contains(&history.to_owned()));
        flip_bit(&site.file(history), 60);
    }
    let stream = site.stream();
    let repaired = |history: &str| {
        let name = format!("{history}.repair.");
        site.archived().iter().any(|archived| archived.starts_with(&name))
    };
    assert!(histories.into_iter().all(repaired), "{:?}", site.archived());
    site.cluster.insert("t", 5);
    site.wait_for_stream();
    let last = site.cluster.digest("t");
    stream.signal(Signal::TERM);
    assert_eq!(stream.wait().code, 0);
    assert_eq!(site.pgkeep.restored(17, "latest", &[]).digest("t"), last);
}
