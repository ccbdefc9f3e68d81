//! What isn't sound doesn't pass, and the result says what is wrong.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

use super::Site;
use crate::support::{
    Cluster, Stop,
    objects::{ObjectKind, flip_bit, objects_of},
    scratch::write,
};

#[test]
fn a_lost_table_and_a_wrong_answer_are_noticed() {
    let site = Site::new(15);
    site.cluster.sql("CREATE DATABASE app");
    site.cluster.sql("CREATE TABLE lost (n int)");
    site.cluster.sql("CREATE TABLE there AS SELECT 4 AS n");
    site.cluster.sql("DROP TABLE lost");
    site.backup("full");
    site.queries(&[("postgres", "SELECT count(*) FROM lost", "0")]);
    let text = site.drill(&[]).failed("query 1");
    assert!(text.contains("relation \"lost\" does not exist"), "{text}");
    assert!(text.contains("expected \"0\", came an error"), "{text}");
    site.pgkeep.edit(|text| text.replace("count(*) FROM lost", "n FROM there"));
    let text = site.drill(&[]).failed("query 1");
    assert!(
        text.contains("in postgres: SELECT n FROM there: expected \"0\", came \"4\""),
        "{text}"
    );
    site.pgkeep.edit(|text| text.replace("database = \"postgres\"", "database = \"gone\""));
    let text = site.drill(&[]).failed("query 1");
    assert!(text.contains("database \"gone\" does not exist"), "{text}");
}

/// pg_amcheck is there for 15 only.
#[test]
fn a_corrupt_index_is_noticed() {
    let mut site = Site::of(Cluster::builder(15).wal_segsize(1).checksums(false).start());
    site.cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    site.cluster.sql("CREATE INDEX by_n ON t (n)");
    site.cluster.sql("CHECKPOINT");
    let path = site.cluster.sql("SELECT pg_relation_filepath('by_n')");
    site.cluster.stop(Stop::Fast);
    // The key of the entry at the end of the first leaf, before the page's special space.
    let file = File::options().write(true).open(site.cluster.pgdata().join(path)).unwrap();
    file.write_all_at(&7_777_777u32.to_le_bytes(), 2 * 8192 - 16 - 8).unwrap();
    site.cluster.start();
    site.backup("full");
    let text = site.drill(&[]).failed("amcheck");
    assert!(text.contains("by_n"), "{text}");
    // Whoever doesn't ask isn't told.
    site.pgkeep.set("drill", "amcheck = false");
    let document = site.drill(&[]).passed();
    assert_eq!(super::outcome(&document, "page-checksums"), "skipped");
}

#[test]
fn a_page_that_was_damaged_already_is_noticed() {
    let mut site = Site::new(17);
    site.cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 3000) AS n");
    site.cluster.sql("CHECKPOINT");
    let path = site.cluster.sql("SELECT pg_relation_filepath('t')");
    site.cluster.stop(Stop::Fast);
    flip_bit(&site.cluster.pgdata().join(&path), 2 * 8192 + 100);
    site.cluster.start();
    site.backup("full");
    let text = site.drill(&[]).failed("page-checksums");
    assert!(text.starts_with("1 of "), "{text}");
    assert!(text.contains(&format!("page 2 of {path}")), "{text}");
}

#[test]
fn missing_and_damaged_wal_and_a_damaged_pack_are_noticed() {
    let site = Site::new(17);
    site.cluster.sql("CREATE TABLE t (n int)");
    let taken = site.pgkeep.json(["backup"]);
    let record = &taken["backups"][0]["backup"];
    let own = site
        .cluster
        .sql(&format!("SELECT pg_walfile_name('{}')", record["start-lsn"].as_str().unwrap()));
    let mut later = Vec::new();
    for n in 0..3 {
        site.cluster.sql(&format!("INSERT INTO t VALUES ({n})"));
        later.push(site.archive_all());
    }
    let root = site.pgkeep.repository();
    let of = |name: &str| {
        let mut all = objects_of(&root, ObjectKind::Segment).into_iter();
        all.rfind(|object| object.name.contains(name)).expect("it is there")
    };
    // Its own WAL, and WAL behind it.
    for missing in [&own, &later[1]] {
        let object = of(missing);
        let bytes = fs::read(&object.path).unwrap();
        fs::remove_file(&object.path).unwrap();
        let text = site.drill(&[]).failed("restore");
        assert!(text.contains(missing.as_str()), "{text}");
        write(&object.path, bytes);
    }
    // Damage inside, which only who reads it sees: the server doesn't get it, and stops.
    let object = of(&later[1]);
    let bytes = fs::read(&object.path).unwrap();
    flip_bit(&object.path, 100);
    let text = site.drill(&[]).failed("recovery");
    assert!(text.contains("the server ended before it opened"), "{text}");
    assert!(text.contains(&object.name), "{text}");
    write(&object.path, bytes);

    let pack = objects_of(&root, ObjectKind::Pack).remove(0);
    let bytes = fs::read(&pack.path).unwrap();
    flip_bit(&pack.path, 1000);
    let text = site.drill(&[]).failed("restore");
    assert!(text.contains(&pack.name), "{text}");
    write(&pack.path, bytes);

    // And a record that can't be read: the newest backup isn't simply the newest that can.
    let record = objects_of(&root, ObjectKind::Record).remove(0);
    let bytes = fs::read(&record.path).unwrap();
    flip_bit(&record.path, 100);
    let text = site.drill(&[]).failed("restore");
    assert!(text.contains(&record.name), "{text}");
    write(&record.path, bytes);
    site.drill(&[]).passed();
}

/// A server that does nothing is given up.
#[test]
fn a_server_that_makes_no_progress_is_given_up() {
    let site = Site::new(17);
    site.backup("full");
    site.archive_all();
    site.pgkeep.set("drill", "timeout = \"10s\"");
    // The archive's answer never comes: somebody put a lock where the key is read from.
    let key = site.pgkeep.key_file("main");
    let aside = key.with_extension("aside");
    fs::copy(&key, &aside).unwrap();
    let running = site.pgkeep.spawn(["--output", "json", "drill"]);
    crate::support::wait_until("the cluster is being restored", 60, || {
        let home = super::names(&site.place);
        home.first().is_some_and(|home| site.place.join(home).join("data/PG_VERSION").exists())
    });
    fs::remove_file(&key).unwrap();
    crate::support::install::run(
        crate::support::install::command("mkfifo").args(["-m", "0600"]).arg(&key),
    );
    let output = running.wait();
    fs::remove_file(&key).unwrap();
    fs::rename(&aside, &key).unwrap();
    crate::support::scratch::own(&key);
    assert_eq!(output.code, 1, "{output}");
    assert!(output.stdout.contains("gave no sign of progress for 10 s"), "{output}");
    site.nothing_is_left();
}
