//! `stream`: what the server was told is durable is there, in parts or whole.

use std::{collections::HashMap, path::Path, rc::Rc};

use pgkeep::{
    postgres::{Lsn, SegmentName, SegmentSize, Timeline},
    repo::wal_parts::PartRange,
};

use super::{Run, all, is_rest};
use crate::support::{
    disk::{Disk, Op, Tree, record_while},
    host::Small,
    wait_until,
};

const WAL: &str = "repository/main/clusters/main/wal";
const SIZE: u64 = 1 << 20;

/// Which bytes of a segment the tree has, from its beginning on.
fn received(tree: &Tree, segment: &str) -> u64 {
    let mut ranges = Vec::new();
    for (path, _) in tree.files(Path::new(WAL)) {
        let name = path.file_name().unwrap().to_str().unwrap();
        if name == segment {
            return SIZE;
        }
        let part = name.strip_prefix(segment).and_then(|rest| rest.strip_prefix(".part."));
        let range = part.and_then(|part| PartRange::parse(part.split('.').next()?));
        ranges.extend(range.map(|range| (u64::from(range.from), u64::from(range.to))));
    }
    ranges.sort_unstable();
    ranges.into_iter().fold(0, |end, (from, to)| if from <= end { end.max(to) } else { end })
}

#[test]
fn what_a_stream_has_reported_is_durable_whenever_the_power_goes() {
    let small = Small::new();
    small.pgkeep.ok(["backup"]);
    small.wait_for_quiet();
    small.cluster.conf("archive_command = \'\'");
    small.cluster.reload();
    let before = Disk::of(small.root());
    let cluster = &small.cluster;
    let streaming = record_while(&small.pgkeep.command(["stream"]), small.root(), || {
        let state = |what: &str| {
            let sql = "FROM pg_stat_replication WHERE application_name = \'pgkeep\'";
            cluster.sql(&format!("SELECT {what} {sql}"))
        };
        wait_until("the stream runs", 60, || state("state") == "streaming");
        cluster.sql("ALTER SYSTEM SET synchronous_standby_names = \'pgkeep\'");
        cluster.reload();
        wait_until("commits wait for the stream", 60, || state("sync_state") == "sync");
        for _ in 0..3 {
            for _ in 0..3 {
                cluster.insert("t", 1);
            }
            cluster.switch_wal();
        }
        cluster.insert("t", 1);
    });
    let Some(recorded) = streaming else { return };
    small.cluster.sql("ALTER SYSTEM RESET synchronous_standby_names");
    small.cluster.reload();
    let run = Run::new("stream", before, recorded.ops);
    run.assert_replayed(small.root(), |_| false);
    let told = run.ops.iter().filter_map(|op| match op {
        Op::Told(lsn) => Some(*lsn),
        _ => None,
    });
    let told: Vec<u64> = told.collect();
    let (first, last) = (told[0] / SIZE, *told.iter().max().unwrap());
    assert!(told.len() > 10 && last / SIZE >= first + 2, "{told:?}: {}", recorded.output);

    // Parts go when their segment is whole: what each object ever was.
    let mut objects: HashMap<_, Rc<Vec<u8>>> = HashMap::new();
    let mut disk = run.before.clone();
    let collect = |disk: &Disk, objects: &mut HashMap<_, _>| {
        let now = disk.now();
        let files = now.files(Path::new(WAL));
        objects.extend(files.map(|(path, content)| (path.to_owned(), content.clone())));
    };
    collect(&disk, &mut objects);
    for op in &run.ops {
        disk.apply(op);
        if matches!(op, Op::Rename { .. }) {
            collect(&disk, &mut objects);
        }
    }
    let size = SegmentSize::new(SIZE).expect("a size");
    let promise = |tree: &Tree, _: bool| {
        for (path, content) in tree.files(Path::new(WAL)) {
            if objects.get(path) != Some(content) {
                return Err(format!("{} isn\'t whole", path.display()));
            }
        }
        let told = run.told.get();
        for number in first..=told / SIZE {
            let segment: SegmentName = size.name(Timeline(1), number);
            let needed = (told - number * SIZE).min(SIZE);
            let there = received(tree, &segment.to_string());
            if there < needed {
                let to = Lsn(told);
                return Err(format!("{segment} has {there} bytes, and {to} was reported"));
            }
        }
        Ok(())
    };
    let seen = run.keeps(&promise, is_rest);
    let needed = run.needs_each_sync(&promise, if all() { 1 } else { 12 }, |path| {
        // Leases, what is temporary, and what only goes.
        path.iter().any(|part| part == ".tmp" || part == "leases")
            || path.ends_with("clusters/main")
    });
    assert!(needed > 4, "{needed}");
    let step = if all() { 1 } else { seen.different.len().div_ceil(25) };
    for (tree, _) in seen.different.iter().rev().step_by(step) {
        tree.write(small.root());
        let output = small.pgkeep.run(["verify", "--level", "full"]);
        // Parts are stored several at a time. One behind a hole was never reported, and the stream begins with its
        // segment again.
        let hole = output.stdout.split("there are parts, and its bytes ").nth(1);
        let hole = hole.and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        let is_hole = output.code == 1 && output.stdout.matches("PROBLEM").count() == 1;
        assert!(output.code == 0 || is_hole && hole.is_some(), "{output}");
    }
}
