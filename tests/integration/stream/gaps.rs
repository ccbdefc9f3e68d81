//! What is missing: healed while a server has it, and never made up.

use rustix::process::Signal;

use super::Site;
use crate::support::{Cluster, Stop, objects::delete, wait_until};

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

#[test]
fn another_servers_wal_is_refused() {
    let mut site = Site::archiving(Cluster::builder(17).wal_segsize(1).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    // The same server as it was, which goes another way under the same timeline id.
    site.cluster.stop(Stop::Fast);
    let mut clone = site.cluster.copy_offline();
    site.cluster.start();
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
