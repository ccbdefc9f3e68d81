//! A stream that commits wait for, and that dies at each step; then the server is lost.

use std::{
    fs,
    thread::sleep,
    time::{Duration, Instant},
};

use crate::support::{
    Cluster, Pgkeep, Writes,
    objects::{ObjectKind, objects_of},
    on_each_version,
    pgkeep::{Running, start},
    steps::Death,
    wait_until,
};

pub const STEPS: &[&str] = &[
    "stream: part stored",
    "stream: to be reported",
    "stream: reported",
    "stream: parts merged",
    "stream: segment stored",
    "stream: parts are being removed",
    "stream: segment assembled",
    "stream: parts removed",
];

on_each_version!(a_stream_that_dies_at_any_step_loses_no_acknowledged_row: 15 postgres_15, 18 postgres_18);

fn a_stream_that_dies_at_any_step_loses_no_acknowledged_row(version: u32) {
    let mut primary = Cluster::builder(version).wal_segsize(1).start();
    let pgkeep = Pgkeep::archiving(&primary);
    pgkeep.ok(["backup"]);
    let death = Death::in_folder(pgkeep.scratch());
    let stream = || -> Running {
        let mut command = pgkeep.command(["stream"]);
        let (name, value) = death.variable();
        command.env(name, value);
        start(command)
    };
    let mut running = stream();
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'pgkeep'");
    primary.reload();
    // The parts become the segment by the stream alone.
    primary.conf("archive_command = '/bin/false'");
    primary.reload();
    wait_until("the stream is a synchronous standby", 60, || {
        primary.sql("SELECT sync_state FROM pg_stat_replication") == "sync"
    });
    let writes = Writes::start(&primary, "rows");
    for step in STEPS {
        if *step == "stream: segment assembled" {
            running = leave_a_segment_in_parts(&pgkeep, &death, &primary, running, &stream);
            continue;
        }
        death.at(step);
        let before = writes.acknowledged();
        wait_until(&format!("the stream dies at {step:?}"), 60, || {
            // Parts are merged where there are many of one segment.
            if *step != "stream: parts merged" {
                primary.try_sql("SELECT pg_switch_wal()").expect("switch");
            }
            death.has_come()
        });
        let output = running.wait();
        assert_eq!(output.code, -9, "{step}: {output}");
        running = stream();
        wait_until("commits go on", 60, || writes.acknowledged() > before + 20);
    }
    primary.kill9();
    let acknowledged = writes.stop();
    running.signal(rustix::process::Signal::TERM);
    running.wait();
    fs::remove_dir_all(primary.pgdata()).expect("lose the server");
    let restored = pgkeep.restored(version, "latest", &[]);
    let rows: u64 = restored.sql("SELECT count(*) FROM rows").parse().expect("a number");
    assert!(
        (acknowledged..=acknowledged + 1).contains(&rows),
        "{rows} rows, {acknowledged} were acknowledged"
    );
}

/// Has a receiver be killed that has stored all parts of a segment and not the segment yet: both happen at a
/// time, so the segment is taken away. Who makes it of its parts dies as well.
fn leave_a_segment_in_parts(
    pgkeep: &Pgkeep,
    death: &Death,
    primary: &Cluster,
    mut running: Running,
    stream: &dyn Fn() -> Running,
) -> Running {
    for _ in 0..10 {
        death.at("stream: segment stored");
        wait_until("a segment is stored", 60, || {
            primary.switch_wal();
            death.has_come()
        });
        running.wait();
        let segments = objects_of(&pgkeep.repository(), ObjectKind::Segment).into_iter();
        let newest = segments
            .map(|object| object.path)
            .max_by_key(|path| path.file_name().expect("a name").to_owned());
        let newest = newest.expect("a segment");
        let aside = pgkeep.scratch().path().join("aside");
        fs::rename(&newest, &aside).expect("take it away");
        death.at("stream: segment assembled");
        running = stream();
        let end = Instant::now() + Duration::from_secs(5);
        while !death.has_come() && Instant::now() < end {
            sleep(Duration::from_millis(10));
        }
        if !death.take_back() {
            running.wait();
            return stream();
        }
        // The last part wasn't stored yet, and the server sent it again or the segment has to come back.
        if !newest.exists() {
            fs::rename(&aside, &newest).expect("bring it back");
        }
    }
    panic!("no segment was made of its parts");
}
