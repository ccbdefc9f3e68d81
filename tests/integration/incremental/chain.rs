//! A chain of thirty incremental backups, taken while somebody writes.
//!
//! The writer's transactions come one after the other, and what each of them does follows from its
//! number. So how many of them a restored cluster has tells what must be in it, row by row.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use pgkeep::{
    progress::Silent,
    repo::{
        Repository, catalog,
        keys::{KeyMaterial, read_key_file},
        layout::ClusterLayout,
    },
    restore::{
        settings::{RecoverySettings, Signal},
        write::{WriteRequest, write},
    },
    storage::Range,
};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::{Site, assert_over, id, start};
use crate::support::{
    Cluster,
    install::run,
    on_each_version,
    random::Random,
    reading::Reading,
    scratch::Scratch,
    sound::{check_structures, verify_backup},
    wait_until,
};

/// How many incremental backups there are.
const LENGTH: usize = 30;
const ACCOUNTS: u64 = 120_000;
/// How many transactions' rows the queue holds.
const QUEUE: u64 = 300;

on_each_version!(each_of_a_long_chain_restores_without_its_neighbours: 15 postgres_15, 17 postgres_17);

fn each_of_a_long_chain_restores_without_its_neighbours(version: u32) {
    let site = Site::new(Cluster::builder(version));
    make_tables(&site.cluster);
    let load = Load::start(&site.cluster);
    let mut chain = vec![take(&site, &load, "full", 0)];
    for number in 1..=LENGTH {
        let taken = take(&site, &load, "incr", number);
        assert_over(&taken.record, &chain[number - 1].record, version);
        chain.push(taken);
    }
    let during: u64 = chain.iter().map(|taken| taken.after - taken.before).sum();
    assert!(during > LENGTH as u64, "{during} transactions while backups were taken");
    load.stop();
    let full = site.take("full");

    in_one_pass(&site, &chain, &full);

    // The full backup that all are over is one of those that go.
    let (gone, mut kept): (Vec<_>, Vec<_>) =
        chain.into_iter().enumerate().partition(|(number, _)| number % 2 == 0 && *number < LENGTH);
    for (number, taken) in shuffled(gone) {
        let output = site.pgkeep.run(["delete", id(&taken.record)]);
        assert_eq!(output.code, 0, "delete backup {number}: {output}");
    }
    // The chain goes on over what is left of it.
    site.pgkeep.ok(["delete", id(&full)]);
    let load = Load::go_on(&site.cluster, kept.last().unwrap().1.after);
    let next = take(&site, &load, "incr", LENGTH + 1);
    load.stop();
    assert_over(&next.record, &kept.last().unwrap().1.record, version);
    kept.push((LENGTH + 1, next));

    let queue = Mutex::new(kept.iter());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some((number, taken)) = next else { return };
                    restores_exactly(&site, version, *number, taken);
                }
            });
        }
    });
}

fn make_tables(cluster: &Cluster) {
    cluster.sql(
        "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint, filler text) \
         WITH (fillfactor = 90)",
    );
    cluster.sql(&format!(
        "INSERT INTO accounts SELECT n, 0, repeat(md5(n::text), 3) FROM \
         generate_series(1, {ACCOUNTS}) n"
    ));
    cluster.sql("CREATE TABLE history (n bigint PRIMARY KEY, account int, delta bigint)");
    cluster.sql("CREATE TABLE queue (n bigint PRIMARY KEY, filler text)");
    cluster.sql("VACUUM (FREEZE, ANALYZE)");
}

/// Transaction `n`: the account and what is added to its balance.
fn transfer(n: u64) -> (u64, i64) {
    let mut mixed = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed ^= mixed >> 29;
    (1 + mixed % ACCOUNTS, 1 + (mixed >> 32) as i64 % 1000)
}

/// A writer at work.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Load {
    fn start(cluster: &Cluster) -> Self {
        Load::go_on(cluster, 0)
    }

    /// Goes on after at least this many transactions.
    fn go_on(cluster: &Cluster, at_least: u64) -> Self {
        let begun: u64 = cluster.sql("SELECT count(*) FROM history").parse().unwrap();
        assert!(begun >= at_least, "{begun} of {at_least} transactions");
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(begun)));
        let mut session = cluster.session();
        let thread = {
            let (stop, done) = (stop.clone(), done.clone());
            thread::spawn(move || {
                for n in begun + 1.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let (account, delta) = transfer(n);
                    session.sql(&format!(
                        "BEGIN; UPDATE accounts SET balance = balance + {delta} WHERE id = {account}; \
                         INSERT INTO history VALUES ({n}, {account}, {delta}); \
                         INSERT INTO queue VALUES ({n}, repeat(md5('{n}'), 9)); \
                         DELETE FROM queue WHERE n <= {n} - {QUEUE}; COMMIT"
                    ));
                    done.store(n, Ordering::Relaxed);
                    // The machine is small, and backups want their share.
                    sleep(Duration::from_millis(3));
                }
            })
        };
        Load { stop, done, thread }
    }

    /// How many transactions were committed: so many, or one more.
    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the writer");
    }
}

/// A backup, and how many transactions there were before it began and after it ended.
struct Taken {
    record: Value,
    before: u64,
    after: u64,
}

fn take(site: &Site, load: &Load, kind: &str, number: usize) -> Taken {
    let cluster = &site.cluster;
    // Files come and go, shrink and grow.
    cluster.sql(&format!("CREATE TABLE of_{number} AS SELECT generate_series(1, 3000) n"));
    if number >= 2 {
        cluster.sql(&format!("DROP TABLE of_{}", number - 2));
    }
    match number % 4 {
        1 => cluster.sql("VACUUM queue"),
        3 => cluster.sql("VACUUM FULL queue"),
        _ => String::new(),
    };
    let before = load.done();
    let record = site.take(kind);
    let after = load.done();
    wait_until("the writer goes on", 60, || load.done() > after);
    Taken { record, before, after }
}

/// That the last of the chain is restored as a full backup of the same content is: from its own tree
/// alone, and reading once what it needs.
fn in_one_pass(site: &Site, chain: &[Taken], full: &Value) {
    let last = &chain[LENGTH].record;
    let took = |record: &Value, name: &str| {
        let begin = Instant::now();
        let place = site.restore(record, name);
        let took = begin.elapsed();
        fs::remove_dir_all(place).unwrap();
        took.as_secs_f64()
    };
    let times = took(last, "last") / took(full, "full");
    let [last_reads, full_reads] = [last, full].map(|record| Reads::of(site, id(record)));
    eprintln!("the last of {LENGTH}: {last_reads}");
    eprintln!("a full backup: {full_reads}; the last takes {times:.2} times as long");

    let uses = last["uses"].as_object().unwrap();
    let mut stored = 0;
    for Taken { record, .. } in chain {
        if uses.contains_key(id(record)) || id(record) == id(last) {
            stored += record["sizes"]["stored"].as_u64().unwrap();
        }
    }
    let bytes = last_reads.data.1 + last_reads.leaves.1;
    assert!(bytes <= stored, "{bytes} read of {stored} that there are");
    // A frame is read for the blocks that are still of use, however few: not for less than that.
    assert!(
        last_reads.data.1 < 3 * full_reads.data.1,
        "{last_reads}, and of a full one {full_reads}"
    );
    assert!(uses.len() > LENGTH / 2, "{last}");
    for backup in &last_reads.backups {
        assert!(uses.contains_key(backup) || backup == id(last), "{backup} isn't used: {last}");
    }
}

/// What a restore reads of packs.
#[derive(Debug)]
struct Reads {
    /// Whose packs are read.
    backups: BTreeSet<String>,
    /// How many reads of data and of leaves there are, and the bytes of what is read, counted once.
    data: (usize, u64),
    leaves: (usize, u64),
}

impl Reads {
    fn of(site: &Site, backup: &str) -> Self {
        let scratch = Scratch::new("reads");
        let root = scratch.path().join("repository");
        run(Command::new("cp").arg("-r").arg(site.pgkeep.repository()).arg(&root));
        let reading = Arc::new(Reading::of(&root));
        let key = KeyMaterial::KeyFile(read_key_file(&site.pgkeep.key_file("main")).unwrap());
        let layout = ClusterLayout::new("main").unwrap();
        Runtime::new().unwrap().block_on(async {
            let repository = Repository::open("main", reading.clone(), &key, 1).await.unwrap();
            let backup = backup.parse().unwrap();
            let record = catalog::read_record(&repository, &layout, &backup).await.unwrap();
            let request = WriteRequest {
                repository: &repository,
                layout: &layout,
                record: &record,
                pgdata: &scratch.path().join("data"),
                tablespaces: &BTreeMap::new(),
                settings: RecoverySettings {
                    signal: Signal::Recovery,
                    lines: Vec::new(),
                    alone: false,
                },
                threads: 1,
            };
            write(request, Arc::new(Silent)).await.unwrap();
        });
        let mut reads = Reads { backups: BTreeSet::new(), data: (0, 0), leaves: (0, 0) };
        let mut times: BTreeMap<(String, u64), usize> = BTreeMap::new();
        for (name, range) in reading.take() {
            let Some((folder, pack)) = name.split_once("/packs/") else { continue };
            let (folder, pack) = (folder.to_owned(), pack.to_owned());
            let (offset, len) = match range {
                Range::At { offset, len } => (offset, len),
                Range::Last(len) => (u64::MAX, len),
                Range::All => panic!("{name} was read as a whole"),
            };
            // The tree is read twice: for the order of the files, and for their blocks. And each time
            // a frame may be wanted for leaves, and for those that patches are over.
            let is_data = pack.starts_with('0');
            let (of, most) = if is_data { (&mut reads.data, 1) } else { (&mut reads.leaves, 4) };
            reads.backups.insert(folder.rsplit_once('/').unwrap().1.to_owned());
            let times = times.entry((name, offset)).or_default();
            *times += 1;
            *of = (of.0 + 1, of.1 + if *times == 1 { len } else { 0 });
            assert!(*times <= most, "{folder}, pack {pack}, was read {times} times at {offset}");
        }
        reads
    }
}

impl std::fmt::Display for Reads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ((data, data_bytes), (leaves, leaf_bytes)) = (self.data, self.leaves);
        write!(
            f,
            "{data} reads of data ({} KiB), {leaves} of leaves ({} KiB), of {} backups",
            data_bytes >> 10,
            leaf_bytes >> 10,
            self.backups.len()
        )
    }
}

fn shuffled<T>(mut items: Vec<T>) -> Vec<T> {
    let mut random = Random::of_this_run();
    for last in (1..items.len()).rev() {
        items.swap(last, random.below(last as u64 + 1) as usize);
    }
    items
}

/// That a backup restores, and that what comes back is what there was after as many transactions as
/// it has.
fn restores_exactly(site: &Site, version: u32, number: usize, taken: &Taken) {
    let place = site.restore(&taken.record, &format!("backup-{number}"));
    verify_backup(&place);
    let restored = start(&place, version);
    let count = assert_consistent(&restored, number);
    let (before, after) = (taken.before, taken.after + 1);
    assert!((before..=after).contains(&count), "{count}, not {before} to {after}: {number}");
    if [1, LENGTH].contains(&number) {
        check_structures(&restored);
    }
    drop(restored);
    fs::remove_dir_all(place).unwrap();
}

/// That all tables are what so many transactions made of them as there are; returns how many.
fn assert_consistent(restored: &Cluster, number: usize) -> u64 {
    let history = restored.sql("SELECT n, account, delta FROM history ORDER BY n");
    let count = history.lines().count() as u64;
    let mut balances: BTreeMap<u64, i64> = BTreeMap::new();
    let mut expected = String::new();
    for n in 1..=count {
        let (account, delta) = transfer(n);
        *balances.entry(account).or_default() += delta;
        writeln!(expected, "{n}|{account}|{delta}").unwrap();
    }
    assert!(history == expected.trim_end(), "history of backup {number} differs");
    let mut expected = String::new();
    for (account, balance) in balances {
        writeln!(expected, "{account}|{balance}").unwrap();
    }
    let found = restored.sql("SELECT id, balance FROM accounts WHERE balance <> 0 ORDER BY id");
    assert!(found == expected.trim_end(), "accounts of backup {number} differ");
    let whole = "count(*), count(*) FILTER (WHERE filler = repeat(md5(id::text), 3))";
    let found = restored.sql(&format!("SELECT {whole} FROM accounts"));
    assert_eq!(found, format!("{ACCOUNTS}|{ACCOUNTS}"), "accounts of backup {number}");
    let whole = "count(*) FILTER (WHERE filler = repeat(md5(n::text), 9))";
    let found = restored.sql(&format!("SELECT min(n), max(n), count(*), {whole} FROM queue"));
    let first = count.saturating_sub(QUEUE) + 1;
    let rows = count.min(QUEUE);
    assert_eq!(found, format!("{first}|{count}|{rows}|{rows}"), "queue of backup {number}");
    for there in number.saturating_sub(1)..=number {
        assert_eq!(restored.sql(&format!("SELECT count(*) FROM of_{there}")), "3000");
    }
    let others = restored.sql("SELECT count(*) FROM pg_tables WHERE tablename LIKE 'of\\_%'");
    assert_eq!(others, if number == 0 { "1" } else { "2" }, "tables of backup {number}");
    count
}
