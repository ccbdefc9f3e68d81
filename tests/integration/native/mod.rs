//! Incremental backups as PostgreSQL 17 and 18 send them, and what they refuse.

mod refusals;
mod stream;

use std::collections::BTreeMap;

use pgkeep::postgres::{client::Mode, page::RelationFile};

use crate::support::{Cluster, Scratch, on_each_version};
use stream::{Rebuilt, block_on, connect, rebuild, take, upload, write_directory};

/// A cluster that summarizes its WAL, and in which nothing happens by itself. Checksums make each
/// change of a page leave a trace in the WAL.
fn summarizing(version: u32) -> Cluster {
    let builder = Cluster::builder(version).checksums(true);
    builder.conf("summarize_wal = on").conf("autovacuum = off").start()
}

/// Everything settled and written, so that reading changes nothing.
fn settle(cluster: &Cluster) {
    cluster.sql("VACUUM (FREEZE, ANALYZE)");
    cluster.sql("CHECKPOINT");
}

/// That two backups have the same relations, page by page.
fn assert_same_relations(found: &BTreeMap<String, Vec<u8>>, expected: &BTreeMap<String, Vec<u8>>) {
    let relations = |files: &BTreeMap<String, Vec<u8>>| {
        let of_a_relation = files.keys().filter(|path| RelationFile::parse(path).is_some());
        of_a_relation.cloned().collect::<Vec<_>>()
    };
    assert_eq!(relations(found), relations(expected));
    for path in relations(expected) {
        let (found, expected) = (&found[&path], &expected[&path]);
        assert_eq!(found.len(), expected.len(), "the length of {path}");
        for (block, (a, b)) in found.chunks(8192).zip(expected.chunks(8192)).enumerate() {
            assert!(a == b, "block {block} of {path} differs");
        }
    }
}

on_each_version!(an_incremental_backup_over_a_full_one_is_a_full_one: 17 postgres_17, 18 postgres_18);

fn an_incremental_backup_over_a_full_one_is_a_full_one(version: u32) {
    let cluster = summarizing(version);
    cluster.sql("CREATE TABLESPACE aside LOCATION ''");
    for table in ["scattered", "shrunk", "emptied", "dropped", "rewritten", "grown", "cut", "same"]
    {
        cluster.make_table(table, 20_000);
    }
    cluster.sql("CREATE TABLE moved TABLESPACE aside AS SELECT * FROM scattered");
    cluster.sql("CREATE UNLOGGED TABLE unlogged AS SELECT * FROM scattered");
    cluster.sql("CREATE DATABASE other");
    settle(&cluster);
    let path = |table: &str| cluster.sql(&format!("SELECT pg_relation_filepath('{table}')"));
    let dropped = path("dropped");

    block_on(async {
        let mut client = connect(&cluster, Mode::Replication).await;
        let full = take(&mut client, false).await.unwrap();
        assert!(full.files.contains_key(&dropped));

        cluster.sql("UPDATE scattered SET filler = 'new' WHERE id % 2000 = 7");
        cluster.sql("UPDATE moved SET filler = 'new' WHERE id % 3000 = 7");
        cluster.sql("DELETE FROM shrunk WHERE id > 5000");
        cluster.sql("VACUUM shrunk");
        cluster.sql("TRUNCATE emptied");
        cluster.sql("DROP TABLE dropped");
        cluster.sql("VACUUM FULL rewritten");
        cluster.insert("grown", 3000);
        // Cut off, and grown again over the same blocks.
        cluster.sql("DELETE FROM cut WHERE id > 15000");
        cluster.sql("VACUUM cut");
        cluster.insert("cut", 2000);
        cluster.make_table("new", 1000);
        cluster.sql("CREATE DATABASE copied TEMPLATE other STRATEGY file_copy");
        cluster.sql("DROP DATABASE other");
        cluster.sql("CREATE DATABASE other STRATEGY wal_log");
        let mut digests = cluster.digests();
        let paths = ["scattered", "moved", "shrunk", "grown", "cut", "same"].map(path);

        upload(&mut client, &full).await.unwrap();
        let increment = take(&mut client, true).await.unwrap();
        // On the same connection, so that nothing was read for a new one.
        let again = take(&mut client, false).await.unwrap();
        let Rebuilt { files, partly } = rebuild(&full, &increment);
        assert_same_relations(&files, &again.files);
        assert!(!files.contains_key(&dropped));

        let blocks = paths.clone().map(|path| partly.get(&path).copied());
        let [scattered, moved, shrunk, grown, cut, same] = blocks.map(|blocks| blocks.unwrap());
        assert!((10..40).contains(&scattered), "{scattered}");
        assert!((6..30).contains(&moved), "{moved}");
        assert!(grown > 30 && cut > 30 && shrunk > 0, "{grown} {cut} {shrunk}");
        assert_eq!(same, 0);
        assert!(increment.sent < again.sent / 2, "{} of {}", increment.sent, again.sent);
        assert!(partly.keys().all(|path| !path.ends_with("_fsm") && !path.ends_with("_vm")));

        // A server accepts it, and has all the rows.
        let scratch = Scratch::new("rebuilt");
        write_directory(&files, &scratch.join("data"), &cluster.pgdata().join("pg_wal"));
        let mut restored = Cluster::at(&scratch.join("data"), version);
        restored.start();
        restored.wait_for_primary(60);
        // An unlogged table comes back empty, as `emptied` is.
        let at = |table: &str| digests.iter().position(|(name, _)| name == table).unwrap();
        let (unlogged, emptied) = (at("postgres.public.unlogged"), at("postgres.public.emptied"));
        digests[unlogged].1 = digests[emptied].1.clone();
        assert_eq!(restored.digests(), digests);
    });
}

on_each_version!(an_incremental_backup_over_another_is_one_too: 17 postgres_17, 18 postgres_18);

/// The base of an increment may be any backup whose files are known, and a chain grows on.
fn an_incremental_backup_over_another_is_one_too(version: u32) {
    let cluster = summarizing(version);
    cluster.make_table("t", 20_000);
    settle(&cluster);
    block_on(async {
        let mut client = connect(&cluster, Mode::Replication).await;
        let mut base = take(&mut client, false).await.unwrap();
        for round in 0..3 {
            cluster.sql(&format!("UPDATE t SET filler = '{round}' WHERE id % 1000 = {round}"));
            cluster.sql(&format!("DELETE FROM t WHERE id > {}", 19_000 - round * 1000));
            cluster.sql("VACUUM t");
            upload(&mut client, &base).await.unwrap();
            let mut increment = take(&mut client, true).await.unwrap();
            let again = take(&mut client, false).await.unwrap();
            let rebuilt = rebuild(&base, &increment);
            assert_same_relations(&rebuilt.files, &again.files);
            assert!(increment.sent < again.sent / 2);
            increment.files = rebuilt.files;
            base = increment;
        }
    });
}
