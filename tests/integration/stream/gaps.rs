//! What is missing: healed while a server has it, and never made up.

use rustix::process::Signal;

use super::Site;
use crate::support::{Cluster, objects::delete, wait_until};

#[test]
fn what_was_never_archived_is_fetched_from_the_server() {
    let site =
        Site::archiving(Cluster::builder(17).wal_segsize(1).conf("wal_keep_size = 200MB").start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    // The archive loses what was in it, and gets some later segments.
    let lost = [site.cluster.switch_wal(), site.cluster.switch_wal()];
    let later = site.cluster.switch_wal();
    wait_until("they are archived", 30, || site.archived().contains(&later));
    for segment in &lost {
        delete(&site.file(segment));
    }
    assert_eq!(site.pgkeep.run(["verify"]).code, 1);
    let stream = site.stream();
    let archived = site.archived();
    assert!(lost.iter().all(|segment| archived.contains(segment)), "{archived:?}");
    site.pgkeep.ok(["verify", "--level", "full"]);
    stream.signal(Signal::TERM);
    assert_eq!(stream.wait().code, 0);
}

#[test]
fn what_the_server_has_no_more_is_told_and_the_rest_is_streamed() {
    let site = Site::archiving(Cluster::builder(17).wal_segsize(1).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    site.cluster.sql("ALTER SYSTEM SET archive_command = '/bin/true'");
    site.cluster.reload();
    let lost = site.cluster.switch_wal();
    site.cluster.switch_wal();
    site.cluster.sql("CHECKPOINT");
    site.cluster.switch_wal();
    site.cluster.sql("CHECKPOINT");
    wait_until("the server has removed it", 30, || {
        site.cluster.sql("CHECKPOINT");
        site.cluster.switch_wal();
        !site.cluster.pgdata().join("pg_wal").join(&lost).exists()
    });
    let stream = site.stream();
    site.cluster.insert("t", 3);
    site.wait_for_stream();
    stream.signal(Signal::TERM);
    let output = stream.wait();
    assert_eq!(output.code, 0, "{output}");
    assert!(output.stderr.contains(&lost), "{output}");
    let info = site.pgkeep.ok(["info"]);
    assert!(info.stdout.contains(&lost), "{info}");
    // A backup after it is as good as any.
    site.cluster.sql("ALTER SYSTEM RESET archive_command");
    site.cluster.reload();
    site.pgkeep.ok(["backup"]);
}

/// Of a gap whose beginning the server has removed everything that it has still is fetched, in one run.
#[test]
fn all_that_the_server_has_of_a_gap_is_fetched() {
    let settings = "wal_keep_size = 12MB\nmin_wal_size = 2MB\nmax_wal_size = 2MB";
    let site = Site::archiving(Cluster::builder(17).wal_segsize(1).conf(settings).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    site.cluster.sql("ALTER SYSTEM SET archive_command = '/bin/true'");
    site.cluster.reload();
    let lost = site.cluster.switch_wal();
    let wal = site.cluster.pgdata().join("pg_wal");
    wait_until("the server has removed the first", 60, || {
        site.cluster.switch_wal();
        site.cluster.sql("CHECKPOINT");
        !wal.join(&lost).exists()
    });
    let present = site.cluster.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    let names = std::fs::read_dir(&wal).expect("pg_wal").flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let there: Vec<String> = names.filter(|name| name.len() == 24 && *name < present).collect();
    assert!(there.len() > 6, "{there:?}");
    let stream = site.stream();
    wait_until("all of it is in the archive", 60, || {
        let archived = site.archived();
        there.iter().all(|segment| archived.contains(segment))
    });
    stream.signal(Signal::TERM);
    assert_eq!(stream.wait().code, 0);
}

#[test]
fn another_servers_wal_is_refused() {
    let mut site = Site::archiving(Cluster::builder(17).wal_segsize(1).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    // The same server as it was, which goes another way under the same timeline id.
    let mut clone = site.copied();
    let stream = site.stream();
    site.cluster.insert("t", 100);
    site.wait_for_stream();
    stream.signal(Signal::KILL);
    stream.wait();
    clone.conf("archive_command = '/bin/false'");
    clone.start();
    clone.sql("CREATE TABLE another (n int)");
    clone.insert("t", 90);
    site.pgkeep.replace_cluster(&site.cluster, &clone);
    let parts = site.parts();
    let output = site.pgkeep.spawn(["stream"]).wait();
    assert_eq!(output.code, 9, "{output}");
    assert!(output.stderr.contains("other content"), "{output}");
    assert_eq!(site.parts(), parts, "what was stored stays");
}

/// A slot that the server has given up holds nothing, even if it looks well later.
#[test]
fn a_slot_that_was_given_up_is_made_anew() {
    for version in [15, 17, 18].into_iter().filter(|v| crate::support::versions().contains(v)) {
        let settings = "max_slot_wal_keep_size = 1MB\nwal_keep_size = 0\nmin_wal_size = 2MB\nmax_wal_size = 2MB";
        let site = Site::archiving(Cluster::builder(version).wal_segsize(1).conf(settings).start());
        site.cluster.make_table("t", 10);
        site.pgkeep.ok(["backup"]);
        let stream = site.stream();
        stream.signal(Signal::TERM);
        assert_eq!(stream.wait().code, 0);
        wait_until("the slot is lost", 60, || {
            site.cluster.switch_wal();
            site.cluster.sql("CHECKPOINT");
            site.cluster.sql("SELECT wal_status FROM pg_replication_slots") == "lost"
        });
        let stream = site.stream();
        site.cluster.insert("t", 1);
        site.wait_for_stream();
        let status = site.cluster.sql("SELECT wal_status <> 'lost' FROM pg_replication_slots");
        assert_eq!(status, "t", "{version}");
        stream.signal(Signal::TERM);
        let output = stream.wait();
        assert_eq!(output.code, 0, "{output}");
        assert!(output.stderr.contains("made anew"), "{output}");
    }
}

/// Two streams with one slot: the second says what is wrong, and goes on when the first one ends.
#[test]
fn a_slot_that_another_stream_uses_is_waited_for() {
    let site = Site::archiving(Cluster::builder(17).wal_segsize(1).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    let first = site.stream();
    let user = site.cluster.sql("SELECT active_pid FROM pg_replication_slots");
    let second = site.pgkeep.spawn(["stream"]);
    wait_until("the second one has tried", 60, || site.cluster.log().contains("is active for PID"));
    first.signal(Signal::TERM);
    assert_eq!(first.wait().code, 0);
    wait_until("the second one has the slot", 60, || {
        let sql = format!("SELECT active_pid <> {user} FROM pg_replication_slots");
        site.cluster.sql(&sql) == "t"
    });
    site.cluster.insert("t", 1);
    site.wait_for_stream();
    second.signal(Signal::TERM);
    let output = second.wait();
    assert_eq!(output.code, 0, "{output}");
    for said in ["is active for PID", "two streams need two slots", "streaming again from"] {
        assert!(output.stderr.contains(said), "{said}: {output}");
    }
}

/// From 18 on a slot is also given up for its age, and says where it stood all the same.
#[test]
fn a_slot_that_was_given_up_for_its_age_is_made_anew() {
    if !crate::support::versions().contains(&18) {
        return;
    }
    let settings = "idle_replication_slot_timeout = 1s";
    let site = Site::archiving(Cluster::builder(18).wal_segsize(1).conf(settings).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    let stream = site.stream();
    stream.signal(Signal::TERM);
    assert_eq!(stream.wait().code, 0);
    wait_until("the slot is given up", 60, || {
        site.cluster.sql("CHECKPOINT");
        site.cluster.sql("SELECT invalidation_reason FROM pg_replication_slots") == "idle_timeout"
    });
    let stream = site.stream();
    site.cluster.insert("t", 1);
    site.wait_for_stream();
    assert_eq!(site.cluster.sql("SELECT invalidation_reason FROM pg_replication_slots"), "");
    stream.signal(Signal::TERM);
    let output = stream.wait();
    assert_eq!(output.code, 0, "{output}");
    assert!(output.stderr.contains("made anew"), "{output}");
}

/// Set back to an earlier state, its commits aren't acknowledged for what it had written before.
#[test]
fn a_server_that_was_set_back_is_told_nothing() {
    let mut site = Site::archiving(Cluster::builder(17).wal_segsize(1).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    let mut earlier = site.copied();
    let stream = site.stream();
    site.cluster.insert("t", 2_000);
    site.wait_for_stream();
    stream.signal(Signal::KILL);
    stream.wait();
    let stored = site.parts();
    earlier.conf("archive_command = '/bin/false'");
    earlier.start();
    site.pgkeep.replace_cluster(&site.cluster, &earlier);
    let stream = site.pgkeep.spawn(["stream"]);
    let flush = "SELECT flush_lsn < pg_current_wal_flush_lsn() FROM pg_stat_replication \
                 WHERE application_name = 'pgkeep' AND state = 'streaming'";
    wait_until("it is connected", 60, || earlier.sql(flush) == "t");
    earlier.insert("t", 1);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(earlier.sql(flush), "t", "nothing of it is acknowledged");
    assert_eq!(site.parts(), stored);
    stream.signal(Signal::TERM);
    stream.wait();
}

/// Where it is past all that is stored again, nothing of what it writes continues that.
#[test]
fn a_server_that_was_set_back_behind_whole_segments_is_refused() {
    let mut site = Site::archiving(Cluster::builder(17).wal_segsize(1).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    let mut earlier = site.copied();
    for _ in 0..3 {
        site.cluster.insert("t", 100);
        let segment = site.cluster.switch_wal();
        wait_until("it is archived", 60, || site.archived().contains(&segment));
    }
    let stored = site.archived();
    earlier.conf("archive_command = '/bin/false'");
    earlier.start();
    for _ in 0..5 {
        earlier.insert("t", 90);
        earlier.switch_wal();
    }
    site.pgkeep.replace_cluster(&site.cluster, &earlier);
    let mut stream = site.pgkeep.spawn(["stream"]);
    wait_until("it ends by itself", 60, || !stream.runs());
    let output = stream.wait();
    assert_eq!(output.code, 9, "{output}");
    assert!(output.stderr.contains("other content"), "{output}");
    assert_eq!(site.archived(), stored, "nothing of it was stored");
}
