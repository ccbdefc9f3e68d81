//! What is in a cluster, and where it stands: for telling whether a restored one has exactly what
//! it should.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::cluster::Cluster;

/// A table's content: how many rows, and a checksum over all of them whatever their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    pub rows: u64,
    pub md5: String,
}

impl Digest {
    /// What asks for it.
    fn query(table: &str) -> String {
        format!(
            "SELECT count(*), md5(coalesce(string_agg(row, '' ORDER BY row), '')) \
             FROM (SELECT md5(t::text) AS row FROM {table} t) rows"
        )
    }

    fn parse(row: &str) -> Self {
        let (rows, md5) = row.split_once('|').expect("two columns");
        Digest { rows: rows.parse().expect("a count"), md5: md5.to_owned() }
    }
}

/// A moment in a cluster's life, between two transactions.
#[derive(Debug, Clone)]
pub struct Moment {
    /// The server's clock, with zone, in PostgreSQL's form and to the microsecond.
    pub time: String,
    /// The position in the WAL after what was committed.
    pub lsn: String,
    /// The last transaction that committed.
    pub xid: u32,
    /// What the table held.
    pub digest: Digest,
}

impl Cluster {
    /// The content of a table.
    pub fn digest(&self, table: &str) -> Digest {
        Digest::parse(&self.sql(&Digest::query(table)))
    }

    /// The content of all the user's tables in all databases that one can connect to, by name:
    /// `database.schema.table`.
    pub fn digests(&self) -> Vec<(String, Digest)> {
        let databases = self.sql("SELECT datname FROM pg_database WHERE datallowconn ORDER BY 1");
        databases.lines().flat_map(|database| self.digests_in(database)).collect()
    }

    fn digests_in(&self, database: &str) -> Vec<(String, Digest)> {
        let tables = self.sql_in(
            database,
            "SELECT quote_ident(schemaname) || '.' || quote_ident(tablename) FROM pg_tables \
             WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1",
        );
        if tables.is_empty() {
            return Vec::new();
        }
        // A row a statement.
        let all: Vec<String> = tables.lines().map(Digest::query).collect();
        let found = self.sql_in(database, &all.join("; "));
        assert_eq!(found.lines().count(), all.len(), "{found}");
        let named = tables.lines().map(|table| format!("{database}.{table}"));
        named.zip(found.lines().map(Digest::parse)).collect()
    }

    /// Makes the table `name` with `rows` rows of some 100 bytes.
    pub fn make_table(&self, name: &str, rows: u64) {
        self.sql(&format!("CREATE TABLE {name} (id bigint PRIMARY KEY, filler text)"));
        self.insert(name, rows);
    }

    /// Adds `rows` rows to a table of [`Cluster::make_table`], in one transaction, whose id this
    /// returns.
    pub fn insert(&self, name: &str, rows: u64) -> u32 {
        let xid = self.sql(&format!(
            "WITH new AS (INSERT INTO {name} SELECT n + coalesce((SELECT max(id) FROM {name}), 0), \
             repeat(md5(n::text || random()::text), 3) FROM generate_series(1, {rows}) n \
             RETURNING 1) SELECT pg_current_xact_id() FROM new LIMIT 1"
        ));
        // A transaction that changed something has an id, and 32 bits are enough in tests.
        xid.parse().expect("a transaction id")
    }

    /// Adds a row to a table of [`Cluster::make_table`] and says when and where that was. Between
    /// this moment and what comes before and after lie some milliseconds.
    pub fn moment(&self, table: &str) -> Moment {
        let xid = self.insert(table, 1);
        let text =
            self.sql("SELECT pg_sleep(0.02); SELECT clock_timestamp(), pg_current_wal_lsn()");
        let digest = self.digest(table);
        self.sql("SELECT pg_sleep(0.02)");
        let (time, lsn) = text.trim().split_once('|').expect("two columns");
        Moment { time: time.to_owned(), lsn: lsn.to_owned(), xid, digest }
    }

    /// Where the server writes (a primary) or has replayed to (a standby).
    pub fn lsn(&self) -> String {
        self.sql(
            "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
             ELSE pg_current_wal_lsn() END",
        )
    }

    /// Begins a new segment, and returns the name of the one that this closed. Something is
    /// written first, since a switch on an idle server does nothing.
    pub fn switch_wal(&self) -> String {
        self.sql("SELECT pg_logical_emit_message(false, 'pgkeep', 'something')");
        self.sql("SELECT pg_walfile_name(pg_switch_wal())")
    }

    /// Makes a restore point and returns where its record ends.
    pub fn restore_point(&self, name: &str) -> String {
        self.sql(&format!("SELECT pg_create_restore_point('{name}')"))
    }

    /// The current timeline's id, of a primary.
    pub fn timeline(&self) -> u32 {
        let name = self.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
        u32::from_str_radix(&name[..8], 16).expect("a segment's name")
    }

    /// The system identifier.
    pub fn system_identifier(&self) -> u64 {
        let text = self.sql("SELECT system_identifier FROM pg_control_system()");
        // SQL has no unsigned numbers.
        text.parse::<i64>().expect("a number") as u64
    }
}

/// Writes that go on in the background: a row a transaction, counted once its commit was
/// acknowledged.
#[derive(Debug)]
pub struct Writes {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Writes {
    /// Begins to fill the table `name`, which it makes: ids from 1 on without a gap.
    pub fn start(cluster: &Cluster, name: &str) -> Self {
        cluster.sql(&format!(
            "CREATE TABLE {name} (id bigint PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())"
        ));
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let mut session = cluster.session();
        let thread = {
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            let name = name.to_owned();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let next = acknowledged.load(Ordering::Relaxed) + 1;
                    // The server may be killed under us.
                    if session.try_sql(&format!("INSERT INTO {name} VALUES ({next})")).is_none() {
                        return;
                    }
                    acknowledged.store(next, Ordering::Relaxed);
                    // The machine is small, and what is tested beside this wants its share.
                    std::thread::sleep(Duration::from_millis(3));
                }
            })
        };
        Writes { stop, acknowledged, thread: Some(thread) }
    }

    /// How many rows were acknowledged by now: all of them, and at most one more, are there.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends the writing and returns how many rows were acknowledged.
    pub fn stop(mut self) -> u64 {
        self.end();
        self.acknowledged()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Writes {
    fn drop(&mut self) {
        // The commit of a test that fails may wait for what the test has taken away; it ends with the server.
        if std::thread::panicking() {
            self.stop.store(true, Ordering::Relaxed);
            return;
        }
        self.end();
    }
}
