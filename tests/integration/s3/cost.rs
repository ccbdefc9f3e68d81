//! How many requests things take: no more than the table in `docs/s3.md` says.
//!
//! ```text
//! cargo test --test integration -- --nocapture s3::cost::the_table     prints what was counted
//! ```

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::memory::cluster_with_noise;
use crate::support::{
    Cluster, Pgkeep,
    objects::{ObjectKind, objects_of},
    s3::{Go, Server},
};

/// Requests by operation.
type Counts = BTreeMap<&'static str, u64>;

fn count(counts: &Counts, operation: &str) -> u64 {
    counts.get(operation).copied().unwrap_or_default()
}

/// A cluster that archives into a bucket, and what the requests of something are.
struct Counted {
    cluster: Cluster,
    pgkeep: Pgkeep,
}

impl Counted {
    fn new(cluster: Cluster) -> Self {
        let pgkeep = Pgkeep::on_server(&cluster, Server::start());
        // Each push and get is alone.
        pgkeep.without_state();
        pgkeep.init();
        pgkeep.set("cluster.main", "archive-timeout = \"2s\"");
        pgkeep.run(["check"]);
        pgkeep.edit(|text| text.replace("archive-timeout = \"2s\"", "archive-timeout = \"5min\""));
        Counted { cluster, pgkeep }
    }

    /// Switches archiving on, and waits until it has caught up.
    fn archive(&self) {
        self.pgkeep.archive(&self.cluster);
        let closed = self.cluster.switch_wal();
        crate::support::wait_until("the archiver has caught up", 300, || {
            let archived = "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver";
            self.cluster.sql(archived) >= closed
        });
        self.wait_for_the_archiver();
    }

    /// Waits until the server has nothing to archive, which would be counted.
    fn wait_for_the_archiver(&self) {
        let status = self.cluster.pgdata().join("pg_wal/archive_status");
        crate::support::wait_until("the archiver is idle", 300, || {
            let files = std::fs::read_dir(&status).expect("read a folder").flatten();
            files.map(|f| f.file_name()).all(|f| !f.to_string_lossy().ends_with(".ready"))
        });
    }

    fn of(&self, arguments: &[&str]) -> Counts {
        let server = self.pgkeep.server().expect("a server");
        server.front().heal();
        let output = self.pgkeep.run_in(self.cluster.pgdata(), arguments);
        assert_eq!(output.code, 0, "{arguments:?}: {output}");
        server.front().counts()
    }

    /// As [`Counted::of`], of a backup, without what the archiver's pushes take meanwhile.
    fn of_backup(&self) -> Counts {
        let before = self.stored(ObjectKind::Segment) + self.stored(ObjectKind::BackupHistory);
        let server = self.pgkeep.server().expect("a server");
        let missed = Arc::new(AtomicU64::new(0));
        let looked = missed.clone();
        server.front().plan(move |call| {
            if call.operation == "ListObjectsV2" && call.key.ends_with(".repair.") {
                looked.fetch_add(1, Ordering::Relaxed);
            }
            Go::On
        });
        self.pgkeep.ok(["backup", "--type", "full"]);
        // Pushes count as a whole.
        self.wait_for_the_archiver();
        let mut counts = server.front().counts();
        let after = self.stored(ObjectKind::Segment) + self.stored(ObjectKind::BackupHistory);
        // How often it is asked in vain whether a segment has come depends on how long the server
        // takes to archive it. The table has twice.
        let more = missed.load(Ordering::Relaxed).saturating_sub(2);
        for operation in ["GetObject", "ListObjectsV2"] {
            *counts.get_mut(operation).expect("questions") -= more;
        }
        let pushed = (after - before) as u64;
        for (operation, each) in push() {
            let all = counts.get_mut(operation).expect("pushes");
            *all -= each * pushed;
        }
        counts
    }

    fn stored(&self, kind: ObjectKind) -> usize {
        objects_of(&self.pgkeep.repository(), kind).len()
    }

    fn push(&self, segment: &str) -> Counts {
        self.of(&["archive-push", &format!("pg_wal/{segment}")])
    }
}

/// What a push of a segment that compresses to at most 8 MiB takes.
fn push() -> Counts {
    // repo.json, the key, the registration, whether it is there, and the one before it; the keys; the segment.
    BTreeMap::from([("GetObject", 5), ("ListObjectsV2", 1), ("PutObject", 1)])
}

#[test]
fn pushes_and_gets_take_few_requests() {
    let cluster = Cluster::builder(15).start();
    let segments: Vec<String> = (0..3).map(|_| cluster.switch_wal()).collect();
    let counted = Counted::new(cluster);
    // The first one of an archive has nothing before it, and takes more to see that.
    counted.push(&segments[0]);
    assert_eq!(counted.push(&segments[1]), push());
    // repo.json, the key, and the segment with one request.
    let get = counted.of(&["archive-get", &segments[1], "pg_wal/RECOVERYXLOG"]);
    assert_eq!(get, BTreeMap::from([("GetObject", 3), ("ListObjectsV2", 1)]));
    // The same again: its end, and all of it, to be compared.
    let again = counted.push(&segments[1]);
    assert_eq!(count(&again, "PutObject"), 0, "{again:?}");
    assert!(again.values().sum::<u64>() <= 10, "{again:?}");
}

#[test]
fn the_table() {
    const NOISE: u64 = 40 << 20;
    let counted = Counted::new(cluster_with_noise(NOISE));
    let row = |what: &str, counts: &Counts, most: [u64; 3]| {
        let writes =
            ["PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"];
        let writes: u64 = writes.iter().map(|operation| count(counts, operation)).sum();
        let lists = count(counts, "ListObjectsV2") + count(counts, "ListMultipartUploads");
        let reads = count(counts, "GetObject") + count(counts, "HeadObject");
        println!("{what:<44} {writes:>7} {lists:>7} {reads:>7}   {counts:?}");
        let counted = [writes, lists, reads];
        assert!(counted.iter().zip(most).all(|(n, most)| *n <= most), "{what}: {counts:?}");
    };
    println!("{:<44} {:>7} {:>7} {:>7}", "", "writes", "lists", "reads");
    counted.push(&counted.cluster.switch_wal());
    let segment = counted.cluster.switch_wal();
    row("archive-push of a segment", &counted.push(&segment), [5, 1, 5]);
    row(
        "archive-get of it",
        &counted.of(&["archive-get", &segment, "pg_wal/RECOVERYXLOG"]),
        [0, 1, 5],
    );
    counted.archive();
    // Three more for a busy machine: who waits for the segment asks again.
    row("check, with the push of its segment", &counted.of(&["check"]), [6, 4, 15 + 3]);
    let backup = counted.of_backup();
    row("a full backup", &backup, [13 + 2 + 5, 7, 14]);
    let packs = objects_of(&counted.pgkeep.repository(), ObjectKind::Pack);
    let bytes: u64 = packs.iter().map(|o| std::fs::metadata(&o.path).expect("stat").len()).sum();
    let parts = count(&backup, "UploadPart");
    println!("  {} packs, {bytes} bytes stored, {parts} parts", packs.len());
    row("info", &counted.of(&["info"]), [0, 10, 6]);
    let target = counted.pgkeep.scratch().path().join("restored").display().to_string();
    let restore = counted.of(&["restore", "--archive-mode", "off", "--pgdata", &target]);
    row("a restore", &restore, [2, 7, 15 + 2 * 2 + 5]);
    for _ in 0..3 {
        counted.of_backup();
    }
    row("info, with four backups", &counted.of(&["info"]), [0, 10 + 3, 6 + 3 * 3]);
    counted.wait_for_the_archiver();
    counted.pgkeep.add("[repository.main.retention]\nminimum = 3");
    let expired = counted.of(&["expire"]);
    row("expire, of one backup of four", &expired, [2, 50, 64]);
    row("expire, with nothing to do", &counted.of(&["expire"]), [0, 22, 26]);
}
