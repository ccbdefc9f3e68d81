//! The comparison finds what it should: each kind of difference, planted into one of two restores of
//! the same backup.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{
    Site,
    compare::{differences, in_file},
};
use crate::support::{Cluster, on_each_version};

const BLOCK: u64 = 8192;

on_each_version!(differences_are_found_wherever_they_are: 15 postgres_15, 18 postgres_18);

fn differences_are_found_wherever_they_are(version: u32) {
    let site = Site::new(Cluster::builder(version));
    site.cluster.make_table("t", 5000);
    site.cluster.sql("CREATE INDEX by_filler ON t (filler)");
    site.cluster.sql("CREATE INDEX by_prefix ON t USING spgist (filler)");
    site.cluster.sql("CREATE UNLOGGED TABLE u (n int)");
    site.cluster.sql("VACUUM (FREEZE) t");
    let path = |of: &str| site.cluster.sql(&format!("SELECT pg_relation_filepath('{of}')"));
    let (heap, index, unlogged) = (path("t"), path("by_filler"), path("u"));
    let spgist = path("by_prefix");
    let backup = site.take("full");
    let [one, other] = ["one", "other"].map(|name| site.restore(&backup, name));
    assert_eq!(differences(&one, &other, false), [""; 0]);

    let spots = [
        // A page's position in the WAL, its flags, its free space, a line pointer, a row.
        (heap.clone(), 3),
        (heap.clone(), BLOCK + 10),
        (heap.clone(), 2 * BLOCK + 14),
        (heap.clone(), 3 * BLOCK + 25),
        (heap.clone(), 5 * BLOCK - 40),
        (index.clone(), 7000),
        (index.clone(), 3 * BLOCK - 100),
        (spgist.clone(), 24),
        (spgist.clone(), BLOCK + 60),
        (format!("{heap}_vm"), 24),
        (format!("{heap}_fsm"), BLOCK - 1),
        ("pg_xact/0000".to_owned(), 0),
        ("pg_multixact/offsets/0000".to_owned(), BLOCK - 1),
        ("base/1/pg_filenode.map".to_owned(), 300),
        ("global/pg_filenode.map".to_owned(), 511),
        ("PG_VERSION".to_owned(), 1),
        ("postgresql.conf".to_owned(), 10),
        ("postgresql.auto.conf".to_owned(), 40),
    ];
    for (path, at) in spots {
        let _planted = Planted::byte(&other.join(&path), at, 0x04);
        for hints in [false, true] {
            let found = in_file(&path, &one.join(&path), &other.join(&path), hints);
            assert!(found.is_some(), "{path} {at} with hints {hints}");
        }
    }
    {
        // Where an SP-GiST index keeps in mind which pages have room.
        let _planted = Planted::byte(&other.join(&spgist), 60, 0x04);
        assert_eq!(differences(&one, &other, false), [""; 0]);
    }
    {
        let _planted = Planted::byte(&other.join(&heap), 3, 0x04);
        let line = format!("{heap} differs in block 0 at byte 3");
        assert_eq!(differences(&one, &other, true), [line]);
    }

    for path in [heap.as_str(), "global/1262", "pg_xact/0000"] {
        let planted = Planted::new(&other.join(path));
        let mut longer = planted.content.clone();
        longer.resize(longer.len() + BLOCK as usize, 0);
        fs::write(&planted.path, longer).unwrap();
        assert_eq!(differences(&one, &other, true).len(), 1, "{path} is longer");
        fs::remove_file(&planted.path).unwrap();
        assert_eq!(differences(&one, &other, true), [format!("{path} is only in the first")]);
        fs::create_dir(&planted.path).unwrap();
        assert_eq!(differences(&one, &other, true).len(), 1, "{path} is a directory");
        fs::remove_dir(&planted.path).unwrap();
    }
    for path in [unlogged.as_str(), "base/5/INCREMENTAL.1259", "base/5/99999", "pg_wal/x"] {
        fs::write(other.join(path), "").unwrap();
        assert_eq!(differences(&one, &other, true), [format!("{path} is only in the second")]);
        fs::remove_file(other.join(path)).unwrap();
    }
    // Of another system.
    let another = Cluster::builder(version).make();
    let planted = Planted::new(&other.join("global/pg_control"));
    fs::copy(another.pgdata().join("global/pg_control"), &planted.path).unwrap();
    assert_eq!(differences(&one, &other, true).len(), 1);
    drop(planted);
    assert_eq!(differences(&one, &other, false), [""; 0]);
}

#[test]
fn hints_are_told_from_other_differences() {
    // Of 15, without checksums: hints leave no trace.
    let site = Site::new(Cluster::builder(15));
    site.cluster.make_table("t", 5000);
    // Pages with room left aren't tidied up when they are read.
    site.cluster.sql("CREATE TABLE dead (id int PRIMARY KEY, filler text)");
    site.cluster.sql("ALTER TABLE dead ALTER filler SET STORAGE PLAIN");
    site.cluster.sql("INSERT INTO dead SELECT n, repeat('x', 2300) FROM generate_series(1, 500) n");
    let paths = ["t", "dead", "dead_pkey"]
        .map(|of| site.cluster.sql(&format!("SELECT pg_relation_filepath('{of}')")));
    site.cluster.sql("DELETE FROM dead");
    let [one, other] = {
        let before = site.take("full");
        // Reading notes which rows are committed; reading by an index, which entries are dead.
        site.cluster.sql("SELECT count(*) FROM t");
        site.cluster.sql("SET enable_seqscan = off; SET enable_bitmapscan = off; SELECT count(*) FROM dead WHERE id < 400");
        let after = site.take("full");
        [(before, "one"), (after, "other")].map(|(record, name)| site.restore(&record, name))
    };
    assert_eq!(differences(&one, &other, true), [""; 0]);
    let found = differences(&one, &other, false);
    for path in &paths {
        assert!(found.iter().any(|line| line.starts_with(path)), "{path}: {found:?}");
    }

    // Beside hints, each other byte counts: of a row's header the bits beside them.
    let row = |path: &Path| {
        let page = fs::read(path).unwrap();
        u64::from(u16::from_le_bytes([page[24], page[25]]) & 0x7FFF)
    };
    let heap = other.join(&paths[0]);
    let at = row(&heap);
    for (offset, bits, hint) in
        [(20, 0x02, false), (21, 0x10, false), (21, 0x08, true), (0, 1, false), (18, 1, false)]
    {
        let _planted = Planted::byte(&heap, at + offset, bits);
        let found = in_file(&paths[0], &one.join(&paths[0]), &heap, true);
        assert_eq!(found.is_none(), hint, "{offset} {bits:#x}: {found:?}");
    }
    // What is named is the byte that counts, not the hint before it.
    {
        let _hint = Planted::byte(&heap, at + 21, 0x08);
        let _planted = Planted::byte(&heap, at + 30, 0x01);
        let line = format!("{} differs in block 0 at byte {}", paths[0], at + 30);
        assert_eq!(differences(&one, &other, true), [line]);
    }
    // "Frozen" is no hint.
    let _planted = Planted::new(&heap);
    let file = fs::File::options().write(true).read(true).open(&heap).unwrap();
    let mut infomask = [0];
    file.read_exact_at(&mut infomask, at + 21).unwrap();
    file.write_all_at(&[infomask[0] | 0x03], at + 21).unwrap();
    assert_eq!(differences(&one, &other, true).len(), 1);
}

/// A file that gets its content back.
struct Planted {
    path: PathBuf,
    content: Vec<u8>,
}

impl Planted {
    fn new(path: &Path) -> Self {
        Planted { path: path.to_owned(), content: fs::read(path).unwrap() }
    }

    /// Flips bits of one byte.
    fn byte(path: &Path, at: u64, bits: u8) -> Self {
        let planted = Planted::new(path);
        let mut changed = planted.content.clone();
        changed[at as usize] ^= bits;
        fs::write(path, changed).unwrap();
        planted
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        fs::write(&self.path, &self.content).unwrap();
    }
}
