//! The smallest cluster whose backup has a pack that goes up in parts, and comparing its files.

use std::{collections::BTreeMap, fs, path::Path};

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

/// Files by name, with a hash of what is in them.
pub type Files = BTreeMap<String, blake3::Hash>;

/// The files below a folder of a data directory, without those that say when they were written or
/// by which configuration.
pub fn files_of(pgdata: &Path, folder: &str) -> Files {
    let mut files = Files::new();
    collect(pgdata, &pgdata.join(folder), &mut files);
    files
}

fn collect(pgdata: &Path, folder: &Path, files: &mut Files) {
    for entry in fs::read_dir(folder).expect("read a folder").flatten() {
        let path = entry.path();
        let name = path.strip_prefix(pgdata).expect("below").display().to_string();
        let file = path.file_name().expect("a name");
        if path.is_dir() {
            collect(pgdata, &path, files);
        } else if !["backup_manifest", "postgresql.auto.conf", "pg_internal.init", "pg_control"]
            .iter()
            .any(|changing| file == *changing)
        {
            files.insert(name, blake3::hash(&fs::read(&path).expect("read a file")));
        }
    }
}
