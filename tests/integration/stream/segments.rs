//! What becomes of what is received: parts, and segments of them.

use rustix::process::Signal;

use super::Site;
use crate::support::{Cluster, on_each_version, wait_until};

on_each_version!(segments_are_stored_and_their_parts_go: 15 postgres_15, 18 postgres_18);

/// Without an archive_command: the stream alone keeps the WAL.
fn segments_are_stored_and_their_parts_go(version: u32) {
    let site = Site::archiving(Cluster::builder(version).wal_segsize(1).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    site.cluster.sql("ALTER SYSTEM SET archive_command = '/bin/false'");
    site.cluster.reload();
    let stream = site.stream();
    let first = site.cluster.switch_wal();
    site.cluster.insert("t", 30_000);
    let last = site.cluster.switch_wal();
    assert!(last > first);
    let of_segment = |name: &String| name.len() == 24;
    wait_until("the last segment is whole", 30, || site.archived().contains(&last));
    let archived = site.archived();
    let segments: Vec<_> = archived.iter().filter(|name| of_segment(name)).collect();
    assert!(segments.len() > 3, "{archived:?}");
    for pair in segments.windows(2) {
        // Of segments of 1 MiB 4096 have the same middle part in their names.
        let part = |digits: &str| u64::from_str_radix(digits, 16).unwrap();
        let number = |name: &str| part(&name[8..16]) * 4096 + part(&name[16..]);
        assert_eq!(number(pair[1]), number(pair[0]) + 1, "{pair:?}");
    }
    let before = site.cluster.digest("t");
    site.cluster.insert("t", 1);
    wait_until("a part is stored within max-lag", 30, || !site.parts().is_empty());
    wait_until("the stream has it all", 30, || site.parts().iter().all(|part| part[..24] > *last));
    site.wait_for_stream();
    stream.signal(Signal::TERM);
    let output = stream.wait();
    assert_eq!(output.code, 0, "{output}");

    let restored = site.pgkeep.restored(version, "restored", &[]);
    assert_eq!(restored.digest("t").rows, before.rows + 1);
    site.pgkeep.ok(["verify", "--level", "full"]);
}

/// Larger than what is kept in memory of one: it comes in chunks, which are parts until the end.
#[test]
fn a_large_segment_is_put_together_from_its_chunks() {
    let site = Site::archiving(Cluster::builder(17).wal_segsize(64).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    site.cluster.sql("ALTER SYSTEM SET archive_command = '/bin/false'");
    site.cluster.reload();
    site.cluster.switch_wal();
    let stream = site.stream();
    site.cluster.insert("t", 200_000);
    site.wait_for_stream();
    let before = site.cluster.digest("t");
    assert!(site.parts().iter().any(|part| part.contains(".part.00000000-01000000.")));
    // Begun again in the midst of it.
    stream.signal(Signal::KILL);
    stream.wait();
    assert_eq!(site.pgkeep.restored(17, "in-parts", &[]).digest("t"), before);
    let stream = site.stream();
    site.cluster.insert("t", 1_000);
    let segment = site.cluster.switch_wal();
    wait_until("the segment is whole", 60, || site.archived().contains(&segment));
    wait_until("its parts have gone", 60, || {
        site.parts().iter().all(|part| !part.starts_with(&segment))
    });
    stream.signal(Signal::TERM);
    assert_eq!(stream.wait().code, 0);
    let end = site.cluster.digest("t");
    assert_eq!(site.pgkeep.restored(17, "whole", &[]).digest("t"), end);
    site.pgkeep.ok(["verify", "--level", "full"]);
}

/// Each commit makes a part of its own, and there are never many.
#[test]
fn many_small_parts_become_few() {
    let site = Site::archiving(Cluster::builder(17).wal_segsize(16).start());
    site.cluster.make_table("t", 10);
    site.pgkeep.ok(["backup"]);
    let stream = site.stream();
    site.synchronous();
    let mut session = site.cluster.session();
    let mut most = 0;
    for n in 0..600 {
        session.sql(&format!("INSERT INTO t VALUES ({n} + 1000000, 'x')"));
        if n % 20 == 0 {
            most = most.max(site.parts().len());
        }
    }
    assert!((64..160).contains(&most), "{most} parts");
    let before = site.cluster.digest("t");
    stream.signal(Signal::TERM);
    assert_eq!(stream.wait().code, 0);
    drop(session);
    assert_eq!(site.pgkeep.restored(17, "restored", &[]).digest("t"), before);
}
