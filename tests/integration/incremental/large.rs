//! Relations over 1 GiB, which lie in several files.
//!
//! A file of the server's that is made longer by a hole has pages of zeros, which are new pages to it
//! and take no room on disk. So the tables here are long and cost little but the reading.

use std::{fs, path::PathBuf};

use super::{
    Site, assert_over,
    compare::{BLOCK, differences},
    cost::Cost,
    start,
};
use crate::support::{
    Cluster, Stop, on_each_version,
    sound::{check_structures, verify_backup},
    wait_until,
};

/// The pages of a file (`RELSEG_SIZE` of a server as it is built for everybody).
const SEGMENT: u64 = 131_072;
/// How many rows of the tables here a page takes.
const ROWS: u64 = 7;

on_each_version!(relations_of_several_files_come_back: 15 postgres_15, 17 postgres_17, 18 postgres_18);

fn relations_of_several_files_come_back(version: u32) {
    let mut site = Site::new(Cluster::builder(version));
    let tables = ["grown", "shrunk", "emptied"];
    for table in tables {
        site.cluster.sql(&format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, filler text);
             ALTER TABLE {table} ALTER filler SET STORAGE PLAIN"
        ));
        insert(&site.cluster, table, 5);
    }
    // Up to a few pages below the border; two of them go on past it.
    lengthen(&mut site.cluster, &tables, SEGMENT - 20);
    let cluster = &site.cluster;
    insert(cluster, "grown", 10);
    insert(cluster, "shrunk", 1500);
    insert(cluster, "emptied", 30);
    assert_eq!(tables.map(|table| segments(cluster, table)), [1, 2, 2]);
    cluster.sql("CHECKPOINT");
    let full = site.take("full");

    // Over the border; back behind it; to nothing. In the second file one page is changed.
    insert(cluster, "grown", 100);
    cluster.sql(&format!("UPDATE grown SET filler = filler || '!' WHERE id % (20 * {ROWS}) = 1"));
    cluster.sql(&format!("DELETE FROM shrunk WHERE id > 15 * {ROWS}"));
    // Few dead rows for so many pages: an index would keep them otherwise.
    // Nothing is cut off while the server's own vacuum looks at the table.
    wait_until("it is cut off", 60, || {
        cluster.sql("VACUUM (INDEX_CLEANUP on) shrunk");
        segments(cluster, "shrunk") == 1
    });
    cluster.sql("TRUNCATE emptied");
    assert_eq!(tables.map(|table| segments(cluster, table)), [2, 1, 0]);
    let at_first = cluster.digests();
    let first = site.take("incr");
    assert_over(&first, &full, version);

    // Over the border again, past what has been cut off.
    forget_free_space(&mut site.cluster, "shrunk");
    let cluster = &site.cluster;
    insert(cluster, "shrunk", 40);
    cluster.sql(&format!("UPDATE grown SET filler = 'late' WHERE id = 100 * {ROWS}"));
    insert(cluster, "emptied", 3);
    assert_eq!(tables.map(|table| segments(cluster, table)), [2, 2, 1]);
    // Reading tidies pages up, so nobody does from here on.
    let at_second = cluster.digests();
    cluster.sql("CHECKPOINT");
    let second = site.take("incr");
    assert_over(&second, &first, version);
    let last = site.take("full");

    let all = [(&full, "full"), (&first, "first"), (&second, "second"), (&last, "last")];
    let [full_at, first_at, second_at, last_at] =
        all.map(|(record, name)| site.restore(record, name));
    Cost::between(&full_at, &first_at).assert_paid(&first);
    Cost::between(&first_at, &second_at).assert_paid(&second);
    if version >= 17 {
        // What was made shorter comes whole, one file of it.
        for (record, files) in [(&first, 1), (&second, 0)] {
            let sent = record["sizes"]["sent"].as_u64().unwrap();
            let file = SEGMENT * BLOCK as u64;
            assert!(sent < files * file + file / 16, "{record}");
        }
    }
    assert_eq!(differences(&second_at, &last_at, version < 18), [""; 0]);
    for (place, rows) in [(first_at, at_first), (second_at, at_second)] {
        verify_backup(&place);
        let restored = start(&place, version);
        assert_eq!(restored.digests(), rows);
        check_structures(&restored);
    }
}

/// Adds so many pages of rows behind the last page.
fn insert(cluster: &Cluster, table: &str, pages: u64) {
    cluster.sql(&format!(
        "INSERT INTO {table} SELECT n + (SELECT coalesce(max(id), 0) FROM {table}), \
         repeat(md5(n::text), 34) FROM generate_series(1, {pages} * {ROWS}) n"
    ));
}

/// How many files of the table have anything in them.
fn segments(cluster: &Cluster, table: &str) -> u64 {
    let pages = format!("SELECT pg_relation_size('{table}') / {BLOCK}");
    let pages: u64 = cluster.sql(&pages).parse().unwrap();
    pages.div_ceil(SEGMENT)
}

fn path(cluster: &Cluster, table: &str) -> PathBuf {
    cluster.pgdata().join(cluster.sql(&format!("SELECT pg_relation_filepath('{table}')")))
}

/// Makes tables so many pages long, by a hole.
fn lengthen(cluster: &mut Cluster, tables: &[&str], pages: u64) {
    let paths: Vec<PathBuf> = tables.iter().map(|table| path(cluster, table)).collect();
    cluster.stop(Stop::Fast);
    for path in paths {
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len(pages * BLOCK as u64).unwrap();
    }
    cluster.start();
}

/// Takes away what the server has noted of pages with room, so that it adds pages: it does without.
fn forget_free_space(cluster: &mut Cluster, table: &str) {
    let path = path(cluster, table);
    cluster.stop(Stop::Fast);
    fs::remove_file(format!("{}_fsm", path.display())).unwrap();
    cluster.start();
}
