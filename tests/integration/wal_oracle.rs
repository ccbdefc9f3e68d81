//! What we read in WAL, compared with what PostgreSQL reads in it: record by record with
//! pg_walinspect on every version and with pg_waldump on 15, and with what SQL said while it was
//! written.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::Read,
    path::PathBuf,
};

use chrono::{DateTime, NaiveDateTime, Utc};
use pgkeep::postgres::{
    Lsn, SegmentName, SegmentSize, Timeline, WalFile,
    history::TimelineHistory,
    wal::{Event, SegmentHeader, SegmentScanner, SegmentSummary, Trailing, trailing_head},
};

use crate::support::{
    Cluster, Stop,
    install::{command, program, run},
    on_each_version,
};

/// Resource managers by number (`access/rmgrlist.h`).
const MANAGERS: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

/// A record, as the server or we see it: start, end, resource manager, transaction id, length.
type Record = (Lsn, Lsn, String, u32, u32);
/// Start of the record, transaction id, time, committed, prepared.
type Transaction = (Lsn, u32, DateTime<Utc>, bool, bool);

/// What is in a row of segments.
#[derive(Default)]
struct Scan {
    records: Vec<Record>,
    transactions: Vec<Transaction>,
    events: Vec<Event>,
    summaries: Vec<SegmentSummary>,
}

fn cluster(version: u32, segment_mib: u32) -> Cluster {
    Cluster::builder(version)
        .wal_segsize(segment_mib)
        .conf("wal_keep_size = '4GB'")
        .conf("max_prepared_transactions = 10")
        .conf("track_commit_timestamp = on")
        .conf("wal_level = logical")
        .conf("autovacuum = off")
        .conf("lock_timeout = '60s'")
        .start()
}

fn segment_size(cluster: &Cluster) -> SegmentSize {
    let bytes = cluster.sql("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'");
    SegmentSize::new(bytes.parse().unwrap()).unwrap()
}

fn lsn(cluster: &Cluster, sql: &str) -> Lsn {
    cluster.sql(&format!("SELECT {sql}")).parse().unwrap()
}

fn path(cluster: &Cluster, file: impl ToString) -> PathBuf {
    cluster.pgdata().join("pg_wal").join(file.to_string())
}

/// Begins a segment of which nothing is older than what follows, and says its number.
fn fresh_segment(cluster: &Cluster, size: SegmentSize) -> u64 {
    cluster.sql("SELECT pg_logical_emit_message(false, 'fill', 'x')");
    let end = lsn(cluster, "pg_switch_wal()");
    size.number_before(end) + 1
}

/// Scans the segments from `first` to the one of `end`, in a row, and each alone.
fn scan(cluster: &Cluster, timeline: Timeline, first: u64, end: Lsn, size: SegmentSize) -> Scan {
    let names: Vec<SegmentName> =
        (first..=size.number_before(end)).map(|n| size.name(timeline, n)).collect();
    let mut all = Scan::default();
    let mut scanner = SegmentScanner::new(names[0], size, None).report_records();
    for (i, name) in names.iter().enumerate() {
        if i > 0 {
            all.summaries.push(scanner.next_segment(*name));
        }
        feed(&mut scanner, &path(cluster, name), |event| match event {
            Event::Record { start, end, resource_manager, xid, length } => {
                let manager = MANAGERS[usize::from(*resource_manager)].to_owned();
                all.records.push((*start, *end, manager, *xid, *length));
            }
            Event::Transaction { start, time, xid, committed, prepared, .. } => {
                all.transactions.push((*start, *xid, *time, *committed, *prepared));
                all.events.push(event.clone());
            }
            other => all.events.push(other.clone()),
        });
    }
    all.summaries.push(scanner.finish());

    for (i, name) in names.iter().enumerate().skip(1) {
        let mut before = File::open(path(cluster, names[i - 1])).unwrap();
        let trailing = trailing_head(&mut before, size).unwrap();
        let unknown = matches!(trailing, Trailing::Unknown);
        let mut scanner = SegmentScanner::new(*name, size, trailing.into_head());
        feed(&mut scanner, &path(cluster, name), |_| {});
        let alone = scanner.finish();
        if alone.head_known {
            assert_eq!(alone, all.summaries[i], "{name} alone");
        } else {
            // Only when the record before is larger than a segment.
            assert!(unknown, "{name}");
            let start = alone.start.0;
            let larger = |r: &Record| r.0.0 < start - size.bytes() && r.1.0 > start;
            assert!(all.records.iter().any(larger), "{name}");
        }
    }
    all
}

fn feed(scanner: &mut SegmentScanner, path: &PathBuf, mut on_event: impl FnMut(&Event)) {
    let mut file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut buffer = vec![0; 100_001];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => break,
            n => scanner.feed(&buffer[..n], &mut on_event),
        }
    }
}

/// The time at the beginning of a text as the server writes it.
fn time(text: &str) -> DateTime<Utc> {
    let text = text.split([';', '+', 'U']).next().unwrap().trim();
    NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").expect(text).and_utc()
}

/// What the description of a record of "Transaction" says.
fn transaction(start: Lsn, kind: &str, xid: u32, description: &str) -> Option<Transaction> {
    let (committed, prepared) = match kind {
        "COMMIT" => (true, false),
        "ABORT" => (false, false),
        "COMMIT_PREPARED" => (true, true),
        "ABORT_PREPARED" => (false, true),
        _ => return None,
    };
    let (xid, at) = match description.split_once(": ") {
        Some((xid, at)) if prepared => (xid.parse().unwrap(), at),
        _ => (xid, description),
    };
    Some((start, xid, time(at), committed, prepared))
}

/// The records that the server sees from segment `first` to `end`, and what ends a transaction.
fn inspect(
    cluster: &Cluster,
    first: u64,
    end: Lsn,
    size: SegmentSize,
) -> (Vec<Record>, Vec<Transaction>) {
    let start = size.start_of(first);
    let text = cluster.sql(&format!(
        "SET timezone = 'UTC'; CREATE EXTENSION IF NOT EXISTS pg_walinspect;
         SELECT start_lsn, end_lsn, resource_manager, xid, record_length, record_type,
           CASE resource_manager WHEN 'Transaction' THEN left(description, 80) END
         FROM pg_get_wal_records_info('{start}', '{end}')"
    ));
    let (mut records, mut transactions) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let [start, end, manager, xid, length, kind, description] =
            line.splitn(7, '|').collect::<Vec<_>>().try_into().unwrap();
        let (start, xid) = (start.parse().unwrap(), xid.parse().unwrap());
        let end = end.parse().unwrap();
        records.push((start, end, manager.to_owned(), xid, length.parse().unwrap()));
        if manager == "Transaction" {
            transactions.extend(transaction(start, kind, xid, description));
        }
    }
    (records, transactions)
}

fn assert_same<T: PartialEq + std::fmt::Debug>(ours: &[T], theirs: &[T]) {
    if let Some(i) = (0..ours.len().min(theirs.len())).find(|&i| ours[i] != theirs[i]) {
        panic!("number {i}: we read {:?}, the server {:?}", ours[i], theirs[i]);
    }
    assert_eq!(ours.len(), theirs.len(), "the longer goes on after {:?}", ours.last());
}

/// Everything that makes records of interest. Returns restore points by name.
fn workload(cluster: &Cluster) -> BTreeMap<String, Lsn> {
    let mut points = BTreeMap::new();
    let mut point = |name: &str| {
        let at = lsn(cluster, &format!("pg_create_restore_point('{name}')"));
        points.insert(name.to_owned(), at);
    };
    cluster.sql("CREATE TABLE t (id int PRIMARY KEY, b text); CREATE INDEX ON t (b)");
    cluster.sql("CREATE TABLE w (a int)");
    cluster.sql("INSERT INTO t SELECT i, repeat('x', i % 50) FROM generate_series(1, 3000) i");
    cluster.sql("CHECKPOINT");
    point("first");
    let mut session = cluster.session();
    session.sql("BEGIN; INSERT INTO t VALUES (-1); SAVEPOINT a; INSERT INTO t VALUES (-2)");
    session.sql("ROLLBACK TO a; SAVEPOINT b; INSERT INTO t VALUES (-3); COMMIT");
    session.sql("BEGIN; INSERT INTO t VALUES (-4); ROLLBACK");
    session.sql("BEGIN; SAVEPOINT a; INSERT INTO t VALUES (-5); CREATE TABLE u (a int)");
    session.sql("DROP TABLE u; TRUNCATE t; PREPARE TRANSACTION 'commits'");
    session.sql("BEGIN; SAVEPOINT a; INSERT INTO w VALUES (-6); CREATE TABLE v (a int)");
    session.sql("PREPARE TRANSACTION 'aborts'");
    point("while prepared");
    session.sql("ROLLBACK PREPARED 'aborts'; COMMIT PREPARED 'commits'");
    // Many subtransactions, dropped tables and invalidations, in one commit or abort record each.
    for (i, end) in ["COMMIT", "ROLLBACK", "PREPARE TRANSACTION 'many'"].iter().enumerate() {
        session.sql("BEGIN");
        session.sql(&format!(
            "DO $$ BEGIN FOR i IN 1..4000 LOOP
               BEGIN INSERT INTO t VALUES ({i} * 10000 + i); EXCEPTION WHEN division_by_zero THEN END;
             END LOOP;
             FOR i IN 1..60 LOOP
               EXECUTE format('CREATE TABLE many_{i}_%s (a int PRIMARY KEY, b text)', i);
               IF i % 2 = 0 THEN EXECUTE format('DROP TABLE many_{i}_%s', i); END IF;
             END LOOP; END $$"
        ));
        session.sql(end);
    }
    session.sql("COMMIT PREPARED 'many'");
    // Records larger than a segment, and of all sizes around a page.
    for length in [3_000_000, 1_048_576, 900_000, 2_097_152] {
        session.sql(&format!("SELECT pg_logical_emit_message(false, 'm', repeat('x', {length}))"));
        session.sql("INSERT INTO t SELECT max(id) + 1 FROM t");
    }
    session.sql(
        "DO $$ BEGIN FOR i IN 1..3000 LOOP
        PERFORM pg_logical_emit_message(i % 2 = 0, 'm', repeat('x', i * 3)); COMMIT;
      END LOOP; END $$",
    );
    session.sql(
        "DO $$ BEGIN FOR i IN 1..3000 LOOP
        INSERT INTO t VALUES (1000000 + i, i); IF i % 7 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
      END LOOP; END $$",
    );
    cluster.sql("VACUUM t");
    cluster.sql("SELECT pg_switch_wal()");
    cluster.sql("CREATE DATABASE d");
    cluster.sql("DROP DATABASE d");
    point("first");
    point(&"n".repeat(63));
    points
}

on_each_version!(records_are_those_the_server_sees);

fn records_are_those_the_server_sees(version: u32) {
    // The usual size too, but not on every version, as it takes its time.
    let sizes: &[u32] = if matches!(version, 15 | 18) { &[1, 16] } else { &[1] };
    for &segment_mib in sizes {
        let cluster = cluster(version, segment_mib);
        let size = segment_size(&cluster);
        let first = fresh_segment(&cluster, size);
        let points = workload(&cluster);
        let mut session = cluster.session();
        let backup: Lsn = session.sql("SELECT pg_backup_start('b', true)").parse().unwrap();
        session.sql("SELECT lsn FROM pg_backup_stop(false)");
        drop(session);
        let end = fresh_segment(&cluster, size);
        let end = size.start_of(end);

        let ours = scan(&cluster, Timeline(1), first, end, size);
        let (records, transactions) = inspect(&cluster, first, end, size);
        assert_same(&ours.records, &records);
        assert_same(&ours.transactions, &transactions);
        assert!(records.len() > 20_000 && transactions.len() > 3000);
        let straddles = |r: &&Record| size.number_at(r.0) != size.number_before(r.1);
        assert!(segment_mib > 1 || records.iter().filter(straddles).count() > 10);

        // What the clock of commits says.
        let said = cluster.sql(
            "SET timezone = 'UTC'; SELECT i, pg_xact_commit_timestamp(i::text::xid)
             FROM generate_series(3, pg_current_xact_id()::text::int8) i",
        );
        let said: BTreeMap<u32, DateTime<Utc>> = said
            .lines()
            .filter_map(|line| line.split_once('|').filter(|(_, time)| !time.is_empty()))
            .map(|(xid, at)| (xid.parse().unwrap(), time(at)))
            .collect();
        for (_, xid, time, ..) in ours.transactions.iter().filter(|t| t.3) {
            assert_eq!(said.get(xid), Some(time), "transaction {xid}");
        }

        // What the summaries say.
        let found: Vec<_> = ours.summaries.iter().flat_map(|s| &s.restore_points).collect();
        assert_eq!(found.iter().filter(|p| p.name == "first").count(), 2);
        for (name, at) in points {
            let last = found.iter().rfind(|p| p.name == name).unwrap();
            assert_eq!(last.lsn, at, "{name}");
        }
        let ends: Vec<Lsn> = ours.summaries.iter().flat_map(|s| s.backup_ends.clone()).collect();
        assert_eq!(ends, [backup]);
        let count: u64 =
            ours.summaries.iter().filter_map(|s| s.transactions.as_ref()).map(|t| t.count).sum();
        assert_eq!(count, transactions.len() as u64);
        assert!(ours.summaries.iter().all(|s| s.whole && s.parsed && !s.lists_cut));
        let header = fs::read(path(&cluster, size.name(Timeline(1), first))).unwrap();
        let header = SegmentHeader::parse(&header).unwrap();
        assert_eq!(header.major(), Some(version));
        assert_eq!(header.segment_size, size);
        assert_eq!(header.system_identifier, cluster.system_identifier());
    }
}

on_each_version!(a_record_given_up_after_a_crash_is_skipped);

fn a_record_given_up_after_a_crash_is_skipped(version: u32) {
    let mut cluster = cluster(version, 1);
    let size = segment_size(&cluster);
    let first = fresh_segment(&cluster, size);
    cluster.sql("CREATE TABLE t (a int)");
    cluster.sql("CHECKPOINT");
    let torn = lsn(&cluster, "pg_current_wal_insert_lsn()");
    cluster.sql("SELECT pg_logical_emit_message(false, 'm', repeat('x', 3000000))");
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.kill9();
    // As if only its first segment had reached the disk.
    let missing = size.number_at(torn) + 1;
    for entry in fs::read_dir(cluster.pgdata().join("pg_wal")).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().parse::<SegmentName>().ok();
        if name.and_then(|name| name.number(size)).is_some_and(|number| number >= missing) {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    cluster.start();
    assert!(cluster.try_sql("INSERT INTO t VALUES (2)").is_ok());
    let end = size.start_of(fresh_segment(&cluster, size));
    let ours = scan(&cluster, Timeline(1), first, end, size);
    let (records, transactions) = inspect(&cluster, first, end, size);
    assert_same(&ours.records, &records);
    assert_same(&ours.transactions, &transactions);
    assert!(!records.iter().any(|r| r.4 > 1_000_000));
    assert!(ours.summaries.iter().all(|s| s.whole && s.head_known));
}

on_each_version!(timelines_are_those_the_server_made);

fn timelines_are_those_the_server_made(version: u32) {
    let mut cluster = cluster(version, 1);
    let size = segment_size(&cluster);
    cluster.sql("CREATE TABLE t (a int)");
    let mut switches = Vec::new();
    for id in 2..=4 {
        cluster.sql("INSERT INTO t SELECT generate_series(1, 500)");
        cluster.stop(Stop::Immediate);
        fs::write(cluster.pgdata().join("standby.signal"), "").unwrap();
        crate::support::scratch::own(&cluster.pgdata().join("standby.signal"));
        cluster.start();
        cluster.promote();
        cluster.sql("INSERT INTO t SELECT generate_series(1, 500)");

        let timeline = Timeline(id);
        let history = fs::read(path(&cluster, timeline.history_file())).unwrap();
        let history = TimelineHistory::parse(timeline, &history).unwrap();
        assert_eq!(history.parent(), Some(Timeline(id - 1)));
        let switch = history.ancestors.last().unwrap().end;
        switches.push((id - 1, switch));
        let ancestors: Vec<_> = history.ancestors.iter().map(|a| (a.timeline.0, a.end)).collect();
        assert_eq!(ancestors, switches);

        // The child's first segment is the parent's up to the switch, and goes on after it.
        let number = size.number_at(switch);
        let end = size.start_of(fresh_segment(&cluster, size));
        assert_eq!(history.timeline_of_segment(number, size), timeline);
        let ours = scan(&cluster, timeline, number, end, size);
        let (records, transactions) = inspect(&cluster, number, end, size);
        assert_same(&ours.records, &records);
        assert_same(&ours.transactions, &transactions);
        assert_eq!(ours.summaries[0].timeline, timeline);
        let changes: Vec<_> = ours
            .events
            .iter()
            .filter_map(|event| match event {
                Event::EndOfRecovery { start, timeline, previous, time, .. } => {
                    assert!((Utc::now() - time).num_seconds().abs() < 600);
                    Some((*start >= switch, timeline.0, previous.0))
                }
                _ => None,
            })
            .collect();
        let last = changes.last().unwrap();
        assert_eq!(*last, (true, id, id - 1));

        // What is left of the parent's ends at the switch.
        let partial = WalFile::Partial(size.name(Timeline(id - 1), number));
        let mut scanner = SegmentScanner::new(size.name(Timeline(id - 1), number), size, None);
        feed(&mut scanner, &path(&cluster, partial), |_| {});
        let partial = scanner.finish();
        assert!(!partial.whole);
        assert_eq!(partial.end, switch);
    }
}

/// A record as pg_waldump prints it: start, resource manager, transaction id, length.
type Printed = (Lsn, String, u32, u32);

/// The records and transactions that pg_waldump prints for these segments.
fn waldump(
    cluster: &Cluster,
    first: SegmentName,
    last: SegmentName,
) -> (Vec<Printed>, Vec<Transaction>) {
    let text = run(command(program(15, "pg_waldump"))
        .arg("-p")
        .arg(cluster.pgdata().join("pg_wal"))
        .args([first.to_string(), last.to_string()]));
    let (mut records, mut transactions) = (Vec::new(), Vec::new());
    for line in text.lines() {
        // rmgr: Heap len (rec/tot): 54/ 150, tx: 741, lsn: 0/01500028, prev 0/01500000, desc: …
        let field = |from: &str, to: &str| {
            let rest = line.split_once(from).expect(line).1;
            rest.split_once(to).expect(line).0.trim().to_owned()
        };
        let start: Lsn = field("lsn: ", ",").parse().unwrap();
        let manager = field("rmgr: ", " len");
        let xid: u32 = field("tx: ", ",").parse().unwrap();
        let length: u32 =
            field("(rec/tot): ", ", tx").split_once('/').unwrap().1.trim().parse().unwrap();
        if manager == "Transaction" {
            let description = line.split_once("desc: ").unwrap().1;
            let (kind, description) = description.split_once(' ').unwrap();
            transactions.extend(transaction(start, kind, xid, description));
        }
        records.push((start, manager, xid, length));
    }
    (records, transactions)
}

#[test]
fn records_are_those_pg_waldump_prints() {
    let mut cluster = cluster(15, 1);
    let size = segment_size(&cluster);
    let first = fresh_segment(&cluster, size);
    workload(&cluster);
    let end = size.start_of(fresh_segment(&cluster, size));
    cluster.stop(Stop::Immediate);
    let ours = scan(&cluster, Timeline(1), first, end, size);
    let name = |number| size.name(Timeline(1), number);
    let (records, transactions) = waldump(&cluster, name(first), name(size.number_before(end)));
    let starts: BTreeSet<Lsn> = records.iter().map(|r| r.0).collect();
    assert!(starts.len() > 20_000);
    let read: Vec<_> =
        ours.records.iter().map(|(start, _, m, xid, l)| (*start, m.clone(), *xid, *l)).collect();
    assert_same(&read, &records);
    assert_same(&ours.transactions, &transactions);
}
