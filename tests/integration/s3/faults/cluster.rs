//! The smallest cluster whose backup has a pack that goes up in parts.

use crate::support::Cluster;

/// One database, and some MiB in it that don't compress. Where the server can, it summarizes its WAL.
pub fn small_cluster(version: u32) -> Cluster {
    let builder = Cluster::builder(version).wal_segsize(1).conf("autovacuum = off");
    let builder = if version < 17 { builder } else { builder.conf("summarize_wal = on") };
    let cluster = builder.start();
    cluster.sql("UPDATE pg_database SET datistemplate = false");
    cluster.sql("DROP DATABASE template0");
    cluster.sql("DROP DATABASE template1");
    cluster.sql("CREATE TABLE noise (bytes bytea)");
    cluster.sql("ALTER TABLE noise ALTER bytes SET STORAGE EXTERNAL");
    cluster.sql(
        "INSERT INTO noise SELECT (SELECT string_agg(decode(md5(n || '-' || row), 'hex'), '') \
         FROM generate_series(1, 120) AS n) FROM generate_series(1, 5000) AS row",
    );
    cluster.sql("VACUUM FREEZE");
    cluster.sql("CHECKPOINT");
    cluster
}
