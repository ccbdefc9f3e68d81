//! What is done to a cluster between backups: each way in which a file of a relation can change.

use std::{path::Path, process::Command};

use crate::support::{Cluster, install::run, tables::Digest};

/// A table with an index, and what happens to it.
struct Workload {
    /// The table's name, which stands for `{t}` in the statements.
    name: &'static str,
    /// After the table was made and filled, before the first backup.
    before: &'static [&'static str],
    /// Between the first backup and the second.
    after: &'static [&'static str],
}

const ROWS: u32 = 8000;

const WORKLOADS: &[Workload] = &[
    Workload { name: "same", before: &[], after: &[] },
    Workload {
        name: "scattered",
        before: &[],
        after: &["UPDATE {t} SET filler = 'new' WHERE id % 997 = 7"],
    },
    Workload {
        name: "loaded",
        before: &[],
        after: &["INSERT INTO {t} SELECT n, md5(n::text) FROM generate_series(10001, 30000) n"],
    },
    Workload {
        name: "shrunk",
        before: &[],
        after: &["DELETE FROM {t} WHERE id > 2000", "VACUUM {t}"],
    },
    Workload {
        name: "shrunk_and_grown",
        before: &[],
        after: &[
            "DELETE FROM {t} WHERE id > 5000",
            "VACUUM {t}",
            "INSERT INTO {t} SELECT n, md5(n::text) FROM generate_series(10001, 11000) n",
        ],
    },
    Workload { name: "deleted", before: &[], after: &["DELETE FROM {t}", "VACUUM {t}"] },
    Workload { name: "truncated", before: &[], after: &["TRUNCATE {t}"] },
    Workload {
        name: "truncated_and_filled",
        before: &[],
        after: &["TRUNCATE {t}", "INSERT INTO {t} VALUES (1, 'only')"],
    },
    Workload {
        name: "vacuumed_full",
        before: &["DELETE FROM {t} WHERE id % 3 = 0"],
        after: &["VACUUM FULL {t}"],
    },
    Workload { name: "clustered", before: &[], after: &["CLUSTER {t} USING {t}_pkey"] },
    Workload { name: "dropped", before: &[], after: &["DROP TABLE {t}"] },
    Workload {
        name: "recreated",
        before: &[],
        after: &[
            "DROP TABLE {t}",
            "CREATE TABLE {t} AS SELECT n AS id FROM generate_series(1, 9) n",
        ],
    },
    Workload { name: "rewritten", before: &[], after: &["ALTER TABLE {t} ALTER id TYPE numeric"] },
    // Pages are added and hold nothing.
    Workload {
        name: "rolled_back",
        before: &[],
        after: &[
            "BEGIN; INSERT INTO {t} SELECT n, 'gone' FROM generate_series(10001, 20000) n; ROLLBACK",
        ],
    },
    Workload {
        name: "prepared",
        before: &[],
        after: &["BEGIN; DELETE FROM {t} WHERE id < 100; PREPARE TRANSACTION 'pending'"],
    },
    Workload {
        name: "unlogged",
        before: &["ALTER TABLE {t} SET UNLOGGED"],
        after: &["INSERT INTO {t} VALUES (10001, 'lost')"],
    },
    Workload { name: "became_unlogged", before: &[], after: &["ALTER TABLE {t} SET UNLOGGED"] },
    Workload {
        name: "became_logged",
        before: &["ALTER TABLE {t} SET UNLOGGED"],
        after: &["ALTER TABLE {t} SET LOGGED"],
    },
    Workload {
        name: "in_a_tablespace",
        before: &["ALTER TABLE {t} SET TABLESPACE aside"],
        after: &["UPDATE {t} SET filler = 'new' WHERE id % 997 = 7"],
    },
    Workload {
        name: "moved_to_a_tablespace",
        before: &[],
        after: &["ALTER TABLE {t} SET TABLESPACE aside"],
    },
    Workload {
        name: "moved_back",
        before: &["ALTER TABLE {t} SET TABLESPACE aside"],
        after: &["ALTER TABLE {t} SET TABLESPACE pg_default"],
    },
    Workload {
        name: "toasted",
        before: &[
            "ALTER TABLE {t} ALTER filler SET STORAGE EXTERNAL",
            "UPDATE {t} SET filler = repeat(filler, 100) WHERE id < 200",
        ],
        after: &["UPDATE {t} SET filler = repeat('y', 9000) WHERE id % 50 = 1 AND id < 200"],
    },
    Workload {
        name: "indexed_before",
        before: INDEXES,
        after: &[
            "UPDATE {t} SET point = point(id, -id), words = '{new}', name = 'new' WHERE id % 97 = 1",
            "DELETE FROM {t} WHERE id BETWEEN 3000 AND 3500",
            "VACUUM {t}",
        ],
    },
    Workload { name: "indexed_after", before: &[], after: INDEXES },
    Workload {
        name: "reindexed",
        before: &[],
        after: &["DELETE FROM {t} WHERE id % 2 = 0", "REINDEX TABLE {t}"],
    },
    Workload {
        name: "counted",
        before: &["CREATE SEQUENCE {t}_seq", "SELECT nextval('{t}_seq')"],
        after: &["SELECT count(nextval('{t}_seq')) FROM generate_series(1, 100)"],
    },
];

/// An index of each type that comes with the server.
const INDEXES: &[&str] = &[
    "ALTER TABLE {t} ADD point point, ADD words text[], ADD name text",
    "UPDATE {t} SET point = point(id, id % 100), words = ARRAY[id::text, 'all'], name = md5(id::text)",
    "CREATE INDEX ON {t} USING btree (name)",
    "CREATE INDEX ON {t} USING hash (name)",
    "CREATE INDEX ON {t} USING gist (point)",
    "CREATE INDEX ON {t} USING gin (words)",
    "CREATE INDEX ON {t} USING spgist (name)",
    "CREATE INDEX ON {t} USING brin (id)",
];

/// Makes all tables and databases, and brings them to rest: what is only read from then on isn't
/// written any more.
pub fn prepare(cluster: &Cluster, tablespace: &Path) {
    let mut script = Script::new(cluster);
    script.add(&format!("CREATE TABLESPACE aside LOCATION '{}'", tablespace.display()));
    for Workload { name, before, .. } in WORKLOADS {
        script.add(&format!("CREATE TABLE {name} (id bigint PRIMARY KEY, filler text)"));
        script.add(&format!(
            "INSERT INTO {name} SELECT n, md5(n::text) FROM generate_series(1, {ROWS}) n"
        ));
        script.of_table(name, before);
    }
    for database in ["same_database", "recreated_database"] {
        script.add(&format!("CREATE DATABASE {database}"));
        script.add(&format!("\\c {database}"));
        script.add("CREATE TABLE t AS SELECT generate_series(1, 5000) n");
        script.add("\\c postgres");
    }
    script.add("VACUUM (FREEZE, ANALYZE)");
    script.add("CHECKPOINT");
    script.run();
}

/// Does all of it.
pub fn change(cluster: &Cluster) {
    let mut script = Script::new(cluster);
    for Workload { name, after, .. } in WORKLOADS {
        script.of_table(name, after);
    }
    script.add("\\c same_database");
    script.add("UPDATE t SET n = -n WHERE n % 1000 = 0");
    script.add("\\c postgres");
    script.add("DROP DATABASE recreated_database");
    script.add("CREATE DATABASE recreated_database");
    for strategy in ["file_copy", "wal_log"] {
        script.add(&format!(
            "CREATE DATABASE by_{strategy} TEMPLATE same_database STRATEGY {strategy}"
        ));
        script.add(&format!("\\c by_{strategy}"));
        script.add("INSERT INTO t SELECT generate_series(1, 2000)");
        script.add("\\c postgres");
    }
    script.run();
}

/// A little more, to every table there is now.
pub fn change_again(cluster: &Cluster) {
    let tables = cluster.sql(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'prepared'",
    );
    let mut script = Script::new(cluster);
    for table in tables.lines() {
        script.add(&format!("DELETE FROM {table} WHERE id % 1999 = 3"));
    }
    script.add("COMMIT PREPARED 'pending'");
    script.add("INSERT INTO deleted SELECT n, 'again' FROM generate_series(1, 500) n");
    script.add("VACUUM shrunk");
    script.add("DROP DATABASE by_wal_log");
    for strategy in ["wal_log", "file_copy"] {
        script.add(&format!(
            "CREATE DATABASE again_by_{strategy} TEMPLATE same_database STRATEGY {strategy}"
        ));
    }
    script.add("\\c by_file_copy");
    script.add("DELETE FROM t WHERE n > 2500");
    script.add("VACUUM t");
    script.run();
}

/// Rolls back what is prepared.
pub fn release_locks(cluster: &Cluster) {
    for prepared in cluster.sql("SELECT gid FROM pg_prepared_xacts").lines() {
        cluster.sql(&format!("ROLLBACK PREPARED '{prepared}'"));
    }
}

/// The content of what isn't empty after a crash, by name.
pub fn digests(cluster: &Cluster) -> Vec<(String, Digest)> {
    let unlogged = ["postgres.public.unlogged", "postgres.public.became_unlogged"];
    let mut digests = cluster.digests();
    digests.retain(|(name, _)| !unlogged.contains(&name.as_str()));
    digests
}

/// Statements for one psql, each in a transaction of its own.
struct Script(Command);

impl Script {
    fn new(cluster: &Cluster) -> Self {
        Script(cluster.psql())
    }

    fn add(&mut self, statement: &str) {
        self.0.args(["-c", statement]);
    }

    fn of_table(&mut self, table: &str, statements: &[&str]) {
        statements.iter().for_each(|statement| self.add(&statement.replace("{t}", table)));
    }

    fn run(mut self) {
        run(&mut self.0);
    }
}
